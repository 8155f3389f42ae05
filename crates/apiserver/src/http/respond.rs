//! Responses: objects, lists, Statuses, in the encoding that was negotiated.

use bytes::{BufMut, Bytes, BytesMut};
use coracle_meta::{Status, go};
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER,
    VARY,
};
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};

use super::body::{Body, GzipBody, ListBody, gzip};
use super::negotiate::{Format, Shape, Wanted};
use super::{table, yaml_write};
use crate::audit::Trail;
use crate::codec;
use crate::protobuf;
use crate::registry::Resource;
use crate::server::Server;
use crate::verbs::Outcome;
use crate::verbs::list::Page;

const WARNING: HeaderName = HeaderName::from_static("warning");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Kubernetes' protobuf.
pub(crate) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const NO_CACHE: HeaderValue = HeaderValue::from_static("no-cache, private");
/// Smaller responses are not compressed.
const GZIP_FROM: u64 = 128 * 1024;

/// How to answer one request.
pub(crate) struct Answer<'a> {
    pub(crate) server: &'a Server,
    pub(crate) wanted: Wanted,
    /// `includeObject` of tables.
    pub(crate) include_object: &'a str,
    pub(crate) gzip: bool,
    /// What the audit log notes of the request.
    pub(crate) trail: Option<&'a Trail>,
}

/// Whether the client takes gzip.
pub(crate) fn takes_gzip(headers: &HeaderMap) -> bool {
    let value = headers.get(ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or("");
    value.split(',').any(|e| e.trim().starts_with("gzip"))
}

/// A JSON response of given bytes.
pub(crate) fn json_bytes(code: StatusCode, bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::Full(bytes));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(CACHE_CONTROL, NO_CACHE);
    response
}

/// Marks a response whose JSON the client may want in another format.
#[derive(Clone, Copy, Debug)]
struct Document;

/// A document: JSON until [`negotiated`] finds that the client wants another format.
pub(crate) fn json_value(code: StatusCode, value: &Value) -> Response<Body> {
    let mut response = json_bytes(code, line_of(value));
    response.extensions_mut().insert(Document);
    response
}

/// A document on one line, with its end.
fn line_of(document: &Value) -> Bytes {
    let mut text = go::encode(document, go::Style::Compact);
    text.push(b'\n');
    text.into()
}

/// The response in the format that the client asked for, where it is a document with a kind.
pub(crate) fn negotiated(mut response: Response<Body>, format: Format) -> Response<Body> {
    if response.extensions_mut().remove::<Document>().is_none() || format == Format::Json {
        return response;
    }
    let Body::Full(bytes) = response.body() else { return response };
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return response };
    let encoded = match format {
        Format::Yaml if value.get("kind").is_some() => yaml_write::to_string(&value).ok().map(Bytes::from),
        Format::Protobuf => protobuf::encode(&value).map(Bytes::from),
        _ => None,
    };
    let Some(encoded) = encoded else { return response };
    *response.body_mut() = Body::Full(encoded);
    // Discovery says in the type which version of it this is.
    let json = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    let params = json.strip_prefix("application/json").unwrap_or("");
    let mime = if format == Format::Yaml { "application/yaml" } else { PROTOBUF };
    if let Ok(mime) = HeaderValue::from_str(&format!("{mime}{params}")) {
        response.headers_mut().insert(CONTENT_TYPE, mime);
    }
    response
}

/// A plain text response.
pub(crate) fn text(code: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::Full(text.into()));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    response
}

