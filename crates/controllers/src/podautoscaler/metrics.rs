//! Reads what metrics say now, from the metrics APIs: `metrics.k8s.io` of the cluster itself, `custom.metrics.k8s.io`
//! and `external.metrics.k8s.io` of whatever serves them.

use coracle_client::Client;
use coracle_meta::quantity::Quantity;
use coracle_meta::selector::LabelSelector;
use coracle_meta::status::qualified;
use coracle_meta::{Reason, Status};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{CrossVersionObjectReference, MetricIdentifier};
use serde_json::Value;

use super::replicas::{Sample, Samples};
use crate::served::Served;

/// The time that a custom metric is an average over, where its server does not say.
const WINDOW: SignedDuration = SignedDuration::from_secs(60);
const CUSTOM: &str = "custom.metrics.k8s.io";
const EXTERNAL: &str = "external.metrics.k8s.io";
/// Versions of the custom metrics API that are understood, the best first.
const CUSTOM_VERSIONS: [&str; 2] = ["v1beta2", "v1beta1"];

/// The metrics APIs as one sees them.
pub(super) struct Metrics {
    pub client: Client,
    pub served: Served,
}

/// A thing that a figure tells of, with its place.
pub(super) struct Subject<'a> {
    pub namespace: &'a str,
    /// Which of the target's pods.
    pub pods: &'a LabelSelector,
}

fn milli(value: &Value) -> i64 {
    let amount = Quantity::parse(value.as_str().unwrap_or("0")).unwrap_or_default();
    i64::try_from(amount.milli()).unwrap_or(i64::MAX)
}

