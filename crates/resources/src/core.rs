//! The core group, `v1`.

mod binding;
mod component_status;
mod config_map;
pub(crate) mod endpoints;
pub(crate) mod event;
mod limit_range;
mod namespace;
mod node;
pub(crate) mod persistent_volume;
pub(crate) mod persistent_volume_claim;
mod pod;
mod pod_template;
mod replication_controller;
mod resource_quota;
mod secret;
mod service;
mod service_account;

use coracle_meta::field::{ErrorList, Path};
use k8s_openapi::api::core::v1::Service;

use crate::def::ResourceDef;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] = &[
    &binding::DEF,
    &component_status::DEF,
    &config_map::DEF,
    &endpoints::DEF,
    &event::DEF,
    &limit_range::DEF,
    &namespace::DEF,
    &node::DEF,
    &persistent_volume::DEF,
    &persistent_volume_claim::DEF,
    &pod::DEF,
    &pod_template::DEF,
    &replication_controller::DEF,
    &resource_quota::DEF,
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
