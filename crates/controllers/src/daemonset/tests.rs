//! Tests of the DaemonSet's decisions over random histories, and of the controller over the in-memory API.

use coracle_client::testing::FakeTransport;
use coracle_client::{ListOptions, PatchKind};
use coracle_meta::pod as podutil;
use rand::Rng;
use serde_json::{Value, json};

use super::*;
use crate::pods::is_available;
use crate::testing::{befall, context, eventually, play_kubelet, seeded};

fn set(image: &str, extra: &Value) -> Arc<DaemonSet> {
    let mut value = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": { "name": "d", "namespace": "ns", "uid": "d-uid", "generation": 1 },
        "spec": {
            "selector": { "matchLabels": { "app": "d" } },
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 1 } },
            "template": {
                "metadata": { "labels": { "app": "d" } },
                "spec": { "containers": [{ "name": "c", "image": image }] },
            },
        },
    });
    for (key, extra) in extra.as_object().into_iter().flatten() {
        value["spec"][key] = extra.clone();
    }
    Arc::new(serde_json::from_value(value).expect("a set"))
}

fn node(name: &str, extra: &Value) -> Arc<Node> {
    let mut value = json!({ "metadata": { "name": name }, "spec": {} });
    for (key, extra) in extra.as_object().into_iter().flatten() {
        value[key] = extra.clone();
    }
    Arc::new(serde_json::from_value(value).expect("a node"))
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

#[test]
fn selector_affinity_and_taints_decide_where_daemons_run() {
    let plain = set("a", &json!({}));
    let taint = |key: &str, effect: &str| json!({ "spec": { "taints": [{ "key": key, "effect": effect }] } });
    assert_eq!(wish(&plain, &node("n", &json!({}))), Wish::Run);
    assert_eq!(wish(&plain, &node("n", &taint("mine", "NoSchedule"))), Wish::Keep);
    assert_eq!(wish(&plain, &node("n", &taint("mine", "NoExecute"))), Wish::Leave);
    assert_eq!(wish(&plain, &node("n", &taint("mine", "PreferNoSchedule"))), Wish::Run);
    assert_eq!(wish(&plain, &node("n", &taint("node.kubernetes.io/unschedulable", "NoSchedule"))), Wish::Run);
    assert_eq!(wish(&plain, &node("n", &taint("node.kubernetes.io/unreachable", "NoExecute"))), Wish::Run);
    let network = taint("node.kubernetes.io/network-unavailable", "NoSchedule");
    assert_eq!(wish(&plain, &node("n", &network)), Wish::Keep);
    let mut spec = json!({ "metadata": { "labels": { "app": "d" } },
        "spec": { "hostNetwork": true, "containers": [], "nodeSelector": { "disk": "fast" } } });
    let picky = set("a", &json!({ "template": spec }));
    assert_eq!(wish(&picky, &node("n", &network)), Wish::Leave, "the selector does not match");
    spec["spec"]["nodeSelector"] = json!({});
    assert_eq!(wish(&set("a", &json!({ "template": spec })), &node("n", &network)), Wish::Run);
}

#[test]
fn a_daemon_pod_is_pinned_to_its_node_by_name() {
    let pod = new_pod(&set("a", &json!({})), "n1", "hash");
    assert_eq!(placing::target(&pod).as_deref(), Some("n1"));
    assert_eq!(pod.metadata.generate_name.as_deref(), Some("d-"));
    assert_eq!(pod.metadata.labels.expect("labels")[REVISION_HASH], "hash");
    let keys: Vec<String> =
        pod.spec.expect("spec").tolerations.into_iter().flatten().filter_map(|t| t.key).collect();
    assert_eq!(keys.len(), 6, "{keys:?}");
}

#[test]
fn a_failed_daemon_pod_is_replaced_with_growing_patience() {
    let mut backoffs = Backoffs::new();
    let key = || ("u".to_owned(), 1, "n".to_owned());
    let mut waits = Vec::new();
    let mut now = at(0);
    for _ in 0..4 {
        assert_eq!(may_replace(&mut backoffs, key(), now), None);
        let wait = may_replace(&mut backoffs, key(), now).expect("too soon");
        waits.push(wait.as_secs());
        now += wait;
    }
    assert_eq!(waits, [1, 2, 4, 8]);
    assert_eq!(may_replace(&mut backoffs, key(), now + SignedDuration::from_secs(1801)), None);
    assert_eq!(
        may_replace(&mut backoffs, key(), now + SignedDuration::from_secs(1801)).map(|w| w.as_secs()),
        Some(1)
    );
}

/// A cluster of the tests' own.
struct World {
    set: Arc<DaemonSet>,
    hash: String,
    nodes: Vec<Arc<Node>>,
    pods: Vec<Arc<Pod>>,
    made: usize,
    now: i64,
}

impl World {
    fn view(&self) -> View<'_> {
        View::new(&self.set, &self.nodes, &self.pods, &self.hash, at(self.now))
    }

    fn live_on(&self, node: &str) -> Vec<&Arc<Pod>> {
        let live = |p: &&Arc<Pod>| p.metadata.deletion_timestamp.is_none() && !podutil::is_terminal(p);
        self.pods.iter().filter(live).filter(|p| placing::target(p).as_deref() == Some(node)).collect()
    }

    /// Nodes that want a pod and have an available one that is not being deleted.
    fn served(&self) -> usize {
        let wants = |n: &&Arc<Node>| wish(&self.set, n) == Wish::Run;
        let has = |n: &&Arc<Node>| self.live_on(name_of(&***n)).iter().any(|p| self.is_available(p));
        self.nodes.iter().filter(wants).filter(has).count()
    }

    fn desired(&self) -> usize {
        self.nodes.iter().filter(|n| wish(&self.set, n) == Wish::Run).count()
    }

    /// The new and the old pods that live on a node.
    fn both(&self, node: &str) -> (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) {
        self.live_on(node).into_iter().partition(|pod| placing::is_updated(&self.set, pod, &self.hash))
    }

    fn is_available(&self, pod: &Pod) -> bool {
        is_available(pod, self.min_ready(), at(self.now))
    }

    fn min_ready(&self) -> i32 {
        self.set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    /// Nodes where a new pod is not available yet beside an old one.
    fn surging(&self) -> usize {
        let is = |n: &&Arc<Node>| {
            let (new, old) = self.both(name_of(&***n));
            !old.is_empty() && new.iter().any(|pod| !self.is_available(pod))
        };
        self.nodes.iter().filter(is).count()
    }

    /// Plays one pass of the controller; the nodes that got a pod although they have an old one that is available,
    /// and whether it did nothing.
    fn pass(&mut self) -> (usize, bool) {
        let plan = {
            let view = self.view();
            let plan = decide::manage(&view, &mut |_| None);
            if plan.is_empty() { decide::rolling_update(&view) } else { plan }
        };
        let idle = plan.is_empty();
        let serves = |node: &&String| self.both(node).1.iter().any(|pod| self.is_available(pod));
        let surged = plan.create.iter().filter(serves).count();
        for node in &plan.create {
            self.made += 1;
            let mut pod = new_pod(&self.set, node, &self.hash);
            pod.metadata.name = Some(format!("p{:05}", self.made));
            pod.metadata.uid = pod.metadata.name.clone();
            pod.metadata.creation_timestamp =
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(self.now)));
            self.pods.push(Arc::new(pod));
        }
        for victim in &plan.delete {
            for pod in self.pods.iter_mut().filter(|p| p.metadata.uid == victim.metadata.uid) {
                let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(self.now));
                Arc::make_mut(pod).metadata.deletion_timestamp = Some(time);
            }
        }
        (surged, idle)
    }

    /// Nodes come, go, and are closed; what was on one that is gone goes too.
    fn weather(&mut self, rng: &mut impl Rng) {
        if rng.random_range(0..30) > 0 {
            return;
        }
        let name = format!("n{}", rng.random_range(0..9));
        let taint = |effect: &str| json!({ "spec": { "taints": [{ "key": "k", "effect": effect }] } });
        self.nodes.retain(|node| name_of(&**node) != name);
        match rng.random_range(0..6) {
            0 => self.pods.retain(|pod| placing::target(pod).as_deref() != Some(&name)),
            1 => self.nodes.push(node(&name, &taint("NoSchedule"))),
            2 => self.nodes.push(node(&name, &taint("NoExecute"))),
            _ => self.nodes.push(node(&name, &json!({}))),
        }
    }

    /// The kubelets work on one pod.
    fn kubelet(&mut self, rng: &mut impl Rng, kindly: bool) {
        if self.pods.is_empty() {
            return;
        }
        let which = rng.random_range(0..self.pods.len());
        if self.pods[which].metadata.deletion_timestamp.is_some() {
            self.pods.remove(which);
            return;
        }
        let now = at(self.now);
        let node = placing::target(&self.pods[which]);
        let pod = Arc::make_mut(&mut self.pods[which]);
        pod.spec.get_or_insert_default().node_name = node;
        befall(pod, rng.random_range(0..20), kindly, now);
    }
}

