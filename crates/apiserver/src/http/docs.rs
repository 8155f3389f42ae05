//! `/openapi/v2` and `/openapi/v3`: built when first asked for, kept compressed.

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::Arc;

use bytes::Bytes;
use coracle_resources::def::ResourceDef;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, LOCATION, VARY,
};
use http::{HeaderMap, Method, Response, StatusCode};
use parking_lot::Mutex;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::body::{Body, gzip};
use super::query::Query;
use super::respond::{self, json_bytes, method_not_allowed, takes_gzip};
use crate::aggregation;
use crate::openapi;
use crate::server::Server;

/// A document.
struct Doc {
    gzip: Bytes,
    etag: String,
    mime: &'static str,
}

/// The encodings of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Json,
    /// Of a `v2` or `v3` document.
    Protobuf(&'static str),
}

impl Encoding {
    /// What the Accept header asks for; `None` when that is not served.
    fn wanted(headers: &HeaderMap, version: &'static str) -> Option<Self> {
        let accept = headers.get(ACCEPT).and_then(|v| v.to_str().ok()).filter(|v| !v.trim().is_empty());
        let Some(accept) = accept else { return Some(Self::Json) };
        accept.split(',').find_map(|clause| {
            let mime = clause.split(';').next().unwrap_or("").trim();
            let spec = mime.strip_prefix("application/com.github.proto-openapi.spec.");
            match (mime, spec.and_then(|s| s.strip_prefix(version))) {
                ("*/*" | "application/*" | "application/json", _) => Some(Self::Json),
                (_, Some("@v1.0+protobuf" | ".v1.0+protobuf")) => Some(Self::Protobuf(version)),
                _ => None,
            }
        })
    }

    fn encode(self, document: &Value) -> Vec<u8> {
        match self {
            Self::Json => document.to_string().into_bytes(),
            Self::Protobuf(version) => openapi::to_protobuf(document, version),
        }
    }

    fn mime(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf("v2") => "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
            Self::Protobuf(_) => "application/com.github.proto-openapi.spec.v3.v1.0+protobuf",
        }
    }
}

/// The documents asked for so far, by path, with the generation of the custom resources that they show: a definition
/// that changes makes the documents anew that show it, and no others.
#[derive(Default)]
pub(crate) struct Docs(Mutex<HashMap<String, (u64, Arc<Doc>)>>);

impl Docs {
    /// `generation`: that of the custom resources, or 0 for a document without them.
    fn get(
        &self,
        path: &str,
        encoding: Encoding,
        generation: u64,
        make: impl FnOnce() -> Option<Value>,
    ) -> Option<Arc<Doc>> {
        let key = format!("{path} {}", encoding.mime());
        if let Some((of, doc)) = self.0.lock().get(&key)
            && *of == generation
        {
            return Some(doc.clone());
        }
        let bytes = encoding.encode(&make()?);
        let hash = Sha256::digest(&bytes);
        let etag: String = hash.iter().map(|b| format!("{b:02X}")).collect();
        let (gzip, etag) = (gzip(&bytes).ok()?, format!("\"{etag}\""));
        let doc = Arc::new(Doc { gzip, etag, mime: encoding.mime() });
        self.0.lock().insert(key, (generation, doc.clone()));
        Some(doc)
    }

    /// Lets go of the documents of group versions that are not served any more.
    fn retain(&self, served: impl Fn(&str, &str) -> bool) {
        self.0.lock().retain(|key, (of, _)| {
            let path = key.split(' ').next().and_then(|path| path.strip_prefix("v3/"));
            *of == 0 || path.and_then(version_of).is_none_or(|(group, version)| served(group, version))
        });
    }
}

/// The v3 document of a version, at a path such as `/openapi/v3/apis/apps/v1`; `None` when `path` is no such.
pub(crate) fn document(server: &Server, path: &str) -> Option<Value> {
    let (group, version) = version_of(path.strip_prefix("/openapi/v3/")?)?;
    openapi::v3(&server.cache.registry.defs_at().0, group, version)
}

/// Group and version of `api/v1` or `apis/apps/v1`.
fn version_of(key: &str) -> Option<(&str, &str)> {
    match key.split('/').collect::<Vec<_>>().as_slice() {
        ["api", version] => Some(("", version)),
        ["apis", group, version] => Some((group, version)),
        _ => None,
    }
}

