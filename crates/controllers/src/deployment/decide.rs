//! What a Deployment needs now, from its spec and its ReplicaSets: pure. One pass of the rollout is played on
//! copies of the ReplicaSets; the outcome is the list of writes that bring the cluster there.

use std::time::Duration;

use coracle_client::EventType;
use coracle_meta::owner::controller_ref;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::status::{self, Progress as Judgement};
use super::util::{
    DESIRED, HASH_LABEL, Numbers, REVISION, actual, annotate, annotate_revision, annotate_size, annotation,
    available, condition, is_current, new_condition, number, remove_condition, set_condition, size,
    template_hash, with_label,
};
use super::{rollout, scale};
use crate::revisions::LAST_READY;
use crate::rollouts::Progress;

/// An event about the Deployment.
pub(super) type Happening = (EventType, &'static str, String);

/// A write to a ReplicaSet, with the events to record once it is done.
#[derive(Debug)]
pub(super) enum Write {
    Create(Box<ReplicaSet>, Vec<Happening>),
    Update(Box<ReplicaSet>, Vec<Happening>),
    Delete(Box<ReplicaSet>),
}

/// What to do, in this order: the writes, the annotation, the status.
#[derive(Debug)]
pub(super) struct Decision {
    pub writes: Vec<Write>,
    /// The Deployment's revision annotation, where it must change.
    pub revision: Option<String>,
    /// The new status, where it must change.
    pub status: Option<DeploymentStatus>,
    pub check_again: Option<Duration>,
}

/// A ReplicaSet being played with.
#[derive(Clone, Debug)]
pub(super) struct Played {
    pub set: ReplicaSet,
    /// Whether pods of it have not finished.
    pub runs: bool,
    fresh: bool,
    changed: bool,
    deleted: bool,
    happenings: Vec<Happening>,
    /// Position among the writes.
    turn: usize,
}

/// One pass over a Deployment.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    pub deployment: &'a Deployment,
    pub numbers: Numbers,
    pub now: Timestamp,
    /// All ReplicaSets, oldest first.
    pub sets: Vec<Played>,
    /// Position in `sets` of the one with the current template.
    pub newest: Option<usize>,
    /// Working copy: conditions change during the pass.
    pub status: DeploymentStatus,
    revision: Option<String>,
    turns: usize,
}

/// How far the Deployment's change of template has come, by its ReplicaSets.
pub(super) fn progress(deployment: &Deployment, sets: &[ReplicaSet]) -> Progress {
    let spec = deployment.spec.as_ref();
    let reason = deployment.status.as_ref().and_then(|status| condition(status, "Progressing"));
    let failed = reason.and_then(|c| c.reason.as_deref()) == Some("ProgressDeadlineExceeded");
    let paused = spec.is_some_and(|spec| spec.paused == Some(true));
    if failed || paused || deployment.metadata.deletion_timestamp.is_some() {
        return Progress::Idle;
    }
    let is_new = |set: &&ReplicaSet| is_current(deployment, set);
    let (new, old): (Vec<&ReplicaSet>, Vec<&ReplicaSet>) = sets.iter().partition(is_new);
    let any = |sets: &[&ReplicaSet]| sets.iter().any(|set| size(set) > 0 || actual(set) > 0);
    let wanted = spec.and_then(|spec| spec.replicas).unwrap_or(1);
    let available: i32 = new.iter().map(|set| available(set)).sum();
    match (any(&old), any(&new)) {
        // The last old pods may have gone before the new ones are available.
        (false, true) if available < wanted && !old.is_empty() => Progress::Begun,
        (false, _) => Progress::Idle,
        (true, false) => Progress::Due(changed_at(&deployment.metadata)),
        (true, true) => Progress::Begun,
    }
}

/// When somebody last changed an object, its status aside.
fn changed_at(meta: &ObjectMeta) -> Option<Timestamp> {
    let writes = meta.managed_fields.iter().flatten().filter(|entry| entry.subresource.is_none());
    writes.filter_map(|entry| entry.time.as_ref()).map(|time| time.0).max()
}

