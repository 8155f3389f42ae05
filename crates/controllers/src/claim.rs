//! Which objects a controller owns: by its controller reference, and by selector where there is none yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_client::{Api, Index, Informer, PatchKind};
use coracle_meta::owner::controller_of;
use coracle_meta::selector::LabelSelector;
use coracle_meta::{Kind, Reason, Status};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::json;

/// Objects by controller uid; those without one by `orphans/<namespace>`.
pub(crate) fn owner_keys<K: Kind>(object: &K) -> Vec<String> {
    let meta = object.metadata();
    vec![match controller_of(meta) {
        Some(owner) => owner.uid.clone(),
        None => orphans(meta.namespace.as_deref().unwrap_or("")),
    }]
}

fn orphans(namespace: &str) -> String {
    format!("orphans/{namespace}")
}

/// Objects found by who controls them.
#[derive(Clone)]
pub(crate) struct Owned<K>(Index<K>);

impl<K: Kind> Owned<K> {
    pub(crate) fn new(informer: &Informer<K>) -> Self {
        Self(informer.index("controller", owner_keys))
    }

    /// What the owner controls.
    pub(crate) fn of(&self, uid: &str) -> Vec<Arc<K>> {
        self.0.get(uid)
    }

    /// What the owner controls, and what of its namespace nobody does.
    pub(crate) fn candidates(&self, uid: &str, namespace: &str) -> Vec<Arc<K>> {
        let mut candidates = self.0.get(uid);
        candidates.extend(self.0.get(&orphans(namespace)));
        candidates
    }
}

/// Who claims.
pub(crate) struct Claimant<'a> {
    pub owner: &'a ObjectMeta,
    pub selector: &'a LabelSelector,
}

/// What becomes of the candidates.
#[derive(Debug)]
pub(crate) struct Claim<K> {
    /// Already owned, and selected.
    pub owned: Vec<Arc<K>>,
    /// Selected, without a controller: to be adopted.
    pub adopt: Vec<Arc<K>>,
    /// Owned, but not selected any more: to be released.
    pub release: Vec<Arc<K>>,
}

static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

/// Sorts candidates of the owner's namespace by what must happen to them. An owner that is being deleted
/// claims and releases nothing.
pub(crate) fn claim<K: Kind>(who: &Claimant<'_>, candidates: impl IntoIterator<Item = Arc<K>>) -> Claim<K> {
    let mut claim = Claim { owned: Vec::new(), adopt: Vec::new(), release: Vec::new() };
    let leaving = who.owner.deletion_timestamp.is_some();
    for object in candidates {
        let meta = object.metadata();
        let selected = who.selector.matches(meta.labels.as_ref().unwrap_or(&NO_LABELS));
        match controller_of(meta) {
            Some(owner) if Some(&owner.uid) == who.owner.uid.as_ref() => {
                if selected {
                    claim.owned.push(object);
                } else if !leaving && meta.deletion_timestamp.is_none() {
                    claim.release.push(object);
                }
            }
            Some(_) => {}
            None if selected && !leaving && meta.deletion_timestamp.is_none() => claim.adopt.push(object),
            None => {}
        }
    }
    claim
}

/// Carries a claim out: what is owned in the end. `owner_api` is asked first whether the owner still is
/// what the informer says, as adoption by a deleted owner would make orphans.
pub(crate) async fn carry_out<O: Kind, K: Kind>(
    claim: Claim<K>,
    owner: &O,
    owner_ref: OwnerReference,
    owner_api: &Api<O>,
    api: &Api<K>,
) -> Result<Vec<Arc<K>>, Status> {
    let Claim { mut owned, adopt, release } = claim;
    let namespace = owner.metadata().namespace.as_deref().unwrap_or("");
    let owner_name = owner.metadata().name.as_deref().unwrap_or("");
    if !adopt.is_empty() {
        let fresh = owner_api.get(namespace, owner_name).await?;
        let meta = fresh.metadata();
        if meta.uid != owner.metadata().uid || meta.deletion_timestamp.is_some() {
            return Err(Status::conflict(
                O::GROUP,
                O::URL_PATH_SEGMENT,
                owner_name,
                "the owner is going away",
            ));
        }
    }
    for object in adopt {
        let meta = object.metadata();
        let mut owners = meta.owner_references.clone().unwrap_or_default();
        owners.push(owner_ref.clone());
        let patch = json!({ "metadata": { "ownerReferences": owners, "uid": meta.uid } });
        let name = meta.name.as_deref().unwrap_or("");
        match api.patch(namespace, name, PatchKind::Strategic, patch).await {
            Ok(adopted) => owned.push(adopted),
            Err(status) if matches!(status.reason(), Reason::NotFound | Reason::Invalid) => {}
            Err(status) => return Err(status),
        }
    }
    for object in release {
        let meta = object.metadata();
        let gone = json!({ "$patch": "delete", "uid": owner.metadata().uid });
        let patch = json!({ "metadata": { "ownerReferences": [gone], "uid": meta.uid } });
        let name = meta.name.as_deref().unwrap_or("");
        match api.patch(namespace, name, PatchKind::Strategic, patch).await {
            Err(status) if !matches!(status.reason(), Reason::NotFound | Reason::Invalid) => {
                return Err(status);
            }
            _ => {}
        }
    }
    Ok(owned)
}
