//! Protocol buffers by hand: the few field kinds that etcd's messages are made of.
//! See <https://protobuf.dev/programming-guides/encoding/>.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// A message being written.
#[derive(Debug, Default)]
pub(super) struct Writer(BytesMut);

impl Writer {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.put_u8(value as u8);
    }

    /// A number; zero is left out, as the format's default.
    pub(super) fn number(mut self, field: u32, value: u64) -> Self {
        if value != 0 {
            self.varint(u64::from(field) << 3);
            self.varint(value);
        }
        self
    }

    /// A flag; `false` is left out.
    pub(super) fn flag(self, field: u32, value: bool) -> Self {
        self.number(field, u64::from(value))
    }

    /// A string, byte string or message; written also when empty, since it may be a member of a `oneof`.
    pub(super) fn bytes(mut self, field: u32, value: &[u8]) -> Self {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(value.len() as u64);
        self.0.put_slice(value);
        self
    }

    /// A number that is written also when it is zero: a member of a `oneof`.
    pub(super) fn chosen(mut self, field: u32, value: u64) -> Self {
        self.varint(u64::from(field) << 3);
        self.varint(value);
        self
    }

    /// The message.
    pub(super) fn done(self) -> Bytes {
        self.0.freeze()
    }
}

/// A field of a received message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// A number of any width.
    Number(u64),
    /// A string, byte string or message.
    Bytes(Bytes),
}

impl Value {
    /// The number; zero for another kind.
    pub(super) fn number(&self) -> u64 {
        match self {
            Self::Number(n) => *n,
            Self::Bytes(_) => 0,
        }
    }

    /// The bytes; empty for another kind.
    pub(super) fn bytes(self) -> Bytes {
        match self {
            Self::Number(_) => Bytes::new(),
            Self::Bytes(b) => b,
        }
    }
}

fn varint(from: &mut Bytes) -> Result<u64, String> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        if !from.has_remaining() {
            return Err("a message from etcd ends within a number".into());
        }
        let byte = from.get_u8();
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err("a number in a message from etcd is too long".into())
}

/// Calls `field` for each field of a message, in order.
///
/// # Errors
/// Bytes that are no message.
pub(super) fn read(mut message: Bytes, mut field: impl FnMut(u32, Value)) -> Result<(), String> {
    while message.has_remaining() {
        let tag = varint(&mut message)?;
        let number =
            u32::try_from(tag >> 3).map_err(|_| "a field number from etcd is too large".to_owned())?;
        let short = || "a message from etcd ends within a field".to_owned();
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut message)?),
            1 if message.len() >= 8 => Value::Number(message.get_u64_le()),
            5 if message.len() >= 4 => Value::Number(u64::from(message.get_u32_le())),
            2 => {
                let length = usize::try_from(varint(&mut message)?).map_err(|_| short())?;
                if message.len() < length {
                    return Err(short());
                }
                Value::Bytes(message.split_to(length))
            }
            1 | 5 => return Err(short()),
            other => return Err(format!("a message from etcd has a field of unknown type {other}")),
        };
        field(number, value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(message: Bytes) -> Result<Vec<(u32, Value)>, String> {
        let mut all = Vec::new();
        read(message, |n, v| all.push((n, v)))?;
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