/// Decides. `sets` are those the Deployment owns; `running_pods` the uids of ReplicaSets that own a pod which
/// has not finished. One that may not roll out keeps its templates, and follows its size.
pub(super) fn decide(
    deployment: &Deployment,
    sets: Vec<ReplicaSet>,
    running_pods: &dyn Fn(&ReplicaSet) -> bool,
    may_roll: bool,
    now: Timestamp,
) -> Decision {
    let mut pass = Pass::new(deployment, sets, running_pods, now);
    let spec = deployment.spec.clone().unwrap_or_default();
    if deployment.metadata.deletion_timestamp.is_some() {
        status::sync(&mut pass, Judgement::Ignore);
        return pass.finish();
    }
    pass.note_pause();
    if spec.paused == Some(true) || !may_roll || pass.is_scaling() {
        pass.find_newest(false);
        scale::proportionally(&mut pass);
        if spec.paused == Some(true) {
            rollout::clean_up(&mut pass);
        }
        status::sync(&mut pass, Judgement::Ignore);
    } else {
        if pass.numbers.rolling {
            rollout::rolling(&mut pass)
        } else {
            rollout::recreate(&mut pass)
        }
        status::sync(&mut pass, Judgement::Judge);
    }
    pass.finish()
}

impl<'a> Pass<'a> {
    fn new(
        deployment: &'a Deployment,
        mut sets: Vec<ReplicaSet>,
        running_pods: &dyn Fn(&ReplicaSet) -> bool,
        now: Timestamp,
    ) -> Self {
        let age = |set: &ReplicaSet| (set.metadata.creation_timestamp.clone(), set.metadata.name.clone());
        sets.sort_by_key(age);
        let newest = sets.iter().position(|set| is_current(deployment, set));
        let played = |set| Played {
            runs: actual(&set) > 0 || running_pods(&set),
            set,
            fresh: false,
            changed: false,
            deleted: false,
            happenings: Vec::new(),
            turn: 0,
        };
        Self {
            deployment,
            numbers: Numbers::of(deployment),
            now,
            sets: sets.into_iter().map(played).collect(),
            newest,
            status: deployment.status.clone().unwrap_or_default(),
            revision: None,
            turns: 0,
        }
    }

    /// All ReplicaSets but the newest, oldest first.
    pub(super) fn old(&self) -> impl Iterator<Item = &Played> {
        self.sets.iter().enumerate().filter(|(i, _)| Some(*i) != self.newest).map(|(_, played)| played)
    }

    /// Whether pods of other ReplicaSets than this one have not finished.
    pub(super) fn others_run(&self, position: Option<usize>) -> bool {
        self.sets.iter().enumerate().any(|(i, played)| Some(i) != position && played.runs)
    }

    /// Their positions.
    pub(super) fn old_positions(&self) -> Vec<usize> {
        (0..self.sets.len()).filter(|i| Some(*i) != self.newest).collect()
    }

    pub(super) fn newest(&self) -> Option<&ReplicaSet> {
        self.newest.map(|i| &self.sets[i].set)
    }

    /// The sum of `of` over all ReplicaSets.
    pub(super) fn total(&self, of: impl Fn(&ReplicaSet) -> i32) -> i32 {
        self.sets.iter().map(|played| of(&played.set)).sum()
    }

    /// A scaling is under way when an active ReplicaSet remembers another size of the Deployment.
    fn is_scaling(&self) -> bool {
        let desired = |p: &&Played| number(&p.set.metadata, DESIRED);
        let active = self.sets.iter().filter(|p| size(&p.set) > 0);
        active.filter_map(|p| desired(&p)).any(|d| d != i64::from(self.numbers.replicas))
    }

    fn note_pause(&mut self) {
        let paused = self.deployment.spec.as_ref().is_some_and(|spec| spec.paused == Some(true));
        let reason = condition(&self.status, "Progressing").and_then(|c| c.reason.clone());
        let reason = reason.as_deref();
        if self.numbers.deadline.is_none() || reason == Some("ProgressDeadlineExceeded") {
            return;
        }
        let new = match (paused, reason == Some("DeploymentPaused")) {
            (true, false) => ("DeploymentPaused", "Deployment is paused"),
            (false, true) => ("DeploymentResumed", "Deployment is resumed"),
            _ => return,
        };
        set_condition(&mut self.status, new_condition("Progressing", "Unknown", new.0, new.1, self.now));
    }

