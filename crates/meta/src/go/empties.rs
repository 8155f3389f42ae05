//! Empty lists and maps of a body. Go keeps them apart from absent ones, and messages show which it was; the
//! typed objects do not.

use std::fmt::Write as _;
use std::ops::Range;

use serde_json::Value;

use crate::field::ErrorList;

/// One step of the way to a value.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Field(String),
    Item(usize),
}

/// Where a body has empty lists and maps.
#[derive(Clone, Debug, Default)]
pub struct Empties(Vec<(Vec<Step>, bool)>);

impl Empties {
    /// Those of a value.
    pub fn of(value: &Value) -> Self {
        let mut found = Vec::new();
        collect(value, &mut Vec::new(), &mut found);
        Self(found)
    }

    /// Puts the empty lists back into a value in which `null` stands in their place.
    pub fn fill(&self, value: &mut Value) {
        for (way, list) in self.0.iter().filter(|(_, list)| *list) {
            let place = way.iter().try_fold(&mut *value, |value, step| match step {
                Step::Field(name) => value.get_mut(name),
                Step::Item(index) => value.get_mut(index),
            });
            if let Some(place) = place.filter(|place| *list && place.is_null()) {
                *place = Value::Array(Vec::new());
            }
        }
    }

    /// Makes messages about values show them as they were sent.
    pub fn show(&self, errs: &mut ErrorList) {
        for (way, list) in &self.0 {
            for error in errs.iter_mut() {
                let Some(shown) = error.value.as_mut().filter(|shown| shown.contains("null")) else {
                    continue;
                };
                let Some(rest) = behind(way, &error.path) else { continue };
                if let Some(place) = find(shown, rest)
                    && &shown[place.clone()] == "null"
                {
                    shown.replace_range(place, if *list { "[]" } else { "{}" });
                }
            }
        }
    }
}

fn collect(value: &Value, way: &mut Vec<Step>, found: &mut Vec<(Vec<Step>, bool)>) {
    match value {
        Value::Array(items) if items.is_empty() => found.push((way.clone(), true)),
        Value::Object(map) if map.is_empty() => found.push((way.clone(), false)),
        Value::Array(items) => items.iter().enumerate().for_each(|(i, item)| {
            way.push(Step::Item(i));
            collect(item, way, found);
            way.pop();
        }),
        Value::Object(map) => map.iter().for_each(|(name, item)| {
            way.push(Step::Field(name.clone()));
            collect(item, way, found);
            way.pop();
        }),
        _ => {}
    }
}

/// The steps behind the place that a message names. Some of upstream's paths begin below the root.
fn behind<'w>(way: &'w [Step], path: &str) -> Option<&'w [Step]> {
    (0..way.len()).find_map(|from| {
        let mut text = String::new();
        for (i, step) in way.iter().enumerate().skip(from) {
            match step {
                Step::Field(name) if text.is_empty() => text.push_str(name),
                Step::Field(name) => drop(write!(text, ".{name}")),
                Step::Item(index) => drop(write!(text, "[{index}]")),
            }
            if text == path {
                return way.get(i + 1..);
            }
        }
        None
    })
}

/// The place of a value in compact JSON; names count without regard to case, as Go's own differ in it.
fn find(json: &str, way: &[Step]) -> Option<Range<usize>> {
    let bytes = json.as_bytes();
    let mut at = 0;
    for step in way {
        let open = *bytes.get(at)?;
        at += 1;
        for index in 0.. {
            let here = match (step, open) {
                (Step::Item(wanted), b'[') => index == *wanted,
                (Step::Field(wanted), b'{') => {
                    let end = value_end(bytes, at)?;
                    let name = json.get(at..end)?.trim_matches('"');
                    at = end + 1;
                    name.eq_ignore_ascii_case(wanted)
                }
                _ => return None,
            };
            if here {
                break;
            }
            at = value_end(bytes, at)?;
            if bytes.get(at) != Some(&b',') {
                return None;
            }
            at += 1;
        }
    }
    Some(at..value_end(bytes, at)?)
}

/// The end of the value that begins at `at`.
fn value_end(json: &[u8], mut at: usize) -> Option<usize> {
    let (mut depth, mut quoted) = (0_usize, false);
    let begin = at;
    loop {
        let byte = *json.get(at).or((depth == 0 && !quoted && at > begin).then_some(&b','))?;
        match byte {
            b'\\' if quoted => at += 1,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' | b'[' => depth += 1,
            b',' | b':' | b'}' | b']' if depth == 0 => return Some(at),
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::field::{Error, ErrorKind};

    fn shown(body: &Value, path: &str, value: &str) -> String {
        let mut errs = ErrorList::new();
        let (value, detail) = (Some(value.to_owned()), String::new());
        errs.push(Error { kind: ErrorKind::Invalid, path: path.to_owned(), value, detail });
        Empties::of(body).show(&mut errs);
        errs.iter().next().and_then(|e| e.value.clone()).unwrap()
    }

    #[test]
    fn messages_show_empty_values_as_they_were_sent() {
        let body = json!({ "spec": { "labels": {}, "rules": [{ "a": 1 }, { "onPods": [], "b": {} }] } });
        assert_eq!(shown(&body, "spec.labels", "null"), "{}");
        assert_eq!(shown(&body, "spec.rules[1].onPods", "null"), "[]");
        let text =
            r#"{"Rules":[{"A":"x,\"]","OnPods":null},{"OnPods":null,"C":null,"B":null}],"Labels":null}"#;
        let told = r#"{"Rules":[{"A":"x,\"]","OnPods":null},{"OnPods":[],"C":null,"B":{}}],"Labels":{}}"#;
        assert_eq!(shown(&body, "spec", text), told);
        assert_eq!(shown(&body, "rules", r#"[null,{"OnPods":null}]"#), r#"[null,{"OnPods":[]}]"#);
        assert_eq!(shown(&body, "spec.other", "null"), "null");
        assert_eq!(shown(&body, "spec.labels", "\"null"), "\"null");
    }

    #[test]
    fn only_lists_that_were_sent_are_put_back() {
        let body = json!({ "spec": { "a": [], "b": {}, "c": [{ "d": [] }] } });
        let mut value = json!({ "spec": { "a": null, "b": null, "c": [{ "d": null }], "e": null } });
        Empties::of(&body).fill(&mut value);
        assert_eq!(value, json!({ "spec": { "a": [], "b": null, "c": [{ "d": [] }], "e": null } }));
    }
}
