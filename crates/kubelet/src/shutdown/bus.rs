//! As much of D-Bus as talking to logind takes: the system bus, calls with strings and numbers, replies, signals, and a
//! descriptor beside a reply.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// Longest message that is read.
const LONGEST: usize = 1 << 20;

/// An argument of a call.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arg<'a> {
    Text(&'a str),
    Int(i32),
}

/// Whom to call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Method<'a> {
    pub destination: &'a str,
    pub path: &'a str,
    pub interface: &'a str,
    pub name: &'a str,
}

/// A message that came in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Incoming {
    kind: u8,
    reply_to: u32,
    member: String,
    signature: String,
    body: Vec<u8>,
}

const CALL: u8 = 1;
const REPLY: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// A connection to a bus.
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
    buffer: Vec<u8>,
    fds: VecDeque<OwnedFd>,
    signals: VecDeque<Incoming>,
}

impl Bus {
    /// Connects as ourselves.
    ///
    /// # Errors
    /// There is no bus, or it does not want us.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path).await?;
        let mut bus =
            Self { stream, serial: 0, buffer: Vec::new(), fds: VecDeque::new(), signals: VecDeque::new() };
        let user = rustix::process::getuid().as_raw().to_string();
        let user = coracle_stdx::hex(user.as_bytes());
        bus.ask(&format!("\0AUTH EXTERNAL {user}\r\n"), "OK").await?;
        bus.ask("NEGOTIATE_UNIX_FD\r\n", "AGREE_UNIX_FD").await?;
        bus.stream.write_all(b"BEGIN\r\n").await?;
        let name = "org.freedesktop.DBus";
        let hello =
            Method { destination: name, path: "/org/freedesktop/DBus", interface: name, name: "Hello" };
        bus.call(hello, &[]).await?;
        Ok(bus)
    }

    /// One line of the greeting.
    async fn ask(&mut self, line: &str, want: &str) -> io::Result<()> {
        self.stream.write_all(line.as_bytes()).await?;
        loop {
            if let Some(end) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let answer: Vec<u8> = self.buffer.drain(..end + 2).collect();
                let answer = String::from_utf8_lossy(&answer).trim().to_owned();
                let agreed = answer.starts_with(want);
                return if agreed { Ok(()) } else { Err(io::Error::other(format!("the bus says {answer}"))) };
            }
            self.receive().await?;
        }
    }

    /// Calls a method; the reply.
    ///
    /// # Errors
    /// The connection is lost, or the one called says no; the text is its own.
    pub async fn call(&mut self, method: Method<'_>, args: &[Arg<'_>]) -> io::Result<Incoming> {
        self.serial += 1;
        let serial = self.serial;
        self.stream.write_all(&encode(serial, method, args)).await?;
        loop {
            let message = self.message().await?;
            match message.kind {
                REPLY if message.reply_to == serial => return Ok(message),
                ERROR if message.reply_to == serial => {
                    let why = message.text().unwrap_or_default();
                    return Err(io::Error::other(format!("{}: {why}", method.name)));
                }
                SIGNAL => self.signals.push_back(message),
                _ => {}
            }
        }
    }

    /// The next signal.
    pub async fn signal(&mut self) -> io::Result<Incoming> {
        loop {
            if let Some(signal) = self.signals.pop_front() {
                return Ok(signal);
            }
            let message = self.message().await?;
            if message.kind == SIGNAL {
                return Ok(message);
            }
        }
    }

    /// The descriptor that came last.
    pub fn descriptor(&mut self) -> Option<OwnedFd> {
        self.fds.pop_back()
    }

    async fn message(&mut self) -> io::Result<Incoming> {
        loop {
            if let Some((message, length)) = decode(&self.buffer)? {
                self.buffer.drain(..length);
                return Ok(message);
            }
            self.receive().await?;
        }
    }

    /// Reads what there is, with descriptors.
    async fn receive(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        loop {
            self.stream.readable().await?;
            let (stream, fds) = (&self.stream, &mut self.fds);
            let read = stream.try_io(Interest::READABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
                let mut ancillary = RecvAncillaryBuffer::new(&mut space);
                let mut parts = [IoSliceMut::new(&mut bytes)];
                let got = recvmsg(stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
                for message in ancillary.drain() {
                    if let RecvAncillaryMessage::ScmRights(came) = message {
                        fds.extend(came);
                    }
                }
                Ok(got.bytes)
            });
            match read {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.buffer.extend_from_slice(bytes.get(..n).unwrap_or_default());
                    return Ok(());
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl Incoming {
    /// Its name, for signals.
    pub fn member(&self) -> &str {
        &self.member
    }
    /// The first argument as a truth value.
    pub fn truth(&self) -> Option<bool> {
        let value = Reader { bytes: &self.body, at: 0 }.number()?;
        self.signature.starts_with('b').then_some(value != 0)
    }
    /// The first argument as a text.
    pub fn text(&self) -> Option<String> {
        if self.signature.starts_with('s') { Reader { bytes: &self.body, at: 0 }.text() } else { None }
    }
    /// The first argument, a variant that holds a 64-bit number.
    pub fn long_variant(&self) -> Option<u64> {
        let mut reader = Reader { bytes: &self.body, at: 0 };
        if self.signature != "v" || reader.signature()? != "t" {
            return None;
        }
        reader.align(8);
        Some(u64::from_le_bytes(reader.take(8)?.try_into().ok()?))
    }
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes()
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    pad(bytes, 4);
    bytes.extend(length(text.len()));
    bytes.extend(text.bytes());
    bytes.push(0);
}

/// A call as bytes, little-endian.
fn encode(serial: u32, method: Method<'_>, args: &[Arg<'_>]) -> Vec<u8> {
    let (mut body, mut signature) = (Vec::new(), String::new());
    for arg in args {
        match arg {
            Arg::Text(text) => {
                signature.push('s');
                put_text(&mut body, text);
            }
            Arg::Int(number) => {
                signature.push('i');
                pad(&mut body, 4);
                body.extend(number.to_le_bytes());
            }
        }
    }
    let mut message = vec![b'l', CALL, 0, 1];
    message.extend(length(body.len()));
    message.extend(serial.to_le_bytes());
    message.extend([0; 4]);
    let fields = [
        (1, "o", method.path),
        (2, "s", method.interface),
        (3, "s", method.name),
        (6, "s", method.destination),
    ];
    for (code, kind, value) in fields {
        pad(&mut message, 8);
        message.extend([code, 1]);
        message.extend(kind.bytes());
        message.push(0);
        put_text(&mut message, value);
    }
    if !signature.is_empty() {
        pad(&mut message, 8);
        message.extend([8, 1, b'g', 0, signature.len() as u8]);
        message.extend(signature.bytes());
        message.push(0);
    }
    let fields = length(message.len() - 16);
    message.splice(12..16, fields);
    pad(&mut message, 8);
    message.extend(body);
    message
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }
    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }
    fn number(&mut self) -> Option<u32> {
        self.align(4);
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }
    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.number()?).ok()?;
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.take(1)?;
        Some(text)
    }
    fn signature(&mut self) -> Option<String> {
        let length = usize::from(self.byte()?);
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.take(1)?;
        Some(text)
    }
}

