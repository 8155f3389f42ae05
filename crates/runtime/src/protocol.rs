//! What the daemon and a shim say to each other: length-prefixed JSON over a Unix socket, file descriptors
//! beside it. Old shims meet new daemons, so messages only ever gain optional fields.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of the protocol this program speaks.
pub(crate) const VERSION: u32 = 1;
/// Longest message; a command line is at most 2 MiB.
const LONGEST: usize = 8 << 20;

/// What a shim needs to start a container. Also the content of `create.json` in the container's directory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LaunchSpec {
    /// Container id.
    pub id: String,
    /// Directory with the OCI bundle (`config.json`).
    pub bundle: PathBuf,
    /// Where libcontainer keeps its state.
    pub library_root: PathBuf,
    /// cgroup, relative to the hierarchies.
    pub cgroup: String,
    /// Log file in CRI format; empty for none.
    pub log_path: PathBuf,
    pub tty: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    /// Install a system call filter: the default one, or that of `seccomp_profile`.
    pub seccomp: bool,
    /// A profile's JSON; empty for the default one.
    pub seccomp_profile: String,
    pub no_new_privs: bool,
    /// Capabilities the process ends up with.
    pub capabilities: Vec<String>,
    pub uid: u32,
    pub gid: u32,
    /// The user of the host that is root in its user namespace; 0 without one.
    pub host_root: u32,
}

/// From daemon to shim.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Tells all it knows: [`Reply::State`].
    State,
    /// Pushes [`Reply::Exited`] and [`Reply::PauseExited`] on this connection from now on.
    Subscribe,
    /// Starts a container: [`Reply::Started`].
    Start(LaunchSpec),
    /// Signals a container's main process, and kills all of it `grace_ms` later; [`Reply::Done`] when it is
    /// dead.
    Stop { id: String, signal: i32, grace_ms: u64 },
    /// Closes and reopens the log file.
    Reopen { id: String },
    /// Runs a command: [`Reply::Started`], with the terminal's descriptor if `tty`, then
    /// [`Reply::ExecExited`]. Descriptors sent along: stdin, stdout, stderr unless `tty`. Closing the
    /// connection kills the process.
    Exec { id: String, args: Vec<String>, tty: bool },
    /// Copies a container's output to the descriptors sent along (stdout, stderr); [`Reply::Attached`]
    /// carries the container's stdin or terminal.
    Attach { id: String, stdin: bool },
    /// Forgets a container that has exited.
    Forget { id: String },
    /// Kills everything and ends.
    Shutdown,
}

/// A request with the version of who sent it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub version: u32,
    pub request: Request,
}

/// How a container ended. Also the content of `exit.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Exit {
    pub code: i32,
    pub signal: i32,
    pub oom_killed: bool,
    /// Nanoseconds since 1970.
    pub started_at: i64,
    pub finished_at: i64,
    /// `StartError`, `Unknown` or empty.
    pub reason: String,
    pub message: String,
}

/// A container as its shim sees it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ShimContainer {
    pub pid: i32,
    pub started_at: i64,
    pub exit: Option<Exit>,
}

/// From shim to daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    State {
        version: u32,
        pause_pid: i32,
        containers: BTreeMap<String, ShimContainer>,
    },
    Started {
        pid: i32,
        started_at: i64,
    },
    Done,
    Attached {
        tty: bool,
    },
    ExecExited {
        code: i32,
    },
    Exited {
        id: String,
        exit: Exit,
    },
    PauseExited,
    /// The container is unknown to the shim.
    Unknown,
    /// A start or exec failed; text for people.
    Failed {
        message: String,
    },
}

/// Encodes a message with its length.
pub(crate) fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    // Plain structs with string keys always encode.
    serde_json::to_writer(&mut bytes, message).expect("protocol messages are plain JSON");
    let length = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// Sends bytes with descriptors; how many bytes went out.
pub(crate) fn send(socket: RawFd, bytes: &[u8], fds: &[RawFd]) -> io::Result<usize> {
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    Ok(sendmsg::<()>(socket, &[IoSlice::new(bytes)], control, flags, None)?)
}

/// Puts messages together from what a socket delivers.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    /// Descriptors received and not taken yet, in order.
    pub fds: Vec<OwnedFd>,
}

impl Inbox {
    /// Reads what is there without waiting; `Ok(0)` is the end of the connection.
    pub fn receive(&mut self, socket: RawFd) -> io::Result<usize> {
        let mut buffer = [0u8; 16 << 10];
        let mut control = nix::cmsg_space!([RawFd; 8]);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let (count, fds) = {
            let message = recvmsg::<()>(socket, &mut slices, Some(&mut control), flags)?;
            let mut fds = Vec::new();
            for part in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(received) = part {
                    // SAFETY: the kernel has just made these descriptors for us; nothing else owns them.
                    fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
            }
            (message.bytes, fds)
        };
        self.fds.extend(fds);
        self.bytes.extend_from_slice(&buffer[..count]);
        Ok(count)
    }
    /// The next complete message.
    ///
    /// # Errors
    /// The peer sent nonsense; close the connection.
    pub fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let Some(head) = self.bytes.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*head) as usize;
        if length > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "message too long"));
        }
        if self.bytes.len() < 4 + length {
            return Ok(None);
        }
        let message = serde_json::from_slice(&self.bytes[4..4 + length]);
        self.bytes.drain(..4 + length);
        Ok(Some(message.map_err(io::Error::other)?))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_whole_and_in_order() {
        let (a, b) = UnixStream::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let one = encode(&Reply::Started { pid: 7, started_at: 1 });
        let two = encode(&Reply::Done);
        send(a.as_raw_fd(), &one[..5], &[null.as_raw_fd()]).unwrap();
        let mut inbox = Inbox::default();
        inbox.receive(b.as_raw_fd()).unwrap();
        assert!(inbox.next::<Reply>().unwrap().is_none());
        send(a.as_raw_fd(), &[&one[5..], &two[..]].concat(), &[]).unwrap();
        inbox.receive(b.as_raw_fd()).unwrap();
        assert!(matches!(inbox.next().unwrap(), Some(Reply::Started { pid: 7, .. })));
        assert!(matches!(inbox.next().unwrap(), Some(Reply::Done)));
        assert_eq!(inbox.fds.len(), 1);
    }

    #[test]
    fn absurd_length_is_an_error_not_an_allocation() {
        let mut inbox = Inbox { bytes: vec![0xff; 8], fds: Vec::new() };
        assert!(inbox.next::<Reply>().is_err());
    }
}
