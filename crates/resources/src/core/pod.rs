//! Pod: containers that run together on a node.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::common::text;
use crate::def::{ResourceDef, Strategy, Subresource, Typed};

mod table;

pub(super) static DEF: ResourceDef = ResourceDef {
    short_names: &["po"],
    categories: &["all"],
    subresources: &[
        Subresource::Attach,
        Subresource::Binding,
        Subresource::EphemeralContainers,
        Subresource::Eviction,
        Subresource::Exec,
        Subresource::Log,
        Subresource::PortForward,
        Subresource::Proxy,
        Subresource::Resize,
        Subresource::Status,
    ],
    columns: table::COLUMNS,
    has_generation: true,
    ..ResourceDef::new::<Pod>("pod", &Typed::<Pod, _>::new(Pods))
};

struct Pods;

impl Strategy<Pod> for Pods {
    fn row(&self, obj: &Pod, now: Timestamp) -> Vec<Value> {
        table::row(obj, now)
    }

    fn selectable(&self, obj: &Pod) -> Vec<(&'static str, String)> {
        let spec = obj.spec.as_ref();
        let status = obj.status.as_ref();
        let own = |value: Option<&String>| text(value).to_owned();
        let pod_ip = status.and_then(|s| s.pod_ips.iter().flatten().next()).map(|ip| &ip.ip);
        vec![
            ("spec.nodeName", own(spec.and_then(|s| s.node_name.as_ref()))),
            ("spec.restartPolicy", own(spec.and_then(|s| s.restart_policy.as_ref()))),
            ("spec.schedulerName", own(spec.and_then(|s| s.scheduler_name.as_ref()))),
            ("spec.serviceAccountName", own(spec.and_then(|s| s.service_account_name.as_ref()))),
            ("spec.hostNetwork", spec.and_then(|s| s.host_network).unwrap_or(false).to_string()),
            ("status.phase", own(status.and_then(|s| s.phase.as_ref()))),
            ("status.podIP", own(pod_ip)),
            ("status.podIPs", String::new()),
            ("status.nominatedNodeName", own(status.and_then(|s| s.nominated_node_name.as_ref()))),
        ]
    }
}
