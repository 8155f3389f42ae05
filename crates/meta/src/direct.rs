//! Decodes JSON straight into its type when nothing in it needs a second look.
//!
//! Most bodies are what Go would have written: no unknown or doubled field, no empty value that Go leaves out,
//! amounts and times in canonical form. They are decoded in one pass. Whatever is not like that is left to the
//! decoder that knows Go's rules and words: [`decode`] then yields `None`, never a guess.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};
use serde::forward_to_deserialize_any;

use crate::quantity::Quantity;

/// Keys of one object that are compared with each other; larger objects are left to the other decoder.
const MAX_KEYS: usize = 64;

/// Fields that are pointers in every Go type that has them: `false` and 0 in them are values like others.
const POINTERS: &[&str] = &[
    "allowPrivilegeEscalation",
    "automountServiceAccountToken",
    "backoffLimit",
    "blockOwnerDeletion",
    "controller",
    "enableServiceLinks",
    "fsGroup",
    "immutable",
    "optional",
    "readOnlyRootFilesystem",
    "revisionHistoryLimit",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "terminationGracePeriodSeconds",
    "tolerationSeconds",
];

/// The object that `json` spells, if it is spelled plainly.
pub fn decode<K: DeserializeOwned>(json: &[u8]) -> Option<K> {
    let notes = Notes::default();
    let mut reader = serde_json::Deserializer::from_slice(json);
    let plain = Plain { inner: &mut reader, notes: &notes, place: Place::Value };
    let object = K::deserialize(plain).ok()?;
    reader.end().ok()?;
    (!notes.odd.get()).then_some(object)
}

/// What was seen so far.
#[derive(Default)]
struct Notes {
    /// Something asks for the other decoder.
    odd: Cell<bool>,
    /// The field named last is one of [`POINTERS`].
    pointer: Cell<bool>,
    /// Hashes of the keys of the objects that are open, innermost last.
    keys: RefCell<Vec<u64>>,
}

impl Notes {
    fn odd_if(&self, odd: bool) {
        if odd {
            self.odd.set(true);
        }
    }

    /// Notes a key of the object whose keys begin at `start`. Equal hashes count as the same key.
    fn key(&self, start: usize, key: &str) {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in key.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let mut keys = self.keys.borrow_mut();
        let open = keys.get(start..).unwrap_or_default();
        self.odd_if(open.len() >= MAX_KEYS || open.contains(&hash));
        keys.push(hash);
    }
}

/// What is expected where a value stands.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// A field, an item or the whole.
    Value,
    /// A map with free keys.
    Map,
    /// A label selector or another structure of which an empty one may not be taken for an absent one.
    Selector,
    Quantity,
    Time,
    MicroTime,
    /// The name of a field.
    Name(usize),
    /// A key of a map.
    Key(usize),
}

/// A deserializer that watches.
struct Plain<'n, D> {
    inner: D,
    notes: &'n Notes,
    place: Place,
}

macro_rules! watched {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            let visitor = Watching { inner: visitor, notes: self.notes, place: self.place };
            self.inner.$method(visitor)
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Plain<'_, D> {
    type Error = D::Error;

    watched! {
        deserialize_any deserialize_bool deserialize_i32 deserialize_i64 deserialize_f64 deserialize_str
        deserialize_string deserialize_option deserialize_seq deserialize_identifier
    }

    forward_to_deserialize_any! {
        i8 i16 i128 u8 u16 u32 u64 u128 f32 char bytes byte_buf unit unit_struct tuple tuple_struct enum
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let place = match name {
            "LabelSelector" | "ParentReference" => Place::Selector,
            _ => Place::Value,
        };
        let visitor = Watching { inner: visitor, notes: self.notes, place };
        self.inner.deserialize_struct(name, fields, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_map(Watching { inner: visitor, notes: self.notes, place: Place::Map })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let place = match name {
            "Quantity" => Place::Quantity,
            "Time" => Place::Time,
            "MicroTime" => Place::MicroTime,
            _ => {
                // Free JSON: its parts are not watched.
                self.notes.odd.set(true);
                Place::Value
            }
        };
        self.inner.deserialize_newtype_struct(name, Watching { inner: visitor, notes: self.notes, place })
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        // An unknown field.
        self.notes.odd.set(true);
        self.inner.deserialize_ignored_any(visitor)
    }
}

struct Watching<'n, V> {
    inner: V,
    notes: &'n Notes,
    place: Place,
}

