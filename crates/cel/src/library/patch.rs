//! Records that mutations make: `Object{…}` and `JSONPatch{…}`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::value::{Fault, Record, Value};

/// Checks the fields of a new record.
///
/// # Errors
/// Fields of `JSONPatch` that are none or of another type.
pub(crate) fn check_record(name: &str, fields: &BTreeMap<Arc<str>, Value>) -> Result<(), Fault> {
    if name != "JSONPatch" {
        return Ok(());
    }
    for (field, value) in fields {
        match (&**field, value) {
            ("op" | "path" | "from", Value::String(_)) | ("value", _) => {}
            ("op" | "path" | "from", other) => {
                let of = other.type_of();
                let message = format!("unexpected type {} for JSONPatchType '{field}' field", of.type_name());
                return Err(Fault::new(message));
            }
            _ => return Err(Fault::new(format!("unexpected JSONPatchType field: {field}"))),
        }
    }
    Ok(())
}

/// Where the names of nested records do not say where they stand: upstream's messages.
pub fn misnamed(record: &Record) -> Vec<String> {
    let mut found = Vec::new();
    collect(record, &record.name, &mut found);
    found
}

fn collect(record: &Record, path: &str, found: &mut Vec<String>) {
    if *record.name != *path {
        found.push(format!(
            "unexpected type name {:?}, expected {path:?}, which matches field name path from root Object type",
            &*record.name
        ));
    }
    for (name, value) in &record.fields {
        collect_value(value, &format!("{path}.{name}"), found);
    }
}

fn collect_value(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Record(record) => collect(record, path, found),
        Value::List(list) => list.iter().for_each(|value| collect_value(value, path, found)),
        Value::Map(map) => map.values().for_each(|value| collect_value(value, path, found)),
        _ => {}
    }
}