/// Answers an OpenAPI path; `None` when `path` is none.
pub(crate) fn handle(
    server: &Server,
    method: &Method,
    path: &str,
    query: &Query<'_>,
    headers: &HeaderMap,
) -> Option<Response<Body>> {
    let registry = &server.cache.registry;
    let (defs, generation) = &registry.defs_at();
    let generation = *generation + server.aggregation.routes().generation;
    let below = path.strip_prefix("/openapi/")?;
    if method != Method::GET && matches!(below, "v2" | "v3" | "v3/") {
        return Some(respond::status(&method_not_allowed()));
    }
    let version = if below == "v2" { "v2" } else { "v3" };
    let encoding = if below == "v3" { Some(Encoding::Json) } else { Encoding::wanted(headers, version) };
    let Some(encoding) = encoding else { return Some(empty(StatusCode::NOT_ACCEPTABLE)) };
    let doc = match below {
        "v2" => server.docs.get(below, encoding, generation, || Some(whole_v2(server, defs))),
        "v3" => server.docs.get("v3", encoding, generation, || {
            let is =
                |group: &str, version: &str| defs.iter().any(|d| (d.group, d.version) == (group, version));
            server.docs.retain(is);
            Some(whole_index(server, defs))
        }),
        _ => {
            let key = below.strip_prefix("v3/")?;
            let of_version = version_of(key);
            let custom = of_version.is_some_and(|(group, _)| registry.is_custom_group(group));
            let generation = match of_version.filter(|_| custom) {
                Some((group, version)) => openapi::stamp(defs, group, version),
                None => 0,
            };
            let made = server.docs.get(below, encoding, generation, || match of_version {
                Some((group, version)) => openapi::v3(defs, group, version),
                None => openapi::v3_root(defs, key),
            });
            if made.is_some()
                && let Some(asked) = query.get("hash")
            {
                let hash = match of_version {
                    Some((group, version)) => openapi::hash(defs, group, version),
                    None => openapi::root_hash(defs, key),
                };
                if asked != hash {
                    return Some(moved(&format!("{path}?hash={hash}")));
                }
            }
            made
        }
    };
    let Some(doc) = doc else { return Some(empty(StatusCode::NOT_FOUND)) };
    let mut response = answer(&doc, headers, query.get("hash").is_some());
    if below == "v3" {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    }
    Some(response)
}

/// The document of v2, with extension servers.
fn whole_v2(server: &Server, defs: &[&ResourceDef]) -> Value {
    let mut document = openapi::v2(defs, &server.git_version);
    aggregation::openapi_v2(server, &mut document);
    document
}

/// The index of v3, with extension servers.
fn whole_index(server: &Server, defs: &[&ResourceDef]) -> Value {
    let mut index = openapi::v3_index(defs);
    aggregation::openapi_index(server, &mut index);
    index
}

/// A code without a word.
fn empty(code: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::Full(Bytes::new()));
    *response.status_mut() = code;
    response
}

fn moved(to: &str) -> Response<Body> {
    let mut response = respond::text(StatusCode::MOVED_PERMANENTLY, "");
    if let Ok(location) = HeaderValue::from_str(to) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

fn answer(doc: &Doc, headers: &HeaderMap, immutable: bool) -> Response<Body> {
    let known = headers.get(IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    let same = known.is_some_and(|k| k.split(',').any(|k| k.trim() == doc.etag));
    let mut response = if same {
        json_bytes(StatusCode::NOT_MODIFIED, Bytes::new())
    } else if takes_gzip(headers) {
        let mut response = json_bytes(StatusCode::OK, doc.gzip.clone());
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else {
        let mut text = Vec::new();
        match flate2::read::GzDecoder::new(&doc.gzip[..]).read_to_end(&mut text) {
            Ok(_) => json_bytes(StatusCode::OK, Bytes::from(text)),
            Err(e) => respond::status(&coracle_meta::Status::internal(e)),
        }
    };
    let headers = response.headers_mut();
    if headers.get(CONTENT_TYPE).is_some() && !same {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(doc.mime));
    }
    if let Ok(etag) = HeaderValue::from_str(&doc.etag) {
        headers.insert(ETAG, etag);
    }
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding, Accept"));
    if immutable {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
    }
    response
}