/// What a pass came to.
struct Passed {
    /// Nodes served before it.
    served: usize,
    /// Nodes that were surging before it, and that it let surge of its own will.
    surging: usize,
    surged: usize,
}

/// Updates with random weather. `check` sees the world after every pass of the controller.
fn history(seed: u64, strategy: &Value, check: impl Fn(&World, &Passed)) {
    let mut rng = seeded(seed);
    let nodes = (0..rng.random_range(1..9)).map(|n| node(&format!("n{n}"), &json!({}))).collect();
    let extra = json!({ "updateStrategy": strategy, "minReadySeconds": ([0, 0, 4][rng.random_range(0..3)]) });
    let set = set("v0", &extra);
    let mut world = World { set, hash: "v0".into(), nodes, pods: Vec::new(), made: 0, now: 0 };
    for step in 0..600 {
        world.now += 1;
        if step % 100 == 60 {
            world.hash = format!("v{}", rng.random_range(0..4));
        }
        world.weather(&mut rng);
        world.kubelet(&mut rng, false);
        let (served, surging) = (world.served(), world.surging());
        let (surged, _) = world.pass();
        check(&world, &Passed { served, surging, surged });
    }
    for _ in 0..1200 {
        world.now += 1;
        world.kubelet(&mut rng, true);
        world.pass();
    }
    assert!(world.pass().1, "seed {seed}: comes to rest");
    assert_eq!(world.served(), world.desired(), "seed {seed}");
    for n in &world.nodes {
        let live = world.live_on(name_of(&**n));
        match wish(&world.set, n) {
            Wish::Run => {
                assert_eq!(live.len(), 1, "seed {seed}");
                assert!(placing::is_updated(&world.set, live[0], &world.hash), "seed {seed}");
            }
            Wish::Keep => assert!(live.len() <= 1, "seed {seed}"),
            Wish::Leave => assert!(live.is_empty(), "seed {seed}"),
        }
    }
}

