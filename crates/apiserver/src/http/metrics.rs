//! `/metrics`: counts and durations of requests by upstream's names, in Prometheus' text format.

pub(crate) mod families;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use coracle_auth::UserInfo;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use parking_lot::Mutex;

use self::families::Counts;
use super::body::Body;
use super::info::Info;
use super::respond::text;
use crate::flow::Protection;
use crate::server::Server;

/// Upper bounds of the durations' buckets, in seconds.
const BUCKETS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];
/// Parts of the counts, so that threads do not wait for each other.
const SHARDS: usize = 16;

static NEXT_SHARD: AtomicUsize = AtomicUsize::new(0);
thread_local! {
    static SHARD: usize = NEXT_SHARD.fetch_add(1, Ordering::Relaxed) % SHARDS;
}

/// What requests are counted by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    dry_run: bool,
}

struct Series {
    labels: Labels,
    codes: BTreeMap<u16, u64>,
    buckets: [u64; BUCKETS.len()],
    sum: f64,
    count: u64,
}

/// The counts.
#[derive(Default)]
pub(crate) struct Metrics {
    shards: [Mutex<HashMap<u64, Series>>; SHARDS],
    reading: AtomicI64,
    writing: AtomicI64,
    /// What is counted by labels alone.
    pub(crate) counts: Counts,
}

/// A request under way; it is counted as such until dropped.
pub(crate) struct InFlight<'a>(&'a AtomicI64);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// Notes the beginning of a request.
    pub(crate) fn begin(&self, method: &http::Method) -> InFlight<'_> {
        let reading = matches!(*method, http::Method::GET | http::Method::HEAD);
        let gauge = if reading { &self.reading } else { &self.writing };
        gauge.fetch_add(1, Ordering::Relaxed);
        InFlight(gauge)
    }

    /// Requests that are being answered, without those that last.
    pub(crate) fn under_way(&self) -> usize {
        let both = self.reading.load(Ordering::Relaxed) + self.writing.load(Ordering::Relaxed);
        usize::try_from(both).unwrap_or(0)
    }

    /// Notes the end of a request.
    pub(crate) fn note(&self, info: &Info<'_>, verb: &'static str, dry_run: bool, code: u16, took: Duration) {
        let scope = scope(info);
        let (group, version, resource, subresource) = if info.is_resource {
            (info.group, info.version, info.resource, info.subresource)
        } else {
            ("", "", "", "")
        };
        let mut hasher = DefaultHasher::new();
        (verb, group, version, resource, subresource, scope, dry_run).hash(&mut hasher);
        let mut shard = self.shards[SHARD.with(|s| *s)].lock();
        let series = shard.entry(hasher.finish()).or_insert_with(|| {
            let [group, version, resource, subresource] =
                [group, version, resource, subresource].map(str::to_owned);
            let labels = Labels { verb, group, version, resource, subresource, scope, dry_run };
            Series { labels, codes: BTreeMap::new(), buckets: [0; BUCKETS.len()], sum: 0.0, count: 0 }
        });
        *series.codes.entry(code).or_default() += 1;
        if verb == "WATCH" || verb == "CONNECT" {
            return;
        }
        let seconds = took.as_secs_f64();
        series.count += 1;
        series.sum += seconds;
        if let Some(bucket) = BUCKETS.iter().position(|bound| seconds <= *bound) {
            series.buckets[bucket] += 1;
        }
    }

    fn merged(&self) -> BTreeMap<Labels, Series> {
        let mut out: BTreeMap<Labels, Series> = BTreeMap::new();
        for shard in &self.shards {
            for series in shard.lock().values() {
                let sum = out.entry(series.labels.clone()).or_insert_with(|| Series {
                    labels: series.labels.clone(),
                    codes: BTreeMap::new(),
                    buckets: [0; BUCKETS.len()],
                    sum: 0.0,
                    count: 0,
                });
                for (code, n) in &series.codes {
                    *sum.codes.entry(*code).or_default() += n;
                }
                for (into, n) in sum.buckets.iter_mut().zip(series.buckets) {
                    *into += n;
                }
                sum.sum += series.sum;
                sum.count += series.count;
            }
        }
        out
    }
}

