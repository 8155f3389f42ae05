//! The way back from a rollout, and its pause: by what version, and how.

use coracle_client::{Api, DeleteOptions};
use coracle_meta::owner::controller_of;
use coracle_meta::selector::LabelSelector;
use coracle_meta::{Kind, Reason, Status, pod as podutil};
use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSet, DaemonSetSpec, Deployment, ReplicaSet, RollingUpdateStatefulSetStrategy,
    StatefulSet, StatefulSetSpec, StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector as ApiSelector, ObjectMeta};
use serde::de::DeserializeOwned;

use super::progress::{self, Progress};
use super::{Release, Workload, revision, uid};

/// Annotation of a paused StatefulSet or DaemonSet: the update strategy that it has otherwise.
const PAUSED: &str = "coracle.dev/paused-strategy";
/// Annotation of a ReplicaSet or ControllerRevision: the version before it that was ready; the controllers write it.
const LAST_READY: &str = "coracle.dev/last-ready";
/// How often a change is tried again that others came before.
const ATTEMPTS: usize = 5;

/// Which version to go back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// The one before.
    Before,
    /// This revision.
    To(i64),
    /// The last one that was ready.
    LastReady,
}

/// A version: its name, revision, the one before it that was ready, and whether it has ready pods.
#[derive(Clone, Debug)]
struct Version<'a> {
    name: &'a str,
    revision: i64,
    last_ready: Option<&'a str>,
    has_ready: bool,
}

impl<'a> Version<'a> {
    fn new(meta: &'a ObjectMeta, revision: i64, has_ready: bool) -> Self {
        let last_ready = meta.annotations.as_ref().and_then(|known| known.get(LAST_READY));
        let name = meta.name.as_deref().unwrap_or("");
        Self { name, revision, last_ready: last_ready.map(String::as_str), has_ready }
    }
}