impl<V> Watching<'_, V> {
    fn text(&self, text: &str) {
        let form = |pattern: &str| {
            let digit = |(c, p): (u8, u8)| if p == b'0' { c.is_ascii_digit() } else { c == p };
            text.len() == pattern.len() && text.bytes().zip(pattern.bytes()).all(digit)
        };
        match self.place {
            Place::Name(start) => {
                self.notes.pointer.set(POINTERS.binary_search(&text).is_ok());
                self.notes.key(start, text);
            }
            Place::Key(start) => {
                self.notes.pointer.set(false);
                self.notes.key(start, text);
            }
            Place::Value | Place::Map | Place::Selector => self.notes.odd_if(text.is_empty()),
            Place::Quantity => {
                self.notes.odd_if(Quantity::parse(text).map_or(true, |q| q.to_string() != text));
            }
            Place::Time => self.notes.odd_if(!form("0000-00-00T00:00:00Z")),
            Place::MicroTime => self.notes.odd_if(!form("0000-00-00T00:00:00.000000Z")),
        }
    }

    fn zero(&self, zero: bool) {
        self.notes.odd_if((zero && !self.notes.pointer.get()) || self.place == Place::Quantity);
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Watching<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }
    fn visit_bool<E: Error>(self, value: bool) -> Result<V::Value, E> {
        self.zero(!value);
        self.inner.visit_bool(value)
    }
    fn visit_i64<E: Error>(self, value: i64) -> Result<V::Value, E> {
        self.zero(value == 0);
        self.inner.visit_i64(value)
    }
    fn visit_u64<E: Error>(self, value: u64) -> Result<V::Value, E> {
        self.zero(value == 0);
        self.inner.visit_u64(value)
    }
    fn visit_f64<E: Error>(self, value: f64) -> Result<V::Value, E> {
        // How Go reads and writes fractions is the other decoder's matter.
        self.notes.odd.set(true);
        self.inner.visit_f64(value)
    }
    fn visit_str<E: Error>(self, value: &str) -> Result<V::Value, E> {
        self.text(value);
        self.inner.visit_str(value)
    }
    fn visit_borrowed_str<E: Error>(self, value: &'de str) -> Result<V::Value, E> {
        self.text(value);
        self.inner.visit_borrowed_str(value)
    }
    fn visit_string<E: Error>(self, value: String) -> Result<V::Value, E> {
        self.text(&value);
        self.inner.visit_string(value)
    }
    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }
    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.notes.odd.set(true);
        self.inner.visit_unit()
    }
    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(Plain { inner, notes: self.notes, place: Place::Value })
    }
    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner.visit_newtype_struct(Plain { inner, notes: self.notes, place: self.place })
    }
    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        let empty = Cell::new(true);
        let value = self.inner.visit_seq(Items { inner, notes: self.notes, empty: &empty })?;
        self.notes.odd_if(empty.get());
        Ok(value)
    }
    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        let start = self.notes.keys.borrow().len();
        let (free, notes) = (self.place == Place::Map, self.notes);
        let some = free || self.place == Place::Selector;
        let value = self.inner.visit_map(Entries { inner, notes, start, free })?;
        let mut keys = notes.keys.borrow_mut();
        notes.odd_if(some && keys.len() == start);
        keys.truncate(start);
        Ok(value)
    }
    fn visit_enum<A: EnumAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        let (_, variant) = inner.variant::<serde::de::IgnoredAny>()?;
        variant.unit_variant()?;
        Err(A::Error::custom("the API has no enums"))
    }
}

