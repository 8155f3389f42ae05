//! Taint eviction: deletes the pods that do not tolerate their node's NoExecute taints, when their time
//! is up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_client::{Api, Change, EventRecorder, EventType, Index, Informer};
use coracle_meta::placement::tolerates;
use coracle_meta::{Status, pod as podutil};
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Taint};
use parking_lot::Mutex;

use super::{DESCRIPTOR, pods_by_node};
use crate::pods::disrupt;
use crate::runtime::{Action, Context, Controller, ObjectKey, Reconciler};

/// Starts the controller. Its keys are nodes.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let (nodes, pods) = (cx.informers.get::<Node>(), cx.informers.get::<Pod>());
    let reconciler = Arc::new(Evict {
        nodes: nodes.clone(),
        pods: pods.index("node", pods_by_node),
        api: cx.client(DESCRIPTOR.name).api(),
        events: cx.recorder_as(DESCRIPTOR.name, "taint-eviction-controller"),
        clock: cx.clock.clone(),
        waiting: Mutex::default(),
    });
    let tainted = nodes.clone();
    Controller::new(DESCRIPTOR)
        .watch(&nodes, |change, enqueue| {
            let news = match change {
                Change::Added(node) => no_execute(node).next().is_some(),
                Change::Modified { old, new } => !no_execute(old).eq(no_execute(new)),
                Change::Deleted(_) => false,
            };
            if news {
                enqueue(ObjectKey::of(&change.object().metadata));
            }
        })
        .watch(&pods, move |change, enqueue| {
            let bound = match change {
                Change::Added(pod) => podutil::node_name(pod),
                Change::Modified { old, new } => {
                    let old_spec = old.spec.as_ref().map(|s| (&s.node_name, &s.tolerations));
                    let new_spec = new.spec.as_ref().map(|s| (&s.node_name, &s.tolerations));
                    podutil::node_name(new).filter(|_| old_spec != new_spec)
                }
                Change::Deleted(pod) => podutil::node_name(pod),
            };
            let Some(node) = bound.and_then(|name| tainted.get("", name)) else { return };
            if no_execute(&node).next().is_some() {
                enqueue(ObjectKey::of(&node.metadata));
            }
        })
        .run(reconciler)
        .boxed()
}

fn no_execute(node: &Node) -> impl Iterator<Item = &Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.into_iter().flatten().filter(|taint| taint.effect == "NoExecute")
}

struct Evict {
    nodes: Informer<Node>,
    pods: Index<Pod>,
    api: Api<Pod>,
    events: EventRecorder,
    clock: Clock,
    /// By node: the pods that go when their time is up.
    waiting: Mutex<BTreeMap<String, BTreeSet<ObjectKey>>>,
}

#[async_trait]
impl Reconciler for Evict {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(node) = self.nodes.get("", &key.name) else {
            self.waiting.lock().remove(&key.name);
            return Ok(Action::AwaitChange);
        };
        let taints: Vec<&Taint> = no_execute(&node).collect();
        let now = self.clock.now();
        let mut next: Option<Duration> = None;
        let mut waiting = BTreeSet::new();
        let (mut evicted, pods) = (Vec::new(), self.pods.get(&key.name));
        for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            match decide(&taints, pod, now) {
                Fate::Stays => {}
                Fate::GoesIn(wait) => {
                    next = Some(next.map_or(wait, |n| n.min(wait)));
                    waiting.insert(ObjectKey::of(&pod.metadata));
                }
                Fate::GoesNow => evicted.push(pod),
            }
        }
        let due: BTreeSet<ObjectKey> = evicted.iter().map(|pod| ObjectKey::of(&pod.metadata)).collect();
        let before = if waiting.is_empty() {
            self.waiting.lock().remove(&key.name)
        } else {
            self.waiting.lock().insert(key.name.clone(), waiting.clone())
        };
        for kept in before.iter().flatten().filter(|pod| !waiting.contains(*pod) && !due.contains(*pod)) {
            self.tell(kept, &format!("Cancelling deletion of Pod {kept}"));
        }
        for pod in evicted {
            self.evict(pod).await?;
        }
        Ok(next.map_or(Action::AwaitChange, Action::RequeueAfter))
    }
}

impl Evict {
    /// Tells of a pod's fate. It is named without its uid, as upstream does.
    fn tell(&self, pod: &ObjectKey, message: &str) {
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.namespace.clone()),
            name: Some(pod.name.clone()),
            ..ObjectReference::default()
        };
        self.events.event_about(about, EventType::Normal, "TaintManagerEviction", message.to_owned());
    }

    async fn evict(&self, pod: &Pod) -> Result<(), Status> {
        let key = ObjectKey::of(&pod.metadata);
        self.tell(&key, &format!("Marking for deletion Pod {key}"));
        let why = "Taint manager: deleting due to NoExecute taint";
        disrupt(&self.api, pod, "DeletionByTaintManager", why, self.clock.now()).await
    }
}

/// What becomes of a pod on a tainted node.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    GoesIn(Duration),
    GoesNow,
}

