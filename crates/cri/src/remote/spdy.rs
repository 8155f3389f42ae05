//! SPDY/3.1, the part that Kubernetes clients use: streams opened by the client, data both ways, pings. There
//! is no flow control, as in upstream's implementation.

mod dictionary;
pub mod frame;

use std::collections::HashMap;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tracing::debug;

use frame::{Decoder, Encoder, Frame};

/// Frames waiting to be written.
const OUTGOING: usize = 64;
/// Data frames waiting to be read from a stream.
const INCOMING: usize = 64;
/// Largest data frame written.
const CHUNK: usize = 32 * 1024;

/// The server's end of a connection.
pub struct Session {
    incoming: mpsc::Receiver<Stream>,
    outgoing: mpsc::Sender<Frame>,
    reader: AbortHandle,
    writer: Option<tokio::task::JoinHandle<()>>,
}

/// A stream that the client opened.
pub struct Stream {
    /// Stream number.
    pub id: u32,
    /// Headers, names in lower case.
    pub headers: HashMap<String, String>,
    data: mpsc::Receiver<Bytes>,
    writer: StreamWriter,
}

/// The writing half of a stream.
#[derive(Clone)]
pub struct StreamWriter {
    id: u32,
    outgoing: mpsc::Sender<Frame>,
}

impl StreamWriter {
    /// Sends bytes; `false` when the connection is gone.
    pub async fn write(&self, mut data: Bytes) -> bool {
        while data.has_remaining() {
            let data = data.split_to(data.len().min(CHUNK));
            if self.outgoing.send(Frame::Data { id: self.id, fin: false, data }).await.is_err() {
                return false;
            }
        }
        true
    }
    /// Says that nothing more comes.
    pub async fn finish(&self) {
        // The connection may be gone already.
        let _ = self.outgoing.send(Frame::Data { id: self.id, fin: true, data: Bytes::new() }).await;
    }
}

impl Stream {
    /// Accepts the stream.
    pub async fn reply(&self) {
        let _ = self.writer.outgoing.send(Frame::SynReply { id: self.id, headers: HashMap::new() }).await;
    }
    /// The next bytes; `None` at the end.
    pub async fn read(&mut self) -> Option<Bytes> {
        self.data.recv().await
    }
    /// See [`StreamWriter::write`].
    pub async fn write(&self, data: Bytes) -> bool {
        self.writer.write(data).await
    }
    /// See [`StreamWriter::finish`].
    pub async fn finish(&self) {
        self.writer.finish().await;
    }
    /// The writing half.
    pub fn writer(&self) -> StreamWriter {
        self.writer.clone()
    }
}

impl Session {
    /// Speaks SPDY over `io`.
    pub fn new<S: AsyncRead + AsyncWrite + Send + 'static>(io: S) -> Self {
        let (from, to) = tokio::io::split(io);
        let (outgoing, frames) = mpsc::channel(OUTGOING);
        let (streams, incoming) = mpsc::channel(16);
        let writer = tokio::spawn(write_frames(to, frames));
        let reader = tokio::spawn(read_frames(from, streams, outgoing.clone())).abort_handle();
        Self { incoming, outgoing, reader, writer: Some(writer) }
    }

    /// The next stream that the client opens; `None` when the connection is gone.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }

    /// Writes what waits, then closes the connection.
    pub async fn close(mut self) {
        let _ = self.outgoing.send(Frame::GoAway { last: 0 }).await;
        let _ = self.outgoing.send(Frame::End).await;
        if let Some(writer) = self.writer.take() {
            let limit = std::time::Duration::from_secs(10);
            let _ = tokio::time::timeout(limit, writer).await;
        }
        // The client closes its side; closing before it did could cost it our last words.
        let goodbye = async { while self.incoming.recv().await.is_some() {} };
        let _ = tokio::time::timeout(std::time::Duration::from_secs(2), goodbye).await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn write_frames<W: AsyncWrite + Unpin>(mut to: W, mut frames: mpsc::Receiver<Frame>) {
    let mut encoder = Encoder::default();
    let mut buffer = BytesMut::new();
    while let Some(frame) = frames.recv().await {
        let mut end = matches!(frame, Frame::End);
        encoder.encode(frame, &mut buffer);
        while buffer.len() < 64 * 1024 && !end {
            let Ok(more) = frames.try_recv() else { break };
            end = matches!(more, Frame::End);
            encoder.encode(more, &mut buffer);
        }
        if to.write_all(&buffer).await.is_err() || to.flush().await.is_err() {
            return;
        }
        buffer.clear();
        if end {
            break;
        }
    }
    let _ = to.shutdown().await;
}

async fn read_frames<R: AsyncRead + Unpin>(
    mut from: R,
    streams: mpsc::Sender<Stream>,
    outgoing: mpsc::Sender<Frame>,
) {
    let mut decoder = Decoder::default();
    let mut buffer = BytesMut::with_capacity(64 * 1024);
    let mut open: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
    loop {
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(frame)) => {
                    if !take(frame, &mut open, &streams, &outgoing).await {
                        return;
                    }
                }
                Ok(None) => break,
                Err(e) => {
                    debug!(error = e, "bad SPDY frame");
                    return;
                }
            }
        }
        match from.read_buf(&mut buffer).await {
            Ok(n) if n > 0 => {}
            _ => return,
        }
    }
}