    /// Marks a ReplicaSet as changed.
    fn touch(&mut self, position: usize) -> &mut Played {
        self.turns += 1;
        let turn = self.turns;
        let played = &mut self.sets[position];
        if !played.changed {
            played.changed = true;
            played.turn = turn;
        }
        played
    }

    /// Gives a ReplicaSet another size; whether it had another one.
    pub(super) fn scale(&mut self, position: usize, to: i32) -> bool {
        let numbers = self.numbers;
        let from = size(&self.sets[position].set);
        let name = self.sets[position].set.metadata.name.clone().unwrap_or_default();
        if Some(position) != self.newest && to < from && is_complete_set(&self.sets[position].set) {
            annotate(&mut self.sets[position].set.metadata, LAST_READY, &name);
        }
        if annotate_size(&mut self.sets[position].set, numbers) || from != to {
            let played = self.touch(position);
            played.set.spec.get_or_insert_default().replicas = Some(to);
            if from != to {
                let way = if from < to { "up" } else { "down" };
                let message = format!("Scaled {way} replica set {name} from {from} to {to}");
                played.happenings.push((EventType::Normal, "ScalingReplicaSet", message));
            }
        }
        from != to
    }

    pub(super) fn delete(&mut self, position: usize) {
        self.touch(position).deleted = true;
    }

    /// Makes sure of the newest ReplicaSet, its annotations and the Deployment's revision. Without `create`
    /// there may be none afterwards.
    pub(super) fn find_newest(&mut self, create: bool) {
        let revision_of = |p: &Played| number(&p.set.metadata, REVISION).unwrap_or(0);
        let revision = self.old().map(revision_of).max().unwrap_or(0) + 1;
        match self.newest {
            Some(position) => self.adopt_newest(position, revision),
            None if create => self.create_newest(revision),
            None => {}
        }
    }

    /// The last version before the newest that all pods had and were available with. It is written down with the
    /// newest ReplicaSet, as nothing else tells once the old ones have no pods.
    fn last_ready(&self) -> Option<String> {
        let before = self.old().max_by_key(|p| number(&p.set.metadata, REVISION))?;
        match is_complete_set(&before.set) {
            true => before.set.metadata.name.clone(),
            false => annotation(&before.set.metadata, LAST_READY).map(str::to_owned),
        }
    }

    fn adopt_newest(&mut self, position: usize, revision: i64) {
        let deployment = self.deployment;
        let last_ready = self.last_ready();
        let min_ready = deployment.spec.as_ref().and_then(|s| s.min_ready_seconds).unwrap_or(0);
        let set = &mut self.sets[position].set;
        let known = number(&set.metadata, REVISION);
        let annotated = annotate_revision(deployment, set, revision);
        if known != number(&set.metadata, REVISION)
            && let Some(name) = &last_ready
        {
            annotate(&mut set.metadata, LAST_READY, name);
        }
        let spec = set.spec.get_or_insert_default();
        let other_min_ready = spec.min_ready_seconds.unwrap_or(0) != min_ready;
        spec.min_ready_seconds = Some(min_ready).filter(|s| *s != 0);
        if annotated || other_min_ready {
            self.touch(position);
        }
        let set = &self.sets[position].set;
        let (name, revision) =
            (set.metadata.name.clone(), annotation(&set.metadata, REVISION).map(str::to_owned));
        self.note_revision(revision);
        if self.numbers.deadline.is_some() && condition(&self.status, "Progressing").is_none() {
            let message = format!("Found new replica set {:?}", name.unwrap_or_default());
            let new = new_condition("Progressing", "True", "FoundNewReplicaSet", &message, self.now);
            set_condition(&mut self.status, new);
        }
    }

