//! The default profile: the table of plugins, in the order in which they are asked.

mod default_binder;
mod dynamic_resources;
mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources_balanced_allocation;
mod node_resources_fit;
mod node_unschedulable;
mod pod_topology_spread;
mod priority_sort;
mod scheduling_gates;
mod taint_toleration;
mod volume_binding;

use crate::framework::{Bind, PluginDef, QueueSort};

pub use dynamic_resources::{claim_to_free, reservations};
pub use volume_binding::delayed_claims;

/// All plugins. A node is turned away by the first plugin that objects.
pub static ALL: &[PluginDef] = &[
    scheduling_gates::DEF,
    priority_sort::DEF,
    node_unschedulable::DEF,
    node_name::DEF,
    taint_toleration::DEF,
    node_affinity::DEF,
    node_ports::DEF,
    node_resources_fit::DEF,
    node_resources_balanced_allocation::DEF,
    image_locality::DEF,
    volume_binding::DEF,
    pod_topology_spread::DEF,
    inter_pod_affinity::DEF,
    dynamic_resources::DEF,
    default_binder::DEF,
];

/// The plugin that orders the queue.
pub fn queue_sort() -> &'static dyn QueueSort {
    ALL.iter().find_map(|p| p.queue_sort).unwrap_or(&priority_sort::PrioritySort)
}

/// The plugin that binds.
pub fn binder() -> &'static dyn Bind {
    ALL.iter().find_map(|p| p.bind).unwrap_or(&default_binder::DefaultBinder)
}

#[cfg(test)]
pub(crate) mod testing {
    //! Pods and nodes from JSON, and a plugin's verdict in short.

    use std::sync::Arc;

    use serde_json::{Value, json};

    use crate::cache::NodeInfo;
    use crate::framework::{PluginDef, Verdict};
    use crate::pod_info::PodInfo;

    pub fn pod(spec: Value) -> PodInfo {
        let mut spec = spec;
        if spec.get("containers").is_none() {
            spec["containers"] = json!([{"name": "c", "image": "i"}]);
        }
        let object = json!({"metadata": {"name": "p", "namespace": "default", "uid": "u"}, "spec": spec});
        PodInfo::new(Arc::new(serde_json::from_value(object).expect("pod")))
    }

    pub fn requests(cpu: &str, memory: &str) -> Value {
        json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]})
    }

    pub fn node(name: &str, extra: Value) -> NodeInfo {
        let mut object = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "spec": {},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}});
        for (key, value) in extra.as_object().into_iter().flatten() {
            for (inner, value) in value.as_object().into_iter().flatten() {
                object[key][inner] = value.clone();
            }
        }
        NodeInfo::of(&serde_json::from_value(object).expect("node"))
    }

    /// `ok`, or `?` (removing pods could help) or `!` with the reasons.
    pub fn verdict(plugin: &PluginDef, pod: &PodInfo, node: &NodeInfo) -> String {
        match plugin.filter.expect("filter").filter(pod, node) {
            Verdict::Success => "ok".into(),
            Verdict::Unschedulable(reasons) => format!("? {}", reasons.join(", ")),
            Verdict::Unresolvable(reasons) => format!("! {}", reasons.join(", ")),
        }
    }
}
