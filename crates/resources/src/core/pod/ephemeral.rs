//! The `ephemeralcontainers` subresource: containers added to a running pod for debugging.

use coracle_meta::field::{ErrorList, Path};

use k8s_openapi::api::core::v1::Pod;

use crate::common::keep_metadata;
use crate::podspec::annotations::MIRROR;
use crate::podspec::defaults;

/// Nothing but the ephemeral containers changes.
pub(super) fn prepare(new: &mut Pod, old: &Pod) {
    let wanted = new.spec.as_mut().and_then(|s| s.ephemeral_containers.take());
    new.spec.clone_from(&old.spec);
    new.status.clone_from(&old.status);
    keep_metadata(&mut new.metadata, &old.metadata);
    let spec = new.spec.get_or_insert_default();
    spec.ephemeral_containers = wanted;
    spec.ephemeral_containers.iter_mut().flatten().for_each(defaults::ephemeral_container);
}

/// Checks the changes of the list: those that are there stay as they are.
pub(super) fn validate(new: &Pod, old: &Pod, errs: &mut ErrorList) {
    if old.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(MIRROR)) {
        *errs = ErrorList::new();
        return errs.forbidden(Path::new(""), "static pods do not support ephemeral containers");
    }
    let path = Path::new("spec").child("ephemeralContainers");
    let (Some(spec), Some(before)) = (&new.spec, &old.spec) else { return };
    let wanted = spec.ephemeral_containers.as_deref().unwrap_or_default();
    for before in before.ephemeral_containers.iter().flatten() {
        let what = match wanted.iter().rfind(|c| c.name == before.name) {
            None => "removed",
            Some(now) if now != before => "changed",
            Some(_) => continue,
        };
        errs.forbidden(&path, format!("existing ephemeral containers {:?} may not be {what}\n", before.name));
    }
}