/// Acts on a frame; `false` ends the session.
async fn take(
    frame: Frame,
    open: &mut HashMap<u32, mpsc::Sender<Bytes>>,
    streams: &mpsc::Sender<Stream>,
    outgoing: &mpsc::Sender<Frame>,
) -> bool {
    match frame {
        Frame::SynStream { id, fin, headers } => {
            let (sender, data) = mpsc::channel(INCOMING);
            if !fin {
                open.insert(id, sender);
            }
            let writer = StreamWriter { id, outgoing: outgoing.clone() };
            return streams.send(Stream { id, headers, data, writer }).await.is_ok();
        }
        Frame::Data { id, fin, data } => {
            if let Some(sender) = open.get(&id)
                && !data.is_empty()
                && sender.send(data).await.is_err()
            {
                open.remove(&id);
            }
            if fin {
                open.remove(&id);
            }
        }
        Frame::RstStream { id } => {
            open.remove(&id);
        }
        // Odd pings are the client's: they are answered. Even ones would be answers to ours.
        Frame::Ping { id } if id % 2 == 1 => return outgoing.send(Frame::Ping { id }).await.is_ok(),
        Frame::GoAway { .. } => {}
        Frame::Ping { .. } | Frame::SynReply { .. } | Frame::Ignored | Frame::End => {}
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stream_carries_data_both_ways_and_pings_are_answered() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let mut server = Session::new(near);
        let (mut from, mut to) = tokio::io::split(far);
        let mut encoder = Encoder::default();
        let mut out = BytesMut::new();
        let headers = HashMap::from([("streamtype".to_owned(), "data".to_owned())]);
        encoder.encode(Frame::SynStream { id: 1, fin: false, headers }, &mut out);
        encoder.encode(Frame::Ping { id: 7 }, &mut out);
        encoder.encode(Frame::Data { id: 1, fin: true, data: Bytes::from_static(b"hello") }, &mut out);
        to.write_all(&out).await.expect("written");
        let mut stream = server.accept().await.expect("stream");
        assert_eq!(stream.headers["streamtype"], "data");
        stream.reply().await;
        assert_eq!(stream.read().await.as_deref(), Some(&b"hello"[..]));
        assert_eq!(stream.read().await, None);
        assert!(stream.write(Bytes::from_static(b"world")).await);
        stream.finish().await;
        server.close().await;
        let mut bytes = BytesMut::new();
        while from.read_buf(&mut bytes).await.expect("read") > 0 {}
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        while let Some(frame) = decoder.decode(&mut bytes).expect("frame") {
            frames.push(frame);
        }
        let data = |fin, data| Frame::Data { id: 1, fin, data: Bytes::from_static(data) };
        assert!(frames.contains(&Frame::Ping { id: 7 }));
        assert!(frames.contains(&Frame::SynReply { id: 1, headers: HashMap::new() }));
        assert!(frames.contains(&data(false, b"world")) && frames.contains(&data(true, b"")));
    }
}
