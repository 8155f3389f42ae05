//! gRPC's framing of messages: a flag for compression, a length, the message.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::wire::DecodeError;

/// A message with gRPC's prefix: not compressed, length.
pub fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + message.len());
    out.put_u8(0);
    out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    out.put_slice(message);
    out.freeze()
}

/// Takes the first whole message off what has arrived.
///
/// # Errors
/// A compressed message: none was asked for.
pub fn unframed(arrived: &mut BytesMut) -> Result<Option<Bytes>, DecodeError> {
    let Some(head) = arrived.get(..5) else { return Ok(None) };
    if head[0] != 0 {
        return Err(DecodeError::Frame);
    }
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if arrived.len() < 5 + length {
        return Ok(None);
    }
    arrived.advance(5);
    Ok(Some(arrived.split_to(length).freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_in_pieces() {
        let whole = [framed(b"one"), framed(b""), framed(b"three")].concat();
        let (mut arrived, mut found) = (BytesMut::new(), Vec::new());
        for byte in whole {
            arrived.put_u8(byte);
            while let Some(message) = unframed(&mut arrived).unwrap() {
                found.push(message);
            }
        }
        assert_eq!(found, [&b"one"[..], b"", b"three"]);
        assert!(unframed(&mut BytesMut::from(&[1, 0, 0, 0, 0][..])).is_err());
    }
}
