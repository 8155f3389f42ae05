//! Random histories of a Deployment with its ReplicaSets and their pods: users scale, publish, pause and delete pods
//! while pods start, become ready, fail and go.

use std::sync::Arc;
use std::time::Duration;

use coracle_meta::owner::controller_ref;
use k8s_openapi::api::apps::v1::DeploymentSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rand::Rng as _;
use rand::rngs::StdRng;

use super::super::util::Numbers;
use super::*;
use crate::pods::{is_available, of_template};
use crate::testing::{befall, seeded};

struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    pods: Vec<Arc<Pod>>,
    made: usize,
    now: Timestamp,
}

fn is_of(pod: &Pod, set: &ReplicaSet) -> bool {
    controller_of(&pod.metadata).is_some_and(|owner| Some(&owner.uid) == set.metadata.uid.as_ref())
}

fn is_leaving(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn image(pod: &Pod) -> Option<String> {
    pod.spec.as_ref()?.containers.first()?.image.clone()
}

impl World {
    fn new(rng: &mut StdRng, strategy: &Value) -> Self {
        let extra = json!({ "strategy": strategy, "minReadySeconds": ([0, 0, 4][rng.random_range(0..3)]) });
        let deployment = deployment(rng.random_range(1..9), "v0", &extra);
        Self { deployment, sets: Vec::new(), pods: Vec::new(), made: 0, now: now() }
    }

    fn spec(&mut self) -> &mut DeploymentSpec {
        *self.deployment.metadata.generation.get_or_insert(0) += 1;
        self.deployment.spec.get_or_insert_default()
    }

    fn min_ready(&self) -> i32 {
        self.deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
    }

    fn available(&self) -> i32 {
        let is = |pod: &&Arc<Pod>| podutil::is_active(pod) && is_available(pod, self.min_ready(), self.now);
        i32::try_from(self.pods.iter().filter(is).count()).expect("few")
    }

    /// The ReplicaSets carry out what they are told, and say so.
    fn replica_sets(&mut self) {
        for position in 0..self.sets.len() {
            let mut set = self.sets[position].clone();
            for _ in 0..2 {
                let owned: Vec<Arc<Pod>> = self.pods.iter().filter(|pod| is_of(pod, &set)).cloned().collect();
                let (more, less, status) = crate::replicaset::pass(&set, &owned, &self.pods, self.now);
                (0..more).for_each(|_| self.make(&set));
                for pod in self.pods.iter_mut().filter(|pod| less.iter().any(|gone| Arc::ptr_eq(gone, pod))) {
                    Arc::make_mut(pod).metadata.deletion_timestamp = Some(Time(self.now));
                }
                set.status = Some(status);
            }
            self.sets[position] = set;
        }
    }

    fn make(&mut self, set: &ReplicaSet) {
        let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
        let mut pod = of_template(template, Some(&"ns".to_owned()), controller_ref(set));
        self.made += 1;
        pod.metadata.name = Some(format!("p{:05}", self.made));
        pod.metadata.uid.clone_from(&pod.metadata.name);
        pod.metadata.creation_timestamp = Some(Time(self.now));
        if !Numbers::of(&self.deployment).rolling {
            let mut others = self.pods.iter().filter(|other| !podutil::is_terminal(other));
            assert!(others.all(|other| image(other) == image(&pod)), "two versions at once");
        }
        self.pods.push(Arc::new(pod));
    }

    /// One pass of the controller; whether it wrote anything.
    fn pass(&mut self) -> bool {
        let runs =
            |set: &ReplicaSet| self.pods.iter().any(|pod| is_of(pod, set) && !podutil::is_terminal(pod));
        let decision = decide(&self.deployment, self.sets.clone(), &runs, true, self.now);
        let wrote = !decision.writes.is_empty() || decision.status.is_some();
        for write in decision.writes {
            let (Write::Create(set, _) | Write::Update(set, _) | Write::Delete(set)) = &write;
            let known = self.sets.iter().position(|s| s.metadata.name == set.metadata.name);
            let mut new = (**set).clone();
            new.metadata.uid.clone_from(&set.metadata.name);
            match (write, known) {
                (Write::Delete(_), Some(known)) => drop(self.sets.remove(known)),
                (_, Some(known)) => self.sets[known] = new,
                (_, None) => self.sets.push(new),
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

    /// The kubelets work on one pod.
    fn kubelet(&mut self, rng: &mut StdRng, kindly: bool) {
        if self.pods.is_empty() {
            return;
        }
        let which = rng.random_range(0..self.pods.len());
        if is_leaving(&self.pods[which]) || (kindly && podutil::is_terminal(&self.pods[which])) {
            self.pods.remove(which);
            return;
        }
        let (now, pod) = (self.now, Arc::make_mut(&mut self.pods[which]));
        befall(pod, rng.random_range(0..24), kindly, now);
    }

    /// What users do; whether they gave it another size.
    fn user(&mut self, rng: &mut StdRng) -> bool {
        match rng.random_range(0..160) {
            0 | 1 => {
                let replicas = rng.random_range(0..9);
                let before = self.spec().replicas.replace(replicas);
                return before != Some(replicas);
            }
            2..6 => {
                let image = format!("v{}", rng.random_range(0..4));
                if let Some(pod) = &mut self.spec().template.spec {
                    pod.containers[0].image = Some(image);
                }
            }
            6 => self.spec().paused = Some(true),
            7 | 8 => self.spec().paused = None,
            _ => {}
        }
        false
    }

    fn size(&self) -> i32 {
        self.sets.iter().map(size).sum()
    }
}

fn history(seed: u64, strategy: &Value) {
    let mut rng = seeded(seed);
    let mut world = World::new(&mut rng, strategy);
    for step in 0..900 {
        world.now += Duration::from_secs(1);
        let resized = world.user(&mut rng);
        world.kubelet(&mut rng, false);
        world.replica_sets();
        let (before, numbers) = (world.available(), Numbers::of(&world.deployment));
        world.pass();
        world.replica_sets();
        let (after, must) = (world.available(), numbers.replicas - numbers.max_unavailable);
        if numbers.rolling {
            let live = world.pods.iter().filter(|pod| podutil::is_active(pod)).count();
            let most = usize::try_from(numbers.max()).expect("few");
            assert!(
                live <= most && world.size() <= numbers.max(),
                "seed {seed}, step {step}: {live} of {most}"
            );
            assert!(
                resized || after >= before.min(must),
                "seed {seed}, step {step}: {after} of {must} are left"
            );
        } else {
            assert!(world.size() <= numbers.replicas, "seed {seed}, step {step}");
        }
    }
    world.spec().paused = None;
    for _ in 0..700 {
        world.now += Duration::from_secs(1);
        world.kubelet(&mut rng, true);
        world.replica_sets();
        world.pass();
    }
    world.replica_sets();
    assert!(!world.pass(), "seed {seed}: comes to rest");
    let wanted = world.deployment.spec.clone().unwrap_or_default();
    let newest = wanted.template.spec.and_then(|pod| pod.containers.first()?.image.clone());
    assert_eq!(
        (Some(world.available()), Some(world.size())),
        (wanted.replicas, wanted.replicas),
        "seed {seed}"
    );
    let live = world.pods.iter().filter(|pod| podutil::is_active(pod));
    assert!(live.into_iter().all(|pod| image(pod) == newest), "seed {seed}");
    assert_eq!(progress(&world.deployment), "NewReplicaSetAvailable", "seed {seed}");
}

#[test]
fn with_real_pods_a_rolling_update_keeps_its_bounds_whatever_users_and_pods_do() {
    for seed in 0..24 {
        let (surge, unavailable) = (seed % 4, (seed / 4) % 4);
        let surge = if surge + unavailable == 0 { 1 } else { surge };
        let rules = match seed % 3 {
            0 => json!({ "maxSurge": "25%", "maxUnavailable": "40%" }),
            _ => json!({ "maxSurge": surge, "maxUnavailable": unavailable }),
        };
        history(seed, &json!({ "type": "RollingUpdate", "rollingUpdate": rules }));
    }
}

#[test]
fn recreate_never_runs_two_versions_at_once() {
    (0..10).for_each(|seed| history(seed, &json!({ "type": "Recreate" })));
}