/// Since when a pod has to tolerate a taint: it may have come to its node when the taint was old.
fn tolerating_since(taint: &Taint, pod: &Pod, now: Timestamp) -> Timestamp {
    let scheduled = podutil::condition(pod, "PodScheduled").filter(|c| c.status == "True");
    let came = scheduled.and_then(|c| c.last_transition_time.clone());
    let came = came.or_else(|| pod.metadata.creation_timestamp.clone()).map(|time| time.0);
    let added = taint.time_added.as_ref().map(|time| time.0);
    came.max(added).unwrap_or(now)
}

/// A pod goes at once where a taint is not tolerated, else when the shortest tolerance is over.
fn decide(taints: &[&Taint], pod: &Pod, now: Timestamp) -> Fate {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.clone()).unwrap_or_default();
    let mut earliest: Option<Timestamp> = None;
    for taint in taints {
        let mut matching = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).peekable();
        if matching.peek().is_none() {
            return Fate::GoesNow;
        }
        let since = tolerating_since(taint, pod, now);
        for seconds in matching.filter_map(|toleration| toleration.toleration_seconds) {
            let wait = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            let end = since.checked_add(wait).unwrap_or(Timestamp::MAX);
            earliest = Some(earliest.map_or(end, |e| e.min(end)));
        }
    }
    match earliest.map(|end| Duration::try_from(end.duration_since(now)).unwrap_or_default()) {
        None => Fate::Stays,
        Some(Duration::ZERO) => Fate::GoesNow,
        Some(wait) => Fate::GoesIn(wait),
    }
}

#[cfg(test)]
mod tests {
    use coracle_client::ListOptions;
    use coracle_client::PatchKind;
    use coracle_client::testing::FakeTransport;
    use k8s_openapi::api::core::v1::Event;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{context, eventually};

    fn pod(tolerations: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": "p" }, "spec": { "containers": [], "tolerations": tolerations },
        }))
        .expect("a pod")
    }

    #[test]
    fn a_pod_stays_as_long_as_it_tolerates_the_taint() {
        let at = |second| Timestamp::from_second(second).expect("in range");
        let taint = Taint {
            key: "node.kubernetes.io/unreachable".into(),
            effect: "NoExecute".into(),
            time_added: Some(Time(at(100))),
            value: None,
        };
        let check = |tolerations: Value, expected: Fate| {
            assert_eq!(decide(&[&taint], &pod(&tolerations), at(150)), expected);
        };
        check(json!([]), Fate::GoesNow);
        check(json!([{ "operator": "Exists" }]), Fate::Stays);
        let key = "node.kubernetes.io/unreachable";
        let limited = |seconds| json!([{ "key": key, "operator": "Exists", "tolerationSeconds": seconds }]);
        check(limited(300), Fate::GoesIn(Duration::from_secs(250)));
        check(limited(50), Fate::GoesNow);
        check(json!([{ "key": key, "operator": "Equal", "value": "x" }]), Fate::GoesNow);
    }

    #[test]
    fn a_pod_that_came_to_an_old_taint_tolerates_it_from_then_on() {
        let at = |second| Timestamp::from_second(second).expect("in range");
        let taint = Taint {
            key: "k".into(),
            effect: "NoExecute".into(),
            time_added: Some(Time(at(100))),
            value: None,
        };
        let mut late = pod(&json!([{ "operator": "Exists", "tolerationSeconds": 60 }]));
        late.metadata.creation_timestamp = Some(Time(at(1000)));
        assert_eq!(decide(&[&taint], &late, at(1020)), Fate::GoesIn(Duration::from_secs(40)));
        assert_eq!(decide(&[], &late, at(9999)), Fate::Stays, "no taint, no end");
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_told_when_a_pod_need_not_go_after_all() {
        let fake = FakeTransport::new(Clock::system());
        let client = fake.client();
        let (nodes, pods) = (client.api::<Node>(), client.api::<Pod>());
        let tainted = json!({ "metadata": { "name": "n" },
            "spec": { "taints": [{ "key": "k", "effect": "NoExecute" }] } });
        nodes.create("", serde_json::from_value(tainted).expect("a node")).await.expect("created");
        let mut patient = pod(&json!([{ "operator": "Exists", "tolerationSeconds": 900 }]));
        patient.spec.get_or_insert_default().node_name = Some("n".to_owned());
        patient.metadata.creation_timestamp = Some(Time(Timestamp::now()));
        pods.create("ns", patient).await.expect("created");
        let cx = context(&fake);
        let task = tokio::spawn(run(&cx));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let free = json!({ "spec": { "taints": null } });
        nodes.patch("", "n", PatchKind::Merge, free).await.expect("patched");
        eventually(|| async {
            let all = client.api::<Event>().list("ns", ListOptions::default()).await.expect("listed");
            all.iter().any(|e| e.message.as_deref() == Some("Cancelling deletion of Pod ns/p"))
        })
        .await;
        assert_eq!(pods.list("ns", ListOptions::default()).await.expect("listed").len(), 1);
        task.abort();
    }
}