#[test]
fn without_surge_the_controller_never_takes_more_nodes_down_than_allowed() {
    for seed in 0..16 {
        let limit = 1 + usize::try_from(seed % 3).expect("small");
        let strategy = json!({ "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": limit } });
        history(seed, &strategy, |world, before| {
            let least = world.desired().saturating_sub(limit).min(before.served);
            assert!(world.served() >= least, "seed {seed}: {} of {}", world.served(), world.desired());
            for n in &world.nodes {
                assert!(world.live_on(name_of(&**n)).len() <= 1, "seed {seed}: one pod per node");
            }
        });
    }
}

#[test]
fn with_surge_no_node_loses_its_available_pod_and_no_more_surge_than_allowed() {
    for seed in 0..16 {
        let surge = 1 + usize::try_from(seed % 3).expect("small");
        let strategy = json!({ "type": "RollingUpdate",
            "rollingUpdate": { "maxUnavailable": 0, "maxSurge": surge } });
        history(seed, &strategy, |world, before| {
            assert!(world.served() >= before.served, "seed {seed}");
            for n in &world.nodes {
                assert!(world.live_on(name_of(&**n)).len() <= 2, "seed {seed}: two pods per node at most");
            }
            let allowed = before.surged == 0 || before.surging + before.surged <= surge;
            assert!(allowed, "seed {seed}: {} and {} surge", before.surging, before.surged);
        });
    }
}

#[tokio::test(start_paused = true)]
async fn nodes_get_and_lose_their_pod_and_a_new_template_rolls_and_goes_back() {
    let fake = FakeTransport::new(Clock::system());
    let client = fake.client();
    let task = tokio::spawn(run(&context(&fake)));
    let (sets, nodes, pods) = (client.api::<DaemonSet>(), client.api::<Node>(), client.api::<Pod>());
    for name in ["n1", "n2"] {
        nodes.create("", (*node(name, &json!({}))).clone()).await.expect("created");
    }
    sets.create("ns", (*set("a", &json!({}))).clone()).await.expect("created");
    let settled = |image: &'static str, count: usize| {
        let (client, sets, pods) = (client.clone(), sets.clone(), pods.clone());
        async move {
            play_kubelet(&client).await;
            let all = pods.list("ns", ListOptions::default()).await.expect("listed");
            let set = sets.get("ns", "d").await.expect("there");
            let status = set.status.clone().unwrap_or_default();
            let image_of = |p: &Pod| p.spec.as_ref().and_then(|s| s.containers[0].image.clone());
            all.len() == count
                && all.iter().all(|p| image_of(p).as_deref() == Some(image))
                && usize::try_from(status.number_available.unwrap_or(0)) == Ok(count)
                && status.observed_generation == set.metadata.generation
        }
    };
    eventually(|| settled("a", 2)).await;
    let tainted = json!({ "spec": { "taints": [{ "key": "k", "effect": "NoExecute" }] } });
    nodes.patch("", "n2", PatchKind::Merge, tainted).await.expect("patched");
    eventually(|| settled("a", 1)).await;
    nodes.patch("", "n2", PatchKind::Merge, json!({ "spec": { "taints": null } })).await.expect("patched");
    eventually(|| settled("a", 2)).await;
    let template = |image: &str| json!({ "spec": { "template": { "spec": { "containers": [{ "name": "c", "image": image }] } } } });
    sets.patch("ns", "d", PatchKind::Merge, template("b")).await.expect("patched");
    eventually(|| settled("b", 2)).await;
    sets.patch("ns", "d", PatchKind::Merge, template("a")).await.expect("patched");
    eventually(|| settled("a", 2)).await;
    let revisions =
        client.api::<ControllerRevision>().list("ns", ListOptions::default()).await.expect("listed");
    let mut numbers: Vec<i64> = revisions.iter().map(|r| r.revision).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3], "the first template's revision is the third now");
    task.abort();
}