fn time(item: &Value) -> Timestamp {
    item["timestamp"].as_str().and_then(|text| text.parse().ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The failure's text as a client in Go would say it: it names what was asked for.
fn said(status: &Status, resource: &str, group: &str) -> String {
    if status.reason() == Reason::NotFound && status.message() == Status::no_such_path().message() {
        return format!("{} (get {})", status.message(), qualified(group, resource));
    }
    status.message().to_owned()
}

/// Percent-encodes a value of a query.
fn encoded(text: &str) -> String {
    let keep = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    text.bytes().map(|b| if keep(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn query(pairs: &[(&str, &LabelSelector)]) -> String {
    let shown = pairs.iter().map(|(key, selector)| (key, selector.to_string()));
    let given: Vec<String> = shown
        .filter(|(_, text)| !text.is_empty())
        .map(|(key, text)| format!("{key}={}", encoded(&text)))
        .collect();
    given.join("&")
}

fn items(body: &Value) -> &[Value] {
    body["items"].as_array().map_or(&[], Vec::as_slice)
}

impl Metrics {
    /// The use of a resource by pods, or by one container of each.
    ///
    /// # Errors
    /// Why there are no figures.
    pub(super) async fn resource(
        &self,
        of: &Subject<'_>,
        resource: &str,
        container: &str,
    ) -> Result<Samples, String> {
        let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods", of.namespace);
        let body =
            self.client.read(&path, &query(&[("labelSelector", of.pods)])).await.map_err(|status| {
                let why = said(&status, "pods", "metrics.k8s.io");
                format!("unable to fetch metrics from resource metrics API: {why}")
            })?;
        if items(&body).is_empty() {
            return Err("no metrics returned from resource metrics API".to_owned());
        }
        Ok(items(&body).iter().filter_map(|pod| pod_sample(pod, resource, container)).collect())
    }

    /// A custom metric of pods.
    ///
    /// # Errors
    /// Why there are no figures.
    pub(super) async fn of_pods(
        &self,
        of: &Subject<'_>,
        name: &str,
        selector: &LabelSelector,
    ) -> Result<Samples, String> {
        let place = format!("namespaces/{}/pods/*/{name}", of.namespace);
        let pairs = [("labelSelector", of.pods), ("metricLabelSelector", selector)];
        let body = self.custom(&place, "pods", &pairs).await?;
        if items(&body).is_empty() {
            return Err("no metrics returned from custom metrics API".to_owned());
        }
        Ok(items(&body).iter().map(custom_sample).collect())
    }

    /// A custom metric of one object.
    ///
    /// # Errors
    /// Why there is no figure.
    pub(super) async fn of_object(
        &self,
        namespace: &str,
        object: &CrossVersionObjectReference,
        name: &str,
        selector: &LabelSelector,
    ) -> Result<i64, String> {
        let api_version = object.api_version.as_deref().unwrap_or("");
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let (place, plural) = if group.is_empty() && object.kind == "Namespace" {
            // One cannot look out of one's own namespace: the name given does not matter.
            (format!("namespaces/{namespace}/metrics/{name}"), "metrics".to_owned())
        } else {
            let Some(entry) = self.served.find(group, &object.kind) else {
                let kind = qualified(group, &object.kind);
                let why = format!("no matches for kind {:?} in group {group:?}", object.kind);
                return Err(format!(
                    "unable to fetch metrics from custom metrics API: unable to map kind {kind} to resource: {why}"
                ));
            };
            let plural = qualified(group, entry.id.resource);
            (format!("namespaces/{namespace}/{plural}/{}/{name}", object.name), plural)
        };
        let body = self.custom(&place, &plural, &[("metricLabelSelector", selector)]).await?;
        match items(&body) {
            [one] => Ok(milli(&one["value"])),
            many => Err(format!(
                "unable to fetch metrics from custom metrics API: the custom metrics API server returned {} results \
                 when we asked for exactly one",
                many.len()
            )),
        }
    }

    async fn custom(
        &self,
        place: &str,
        plural: &str,
        pairs: &[(&str, &LabelSelector)],
    ) -> Result<Value, String> {
        let unable = |why: String| format!("unable to fetch metrics from custom metrics API: {why}");
        let group = self.client.read(&format!("/apis/{CUSTOM}"), "").await;
        let offered = group.as_ref().map(|group| group["versions"].as_array().map_or(&[][..], Vec::as_slice));
        let offers = |version: &str| offered.is_ok_and(|all| all.iter().any(|v| v["version"] == version));
        let Some(version) = CUSTOM_VERSIONS.into_iter().find(|version| offers(version)) else {
            return Err(unable(format!("no custom metrics API ({CUSTOM}) registered")));
        };
        let path = format!("/apis/{CUSTOM}/{version}/{place}");
        self.client.read(&path, &query(pairs)).await.map_err(|s| unable(said(&s, plural, CUSTOM)))
    }

    /// The values of an external metric.
    ///
    /// # Errors
    /// Why there are none.
    pub(super) async fn external(
        &self,
        namespace: &str,
        metric: &MetricIdentifier,
        selector: &LabelSelector,
    ) -> Result<Vec<i64>, String> {
        let path = format!("/apis/{EXTERNAL}/v1beta1/namespaces/{namespace}/{}", metric.name);
        let body =
            self.client.read(&path, &query(&[("labelSelector", selector)])).await.map_err(|status| {
                let why = said(&status, &metric.name, EXTERNAL);
                format!("unable to fetch metrics from external metrics API: {why}")
            })?;
        if items(&body).is_empty() {
            return Err("no metrics returned from external metrics API".to_owned());
        }
        Ok(items(&body).iter().map(|item| milli(&item["value"])).collect())
    }
}

/// A pod's use of a resource; nothing where a container's figure is missing.
fn pod_sample(pod: &Value, resource: &str, container: &str) -> Option<(String, Sample)> {
    let containers = pod["containers"].as_array().filter(|all| !all.is_empty())?;
    let mut total = 0_i64;
    let mut found = false;
    for c in containers.iter().filter(|c| container.is_empty() || c["name"] == container) {
        total = total.saturating_add(milli(c["usage"].get(resource)?));
        found = true;
    }
    let window = pod["window"].as_str().and_then(|text| coracle_meta::cron::duration(text).ok());
    let window = window.and_then(|w| SignedDuration::try_from(w).ok()).unwrap_or(SignedDuration::ZERO);
    let name = pod["metadata"]["name"].as_str()?.to_owned();
    found.then_some((name, Sample { at: time(pod), window, milli: total }))
}

/// A pod's figure of a custom metric; the two versions name its window alike.
fn custom_sample(item: &Value) -> (String, Sample) {
    let window = item["windowSeconds"].as_i64().or_else(|| item["window"].as_i64());
    let window = window.map_or(WINDOW, SignedDuration::from_secs);
    let name = item["describedObject"]["name"].as_str().unwrap_or("").to_owned();
    (name, Sample { at: time(item), window, milli: milli(&item["value"]) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_counts_only_with_the_figures_of_all_its_containers() {
        let pod = |containers: Value| {
            json!({ "metadata": { "name": "a" }, "timestamp": "1970-01-01T00:00:10Z", "window": "15s",
                "containers": containers })
        };
        let two = pod(json!([
            { "name": "x", "usage": { "cpu": "100m", "memory": "1Ki" } },
            { "name": "y", "usage": { "cpu": "250000000n" } },
        ]));
        let (name, sample) = pod_sample(&two, "cpu", "").expect("a figure");
        assert_eq!(
            (name.as_str(), sample.milli, sample.window.as_secs(), sample.at.as_second()),
            ("a", 350, 15, 10)
        );
        assert_eq!(pod_sample(&two, "cpu", "y").expect("a figure").1.milli, 250);
        assert_eq!(pod_sample(&two, "memory", "x").expect("a figure").1.milli, 1_024_000);
        assert!(pod_sample(&two, "memory", "").is_none(), "y does not tell its memory");
        assert!(pod_sample(&two, "cpu", "z").is_none() && pod_sample(&pod(json!([])), "cpu", "").is_none());
    }

    #[test]
    fn selectors_go_into_the_query_encoded() {
        let selector = LabelSelector::parse("a in (b,c),d=e").expect("a selector");
        assert_eq!(query(&[("labelSelector", &selector)]), "labelSelector=a%20in%20%28b%2Cc%29%2Cd%3De");
        assert_eq!(query(&[("labelSelector", &LabelSelector::everything())]), "");
    }
}
