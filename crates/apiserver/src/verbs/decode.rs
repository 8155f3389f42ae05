//! Bodies to objects: type check, unknown fields, typed decoding.

use bytes::Bytes;
use coracle_meta::field::ErrorList;
use coracle_meta::go::{self, Empties};
use coracle_meta::{Object, Status, object_meta};
use coracle_resources::def::ResourceDef;
use serde_json::Value;

use super::{Input, beyond};
use crate::codec;
use crate::registry::Resource;
use crate::server::Server;

/// A decoded body.
pub(crate) struct Decoded {
    /// The object.
    pub(crate) obj: Box<dyn Object>,
    /// Unknown fields, when the client wants to be warned.
    pub(crate) warnings: Vec<String>,
    /// Lists and maps that were sent empty.
    pub(crate) empties: Empties,
}

impl Decoded {
    /// An object that nobody sent as text.
    pub(crate) fn of(obj: Box<dyn Object>) -> Self {
        Self { obj, warnings: Vec::new(), empties: Empties::default() }
    }
}

impl Server {
    /// Decodes a body of the resource's own kind.
    ///
    /// # Errors
    /// 400 with upstream's texts.
    pub(crate) fn decode(
        &self,
        resource: &Resource,
        input: Input,
        validation: &str,
    ) -> Result<Decoded, Status> {
        let value = match input {
            // Of a version that is not stored: to be converted.
            Input::Object(obj) if resource.view().is_some() => obj.to_value(),
            Input::Object(obj) => return Ok(Decoded::of(obj.clone_object())),
            Input::Json(value) => value,
            Input::Yaml(value, doubled) => {
                let value = check_type(self, resource, value)?;
                let mut strict = Vec::new();
                if validation != "Ignore" {
                    strict.extend(doubled);
                    strict.extend(self.fields.unknown(resource.def, &value));
                }
                return typed(resource, value, strict, validation);
            }
            Input::Text(text) => {
                if let Some(mut obj) = resource.def.strategy.decode_plain(&text) {
                    let warnings = object_meta::dedup_owners(obj.meta_mut()).into_iter().collect();
                    return Ok(Decoded { warnings, ..Decoded::of(obj) });
                }
                let (text, value) = parse_lenient(resource.def, text)?;
                match resource.custom() {
                    Some(_) => check_custom(resource, &value, &text)?,
                    None => check_shape(&value, &text, resource.def.kind)?,
                }
                let value = check_type(self, resource, value)?;
                let strict = if validation == "Ignore" {
                    Vec::new()
                } else {
                    self.fields.strict_errors(resource.def, &text)
                };
                return typed(resource, value, strict, validation).map_err(|e| explain(resource, &text, e));
            }
        };
        self.decode_value(resource, value, validation)
    }

    /// Decodes parsed JSON of the resource's own kind.
    ///
    /// # Errors
    /// 400 with upstream's texts.
    pub(crate) fn decode_value(
        &self,
        resource: &Resource,
        value: Value,
        validation: &str,
    ) -> Result<Decoded, Status> {
        if resource.custom().is_some() {
            check_custom(resource, &value, value.to_string().as_bytes())?;
        }
        let value = check_type(self, resource, value)?;
        let strict =
            if validation == "Ignore" { Vec::new() } else { self.fields.unknown(resource.def, &value) };
        typed(resource, value, strict, validation)
    }
}

/// Decodes a checked value; `strict` are the messages of the strict decoder.
fn typed(
    resource: &Resource,
    mut value: Value,
    strict: Vec<String>,
    validation: &str,
) -> Result<Decoded, Status> {
    let empties = Empties::of(&value);
    crate::fields::tidy(resource.def, &mut value);
    let forget =
        value.pointer("/metadata/managedFields").is_some_and(|m| m.as_array().is_some_and(Vec::is_empty));
    let mut obj = resource.def.strategy.decode(value)?;
    if validation == "Strict" && !strict.is_empty() {
        return Err(unusable(resource.def, &format!("strict decoding error: {}", strict.join(", "))));
    }
    if forget {
        // An empty list says something else than none; see `Fields::track`.
        obj.meta_mut().managed_fields = Some(Vec::new());
    }
    let mut warnings = strict_warnings(strict);
    warnings.extend(object_meta::dedup_owners(obj.meta_mut()));
    Ok(Decoded { obj, warnings, empties })
}

fn unusable(def: &ResourceDef, why: &str) -> Status {
    let (kind, version) = (def.kind, def.version);
    Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}"))
}

/// The refusal of a body in the words of Go's decoder, which go by the text.
fn explain(resource: &Resource, text: &[u8], refusal: Status) -> Status {
    let def = resource.def;
    let name = go::type_name(def.group, def.version, def.kind);
    go::type_error(&name, text).map_or(refusal, |why| unusable(def, &why))
}

