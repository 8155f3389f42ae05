//! ControllerRevisions: the templates that a StatefulSet or DaemonSet had, so that users can go back.

use std::collections::BTreeSet;
use std::sync::Arc;

use coracle_client::{Api, DeleteOptions, Informer};
use coracle_meta::owner::controller_ref;
use coracle_meta::selector::LabelSelector;
use coracle_meta::{Kind, Reason, Status};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde_json::{Value, json};

use crate::claim::{Claimant, Owned, carry_out, claim};
use crate::hashing::safe_hash;
use crate::runtime::{ignore_not_found, name_of};

/// The label of pods, and of a DaemonSet's revisions.
pub(crate) const REVISION_HASH: &str = "controller-revision-hash";
/// Annotation of a revision: the name of the one before it that all pods had and were ready with, for those who want
/// to go back to it. Written with the revision itself, so that it costs no write of its own.
pub(crate) const LAST_READY: &str = "coracle.dev/last-ready";
/// The label of a StatefulSet's revisions.
const HASH: &str = "controller.kubernetes.io/hash";

/// What of an owner its revisions keep.
pub(crate) struct Subject<'a, K> {
    pub owner: &'a Arc<K>,
    pub selector: &'a LabelSelector,
    pub template: &'a PodTemplateSpec,
    /// `status.collisionCount`.
    pub collisions: i32,
    /// Label under which a revision bears its hash.
    pub hash_label: &'static str,
    /// Whether all pods have a revision and are ready; asked of the newest one when another takes its place.
    pub is_ready: &'a (dyn Fn(&ControllerRevision) -> bool + Send + Sync),
}

impl<'a, K: Kind> Subject<'a, K> {
    /// A StatefulSet's way to label.
    pub(crate) fn with_hash(
        owner: &'a Arc<K>,
        selector: &'a LabelSelector,
        template: &'a PodTemplateSpec,
        collisions: i32,
    ) -> Self {
        // Its status names the revision that is complete.
        Self { owner, selector, template, collisions, hash_label: HASH, is_ready: &|_| false }
    }

    /// The name for [`LAST_READY`] in a revision that takes the place of `before`.
    fn last_ready(&self, before: Option<&Arc<ControllerRevision>>) -> Option<String> {
        let before = before?;
        match (self.is_ready)(before) {
            true => before.metadata.name.clone(),
            false => before.metadata.annotations.as_ref()?.get(LAST_READY).cloned(),
        }
    }
}

/// Sets or clears [`LAST_READY`].
fn note_last_ready(meta: &mut ObjectMeta, name: Option<String>) {
    match name {
        Some(name) => drop(meta.annotations.get_or_insert_default().insert(LAST_READY.to_owned(), name)),
        None => drop(meta.annotations.as_mut().and_then(|known| known.remove(LAST_READY))),
    }
}

/// The history of one owner: its revisions from the oldest to the newest, and which of them is in force.
#[derive(Debug)]
pub(crate) struct History {
    pub all: Vec<Arc<ControllerRevision>>,
    /// The revision of the owner's present template.
    pub update: Arc<ControllerRevision>,
    /// How often a name was taken.
    pub collisions: i32,
}

/// The form in which a revision keeps a template: a strategic patch that brings it back.
pub(crate) fn data_of(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = json!("replace");
    json!({ "spec": { "template": template } })
}

/// The template that a revision keeps.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// What must happen so that the newest revision is the one of the present template.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It is, at this position.
    Is(usize),
    /// The one at this position was in force before and gets this number.
    Renumber(usize, i64),
    /// A new one with this number is made.
    Make(i64),
}

/// `sorted` by number.
fn step(sorted: &[Arc<ControllerRevision>], data: &Value) -> Step {
    let next = sorted.last().map_or(1, |last| last.revision + 1);
    let same = |r: &Arc<ControllerRevision>| r.data.as_ref().is_some_and(|known| known.0 == *data);
    match sorted.iter().rposition(same) {
        None => Step::Make(next),
        Some(position) if position + 1 == sorted.len() => Step::Is(position),
        Some(position) => Step::Renumber(position, next),
    }
}

fn sort(revisions: &mut [Arc<ControllerRevision>]) {
    revisions.sort_by(|a, b| {
        let created = |r: &ControllerRevision| r.metadata.creation_timestamp.as_ref().map(|t| t.0);
        a.revision
            .cmp(&b.revision)
            .then_with(|| created(a).cmp(&created(b)))
            .then_with(|| a.metadata.name.cmp(&b.metadata.name))
    });
}

/// The revisions to remove: the oldest of those that are not `live`, down to `limit`.
fn surplus<'a>(
    sorted: &'a [Arc<ControllerRevision>],
    live: &BTreeSet<String>,
    limit: usize,
) -> Vec<&'a Arc<ControllerRevision>> {
    let dead: Vec<_> = sorted.iter().filter(|r| !live.contains(name_of(&***r))).collect();
    let count = dead.len().saturating_sub(limit);
    dead.into_iter().take(count).collect()
}

/// One controller's hand on revisions.
pub(crate) struct Revisions {
    known: Owned<ControllerRevision>,
    api: Api<ControllerRevision>,
}

impl Revisions {
    pub(crate) fn new(informer: &Informer<ControllerRevision>, api: Api<ControllerRevision>) -> Self {
        Self { known: Owned::new(informer), api }
    }

