//! Upstream's programs by their own names, and those of their flags that mean nothing here: they are let through, and
//! named in the log. A flag that would change what clients see, or who is let in, is not among them.

/// Upstream's programs, and the commands that stand in for them.
const PROGRAMS: [(&str, &str); 3] = [
    ("kube-apiserver", "apiserver"),
    ("kube-controller-manager", "controller-manager"),
    ("kube-scheduler", "scheduler"),
];

/// Flags that take no value, or one behind `=`.
const SWITCHES: &[&str] = &[
    "audit-log-batch-throttle-enable",
    "authentication-tolerate-lookup-failure",
    "configure-cloud-routes",
    "contention-profiling",
    "disable-attach-detach-reconcile-sync",
    "disable-http2-serving",
    "enable-aggregator-routing",
    "enable-dynamic-provisioning",
    "enable-garbage-collector",
    "log-json-split-stream",
    "log-text-split-stream",
    "permit-address-sharing",
    "permit-port-sharing",
    "profiling",
    "service-account-extend-token-expiration",
    "service-account-lookup",
    "shutdown-send-retry-after",
    "watch-cache",
];

/// Flags with a value.
const VALUED: &[&str] = &[
    "allow-metric-labels",
    "allow-metric-labels-manifest",
    "attach-detach-reconcile-sync-period",
    "audit-log-batch-buffer-size",
    "audit-log-batch-max-size",
    "audit-log-batch-max-wait",
    "audit-log-batch-throttle-burst",
    "audit-log-batch-throttle-qps",
    "cert-dir",
    "cidr-allocator-type",
    "cloud-provider",
    "cluster-name",
    "concurrent-cron-job-syncs",
    "concurrent-daemonset-syncs",
    "concurrent-deployment-syncs",
    "concurrent-device-taint-eviction-syncs",
    "concurrent-endpoint-syncs",
    "concurrent-ephemeralvolume-syncs",
    "concurrent-gc-syncs",
    "concurrent-horizontal-pod-autoscaler-syncs",
    "concurrent-job-syncs",
    "concurrent-namespace-syncs",
    "concurrent-rc-syncs",
    "concurrent-replicaset-syncs",
    "concurrent-resource-quota-syncs",
    "concurrent-resourceclaim-syncs",
    "concurrent-service-endpoint-syncs",
    "concurrent-service-syncs",
    "concurrent-serviceaccount-token-syncs",
    "concurrent-statefulset-syncs",
    "concurrent-ttl-after-finished-syncs",
    "concurrent-validating-admission-policy-status-syncs",
    "controller-shutdown-timeout",
    "controller-start-interval",
    "delete-collection-workers",
    "disabled-metrics",
    "endpoint-reconciler-type",
    "endpoint-updates-batch-period",
    "endpointslice-updates-batch-period",
    "etcd-count-metric-poll-period",
    "etcd-db-metric-poll-interval",
    "etcd-healthcheck-timeout",
    "etcd-readycheck-timeout",
    "feature-gates",
    "flex-volume-plugin-dir",
    "http2-max-streams-per-connection",
    "kube-api-burst",
    "kube-api-content-type",
    "kube-api-qps",
    "kubelet-preferred-address-types",
    "kubelet-timeout",
    "livez-grace-period",
    "log-flush-frequency",
    "log-json-info-buffer-size",
    "log-text-info-buffer-size",
    "logging-format",
    "min-resync-period",
    "mirroring-concurrent-service-endpoint-syncs",
    "mirroring-endpointslice-updates-batch-period",
    "namespace-sync-period",
    "node-monitor-period",
    "pod-max-in-unschedulable-pods-duration",
    "pvclaimbinder-sync-period",
    "resource-quota-sync-period",
    "route-reconciliation-period",
    "show-hidden-metrics-for-version",
    "shutdown-watch-termination-grace-period",
    "storage-backend",
    "storage-initialization-timeout",
    "storage-media-type",
    "tls-cipher-suites",
    "tls-min-version",
    "v",
    "vmodule",
    "watch-cache-sizes",
];

/// Of proxies, which only the API server believes.
const PROXIES: &[&str] = &[
    "requestheader-allowed-names",
    "requestheader-client-ca-file",
    "requestheader-extra-headers-prefix",
    "requestheader-group-headers",
    "requestheader-uid-headers",
    "requestheader-username-headers",
];

/// The command line of one that was called by the name of a program of upstream's.
pub fn by_name(mut argv: Vec<String>) -> Vec<String> {
    let called = argv.first().and_then(|path| path.rsplit('/').next()).unwrap_or("");
    if let Some((_, command)) = PROGRAMS.iter().find(|(program, _)| *program == called) {
        argv.insert(1, (*command).to_owned());
    }
    argv
}

/// The command line without the flags that mean nothing, and these.
pub fn without_effect(argv: Vec<String>) -> (Vec<String>, Vec<String>) {
    let command = argv.get(1).map_or("", String::as_str);
    if !PROGRAMS.iter().any(|(_, known)| *known == command) {
        return (argv, Vec::new());
    }
    let proxies = if command == "apiserver" { &[] } else { PROXIES };
    let (mut kept, mut dropped) = (Vec::new(), Vec::new());
    let mut args = argv.into_iter();
    while let Some(arg) = args.next() {
        let (flag, value) = match arg.split_once('=') {
            Some((flag, value)) => (flag, Some(value)),
            None => (arg.as_str(), None),
        };
        let name = flag.strip_prefix("--").or_else(|| flag.strip_prefix('-').filter(|name| *name == "v"));
        let is_in = |list: &[&str]| name.is_some_and(|name| list.contains(&name));
        if is_in(SWITCHES) {
            dropped.push(arg);
        } else if is_in(VALUED) || is_in(proxies) {
            if value.is_none() {
                args.next();
            }
            dropped.push(flag.to_owned());
        } else {
            kept.push(arg);
        }
    }
    (kept, dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_program_of_upstreams_is_known_by_its_name() {
        assert_eq!(
            by_name(words("/usr/bin/kube-scheduler --v=2")),
            words("/usr/bin/kube-scheduler scheduler --v=2")
        );
        assert_eq!(by_name(words("coracle up")), words("coracle up"));
    }

    #[test]
    fn flags_that_mean_nothing_are_taken_out_with_their_values() {
        let line = words(
            "coracle scheduler --v 2 -v=4 --profiling=false --profiling --leader-elect=true --feature-gates A=true",
        );
        let (kept, dropped) = without_effect(line);
        assert_eq!(kept, words("coracle scheduler --leader-elect=true"));
        assert_eq!(dropped, words("--v -v --profiling=false --profiling --feature-gates"));
        let ours = words("coracle apiserver --requestheader-client-ca-file=f");
        assert_eq!(without_effect(ours.clone()), (ours, Vec::new()));
        let up = words("coracle up --v=2");
        assert_eq!(without_effect(up.clone()), (up, Vec::new()));
    }
}
