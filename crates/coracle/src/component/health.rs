//! Health as upstream's programs tell it: `/healthz`, `/livez`, `/readyz`, their single checks, `?verbose`. Pure.

use std::fmt::Write as _;

use coracle_cri::remote::Query;
use http::StatusCode;

/// The answer of `path` and its `query`; `None` where there is no such path. `holds` tells how a check does.
pub(super) fn answer(
    checks: &[(&str, &[&str])],
    path: &str,
    query: &str,
    holds: impl Fn(&str) -> bool,
) -> Option<(StatusCode, String)> {
    let (which, one) = path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_matches('/'), ""));
    let (_, names) = checks.iter().find(|(known, _)| known.trim_start_matches('/') == which)?;
    if !one.is_empty() {
        let name = names.iter().find(|name| **name == one)?;
        return Some(match holds(name) {
            true => (StatusCode::OK, "ok".to_owned()),
            false => {
                (StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {name} is not ready\n"))
            }
        });
    }
    let verbose = query.split('&').any(|part| part == "verbose" || part.starts_with("verbose="));
    let excluded = Query::parse(query).all("exclude");
    let (mut lines, mut failed) = (String::new(), false);
    for name in *names {
        let _ = match (excluded.iter().any(|e| e == name), holds(name)) {
            (true, _) => writeln!(lines, "[+]{name} excluded: ok"),
            (false, true) => writeln!(lines, "[+]{name} ok"),
            (false, false) => {
                failed = true;
                writeln!(lines, "[-]{name} failed: reason withheld")
            }
        };
    }
    Some(match (failed, verbose) {
        (true, _) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{lines}{which} check failed\n")),
        (false, true) => (StatusCode::OK, format!("{lines}{which} check passed\n")),
        (false, false) => (StatusCode::OK, "ok".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECKS: &[(&str, &[&str])] = &[("/healthz", &["leaderElection"]), ("/readyz", &["a", "b"])];

    #[test]
    fn health_is_told_as_upstream_tells_it() {
        let told = |path: &str, query: &str| answer(CHECKS, path, query, |name| name != "b");
        let ok = |text: &str| Some((StatusCode::OK, text.to_owned()));
        assert_eq!(told("/healthz", ""), ok("ok"));
        assert_eq!(told("/healthz", "verbose"), ok("[+]leaderElection ok\nhealthz check passed\n"));
        assert_eq!(told("/healthz/leaderElection", ""), ok("ok"));
        let failed = "[+]a ok\n[-]b failed: reason withheld\nreadyz check failed\n".to_owned();
        assert_eq!(told("/readyz", ""), Some((StatusCode::INTERNAL_SERVER_ERROR, failed)));
        assert_eq!(told("/readyz", "exclude=b"), ok("ok"));
        assert_eq!(told("/livez", ""), None);
        assert_eq!(told("/readyz/c", ""), None);
    }
}
