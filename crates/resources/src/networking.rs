//! The `networking.k8s.io` group, `v1`.

mod ingress;
mod ingress_class;
mod ip_address;
mod network_policy;
mod service_cidr;

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;

use crate::check::named;
use crate::def::ResourceDef;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] =
    &[&ingress::DEF, &ingress_class::DEF, &ip_address::DEF, &network_policy::DEF, &service_cidr::DEF];

/// Group, kind and name of another object.
fn reference(group: Option<&String>, kind: &str, name: &str, path: &Path, errs: &mut ErrorList) {
    if let Some(group) = group {
        named(errs, &path.child("apiGroup"), group, names::dns1123_subdomain);
    }
    segment(kind, &path.child("kind"), errs);
    segment(name, &path.child("name"), errs);
}

/// A text that is needed, and may stand in a URL path.
fn segment(text: &str, path: &Path, errs: &mut ErrorList) {
    if text.is_empty() {
        errs.required(path, "");
    } else {
        named(errs, path, text, names::path_segment);
    }
}
