//! Device taint eviction: deletes the pods whose claims have devices with NoExecute taints that nobody tolerates, when
//! their time is up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_client::{Api, Change, EventRecorder, EventType, Index, Informer};
use coracle_meta::placement::tolerates_device;
use coracle_meta::{Status, pod as podutil};
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    Device, DeviceRequestAllocationResult, DeviceTaint, DeviceToleration, ResourceClaim,
    ResourceClaimConsumerReference, ResourceSlice,
};
use parking_lot::Mutex;

use crate::pods::disrupt;
use crate::runtime::{Action, Context, Controller, Descriptor, ObjectKey, Reconciler, uid_of};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "device-taint-eviction-controller", workers: 8 };

/// Starts the controller. Its keys are claims.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let (pods, claims) = (cx.informers.get::<Pod>(), cx.informers.get::<ResourceClaim>());
    let slices = cx.informers.get::<ResourceSlice>();
    let (of_pool, of_pod) = (claims.index("pool", pools_of), claims.index("consumer", consumers_of));
    let reconciler = Arc::new(Evict {
        claims: claims.clone(),
        pods: pods.clone(),
        slices: slices.index("pool", |slice| vec![pool_of(&slice.spec.driver, &slice.spec.pool.name)]),
        api: cx.client(DESCRIPTOR.name).api(),
        events: cx.recorder(DESCRIPTOR.name),
        clock: cx.clock.clone(),
        waiting: Mutex::default(),
    });
    Controller::new(DESCRIPTOR)
        .watch_primary(&claims)
        .watch(&slices, move |change, enqueue| {
            let taints = |slice: &ResourceSlice| {
                slice.spec.devices.iter().flatten().any(|device| device.taints.is_some())
            };
            let news = match change {
                Change::Modified { old, new } => taints(old) || taints(new),
                _ => taints(change.object()),
            };
            if news {
                let spec = &change.object().spec;
                let claims = of_pool.get(&pool_of(&spec.driver, &spec.pool.name));
                claims.iter().for_each(|claim| enqueue(ObjectKey::of(&claim.metadata)));
            }
        })
        .watch(&pods, move |change, enqueue| {
            let bound = match change {
                Change::Added(pod) => podutil::node_name(pod).is_some(),
                Change::Modified { old, new } => {
                    podutil::node_name(old).is_none() && podutil::node_name(new).is_some()
                }
                Change::Deleted(_) => false,
            };
            if bound {
                let claims = of_pod.get(uid_of(&**change.object()));
                claims.iter().for_each(|claim| enqueue(ObjectKey::of(&claim.metadata)));
            }
        })
        .run(reconciler)
        .boxed()
}

fn pool_of(driver: &str, pool: &str) -> String {
    format!("{driver}/{pool}")
}

fn results(claim: &ResourceClaim) -> &[DeviceRequestAllocationResult] {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let devices = allocation.and_then(|allocation| allocation.devices.as_ref());
    devices.and_then(|devices| devices.results.as_deref()).unwrap_or(&[])
}

fn pools_of(claim: &ResourceClaim) -> Vec<String> {
    results(claim).iter().map(|result| pool_of(&result.driver, &result.pool)).collect()
}

fn consumers(claim: &ResourceClaim) -> &[ResourceClaimConsumerReference] {
    claim.status.as_ref().and_then(|status| status.reserved_for.as_deref()).unwrap_or(&[])
}

fn consumers_of(claim: &ResourceClaim) -> Vec<String> {
    consumers(claim).iter().map(|consumer| consumer.uid.clone()).collect()
}

