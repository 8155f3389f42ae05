//! Legacy tokens: Secrets with tokens that were made for accounts of old are marked when nobody has used them for a
//! year, and removed when nobody has missed them for another.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_client::{Api, Change, DeleteOptions, Informer, PatchKind};
use coracle_meta::{Reason, Status};
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::civil::Date;
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use serde_json::json;

use crate::runtime::{
    Action, Context, Controller, Descriptor, ObjectKey, Reconciler, ignore_not_found, name_of,
};

pub(crate) const DESCRIPTOR: Descriptor =
    Descriptor { name: "legacy-service-account-token-cleaner", workers: 1 };

const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// Where the API server says since when it notes the use of tokens.
const TRACKING: (&str, &str, &str) =
    ("kube-system", "kube-apiserver-legacy-service-account-token-tracking", "since");
/// Between two looks at a Secret.
const AGAIN: Duration = Duration::from_secs(24 * 3600);

/// What becomes of a Secret.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Keep,
    /// Its token is no longer taken, since this day.
    Mark(Date),
    Delete,
}

fn day(at: Timestamp) -> Date {
    at.to_zoned(TimeZone::UTC).date()
}

/// What is known of a Secret's surroundings.
struct Around<'a> {
    account: Option<&'a ServiceAccount>,
    is_mounted: bool,
    tracked_since: Option<Date>,
    /// How long a token must have been out of use.
    period: SignedDuration,
    now: Timestamp,
}

fn decide(secret: &Secret, around: &Around<'_>) -> Decision {
    let Around { now, period, .. } = *around;
    // Uses of the first day may have been missed.
    let tracked = around.tracked_since.and_then(|since| since.tomorrow().ok());
    let tracked = tracked.and_then(|date| date.to_zoned(TimeZone::UTC).ok()).map(|zoned| zoned.timestamp());
    let Some(limit) = now.checked_sub(period).ok().filter(|limit| tracked.is_some_and(|t| t <= *limit))
    else {
        return Decision::Keep;
    };
    let created = secret.metadata.creation_timestamp.as_ref().map_or(now, |created| created.0);
    if secret.type_.as_deref() != Some(TYPE)
        || created >= limit
        || secret.metadata.deletion_timestamp.is_some()
    {
        return Decision::Keep;
    }
    let label = |name: &str| secret.metadata.labels.as_ref().and_then(|labels| labels.get(name));
    match label(LAST_USED).map(|used| used.parse::<Date>()) {
        Some(Err(_)) => return Decision::Keep,
        Some(Ok(used)) if used >= day(limit) => return Decision::Keep,
        _ => {}
    }
    // Only what the account itself names was made for it, not by somebody who wants it.
    let names_it = |account: &ServiceAccount| {
        let uid = secret.metadata.annotations.as_ref().and_then(|all| all.get(ACCOUNT_UID));
        let is_same = uid.is_none_or(|uid| uid.is_empty() || account.metadata.uid.as_ref() == Some(uid));
        is_same && account.secrets.iter().flatten().any(|named| named.name == secret.metadata.name)
    };
    if !around.account.is_some_and(names_it) || around.is_mounted {
        return Decision::Keep;
    }
    match label(INVALID_SINCE).and_then(|since| since.parse::<Date>().ok()) {
        None => Decision::Mark(day(now)),
        Some(since) if since >= day(limit) => Decision::Keep,
        Some(_) => Decision::Delete,
    }
}

