//! The stored form of an object: its JSON without `metadata.resourceVersion`, led by the place where that goes.

use bytes::{BufMut, Bytes, BytesMut};
use coracle_meta::{Object, Status, go};
use coracle_resources::def::ResourceDef;
use serde_json::Value;

/// Bytes of the leading offset.
const HEADER: usize = 4;
/// In the offset: see [`unsettled`].
const UNSETTLED: u32 = 1 << 31;

/// `{"kind":"Deployment","apiVersion":"apps/v1",`: what every encoding of a built-in kind begins with.
pub(crate) fn type_head(def: &ResourceDef) -> String {
    format!("{{\"kind\":\"{}\",\"apiVersion\":\"{}\",", def.kind, api_version(def))
}

/// `v1` or `apps/v1`.
pub(crate) fn api_version(def: &ResourceDef) -> String {
    if def.group.is_empty() { def.version.to_owned() } else { format!("{}/{}", def.group, def.version) }
}

/// Encodes an object for the store. `metadata.resourceVersion` is cleared first.
///
/// # Errors
/// 500 when the object does not encode with its metadata in front.
pub(crate) fn encode(obj: &mut dyn Object, capacity: usize) -> Result<Bytes, Status> {
    obj.meta_mut().resource_version = None;
    let mut out = Vec::with_capacity(capacity + HEADER);
    out.extend_from_slice(&[0; HEADER]);
    obj.write_json(&mut out);
    with_place(out)
}

/// Encodes the JSON form of an object for the store. It has no resourceVersion. Built-in kinds have the order of Go's
/// types, custom resources that of their fields' names.
///
/// # Errors
/// 500 when it is not an object of the kind with metadata.
pub(crate) fn encode_value(def: &ResourceDef, value: &Value, capacity: usize) -> Result<Bytes, Status> {
    let mut out = Vec::with_capacity(capacity + HEADER);
    out.extend_from_slice(&[0; HEADER]);
    if def.strategy.custom().is_some() {
        write_custom(def, value, &mut out)?;
        return with_place(out);
    }
    go::append(&go::type_name(def.group, def.version, def.kind), value, &mut out);
    // Lists leave it out.
    if !out[HEADER..].starts_with(type_head(def).as_bytes()) {
        return Err(Status::internal("object does not encode with its type in front"));
    }
    with_place(out)
}

/// Writes a custom resource, whatever version the value says it has.
fn write_custom(def: &ResourceDef, value: &Value, out: &mut Vec<u8>) -> Result<(), Status> {
    let (version, kind) = (Value::from(api_version(def)), Value::from(def.kind));
    let fields = value.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value));
    let others = fields.filter(|(name, _)| !matches!(*name, "apiVersion" | "kind"));
    let mut fields: Vec<(&str, &Value)> =
        [("apiVersion", &version), ("kind", &kind)].into_iter().chain(others).collect();
    fields.sort_by_key(|(name, _)| *name);
    for (i, (name, field)) in fields.into_iter().enumerate() {
        out.push(if i == 0 { b'{' } else { b',' });
        serde_json::to_writer(&mut *out, name).map_err(Status::internal)?;
        out.push(b':');
        go::write(field, out);
    }
    out.push(b'}');
    Ok(())
}

/// The `apiVersion` that an encoded object has, without decoding it.
pub(crate) fn version_in(json: &[u8]) -> Option<&str> {
    const MARK: &[u8] = b"\"apiVersion\":\"";
    let start = field_start(json, MARK)?;
    let length = json[start..].iter().position(|b| *b == b'"')?;
    std::str::from_utf8(&json[start..start + length]).ok()
}

/// Fills in the place of the resourceVersion.
fn with_place(mut out: Vec<u8>) -> Result<Bytes, Status> {
    let place = metadata_start(&out[HEADER..])
        .ok_or_else(|| Status::internal("object does not encode with metadata"))?;
    let place = u32::try_from(place).map_err(Status::internal)?;
    out[..HEADER].copy_from_slice(&place.to_le_bytes());
    Ok(Bytes::from(out))
}

/// The offset just behind the top-level `"metadata":{`, wherever a kind's encoding has it.
fn metadata_start(json: &[u8]) -> Option<usize> {
    field_start(json, b"\"metadata\":{")
}