/// `404 page not found`, as upstream's mux answers.
pub(crate) fn not_found_page() -> Response<Body> {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

/// A failure.
pub(crate) fn status(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut value = status.to_value();
    // A continue token belongs to the metadata of the Status.
    let token = value.pointer_mut("/details/continue").map(Value::take);
    if let Some(token) = token {
        value["metadata"]["continue"] = token;
        if let Some(map) = value.as_object_mut() {
            map.remove("details");
        }
    }
    let retry = value.pointer("/details/retryAfterSeconds").and_then(Value::as_u64);
    let mut response = json_bytes(code, line_of(&value));
    response.extensions_mut().insert(Document);
    if let Some(seconds) = retry {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// 405 for a path that is served with other methods.
pub(crate) fn method_not_allowed() -> Status {
    let message = "the server does not allow this method on the requested resource";
    Status::new(405, coracle_meta::Reason::MethodNotAllowed, message, Some(json!({})))
}

/// Adds `Warning` headers.
pub(crate) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    if warnings.is_empty() {
        return;
    }
    let headers = response.headers_mut();
    let said = headers.get_all(WARNING).iter().filter_map(|v| v.to_str().ok());
    let said = said.filter_map(|v| v.strip_prefix("299 - \"")?.strip_suffix('"'));
    let said = said.map(|v| v.replace("\\\"", "\"").replace("\\\\", "\\"));
    let all: Vec<String> = said.chain(warnings.iter().cloned()).collect();
    headers.remove(WARNING);
    for warning in within_limits(&all) {
        let escaped = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{escaped}\"").as_bytes()) {
            headers.append(WARNING, value);
        }
    }
}

/// Characters of all warnings together, and of each when they are more.
const ALL_WARNINGS: usize = 4 * 1024;
const ONE_WARNING: usize = 256;

/// The warnings that are sent: each once; when they are too long together, all are shortened, and what comes behind
/// the one that was too much is left out.
fn within_limits(warnings: &[String]) -> Vec<String> {
    let (mut out, mut seen): (Vec<String>, Vec<&String>) = (Vec::new(), Vec::new());
    let (mut written, mut truncating) = (0, false);
    let cut = |text: &String| text.chars().take(ONE_WARNING).collect::<String>();
    for warning in warnings.iter().filter(|warning| !warning.is_empty()) {
        if truncating && written >= ALL_WARNINGS {
            break;
        }
        if seen.contains(&warning) {
            continue;
        }
        seen.push(warning);
        let length = warning.chars().count();
        if truncating {
            out.push(cut(warning));
            written += length.min(ONE_WARNING);
        } else if written + length <= ALL_WARNINGS {
            out.push(warning.clone());
            written += length;
        } else {
            truncating = true;
            out = seen.iter().map(|warning| cut(warning)).collect();
            written = out.iter().map(|warning| warning.chars().count()).sum();
        }
    }
    out
}

