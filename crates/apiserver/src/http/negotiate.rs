//! Content negotiation: which encoding a client wants, and which it sends.

use coracle_meta::{Reason, Status};
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};
use serde_json::json;

/// Serialization of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// `application/json`.
    Json,
    /// `application/yaml`.
    Yaml,
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
}

/// Shape of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// The object as it is.
    Object,
    /// `as=Table`.
    Table,
    /// `as=PartialObjectMetadata`.
    Partial,
    /// `as=PartialObjectMetadataList`.
    PartialList,
}

/// What a response shall look like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// Serialization.
    pub(crate) format: Format,
    /// Shape.
    pub(crate) shape: Shape,
    /// `v1` or `v1beta1`: the version of `meta.k8s.io` for shapes.
    pub(crate) version: &'static str,
    /// Indented.
    pub(crate) pretty: bool,
}

impl Wanted {
    /// Plain JSON.
    pub(crate) const JSON: Self =
        Self { format: Format::Json, shape: Shape::Object, version: "v1", pretty: false };
}

/// One clause of an Accept header.
struct Clause<'a> {
    mime: &'a str,
    params: Vec<(&'a str, &'a str)>,
    quality: f32,
}

fn clauses(accept: &str) -> Vec<Clause<'_>> {
    let mut out: Vec<Clause<'_>> = accept
        .split(',')
        .filter_map(|part| {
            let mut pieces = part.split(';').map(str::trim);
            let mime = pieces.next().filter(|m| !m.is_empty())?;
            let params: Vec<_> =
                pieces.filter_map(|p| p.split_once('=')).map(|(k, v)| (k.trim(), v.trim())).collect();
            let quality = params.iter().find(|(k, _)| *k == "q").and_then(|(_, v)| v.parse().ok());
            Some(Clause { mime, params, quality: quality.unwrap_or(1.0) })
        })
        .collect();
    out.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    out
}

/// What an answer can look like beside JSON and YAML.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Able {
    /// The request may also be a watch.
    pub(crate) list: bool,
    /// The kind has a protobuf form.
    pub(crate) protobuf: bool,
    /// The kind has columns: what is stored or listed has, a review or a token has none.
    pub(crate) table: bool,
}

/// Reads the Accept header.
///
/// # Errors
/// 406 with upstream's texts.
pub(crate) fn wanted(headers: &HeaderMap, able: Able) -> Result<Wanted, Status> {
    let Some(accept) = accept(headers) else { return Ok(Wanted::JSON) };
    if accept == "application/json" {
        return Ok(Wanted::JSON);
    }
    let mut known = false;
    for clause in &clauses(accept) {
        let Some(format) = clause.format() else { continue };
        known = true;
        let Some((shape, version)) = shape(&clause.params) else { continue };
        // Tables have no protobuf form, and neither have custom resources.
        let possible = match (format, shape) {
            (Format::Protobuf, Shape::Table) => false,
            (_, Shape::Table) => able.table,
            (Format::Protobuf, Shape::Object) => able.protobuf,
            _ => true,
        };
        if possible {
            let pretty = clause.params.iter().any(|(k, v)| *k == "pretty" && (*v == "1" || *v == "true"));
            return Ok(Wanted { format, shape, version, pretty });
        }
    }
    if known { Err(Status::not_acceptable(ACCEPTED)) } else { Err(no_representation(able.list)) }
}

/// The format of documents and failures, which have one shape only; JSON where none fits.
pub(crate) fn document_format(headers: &HeaderMap) -> Format {
    let Some(accept) = accept(headers).filter(|a| *a != "application/json") else { return Format::Json };
    let clauses = clauses(accept);
    let plain = |c: &&Clause<'_>| !c.params.iter().any(|(k, _)| matches!(*k, "as" | "g" | "v"));
    clauses.iter().filter(plain).find_map(Clause::format).unwrap_or(Format::Json)
}

fn accept(headers: &HeaderMap) -> Option<&str> {
    headers.get(ACCEPT).and_then(|v| v.to_str().ok()).filter(|v| !v.trim().is_empty())
}

impl Clause<'_> {
    fn format(&self) -> Option<Format> {
        match self.mime {
            "application/json" | "*/*" => Some(Format::Json),
            "application/yaml" => Some(Format::Yaml),
            "application/vnd.kubernetes.protobuf" => Some(Format::Protobuf),
            _ => None,
        }
    }
}