    fn create_newest(&mut self, revision: i64) {
        let mut set = self.blank();
        let numbers = self.numbers;
        annotate_revision(self.deployment, &mut set, revision);
        annotate_size(&mut set, numbers);
        if let Some(name) = self.last_ready() {
            annotate(&mut set.metadata, LAST_READY, &name);
        }
        let name = set.metadata.name.clone().unwrap_or_default();
        let allowed = numbers.max() - self.total(size);
        let count = if numbers.rolling { allowed.clamp(0, numbers.replicas) } else { numbers.replicas };
        set.spec.get_or_insert_default().replicas = Some(count);
        let mut happenings = Vec::new();
        if count > 0 {
            let message = format!("Scaled up replica set {name} from 0 to {count}");
            happenings.push((EventType::Normal, "ScalingReplicaSet", message));
        }
        self.sets.push(Played {
            set,
            runs: false,
            fresh: true,
            changed: false,
            deleted: false,
            happenings,
            turn: 0,
        });
        let position = self.sets.len() - 1;
        self.touch(position);
        self.newest = Some(position);
        self.note_revision(Some(revision.to_string()));
        if numbers.deadline.is_some() {
            let message = format!("Created new replica set {name:?}");
            let new = new_condition("Progressing", "True", "NewReplicaSetCreated", &message, self.now);
            remove_condition(&mut self.status, "Progressing");
            set_condition(&mut self.status, new);
        }
    }

    /// A ReplicaSet of the current template, of size 0.
    fn blank(&self) -> ReplicaSet {
        let deployment = self.deployment;
        let spec = deployment.spec.clone().unwrap_or_default();
        let hash = template_hash(&spec.template, self.status.collision_count);
        let mut template = spec.template;
        let template_meta = template.metadata.get_or_insert_default();
        template_meta.labels = Some(with_label(template_meta.labels.as_ref(), HASH_LABEL, &hash));
        let labels = template_meta.labels.clone();
        let mut selector = spec.selector;
        selector.match_labels = Some(with_label(selector.match_labels.as_ref(), HASH_LABEL, &hash));
        let name = format!("{}-{hash}", deployment.metadata.name.as_deref().unwrap_or(""));
        ReplicaSet {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: deployment.metadata.namespace.clone(),
                labels,
                owner_references: Some(vec![controller_ref(deployment)]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(0),
                min_ready_seconds: spec.min_ready_seconds.filter(|s| *s != 0),
                selector,
                template: Some(template),
            }),
            status: None,
        }
    }

    fn note_revision(&mut self, revision: Option<String>) {
        let known = annotation(&self.deployment.metadata, REVISION);
        if let Some(revision) = revision.filter(|revision| known != Some(revision)) {
            self.revision = Some(revision);
        }
    }

    fn finish(self) -> Decision {
        let check_again = status::next_check(&self);
        let status = (Some(&self.status) != self.deployment.status.as_ref()).then_some(self.status);
        let mut changed: Vec<Played> = self.sets.into_iter().filter(|played| played.changed).collect();
        changed.sort_by_key(|played| played.turn);
        let writes = changed.into_iter().map(|played| {
            let set = Box::new(played.set);
            match (played.fresh, played.deleted) {
                (_, true) => Write::Delete(set),
                (true, false) => Write::Create(set, played.happenings),
                (false, false) => Write::Update(set, played.happenings),
            }
        });
        Decision { writes: writes.collect(), revision: self.revision, status, check_again }
    }

    /// Whether the rollout is complete, by a status.
    pub(super) fn is_complete(&self, status: &DeploymentStatus) -> bool {
        let wanted = self.numbers.replicas;
        let is = |count: Option<i32>| count.unwrap_or(0) == wanted;
        is(status.updated_replicas)
            && is(status.replicas)
            && is(status.available_replicas)
            && status.observed_generation >= self.deployment.metadata.generation
    }

    /// Pods available in all ReplicaSets.
    pub(super) fn available(&self) -> i32 {
        self.total(available)
    }
}

/// Whether a ReplicaSet has all pods of the Deployment, and they are available.
fn is_complete_set(set: &ReplicaSet) -> bool {
    let wanted = number(&set.metadata, DESIRED).filter(|wanted| *wanted > 0);
    wanted.is_some_and(|wanted| i64::from(available(set)) >= wanted)
}

/// Sets the revision annotation on a Deployment.
pub(super) fn with_revision(deployment: &Deployment, revision: &str) -> Deployment {
    let mut deployment = deployment.clone();
    annotate(&mut deployment.metadata, REVISION, revision);
    deployment
}
