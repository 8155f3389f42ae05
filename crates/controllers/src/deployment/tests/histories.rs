//! Random histories: whatever changes and whenever pods become available, a rolling update keeps to its bounds.

use rand::Rng as _;
use rand::rngs::StdRng;

use super::*;
use crate::testing::seeded;

/// A Deployment, its ReplicaSets and the number of pods that must and may be.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    surge: i32,
    unavailable: i32,
}

fn number(
    set: &ReplicaSet,
    of: impl Fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> Option<i32>,
) -> i32 {
    set.status.as_ref().and_then(of).unwrap_or(0)
}

impl World {
    fn new(rng: &mut StdRng) -> Self {
        let (surge, unavailable) = (rng.random_range(0..4), rng.random_range(0..4));
        // Both 0 is refused by the API.
        let surge = if unavailable == 0 { surge.max(1) } else { surge };
        let strategy = json!({ "type": "RollingUpdate",
            "rollingUpdate": { "maxSurge": surge, "maxUnavailable": unavailable } });
        let deployment = deployment(rng.random_range(1..9), "v0", &json!({ "strategy": strategy }));
        Self { deployment, sets: Vec::new(), surge, unavailable }
    }

    fn replicas(&self) -> i32 {
        self.deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0)
    }

    /// Available pods that are left once the ReplicaSets have their sizes: those that are not available go first.
    fn available(&self) -> i32 {
        self.sets.iter().map(|set| size(set).min(number(set, |s| s.available_replicas))).sum()
    }

    /// Plays the ReplicaSet controller and the kubelets for one set: pods come and go, and become available.
    fn weather(&mut self, rng: &mut StdRng, kindly: bool) {
        if self.sets.is_empty() {
            return;
        }
        let which = rng.random_range(0..self.sets.len());
        let set = &mut self.sets[which];
        let wanted = size(set);
        let status = set.status.get_or_insert_default();
        status.observed_generation = set.metadata.generation;
        status.replicas = wanted;
        let available = status.available_replicas.unwrap_or(0).min(wanted);
        let available = match rng.random_range(0..8) {
            0 if !kindly => (available - 1).max(0),
            _ => (available + rng.random_range(0..3)).min(wanted),
        };
        status.available_replicas = Some(available);
        status.ready_replicas = Some(available);
    }

    /// One pass of the controller; whether it wrote anything.
    fn pass(&mut self) -> bool {
        let decision = decide(&self.deployment, self.sets.clone(), &|_| false, true, now());
        let wrote = !decision.writes.is_empty() || decision.status.is_some();
        for write in decision.writes {
            let (Write::Create(set, _) | Write::Update(set, _) | Write::Delete(set)) = &write;
            self.sets.retain(|s| s.metadata.name != set.metadata.name);
            if !matches!(write, Write::Delete(_)) {
                let mut set = (**set).clone();
                set.metadata.uid.clone_from(&set.metadata.name);
                self.sets.push(set);
            }
        }
        if let Some(revision) = &decision.revision {
            self.deployment = super::super::decide::with_revision(&self.deployment, revision);
        }
        if let Some(status) = decision.status {
            self.deployment.status = Some(status);
        }
        wrote
    }

    fn change(&mut self, change: impl Fn(&mut k8s_openapi::api::apps::v1::DeploymentSpec)) {
        change(self.deployment.spec.get_or_insert_default());
        *self.deployment.metadata.generation.get_or_insert(0) += 1;
    }

    fn give_image(&mut self, image: &str) {
        let image = Some(image.to_owned());
        self.change(|spec| {
            if let Some(pod) = &mut spec.template.spec {
                pod.containers[0].image.clone_from(&image);
            }
        });
    }
}

fn history(seed: u64) {
    let mut rng = seeded(seed);
    let mut world = World::new(&mut rng);
    let mut image = 0;
    for step in 0..400 {
        let resized = step % 90 == 60;
        if resized {
            let replicas = rng.random_range(0..9);
            world.change(|spec| spec.replicas = Some(replicas));
        }
        if rng.random_range(0..40) == 0 {
            image = rng.random_range(0..4);
            world.give_image(&format!("v{image}"));
        }
        world.weather(&mut rng, false);
        let (before, must) = (world.available(), world.replicas() - world.unavailable);
        world.pass();
        let total: i32 = world.sets.iter().map(size).sum();
        assert!(total <= world.replicas() + world.surge, "seed {seed}, step {step}: {total} pods");
        let after = world.available();
        assert!(resized || after >= before.min(must), "seed {seed}, step {step}: {after} of {must} are left");
    }
    for _ in 0..600 {
        world.weather(&mut rng, true);
        world.pass();
    }
    while world.pass() {}
    let live: Vec<&ReplicaSet> = world.sets.iter().filter(|set| size(set) > 0).collect();
    let sizes: i32 = live.iter().map(|set| size(set)).sum();
    assert_eq!((sizes, live.len()), (world.replicas(), usize::from(world.replicas() > 0)), "seed {seed}");
    let template = live.first().and_then(|set| set.spec.as_ref()?.template.as_ref()?.spec.clone());
    assert!(template.is_none_or(|t| t.containers[0].image == Some(format!("v{image}"))), "seed {seed}");
    assert_eq!(progress(&world.deployment), "NewReplicaSetAvailable", "seed {seed}");
}

#[test]
fn a_rolling_update_keeps_its_bounds_in_any_history_and_comes_to_rest() {
    (0..100).for_each(history);
}