/// The version to go back to, by its place. `current`: the one that is known to have been complete last.
fn choose(versions: &[Version<'_>], aim: Aim, current: Option<&str>) -> Option<usize> {
    let mut order: Vec<usize> = (0..versions.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(versions[*i].revision));
    let (newest, older) = (*order.first()?, order.get(1..)?);
    let named = |name: &str| older.iter().copied().find(|i| versions[*i].name == name);
    match aim {
        Aim::To(to) => order.into_iter().find(|i| versions[*i].revision == to),
        Aim::Before => older.first().copied(),
        Aim::LastReady => {
            let known = current.or(versions[newest].last_ready).and_then(named);
            let ready = || older.iter().copied().find(|i| versions[*i].has_ready);
            known.or_else(ready).or(older.first().copied())
        }
    }
}

/// Whether [`Release::pause`] holds a StatefulSet or DaemonSet.
pub fn is_paused(meta: &ObjectMeta) -> bool {
    meta.annotations.as_ref().is_some_and(|known| known.contains_key(PAUSED))
}

/// Takes the strategy aside that a paused workload gets back.
fn keep<T: serde::Serialize>(meta: &mut ObjectMeta, strategy: &T) -> Result<(), Status> {
    let text = serde_json::to_string(strategy).map_err(|e| Status::internal(e.to_string()))?;
    meta.annotations.get_or_insert_default().insert(PAUSED.to_owned(), text);
    Ok(())
}

/// What [`keep`] took aside, if the workload is paused.
fn kept<T: DeserializeOwned>(meta: &mut ObjectMeta) -> Option<T> {
    let text = meta.annotations.as_mut()?.remove(PAUSED)?;
    serde_json::from_str(&text).ok()
}

/// What StatefulSet and DaemonSet have in common here.
trait Revised: Kind {
    fn template(&mut self) -> &mut PodTemplateSpec;
    fn selector(&self) -> ApiSelector;
    /// Keeps its pods as they are.
    fn hold(&mut self) -> Result<(), Status>;
    /// Lets it go on, if it is held.
    fn let_go(&mut self);
    fn progress(&self) -> Progress;
    /// The revision that it knows to have been complete last.
    fn complete(&self) -> Option<&str>;
}

impl Revised for StatefulSet {
    fn template(&mut self) -> &mut PodTemplateSpec {
        &mut self.spec.get_or_insert_default().template
    }
    fn selector(&self) -> ApiSelector {
        self.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default()
    }
    fn hold(&mut self) -> Result<(), Status> {
        let spec: &mut StatefulSetSpec = self.spec.get_or_insert_default();
        keep(&mut self.metadata, &spec.update_strategy)?;
        // Above every number: pods that must be made anew come back as they were.
        let all = RollingUpdateStatefulSetStrategy { partition: Some(i32::MAX), max_unavailable: None };
        spec.update_strategy = Some(StatefulSetUpdateStrategy {
            type_: Some("RollingUpdate".to_owned()),
            rolling_update: Some(all),
        });
        Ok(())
    }
    fn let_go(&mut self) {
        if let Some(strategy) = kept(&mut self.metadata) {
            self.spec.get_or_insert_default().update_strategy = strategy;
        }
    }
    fn progress(&self) -> Progress {
        progress::stateful_set(self)
    }
    fn complete(&self) -> Option<&str> {
        self.status.as_ref()?.current_revision.as_deref()
    }
}

impl Revised for DaemonSet {
    fn template(&mut self) -> &mut PodTemplateSpec {
        &mut self.spec.get_or_insert_default().template
    }
    fn selector(&self) -> ApiSelector {
        self.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default()
    }
    fn hold(&mut self) -> Result<(), Status> {
        let spec: &mut DaemonSetSpec = self.spec.get_or_insert_default();
        keep(&mut self.metadata, &spec.update_strategy)?;
        let strategy = spec.update_strategy.get_or_insert_default();
        (strategy.type_, strategy.rolling_update) = (Some("OnDelete".to_owned()), None);
        Ok(())
    }
    fn let_go(&mut self) {
        if let Some(strategy) = kept(&mut self.metadata) {
            self.spec.get_or_insert_default().update_strategy = strategy;
        }
    }
    fn progress(&self) -> Progress {
        progress::daemon_set(self)
    }
    fn complete(&self) -> Option<&str> {
        None
    }
}

/// The template that a revision keeps, which is a strategic patch.
fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

impl Release<'_> {
    fn what(&self) -> String {
        format!("{:?}/{}", self.kind, self.name).to_lowercase()
    }

    /// Reads the workload, changes it and writes it; again where somebody else wrote in between.
    async fn change<K: Kind>(&self, change: impl Fn(&mut K) -> Result<(), Status>) -> Result<(), Status> {
        let api: Api<K> = self.api();
        let mut attempt = 1;
        loop {
            let mut object = (*api.get(self.namespace, self.name).await?).clone();
            change(&mut object)?;
            match api.update(self.namespace, object).await {
                Err(status) if status.reason() == Reason::Conflict && attempt < ATTEMPTS => attempt += 1,
                outcome => return outcome.map(drop),
            }
        }
    }

    /// Holds a rollout, or lets it go on.
    pub(super) async fn pause(&self, paused: bool) -> Result<String, Status> {
        match self.kind {
            Workload::Deployment => {
                self.change(|d: &mut Deployment| {
                    d.spec.get_or_insert_default().paused = paused.then_some(true);
                    Ok(())
                })
                .await?;
            }
            Workload::StatefulSet => self.change(|set: &mut StatefulSet| hold(set, paused)).await?,
            Workload::DaemonSet => self.change(|set: &mut DaemonSet| hold(set, paused)).await?,
        }
        Ok(format!("{} {}", self.what(), if paused { "paused" } else { "goes on" }))
    }

    /// Brings an earlier version back. A paused rollout goes on with it.
    pub(super) async fn back(&self, aim: Aim) -> Result<String, Status> {
        match self.kind {
            Workload::Deployment => self.back_deployment(aim).await,
            Workload::StatefulSet => {
                let said = self.back_revision::<StatefulSet>(aim).await?;
                if aim == Aim::LastReady {
                    self.drop_unready().await?;
                }
                Ok(said)
            }
            Workload::DaemonSet => self.back_revision::<DaemonSet>(aim).await,
        }
    }

    fn none_earlier(&self) -> Status {
        Status::bad_request(format!("{} has no such earlier version", self.what()))
    }

    /// An end that was reached is none to abort.
    fn check_abort(&self, aim: Aim, progress: &Progress) -> Result<(), Status> {
        match (aim, progress) {
            (Aim::LastReady, Progress::Done(_)) => Err(Status::bad_request(format!(
                "{} is complete, there is nothing to abort; `coracle release undo` goes back",
                self.what()
            ))),
            _ => Ok(()),
        }
    }

    async fn back_deployment(&self, aim: Aim) -> Result<String, Status> {
        let d = self.api::<Deployment>().get(self.namespace, self.name).await?;
        self.check_abort(aim, &progress::deployment(&d).0)?;
        let selector = d.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
        let sets: Vec<ReplicaSet> = self.owned(&uid(&d.metadata), &selector).await?;
        let ready =
            |set: &ReplicaSet| set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0) > 0;
        let versions: Vec<Version<'_>> =
            sets.iter().map(|set| Version::new(&set.metadata, revision(&set.metadata), ready(set))).collect();
        let old = choose(&versions, aim, None).map(|i| &sets[i]).ok_or_else(|| self.none_earlier())?;
        let mut template = old.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
        if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
            labels.remove("pod-template-hash");
        }
        self.change(|d: &mut Deployment| {
            let spec = d.spec.get_or_insert_default();
            spec.template.clone_from(&template);
            spec.paused = None;
            Ok(())
        })
        .await?;
        Ok(format!("{} goes back to revision {}", self.what(), revision(&old.metadata)))
    }

    async fn back_revision<K: Revised>(&self, aim: Aim) -> Result<String, Status> {
        let set = self.api::<K>().get(self.namespace, self.name).await?;
        self.check_abort(aim, &set.progress())?;
        let owner = uid(set.metadata());
        let all = self.api::<ControllerRevision>().list(self.namespace, Default::default()).await?;
        let owned: Vec<_> =
            all.iter().filter(|r| controller_of(&r.metadata).is_some_and(|o| o.uid == owner)).collect();
        let versions: Vec<Version<'_>> =
            owned.iter().map(|r| Version::new(&r.metadata, r.revision, false)).collect();
        let old = choose(&versions, aim, set.complete()).map(|i| owned[i]);
        let found = old.and_then(|old| Some((old.revision, template_of(old)?)));
        let (number, template) = found.ok_or_else(|| self.none_earlier())?;
        self.change(|set: &mut K| {
            set.template().clone_from(&template);
            set.let_go();
            Ok(())
        })
        .await?;
        Ok(format!("{} goes back to revision {number}", self.what()))
    }

    /// Pods that are not ready would hold an ordered StatefulSet up for ever.
    async fn drop_unready(&self) -> Result<(), Status> {
        let set = self.api::<StatefulSet>().get(self.namespace, self.name).await?;
        let pods: Vec<Pod> = self.owned(&uid(&set.metadata), &set.selector()).await?;
        for pod in pods.iter().filter(|pod| !podutil::is_ready(pod)) {
            let options = DeleteOptions { uid: pod.metadata.uid.clone(), ..DeleteOptions::default() };
            let name = pod.metadata.name.as_deref().unwrap_or("");
            match self.api::<Pod>().delete(self.namespace, name, options).await {
                Err(e) if e.code() != 404 => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Objects that the owner controls and selects.
    pub(super) async fn owned<K: Kind>(&self, owner: &str, selector: &ApiSelector) -> Result<Vec<K>, Status> {
        let selector = LabelSelector::from_api(selector).map_err(Status::bad_request)?;
        let all = self.api::<K>().list(self.namespace, Default::default()).await?;
        let is = |object: &K| {
            let meta = object.metadata();
            selector.matches_option(meta.labels.as_ref())
                && controller_of(meta).is_some_and(|o| o.uid == owner)
        };
        Ok(all.iter().filter(|object| is(object)).map(|object| (**object).clone()).collect())
    }
}

fn hold<K: Revised>(set: &mut K, paused: bool) -> Result<(), Status> {
    match (paused, is_paused(set.metadata())) {
        (true, false) => set.hold()?,
        (false, true) => set.let_go(),
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn version(
        name: &'static str,
        revision: i64,
        last: Option<&'static str>,
        has_ready: bool,
    ) -> Version<'static> {
        Version { name, revision, last_ready: last, has_ready }
    }

    #[test]
    fn undo_takes_the_version_before_and_abort_the_last_that_was_ready() {
        let versions =
            [version("a", 1, None, true), version("c", 3, None, false), version("b", 2, None, false)];
        let pick = |aim, current| choose(&versions, aim, current).map(|i| versions[i].name);
        assert_eq!(pick(Aim::Before, None), Some("b"));
        assert_eq!(pick(Aim::LastReady, None), Some("a"), "it has ready pods");
        assert_eq!(pick(Aim::To(1), None), Some("a"));
        assert_eq!(pick(Aim::To(7), None), None);
        assert_eq!(pick(Aim::LastReady, Some("b")), Some("b"), "its status names it");
        assert_eq!(pick(Aim::LastReady, Some("c")), Some("a"), "not the one that fails");
        assert_eq!(choose(&versions[..1], Aim::LastReady, None), None);
        // No pod tells any more: what the controllers wrote down does.
        let gone = [
            version("a", 1, None, false),
            version("b", 2, Some("a"), false),
            version("c", 3, Some("a"), false),
        ];
        assert_eq!(choose(&gone, Aim::LastReady, None), Some(0));
        assert_eq!(choose(&gone, Aim::Before, None), Some(1));
    }

    #[test]
    fn a_paused_set_gets_its_strategy_back() {
        let strategy = json!({ "type": "RollingUpdate", "rollingUpdate": { "partition": 1 } });
        let set = json!({ "metadata": { "name": "s" }, "spec": { "serviceName": "s", "selector": {}, "template": {},
            "updateStrategy": strategy } });
        let set: StatefulSet = serde_json::from_value(set).unwrap();
        let mut changed = set.clone();
        hold(&mut changed, true).unwrap();
        hold(&mut changed, true).unwrap();
        assert!(is_paused(&changed.metadata));
        assert_eq!(
            changed.spec.as_ref().and_then(|s| s
                .update_strategy
                .as_ref()?
                .rolling_update
                .as_ref()?
                .partition),
            Some(i32::MAX)
        );
        hold(&mut changed, false).unwrap();
        assert!(!is_paused(&changed.metadata));
        assert_eq!(changed.spec, set.spec);
    }

    #[test]
    fn a_revision_gives_its_template_back() {
        let data: Value = json!({ "spec": { "template": { "$patch": "replace", "spec": { "containers": [{ "name": "c" }] } } } });
        let revision = json!({ "metadata": {}, "revision": 1, "data": data });
        let template = template_of(&serde_json::from_value(revision).unwrap()).unwrap();
        assert_eq!(template.spec.unwrap().containers[0].name, "c");
    }
}
