//! Both directions against recorded vectors, where they are present.

use std::path::Path;

use serde_json::Value;

use super::*;

#[test]
fn body_of_another_format_is_refused() {
    let def = coracle_resources::find("", "configmaps").unwrap();
    assert!(matches!(decode(b"{}", def, "ConfigMap"), Err(Malformed::Prefix)));
    assert!(matches!(decode(b"k8s\0\x0a\xff", def, "ConfigMap"), Err(Malformed::Eof)));
}

#[test]
fn config_map_is_read_with_its_map_and_type() {
    let mut body = b"k8s\0".to_vec();
    body.extend(b"\x0a\x0f\x0a\x02v1\x12\x09ConfigMap");
    let raw: &[u8] = b"\x0a\x05\x0a\x01a\x12\x00\x12\x06\x0a\x01k\x12\x01v";
    body.extend([0x12, u8::try_from(raw.len()).unwrap()]);
    body.extend(raw);
    let def = coracle_resources::find("", "configmaps").unwrap();
    let want = serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": { "k": "v" },
    });
    assert_eq!(decode(&body, def, "ConfigMap").unwrap(), want);
}

/// The recorded vectors: name, JSON, protobuf.
fn vectors() -> Vec<(String, Value, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/roundtrip");
    let Ok(files) = std::fs::read_dir(&dir) else {
        eprintln!("left out: {} is not here", dir.display());
        return Vec::new();
    };
    let names = files.flatten().filter_map(|f| {
        let name = f.file_name().into_string().ok()?;
        name.strip_suffix(".json").map(str::to_owned)
    });
    let read = |name: String| {
        let json = std::fs::read(dir.join(format!("{name}.json"))).unwrap();
        let proto = std::fs::read(dir.join(format!("{name}.pb"))).unwrap();
        (name, serde_json::from_slice(&json).unwrap(), proto)
    };
    names.map(read).collect()
}

/// Go writes a null or nothing, as each field's tag says; protobuf does not tell them apart.
fn without_empty(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().map(|(k, v)| (k.clone(), without_empty(v)));
            Value::Object(kept.filter(|(_, v)| !matches!(v, Value::Null)).collect())
        }
        Value::Array(items) => items.iter().map(without_empty).collect(),
        other => other.clone(),
    }
}

#[test]
fn recorded_objects_are_written_byte_for_byte() {
    let mut wrong = Vec::new();
    for (name, json, proto) in vectors() {
        // Not with the envelope of an object: part of a watch stream.
        let Some(got) = json.get("kind").and_then(|_| encode(&json)) else { continue };
        if got != proto {
            let at = got.iter().zip(&proto).position(|(a, b)| a != b);
            wrong.push(format!("{name} at {at:?} of {} ({})", proto.len(), got.len()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn recorded_objects_are_read_as_their_json() {
    let mut wrong = Vec::new();
    for (name, json, proto) in vectors() {
        let (Some(api_version), Some(kind)) = (json["apiVersion"].as_str(), json["kind"].as_str()) else {
            continue;
        };
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let is = |d: &&&ResourceDef| (d.group, d.version, d.kind) == (group, version, kind);
        let Some(def) = coracle_resources::all().iter().find(is) else { continue };
        match decode(&proto, def, kind) {
            Ok(got) if without_empty(&got) == without_empty(&json) => {}
            Ok(got) => wrong.push(format!("{name}: {got} instead of {json}")),
            Err(e) => wrong.push(format!("{name}: {e}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn watch_frames_are_events_behind_their_length() {
    for (_, json, proto) in vectors().into_iter().filter(|(name, ..)| name == "core.v1.WatchEvent") {
        let frame = watch_frame(json["type"].as_str().unwrap(), json["object"].to_string().as_bytes());
        let event = &proto[12..proto.len() - 4];
        assert_eq!(frame[..4], u32::try_from(event.len()).unwrap().to_be_bytes());
        assert_eq!(&frame[4..], event);
    }
    assert_eq!(watch_frame("ADDED", b""), b"\0\0\0\x0b\x0a\x05ADDED\x12\x02\x0a\0");
}

#[test]
fn every_built_in_kind_has_a_protobuf_form() {
    let without: Vec<_> = coracle_resources::all().iter().filter(|def| !knows(def)).collect();
    assert!(without.is_empty(), "{without:?}");
}

#[test]
fn zero_values_of_plain_fields_are_written_and_absent_pointers_are_not() {
    let lease = serde_json::json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {}, "spec": { "leaseTransitions": 0 },
    });
    let got = encode(&lease).unwrap();
    // metadata: six texts, a generation, two times …; spec: the pointer that points to zero alone.
    assert!(got.ends_with(b"\x12\x02\x28\0\x1a\0\x22\0"), "{got:?}");
    assert!(encode(&serde_json::json!({ "apiVersion": "example.com/v1", "kind": "Thing" })).is_none());
}
