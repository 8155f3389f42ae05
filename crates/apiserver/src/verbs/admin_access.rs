//! Claims that ask for administrative access to devices: only in namespaces that are labelled for it.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::{Object, Status};
use k8s_openapi::api::resource::v1::{DeviceRequest, ResourceClaim, ResourceClaimTemplate};

use super::Part;
use crate::registry::Resource;
use crate::server::Server;

const LABEL: &str = "resource.kubernetes.io/admin-access";

impl Server {
    /// Notes an error when the object asks for such access (or is given it) in a namespace without the label.
    ///
    /// # Errors
    /// None of its own: what is wrong goes to `errs`.
    pub(crate) fn check_admin_access(
        &self,
        resource: &Resource,
        part: Part,
        (new, old): (&dyn Object, Option<&dyn Object>),
        errs: &mut ErrorList,
    ) {
        if resource.def.group != "resource.k8s.io" {
            return;
        }
        let place = match (part, old) {
            (Part::Main, None) => asked(new),
            (Part::Status, Some(old)) if granted(old).is_none() => granted(new),
            _ => None,
        };
        let Some(place) = place else { return };
        let spaces = self.cache.registry.find("", "namespaces");
        let labelled = spaces
            .and_then(|spaces| spaces.cache.get(&spaces.key("", new.namespace())))
            .map(|entry| entry.decoded())
            .transpose();
        match labelled {
            Ok(Some(space)) => {
                let set = space.meta().labels.as_ref().and_then(|labels| labels.get(LABEL));
                if set.is_none_or(|value| value != "true") {
                    errs.forbidden(
                        place,
                        format!(
                            "admin access to devices requires the `{LABEL}: true` label on the containing namespace"
                        ),
                    );
                }
            }
            missing => {
                let gone = Status::not_found("", "namespaces", new.namespace());
                let why = missing.err().unwrap_or(gone);
                let why = why.message();
                errs.internal(place, format!("could not retrieve namespace to verify admin access: {why}"));
            }
        }
    }
}

/// Where a new claim or template asks for it.
fn asked(obj: &dyn Object) -> Option<Path> {
    let claim = obj.downcast::<ResourceClaim>().map(|claim| &claim.spec);
    let spec = claim.or_else(|| obj.downcast::<ResourceClaimTemplate>().map(|t| &t.spec.spec))?;
    let admin =
        |request: &DeviceRequest| request.exactly.as_ref().is_some_and(|e| e.admin_access == Some(true));
    let at = spec.devices.as_ref()?.requests.iter().flatten().position(admin)?;
    Some(Path::new("spec").child("devices").child("requests").index(at).child("adminAccess"))
}

/// Where the status of a claim grants it.
fn granted(obj: &dyn Object) -> Option<Path> {
    let status = obj.downcast::<ResourceClaim>()?.status.as_ref()?;
    let results = status.allocation.as_ref()?.devices.as_ref()?.results.as_ref()?;
    let at = results.iter().position(|result| result.admin_access == Some(true))?;
    let devices = Path::new("status").child("allocation").child("devices");
    Some(devices.child("results").index(at).child("adminAccess"))
}
