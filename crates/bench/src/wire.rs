//! The least of HTTP/1.1 that a load generator needs: the head of an answer, and where its body ends.
//!
//! Written by hand because it shares the processors with the server it measures: what a full client spends on
//! header maps and body types would be taken from the server's figures.

use std::ops::Range;

use crate::target::Failure;

/// A head longer than this is not an API server's.
const MAX_HEAD: usize = 64 << 10;

/// The head of an answer.
#[derive(Debug, PartialEq)]
pub struct Head {
    /// Status code.
    pub status: u16,
    /// Bytes that the head takes.
    pub length: usize,
    /// How the body is framed.
    pub body: Body,
}

/// How much of a body is still to come.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Chunk),
    /// Everything until the connection ends.
    UntilClose,
}

/// Where in a chunk the next byte is.
#[derive(Clone, Debug, PartialEq)]
pub enum Chunk {
    /// At a line with the next chunk's size.
    Size,
    /// In data, with so many bytes left.
    Data(u64),
    /// At the line end behind data.
    DataEnd,
    /// In the trailer behind the last chunk.
    Trailer,
}

/// A piece taken from the front of a buffer.
#[derive(Debug, PartialEq)]
pub struct Taken {
    /// Bytes to drop from the front.
    pub used: usize,
    /// Body data among them.
    pub data: Range<usize>,
    /// The body has ended.
    pub end: bool,
}

/// Where `needle` begins in `haystack`; an empty one begins nowhere.
pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    if needle.is_empty() { None } else { memchr::memmem::find(haystack, needle) }
}

/// Parses the head at the front of `buffer`; `None` until it is complete.
///
/// # Errors
/// It is not an HTTP/1.1 answer.
pub fn parse_head(buffer: &[u8]) -> Result<Option<Head>, Failure> {
    let Some(end) = find(buffer, b"\r\n\r\n") else {
        return if buffer.len() > MAX_HEAD { Err("the answer's head does not end".into()) } else { Ok(None) };
    };
    let text = std::str::from_utf8(&buffer[..end]).map_err(|e| format!("answer's head: {e}"))?;
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first.strip_prefix("HTTP/1.1 ").and_then(|s| s.get(..3)).and_then(|s| s.parse().ok());
    let status: u16 = status.ok_or_else(|| format!("not an HTTP/1.1 answer: {first:?}"))?;
    let mut body = Body::UntilClose;
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") && body == Body::UntilClose {
            body = Body::Length(value.parse().map_err(|_| format!("content-length {value:?}"))?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
            body = Body::Chunked(Chunk::Size);
        }
    }
    if status < 200 || status == 204 || status == 304 {
        body = Body::Length(0);
    }
    Ok(Some(Head { status, length: end + 4, body }))
}

impl Body {
    /// Takes the next piece from the front of `buffer`; `None` when more bytes are needed for one.
    ///
    /// # Errors
    /// Malformed chunks.
    pub fn take(&mut self, buffer: &[u8]) -> Result<Option<Taken>, Failure> {
        match self {
            Self::Length(0) => Ok(Some(Taken { used: 0, data: 0..0, end: true })),
            _ if buffer.is_empty() => Ok(None),
            Self::Length(left) => {
                let n = at_most(*left, buffer.len());
                *left -= n as u64;
                Ok(Some(Taken { used: n, data: 0..n, end: *left == 0 }))
            }
            Self::UntilClose => Ok(Some(Taken { used: buffer.len(), data: 0..buffer.len(), end: false })),
            Self::Chunked(chunk) => chunk.take(buffer),
        }
    }
}

fn at_most(left: u64, here: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(here)
}

impl Chunk {
    fn take(&mut self, buffer: &[u8]) -> Result<Option<Taken>, Failure> {
        let mut used = 0;
        loop {
            let rest = &buffer[used..];
            if let Self::Data(left) = self {
                let n = at_most(*left, rest.len());
                if n == 0 {
                    break;
                }
                *left -= n as u64;
                if *left == 0 {
                    *self = Self::DataEnd;
                }
                return Ok(Some(Taken { used: used + n, data: used..used + n, end: false }));
            }
            let Some(end) = memchr::memchr_iter(b'\r', rest).find(|at| rest.get(at + 1) == Some(&b'\n'))
            else {
                break;
            };
            let line = &rest[..end];
            used += end + 2;
            match self {
                Self::DataEnd if line.is_empty() => *self = Self::Size,
                Self::DataEnd => return Err("a chunk is longer than it says".into()),
                Self::Trailer if line.is_empty() => {
                    return Ok(Some(Taken { used, data: 0..0, end: true }));
                }
                Self::Trailer => {}
                Self::Size | Self::Data(_) => {
                    let digits = line.split(|b| *b == b';').next().unwrap_or_default();
                    let digits = std::str::from_utf8(digits).unwrap_or_default().trim();
                    let size =
                        u64::from_str_radix(digits, 16).map_err(|_| format!("chunk size {digits:?}"))?;
                    *self = if size == 0 { Self::Trailer } else { Self::Data(size) };
                }
            }
        }
        Ok((used > 0).then_some(Taken { used, data: 0..0, end: false }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `wire` in pieces of `step` bytes; the body, and whether its end was seen.
    fn body_of(wire: &[u8], step: usize) -> (Vec<u8>, bool) {
        let head = parse_head(wire).expect("parses").expect("complete");
        let mut body = head.body;
        let (mut out, mut buffer) = (Vec::new(), Vec::new());
        for piece in wire[head.length..].chunks(step) {
            buffer.extend_from_slice(piece);
            while let Some(taken) = body.take(&buffer).expect("well formed") {
                out.extend_from_slice(&buffer[taken.data]);
                buffer.drain(..taken.used);
                if taken.end {
                    assert!(buffer.is_empty(), "nothing follows");
                    return (out, true);
                }
                if taken.used == 0 {
                    break;
                }
            }
        }
        (out, false)
    }

    #[test]
    fn chunks_are_joined_however_they_are_cut() {
        let wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nWiki\r\n6;x=y\r\npedia \r\n\
                     E\r\nin \r\n\r\nchunks.\r\n0\r\nTrailer: 1\r\n\r\n";
        for step in 1..wire.len() {
            assert_eq!(body_of(wire, step), (b"Wikipedia in \r\n\r\nchunks.".to_vec(), true), "step {step}");
        }
    }

    #[test]
    fn length_ends_the_body() {
        let wire = b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
        for step in 1..8 {
            assert_eq!(body_of(wire, step), (b"hello".to_vec(), true));
        }
        let head = parse_head(wire).expect("parses").expect("complete");
        assert_eq!(head.status, 201);
        assert_eq!(parse_head(&wire[..30]), Ok(None));
    }

    #[test]
    fn malformed_answers_are_refused() {
        assert!(parse_head(b"SSH-2.0-x\r\n\r\n").is_err());
        let mut body = Body::Chunked(Chunk::Size);
        assert!(body.take(b"zz\r\n").is_err());
        let mut body = Body::Chunked(Chunk::Size);
        assert!(body.take(b"1\r\na").is_ok());
        assert!(body.take(b"b\r\n").is_err(), "longer than announced");
    }

    #[test]
    fn needle_is_found_behind_false_starts() {
        assert_eq!(find(b"aab aabc", b"aabc"), Some(4));
        assert_eq!(find(b"aab", b"aabc"), None);
        assert_eq!(find(b"", b"a"), None);
    }
}
