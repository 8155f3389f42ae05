//! persistentVolumeClaim and ephemeral: the persistent volume that a claim is bound to. What a persistent volume
//! can be is listed in [`SOURCES`]; adding one is a function and a row.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use coracle_meta::Reason;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Volume};

use super::{SetUp, VolumeContext, VolumeKind, host_path, ownership};
use crate::admit::selects_node;
use crate::names;

pub(super) struct Claim;

/// How the text of an error begins that came before any mounting.
pub(super) const UNPROCESSED: &str = "error processing PVC";

/// A persistent volume made usable on this node.
struct Ready {
    path: PathBuf,
    /// Whether `fsGroup` applies to it.
    takes_group: bool,
}

/// Makes a persistent volume of one kind usable; `None` if it is of another kind.
type Source = fn(&PersistentVolume) -> Option<Result<Ready, String>>;

/// All kinds of persistent volumes.
static SOURCES: [Source; 2] = [from_host_path, from_local];

fn from_host_path(pv: &PersistentVolume) -> Option<Result<Ready, String>> {
    let source = pv.spec.as_ref()?.host_path.as_ref()?;
    let path = PathBuf::from(&source.path);
    let kind = source.type_.as_deref().unwrap_or("");
    Some(host_path::provide(&path, kind).map(|()| Ready { path, takes_group: false }))
}

fn from_local(pv: &PersistentVolume) -> Option<Result<Ready, String>> {
    let source = pv.spec.as_ref()?.local.as_ref()?;
    let path = PathBuf::from(&source.path);
    let there = std::fs::metadata(&path);
    Some(match there {
        Ok(_) => Ok(Ready { path, takes_group: true }),
        Err(_) => Err(format!("path {:?} does not exist", source.path)),
    })
}

/// Name of the claim behind a volume, and whether the pod itself must have brought it about.
fn claim_of(volume: &Volume, pod: &str) -> Option<(String, bool)> {
    if let Some(claim) = &volume.persistent_volume_claim {
        return Some((claim.claim_name.clone(), false));
    }
    volume.ephemeral.as_ref().map(|_| (format!("{pod}-{}", volume.name), true))
}

/// Whether the pod owns the claim.
fn is_owned(claim: &PersistentVolumeClaim, uid: &str) -> bool {
    let owners = claim.metadata.owner_references.iter().flatten();
    owners.into_iter().any(|o| o.controller == Some(true) && o.uid == uid)
}

/// The volume that a claim is bound to.
///
/// # Errors
/// Upstream's text: no claim, not bound, no volume.
async fn bound(
    cx: &VolumeContext,
    name: &str,
    owned: bool,
) -> Result<(PersistentVolumeClaim, PersistentVolume), String> {
    let namespace = cx.namespace();
    let fail = |why: String| format!("{UNPROCESSED} {namespace}/{name}: {why}");
    let claim = cx.client.api::<PersistentVolumeClaim>().get(namespace, name).await;
    let claim = claim.map_err(|s| match s.reason() {
        Reason::NotFound => {
            fail(format!("failed to fetch PVC from API server: persistentvolumeclaims {name:?} not found"))
        }
        _ => fail(format!("failed to fetch PVC from API server: {s}")),
    })?;
    if owned && !is_owned(&claim, names::uid(&cx.pod)) {
        return Err(fail(format!(
            "PVC {namespace}/{name} was not created for pod {namespace}/{} (pod is not owner)",
            names::name(&cx.pod)
        )));
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(fail("PVC is being deleted".into()));
    }
    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
    let volume = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|v| !v.is_empty());
    let Some(volume) = volume.filter(|_| phase == Some("Bound")) else {
        return Err(fail("PVC is not bound".into()));
    };
    let pv = cx.client.api::<PersistentVolume>().get("", &volume).await;
    let pv = pv.map_err(|s| fail(format!("failed to fetch PV {volume:?} from API server: {s}")))?;
    let uid = pv.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).and_then(|r| r.uid.clone());
    if uid != claim.metadata.uid {
        return Err(fail(format!("PVC {namespace}/{name} is not bound to PV {volume:?}")));
    }
    Ok(((*claim).clone(), (*pv).clone()))
}