/// As [`parse`], but reads bytes that are not UTF-8, lone surrogates and deep unknown fields as Go does. Yields
/// the text so read, too.
fn parse_lenient(def: &ResourceDef, text: Bytes) -> Result<(Bytes, Value), Status> {
    let refusal = match parse(&text, def.kind) {
        Ok(value) => return Ok((text, value)),
        Err(refusal) => refusal,
    };
    if let Some(quoted) = beyond::quoted(&text) {
        let why = match def.strategy.custom() {
            Some(_) => beyond::first(&text).map(beyond::refusal),
            None => go::type_error(&go::type_name(def.group, def.version, def.kind), &text),
        };
        return match why {
            Some(why) => Err(unusable(def, &why)),
            // Nothing wants a number there: an amount, or a field that there is not.
            None => Ok((quoted.clone().into(), parse(&quoted, def.kind)?)),
        };
    }
    let legible = go::legible(&text);
    let shallow = match def.strategy.custom() {
        None => {
            let name = go::type_name(def.group, def.version, def.kind);
            go::without_unknown(&name, legible.as_deref().unwrap_or(&text))
        }
        Some(_) => None,
    };
    let text: Bytes = shallow.or(legible).ok_or(refusal)?.into();
    let value = parse(&text, def.kind)?;
    Ok((text, value))
}

/// Parses JSON text of a body meant to be a `kind`.
///
/// # Errors
/// 400: `the object provided is unrecognized …`.
pub(crate) fn parse(text: &[u8], kind: &str) -> Result<Value, Status> {
    match serde_json::from_slice::<Value>(text) {
        Ok(value) => match shape_fault(&value) {
            Some(why) => Err(unrecognized(&why, text, kind)),
            None => Ok(value),
        },
        Err(e) => Err(unrecognized(&syntax_error(text, &e), text, kind)),
    }
}

/// Refuses what says nothing of its version and kind, or no texts: the body that stands there as `text`.
///
/// # Errors
/// 400: `the object provided is unrecognized …`.
pub(crate) fn check_shape(value: &Value, text: &[u8], kind: &str) -> Result<(), Status> {
    let why = match (head_fault(value), version_fault(value)) {
        (Some(why), _) => return Err(unrecognized(&why, text, kind)),
        (None, Some(why)) => why,
        (None, None) => return Ok(()),
    };
    let shown = excerpt(text);
    Err(Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): {why} ({shown})"
    )))
}

fn unrecognized(why: &str, text: &[u8], kind: &str) -> Status {
    let shown = excerpt(text);
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): \
         {NO_HEAD}{why} ({shown})"
    ))
}

/// What stands before the reason why Go cannot read version and kind of a document.
pub(crate) const NO_HEAD: &str = "couldn't get version/kind; json parse error: ";

/// Why a document's version is none.
pub(crate) fn version_fault(value: &Value) -> Option<String> {
    let version = value.get("apiVersion")?.as_str()?;
    (version.matches('/').count() > 1).then(|| format!("unexpected GroupVersion string: {version}"))
}

/// Why Go cannot read version and kind of a document.
pub(crate) fn head_fault(value: &Value) -> Option<String> {
    let Value::Object(map) = value else { return shape_fault(value) };
    let wrong = |name: &&str| map.get(*name).is_some_and(|v| !v.is_string() && !v.is_null());
    let name = ["apiVersion", "kind"].into_iter().find(wrong)?;
    let what = json_type(&map[name]);
    Some(format!("json: cannot unmarshal {what} into Go struct field .{name} of type string"))
}

/// Why a document is none.
fn shape_fault(value: &Value) -> Option<String> {
    (!value.is_object() && !value.is_null()).then(|| {
        format!(
            "json: cannot unmarshal {} into Go value of type struct {{ APIVersion string \
             \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
            json_type(value)
        )
    })
}

/// What strict readers say, as warnings: of YAML one a line.
pub(crate) fn strict_warnings(strict: Vec<String>) -> Vec<String> {
    let lines = |why: String| -> Vec<String> {
        let of_yaml = why.strip_prefix("error converting YAML to JSON: ").unwrap_or(&why);
        match of_yaml.strip_prefix("yaml: unmarshal errors:\n") {
            Some(lines) => lines.lines().map(|line| line.trim().to_owned()).collect(),
            None => vec![why],
        }
    };
    strict.into_iter().flat_map(lines).collect()
}

/// Go's name of the type of a JSON value.
fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Object(_) => "object",
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
    }
}

