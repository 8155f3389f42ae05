//! SPDY/3.1 frames: encoding and decoding, header blocks compressed with the common dictionary.

use std::collections::HashMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::dictionary;

const VERSION: u16 = 0x8003;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;
/// Largest frame accepted.
const MAX_FRAME: usize = 16 << 20;
/// Largest header block accepted, decompressed.
const MAX_HEADERS: usize = 1 << 20;

/// Headers, names in lower case.
pub type Headers = HashMap<String, String>;

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The client opens a stream.
    SynStream {
        /// Stream number.
        id: u32,
        /// The client will send nothing on it.
        fin: bool,
        /// What it is for.
        headers: Headers,
    },
    /// A stream is accepted.
    SynReply {
        /// Stream number.
        id: u32,
        /// Usually empty.
        headers: Headers,
    },
    /// A stream is cut off.
    RstStream {
        /// Stream number.
        id: u32,
    },
    /// To be sent back.
    Ping {
        /// Odd when the client's.
        id: u32,
    },
    /// No more streams.
    GoAway {
        /// Last stream that was accepted.
        last: u32,
    },
    /// Bytes of a stream.
    Data {
        /// Stream number.
        id: u32,
        /// The sender's last.
        fin: bool,
        /// The bytes.
        data: Bytes,
    },
    /// Something we need not know (settings, window updates).
    Ignored,
    /// Not sent: ends the writing of frames.
    End,
}

/// Turns frames into bytes. One per connection: the compression keeps state.
pub struct Encoder {
    zlib: Compress,
    /// Set before the first use.
    primed: bool,
}

impl Default for Encoder {
    /// A fresh connection.
    fn default() -> Self {
        Self { zlib: Compress::new(Compression::default(), true), primed: false }
    }
}

impl Encoder {
    /// Appends a frame.
    pub fn encode(&mut self, frame: Frame, out: &mut BytesMut) {
        match frame {
            Frame::SynStream { id, fin, headers } => {
                let mut body = BytesMut::new();
                body.put_u32(id);
                body.put_u32(0);
                body.put_u16(0);
                body.extend(self.compress(&headers));
                control(out, SYN_STREAM, u8::from(fin), &body);
            }
            Frame::SynReply { id, headers } => {
                let mut body = BytesMut::new();
                body.put_u32(id);
                body.extend(self.compress(&headers));
                control(out, SYN_REPLY, 0, &body);
            }
            Frame::RstStream { id } => {
                let mut body = BytesMut::new();
                body.put_u32(id);
                body.put_u32(5);
                control(out, RST_STREAM, 0, &body);
            }
            Frame::Ping { id } => control(out, PING, 0, &id.to_be_bytes()),
            Frame::GoAway { last } => {
                let mut body = BytesMut::new();
                body.put_u32(last);
                body.put_u32(0);
                control(out, GOAWAY, 0, &body);
            }
            Frame::Data { id, fin, data } => {
                out.put_u32(id & 0x7fff_ffff);
                out.put_u32(length(u8::from(fin), data.len()));
                out.extend_from_slice(&data);
            }
            Frame::Ignored | Frame::End => {}
        }
    }

    fn compress(&mut self, headers: &Headers) -> Vec<u8> {
        if !self.primed {
            // Cannot fail: nothing was compressed yet.
            let _ = self.zlib.set_dictionary(&dictionary());
            self.primed = true;
        }
        let mut plain = BytesMut::new();
        plain.put_u32(headers.len() as u32);
        for (name, value) in headers {
            for text in [name, value] {
                plain.put_u32(text.len() as u32);
                plain.put_slice(text.as_bytes());
            }
        }
        let mut out = Vec::with_capacity(plain.len() + 64);
        let mut input = &plain[..];
        loop {
            let before = self.zlib.total_in();
            out.reserve(256);
            let result = self.zlib.compress_vec(input, &mut out, FlushCompress::Sync);
            input.advance((self.zlib.total_in() - before) as usize);
            if result.is_err() || (input.is_empty() && out.len() < out.capacity()) {
                return out;
            }
        }
    }
}

fn length(flags: u8, length: usize) -> u32 {
    (u32::from(flags) << 24) | (length as u32 & 0x00ff_ffff)
}

fn control(out: &mut BytesMut, kind: u16, flags: u8, body: &[u8]) {
    out.put_u16(VERSION);
    out.put_u16(kind);
    out.put_u32(length(flags, body.len()));
    out.extend_from_slice(body);
}

/// Turns bytes into frames. One per connection: the compression keeps state.
pub struct Decoder {
    zlib: Decompress,
}

impl Default for Decoder {
    /// A fresh connection.
    fn default() -> Self {
        Self { zlib: Decompress::new(true) }
    }
}

