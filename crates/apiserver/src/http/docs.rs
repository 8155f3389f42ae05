//! `/openapi/v2` and `/openapi/v3`: built when first asked for, kept compressed.

use std::collections::HashMap;
use std::io::Read as _;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, LOCATION, VARY,
};
use http::{HeaderMap, Method, Response, StatusCode};
use parking_lot::Mutex;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::body::{Body, gzip};
use super::query::Query;
use super::respond::{self, json_bytes, method_not_allowed, takes_gzip};
use crate::openapi;
use crate::server::Server;

/// A document.
struct Doc {
    gzip: Bytes,
    etag: String,
}

/// The documents asked for so far, by path.
#[derive(Default)]
pub(crate) struct Docs(Mutex<HashMap<String, Arc<Doc>>>);

impl Docs {
    fn get(&self, path: &str, make: impl FnOnce() -> Option<Value>) -> Option<Arc<Doc>> {
        if let Some(doc) = self.0.lock().get(path) {
            return Some(doc.clone());
        }
        let text = make()?.to_string();
        let hash = Sha256::digest(text.as_bytes());
        let etag: String = hash.iter().map(|b| format!("{b:02X}")).collect();
        let doc = Arc::new(Doc { gzip: gzip(text.as_bytes()).ok()?, etag: format!("\"{etag}\"") });
        self.0.lock().insert(path.to_owned(), doc.clone());
        Some(doc)
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
    let defs = coracle_resources::all();
    let below = path.strip_prefix("/openapi/")?;
    if method != Method::GET && matches!(below, "v2" | "v3" | "v3/") {
        return Some(respond::status(&method_not_allowed()));
    }
    let doc = match below {
        "v2" => server.docs.get(below, || Some(openapi::v2(defs, &server.git_version))),
        "v3" => server.docs.get("v3", || Some(openapi::v3_index(defs))),
        _ => {
            let key = below.strip_prefix("v3/")?;
            let of_version = match key.split('/').collect::<Vec<_>>().as_slice() {
                ["api", version] => Some(("", *version)),
                ["apis", group, version] => Some((*group, *version)),
                _ => None,
            };
            let made = server.docs.get(below, || match of_version {
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
    let Some(doc) = doc else { return Some(nothing()) };
    let mut response = answer(&doc, headers, query.get("hash").is_some());
    if below == "v3" {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    }
    Some(response)
}

/// 404 without a word.
fn nothing() -> Response<Body> {
    let mut response = Response::new(Body::Full(Bytes::new()));
    *response.status_mut() = StatusCode::NOT_FOUND;
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
    if let Ok(etag) = HeaderValue::from_str(&doc.etag) {
        headers.insert(ETAG, etag);
    }
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    if immutable {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
    }
    response
}