struct Items<'n, A> {
    inner: A,
    notes: &'n Notes,
    empty: &'n Cell<bool>,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Items<'_, A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, A::Error> {
        let item = self.inner.next_element_seed(Seed { seed, notes: self.notes, place: Place::Value })?;
        if item.is_some() {
            self.empty.set(false);
        }
        Ok(item)
    }
}

struct Entries<'n, A> {
    inner: A,
    notes: &'n Notes,
    start: usize,
    free: bool,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Entries<'_, A> {
    type Error = A::Error;

    fn next_key_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, A::Error> {
        let place = if self.free { Place::Key(self.start) } else { Place::Name(self.start) };
        self.inner.next_key_seed(Seed { seed, notes: self.notes, place })
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        self.inner.next_value_seed(Seed { seed, notes: self.notes, place: Place::Value })
    }
}

struct Seed<'n, T> {
    seed: T,
    notes: &'n Notes,
    place: Place,
}

impl<'de, T: DeserializeSeed<'de>> DeserializeSeed<'de> for Seed<'_, T> {
    type Value = T::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<T::Value, D::Error> {
        self.seed.deserialize(Plain { inner, notes: self.notes, place: self.place })
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::coordination::v1::Lease;
    use k8s_openapi::api::core::v1::{ConfigMap, Pod};

    use super::{POINTERS, decode};

    const POD: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","labels":{"a":"b"},
        "creationTimestamp":null},"spec":{"containers":[{"name":"c","image":"i","resources":{"limits":
        {"cpu":"100m"}},"ports":[{"containerPort":80}]}]},"status":{}}"#;

    #[test]
    fn a_plain_body_is_decoded_as_the_type_itself_decodes_it() {
        let direct: Pod = decode(POD.as_bytes()).expect("plain");
        assert_eq!(direct, serde_json::from_str::<Pod>(POD).expect("a pod"));
        assert!(POINTERS.is_sorted());
        let pointer = POD.replace("\"containers\"", "\"automountServiceAccountToken\":false,\"containers\"");
        assert!(decode::<Pod>(pointer.as_bytes()).is_some());
        let lease = br#"{"spec":{"renewTime":"2026-01-02T03:04:05.000006Z"}}"#;
        assert!(decode::<Lease>(lease).is_some());
    }

    #[test]
    fn whatever_needs_gos_reading_is_left_alone() {
        for (from, to) in [
            (r#""name":"p""#, r#""name":"p","name":"q""#),
            (r#""a":"b""#, r#""a":"b","a":"c""#),
            (r#""name":"p""#, r#""name":"p","nam":"q""#),
            (r#""image":"i""#, r#""image":"""#),
            (r#""image":"i""#, r#""image":"i","args":[]"#),
            (r#""image":"i""#, r#""image":"i","args":[null]"#),
            (r#""image":"i""#, r#""image":"i","tty":false"#),
            (r#""image":"i""#, r#""image":7"#),
            (r#"{"a":"b"}"#, "{}"),
            (
                r#""containers":"#,
                r#""topologySpreadConstraints":[{"maxSkew":1,"topologyKey":"a","whenUnsatisfiable":"b",
                "labelSelector":{}}],"containers":"#,
            ),
            ("80", "0"),
            ("80", "80.0"),
            (r#""100m""#, r#""0.1""#),
            (r#""100m""#, "1"),
            ("null", r#""2026-01-02T03:04:05+01:00""#),
            (r#""apiVersion":"v1""#, r#""apiVersion":"v2""#),
            (r#""status":{}}"#, r#""status":{}} x"#),
            (r#""name":"p""#, r#""name":"p","managedFields":[{"fieldsV1":{"f:a":{}}}]"#),
        ] {
            let text = POD.replace(from, to);
            assert_ne!(text, POD, "{from}");
            assert_eq!(decode::<Pod>(text.as_bytes()), None, "{to}");
        }
        let keys: Vec<String> = (0..100).map(|i| format!("\"k{i}\":\"v\"")).collect();
        let large = format!("{{\"data\":{{{}}}}}", keys.join(","));
        assert_eq!(decode::<ConfigMap>(large.as_bytes()), None);
    }
}