impl Answer<'_> {
    /// Answers with one object.
    pub(crate) fn object(&self, resource: &Resource, outcome: &Outcome) -> Result<Response<Body>, Status> {
        let code = if outcome.created { StatusCode::CREATED } else { StatusCode::OK };
        let entry = self.server.fields.show(resource, &outcome.entry)?;
        let plain = self.wanted.shape == Shape::Object && self.wanted.format == Format::Json;
        let mut response = if plain && !self.wanted.pretty {
            let text = entry.encoded();
            let mut line = BytesMut::with_capacity(text.len() + 1);
            line.put_slice(&text);
            line.put_u8(b'\n');
            json_bytes(code, line.freeze())
        } else {
            let value = match self.wanted.shape {
                Shape::Object => serde_json::from_slice(&entry.encoded()).map_err(Status::internal)?,
                Shape::Table => table::of_object(self, resource, &entry)?,
                Shape::Partial => table::partial(&entry, self.wanted.version)?,
                Shape::PartialList => {
                    let kind = resource.def.kind;
                    let why = format!(
                        "you requested PartialObjectMetadataList, but the requested object is not a list \
                         (*{}.{kind})",
                        go_package(resource)
                    );
                    return Err(Status::new(406, coracle_meta::Reason::NotAcceptable, why, None));
                }
            };
            self.value(code, &value)?
        };
        self.compress(&mut response);
        warn(&mut response, &outcome.warnings);
        Ok(response)
    }

    /// Answers with a list.
    pub(crate) fn list(&self, resource: &Resource, page: Page) -> Result<Response<Body>, Status> {
        let page = self.server.fields.show_page(resource, page)?;
        if self.wanted.shape == Shape::Object && self.wanted.format == Format::Json && !self.wanted.pretty {
            return Ok(self.list_bytes(resource, page));
        }
        let value = match self.wanted.shape {
            Shape::Object => list_value(resource, &page)?,
            Shape::Table => table::of_list(self, resource, &page)?,
            Shape::PartialList => table::partial_list(&page, self.wanted.version)?,
            Shape::Partial => {
                let kind = resource.def.kind;
                let why = format!(
                    "you requested PartialObjectMetadata, but the requested object is a list (*{}.{kind}List)",
                    go_package(resource)
                );
                return Err(Status::new(406, coracle_meta::Reason::NotAcceptable, why, None));
            }
        };
        let mut response = self.value(StatusCode::OK, &value)?;
        self.compress(&mut response);
        Ok(response)
    }

    fn list_bytes(&self, resource: &Resource, page: Page) -> Response<Body> {
        if let Some(trail) = self.trail.filter(|trail| trail.wants_response())
            && let Ok(value) = list_value(resource, &page)
        {
            trail.response(value);
        }
        let meta = list_meta_of(resource, &page);
        let (version, kind) = (codec::api_version(resource.def), resource.def.kind);
        let (kind, skip) = match resource.custom() {
            // Items of custom resources say what they are.
            Some(custom) => (custom.current().list_kind.clone(), 1),
            None => (format!("{kind}List"), resource.head.len()),
        };
        // Lists of custom resources are maps, whose keys are sorted.
        let (head, tail) = if resource.custom().is_some() {
            let tail = format!("],\"kind\":\"{kind}\",\"metadata\":{meta}}}\n");
            (format!("{{\"apiVersion\":\"{version}\",\"items\":["), tail)
        } else {
            let head = format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{version}\"");
            (format!("{head},\"metadata\":{meta},\"items\":["), "]}\n".to_owned())
        };
        let body = ListBody::new(head.into(), page.entries, skip, tail.into());
        let compressed = self.gzip && body.len() >= GZIP_FROM;
        let mut response = json_bytes(StatusCode::OK, Bytes::new());
        *response.body_mut() = if compressed {
            response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding"));
            Body::Gzip(Box::new(GzipBody::new(body)))
        } else {
            Body::List(Box::new(body))
        };
        response
    }

    /// Answers with a JSON value in the wanted format.
    pub(crate) fn value(&self, code: StatusCode, value: &Value) -> Result<Response<Body>, Status> {
        if let Some(trail) = self.trail.filter(|trail| trail.wants_response()) {
            trail.response(value.clone());
        }
        let (bytes, mime) = match self.wanted.format {
            Format::Json if self.wanted.pretty => (go::encode(value, go::Style::Pretty).into(), JSON),
            Format::Json => (line_of(value), JSON),
            Format::Protobuf => {
                let bytes = protobuf::encode(value).ok_or_else(|| not_acceptable(value))?;
                (Bytes::from(bytes), HeaderValue::from_static(PROTOBUF))
            }
            Format::Yaml => {
                let text = yaml_write::to_string(value).map_err(|why| {
                    Status::new(500, coracle_meta::Reason::Unknown, format!("yaml: {why}"), None)
                })?;
                (text.into(), HeaderValue::from_static("application/yaml"))
            }
        };
        let mut response = json_bytes(code, bytes);
        response.headers_mut().insert(CONTENT_TYPE, mime);
        Ok(response)
    }

    fn compress(&self, response: &mut Response<Body>) {
        if !self.gzip {
            return;
        }
        if let Body::Full(bytes) = response.body()
            && bytes.len() as u64 >= GZIP_FROM
            && let Ok(small) = gzip(bytes)
        {
            *response.body_mut() = Body::Full(small);
            response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding"));
        }
    }
}

