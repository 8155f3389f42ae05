//! The plugins, one file each; the table's order is the order of the chain.

mod certificate_subject_restriction;
mod default_ingress_class;
mod default_storage_class;
mod default_toleration_seconds;
mod limit_ranger;
mod mutating_admission_policy;
mod mutating_webhook;
mod namespace_lifecycle;
mod node_restriction;
mod persistent_volume_claim_resize;
mod pod_resize_validator;
mod pod_security;
mod pod_topology_labels;
mod priority;
mod resource_quota;
mod runtime_class;
mod service_account;
mod storage_object_in_use_protection;
mod taint_nodes_by_condition;
mod validating_admission_policy;
mod validating_webhook;

#[cfg(test)]
mod testing;

use crate::Plugin;

/// Makes a plugin.
type Make = fn() -> Box<dyn Plugin>;

/// One row per plugin, in upstream's order.
static ORDERED: &[Make] = &[
    || Box::new(namespace_lifecycle::NamespaceLifecycle),
    || Box::new(limit_ranger::LimitRanger),
    || Box::new(service_account::ServiceAccount),
    || Box::new(node_restriction::NodeRestriction),
    || Box::new(taint_nodes_by_condition::TaintNodesByCondition),
    || Box::new(pod_security::PodSecurity),
    || Box::new(priority::Priority),
    || Box::new(default_toleration_seconds::DefaultTolerationSeconds),
    || Box::new(default_storage_class::DefaultStorageClass),
    || Box::new(storage_object_in_use_protection::StorageObjectInUseProtection),
    || Box::new(persistent_volume_claim_resize::PersistentVolumeClaimResize),
    || Box::new(runtime_class::RuntimeClass),
    || Box::new(certificate_subject_restriction::CertificateSubjectRestriction),
    || Box::new(default_ingress_class::DefaultIngressClass),
    || Box::new(pod_topology_labels::PodTopologyLabels),
    || Box::new(pod_resize_validator::PodResizeValidator),
    || Box::new(mutating_admission_policy::MutatingAdmissionPolicy::default()),
    || Box::new(mutating_webhook::MutatingWebhook),
    || Box::new(validating_admission_policy::ValidatingAdmissionPolicy::default()),
    || Box::new(validating_webhook::ValidatingWebhook),
    || Box::new(resource_quota::ResourceQuota::default()),
];

/// The plugins that are on by default, in order.
pub fn plugins() -> Vec<Box<dyn Plugin>> {
    ORDERED.iter().map(|make| make()).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_plugin_file_has_a_row() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/src/plugins");
        let files = std::fs::read_dir(dir)
            .expect("the folder of this module")
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|t| t.is_file()) && entry.file_name() != "testing.rs")
            .count();
        assert_eq!(files, super::ORDERED.len());
    }
}
