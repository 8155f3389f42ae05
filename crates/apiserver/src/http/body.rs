//! Response bodies: one buffer, a list streamed block by block, or frames of a running stream.

use std::collections::VecDeque;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::stream::BoxStream;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

use coracle_meta::Status;

use crate::cache::CacheEntry;
use crate::flow::{Leash, Seat};

/// Bytes per block of a streamed list.
pub(super) const BLOCK: usize = 64 * 1024;
/// Largest request body.
const MAX_REQUEST: usize = 3 * 1024 * 1024;

/// A response body.
pub(crate) enum Body {
    /// In one piece; empty when taken.
    Full(Bytes),
    /// A list.
    List(Box<ListBody>),
    /// A list, compressed on the way.
    Gzip(Box<GzipBody>),
    /// A list that is written while it keeps the seats of its request.
    Kept(Box<KeptBody>),
    /// Frames as they come (watch, logs, proxied responses).
    Stream(BoxStream<'static, Result<Bytes, std::io::Error>>),
}

/// A list written out of cache entries.
pub(crate) struct ListBody {
    head: Bytes,
    entries: std::vec::IntoIter<Arc<CacheEntry>>,
    /// Bytes of an entry's own `apiVersion` and `kind`, left out in lists.
    skip: usize,
    first: bool,
    tail: Bytes,
    left: u64,
}

impl ListBody {
    /// A list between `head` and `tail`.
    pub(crate) fn new(head: Bytes, entries: Vec<Arc<CacheEntry>>, skip: usize, tail: Bytes) -> Self {
        let commas = entries.len().saturating_sub(1);
        let items: usize = entries.iter().map(|e| 1 + e.size().saturating_sub(skip)).sum();
        let left = (head.len() + items + commas + tail.len()) as u64;
        Self { head, entries: entries.into_iter(), skip, first: true, tail, left }
    }

    /// Bytes to come.
    pub(crate) fn len(&self) -> u64 {
        self.left
    }

    fn next_block(&mut self) -> Option<Bytes> {
        if self.left == 0 {
            return None;
        }
        let capacity = usize::try_from(self.left).unwrap_or(BLOCK).min(BLOCK + 16 * 1024);
        let mut out = BytesMut::with_capacity(capacity);
        out.put_slice(&std::mem::take(&mut self.head));
        while out.len() < BLOCK {
            let Some(entry) = self.entries.next() else {
                out.put_slice(&std::mem::take(&mut self.tail));
                break;
            };
            if !std::mem::take(&mut self.first) {
                out.put_u8(b',');
            }
            out.put_u8(b'{');
            out.put_slice(entry.encoded().get(self.skip..).unwrap_or(b"}"));
        }
        self.left = self.left.saturating_sub(out.len() as u64);
        Some(out.freeze())
    }
}

/// A list compressed block by block.
pub(crate) struct GzipBody {
    list: ListBody,
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl GzipBody {
    /// Compresses a list.
    pub(crate) fn new(list: ListBody) -> Self {
        Self { list, encoder: Some(GzEncoder::new(Vec::new(), Compression::fast())) }
    }

    /// Bytes to be compressed.
    pub(crate) fn len(&self) -> u64 {
        self.list.len()
    }

    fn next_block(&mut self) -> Option<std::io::Result<Bytes>> {
        loop {
            let encoder = self.encoder.as_mut()?;
            match self.list.next_block() {
                Some(block) => {
                    if let Err(e) = encoder.write_all(&block) {
                        return Some(Err(e));
                    }
                    let out = encoder.get_mut();
                    if out.len() >= 16 * 1024 {
                        return Some(Ok(Bytes::from(std::mem::take(out))));
                    }
                }
                None => return self.encoder.take().map(|e| e.finish().map(Bytes::from)),
            }
        }
    }
}

/// A body and the seats of its request, for a limited time: a reader that takes longer loses the answer.
pub(crate) struct KeptBody {
    body: Body,
    seat: Option<Leash>,
    over: Pin<Box<tokio::time::Sleep>>,
    /// A block has just been made: others come first before the next.
    rest: bool,
}

impl Body {
    /// The body with the seats of its request, which it keeps for `seats_for`. After `limit` it breaks off.
    pub(crate) fn keeping(self, seat: Seat, seats_for: Duration, limit: Duration) -> KeptBody {
        let over = Box::pin(tokio::time::sleep(limit));
        KeptBody { body: self, seat: Some(seat.for_at_most(seats_for)), over, rest: false }
    }
}

impl KeptBody {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if self.over.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(std::io::ErrorKind::TimedOut.into())));
        }
        // Else a long list would keep a thread until all of it is written, and short requests would wait for it.
        if std::mem::take(&mut self.rest) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let frame = http_body::Body::poll_frame(Pin::new(&mut self.body), cx);
        self.rest = true;
        if http_body::Body::is_end_stream(&self.body) || matches!(frame, Poll::Ready(None)) {
            self.seat = None;
        }
        frame
    }
}

/// Compresses one buffer.
pub(crate) fn gzip(bytes: &[u8]) -> std::io::Result<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
    encoder.write_all(bytes)?;
    encoder.finish().map(Bytes::from)
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match self.get_mut() {
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::List(list) => Poll::Ready(list.next_block().map(|b| Ok(Frame::data(b)))),
            Self::Gzip(gzip) => Poll::Ready(gzip.next_block().map(|b| b.map(Frame::data))),
            Self::Kept(kept) => kept.poll_next(cx),
            Self::Stream(stream) => {
                stream.as_mut().poll_next(cx).map(|item| item.map(|r| r.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_empty(),
            Self::List(list) => list.left == 0,
            Self::Kept(kept) => kept.body.is_end_stream(),
            Self::Gzip(_) | Self::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::List(list) => SizeHint::with_exact(list.left),
            Self::Kept(kept) => kept.body.size_hint(),
            Self::Gzip(_) | Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// Reads a whole request body.
///
/// # Errors
/// 413 beyond 3 MiB, 400 when the connection breaks.
pub(crate) async fn read(mut body: hyper::body::Incoming) -> Result<Bytes, Status> {
    use http_body::Body as _;
    if body.size_hint().lower() > MAX_REQUEST as u64 {
        return Err(too_large());
    }
    let mut parts: VecDeque<Bytes> = VecDeque::new();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Status::bad_request(format!("error reading request body: {e}")))?;
        if let Ok(data) = frame.into_data() {
            size += data.len();
            if size > MAX_REQUEST {
                return Err(too_large());
            }
            parts.push_back(data);
        }
    }
    if parts.len() <= 1 {
        return Ok(parts.pop_front().unwrap_or_default());
    }
    let mut all = BytesMut::with_capacity(size);
    parts.iter().for_each(|p| all.put_slice(p));
    Ok(all.freeze())
}

fn too_large() -> Status {
    Status::too_large(format!("Request entity too large: limit is {MAX_REQUEST}"))
}