/// 406 for what has no protobuf form.
fn not_acceptable(value: &Value) -> Status {
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or("");
    let why = format!(
        "object *v1.{kind} does not implement the protobuf marshalling interface and cannot be encoded to a \
         protobuf message"
    );
    Status::new(406, coracle_meta::Reason::NotAcceptable, why, None)
}

/// `metadata` of a list.
pub(crate) fn list_meta(page: &Page) -> Value {
    let mut meta = json!({});
    if page.revision != 0 {
        meta["resourceVersion"] = page.revision.to_string().into();
    }
    if !page.continue_token.is_empty() {
        meta["continue"] = page.continue_token.clone().into();
        if let Some(remaining) = page.remaining {
            meta["remainingItemCount"] = remaining.into();
        }
    }
    meta
}

/// `metadata` of a list of objects; lists of custom resources always have a continue token.
fn list_meta_of(resource: &Resource, page: &Page) -> Value {
    let mut meta = list_meta(page);
    if resource.custom().is_some() && meta.get("continue").is_none() {
        meta["continue"] = "".into();
    }
    meta
}

fn list_value(resource: &Resource, page: &Page) -> Result<Value, Status> {
    let mut items = Vec::with_capacity(page.entries.len());
    for entry in &page.entries {
        let mut item: Value = serde_json::from_slice(&entry.encoded()).map_err(Status::internal)?;
        if let Some(map) = item.as_object_mut().filter(|_| resource.custom().is_none()) {
            map.remove("apiVersion");
            map.remove("kind");
        }
        items.push(item);
    }
    let kind = resource.custom().map(|c| c.current().list_kind.clone());
    Ok(json!({
        "kind": kind.unwrap_or_else(|| format!("{}List", resource.def.kind)),
        "apiVersion": codec::api_version(resource.def),
        "metadata": list_meta_of(resource, page),
        "items": items,
    }))
}

/// The Go package of a kind's internal type, as some messages print it.
pub(crate) fn go_package(resource: &Resource) -> &'static str {
    match resource.def.group {
        "" => "core",
        group => group.split('.').next().unwrap_or(group),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_has_the_order_and_escapes_of_go() {
        let status = json!({
            "apiVersion": "v1", "code": 409, "kind": "Status", "metadata": {}, "status": "Failure",
            "message": "a \"b\" <c> & d", "reason": "AlreadyExists",
            "details": { "causes": [{ "field": "f", "message": "m", "reason": "r" }], "kind": "k", "name": "n" },
        });
        let expected = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","#.to_owned()
            + r#""message":"a \"b\" \u003cc\u003e \u0026 d","reason":"AlreadyExists","#
            + r#""details":{"name":"n","kind":"k","causes":[{"reason":"r","message":"m","field":"f"}]},"code":409}"#
            + "\n";
        assert_eq!(String::from_utf8_lossy(&line_of(&status)), expected);
    }

    #[test]
    fn warnings_end_where_they_are_too_long_together() {
        let of = |length: usize, count: usize| -> Vec<String> {
            (0..count).map(|i| format!("{i:-<length$}")).collect()
        };
        assert_eq!(within_limits(&of(114, 780)).len(), 36);
        let long = within_limits(&of(2000, 30));
        assert_eq!((long.len(), long[0].len()), (16, ONE_WARNING));
        assert_eq!(within_limits(&["a".into(), "a".into(), String::new()]), ["a"]);
        assert_eq!(within_limits(&long), long, "said once more they stay");
    }

    #[test]
    fn warnings_are_quoted_and_said_once() {
        let mut response = text(StatusCode::OK, "");
        warn(&mut response, &["unknown field \"a\\b\"".into()]);
        warn(&mut response, &["unknown field \"a\\b\"".into(), "x".into()]);
        let said: Vec<_> = response.headers().get_all(WARNING).iter().collect();
        assert_eq!(said, ["299 - \"unknown field \\\"a\\\\b\\\"\"", "299 - \"x\""]);
    }
}
