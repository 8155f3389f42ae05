//! Who a StatefulSet's pod is, and which claims belong to it: pure.

use std::sync::Arc;

use coracle_meta::owner::controller_ref;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::pods::of_template;
use crate::revisions::REVISION_HASH;
use crate::runtime::{name_of, uid_of};

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The name before the last dash, and the number behind it.
pub(super) fn parse(pod: &str) -> Option<(&str, i32)> {
    let (parent, ordinal) = pod.rsplit_once('-')?;
    let digits = !ordinal.is_empty() && ordinal.bytes().all(|b| b.is_ascii_digit());
    Some((parent, ordinal.parse().ok().filter(|_| digits)?))
}

/// The pod's number, if it has one and it is one of the set's.
pub(super) fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    parse(name_of(pod)).filter(|(parent, _)| *parent == name_of(set)).map(|(_, ordinal)| ordinal)
}

fn spec(set: &StatefulSet) -> Option<&StatefulSetSpec> {
    set.spec.as_ref()
}

/// The first number.
pub(super) fn start(set: &StatefulSet) -> i32 {
    spec(set).and_then(|spec| spec.ordinals.as_ref()).and_then(|ordinals| ordinals.start).unwrap_or(0)
}

/// `spec.replicas`.
pub(super) fn replicas(set: &StatefulSet) -> i32 {
    spec(set).and_then(|spec| spec.replicas).unwrap_or(1)
}

/// Whether the number is one of those that should exist.
pub(super) fn in_range(set: &StatefulSet, ordinal: i32) -> bool {
    ordinal >= start(set) && i64::from(ordinal) < i64::from(start(set)) + i64::from(replicas(set))
}

fn templates(set: &StatefulSet) -> impl Iterator<Item = &PersistentVolumeClaim> {
    spec(set).into_iter().flat_map(|spec| spec.volume_claim_templates.iter().flatten())
}

fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    format!("{}-{}-{ordinal}", name_of(template), name_of(set))
}

/// The claims of the pod with a number, as they are made.
pub(super) fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let selected = spec(set).and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default();
    let one = |template: &PersistentVolumeClaim| {
        let mut claim = template.clone();
        claim.metadata.name = Some(claim_name(set, template, ordinal));
        claim.metadata.namespace.clone_from(&set.metadata.namespace);
        claim.metadata.labels.get_or_insert_default().extend(selected.clone());
        claim
    };
    templates(set).map(one).collect()
}

/// The pod's volumes with the claims of its number put in.
fn with_claims(set: &StatefulSet, ordinal: i32, volumes: Option<Vec<Volume>>) -> Option<Vec<Volume>> {
    let volume = |template: &PersistentVolumeClaim| Volume {
        name: name_of(template).to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim_name(set, template, ordinal),
            read_only: None,
        }),
        ..Volume::default()
    };
    let mut all: Vec<Volume> = templates(set).map(volume).collect();
    let others = volumes.into_iter().flatten();
    let others: Vec<Volume> = others.filter(|v| all.iter().all(|claimed| claimed.name != v.name)).collect();
    all.extend(others);
    (!all.is_empty()).then_some(all)
}

fn set_identity(set: &StatefulSet, pod: &mut Pod, ordinal: i32) {
    let name = format!("{}-{ordinal}", name_of(set));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.to_owned(), name.clone());
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
    pod.metadata.name = Some(name);
}

/// A pod with a number, of a revision's template.
pub(super) fn new_pod(
    set: &Arc<StatefulSet>,
    template: &PodTemplateSpec,
    revision: &str,
    ordinal: i32,
) -> Pod {
    let mut pod = of_template(Some(template), set.metadata.namespace.as_ref(), controller_ref(&**set));
    set_identity(set, &mut pod, ordinal);
    pod.metadata.labels.get_or_insert_default().insert(REVISION_HASH.to_owned(), revision.to_owned());
    let name = pod.metadata.name.clone();
    let pod_spec = pod.spec.get_or_insert_default();
    pod_spec.hostname = name;
    pod_spec.subdomain = spec(set).and_then(|spec| spec.service_name.clone()).filter(|s| !s.is_empty());
    pod_spec.volumes = with_claims(set, ordinal, pod_spec.volumes.take());
    pod
}

/// The revision that the pod is of.
pub(super) fn revision(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(REVISION_HASH)).map_or("", String::as_str)
}