/// 406 for a watch in a format that is not a stream.
pub(crate) fn no_stream() -> Status {
    Status::not_acceptable("application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch")
}

const ACCEPTED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// The shape that `as`, `g` and `v` ask for; `None` when there is no such shape.
fn shape(params: &[(&str, &str)]) -> Option<(Shape, &'static str)> {
    let get = |key: &str| params.iter().find(|(k, _)| *k == key).map_or("", |(_, v)| *v);
    let (kind, group, version) = (get("as"), get("g"), get("v"));
    if kind.is_empty() && group.is_empty() && version.is_empty() {
        return Some((Shape::Object, "v1"));
    }
    let version = match (group, version) {
        ("meta.k8s.io", "v1") => "v1",
        ("meta.k8s.io", "v1beta1") => "v1beta1",
        _ => return None,
    };
    match kind {
        "Table" => Some((Shape::Table, version)),
        "PartialObjectMetadata" => Some((Shape::Partial, version)),
        "PartialObjectMetadataList" => Some((Shape::PartialList, version)),
        _ => None,
    }
}

/// 406 when no clause names a type that is served.
fn no_representation(list: bool) -> Status {
    let mut message = format!("406: Not Acceptable\n\nAvailable representations: {ACCEPTED}");
    if list {
        message.push_str(", application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch");
    }
    Status::new(406, Reason::NotAcceptable, message, Some(json!({})))
}

/// Format of a request body.
///
/// # Errors
/// 415 for what is neither JSON nor YAML.
pub(crate) fn body_format(headers: &HeaderMap) -> Result<Format, Status> {
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(Format::Json) };
    let text = value.to_str().unwrap_or("bogus");
    let (mime, params) = text.split_once(';').map_or((text, None), |(m, p)| (m, Some(p)));
    let malformed = params.is_some_and(|p| !p.trim().is_empty() && !p.contains('='));
    match mime.trim() {
        _ if malformed => Err(unsupported()),
        "" | "application/json" => Ok(Format::Json),
        "application/yaml" => Ok(Format::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Format::Protobuf),
        _ => Err(unsupported()),
    }
}

/// The 415 of a body in an unknown format.
pub(crate) fn unsupported() -> Status {
    let why = format!(
        "the body of the request was in an unknown format - accepted media types include: {ACCEPTED}"
    );
    Status::unsupported_media_type(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(accept: &str, protobuf: bool, want: Option<(Format, Shape)>) {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        let able = Able { list: false, protobuf, table: true };
        assert_eq!(wanted(&headers, able).ok().map(|w| (w.format, w.shape)), want);
    }

    #[test]
    fn first_clause_that_can_be_served_decides() {
        let table = "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io";
        check(
            "application/vnd.kubernetes.protobuf,application/json",
            true,
            Some((Format::Protobuf, Shape::Object)),
        );
        check(
            "application/vnd.kubernetes.protobuf,application/json",
            false,
            Some((Format::Json, Shape::Object)),
        );
        check("application/vnd.kubernetes.protobuf", false, None);
        check(table, true, None);
        check(&format!("{table},application/json"), true, Some((Format::Json, Shape::Object)));
        let partial = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
        check(partial, false, Some((Format::Protobuf, Shape::Partial)));
        check("application/json;q=0.1, application/yaml", true, Some((Format::Yaml, Shape::Object)));
    }

    #[test]
    fn what_has_no_columns_is_no_table() {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, "application/json;as=Table;v=v1;g=meta.k8s.io".parse().unwrap());
        let review = Able { list: false, protobuf: true, table: false };
        assert_eq!(wanted(&headers, review).unwrap_err().code(), 406);
        headers.insert(ACCEPT, "application/json;as=Table;v=v1;g=meta.k8s.io,*/*".parse().unwrap());
        assert_eq!(wanted(&headers, review).unwrap().shape, Shape::Object);
    }

    #[test]
    fn failures_are_written_in_the_first_plain_format() {
        let mut headers = HeaderMap::new();
        let accept = "application/json;as=Table;v=v1;g=meta.k8s.io, application/vnd.kubernetes.protobuf";
        headers.insert(ACCEPT, accept.parse().unwrap());
        assert_eq!(document_format(&headers), Format::Protobuf);
        headers.insert(ACCEPT, "text/html".parse().unwrap());
        assert_eq!(document_format(&headers), Format::Json);
    }
}