impl Decoder {
    /// Takes the next frame off the buffer; `None` when it is not complete yet.
    ///
    /// # Errors
    /// Bytes that are no SPDY.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, &'static str> {
        if buffer.len() < 8 {
            return Ok(None);
        }
        let size = usize::from(buffer[5]) << 16 | usize::from(buffer[6]) << 8 | usize::from(buffer[7]);
        if size > MAX_FRAME {
            return Err("frame too large");
        }
        if buffer.len() < 8 + size {
            buffer.reserve(8 + size - buffer.len());
            return Ok(None);
        }
        let mut head = buffer.split_to(8);
        let body = buffer.split_to(size).freeze();
        let flags = head[4];
        let word = head.get_u32();
        if word & 0x8000_0000 == 0 {
            return Ok(Some(Frame::Data { id: word, fin: flags & FIN != 0, data: body }));
        }
        if word >> 16 != u32::from(VERSION) {
            return Err("not SPDY/3");
        }
        self.control(word as u16, flags, body).map(Some)
    }

    fn control(&mut self, kind: u16, flags: u8, mut body: Bytes) -> Result<Frame, &'static str> {
        let short = "frame too short";
        let mut word = || if body.len() < 4 { Err(short) } else { Ok(body.get_u32() & 0x7fff_ffff) };
        Ok(match kind {
            SYN_STREAM => {
                let id = word()?;
                word()?;
                if body.len() < 2 {
                    return Err(short);
                }
                body.advance(2);
                Frame::SynStream { id, fin: flags & FIN != 0, headers: self.headers(&body)? }
            }
            SYN_REPLY => {
                let id = word()?;
                Frame::SynReply { id, headers: self.headers(&body)? }
            }
            8 => {
                // HEADERS: of no use to us, but the compression must stay in step.
                word()?;
                self.headers(&body)?;
                Frame::Ignored
            }
            RST_STREAM => Frame::RstStream { id: word()? },
            PING => Frame::Ping { id: if body.len() < 4 { return Err(short) } else { body.get_u32() } },
            GOAWAY => Frame::GoAway { last: word()? },
            _ => Frame::Ignored,
        })
    }

    fn headers(&mut self, block: &[u8]) -> Result<Headers, &'static str> {
        let plain = self.inflate(block)?;
        let mut rest = &plain[..];
        let number = |rest: &mut &[u8]| {
            if rest.len() < 4 { Err("header block too short") } else { Ok(rest.get_u32() as usize) }
        };
        let count = number(&mut rest)?;
        let mut headers = Headers::new();
        for _ in 0..count {
            let mut text = || {
                let n = number(&mut rest)?;
                if rest.len() < n {
                    return Err("header block too short");
                }
                let (text, tail) = rest.split_at(n);
                rest = tail;
                Ok(String::from_utf8_lossy(text).into_owned())
            };
            let name = text()?.to_ascii_lowercase();
            let value = text()?;
            headers.insert(name, value);
        }
        Ok(headers)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, &'static str> {
        let mut out = Vec::new();
        loop {
            out.reserve(1024);
            let (before_in, before_out) = (self.zlib.total_in(), self.zlib.total_out());
            let result = self.zlib.decompress_vec(block, &mut out, FlushDecompress::Sync);
            block.advance((self.zlib.total_in() - before_in) as usize);
            match result {
                Err(e) if e.needs_dictionary().is_some() => {
                    self.zlib.set_dictionary(&dictionary()).map_err(|_| "wrong compression dictionary")?;
                    continue;
                }
                Err(_) => return Err("header block cannot be decompressed"),
                Ok(Status::StreamEnd) => return Ok(out),
                Ok(_) => {}
            }
            if out.len() > MAX_HEADERS {
                return Err("header block too large");
            }
            let stuck = self.zlib.total_in() == before_in && self.zlib.total_out() == before_out;
            if (block.is_empty() && out.len() < out.capacity()) || stuck {
                return Ok(out);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn frames_survive_the_wire_in_any_pieces() {
        let frames = vec![
            Frame::SynStream {
                id: 1,
                fin: false,
                headers: headers(&[("streamtype", "error"), ("port", "80")]),
            },
            Frame::SynStream { id: 3, fin: true, headers: headers(&[("streamtype", &"x".repeat(5000))]) },
            Frame::SynReply { id: 1, headers: Headers::new() },
            Frame::Data { id: 3, fin: true, data: Bytes::from_static(b"abc") },
            Frame::Ping { id: 5 },
            Frame::RstStream { id: 3 },
            Frame::GoAway { last: 3 },
        ];
        let mut encoder = Encoder::default();
        let mut wire = BytesMut::new();
        for frame in &frames {
            encoder.encode(frame.clone(), &mut wire);
        }
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::new();
        let mut got = Vec::new();
        for byte in wire {
            buffer.put_u8(byte);
            while let Some(frame) = decoder.decode(&mut buffer).expect("frame") {
                got.push(frame);
            }
        }
        assert_eq!(got, frames);
    }

    #[test]
    fn garbage_is_an_error_not_a_panic() {
        let mut buffer =
            BytesMut::from(&[0x80, 3, 0, 1, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 9, 9][..]);
        assert!(Decoder::default().decode(&mut buffer).is_err());
    }
}
