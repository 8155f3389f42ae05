//! DeviceClass: a kind of devices that claims can ask for.

use coracle_meta::field::{ErrorList, Path};
use k8s_openapi::api::resource::v1::DeviceClass;

use super::{MAX_LIST, claim_spec, configuration, items};
use crate::def::{ResourceDef, Scope, Strategy, Typed, dns1123_subdomain};
use crate::podspec::requirements::is_extended;

pub(super) static DEF: ResourceDef = ResourceDef {
    scope: Scope::Cluster,
    has_generation: true,
    returns_deleted: true,
    ..ResourceDef::new::<DeviceClass>("deviceclass", &Typed::<DeviceClass, _>::new(DeviceClasses))
};

struct DeviceClasses;

impl Strategy<DeviceClass> for DeviceClasses {
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        // The limit is in the words of the declarative rules, which upstream checks names of this kind by, and no
        // prefixes of them.
        if prefix {
            return Vec::new();
        }
        let messages = dns1123_subdomain(name, prefix).into_iter();
        messages.map(|m| m.replace("no more than 253 characters", "no more than 253 bytes")).collect()
    }

    fn validate(&self, obj: &DeviceClass, errs: &mut ErrorList) {
        let path = Path::new("spec");
        let spec = &obj.spec;
        claim_spec::selectors(spec.selectors.as_deref().unwrap_or_default(), &path.child("selectors"), errs);
        let list = spec.config.as_deref().unwrap_or_default();
        items(list, MAX_LIST, &path.child("config"), errs, |one, path, errs| {
            configuration(one.opaque.as_ref(), path, errs);
        });
        if let Some(name) = spec.extended_resource_name.as_ref().filter(|name| !is_extended(name)) {
            let at = path.child("extendedResourceName");
            errs.invalid(at, name.as_str(), "must be a valid extended resource name");
        }
    }
}
