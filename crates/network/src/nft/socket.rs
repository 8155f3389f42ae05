//! The netlink socket: commits batches, and reads the chains and rules of other programs' tables.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use parking_lot::Mutex;

use super::batch::Batch;
use super::expr::comment;
use super::wire::{Message, MessageHead, attribute, message, messages, text};

/// Why nf_tables refused.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The kernel has no nf_tables, or the process lacks CAP_NET_ADMIN here.
    #[error("cannot open an nf_tables socket: {0}")]
    Open(Errno),
    /// Sending or receiving failed.
    #[error("nf_tables does not answer: {0}")]
    Io(Errno),
    /// The kernel refused a command; nothing of the batch took effect.
    #[error("nf_tables refused to {command}: {cause}")]
    Refused {
        /// The command.
        command: &'static str,
        /// What the kernel said.
        cause: Errno,
    },
}

impl NftError {
    /// What the kernel said.
    pub fn cause(&self) -> Errno {
        match self {
            Self::Open(cause) | Self::Io(cause) | Self::Refused { cause, .. } => *cause,
        }
    }

    /// Whether the named thing does not exist.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Refused { cause: Errno::ENOENT, .. })
    }
}

/// A base chain of any table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignChain {
    /// Protocol family: 1 inet, 2 ip.
    pub family: u8,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Its hook's number.
    pub hook: u32,
    /// Whether packets that no rule decides are dropped.
    pub drops: bool,
    /// `filter`, `nat` or `route`.
    pub kind: String,
}

/// A connection to the nf_tables of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Socket(Mutex<OwnedFd>);

const BUFFER: usize = 64 << 20;
const DUMP: u16 = 0x300;

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`NftError::Open`].
    pub fn open() -> Result<Self, NftError> {
        let protocol = SockProtocol::NetlinkNetFilter;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .map_err(NftError::Open)?;
        // Without CAP_NET_ADMIN in the first namespace the plain limits hold, which small batches fit in.
        let _ = setsockopt(&fd, sockopt::SndBufForce, &BUFFER);
        let _ = setsockopt(&fd, sockopt::RcvBufForce, &BUFFER);
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(10, 0)).map_err(NftError::Open)?;
        Ok(Self(Mutex::new(fd)))
    }

    /// Applies a batch as one transaction. An empty one is a success. Blocks for about a millisecond per
    /// thousand elements.
    ///
    /// # Errors
    /// [`NftError::Refused`] with the first command that failed; the tables are unchanged then.
    pub fn commit(&self, batch: Batch) -> Result<(), NftError> {
        if batch.is_empty() {
            return Ok(());
        }
        let (bytes, last, what) = batch.finish();
        let fd = self.0.lock();
        discard(&fd);
        send(fd.as_raw_fd(), &bytes, MsgFlags::empty()).map_err(NftError::Io)?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let received = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(NftError::Io)?;
            for answer in messages(&buffer[..received]) {
                match answer.error() {
                    Some(0) if answer.sequence >= last => return Ok(()),
                    Some(0) | None => {}
                    Some(code) => {
                        let at = (answer.sequence as usize).checked_sub(1);
                        let command = at.and_then(|at| what.get(at)).copied().unwrap_or("commit");
                        return Err(NftError::Refused { command, cause: Errno::from_raw(-code) });
                    }
                }
            }
        }
    }

    fn dump(
        &self,
        command: u16,
        fill: impl FnOnce(&mut Vec<u8>),
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<(), NftError> {
        let mut request = Vec::new();
        let head = MessageHead { kind: (10 << 8) | command, flags: DUMP, family: 0, resource: 0 };
        message(&mut request, head, 1, fill);
        self.exchange(&request, &mut each)
    }

    /// Sends a dump request and hands over every message of the answer.
    pub(crate) fn exchange(
        &self,
        request: &[u8],
        each: &mut dyn FnMut(&Message<'_>),
    ) -> Result<(), NftError> {
        let fd = self.0.lock();
        discard(&fd);
        send(fd.as_raw_fd(), request, MsgFlags::empty()).map_err(NftError::Io)?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let received = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(NftError::Io)?;
            for answer in messages(&buffer[..received]) {
                match (answer.kind, answer.error()) {
                    (3, _) | (_, Some(0)) => return Ok(()),
                    (_, Some(code)) => {
                        return Err(NftError::Refused { command: "list", cause: Errno::from_raw(-code) });
                    }
                    _ => each(&answer),
                }
            }
        }
    }

    /// All base chains of this network namespace.
    ///
    /// # Errors
    /// See [`NftError`].
    pub fn base_chains(&self) -> Result<Vec<ForeignChain>, NftError> {
        let mut found = Vec::new();
        self.dump(
            4,
            |_| {},
            |answer| {
                let all = answer.attributes();
                let (Some(table), Some(name), Some(hook)) = (all.text(1), all.text(3), all.nested(4)) else {
                    return;
                };
                found.push(ForeignChain {
                    family: answer.family(),
                    table: table.to_owned(),
                    name: name.to_owned(),
                    hook: hook.number(1).unwrap_or(u32::MAX),
                    drops: all.number(5) == Some(0),
                    kind: all.text(7).unwrap_or("").to_owned(),
                });
            },
        )?;
        Ok(found)
    }

    /// The handles of a chain's rules that bear a tag.
    ///
    /// # Errors
    /// See [`NftError`].
    pub fn tagged_rules(&self, chain: &ForeignChain, tag: &str) -> Result<Vec<Vec<u8>>, NftError> {
        let wanted = comment(tag);
        let mut found = Vec::new();
        let fill = |out: &mut Vec<u8>| {
            text(out, 1, &chain.table);
            text(out, 2, &chain.name);
        };
        self.dump(7, fill, |answer| {
            let all = answer.attributes();
            let ours = answer.family() == chain.family
                && all.text(1) == Some(&chain.table)
                && all.text(2) == Some(&chain.name)
                && all.find(7) == Some(&wanted);
            if let (true, Some(handle)) = (ours, all.find(3)) {
                found.push(handle.to_vec());
            }
        })?;
        Ok(found)
    }

    /// Whether this kernel has nf_tables and lets this process use it.
    ///
    /// # Errors
    /// See [`NftError`].
    pub fn probe(&self) -> Result<(), NftError> {
        self.base_chains().map(|_| ())
    }

    /// Sends one request that is acknowledged. For subsystems beside nf_tables (conntrack).
    pub(crate) fn request(
        &self,
        command: &'static str,
        head: MessageHead,
        attributes: &[(u16, Vec<u8>)],
    ) -> Result<(), NftError> {
        let mut bytes = Vec::new();
        message(&mut bytes, MessageHead { flags: head.flags | 4, ..head }, 1, |out| {
            attributes.iter().for_each(|(kind, data)| attribute(out, *kind, data));
        });
        self.exchange(&bytes, &mut |_| {}).map_err(|e| match e {
            NftError::Refused { cause, .. } => NftError::Refused { command, cause },
            other => other,
        })
    }
}

/// Throws away answers that an earlier, failed exchange left.
fn discard(fd: &OwnedFd) {
    let mut buffer = [0; 4096];
    while recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).is_ok() {}
}