/// When a taint lets the users of a device go; `None` for never.
fn end(result: &DeviceRequestAllocationResult, taint: &DeviceTaint, now: Timestamp) -> Option<Timestamp> {
    if taint.effect != "NoExecute" {
        return None;
    }
    let since = taint.time_added.as_ref().map_or(now, |time| time.0);
    let matches = |toleration: &&DeviceToleration| {
        toleration.effect.as_deref() == Some("NoExecute") && tolerates_device(toleration, taint)
    };
    let mut wait: Option<Duration> = None;
    for toleration in result.tolerations.iter().flatten().filter(matches) {
        let seconds = u64::try_from(toleration.toleration_seconds?).unwrap_or(0);
        let this = Duration::from_secs(seconds);
        wait = Some(wait.map_or(this, |wait| wait.min(this)));
    }
    Some(since.checked_add(wait.unwrap_or_default()).unwrap_or(Timestamp::MAX))
}

/// When the pods of a claim have to go, by the devices of the newest slices.
fn eviction<'a>(
    claim: &ResourceClaim,
    device: impl Fn(&DeviceRequestAllocationResult) -> Option<&'a Device>,
    now: Timestamp,
) -> Option<Timestamp> {
    let ends = results(claim).iter().flat_map(|result| {
        let taints = device(result).and_then(|device| device.taints.as_deref()).unwrap_or(&[]);
        taints.iter().filter_map(move |taint| end(result, taint, now))
    });
    ends.min()
}

struct Evict {
    claims: Informer<ResourceClaim>,
    pods: Informer<Pod>,
    slices: Index<ResourceSlice>,
    api: Api<Pod>,
    events: EventRecorder,
    clock: Clock,
    /// By claim: the pods that go when their time is up.
    waiting: Mutex<BTreeMap<ObjectKey, BTreeSet<ObjectKey>>>,
}

#[async_trait]
impl Reconciler for Evict {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(claim) = self.claims.get(&key.namespace, &key.name) else {
            self.waiting.lock().remove(key);
            return Ok(Action::AwaitChange);
        };
        let slices: Vec<Arc<ResourceSlice>> = pools_of(&claim)
            .into_iter()
            .collect::<BTreeSet<_>>()
            .iter()
            .flat_map(|p| self.slices.get(p))
            .collect();
        let now = self.clock.now();
        let at = eviction(&claim, |result| find(&slices, result), now);
        let users: Vec<Arc<Pod>> = consumers(&claim)
            .iter()
            .filter_map(|user| self.pods.get(&key.namespace, &user.name).filter(|p| uid_of(&**p) == user.uid))
            .filter(|pod| podutil::node_name(pod).is_some() && pod.metadata.deletion_timestamp.is_none())
            .collect();
        let left = at.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
        let waits = left.is_some_and(|left| !left.is_zero());
        let pods: BTreeSet<ObjectKey> = users.iter().map(|pod| ObjectKey::of(&pod.metadata)).collect();
        let before = self.waiting.lock().remove(key).unwrap_or_default();
        if at.is_none() {
            let waited = |pod: &&Arc<Pod>| before.contains(&ObjectKey::of(&pod.metadata));
            users.iter().filter(waited).for_each(|pod| self.tell(pod, "Cancelling deletion"));
        }
        if waits && !pods.is_empty() {
            self.waiting.lock().insert(key.clone(), pods);
        }
        match left {
            None => Ok(Action::AwaitChange),
            Some(left) if waits => Ok(Action::RequeueAfter(left)),
            Some(_) => {
                for pod in users {
                    self.evict(&pod).await?;
                }
                Ok(Action::AwaitChange)
            }
        }
    }
}

/// A device in the newest slices of its pool.
fn find<'a>(slices: &'a [Arc<ResourceSlice>], result: &DeviceRequestAllocationResult) -> Option<&'a Device> {
    let of_pool = || {
        slices
            .iter()
            .filter(|slice| slice.spec.driver == result.driver && slice.spec.pool.name == result.pool)
    };
    let newest = of_pool().map(|slice| slice.spec.pool.generation).max()?;
    let newest = of_pool().filter(|slice| slice.spec.pool.generation == newest);
    newest.flat_map(|slice| slice.spec.devices.iter().flatten()).find(|device| device.name == result.device)
}

