//! TTL controller: tells kubelets by an annotation on their nodes how long they may keep Secrets and ConfigMaps, longer
//! in larger clusters.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use coracle_client::{Api, Informer, PatchKind};
use coracle_meta::Status;
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use crate::runtime::{Action, Context, Controller, Descriptor, ObjectKey, Reconciler, ignore_not_found};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "ttl-controller", workers: 1 };

const ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";
/// From how many nodes on a step is left, up to how many it holds, and its seconds. The steps overlap, so that a
/// cluster that grows and shrinks a little does not swing.
const STEPS: [(usize, usize, u32); 6] = [
    (0, 100, 0),
    (90, 500, 15),
    (450, 1000, 30),
    (900, 2000, 60),
    (1800, 10_000, 300),
    (9000, usize::MAX, 600),
];

/// The step that holds for this many nodes, when `step` held before.
fn step_of(nodes: usize, step: usize) -> usize {
    let mut step = step;
    while nodes > STEPS[step].1 {
        step += 1;
    }
    while nodes < STEPS[step].0 {
        step -= 1;
    }
    step
}

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let nodes = cx.informers.get::<Node>();
    let api = cx.client(DESCRIPTOR.name).api();
    let reconciler = Arc::new(Ttl { nodes: nodes.clone(), api, step: AtomicUsize::new(0) });
    Controller::new(DESCRIPTOR).watch_primary(&nodes).run(reconciler).boxed()
}

struct Ttl {
    nodes: Informer<Node>,
    api: Api<Node>,
    step: AtomicUsize,
}

#[async_trait]
impl Reconciler for Ttl {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(node) = self.nodes.get("", &key.name) else { return Ok(Action::AwaitChange) };
        // One worker: nobody else changes the step.
        let step = step_of(self.nodes.list().len(), self.step.load(Ordering::Relaxed));
        self.step.store(step, Ordering::Relaxed);
        let seconds = STEPS[step].2.to_string();
        let known = node.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION));
        if known != Some(&seconds) {
            let patch = json!({ "metadata": { "annotations": { ANNOTATION: seconds } } });
            ignore_not_found(self.api.patch("", &key.name, PatchKind::Strategic, patch).await)?;
        }
        Ok(Action::AwaitChange)
    }
}

#[cfg(test)]
mod tests {
    use coracle_client::testing::FakeTransport;
    use coracle_stdx::Clock;

    use super::*;
    use crate::testing::{context, eventually};

    #[test]
    fn a_step_is_left_only_well_beyond_its_ends() {
        assert_eq!([step_of(1, 0), step_of(100, 0), step_of(101, 0)], [0, 0, 1]);
        assert_eq!([step_of(90, 1), step_of(89, 1), step_of(5000, 0), step_of(0, 5)], [1, 0, 4, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn every_node_bears_the_annotation() {
        let fake = FakeTransport::new(Clock::system());
        let task = tokio::spawn(run(&context(&fake)));
        let nodes = fake.client().api::<Node>();
        let node: Node = serde_json::from_value(json!({ "metadata": { "name": "n" } })).expect("a node");
        nodes.create("", node).await.expect("created");
        eventually(|| async {
            let node = nodes.get("", "n").await.expect("there");
            node.metadata
                .annotations
                .as_ref()
                .and_then(|all| all.get(ANNOTATION))
                .is_some_and(|ttl| ttl == "0")
        })
        .await;
        task.abort();
    }
}