/// The first message of a buffer and how long it is; `None` if it is not all there.
fn decode(bytes: &[u8]) -> io::Result<Option<(Incoming, usize)>> {
    let mut head = Reader { bytes, at: 4 };
    let (Some(body), Some(_serial), Some(fields)) = (head.number(), head.number(), head.number()) else {
        return Ok(None);
    };
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the bus sent what cannot be read");
    if bytes.first() != Some(&b'l') {
        return Err(damaged());
    }
    let (body, fields) = (body as usize, fields as usize);
    if body > LONGEST || fields > LONGEST {
        return Err(damaged());
    }
    let start = (16 + fields).next_multiple_of(8);
    if bytes.len() < start + body {
        return Ok(None);
    }
    let content = bytes.get(start..start + body).unwrap_or_default().to_vec();
    let mut message =
        Incoming { kind: bytes.get(1).copied().unwrap_or(0), body: content, ..Incoming::default() };
    let mut reader = Reader { bytes: bytes.get(..16 + fields).unwrap_or_default(), at: 16 };
    while reader.at < 16 + fields {
        read_field(&mut reader, &mut message).ok_or_else(damaged)?;
    }
    Ok(Some((message, start + body)))
}

fn read_field(reader: &mut Reader<'_>, message: &mut Incoming) -> Option<()> {
    reader.align(8);
    let code = reader.byte()?;
    match (code, reader.signature()?.as_str()) {
        (3, "s") => message.member = reader.text()?,
        (_, "s" | "o") => drop(reader.text()?),
        (5, "u") => message.reply_to = reader.number()?,
        (_, "u") => drop(reader.number()?),
        (8, "g") => message.signature = reader.signature()?,
        (_, "g") => drop(reader.signature()?),
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const METHOD: Method<'_> =
        Method { destination: "org.x", path: "/org/x", interface: "org.x.Manager", name: "Inhibit" };

    #[test]
    fn a_message_is_read_as_it_was_written_and_only_when_it_is_all_there() {
        let bytes = encode(7, METHOD, &[Arg::Text("shutdown"), Arg::Int(1)]);
        let (message, length) = decode(&bytes).unwrap().unwrap();
        assert_eq!(length, bytes.len());
        assert_eq!((message.member(), message.signature.as_str()), ("Inhibit", "si"));
        assert_eq!(message.text().as_deref(), Some("shutdown"));
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut]).unwrap(), None, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let mut bytes = encode(7, METHOD, &[]);
        bytes[0] = b'x';
        assert!(decode(&bytes).is_err());
        let mut bytes = encode(7, METHOD, &[]);
        bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(decode(&bytes).is_err());
    }
}