    /// Adopts and releases revisions, and sees to it that the newest one is that of the present template.
    pub(crate) async fn sync<K: Kind>(
        &self,
        subject: &Subject<'_, K>,
        owner_api: &Api<K>,
    ) -> Result<History, Status> {
        let meta = subject.owner.metadata();
        let namespace = meta.namespace.as_deref().unwrap_or("");
        let claimed = claim(
            &Claimant { owner: meta, selector: subject.selector },
            self.known.candidates(meta.uid.as_deref().unwrap_or(""), namespace),
        );
        let owner_ref = controller_ref(&**subject.owner);
        let mut all = carry_out(claimed, &**subject.owner, owner_ref, owner_api, &self.api).await?;
        sort(&mut all);
        let data = data_of(subject.template);
        let mut collisions = subject.collisions;
        let update = match step(&all, &data) {
            Step::Is(position) => all[position].clone(),
            Step::Renumber(position, number) => {
                let last_ready = subject.last_ready(all.last());
                let mut renumbered =
                    ControllerRevision { revision: number, ..(*all.remove(position)).clone() };
                note_last_ready(&mut renumbered.metadata, last_ready);
                let written = self.api.update(namespace, renumbered).await?;
                all.push(written.clone());
                written
            }
            Step::Make(number) => {
                let last_ready = subject.last_ready(all.last());
                let made = self.make(subject, data, (number, last_ready), &mut collisions).await?;
                all.retain(|r| r.metadata.name != made.metadata.name);
                all.push(made.clone());
                made
            }
        };
        Ok(History { all, update, collisions })
    }

    async fn make<K: Kind>(
        &self,
        subject: &Subject<'_, K>,
        data: Value,
        (number, last_ready): (i64, Option<String>),
        collisions: &mut i32,
    ) -> Result<Arc<ControllerRevision>, Status> {
        let meta = subject.owner.metadata();
        let namespace = meta.namespace.as_deref().unwrap_or("");
        let text = data.to_string();
        loop {
            let hash = safe_hash(text.as_bytes(), Some(*collisions));
            let mut labels =
                subject.template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
            labels.insert(subject.hash_label.to_owned(), hash.clone());
            // Object names end at 253 characters; upstream keeps 223 for the owner's.
            let stem: String = meta.name.as_deref().unwrap_or("").chars().take(223).collect();
            let mut revision = ControllerRevision {
                metadata: ObjectMeta {
                    name: Some(format!("{stem}-{hash}")),
                    namespace: meta.namespace.clone(),
                    labels: Some(labels),
                    annotations: meta.annotations.clone(),
                    owner_references: Some(vec![controller_ref(&**subject.owner)]),
                    ..ObjectMeta::default()
                },
                data: Some(RawExtension(data.clone())),
                revision: number,
            };
            note_last_ready(&mut revision.metadata, last_ready.clone());
            let name = name_of(&revision).to_owned();
            match self.api.create(namespace, revision).await {
                Err(status) if status.reason() == Reason::AlreadyExists => {
                    let taken = self.api.get(namespace, &name).await?;
                    let same = taken.data.as_ref().is_some_and(|known| known.0 == data);
                    if same
                        && coracle_meta::owner::is_controlled_by(
                            &taken.metadata,
                            meta.uid.as_deref().unwrap_or(""),
                        )
                    {
                        return Ok(taken);
                    }
                    *collisions += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// Removes the oldest revisions that nothing uses, down to `limit`.
    pub(crate) async fn truncate(
        &self,
        namespace: &str,
        history: &History,
        live: &BTreeSet<String>,
        limit: Option<i32>,
    ) -> Result<(), Status> {
        let limit = usize::try_from(limit.unwrap_or(10)).unwrap_or(usize::MAX);
        for revision in surplus(&history.all, live, limit) {
            let options = DeleteOptions { uid: revision.metadata.uid.clone(), ..DeleteOptions::default() };
            ignore_not_found(self.api.delete(namespace, name_of(&**revision), options).await)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(number: i64, image: &str) -> Arc<ControllerRevision> {
        Arc::new(ControllerRevision {
            metadata: ObjectMeta { name: Some(format!("r{number}")), ..ObjectMeta::default() },
            data: Some(RawExtension(data_of(&template(image)))),
            revision: number,
        })
    }

    fn template(image: &str) -> PodTemplateSpec {
        let template = json!({ "spec": { "containers": [{ "name": "c", "image": image }] } });
        serde_json::from_value(template).expect("a template")
    }

    #[test]
    fn going_back_renumbers_the_old_revision_and_a_new_template_makes_one() {
        let all = [revision(1, "a"), revision(2, "b")];
        assert_eq!(step(&all, &data_of(&template("b"))), Step::Is(1));
        assert_eq!(step(&all, &data_of(&template("a"))), Step::Renumber(0, 3));
        assert_eq!(step(&all, &data_of(&template("c"))), Step::Make(3));
        assert_eq!(step(&[], &data_of(&template("c"))), Step::Make(1));
    }

    #[test]
    fn a_revision_gives_its_template_back() {
        assert_eq!(template_of(&revision(1, "a")), Some(template("a")));
    }

    #[test]
    fn only_the_oldest_dead_revisions_beyond_the_limit_go() {
        let all = [revision(1, "a"), revision(2, "b"), revision(3, "c"), revision(4, "d")];
        let live = BTreeSet::from(["r1".to_owned(), "r4".to_owned()]);
        let names = |limit| -> Vec<i64> { surplus(&all, &live, limit).iter().map(|r| r.revision).collect() };
        assert_eq!(names(1), [2]);
        assert_eq!(names(0), [2, 3]);
        assert!(names(2).is_empty());
    }
}
