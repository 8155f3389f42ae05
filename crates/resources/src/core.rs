//! The core group, `v1`.

mod config_map;
pub(crate) mod endpoints;
mod event;
mod namespace;
mod node;
mod pod;
mod secret;
mod service;
mod service_account;

use coracle_meta::field::{ErrorList, Path};
use k8s_openapi::api::core::v1::Service;

use crate::def::ResourceDef;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] = &[
    &config_map::DEF,
    &endpoints::DEF,
    &event::DEF,
    &namespace::DEF,
    &node::DEF,
    &pod::DEF,
    &secret::DEF,
    &service::DEF,
    &service_account::DEF,
];

/// Checks the addresses and IP families of a service.
pub(crate) fn validate_cluster_ips(service: &Service, errs: &mut ErrorList) {
    if let Some(spec) = &service.spec {
        service::validation::cluster_ips(spec, &Path::new("spec"), errs);
    }
}