/// Names of the Secrets that a pod uses.
fn secrets_of(pod: &Pod) -> BTreeSet<&str> {
    let Some(spec) = &pod.spec else { return BTreeSet::new() };
    let mut names: BTreeSet<&str> =
        spec.image_pull_secrets.iter().flatten().map(|secret| secret.name.as_str()).collect();
    for volume in spec.volumes.iter().flatten() {
        let own = volume.secret.as_ref().and_then(|secret| secret.secret_name.as_deref());
        let csi = volume.csi.as_ref().and_then(|csi| csi.node_publish_secret_ref.as_ref());
        names.extend(own.into_iter().chain(csi.map(|secret| secret.name.as_str())));
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        names.extend(sources.filter_map(|source| source.secret.as_ref()).map(|secret| secret.name.as_str()));
    }
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    for container in containers {
        let from = container.env_from.iter().flatten().filter_map(|from| from.secret_ref.as_ref());
        names.extend(from.map(|secret| secret.name.as_str()));
        let values = container.env.iter().flatten().filter_map(|env| env.value_from.as_ref());
        names.extend(values.filter_map(|v| v.secret_key_ref.as_ref()).map(|secret| secret.name.as_str()));
    }
    names
}

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let secrets = cx.informers.get::<Secret>();
    let client = cx.client(DESCRIPTOR.name);
    let reconciler = Arc::new(Cleaner {
        secrets: secrets.clone(),
        pods: cx.informers.get(),
        accounts: cx.informers.get(),
        maps: client.api(),
        api: client.api(),
        period: cx.config.legacy_token_clean_up_period,
        clock: cx.clock.clone(),
    });
    Controller::new(DESCRIPTOR)
        .watch(&secrets, |change, enqueue| {
            let secret = change.object();
            if !matches!(change, Change::Deleted(_)) && secret.type_.as_deref() == Some(TYPE) {
                enqueue(ObjectKey::of(&secret.metadata));
            }
        })
        .run(reconciler)
        .boxed()
}

struct Cleaner {
    secrets: Informer<Secret>,
    pods: Informer<Pod>,
    accounts: Informer<ServiceAccount>,
    maps: Api<ConfigMap>,
    api: Api<Secret>,
    period: SignedDuration,
    clock: Clock,
}

impl Cleaner {
    async fn tracked_since(&self) -> Result<Option<Date>, Status> {
        let (namespace, name, key) = TRACKING;
        match self.maps.get(namespace, name).await {
            Ok(map) => Ok(map.data.as_ref().and_then(|data| data.get(key)?.parse().ok())),
            Err(status) if status.reason() == Reason::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }
}

#[async_trait]
impl Reconciler for Cleaner {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(secret) = self.secrets.get(&key.namespace, &key.name) else {
            return Ok(Action::AwaitChange);
        };
        self.pods.wait_synced().await;
        self.accounts.wait_synced().await;
        let account = secret.metadata.annotations.as_ref().and_then(|all| all.get(ACCOUNT));
        let account = account.and_then(|name| self.accounts.get(&key.namespace, name));
        let pods = self.pods.list_namespace(&key.namespace);
        let around = Around {
            account: account.as_deref(),
            is_mounted: pods.iter().any(|pod| secrets_of(pod).contains(name_of(&*secret))),
            tracked_since: self.tracked_since().await?,
            period: self.period,
            now: self.clock.now(),
        };
        match decide(&secret, &around) {
            Decision::Keep => {}
            Decision::Mark(day) => {
                let patch = json!({ "metadata": { "uid": secret.metadata.uid,
                    "labels": { INVALID_SINCE: day.to_string() } } });
                ignore_not_found(self.api.patch(&key.namespace, &key.name, PatchKind::Merge, patch).await)?;
            }
            Decision::Delete => {
                let resource_version = secret.metadata.resource_version.clone();
                let options = DeleteOptions { resource_version, ..DeleteOptions::default() };
                ignore_not_found(self.api.delete(&key.namespace, &key.name, options).await)?;
            }
        }
        Ok(Action::RequeueAfter(AGAIN))
    }
}

#[cfg(test)]
mod tests {
    use coracle_client::testing::FakeTransport;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::testing::{context_at, eventually, test_clock};

