//! Protocol buffers' encoding: numbers, lengths and fields.
//! See <https://protobuf.dev/programming-guides/encoding/>.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes that are no message of the expected kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The message ends within a field or number.
    #[error("a message ends within a field")]
    Short,
    /// A number has more than ten bytes, or a field's number more than 32 bits.
    #[error("a number in a message is too long")]
    Long,
    /// A field's wire type is one that proto3 does not have.
    #[error("a message has a field of unknown type {0}")]
    Type(u64),
    /// A string is not UTF-8.
    #[error("a string in a message is not UTF-8")]
    Text,
    /// A message has a compressed or otherwise wrong frame.
    #[error("a message comes in a form that was not agreed on")]
    Frame,
}

/// A message being written.
#[derive(Debug, Default)]
pub struct Writer(BytesMut);

impl Writer {
    /// A number in base 128.
    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.put_u8(value as u8);
    }

    /// A field's number and wire type.
    pub fn tag(&mut self, field: u32, wire_type: u8) {
        self.varint(u64::from(field) << 3 | u64::from(wire_type));
    }

    /// Eight bytes.
    pub fn fixed(&mut self, value: u64) {
        self.0.put_u64_le(value);
    }

    /// Bytes behind their length.
    pub fn delimited(&mut self, value: &[u8]) {
        self.varint(value.len() as u64);
        self.0.put_slice(value);
    }

    /// A number; zero is left out, as the format's default.
    #[must_use]
    pub fn number(mut self, field: u32, value: u64) -> Self {
        if value != 0 {
            self.tag(field, 0);
            self.varint(value);
        }
        self
    }

    /// A flag; `false` is left out.
    #[must_use]
    pub fn flag(self, field: u32, value: bool) -> Self {
        self.number(field, u64::from(value))
    }

    /// A string, byte string or message; written also when empty, since it may be a member of a `oneof`.
    #[must_use]
    pub fn bytes(mut self, field: u32, value: &[u8]) -> Self {
        self.tag(field, 2);
        self.delimited(value);
        self
    }

    /// A number that is written also when it is zero: a member of a `oneof`.
    #[must_use]
    pub fn chosen(mut self, field: u32, value: u64) -> Self {
        self.tag(field, 0);
        self.varint(value);
        self
    }

    /// The message.
    pub fn done(self) -> Bytes {
        self.0.freeze()
    }
}

/// A field of a received message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number of any width.
    Number(u64),
    /// A string, byte string or message.
    Bytes(Bytes),
}

impl Value {
    /// The number; zero for another kind.
    pub fn number(&self) -> u64 {
        match self {
            Self::Number(n) => *n,
            Self::Bytes(_) => 0,
        }
    }

    /// The bytes; empty for another kind.
    pub fn bytes(self) -> Bytes {
        match self {
            Self::Number(_) => Bytes::new(),
            Self::Bytes(b) => b,
        }
    }
}

/// Takes a number in base 128 off the front.
///
/// # Errors
/// It is cut or too long.
pub(crate) fn varint(from: &mut Bytes) -> Result<u64, DecodeError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        if !from.has_remaining() {
            return Err(DecodeError::Short);
        }
        let byte = from.get_u8();
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(DecodeError::Long)
}

/// Calls `field` for each field of a message, in order.
///
/// # Errors
/// Bytes that are no message, and what `field` refuses.
pub fn read<E: From<DecodeError>>(
    mut message: Bytes,
    mut field: impl FnMut(u32, Value) -> Result<(), E>,
) -> Result<(), E> {
    while message.has_remaining() {
        let tag = varint(&mut message)?;
        let number = u32::try_from(tag >> 3).map_err(|_| DecodeError::Long)?;
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut message)?),
            1 if message.len() >= 8 => Value::Number(message.get_u64_le()),
            5 if message.len() >= 4 => Value::Number(u64::from(message.get_u32_le())),
            2 => {
                let length = usize::try_from(varint(&mut message)?).map_err(|_| DecodeError::Short)?;
                if message.len() < length {
                    return Err(DecodeError::Short.into());
                }
                Value::Bytes(message.split_to(length))
            }
            1 | 5 => return Err(DecodeError::Short.into()),
            other => return Err(DecodeError::Type(other).into()),
        };
        field(number, value)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(message: Bytes) -> Result<Vec<(u32, Value)>, DecodeError> {
        let mut all = Vec::new();
        read(message, |n, v| {
            all.push((n, v));
            Ok::<_, DecodeError>(())
        })?;
        Ok(all)
    }

    #[test]
    fn what_is_written_is_read() {
        let message =
            Writer::default().number(1, 300).flag(2, true).flag(3, false).bytes(16, b"").chosen(4, 0).done();
        assert_eq!(message[..], [0x08, 0xac, 0x02, 0x10, 0x01, 0x82, 0x01, 0x00, 0x20, 0x00]);
        let read = fields(message).unwrap();
        assert_eq!(
            read,
            [
                (1, Value::Number(300)),
                (2, Value::Number(1)),
                (16, Value::Bytes(Bytes::new())),
                (4, Value::Number(0))
            ]
        );
    }

    #[test]
    fn cut_and_wrong_messages_are_errors() {
        for wrong in [
            &[0x08][..],
            &[0x0a, 5, 1],
            &[0x09, 1],
            &[0x0b],
            &[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255],
        ] {
            assert!(fields(Bytes::copy_from_slice(wrong)).is_err(), "{wrong:?}");
        }
    }
}
