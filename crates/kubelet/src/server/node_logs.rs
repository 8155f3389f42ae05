//! `/logs/`: files below `/var/log`, and with `query` the log of a service of the node.

use std::path::{Component, Path, PathBuf};

use http::{Response, StatusCode};

use super::{Body, Refusal, text};
use crate::context::Context;
use coracle_cri::remote::Query;

/// Where a node's logs are.
const ROOT: &str = "/var/log";
/// Most that is sent of one file.
const MOST: u64 = 64 << 20;

fn bad(message: impl Into<String>) -> Refusal {
    (StatusCode::BAD_REQUEST, message.into())
}

/// Lists a directory or sends a file, or answers a query.
///
/// # Errors
/// Nothing of the name is there, or the query makes no sense.
pub async fn serve(cx: &Context, rest: &[&str], query: &Query) -> Result<Response<Body>, Refusal> {
    let services = query.all("query");
    if !services.is_empty() {
        return self::query(cx, &services, query).await;
    }
    let inner: PathBuf = rest.iter().filter(|p| !p.is_empty()).collect();
    if !inner.components().all(|c| matches!(c, Component::Normal(_))) {
        return Err((StatusCode::NOT_FOUND, "404 page not found".to_owned()));
    }
    let path = Path::new(ROOT).join(inner);
    if path.is_dir() {
        return Ok(listing(&path));
    }
    let found = read(&path).ok_or_else(|| (StatusCode::NOT_FOUND, "404 page not found".to_owned()))?;
    Ok(text(StatusCode::OK, found))
}

/// A directory as the list of links that Go's file server makes of it.
fn listing(path: &Path) -> Response<Body> {
    let mut names: Vec<String> = std::fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| {
            let slash = if e.path().is_dir() { "/" } else { "" };
            format!("{}{slash}", e.file_name().to_string_lossy())
        })
        .collect();
    names.sort();
    let lines: Vec<String> = names.iter().map(|n| format!("<a href=\"{n}\">{n}</a>")).collect();
    let page = format!(
        "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n{}\n</pre>\n",
        lines.join("\n")
    );
    super::answer(StatusCode::OK, "text/html; charset=utf-8", page.into())
}

/// The end of a file as text.
fn read(path: &Path) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path).ok().filter(|f| f.metadata().is_ok_and(|m| m.is_file()))?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MOST))).ok()?;
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether a name may be that of a service.
fn is_service(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('-')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.@:".contains(c))
}

/// Where a service without a journal keeps its log. The kubelet is part of this very program.
fn file_of(cx: &Context, service: &str) -> Option<String> {
    if matches!(service, "kubelet" | "coracle") {
        return read(cx.config.own_log.as_deref()?);
    }
    let root = Path::new(ROOT);
    let places = [
        root.join(service),
        root.join(format!("{service}.log")),
        root.join(service).join(format!("{service}.log")),
    ];
    places.iter().find_map(|p| read(p))
}

async fn journal(service: &str, query: &Query) -> Option<String> {
    let mut command = tokio::process::Command::new("journalctl");
    command.args(["--utc", "--no-pager", "--output=short-precise", "--quiet", "--unit", service]);
    for (name, flag) in [("sinceTime", "--since"), ("untilTime", "--until"), ("pattern", "--grep")] {
        if let Some(value) = query.get(name) {
            command.arg(format!("{flag}={value}"));
        }
    }
    if let Some(lines) = query.get("tailLines") {
        command.arg(format!("--lines={lines}"));
    }
    let out = command.kill_on_drop(true).output().await.ok()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    (out.status.success() && !text.is_empty()).then_some(text)
}

async fn query(cx: &Context, services: &[String], query: &Query) -> Result<Response<Body>, Refusal> {
    if let Some(wrong) = services.iter().find(|s| !is_service(s)) {
        return Err(bad(format!(
            "query: Invalid value: {wrong:?}: must contain only alphanumeric characters"
        )));
    }
    let lines = match query.get("tailLines") {
        None => None,
        Some(n) => Some(n.parse::<usize>().map_err(|_| bad(format!("tailLines: Invalid value: {n:?}")))?),
    };
    let mut out = String::new();
    for service in services {
        if let Some(text) = journal(service, query).await {
            out.push_str(&text);
            continue;
        }
        let Some(found) = file_of(cx, service) else {
            let message = format!("failed to get logs for {service}: log not found for {service}\n");
            return Ok(text(StatusCode::OK, message));
        };
        out.push_str(&select(&found, lines, query.get("pattern")));
    }
    Ok(text(StatusCode::OK, out))
}

/// The last lines that hold a pattern.
fn select(text: &str, lines: Option<usize>, pattern: Option<&str>) -> String {
    let wanted: Vec<&str> = text.lines().filter(|l| pattern.is_none_or(|p| l.contains(p))).collect();
    let skip = lines.map_or(0, |n| wanted.len().saturating_sub(n));
    wanted[skip..].iter().flat_map(|l| [*l, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_chosen_by_pattern_and_from_the_end() {
        assert_eq!(select("a1\nb\na2\na3\n", Some(2), Some("a")), "a2\na3\n");
        assert_eq!(select("x\n", None, None), "x\n");
        assert!(is_service("kubelet.service") && !is_service("../x") && !is_service("--flag"));
    }
}
