//! Messages as plain structs: [`messages!`](crate::messages) declares them, field numbers and all.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::wire::{DecodeError, Value, Writer, read, varint};

/// A string map.
pub type Map = BTreeMap<String, String>;

/// A protobuf message.
pub trait Message: Default {
    /// Writes its fields; those with default values are left out.
    fn write(&self, out: &mut Writer);
    /// Takes a field that was received; unknown numbers are passed over.
    ///
    /// # Errors
    /// A value that the field cannot have.
    fn take(&mut self, number: u32, value: Value) -> Result<(), DecodeError>;

    /// The message as bytes.
    fn encode(&self) -> Bytes {
        let mut out = Writer::default();
        self.write(&mut out);
        out.done()
    }
    /// The message that these bytes are.
    ///
    /// # Errors
    /// Bytes that are no such message.
    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut message = Self::default();
        read(bytes, |number, value| message.take(number, value))?;
        Ok(message)
    }
}

/// One value: what a field, an item of a list or a value of a map can be.
pub trait Element: Default + Sized {
    /// 0 for numbers, 1 for eight bytes, 2 for what has a length.
    const WIRE: u8;
    /// Writes it without a tag.
    fn put(&self, out: &mut Writer);
    /// Reads it.
    ///
    /// # Errors
    /// A value that it cannot have.
    fn get(value: Value) -> Result<Self, DecodeError>;
    /// Whether it is the default, which is not written.
    fn is_default(&self) -> bool;
}

/// What stands in a message under one number.
pub trait Field {
    /// Writes it with its tag, or nothing.
    fn put_field(&self, number: u32, out: &mut Writer);
    /// Takes one occurrence of it.
    ///
    /// # Errors
    /// A value that it cannot have.
    fn take_field(&mut self, value: Value) -> Result<(), DecodeError>;
}

macro_rules! numbers {
    ($($t:ty),*) => {$(
        impl Element for $t {
            const WIRE: u8 = 0;
            fn put(&self, out: &mut Writer) {
                // Negative numbers are sign-extended to 64 bits, as the format wants it.
                out.varint(*self as i64 as u64);
            }
            fn get(value: Value) -> Result<Self, DecodeError> {
                Ok(value.number() as $t)
            }
            fn is_default(&self) -> bool {
                *self == 0
            }
        }
        impl Field for $t {
            fn put_field(&self, number: u32, out: &mut Writer) {
                put_one(self, number, out);
            }
            fn take_field(&mut self, value: Value) -> Result<(), DecodeError> {
                *self = Self::get(value)?;
                Ok(())
            }
        }
        impl Field for Vec<$t> {
            fn put_field(&self, number: u32, out: &mut Writer) {
                if self.is_empty() {
                    return;
                }
                let mut packed = Writer::default();
                self.iter().for_each(|n| n.put(&mut packed));
                out.tag(number, 2);
                out.delimited(&packed.done());
            }
            fn take_field(&mut self, value: Value) -> Result<(), DecodeError> {
                match value {
                    Value::Number(n) => self.push(n as $t),
                    Value::Bytes(mut packed) => {
                        while !packed.is_empty() {
                            self.push(varint(&mut packed)? as $t);
                        }
                    }
                }
                Ok(())
            }
        }
    )*};
}
numbers!(i32, i64, u32, u64);

impl Element for bool {
    const WIRE: u8 = 0;
    fn put(&self, out: &mut Writer) {
        out.varint(u64::from(*self));
    }
    fn get(value: Value) -> Result<Self, DecodeError> {
        Ok(value.number() != 0)
    }
    fn is_default(&self) -> bool {
        !*self
    }
}

impl Element for f64 {
    const WIRE: u8 = 1;
    fn put(&self, out: &mut Writer) {
        out.fixed(self.to_bits());
    }
    fn get(value: Value) -> Result<Self, DecodeError> {
        Ok(Self::from_bits(value.number()))
    }
    fn is_default(&self) -> bool {
        self.to_bits() == 0
    }
}

impl Element for String {
    const WIRE: u8 = 2;
    fn put(&self, out: &mut Writer) {
        out.delimited(self.as_bytes());
    }
    fn get(value: Value) -> Result<Self, DecodeError> {
        Self::from_utf8(value.bytes().into()).map_err(|_| DecodeError::Text)
    }
    fn is_default(&self) -> bool {
        self.is_empty()
    }
}

impl Element for Bytes {
    const WIRE: u8 = 2;
    fn put(&self, out: &mut Writer) {
        out.delimited(self);
    }
    fn get(value: Value) -> Result<Self, DecodeError> {
        Ok(value.bytes())
    }
    fn is_default(&self) -> bool {
        self.is_empty()
    }
}

impl<M: Message> Element for M {
    const WIRE: u8 = 2;
    fn put(&self, out: &mut Writer) {
        out.delimited(&self.encode());
    }
    fn get(value: Value) -> Result<Self, DecodeError> {
        M::decode(value.bytes())
    }
    /// A message that is there is written, empty or not.
    fn is_default(&self) -> bool {
        false
    }
}

fn put_one<E: Element>(element: &E, number: u32, out: &mut Writer) {
    if !element.is_default() {
        out.tag(number, E::WIRE);
        element.put(out);
    }
}