/// The error of Go's scanner for the place where ours stopped.
pub(crate) fn syntax_error(text: &[u8], e: &serde_json::Error) -> String {
    if e.is_eof() || text.is_empty() {
        return "unexpected end of JSON input".into();
    }
    let at = offset_of(text, e).min(text.len().saturating_sub(1));
    for (literal, rest) in [("null", "ull"), ("true", "rue"), ("false", "alse")] {
        for (i, want) in rest.char_indices() {
            let start = at.wrapping_sub(i + 1);
            if text.get(start..at).is_some_and(|t| t == &literal.as_bytes()[..=i]) && text[at] != want as u8 {
                let got = quote_char(text[at]);
                return format!("invalid character {got} in literal {literal} (expecting '{want}')");
            }
        }
    }
    let got = quote_char(text[at]);
    let message = e.to_string();
    if let Some(number) = beyond::first(text).filter(|_| message.starts_with("number out of range")) {
        beyond::refusal(number)
    } else if message.starts_with("recursion limit") {
        format!("invalid character {got} exceeded max depth")
    } else if message.starts_with("trailing characters") {
        format!("invalid character {got} after top-level value")
    } else if message.starts_with("invalid number") {
        let before = |back: usize| at.checked_sub(back).map_or(0, |i| text[i]);
        match (before(1), before(2)) {
            (b'e' | b'E', _) | (b'-' | b'+', b'e' | b'E') => {
                format!("invalid character {got} in exponent of numeric literal")
            }
            (b'.', _) => format!("invalid character {got} after decimal point in numeric literal"),
            _ => format!("invalid character {got} in numeric literal"),
        }
    } else if message.starts_with("key must be a string")
        || (message.starts_with("trailing comma") && text[at] == b'}')
    {
        format!("invalid character {got} looking for beginning of object key string")
    } else if message.starts_with("expected `:`") {
        format!("invalid character {got} after object key")
    } else if message.starts_with("expected `,` or `}`") {
        format!("invalid character {got} after object key:value pair")
    } else if message.starts_with("expected `,` or `]`") {
        format!("invalid character {got} after array element")
    } else {
        format!("invalid character {got} looking for beginning of value")
    }
}

fn offset_of(text: &[u8], e: &serde_json::Error) -> usize {
    let line_start: usize =
        text.split_inclusive(|b| *b == b'\n').take(e.line().saturating_sub(1)).map(<[u8]>::len).sum();
    line_start + e.column().saturating_sub(1)
}

fn quote_char(b: u8) -> String {
    match b {
        b'\'' => "'\\''".into(),
        b'\\' => "'\\\\'".into(),
        b'\n' => "'\\n'".into(),
        b'\t' => "'\\t'".into(),
        b'\r' => "'\\r'".into(),
        0..0x20 => format!("'\\x{b:02x}'"),
        _ => format!("'{}'", char::from(b)),
    }
}

/// A body as upstream's messages show it: as text when it looks like JSON, else in hex, cut after 30 bytes.
pub(crate) fn excerpt(text: &[u8]) -> String {
    const MAX: usize = 30;
    if text.is_empty() {
        return "<empty>".into();
    }
    let cut = |shown: String| if text.len() > MAX { format!("{shown} ...") } else { shown };
    let head = &text[..text.len().min(MAX)];
    if text.first() == Some(&b'{') && head.iter().all(|b| (0x20..0x7f).contains(b)) {
        return cut(String::from_utf8_lossy(head).into_owned());
    }
    cut(coracle_stdx::hex(head))
}

/// Checks that a body meant to be a custom resource says what it is.
pub(crate) fn check_custom(resource: &Resource, value: &Value, text: &[u8]) -> Result<(), Status> {
    if resource.custom().is_none() {
        return Ok(());
    }
    let said = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("");
    let (api_version, kind) = (said("apiVersion"), said("kind"));
    let (def, wanted) = (resource.def, codec::api_version(resource.def));
    if kind.is_empty() {
        let (of, shown) = (String::from_utf8_lossy(text), excerpt(text));
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): Object 'Kind' is missing in '{of}' ({shown})",
            def.kind
        )));
    }
    if api_version != wanted {
        return Err(Status::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({wanted})"
        )));
    }
    if kind != def.kind {
        let mut errs = ErrorList::new();
        errs.invalid("kind", kind, format!("must be {}", def.kind));
        let name = value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("");
        return Err(Status::invalid(def.group, kind, name, &errs));
    }
    Ok(())
}

/// What a body is expected to say of itself.
pub(crate) struct Wanted {
    /// Its kind.
    pub(crate) kind: &'static str,
    /// Its group and version.
    pub(crate) api_version: String,
    /// Versions of it that upstream knows although no resource has them.
    pub(crate) others: &'static [&'static str],
    /// Where upstream makes the registry of types that decodes it.
    pub(crate) scheme: &'static str,
    /// The package of upstream's type that it becomes.
    pub(crate) package: &'static str,
}

