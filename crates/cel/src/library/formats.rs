//! Named formats: `format.dns1123Label().validate(name)`.

use coracle_meta::names;

use super::{Outcome, url};
use crate::time;
use crate::value::Value;

/// A format: the function's name, the size that costs count with, and the check.
struct Format {
    name: &'static str,
    pattern_size: u64,
    check: fn(&str) -> Vec<String>,
}

const FORMATS: &[Format] = &[
    Format { name: "dns1123Label", pattern_size: 30, check: names::dns1123_label },
    Format { name: "dns1123Subdomain", pattern_size: 60, check: names::dns1123_subdomain },
    Format { name: "dns1035Label", pattern_size: 30, check: names::dns1035_label },
    Format { name: "qualifiedName", pattern_size: 60, check: names::qualified_name },
    Format { name: "dns1123LabelPrefix", pattern_size: 30, check: |s| prefix(names::dns1123_label, s) },
    Format {
        name: "dns1123SubdomainPrefix",
        pattern_size: 60,
        check: |s| prefix(names::dns1123_subdomain, s),
    },
    Format { name: "dns1035LabelPrefix", pattern_size: 30, check: |s| prefix(names::dns1035_label, s) },
    Format { name: "labelValue", pattern_size: 40, check: names::label_value },
    Format { name: "uri", pattern_size: 1103, check: |s| url::parse(s).err().into_iter().collect() },
    Format {
        name: "uuid",
        pattern_size: 89,
        check: |s| unless(is_uuid(s), "does not match the UUID format"),
    },
    Format { name: "byte", pattern_size: 84, check: |s| unless(is_base64(s), "invalid base64") },
    Format { name: "date", pattern_size: 128, check: |s| unless(is_date(s), "invalid date") },
    Format { name: "datetime", pattern_size: 128, check: |s| unless(is_datetime(s), "invalid datetime") },
];

fn prefix(check: fn(&str) -> Vec<String>, text: &str) -> Vec<String> {
    names::maybe_prefix(check, text, true)
}

fn unless(ok: bool, message: &str) -> Vec<String> {
    if ok { Vec::new() } else { vec![message.to_owned()] }
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    let joined: String = groups.concat();
    let hex = joined.len() == 32 && joined.bytes().all(|b| b.is_ascii_hexdigit());
    let lens: Vec<usize> = groups.iter().map(|group| group.len()).collect();
    hex && (lens == [8, 4, 4, 4, 12] || lens == [32])
}

fn is_base64(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    let plain = body.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/');
    !text.is_empty() && text.len().is_multiple_of(4) && plain && text.len() - body.len() <= 2
}

fn is_date(text: &str) -> bool {
    text.len() == 10 && time::parse_timestamp(&format!("{text}T00:00:00Z")).is_ok()
}

fn is_datetime(text: &str) -> bool {
    time::parse_timestamp(&text.to_ascii_uppercase()).is_ok()
}

fn find(name: &str) -> Option<&'static Format> {
    FORMATS.iter().find(|format| format.name == name)
}

/// The size of a format's pattern.
pub(super) fn pattern_size(name: &str) -> u64 {
    find(name).map_or(0, |format| format.pattern_size)
}

pub(super) fn call(function: &str, args: &[Value]) -> Option<Outcome> {
    Some(Ok(match (function, args) {
        ("format.named", [Value::String(name)]) => {
            find(name).map_or(Value::Optional(None), |format| Value::some(Value::Format(format.name)))
        }
        ("validate", [Value::Format(name), Value::String(text)]) => {
            let messages = find(name).map(|format| (format.check)(text)).unwrap_or_default();
            if messages.is_empty() {
                Value::Optional(None)
            } else {
                Value::some(Value::list(messages.iter().map(Value::string).collect()))
            }
        }
        (_, []) => Value::Format(find(function.strip_prefix("format.")?)?.name),
        _ => return None,
    }))
}
