//! `/healthz`, `/livez`, `/readyz`, with the checks that upstream names.

use std::fmt::Write as _;

use http::{Response, StatusCode};

use super::body::Body;
use super::metrics::header;
use super::query::Query;
use super::respond::{not_found_page, text};
use crate::server::Server;

/// The checks in front of the hooks: whether they are part of healthz and livez, and of readyz.
const FIRST: &[(&str, bool, bool)] = &[
    ("ping", true, true),
    ("log", true, true),
    ("etcd", true, true),
    ("loopback-serving-certificate", true, false),
    ("etcd-readiness", false, true),
    ("informer-sync", false, true),
];

/// The check of KMS plugins, where values are encrypted by them.
const PLUGINS: &str = "kms-providers";

/// The check of readyz that fails once the server is about to end.
const SHUTDOWN: &str = "shutdown";

/// What upstream starts after it began to serve. Here it is done before the server answers at all.
const HOOKS: &[&str] = &[
    "start-apiserver-admission-initializer",
    "generic-apiserver-start-informers",
    "priority-and-fairness-config-consumer",
    "priority-and-fairness-filter",
    "storage-object-count-tracker-hook",
    "start-apiextensions-informers",
    "start-apiextensions-controllers",
    "crd-informer-synced",
    "start-system-namespaces-controller",
    "start-cluster-authentication-info-controller",
    "start-kube-apiserver-identity-lease-controller",
    "start-kube-apiserver-identity-lease-garbage-collector",
    "start-legacy-token-tracking-controller",
    "start-service-ip-repair-controllers",
    "rbac/bootstrap-roles",
    "scheduling/bootstrap-system-priority-classes",
    "priority-and-fairness-config-producer",
    "bootstrap-controller",
    "start-kubernetes-service-cidr-controller",
    "storage-readiness",
    "peer-endpoint-reconciler-controller",
    "apiservice-status-local-available-controller",
    "apiservice-status-remote-available-controller",
    "start-kube-aggregator-informers",
    "apiservice-registration-controller",
    "apiservice-discovery-controller",
    "kube-apiserver-autoregistration",
    "apiservice-wait-for-first-sync",
    "apiservice-openapi-controller",
    "apiservice-openapiv3-controller",
];

/// The names of the checks of `healthz`, `livez` or `readyz`, in order.
pub(super) fn checks(server: &Server, which: &str) -> Vec<String> {
    let ready = which == "readyz";
    let first = FIRST.iter().filter(|(_, live, at_ready)| if ready { *at_ready } else { *live });
    let mut names: Vec<String> = first.map(|(name, ..)| (*name).to_owned()).collect();
    names.extend(HOOKS.iter().map(|hook| format!("poststarthook/{hook}")));
    names.push("autoregister-completion".to_owned());
    // A server that restarts cannot cure a plugin: it is no matter of livez.
    if which != "livez" && server.encryption.as_ref().is_some_and(|e| e.plugins_troubles().is_some()) {
        names.push(PLUGINS.to_owned());
    }
    if ready {
        names.push(SHUTDOWN.to_owned());
    }
    names
}

fn has_failed(server: &Server, check: &str) -> bool {
    match check {
        SHUTDOWN => server.drain.has_begun(),
        PLUGINS => server
            .encryption
            .as_ref()
            .and_then(|encryption| encryption.plugins_troubles())
            .is_some_and(|troubles| !troubles.is_empty()),
        _ => check.starts_with("etcd") && server.store.revision() == 0,
    }
}

/// Answers `/metrics/slis`: the checks as metrics.
pub(super) fn slis(server: &Server) -> Response<Body> {
    let (name, mut out) = ("kubernetes_healthcheck", String::new());
    let help = "[STABLE] This metric records the result of a single healthcheck.";
    header(&mut out, name, "gauge", help);
    for which in ["healthz", "livez", "readyz"] {
        for check in checks(server, which) {
            let well = u8::from(!has_failed(server, &check));
            let _ = writeln!(out, "{name}{{name=\"{check}\",type=\"{which}\"}} {well}");
        }
    }
    text(StatusCode::OK, out)
}

/// Answers `/<which>` (all checks) or `/<which>/<one>`.
pub(super) fn check(server: &Server, which: &str, one: &str, query: &Query<'_>) -> Response<Body> {
    let failed = |name: &str| has_failed(server, name);
    let checks = checks(server, which);
    if !one.is_empty() {
        return match checks.iter().find(|c| *c == one) {
            Some(check) if !failed(check) => text(StatusCode::OK, "ok"),
            Some(_) => {
                let why = if one == SHUTDOWN { "process is shutting down" } else { "store failed" };
                text(StatusCode::INTERNAL_SERVER_ERROR, format!("internal server error: {why}\n"))
            }
            None => not_found_page(),
        };
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let (mut lines, mut ok) = (String::new(), true);
    for check in &checks {
        if excluded.contains(&check.as_str()) {
            lines.push_str(&format!("[+]{check} excluded: ok\n"));
        } else if failed(check) {
            ok = false;
            lines.push_str(&format!("[-]{check} failed: reason withheld\n"));
        } else {
            lines.push_str(&format!("[+]{check} ok\n"));
        }
    }
    if !ok {
        lines.push_str(&format!("{which} check failed\n"));
        return text(StatusCode::INTERNAL_SERVER_ERROR, lines);
    }
    if query.get("verbose").is_none() {
        return text(StatusCode::OK, "ok");
    }
    lines.push_str(&format!("{which} check passed\n"));
    text(StatusCode::OK, lines)
}
