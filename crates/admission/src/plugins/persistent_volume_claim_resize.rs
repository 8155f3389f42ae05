//! PersistentVolumeClaimResize: only bound claims grow, and only where their class allows it.

use async_trait::async_trait;
use coracle_meta::Status;
use coracle_meta::quantity::Quantity;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;

use crate::{Environment, Operation, Plugin, Request};

/// The plugin.
pub(super) struct PersistentVolumeClaimResize;

#[async_trait]
impl Plugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.operation == Operation::Update && request.is("", "persistentvolumeclaims")
    }

    async fn validate(&self, env: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        let (new, old) =
            (request.object_as::<PersistentVolumeClaim>(), request.old_as::<PersistentVolumeClaim>());
        let Some((new, old)) = new.zip(old) else { return Ok(()) };
        if size(new) <= size(old) {
            return Ok(());
        }
        if old.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Bound") {
            return Err(request.forbidden("Only bound persistent volume claims can be expanded"));
        }
        let name = class(new);
        let found = env.reader.get("storage.k8s.io", "storageclasses", "", name);
        let allowed = found.as_deref().and_then(|obj| obj.downcast::<StorageClass>());
        if name.is_empty()
            || name != class(old)
            || allowed.and_then(|class| class.allow_volume_expansion) != Some(true)
        {
            let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc \
                       must support resize";
            return Err(request.forbidden(why));
        }
        Ok(())
    }
}

fn size(claim: &PersistentVolumeClaim) -> Quantity {
    let requests = claim.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.as_ref());
    requests.and_then(|r| r.get("storage")).map(Quantity::from_api).unwrap_or_default()
}

fn class(claim: &PersistentVolumeClaim) -> &str {
    let old =
        claim.metadata.annotations.as_ref().and_then(|a| a.get("volume.beta.kubernetes.io/storage-class"));
    let new = || claim.spec.as_ref().and_then(|s| s.storage_class_name.as_ref());
    old.or_else(new).map_or("", String::as_str)
}