macro_rules! fields {
    ($($t:ty),*) => {$(
        impl Field for $t {
            fn put_field(&self, number: u32, out: &mut Writer) {
                put_one(self, number, out);
            }
            fn take_field(&mut self, value: Value) -> Result<(), DecodeError> {
                *self = Self::get(value)?;
                Ok(())
            }
        }
    )*};
}
fields!(bool, f64, String, Bytes);

impl<M: Message> Field for Option<M> {
    fn put_field(&self, number: u32, out: &mut Writer) {
        if let Some(message) = self {
            put_one(message, number, out);
        }
    }
    fn take_field(&mut self, value: Value) -> Result<(), DecodeError> {
        // A second occurrence is merged into the first, as the format wants it.
        let message = self.get_or_insert_default();
        read(value.bytes(), |number, value| message.take(number, value))
    }
}

impl Field for Vec<String> {
    fn put_field(&self, number: u32, out: &mut Writer) {
        for item in self {
            out.tag(number, String::WIRE);
            item.put(out);
        }
    }
    fn take_field(&mut self, value: Value) -> Result<(), DecodeError> {
        self.push(String::get(value)?);
        Ok(())
    }
}

impl<M: Message> Field for Vec<M> {
    fn put_field(&self, number: u32, out: &mut Writer) {
        for item in self {
            out.tag(number, M::WIRE);
            item.put(out);
        }
    }
    fn take_field(&mut self, value: Value) -> Result<(), DecodeError> {
        self.push(M::get(value)?);
        Ok(())
    }
}

impl<V: Element> Field for BTreeMap<String, V> {
    fn put_field(&self, number: u32, out: &mut Writer) {
        for (key, value) in self {
            let mut entry = Writer::default();
            put_one(key, 1, &mut entry);
            put_one(value, 2, &mut entry);
            out.tag(number, 2);
            out.delimited(&entry.done());
        }
    }
    fn take_field(&mut self, value: Value) -> Result<(), DecodeError> {
        let (mut key, mut content) = (String::new(), V::default());
        read(value.bytes(), |number, value| {
            match number {
                1 => key = String::get(value)?,
                2 => content = V::get(value)?,
                _ => {}
            }
            Ok::<_, DecodeError>(())
        })?;
        self.insert(key, content);
        Ok(())
    }
}

/// Declares protobuf messages as plain structs with public fields.
///
/// A field is `name: type = number`. Types are `i32`, `i64`, `u32`, `u64`, `bool`, `f64`,
/// `String`, `Bytes`, `Option` of a
/// message, `Vec` of numbers, strings or messages, and `BTreeMap` from strings. Enumerations are `i32`.
///
/// ```
/// coracle_grpc::messages! {
///     /// A port.
///     Port { number: i32 = 1, name: String = 2 }
/// }
/// use coracle_grpc::Message;
/// let port = Port { number: 80, name: "web".into() };
/// assert_eq!(Port::decode(port.encode()).unwrap(), port);
/// ```
#[macro_export]
macro_rules! messages {
    ($($(#[$m:meta])* $name:ident { $($(#[$f:meta])* $field:ident : $ty:ty = $number:literal),* $(,)? })*) => {$(
        $(#[$m])*
        #[derive(Clone, Debug, Default, PartialEq)]
        #[allow(missing_docs, reason = "the fields are those of the published interface")]
        pub struct $name { $($(#[$f])* pub $field: $ty),* }

        impl $crate::Message for $name {
            #[allow(unused_variables, reason = "some messages have no fields")]
            fn write(&self, out: &mut $crate::Writer) {
                $($crate::Field::put_field(&self.$field, $number, out);)*
            }
            #[allow(unused_variables, reason = "some messages have no fields")]
            fn take(&mut self, number: u32, value: $crate::Value) -> Result<(), $crate::DecodeError> {
                match number {
                    $($number => $crate::Field::take_field(&mut self.$field, value),)*
                    _ => Ok(()),
                }
            }
        }
    )*};
}

#[cfg(test)]
mod tests {
    use super::*;

    messages! {
        Inner { n: i64 = 1 }
        Outer {
            text: String = 1, flag: bool = 2, inner: Option<Inner> = 3, list: Vec<Inner> = 4,
            names: Vec<String> = 5, packed: Vec<i64> = 6, map: Map = 7, raw: Bytes = 8, part: f64 = 9,
        }
    }

    #[test]
    fn messages_come_back_as_they_were_written() {
        let outer = Outer {
            text: "a".into(),
            flag: true,
            inner: Some(Inner { n: -1 }),
            list: vec![Inner { n: 0 }, Inner { n: 5 }],
            names: vec![String::new(), "b".into()],
            packed: vec![0, 300, -2],
            map: Map::from([("k".into(), "v".into()), ("e".into(), String::new())]),
            raw: Bytes::from_static(b"\0\xff"),
            part: 1.5,
        };
        assert_eq!(Outer::decode(outer.encode()).unwrap(), outer);
        assert!(Outer::default().encode().is_empty());
    }

    #[test]
    fn unpacked_lists_and_unknown_fields_are_taken_as_older_peers_send_them() {
        // packed: 7, 8 one by one; field 100 unknown.
        let bytes = Bytes::from_static(&[0x30, 7, 0x30, 8, 0xa0, 0x06, 1]);
        assert_eq!(Outer::decode(bytes).unwrap().packed, [7, 8]);
    }

    #[test]
    fn strings_that_are_no_text_are_refused() {
        assert_eq!(Outer::decode(Bytes::from_static(&[0x0a, 1, 0xff])), Err(DecodeError::Text));
    }
}