    fn of<K: coracle_meta::Kind>(value: serde_json::Value) -> K {
        serde_json::from_value(value).expect("an object")
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn secret(labels: &serde_json::Value) -> Secret {
        of(json!({ "type": TYPE, "metadata": { "name": "t", "namespace": "ns", "labels": labels,
            "creationTimestamp": "2020-01-01T00:00:00Z", "annotations": { ACCOUNT: "sa", ACCOUNT_UID: "u" } } }))
    }

    #[track_caller]
    fn check(secret: &Secret, change: impl Fn(&mut Around<'_>), expected: &Decision) {
        let account: ServiceAccount =
            of(json!({ "metadata": { "name": "sa", "uid": "u" }, "secrets": [{ "name": "t" }] }));
        let mut around = Around {
            account: Some(&account),
            is_mounted: false,
            tracked_since: Some("2024-01-01".parse().expect("a date")),
            period: SignedDuration::from_hours(365 * 24),
            now: at("2026-06-15T12:00:00Z"),
        };
        change(&mut around);
        assert_eq!(decide(secret, &around), *expected);
    }

    #[test]
    fn a_token_out_of_use_is_marked_and_goes_a_year_later() {
        let today: Date = "2026-06-15".parse().expect("a date");
        check(&secret(&json!({})), |_| {}, &Decision::Mark(today));
        check(&secret(&json!({ LAST_USED: "2025-06-14" })), |_| {}, &Decision::Mark(today));
        check(&secret(&json!({ INVALID_SINCE: "no date" })), |_| {}, &Decision::Mark(today));
        check(&secret(&json!({ INVALID_SINCE: "2025-06-15" })), |_| {}, &Decision::Keep);
        check(&secret(&json!({ INVALID_SINCE: "2025-06-14" })), |_| {}, &Decision::Delete);
    }

    #[test]
    fn a_token_that_somebody_may_use_stays() {
        check(&secret(&json!({ LAST_USED: "2025-06-15" })), |_| {}, &Decision::Keep);
        check(&secret(&json!({ LAST_USED: "yesterday" })), |_| {}, &Decision::Keep);
        check(&secret(&json!({})), |around| around.is_mounted = true, &Decision::Keep);
        check(&secret(&json!({})), |around| around.account = None, &Decision::Keep);
        check(&secret(&json!({})), |around| around.tracked_since = None, &Decision::Keep);
        let late =
            |around: &mut Around<'_>| around.tracked_since = Some("2025-06-15".parse().expect("a date"));
        check(&secret(&json!({})), late, &Decision::Keep);
        let mut young = secret(&json!({}));
        young.metadata.creation_timestamp = Some(Time(at("2026-01-01T00:00:00Z")));
        check(&young, |_| {}, &Decision::Keep);
        let opaque = Secret { type_: Some("Opaque".to_owned()), ..secret(&json!({})) };
        check(&opaque, |_| {}, &Decision::Keep);
    }

    #[tokio::test(start_paused = true)]
    async fn the_cleaner_marks_and_then_deletes_as_time_goes_by() {
        let clock = test_clock();
        let fake = FakeTransport::new(clock.clone());
        let client = fake.client();
        let map = json!({ "metadata": { "name": TRACKING.1 }, "data": { "since": "1969-01-01" } });
        client.api::<ConfigMap>().create(TRACKING.0, of(map)).await.expect("created");
        let account = json!({ "metadata": { "name": "sa", "uid": "u" }, "secrets": [{ "name": "t" }] });
        let account = client.api::<ServiceAccount>().create("ns", of(account)).await.expect("created");
        let mut old = secret(&json!({}));
        old.metadata
            .annotations
            .get_or_insert_default()
            .insert(ACCOUNT_UID.to_owned(), account.metadata.uid.clone().unwrap_or_default());
        client.api::<Secret>().create("ns", old).await.expect("created");
        let task = tokio::spawn(run(&context_at(&fake, clock)));
        let mut marked = false;
        for _ in 0..900 {
            tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
            match client.api::<Secret>().get("ns", "t").await {
                Ok(secret) => marked |= secret.metadata.labels.iter().any(|l| l.contains_key(INVALID_SINCE)),
                Err(_) => break,
            }
        }
        assert!(marked, "it was told first");
        eventually(|| async { client.api::<Secret>().get("ns", "t").await.is_err() }).await;
        task.abort();
    }
}