/// Notes who was let in, if anybody.
pub(super) fn authenticated(server: &Server, user: Option<&UserInfo>, took: Duration) {
    let counts = &server.metrics.counts;
    let result = if user.is_some() { "success" } else { "failure" };
    counts.add(&families::AUTHENTICATIONS, vec![result.into()]);
    counts.took(&families::AUTHENTICATION, vec![result.into()], took);
    if let Some(user) = user {
        // Names of users are not for everybody who may read metrics.
        let name = match user.name.as_str() {
            "admin" => "admin",
            "client" => "client",
            "kube_proxy" => "kube_proxy",
            "kubelet" => "kubelet",
            "system:serviceaccount:kube-system:default" => "system:serviceaccount:kube-system:default",
            _ => "other",
        };
        counts.add(&families::AUTHENTICATED, vec![name.into()]);
    }
}

/// Notes whether a request was permitted.
pub(super) fn authorized(server: &Server, allowed: bool, took: Duration) {
    let counts = &server.metrics.counts;
    let result = if allowed { "allowed" } else { "denied" };
    counts.add(&families::AUTHORIZATIONS, vec![result.into()]);
    counts.took(&families::AUTHORIZATION, vec![result.into()], took);
}

/// `resource`, `namespace`, `cluster`, or nothing for requests outside the API.
fn scope(info: &Info<'_>) -> &'static str {
    match (info.is_resource, info.name.is_empty(), info.namespace.is_empty()) {
        (false, ..) => "",
        (_, false, _) => "resource",
        _ if info.verb == "create" => "resource",
        (_, true, false) => "namespace",
        (_, true, true) => "cluster",
    }
}

/// The verb as metrics name it.
pub(crate) fn verb(method: &http::Method, info: &Info<'_>, apply: bool) -> &'static str {
    if info.is_resource && matches!(info.subresource, "exec" | "attach" | "portforward" | "proxy") {
        return "CONNECT";
    }
    match (info.verb.as_str(), method.as_str()) {
        ("list", _) => "LIST",
        ("watch", _) => "WATCH",
        ("deletecollection", _) => "DELETECOLLECTION",
        ("patch", _) if apply => "APPLY",
        (_, "GET" | "HEAD") => "GET",
        (_, "POST") => "POST",
        (_, "PUT") => "PUT",
        (_, "PATCH") => "PATCH",
        (_, "DELETE") => "DELETE",
        (_, "OPTIONS") => "OPTIONS",
        _ => "other",
    }
}

/// The lines that precede a metric.
pub(crate) fn header(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Answers `/metrics`.
pub(super) fn answer(server: &Server) -> Response<Body> {
    let mut out = String::new();
    requests(&mut out, &server.metrics);
    server.metrics.counts.write(&mut out);
    server.reloads.write(&mut out);
    if let Protection::Fair(flow) = &server.protection {
        flow.metrics(&mut out);
    }
    let name = "apiserver_storage_objects";
    let help = "[STABLE] Number of stored objects at the time of last check split by kind. In case of a fetching \
                error, the value will be -1.";
    header(&mut out, name, "gauge", help);
    for resource in server.cache.registry.all().iter().filter(|r| r.stored()) {
        let _ = writeln!(out, "{name}{{resource=\"{}\"}} {}", resource.qualified(), resource.cache.len());
    }
    header(&mut out, "coracle_store_revision", "gauge", "Newest revision of the store.");
    let _ = writeln!(out, "coracle_store_revision {}", server.store.revision());
    let version = server.git_version.as_str();
    let help = "[ALPHA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree \
                state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it \
                is running.";
    header(&mut out, "kubernetes_build_info", "gauge", help);
    let mut parts = version.trim_start_matches('v').split('.');
    let (major, minor) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let _ = writeln!(
        out,
        "kubernetes_build_info{{compiler=\"rustc\",git_version=\"{version}\",major=\"{major}\",minor=\"{minor}\",\
         platform=\"linux/amd64\"}} 1"
    );
    let mut response = text(StatusCode::OK, Bytes::from(out));
    let mime = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(mime));
    response
}

fn requests(out: &mut String, metrics: &Metrics) {
    let name = "apiserver_current_inflight_requests";
    let help = "[STABLE] Maximal number of currently used inflight request limit of this apiserver per request kind in \
                last second.";
    header(out, name, "gauge", help);
    for (kind, gauge) in [("mutating", &metrics.writing), ("readOnly", &metrics.reading)] {
        let _ = writeln!(out, "{name}{{request_kind=\"{kind}\"}} {}", gauge.load(Ordering::Relaxed));
    }
    let all = metrics.merged();
    let name = "apiserver_request_duration_seconds";
    let help = "[STABLE] Response latency distribution in seconds for each verb, dry run value, group, version, \
                resource, subresource, scope and component.";
    header(out, name, "histogram", help);
    for (labels, series) in all.iter().filter(|(_, s)| s.count > 0) {
        let labels = shown(labels);
        let mut below = 0;
        for (bound, n) in BUCKETS.iter().zip(series.buckets) {
            below += n;
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
        }
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", series.count);
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}", series.sum);
        let _ = writeln!(out, "{name}_count{{{labels}}} {}", series.count);
    }
    let name = "apiserver_request_total";
    let help = "[STABLE] Counter of apiserver requests broken out for each verb, dry run value, group, version, \
                resource, scope, component, and HTTP response code.";
    header(out, name, "counter", help);
    for (labels, series) in &all {
        for (code, n) in &series.codes {
            let _ = writeln!(out, "{name}{{code=\"{code}\",{}}} {n}", shown(labels));
        }
    }
}

fn shown(labels: &Labels) -> String {
    let Labels { verb, group, version, resource, subresource, scope, dry_run } = labels;
    let dry = if *dry_run { "All" } else { "" };
    format!(
        "component=\"apiserver\",dry_run=\"{dry}\",group=\"{group}\",resource=\"{resource}\",scope=\"{scope}\",\
         subresource=\"{subresource}\",verb=\"{verb}\",version=\"{version}\""
    )
}

#[cfg(test)]
mod tests {
    use super::super::query::Query;
    use super::*;

    #[test]
    fn requests_are_counted_by_verb_resource_scope_and_code() {
        let metrics = Metrics::default();
        let query = Query::new("");
        let info = Info::new(&http::Method::GET, "/api/v1/namespaces/a/pods", &query);
        let verb = verb(&http::Method::GET, &info, false);
        for code in [200, 200, 403] {
            metrics.note(&info, verb, false, code, Duration::from_millis(30));
        }
        let mut out = String::new();
        requests(&mut out, &metrics);
        let labels = "component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"pods\",scope=\"namespace\",\
                      subresource=\"\",verb=\"LIST\",version=\"v1\"";
        assert!(out.contains(&format!("apiserver_request_total{{code=\"200\",{labels}}} 2\n")), "{out}");
        let bucket =
            |bound: &str| format!("apiserver_request_duration_seconds_bucket{{{labels},le=\"{bound}\"}}");
        assert!(out.contains(&format!("{} 0\n", bucket("0.025"))), "{out}");
        assert!(out.contains(&format!("{} 3\n", bucket("0.05"))), "{out}");
    }

    #[test]
    fn requests_are_in_flight_until_they_end() {
        let metrics = Metrics::default();
        let one = metrics.begin(&http::Method::POST);
        assert_eq!(metrics.writing.load(Ordering::Relaxed), 1);
        drop(one);
        assert_eq!(metrics.writing.load(Ordering::Relaxed), 0);
    }
}