/// The offset just behind a mark that begins with the name of a top-level field.
fn field_start(json: &[u8], mark: &[u8]) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(&b) = json.get(at) {
        match b {
            b'"' => {
                let key = depth == 1 && json.get(at.wrapping_sub(1)) != Some(&b':');
                if key && json[at..].starts_with(mark) {
                    return Some(at + mark.len());
                }
                at = string_end(json, at)?;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    None
}

/// The offset of the quote that closes the string opened at `start`.
fn string_end(json: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        match json.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// The value with a mark: upstream's store holds less than its reader shows, so that the next write of the very
/// same object makes a revision.
pub(crate) fn unsettled(value: &[u8]) -> Bytes {
    let mut out = value.to_vec();
    if let Some(last) = out.get_mut(HEADER - 1) {
        *last |= 0x80;
    }
    Bytes::from(out)
}

/// Whether a stored value has that mark.
pub(crate) fn is_unsettled(value: &[u8]) -> bool {
    value.first_chunk::<HEADER>().is_some_and(|head| u32::from_le_bytes(*head) & UNSETTLED != 0)
}

/// The complete JSON of a stored value at `revision`. Revision 0 leaves the field out (dry run).
pub(crate) fn splice(value: &[u8], revision: u64) -> Bytes {
    splice_named(value, Some(revision).filter(|revision| *revision != 0))
}

/// As [`splice`], at a revision that a client named, if it named one.
pub(crate) fn splice_named(value: &[u8], revision: Option<u64>) -> Bytes {
    let Some((head, json)) = value.split_first_chunk::<HEADER>() else { return Bytes::new() };
    let place = ((u32::from_le_bytes(*head) & !UNSETTLED) as usize).min(json.len());
    let mut out = BytesMut::with_capacity(json.len() + 44);
    out.put_slice(&json[..place]);
    if let Some(revision) = revision {
        out.put_slice(b"\"resourceVersion\":\"");
        out.put_slice(itoa(revision, &mut [0; 20]));
        out.put_slice(if json.get(place) == Some(&b'}') { b"\"" } else { b"\"," });
    }
    out.put_slice(&json[place..]);
    out.freeze()
}

/// The same JSON with another revision in the place of the first one.
pub(crate) fn resplice(encoded: &[u8], revision: u64) -> Bytes {
    const MARK: &[u8] = b"\"resourceVersion\":\"";
    let Some(place) = metadata_start(encoded) else { return Bytes::copy_from_slice(encoded) };
    let rest = &encoded[place..];
    let Some(digits) = rest.strip_prefix(MARK) else { return Bytes::copy_from_slice(encoded) };
    let end = digits.iter().position(|b| *b == b'"').unwrap_or(0);
    let mut out = BytesMut::with_capacity(encoded.len() + 8);
    out.put_slice(&encoded[..place]);
    out.put_slice(MARK);
    out.put_slice(itoa(revision, &mut [0; 20]));
    out.put_slice(&digits[end..]);
    out.freeze()
}

fn itoa(mut n: u64, buf: &mut [u8; 20]) -> &[u8] {
    let mut at = buf.len();
    loop {
        at -= 1;
        buf[at] = b'0' + u8::try_from(n % 10).unwrap_or(0);
        n /= 10;
        if n == 0 {
            return &buf[at..];
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    #[test]
    fn revision_is_spliced_in_and_replaced_without_another_encoding() {
        let mut cm = ConfigMap::default();
        cm.metadata.name = Some("a".into());
        cm.metadata.resource_version = Some("9".into());
        let value = encode(&mut cm, 64).unwrap();
        let text = splice(&value, 41);
        let read: ConfigMap = serde_json::from_slice(&text).unwrap();
        assert_eq!(read.metadata.resource_version.as_deref(), Some("41"));
        let read: ConfigMap = serde_json::from_slice(&resplice(&text, 1042)).unwrap();
        assert_eq!(read.metadata.resource_version.as_deref(), Some("1042"));
        assert_eq!(read.metadata.name.as_deref(), Some("a"));
        assert!(!is_unsettled(&value) && is_unsettled(&unsettled(&value)));
        assert_eq!(splice(&unsettled(&value), 41), text);
        let named: ConfigMap = serde_json::from_slice(&splice_named(&value, Some(0))).unwrap();
        assert_eq!(named.metadata.resource_version.as_deref(), Some("0"));
        let dry: ConfigMap = serde_json::from_slice(&splice(&value, 0)).unwrap();
        assert_eq!(dry.metadata.resource_version, None);
    }

    #[test]
    fn metadata_is_found_behind_other_fields_and_not_in_strings() {
        let json =
            br#"{"kind":"X","data":{"metadata":{"a":1},"s":"\"metadata\":{"},"metadata":{"name":"n"}}"#;
        let at = metadata_start(json).unwrap();
        assert_eq!(&json[at..], br#""name":"n"}}"#);
    }

    #[test]
    fn every_built_in_kind_is_encoded_with_its_kind_first() {
        for def in coracle_resources::all() {
            let value = serde_json::json!({ "apiVersion": api_version(def), "kind": def.kind,
                "status": {}, "spec": {}, "metadata": { "name": "a" } });
            let encoded = encode_value(def, &value, 64).unwrap_or_else(|e| panic!("{}: {e}", def.kind));
            let text = splice(&encoded, 7);
            assert_eq!(version_in(&text), Some(api_version(def).as_str()));
            assert!(text.starts_with(type_head(def).as_bytes()), "{}", def.kind);
            assert_eq!(serde_json::from_slice::<Value>(&text).unwrap()["metadata"]["resourceVersion"], "7");
        }
    }
}