/// `fsGroupChangePolicy: OnRootMismatch`: whether the top shows that nothing is to be done.
fn owned_already(path: &Path, group: i64) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).is_ok_and(|m| i64::from(m.gid()) == group && m.mode() & 0o2660 == 0o2660)
}

fn give_to_group(cx: &VolumeContext, path: &Path, read_only: bool) -> Result<(), String> {
    let Some(group) = cx.fs_group() else { return Ok(()) };
    let context = crate::pod::spec(&cx.pod).security_context.as_ref();
    let policy = context.and_then(|c| c.fs_group_change_policy.as_deref());
    if policy == Some("OnRootMismatch") && owned_already(path, group) {
        return Ok(());
    }
    ownership::apply(path, group, read_only).map_err(|e| format!("applyFSGroup failed for vol {e}"))
}

#[async_trait]
impl VolumeKind for Claim {
    fn is(&self, volume: &Volume) -> bool {
        volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
    }

    async fn set_up(&self, cx: &VolumeContext, volume: &Volume) -> Result<SetUp, String> {
        let (name, owned) = claim_of(volume, names::name(&cx.pod)).ok_or("no claim")?;
        let (_, pv) = bound(cx, &name, owned).await?;
        let spec = pv.spec.clone().unwrap_or_default();
        let required = spec.node_affinity.as_ref().and_then(|a| a.required.as_ref());
        if let Some(required) = required
            && !selects_node(required, &cx.node_labels, "")
        {
            return Err("no matching NodeSelectorTerms".into());
        }
        let ready = SOURCES.iter().find_map(|source| source(&pv));
        let ready = ready.ok_or("no volume plugin matched")??;
        let asked = volume.persistent_volume_claim.as_ref().and_then(|c| c.read_only) == Some(true);
        let modes = spec.access_modes.unwrap_or_default();
        let read_only = asked || modes == ["ReadOnlyMany"];
        let block = spec.volume_mode.as_deref() == Some("Block");
        if ready.takes_group && !block {
            give_to_group(cx, &ready.path, read_only)?;
        }
        let gid = names_group(&pv);
        let mut done = SetUp::plain(ready.path, read_only);
        done.mounted.group = gid;
        Ok(done)
    }
}

/// The group that the annotation of a volume asks for.
fn names_group(pv: &PersistentVolume) -> Option<i64> {
    pv.metadata.annotations.as_ref()?.get("pv.beta.kubernetes.io/gid")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pv(spec: serde_json::Value) -> PersistentVolume {
        serde_json::from_value(json!({"metadata": {"name": "v"}, "spec": spec})).expect("volume")
    }

    #[test]
    fn sources_are_recognised_and_missing_paths_named() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("data");
        let local = pv(json!({"local": {"path": path}}));
        let error = from_local(&local).expect("local").err();
        assert_eq!(error, Some(format!("path {path:?} does not exist")));
        let host = pv(json!({"hostPath": {"path": path, "type": "DirectoryOrCreate"}}));
        assert!(from_host_path(&host).is_some_and(|r| r.is_ok()) && path.is_dir());
        assert!(from_local(&local).is_some_and(|r| r.is_ok()));
        assert!(SOURCES.iter().all(|s| s(&pv(json!({"nfs": {"server": "s", "path": "/"}}))).is_none()));
    }

    #[test]
    fn an_ephemeral_volume_has_a_claim_named_after_the_pod() {
        let volume = |v| serde_json::from_value::<Volume>(v).expect("volume");
        let ephemeral = volume(json!({"name": "v", "ephemeral": {}}));
        assert_eq!(claim_of(&ephemeral, "web"), Some(("web-v".into(), true)));
        let claim = volume(json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}}));
        assert_eq!(claim_of(&claim, "web"), Some(("c".into(), false)));
    }
}
