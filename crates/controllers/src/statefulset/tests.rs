//! Tests of the StatefulSet's decisions over random histories, and of the controller over the in-memory API.

use coracle_client::testing::FakeTransport;
use coracle_client::{DeleteOptions, ListOptions, PatchKind};
use coracle_meta::pod as podutil;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::RollingUpdateStatefulSetStrategy;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rand::Rng;
use serde_json::{Value, json};

use super::identity::{ordinal, owners, revision};
use super::*;
use crate::pods::is_available;
use crate::testing::{befall, context, eventually, play_kubelet, seeded};

fn template(image: &str) -> PodTemplateSpec {
    let template = json!({ "metadata": { "labels": { "app": "s" } },
        "spec": { "containers": [{ "name": "c", "image": image }] } });
    serde_json::from_value(template).expect("a template")
}

fn set(replicas: i32, extra: &Value) -> Arc<StatefulSet> {
    let mut value = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": { "name": "s", "namespace": "ns", "uid": "s-uid", "generation": 1 },
        "spec": {
            "replicas": replicas, "serviceName": "peers", "selector": { "matchLabels": { "app": "s" } },
            "podManagementPolicy": "OrderedReady",
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "partition": 0 } },
            "template": template("v0"),
        },
    });
    for (key, extra) in extra.as_object().into_iter().flatten() {
        value["spec"][key] = extra.clone();
    }
    Arc::new(serde_json::from_value(value).expect("a set"))
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

/// A cluster of the tests' own.
struct World {
    set: Arc<StatefulSet>,
    current: String,
    update: String,
    pods: Vec<Arc<Pod>>,
    made: usize,
    now: i64,
}

impl World {
    fn new(set: Arc<StatefulSet>) -> Self {
        Self { set, current: "v0".into(), update: "v0".into(), pods: Vec::new(), made: 0, now: 0 }
    }

    fn plan(&self) -> decide::Plan {
        let (old, new) = (template(&self.current), template(&self.update));
        decide(&View {
            may_roll: true,
            set: &self.set,
            pods: &self.pods,
            current: Revision { name: &self.current, template: &old },
            update: Revision { name: &self.update, template: &new },
            collisions: 0,
            claims: &|_| None,
            now: at(self.now),
        })
    }

    fn healthy(&self) -> BTreeSet<i32> {
        let wait = self.set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
        let healthy = |p: &&Arc<Pod>| is_available(p, wait, at(self.now)) && podutil::is_active(p);
        self.pods.iter().filter(healthy).filter_map(|p| ordinal(&self.set, p)).collect()
    }

    fn numbers(&self) -> BTreeSet<i32> {
        self.pods.iter().filter_map(|p| ordinal(&self.set, p)).collect()
    }

