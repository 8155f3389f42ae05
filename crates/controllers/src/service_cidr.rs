//! Service CIDR: tells whether a range of service addresses is ready, and keeps it for as long as addresses of it are
//! given out that no other range holds.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_client::{Api, EventRecorder, EventType, Informer, PatchKind};
use coracle_meta::Status;
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use serde_json::json;

use crate::finalizer::{self, Finalizer};
use crate::prefix::Prefix;
use crate::runtime::{
    Action, Context, Controller, Descriptor, Enqueue, ObjectKey, Reconciler, ignore_not_found,
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "service-cidrs-controller", workers: 5 };
const COMPONENT: &str = "service-cidr-controller";

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const ALLOCATOR: &str = "ipallocator.k8s.io";

/// So long allocators may not have heard yet that a range goes.
const GRACE: SignedDuration = SignedDuration::from_secs(10);

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let (ranges, addresses) = (cx.informers.get::<ServiceCIDR>(), cx.informers.get::<IPAddress>());
    let reconciler = Arc::new(Ranges {
        ranges: ranges.clone(),
        addresses: addresses.clone(),
        api: cx.client(DESCRIPTOR.name).api(),
        events: cx.recorder_as(DESCRIPTOR.name, COMPONENT),
        clock: cx.clock.clone(),
    });
    let (overlapping, containing) = (ranges.clone(), ranges.clone());
    Controller::new(DESCRIPTOR)
        .watch(&ranges, move |change, enqueue| {
            enqueue(ObjectKey::of(&change.object().metadata));
            let mine = prefixes(change.object());
            let overlaps = |other: &ServiceCIDR| {
                prefixes(other)
                    .iter()
                    .any(|o| mine.iter().any(|m| m.contains(o.address) || o.contains(m.address)))
            };
            wake(&overlapping, overlaps, enqueue);
        })
        .watch(&addresses, move |change, enqueue| {
            if let Some(address) = allocated(change.object()) {
                wake(&containing, |range| prefixes(range).iter().any(|p| p.contains(address)), enqueue);
            }
        })
        .run(reconciler)
        .boxed()
}

fn wake(ranges: &Informer<ServiceCIDR>, which: impl Fn(&ServiceCIDR) -> bool, enqueue: Enqueue<'_>) {
    ranges
        .list()
        .iter()
        .filter(|range| which(range))
        .for_each(|range| enqueue(ObjectKey::of(&range.metadata)));
}

/// The address, if the API server gave it out.
fn allocated(address: &IPAddress) -> Option<IpAddr> {
    let labels = address.metadata.labels.as_ref()?;
    if labels.get(MANAGED_BY).map(String::as_str) != Some(ALLOCATOR) {
        return None;
    }
    address.metadata.name.as_deref()?.parse().ok()
}

fn prefixes(range: &ServiceCIDR) -> Vec<Prefix> {
    let cidrs = range.spec.as_ref().and_then(|spec| spec.cidrs.as_ref());
    cidrs.into_iter().flatten().filter_map(|cidr| Prefix::parse(cidr)).collect()
}

/// Whether a range can go: all its parts lie in other ranges, or no address would be left without one.
fn is_free(range: &ServiceCIDR, all: &[Arc<ServiceCIDR>], addresses: &[IpAddr]) -> bool {
    let others: Vec<Prefix> = all
        .iter()
        .filter(|other| other.metadata.name != range.metadata.name)
        .flat_map(|other| prefixes(other))
        .collect();
    let mine = prefixes(range);
    if mine.iter().all(|prefix| others.iter().any(|other| other.holds(prefix))) {
        return true;
    }
    let held = |address: &IpAddr| others.iter().any(|other| other.contains(*address));
    !addresses.iter().any(|a| mine.iter().any(|prefix| prefix.contains(*a)) && !held(a))
}

/// What is to be done with a range.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It is ready.
    Ready,
    /// It goes, once its addresses have gone.
    Blocked,
    /// It goes soon.
    GoesIn(Duration),
    /// Nothing holds it.
    GoesNow,
}

fn decide(range: &ServiceCIDR, is_free: impl FnOnce() -> bool, now: Timestamp) -> Step {
    let Some(since) = &range.metadata.deletion_timestamp else { return Step::Ready };
    if !is_free() {
        return Step::Blocked;
    }
    let left = GRACE - now.duration_since(since.0);
    match Duration::try_from(left) {
        Ok(left) if !left.is_zero() => Step::GoesIn(left),
        _ => Step::GoesNow,
    }
}

struct Ranges {
    ranges: Informer<ServiceCIDR>,
    addresses: Informer<IPAddress>,
    api: Api<ServiceCIDR>,
    events: EventRecorder,
    clock: Clock,
}

impl Ranges {
    /// Sets the condition, where it says something else.
    async fn tell(
        &self,
        range: &ServiceCIDR,
        ready: bool,
        reason: &str,
        message: &str,
    ) -> Result<(), Status> {
        let status = if ready { "True" } else { "False" };
        let known =
            range.status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_ == "Ready");
        if known.is_some_and(|c| c.status == status && c.reason == reason && c.message == message) {
            return Ok(());
        }
        let name = range.metadata.name.as_deref().unwrap_or("");
        let at = self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let patch = json!({ "status": { "conditions": [{
            "type": "Ready", "status": status, "reason": reason, "message": message, "lastTransitionTime": at }] } });
        ignore_not_found(self.api.patch_status("", name, PatchKind::Strategic, patch).await)
    }
}