impl Evict {
    /// Tells of a pod's fate.
    fn tell(&self, pod: &Pod, message: &str) {
        self.events.event(pod, EventType::Normal, "DeviceTaintManagerEviction", message);
    }

    async fn evict(&self, pod: &Pod) -> Result<(), Status> {
        self.tell(pod, "Marking for deletion");
        let why = "Device Taint manager: deleting due to NoExecute taint";
        disrupt(&self.api, pod, "DeletionByDeviceTaintManager", why, self.clock.now()).await
    }
}

#[cfg(test)]
mod tests {
    use coracle_client::PatchKind;
    use coracle_client::testing::FakeTransport;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{context, eventually};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    #[test]
    fn the_shortest_toleration_of_the_earliest_taint_counts() {
        let ends = |taint: Value, tolerations: Value| {
            let taint = serde_json::from_value(taint).expect("a taint");
            let result = json!({ "driver": "d", "pool": "p", "device": "x", "request": "r", "tolerations": tolerations });
            end(&serde_json::from_value(result).expect("a result"), &taint, at(500)).map(|at| at.as_second())
        };
        let taint = json!({ "key": "k", "effect": "NoExecute", "timeAdded": "1970-01-01T00:01:40Z" });
        assert_eq!(ends(taint.clone(), json!(null)), Some(100));
        let exists = |seconds: Value| json!({ "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds });
        assert_eq!(ends(taint.clone(), json!([exists(json!(90)), exists(json!(60))])), Some(160));
        assert_eq!(ends(taint, json!([exists(json!(60)), exists(json!(null))])), None);
        assert_eq!(ends(json!({ "key": "k", "effect": "NoSchedule" }), json!(null)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn pods_go_when_a_device_of_theirs_is_tainted() {
        let fake = FakeTransport::new(Clock::system());
        let client = fake.client();
        let (pods, claims) = (client.api::<Pod>(), client.api::<ResourceClaim>());
        let slices = client.api::<ResourceSlice>();
        let task = tokio::spawn(run(&context(&fake)));
        let slice = json!({ "metadata": { "name": "s" }, "spec": { "driver": "d", "nodeName": "n",
            "pool": { "name": "p", "generation": 1, "resourceSliceCount": 1 }, "devices": [{ "name": "x" }] } });
        slices.create("", serde_json::from_value(slice).expect("a slice")).await.expect("created");
        let pod = json!({ "metadata": { "name": "p" }, "spec": { "nodeName": "n", "containers": [] } });
        let made = pods.create("ns", serde_json::from_value(pod).expect("a pod")).await.expect("created");
        let allocation = json!({ "devices": { "results": [{ "driver": "d", "pool": "p", "device": "x", "request": "r" }] } });
        let user = json!({ "resource": "pods", "name": "p", "uid": made.metadata.uid });
        let claim = json!({ "metadata": { "name": "c" }, "spec": {},
            "status": { "allocation": allocation, "reservedFor": [user] } });
        claims.create("ns", serde_json::from_value(claim).expect("a claim")).await.expect("created");
        tokio::time::sleep(Duration::from_secs(5)).await;
        let pod = || async { pods.get("ns", "p").await.expect("its kubelet ends it") };
        assert_eq!(pod().await.metadata.deletion_timestamp, None, "nothing is tainted");
        let tainted = json!({ "spec": { "devices": [{ "name": "x", "taints": [{ "key": "k", "effect": "NoExecute" }] }] } });
        slices.patch("", "s", PatchKind::Merge, tainted).await.expect("patched");
        eventually(|| async { pod().await.metadata.deletion_timestamp.is_some() }).await;
        let pod = pod().await;
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or(&[]);
        let reason =
            conditions.iter().find(|c| c.type_ == "DisruptionTarget").and_then(|c| c.reason.as_deref());
        assert_eq!(reason, Some("DeletionByDeviceTaintManager"));
        task.abort();
    }
}
