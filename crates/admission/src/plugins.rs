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

/// Plugins of upstream that are off by default and that nothing here does.
const ABSENT: &[&str] = &[
    "AlwaysAdmit",
    "AlwaysDeny",
    "AlwaysPullImages",
    "ClusterTrustBundleAttest",
    "DenyServiceExternalIPs",
    "EventRateLimit",
    "ExtendedResourceToleration",
    "ImagePolicyWebhook",
    "LimitPodHardAntiAffinityTopology",
    "NamespaceAutoProvision",
    "NamespaceExists",
    "NodeDeclaredFeatureValidator",
    "OwnerReferencesPermissionEnforcement",
    "PodNodeSelector",
    "PodTolerationRestriction",
];

/// The plugins that `--enable-admission-plugins` and `--disable-admission-plugins` leave on, in order.
///
/// # Errors
/// A name that no plugin has, one in both lists, or one that is asked for and not there.
pub fn chosen(enable: &[String], disable: &[String]) -> Result<Vec<Box<dyn Plugin>>, String> {
    let all = plugins();
    let known = |name: &str| all.iter().any(|plugin| plugin.name() == name);
    let stray = |name: &&String| !known(name) && !ABSENT.contains(&name.as_str());
    let list = |names: Vec<&String>| names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(",");
    for (flag, names) in [("enable", enable), ("disable", disable)] {
        let stray: Vec<&String> = names.iter().filter(stray).collect();
        if !stray.is_empty() {
            return Err(format!("{flag}-admission-plugins plugin {:?} is unknown", list(stray)));
        }
    }
    let both: Vec<&String> = enable.iter().filter(|name| disable.contains(name)).collect();
    if !both.is_empty() {
        return Err(format!(
            "[{}] in enable-admission-plugins and disable-admission-plugins overlapped",
            list(both)
        ));
    }
    if let Some(name) = enable.iter().find(|name| !known(name)) {
        return Err(format!("admission plugin {name:?} is not there"));
    }
    Ok(all.into_iter().filter(|plugin| !disable.iter().any(|name| name == plugin.name())).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn plugins_are_switched_off_by_name_and_strange_names_refused() {
        let chosen = |enable: &[&str], disable: &[&str]| {
            let own = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            super::chosen(&own(enable), &own(disable)).map(|plugins| plugins.len())
        };
        let all = super::plugins().len();
        assert_eq!(chosen(&["NodeRestriction", "LimitRanger"], &[]), Ok(all));
        assert_eq!(chosen(&[], &["LimitRanger", "AlwaysDeny"]), Ok(all - 1));
        assert!(chosen(&["Nonsense"], &[]).is_err_and(|why| why.contains("is unknown")));
        assert!(chosen(&["LimitRanger"], &["LimitRanger"]).is_err_and(|why| why.contains("overlapped")));
        assert!(chosen(&["AlwaysDeny"], &[]).is_err_and(|why| why.contains("not there")));
    }

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
