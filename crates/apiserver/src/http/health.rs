//! `/healthz`, `/livez`, `/readyz`, with the checks that upstream names.

use http::{Response, StatusCode};

use super::body::Body;
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
pub(super) fn checks(which: &str) -> Vec<String> {
    let ready = which == "readyz";
    let first = FIRST.iter().filter(|(_, live, at_ready)| if ready { *at_ready } else { *live });
    let mut names: Vec<String> = first.map(|(name, ..)| (*name).to_owned()).collect();
    names.extend(HOOKS.iter().map(|hook| format!("poststarthook/{hook}")));
    names.push("autoregister-completion".to_owned());
    if ready {
        names.push("shutdown".to_owned());
    }
    names
}

/// Answers `/<which>` (all checks) or `/<which>/<one>`.
pub(super) fn check(server: &Server, which: &str, one: &str, query: &Query<'_>) -> Response<Body> {
    let failed = |name: &str| name.starts_with("etcd") && server.store.revision() == 0;
    let checks = checks(which);
    if !one.is_empty() {
        return match checks.iter().find(|c| *c == one) {
            Some(check) if !failed(check) => text(StatusCode::OK, "ok"),
            Some(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "internal server error: store failed\n"),
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