#[async_trait]
impl Reconciler for Ranges {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(range) = self.ranges.get("", &key.name) else { return Ok(Action::AwaitChange) };
        let addresses =
            || -> Vec<IpAddr> { self.addresses.list().iter().filter_map(|a| allocated(a)).collect() };
        let is_free = || is_free(&range, &self.ranges.list(), &addresses());
        match decide(&range, is_free, self.clock.now()) {
            Step::GoesIn(left) => return Ok(Action::RequeueAfter(left)),
            Step::GoesNow => {
                let change = finalizer::decide(&range.metadata, FINALIZER, false);
                finalizer::carry_out(&self.api, &range, FINALIZER, &change).await?;
            }
            Step::Blocked => {
                let message = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create \
                               a new ServiceCIDR";
                self.tell(&range, false, "Terminating", message).await?;
            }
            Step::Ready => {
                let change = finalizer::decide(&range.metadata, FINALIZER, true);
                finalizer::carry_out(&self.api, &range, FINALIZER, &change).await?;
                if change == Finalizer::Add {
                    // The write above comes back as a change.
                    return Ok(Action::AwaitChange);
                }
                if let Err(status) = self.tell(&range, true, "", "Kubernetes Service CIDR is ready").await {
                    let message = "The ServiceCIDR Status can not be set to Ready=True";
                    self.events.event(&*range, EventType::Warning, "KubernetesServiceCIDRError", message);
                    return Err(status);
                }
            }
        }
        Ok(Action::AwaitChange)
    }
}

#[cfg(test)]
mod tests {
    use coracle_client::testing::FakeTransport;
    use coracle_client::{Client, DeleteOptions};

    use super::*;
    use crate::testing::{context_at, eventually, test_clock};

    fn range(name: &str, cidrs: &[&str]) -> ServiceCIDR {
        serde_json::from_value(json!({ "metadata": { "name": name }, "spec": { "cidrs": cidrs } }))
            .expect("a range")
    }

    #[test]
    fn a_range_is_free_when_its_addresses_are_held_by_others() {
        let all = |list: &[&[&str]]| -> Vec<Arc<ServiceCIDR>> {
            list.iter().enumerate().map(|(n, cidrs)| Arc::new(range(&format!("r{n}"), cidrs))).collect()
        };
        let used: Vec<IpAddr> =
            vec!["10.0.0.5".parse().expect("an address"), "fd00::5".parse().expect("one")];
        let free = |list: &[&[&str]], used: &[IpAddr]| {
            let all = all(list);
            is_free(&all[0], &all, used)
        };
        assert!(free(&[&["10.0.0.0/24"]], &[]));
        assert!(!free(&[&["10.0.0.0/24"]], &used));
        assert!(free(&[&["10.0.0.0/24"], &["10.0.0.0/16"]], &used), "a larger range holds it");
        assert!(free(&[&["10.0.0.0/16"], &["10.0.0.0/24"]], &used), "a smaller one holds all its addresses");
        assert!(!free(&[&["10.0.0.0/24", "fd00::/64"], &["10.0.0.0/16"]], &used), "of both families");
        assert!(free(&[&["10.1.0.0/24"]], &used), "others' addresses do not matter");
    }

    #[tokio::test(start_paused = true)]
    async fn a_range_is_ready_and_goes_when_its_last_address_has_gone_after_a_grace() {
        let clock = test_clock();
        let fake = FakeTransport::new(clock.clone());
        let client: Client = fake.client();
        let task = tokio::spawn(run(&context_at(&fake, clock)));
        let (ranges, addresses) = (client.api::<ServiceCIDR>(), client.api::<IPAddress>());
        ranges.create("", range("mine", &["10.0.0.0/24"])).await.expect("created");
        let address = json!({ "metadata": { "name": "10.0.0.7", "labels": { MANAGED_BY: ALLOCATOR } },
            "spec": { "parentRef": { "resource": "services", "name": "s", "namespace": "ns" } } });
        let address: IPAddress = serde_json::from_value(address).expect("an address");
        addresses.create("", address).await.expect("created");
        let reason = || async {
            let found = ranges.get("", "mine").await.ok()?;
            let condition = found.status.as_ref()?.conditions.as_ref()?.first()?.clone();
            Some(format!("{}/{}", condition.status, condition.reason))
        };
        eventually(|| async { reason().await.as_deref() == Some("True/") }).await;
        ranges.delete("", "mine", DeleteOptions::default()).await.expect("deleted");
        eventually(|| async { reason().await.as_deref() == Some("False/Terminating") }).await;
        let asked = tokio::time::Instant::now();
        addresses.delete("", "10.0.0.7", DeleteOptions::default()).await.expect("deleted");
        eventually(|| async { ranges.get("", "mine").await.is_err() }).await;
        assert!(asked.elapsed().as_secs() >= 8, "allocators had the time to hear of it");
        task.abort();
    }
}
