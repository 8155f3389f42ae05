//! Taint eviction: deletes the pods that do not tolerate their node's NoExecute taints, when their time
//! is up.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_client::{Api, Change, DeleteOptions, EventRecorder, EventType, Index, Informer, PatchKind};
use coracle_meta::placement::tolerates;
use coracle_meta::{Reason, Status, pod as podutil};
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::{DESCRIPTOR, pods_by_node};
use crate::runtime::{Action, Context, Controller, ObjectKey, Reconciler, ignore_not_found, name_of};

/// Starts the controller. Its keys are nodes.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let (nodes, pods) = (cx.informers.get::<Node>(), cx.informers.get::<Pod>());
    let reconciler = Arc::new(Evict {
        nodes: nodes.clone(),
        pods: pods.index("node", pods_by_node),
        api: cx.client(DESCRIPTOR.name).api(),
        events: cx.recorder_as(DESCRIPTOR.name, "taint-eviction-controller"),
        clock: cx.clock.clone(),
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
                Change::Deleted(_) => None,
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
}

#[async_trait]
impl Reconciler for Evict {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(node) = self.nodes.get("", &key.name) else { return Ok(Action::AwaitChange) };
        let taints: Vec<&Taint> = no_execute(&node).collect();
        if taints.is_empty() {
            return Ok(Action::AwaitChange);
        }
        let now = self.clock.now();
        let mut next: Option<Duration> = None;
        for pod in self.pods.get(&key.name) {
            if pod.metadata.deletion_timestamp.is_some() {
                continue;
            }
            match decide(&taints, &pod, now) {
                Fate::Stays => {}
                Fate::GoesIn(wait) => next = Some(next.map_or(wait, |n| n.min(wait))),
                Fate::GoesNow => self.evict(&pod).await?,
            }
        }
        Ok(next.map_or(Action::AwaitChange, Action::RequeueAfter))
    }
}

impl Evict {
    async fn evict(&self, pod: &Pod) -> Result<(), Status> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
        let name = name_of(pod);
        let message = format!("Marking for deletion Pod {namespace}/{name}");
        self.events.event(pod, EventType::Normal, "TaintManagerEviction", message);
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
            "lastTransitionTime": Time(self.clock.now()),
        });
        let patch = json!({ "status": { "conditions": [condition] } });
        match self.api.patch_status(namespace, name, PatchKind::Strategic, patch).await {
            Err(status) if status.reason() == Reason::NotFound => return Ok(()),
            outcome => drop(outcome?),
        }
        let options = DeleteOptions { uid: pod.metadata.uid.clone(), ..DeleteOptions::default() };
        ignore_not_found(self.api.delete(namespace, name, options).await)
    }
}

/// What becomes of a pod on a tainted node.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    GoesIn(Duration),
    GoesNow,
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
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
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
    use serde_json::{Value, json};

    use super::*;

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
}