    /// Plays one pass; the acts.
    fn pass(&mut self) -> Vec<Act> {
        let plan = self.plan();
        for act in &plan.acts {
            match act {
                Act::Create(pod) => {
                    assert!(self.pods.iter().all(|p| p.metadata.name != pod.metadata.name));
                    self.made += 1;
                    let mut pod = (**pod).clone();
                    pod.metadata.uid = Some(format!("u{}", self.made));
                    self.pods.push(Arc::new(pod));
                }
                Act::Delete(victim) => {
                    for pod in self.pods.iter_mut().filter(|p| p.metadata.uid == victim.metadata.uid) {
                        Arc::make_mut(pod).metadata.deletion_timestamp = Some(Time(at(self.now)));
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        self.current = plan.status.current_revision.clone().expect("named");
        let mut set = (*self.set).clone();
        set.status = Some(plan.status);
        self.set = Arc::new(set);
        plan.acts
    }

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
        let pod = Arc::make_mut(&mut self.pods[which]);
        befall(pod, rng.random_range(0..20), kindly, now);
    }

    fn change(&mut self, change: impl Fn(&mut k8s_openapi::api::apps::v1::StatefulSetSpec)) {
        let mut set = (*self.set).clone();
        change(set.spec.get_or_insert_default());
        self.set = Arc::new(set);
    }

    fn rolling(&self) -> RollingUpdateStatefulSetStrategy {
        let strategy = self.set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
        strategy.and_then(|strategy| strategy.rolling_update.clone()).unwrap_or_default()
    }

    /// Numbers below this one keep the current revision.
    fn first_to_roll(&self) -> i32 {
        identity::start(&self.set) + self.rolling().partition.unwrap_or(0)
    }

    fn move_partition(&mut self, to: i32) {
        self.change(|spec| {
            let strategy = spec.update_strategy.get_or_insert_default();
            strategy.rolling_update.get_or_insert_default().partition = Some(to);
        });
    }
}

/// Scaling and updates with random weather; `check` sees the world before each pass, and its acts.
fn history(seed: u64, extra: &Value, check: impl Fn(&World, &[Act])) {
    let mut rng = seeded(seed);
    let mut world = World::new(set(rng.random_range(1..6), extra));
    for step in 0..600 {
        world.now += 1;
        if step % 120 == 40 {
            let replicas = rng.random_range(0..7);
            world.change(|spec| spec.replicas = Some(replicas));
        }
        if step % 150 == 80 {
            world.update = format!("v{}", rng.random_range(0..4));
        }
        if step % 70 == 30 {
            world.move_partition(rng.random_range(0..5));
        }
        world.kubelet(&mut rng, false);
        let before = World {
            set: world.set.clone(),
            current: world.current.clone(),
            update: world.update.clone(),
            pods: world.pods.clone(),
            made: 0,
            now: world.now,
        };
        let acts = world.pass();
        check(&before, &acts);
    }
    world.move_partition(0);
    for _ in 0..800 {
        world.now += 1;
        world.kubelet(&mut rng, true);
        world.pass();
    }
    assert!(world.pass().is_empty(), "seed {seed}: comes to rest");
    let first = identity::start(&world.set);
    let wanted: BTreeSet<i32> = (first..first + identity::replicas(&world.set)).collect();
    assert_eq!(world.healthy(), wanted, "seed {seed}");
    assert!(world.pods.iter().all(|p| revision(p) == world.update), "seed {seed}");
    assert_eq!(world.current, world.update);
}

fn unhealthy(world: &World) -> usize {
    usize::try_from(identity::replicas(&world.set)).unwrap_or(0)
        - world.healthy().iter().filter(|n| identity::in_range(&world.set, **n)).count()
}

/// What holds in every mode: a pod is of the revision that its number is to have, and those that go for an update
/// are the highest that are behind it and may be.
fn check_revisions(seed: u64, world: &World, acts: &[Act]) -> usize {
    let first = world.first_to_roll();
    let mut taken = BTreeSet::new();
    for act in acts {
        match act {
            Act::Create(pod) => {
                let number = ordinal(&world.set, pod).expect("numbered");
                let wanted = if number < first { &world.current } else { &world.update };
                assert_eq!(revision(pod), wanted, "seed {seed}: {number} of {first}");
            }
            Act::Delete(pod) if podutil::is_terminal(pod) => {}
            Act::Delete(pod) => {
                let number = ordinal(&world.set, pod).expect("numbered");
                if identity::in_range(&world.set, number) {
                    assert_ne!(revision(pod), world.update, "seed {seed}: for the update only");
                    assert!(number >= first, "seed {seed}: {number} is below the partition {first}");
                    taken.insert(number);
                }
            }
            other => panic!("{other:?}"),
        }
    }
    let lowest = taken.first().copied().unwrap_or(i32::MAX);
    for pod in world.pods.iter().filter(|pod| podutil::is_active(pod)) {
        let number = ordinal(&world.set, pod).expect("numbered");
        let passed_over =
            number > lowest && identity::in_range(&world.set, number) && !taken.contains(&number);
        assert!(!passed_over || revision(pod) == world.update, "seed {seed}: {number} goes before {lowest}");
    }
    taken.len()
}

/// What holds in order: those before are healthy when a pod is made, and the highest goes first.
fn check_order(seed: u64, world: &World, acts: &[Act]) {
    let healthy = world.healthy();
    for act in acts {
        match act {
            Act::Create(pod) => {
                let number = ordinal(&world.set, pod).expect("numbered");
                let before = identity::start(&world.set)..number;
                assert!(before.into_iter().all(|n| healthy.contains(&n)), "seed {seed}");
            }
            Act::Delete(pod) if !podutil::is_terminal(pod) => {
                let number = ordinal(&world.set, pod).expect("numbered");
                let surplus = |n: &i32| !identity::in_range(&world.set, *n);
                let highest = world.numbers().into_iter().filter(surplus).max();
                assert!(!surplus(&number) || Some(number) == highest, "seed {seed}: from the top");
                assert!(surplus(&number) || highest.is_none(), "seed {seed}: sizes before updates");
            }
            _ => {}
        }
    }
}

#[test]
fn in_order_a_pod_is_made_after_those_before_it_and_removed_before_them() {
    for seed in 0..24 {
        let extra = json!({ "ordinals": { "start": seed % 3 }, "minReadySeconds": if seed % 3 == 2 { 3 } else { 0 } });
        history(seed, &extra, |world, acts| {
            check_order(seed, world, acts);
            let taken = check_revisions(seed, world, acts);
            assert!(taken == 0 || unhealthy(world) == 0, "seed {seed}: one pod at a time");
            assert!(acts.len() <= 1, "seed {seed}: one thing at a time");
        });
    }
}

#[test]
fn an_update_takes_down_no_more_than_max_unavailable_in_order_and_in_parallel() {
    for seed in 0..24 {
        let limit = 1 + usize::try_from(seed % 3).expect("small");
        let policy = if seed % 2 == 0 { "Parallel" } else { "OrderedReady" };
        let extra = json!({ "podManagementPolicy": policy, "updateStrategy": { "type": "RollingUpdate",
            "rollingUpdate": { "partition": 0, "maxUnavailable": limit } } });
        history(seed, &extra, |world, acts| {
            let taken = check_revisions(seed, world, acts);
            assert!(taken == 0 || unhealthy(world) + taken <= limit, "seed {seed}");
            if policy == "OrderedReady" {
                check_order(seed, world, acts);
            }
        });
    }
}

#[test]
fn in_parallel_without_a_limit_pods_still_roll_one_after_the_other() {
    for seed in 0..16 {
        history(seed, &json!({ "podManagementPolicy": "Parallel" }), |world, acts| {
            let taken = check_revisions(seed, world, acts);
            let above = |act: &Act| match act {
                Act::Delete(pod) if !podutil::is_terminal(pod) => ordinal(&world.set, pod),
                _ => None,
            };
            let healthy = world.healthy();
            let end = identity::start(&world.set) + identity::replicas(&world.set);
            for number in acts.iter().filter_map(above).filter(|n| identity::in_range(&world.set, *n)) {
                assert!((number + 1..end).all(|n| healthy.contains(&n)), "seed {seed}: {number}");
            }
            assert!(taken <= 1, "seed {seed}: {taken} at once");
        });
    }
}

#[test]
fn pods_below_the_partition_keep_the_old_revision() {
    let strategy = json!({ "type": "RollingUpdate", "rollingUpdate": { "partition": 2 } });
    let mut world = World::new(set(4, &json!({ "updateStrategy": strategy })));
    let mut rng = seeded(7);
    let mut settle = |world: &mut World| {
        for _ in 0..300 {
            world.now += 1;
            world.kubelet(&mut rng, true);
            world.pass();
        }
    };
    settle(&mut world);
    world.update = "v1".into();
    settle(&mut world);
    let mut found: Vec<(i32, &str)> =
        world.pods.iter().filter_map(|p| Some((ordinal(&world.set, p)?, revision(p)))).collect();
    found.sort_unstable();
    assert_eq!(found, [(0, "v0"), (1, "v0"), (2, "v1"), (3, "v1")]);
    assert_eq!(world.current, "v0", "not complete");
}

#[test]
fn claims_go_by_the_retention_policy() {
    let policy = |deleted: &str, scaled: &str| {
        set(
            1,
            &json!({
                "volumeClaimTemplates": [{ "metadata": { "name": "data" }, "spec": {} }],
                "persistentVolumeClaimRetentionPolicy": { "whenDeleted": deleted, "whenScaled": scaled },
            }),
        )
    };
    let check = |set: &Arc<StatefulSet>, ordinal: i32, have: Vec<&str>| {
        let mut pod = identity::new_pod(set, &template("a"), "r", ordinal);
        pod.metadata.uid = Some("p-uid".into());
        let mut claim = identity::claims(set, ordinal).remove(0);
        let owner = |kind: &&str| match *kind {
            "Pod" => controller_ref(&pod),
            _ => controller_ref(&**set),
        };
        claim.metadata.owner_references = Some(have.iter().map(owner).collect());
        match owners(set, &claim, &pod) {
            Owners::Right => have.join(","),
            Owners::Become(owners) => owners.into_iter().map(|o| o.kind).collect::<Vec<String>>().join(","),
        }
    };
    assert_eq!(check(&policy("Retain", "Retain"), 0, vec!["StatefulSet"]), "");
    assert_eq!(check(&policy("Delete", "Retain"), 0, vec![]), "StatefulSet");
    assert_eq!(check(&policy("Delete", "Delete"), 0, vec![]), "StatefulSet");
    assert_eq!(check(&policy("Delete", "Delete"), 1, vec!["StatefulSet"]), "Pod");
    assert_eq!(check(&policy("Retain", "Delete"), 0, vec!["Pod"]), "");
    assert_eq!(check(&policy("Retain", "Delete"), 1, vec![]), "Pod");
}

#[test]
fn a_pod_bears_name_number_host_name_and_claims() {
    let set = set(1, &json!({ "volumeClaimTemplates": [{ "metadata": { "name": "data" }, "spec": {} }] }));
    let pod = identity::new_pod(&set, &template("a"), "r1", 3);
    let labels = pod.metadata.labels.clone().expect("labels");
    assert_eq!(labels["statefulset.kubernetes.io/pod-name"], "s-3");
    assert_eq!(labels["apps.kubernetes.io/pod-index"], "3");
    assert_eq!(labels["controller-revision-hash"], "r1");
    let spec = pod.spec.clone().expect("spec");
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("s-3"), Some("peers")));
    let claim = spec.volumes.expect("volumes").remove(0).persistent_volume_claim.expect("a claim");
    assert_eq!(claim.claim_name, "data-s-3");
    assert!(identity::repaired(&set, &pod, 3).is_none());
    let mut plain = pod;
    plain.metadata.labels = None;
    assert!(identity::repaired(&set, &plain, 3).is_some());
}

#[tokio::test(start_paused = true)]
async fn pods_and_claims_are_made_in_order_updated_from_the_top_and_taken_back() {
    let fake = FakeTransport::new(Clock::system());
    let client = fake.client();
    let task = tokio::spawn(run(&context(&fake)));
    let (sets, pods) = (client.api::<StatefulSet>(), client.api::<Pod>());
    let claims = json!([{ "metadata": { "name": "data" }, "spec": { "accessModes": ["ReadWriteOnce"] } }]);
    let made = set(3, &json!({ "volumeClaimTemplates": claims }));
    sets.create("ns", (*made).clone()).await.expect("created");
    let settled = |image: &'static str, count: usize| {
        let (client, sets, pods) = (client.clone(), sets.clone(), pods.clone());
        async move {
            play_kubelet(&client).await;
            let all = pods.list("ns", ListOptions::default()).await.expect("listed");
            let set = sets.get("ns", "s").await.expect("there");
            let status = set.status.clone().unwrap_or_default();
            let image_of = |p: &Pod| p.spec.as_ref().and_then(|s| s.containers[0].image.clone());
            all.len() == count
                && all.iter().all(|p| image_of(p).as_deref() == Some(image))
                && usize::try_from(status.available_replicas.unwrap_or(0)) == Ok(count)
                && status.current_revision == status.update_revision
                && status.observed_generation == set.metadata.generation
        }
    };
    eventually(|| settled("v0", 3)).await;
    let names: Vec<String> = client
        .api::<PersistentVolumeClaim>()
        .list("ns", ListOptions::default())
        .await
        .expect("listed")
        .iter()
        .map(|c| name_of(&**c).to_owned())
        .collect();
    assert_eq!(names, ["data-s-0", "data-s-1", "data-s-2"]);
    let image = |image: &str| json!({ "spec": { "template": { "spec": { "containers": [{ "name": "c", "image": image }] } } } });
    sets.patch("ns", "s", PatchKind::Merge, image("v1")).await.expect("patched");
    eventually(|| settled("v1", 3)).await;
    sets.patch("ns", "s", PatchKind::Merge, json!({ "spec": { "replicas": 1 } })).await.expect("patched");
    eventually(|| settled("v1", 1)).await;
    sets.patch("ns", "s", PatchKind::Merge, image("v0")).await.expect("patched");
    eventually(|| settled("v0", 1)).await;
    pods.delete("ns", "s-0", DeleteOptions { grace_period_seconds: Some(0), ..Default::default() })
        .await
        .expect("deleted");
    eventually(|| settled("v0", 1)).await;
    task.abort();
}
