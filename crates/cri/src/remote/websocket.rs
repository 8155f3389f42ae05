//! Exec and attach over WebSocket (see [`CHANNEL_PROTOCOLS`]), and byte tunnels through one.
//!
//! The first byte of a message is its channel: 0 stdin, 1 stdout, 2 stderr, 3 status, 4 resize; in v5 the
//! message `255, n` closes channel n. In base64 sub-protocols messages are text: the channel's digit, then base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, frame::coding::CloseCode};

use super::pump::{Input, Output, parse_sizes};

/// Sub-protocols of exec and attach, best first; clients of old offer none.
pub const CHANNEL_PROTOCOLS: [&str; 6] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
];

/// How long a client may take to answer the closing of the connection.
const GOODBYE: std::time::Duration = std::time::Duration::from_secs(2);

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// The server's end of an upgraded connection.
pub async fn accept(upgraded: Upgraded) -> WebSocketStream<TokioIo<Upgraded>> {
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await
}

/// How a sub-protocol words its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    base64: bool,
    /// The result is a Status; before v4 it is the text of a failure, or nothing.
    status: bool,
}

impl Dialect {
    /// The dialect of one of [`CHANNEL_PROTOCOLS`].
    pub fn of(protocol: &str) -> Self {
        Self { base64: protocol.contains("base64"), status: protocol.starts_with('v') }
    }

    fn frame(self, channel: u8, data: &[u8]) -> Message {
        if self.base64 {
            return Message::Text(format!("{channel}{}", STANDARD.encode(data)).into());
        }
        let mut message = BytesMut::with_capacity(1 + data.len());
        message.put_u8(channel);
        message.put_slice(data);
        Message::Binary(message.freeze())
    }

    fn result(self, status: &Value) -> Option<Message> {
        if self.status {
            return Some(self.frame(STATUS, status.to_string().as_bytes()));
        }
        let message = status["message"].as_str()?;
        Some(self.frame(STATUS, message.as_bytes()))
    }

    /// Channel and content of a message; `None` when it is no such message.
    fn read(self, data: Bytes) -> Option<Bytes> {
        if !self.base64 {
            return Some(data);
        }
        let (channel, content) = data.split_first()?;
        let mut message = vec![channel.checked_sub(b'0')?];
        STANDARD.decode_vec(content, &mut message).ok()?;
        Some(message.into())
    }
}

/// What a message from the client means.
fn input(data: &Bytes, sizes: &mut Vec<u8>) -> Vec<Input> {
    match data.first() {
        Some(&STDIN) => vec![Input::Stdin(data.slice(1..))],
        Some(&RESIZE) => {
            sizes.extend_from_slice(&data[1..]);
            parse_sizes(sizes).into_iter().map(Input::Resize).collect()
        }
        Some(&CLOSE) if data.get(1) == Some(&STDIN) => vec![Input::StdinClosed],
        _ => Vec::new(),
    }
}

/// Carries a session's input and output until it ends or the client leaves.
pub async fn carry<S>(
    socket: WebSocketStream<S>,
    dialect: Dialect,
    inputs: mpsc::Sender<Input>,
    mut outputs: mpsc::Receiver<Output>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut sink, mut source) = socket.split();
    let reading = async move {
        let mut sizes = Vec::new();
        while let Some(Ok(message)) = source.next().await {
            let data = match message {
                Message::Binary(data) => data,
                Message::Text(text) => Bytes::from(text),
                Message::Close(_) => return,
                _ => continue,
            };
            let Some(data) = dialect.read(data) else { continue };
            for input in input(&data, &mut sizes) {
                // Fails when the session has ended: its last output is still being written.
                let _ = inputs.send(input).await;
            }
        }
    };
    let writing = async move {
        // Tells the client that the connection stands.
        if sink.send(dialect.frame(STDOUT, &[])).await.is_err() {
            return;
        }
        while let Some(output) = outputs.recv().await {
            let (message, last) = match output {
                Output::Stdout(data) => (Some(dialect.frame(STDOUT, &data)), false),
                Output::Stderr(data) => (Some(dialect.frame(STDERR, &data)), false),
                Output::Status(status) => (dialect.result(&status), true),
            };
            if let Some(message) = message
                && sink.send(message).await.is_err()
            {
                return;
            }
            if last {
                break;
            }
        }
        let close = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = sink.send(Message::Close(Some(close))).await;
        let _ = sink.flush().await;
    };
    tokio::pin!(reading, writing);
    tokio::select! {
        () = &mut reading => {}
        // The client answers the goodbye; closing before it did could cost it our last words.
        () = &mut writing => drop(tokio::time::timeout(GOODBYE, &mut reading).await),
    }
}

/// A byte stream whose other end is the binary messages of a WebSocket.
pub fn tunnel<S>(socket: WebSocketStream<S>) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (near, far) = tokio::io::duplex(256 * 1024);
    tokio::spawn(async move {
        let (mut sink, mut source) = socket.split();
        let (mut from, mut to) = tokio::io::split(far);
        let reading = async move {
            while let Some(Ok(message)) = source.next().await {
                let data = match message {
                    Message::Binary(data) => data,
                    Message::Close(_) => return,
                    _ => continue,
                };
                if to.write_all(&data).await.is_err() {
                    return;
                }
            }
        };
        let writing = async move {
            let mut block = vec![0; 32 * 1024];
            while let Ok(n) = from.read(&mut block).await {
                if n == 0 || sink.send(Message::Binary(Bytes::copy_from_slice(&block[..n]))).await.is_err() {
                    break;
                }
            }
            let _ = sink.send(Message::Close(None)).await;
        };
        tokio::select! {
            () = reading => {}
            () = writing => {}
        }
    });
    near
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_dialect_words_output_and_result_in_its_way() {
        let failed = json!({"status": "Failure", "message": "exit status 3"});
        let (v4, v1, text) = ("v4.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io");
        assert_eq!(Dialect::of(v4).frame(1, b"hi"), Message::Binary(b"\x01hi"[..].into()));
        assert_eq!(Dialect::of(text).frame(1, b"hi"), Message::Text("1aGk=".into()));
        assert_eq!(
            Dialect::of(v4).result(&failed),
            Some(Dialect::of(v4).frame(3, failed.to_string().as_bytes()))
        );
        assert_eq!(Dialect::of("").result(&failed), Some(Message::Binary(b"\x03exit status 3"[..].into())));
        assert_eq!(Dialect::of(v1).result(&json!({"status": "Success"})), None);
    }

    #[test]
    fn base64_messages_are_read_and_others_left() {
        let text = Dialect::of("v4.base64.channel.k8s.io");
        assert_eq!(text.read(Bytes::from_static(b"0aGk=")), Some(Bytes::from_static(b"\0hi")));
        for wrong in ["", "0!", "!aGk="] {
            let read = text.read(Bytes::from_static(wrong.as_bytes()));
            assert!(read.is_none_or(|m| m.len() == 1), "{wrong}");
        }
    }
}
