//! The `storage.k8s.io` group, `v1`, and what its classes share.

mod csi_driver;
mod csi_node;
mod csi_storage_capacity;
mod storage_class;
mod volume_attachment;
mod volume_attributes_class;

use std::collections::BTreeMap;

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;

use crate::check::{each, named};
use crate::def::ResourceDef;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] = &[
    &csi_driver::DEF,
    &csi_node::DEF,
    &csi_storage_capacity::DEF,
    &storage_class::DEF,
    &volume_attachment::DEF,
    &volume_attributes_class::DEF,
];

/// Bytes of all parameters of a class.
const MAX_PARAMETERS_SIZE: usize = 256 * 1024;
/// Number of parameters of a class.
const MAX_PARAMETERS: usize = 512;
/// Bytes of a CSI driver's name.
const MAX_DRIVER_NAME: usize = 63;

/// The provisioner or driver that a class names.
fn provisioner(name: &str, path: &Path, errs: &mut ErrorList) {
    if name.is_empty() {
        errs.required(path, "");
        return;
    }
    let lower = name.to_lowercase();
    each(errs, path, lower.as_str(), names::qualified_name(&lower));
}

/// The parameters that a class passes to its driver.
fn parameters(map: Option<&BTreeMap<String, String>>, allow_none: bool, path: &Path, errs: &mut ErrorList) {
    let count = map.map_or(0, BTreeMap::len);
    if count > MAX_PARAMETERS {
        errs.too_long(path, MAX_PARAMETERS);
        return;
    }
    if map.is_some_and(|map| map.contains_key("")) {
        errs.invalid(path, "", "field can not be empty.");
    }
    let size: usize = map.into_iter().flatten().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_PARAMETERS_SIZE {
        errs.too_long(path, MAX_PARAMETERS_SIZE);
    }
    if !allow_none && count == 0 {
        errs.required(path, "must contain at least one key/value pair");
    }
}

/// The name of a CSI driver: a DNS subdomain, case aside.
pub(crate) fn driver_name(name: &str, path: &Path, errs: &mut ErrorList) {
    if name.is_empty() {
        errs.required(path, "");
        return;
    }
    if name.len() > MAX_DRIVER_NAME {
        errs.too_long(path, MAX_DRIVER_NAME);
    }
    each(errs, path, name, names::dns1123_subdomain(&name.to_lowercase()));
}

/// The name of a node.
fn node_name(name: &str, path: &Path, errs: &mut ErrorList) {
    named(errs, path, name, names::dns1123_subdomain);
}