/// The pod with its identity and storage put right; `None` if they are.
pub(super) fn repaired(set: &StatefulSet, pod: &Pod, ordinal: i32) -> Option<Pod> {
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(POD_NAME));
    let named = label.map(String::as_str) == Some(name_of(pod));
    let volumes = || pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let stored = templates(set).all(|template| {
        let volume = volumes().find(|v| v.name == name_of(template));
        let claim = volume.and_then(|v| v.persistent_volume_claim.as_ref());
        claim.is_some_and(|claim| claim.claim_name == claim_name(set, template, ordinal))
    });
    if named && stored {
        return None;
    }
    let mut pod = pod.clone();
    set_identity(set, &mut pod, ordinal);
    if !stored {
        let spec = pod.spec.get_or_insert_default();
        spec.volumes = with_claims(set, ordinal, spec.volumes.take());
    }
    Some(pod)
}

/// Whether claims go with the set, and with a pod that is scaled away.
fn deletes(set: &StatefulSet) -> (bool, bool) {
    let policy = spec(set).and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
    let is_delete = |value: Option<&String>| value.is_some_and(|value| value == "Delete");
    (
        is_delete(policy.and_then(|p| p.when_deleted.as_ref())),
        is_delete(policy.and_then(|p| p.when_scaled.as_ref())),
    )
}

fn refers(reference: &OwnerReference, api_version: &str, kind: &str, name: &str) -> bool {
    reference.api_version == api_version && reference.kind == kind && reference.name == name
}

fn is_set(reference: &OwnerReference, set: &StatefulSet) -> bool {
    refers(reference, "apps/v1", "StatefulSet", name_of(set))
}

fn is_pod(reference: &OwnerReference, pod: &Pod) -> bool {
    refers(reference, "v1", "Pod", name_of(pod))
}

/// Whether the claim still belongs to an earlier pod of this name, with which it goes: a new pod waits.
pub(super) fn is_stale(set: &StatefulSet, claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    let owners = claim.metadata.owner_references.iter().flatten();
    deletes(set).1 && owners.filter(|r| is_pod(r, pod)).any(|r| r.uid != uid_of(pod))
}

/// What the owners of a claim must become.
#[derive(Debug, PartialEq)]
pub(super) enum Owners {
    /// They are right, or of an object that is gone and takes the claim with it.
    Right,
    Become(Vec<OwnerReference>),
}

/// Whether another controller has the claim while the policy would have this one take it.
pub(super) fn has_foreign_controller(set: &StatefulSet, claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    if deletes(set) == (false, false) {
        return false;
    }
    claim.metadata.owner_references.iter().flatten().any(|reference| {
        if is_set(reference, set) {
            reference.uid != uid_of(set)
        } else if is_pod(reference, pod) {
            reference.uid != uid_of(pod)
        } else {
            reference.controller == Some(true)
        }
    })
}

/// The owners that a pod's claim must have, by the retention policy.
pub(super) fn owners(set: &StatefulSet, claim: &PersistentVolumeClaim, pod: &Pod) -> Owners {
    let now = claim.metadata.owner_references.clone().unwrap_or_default();
    let stale = |r: &OwnerReference| {
        (is_set(r, set) && r.uid != uid_of(set)) || (is_pod(r, pod) && r.uid != uid_of(pod))
    };
    if now.iter().any(stale) {
        return Owners::Right;
    }
    let ours = |r: &OwnerReference| is_set(r, set) || is_pod(r, pod);
    let others: Vec<OwnerReference> = now.iter().filter(|r| !ours(r)).cloned().collect();
    if has_foreign_controller(set, claim, pod) {
        return if others.len() == now.len() { Owners::Right } else { Owners::Become(others) };
    }
    let (when_deleted, when_scaled) = deletes(set);
    let scaled_away = ordinal(set, pod).is_none_or(|ordinal| !in_range(set, ordinal));
    let by_pod = when_scaled && scaled_away;
    let by_set = when_deleted && !by_pod;
    let mut wanted = others;
    if by_pod {
        wanted.push(controller_ref(pod));
    }
    if by_set {
        wanted.push(controller_ref(set));
    }
    let key = |r: &OwnerReference| (r.uid.clone(), r.controller == Some(true));
    let mut have: Vec<_> = now.iter().map(key).collect();
    let mut want: Vec<_> = wanted.iter().map(key).collect();
    have.sort();
    want.sort();
    if have == want { Owners::Right } else { Owners::Become(wanted) }
}