/// Checks (or fills in) `apiVersion` and `kind`.
fn check_type(server: &Server, resource: &Resource, mut value: Value) -> Result<Value, Status> {
    if value.is_null() {
        value = Value::Object(serde_json::Map::new());
    }
    let def = resource.def;
    let wanted = Wanted {
        kind: def.kind,
        api_version: codec::api_version(def),
        others: &[],
        scheme: scheme(def),
        package: crate::http::respond::go_package(resource),
    };
    check_head(server, &value, &wanted)?;
    if let Value::Object(map) = &mut value {
        map.insert("apiVersion".into(), wanted.api_version.into());
        map.insert("kind".into(), def.kind.into());
    }
    Ok(value)
}

/// Kinds of the core group that upstream knows, though they have no path of their own.
const OF_NO_PATH: [&str; 6] =
    ["List", "Status", "Binding", "PodStatusResult", "RangeAllocation", "SerializedReference"];

/// Checks `apiVersion` and `kind` where they are given.
///
/// # Errors
/// 400 with upstream's texts.
pub(crate) fn check_head(server: &Server, value: &Value, wanted: &Wanted) -> Result<(), Status> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("");
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let Wanted { kind: want, api_version: expected, others, scheme: place, package } = wanted;
    let unregistered = |kind: &str, of: &str| {
        let version = api_version.rsplit('/').next().unwrap_or("");
        format!(
            "{kind} in version {version:?} cannot be handled as a {want}: no kind {kind:?} is registered for version \
             {of:?} in scheme {place:?}"
        )
    };
    if !kind.is_empty() && kind != *want {
        let of = if api_version.is_empty() { expected.as_str() } else { api_version };
        let known = server.cache.registry.defs().iter().any(|d| {
            let same =
                (d.kind == kind || kind.strip_suffix("List") == Some(d.kind)) && codec::api_version(d) == of;
            same && d.strategy.custom().is_none() && scheme(d) == *place
        });
        let pathless = of == "v1" && *place == SCHEME && OF_NO_PATH.contains(&kind);
        if !known && !pathless {
            return Err(Status::bad_request(unregistered(kind, of)));
        }
        let version = of.rsplit('/').next().unwrap_or("");
        return Err(Status::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {want}: converting ({}.{kind}) to \
             ({package}.{want}): unknown conversion",
            go_package(of),
        )));
    }
    if !api_version.is_empty() && api_version != expected {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let is = |d: &ResourceDef| (d.group, d.version, d.kind) == (group, version, *want);
        let known = others.contains(&api_version) || coracle_resources::all().iter().any(|d| is(d));
        return Err(Status::bad_request(if known {
            format!(
                "the API version in the data ({api_version}) does not match the expected API version ({expected})"
            )
        } else {
            unregistered(want, api_version)
        }));
    }
    Ok(())
}

/// Where upstream makes the registry of types that decodes a kind; messages name it.
fn scheme(def: &ResourceDef) -> &'static str {
    match def.group {
        "apiregistration.k8s.io" => "k8s.io/kube-aggregator/pkg/apiserver/scheme/scheme.go:28",
        "apiextensions.k8s.io" => "k8s.io/apiextensions-apiserver/pkg/apiserver/apiserver.go:55",
        _ => SCHEME,
    }
}

/// Where upstream makes the registry of its own types.
pub(crate) const SCHEME: &str = "pkg/api/legacyscheme/scheme.go:30";

/// The Go package that holds a group's versioned types, as conversion errors print it.
fn go_package(api_version: &str) -> String {
    match api_version.split_once('/') {
        None => "v1".into(),
        Some((_, version)) => version.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, why: &str) {
        let e = serde_json::from_str::<Value>(text).expect_err("malformed");
        assert_eq!(syntax_error(text.as_bytes(), &e), format!("invalid character {why}"));
    }

    #[test]
    fn malformed_text_is_refused_in_the_words_of_go() {
        check("---", "'-' in numeric literal");
        check("- a", "' ' in numeric literal");
        check("[1.x]", "'x' after decimal point in numeric literal");
        check("[1ex]", "'x' in exponent of numeric literal");
        check("{\"a\":1,}", "'}' looking for beginning of object key string");
        check("[1,]", "']' looking for beginning of value");
        check("{a: b}", "'a' looking for beginning of object key string");
    }

    #[test]
    fn heads_that_go_cannot_read_are_told() {
        let json = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
        let number = "json: cannot unmarshal number into Go struct field .kind of type string";
        assert_eq!(head_fault(&json(r#"{"kind":5}"#)).as_deref(), Some(number));
        let slashes = "unexpected GroupVersion string: a/b/c";
        assert_eq!(version_fault(&json(r#"{"apiVersion":"a/b/c"}"#)).as_deref(), Some(slashes));
        assert_eq!(version_fault(&json(r#"{"apiVersion":"a/b"}"#)), None);
    }
}
