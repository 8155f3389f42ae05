//! `/statusz` and `/flagz`: what runs here since when, and how it was started. Text for people, or the structured form
//! for those that ask for it by name.

use std::fmt::Write as _;

use coracle_meta::Status;
use http::header::ACCEPT;
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};

use super::body::Body;
use super::respond::{json_value, status, text};
use crate::server::Server;

/// The paths that are neither of the API nor checks of it.
const PATHS: [&str; 7] = ["/flagz", "/healthz", "/livez", "/metrics", "/readyz", "/statusz", "/version"];

/// A form of the answer.
#[derive(Debug, PartialEq, Eq)]
enum Form {
    Text,
    Structured,
}

/// The form that a client accepts first; `None` when it accepts none that there is.
fn form(headers: &HeaderMap, kind: &str) -> Option<Form> {
    let accept = headers.get(ACCEPT).and_then(|v| v.to_str().ok()).filter(|accept| !accept.trim().is_empty());
    accept.unwrap_or("*/*").split(',').find_map(|clause| {
        let mut parts = clause.split(';').map(str::trim);
        let mime = parts.next()?;
        let said: Vec<&str> = parts.filter(|part| !part.starts_with("q=")).collect();
        match mime {
            "text/plain" | "text/*" | "*/*" if said.is_empty() => Some(Form::Text),
            "application/json" => {
                let wanted = ["v=v1alpha1".to_owned(), "g=config.k8s.io".to_owned(), format!("as={kind}")];
                wanted.iter().all(|part| said.contains(&part.as_str())).then_some(Form::Structured)
            }
            _ => None,
        }
    })
}

fn answer(headers: &HeaderMap, kind: &str, lines: impl FnOnce() -> String, fields: Value) -> Response<Body> {
    match form(headers, kind) {
        Some(Form::Text) => {
            let name = kind.to_lowercase();
            let warning = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                           guarantees and is for debugging purposes only.";
            text(StatusCode::OK, format!("\napiserver {name}\n{warning}\n{}", lines()))
        }
        Some(Form::Structured) => {
            let mut value = json!({ "kind": kind, "apiVersion": "config.k8s.io/v1alpha1",
                                    "metadata": { "name": "apiserver" } });
            if let (Value::Object(value), Value::Object(fields)) = (&mut value, fields) {
                value.extend(fields);
            }
            json_value(StatusCode::OK, &value)
        }
        None => {
            let why = "only the following media types are accepted: application/json, text/plain";
            status(&Status::new(406, coracle_meta::Reason::NotAcceptable, why, None))
        }
    }
}

/// Answers `/statusz`.
pub(super) fn statusz(server: &Server, headers: &HeaderMap) -> Response<Body> {
    let (started, now) = (server.started, server.clock.now());
    let version = server.git_version.trim_start_matches('v');
    let emulated = version.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
    let up = now.as_second().saturating_sub(started.as_second());
    let lines = || {
        let (hours, minutes, seconds) = (up / 3600, up / 60 % 60, up % 60);
        let started = started.strftime("%a %b %e %H:%M:%S UTC %Y");
        format!(
            "\nStarted: {started}\nUp: {hours} hr {minutes:02} min {seconds:02} sec\nBinary version: {version}\n\
             Emulation version: {emulated}\nPaths: {}\n",
            PATHS.join(" ")
        )
    };
    let fields = json!({ "startTime": crate::verbs::create::whole_seconds(started).to_string(),
        "uptimeSeconds": up, "goVersion": "none", "binaryVersion": version, "emulationVersion": emulated,
        "paths": PATHS });
    answer(headers, "Statusz", lines, fields)
}

/// Answers `/flagz`.
pub(super) fn flagz(server: &Server, headers: &HeaderMap) -> Response<Body> {
    let lines = || {
        server.flags.iter().fold(String::new(), |mut out, (name, value)| {
            let _ = writeln!(out, "{name}:{value}");
            out
        })
    };
    answer(headers, "Flagz", lines, json!({ "flags": server.flags }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_for_everybody_and_the_structure_for_those_who_name_it() {
        let told = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            form(&headers, "Statusz")
        };
        assert_eq!(form(&HeaderMap::new(), "Statusz"), Some(Form::Text));
        assert_eq!(told("text/plain, application/json"), Some(Form::Text));
        let structured = "application/json;v=v1alpha1;g=config.k8s.io;as=Statusz";
        assert_eq!(told(&format!("{structured},text/plain")), Some(Form::Structured));
        assert_eq!(told("application/json"), None);
        assert_eq!(told("application/json;v=v1alpha1;g=config.k8s.io;as=Flagz"), None);
    }
}
