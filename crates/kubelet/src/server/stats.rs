//! `/pods` and `/stats/summary`.

use coracle_cri::v1::ContainerState;
use coracle_meta::Object;
use serde_json::{Value, json};

use crate::context::Context;
use crate::manager::Pods;
use crate::names;

/// The pods of this node as a PodList.
pub fn pods(pods: &Pods) -> Value {
    let items: Vec<Value> = pods.all().iter().map(|h| h.pod.to_value()).collect();
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

/// CPU and memory of the containers, in the form of upstream's summary API.
pub async fn summary(cx: &Context, pods: &Pods) -> Value {
    let now = cx.clock.now().to_string();
    let mut list = Vec::new();
    for handle in pods.all() {
        let seen = handle.observed.borrow().clone();
        let mut containers = Vec::new();
        for c in seen.containers.iter().filter(|c| c.state == ContainerState::Running) {
            let Ok(stats) = cx.runtime.container_stats(&c.id).await else { continue };
            containers.push(json!({
                "name": c.metadata.name,
                "startTime": crate::pod::from_nanos(c.started_at).to_string(),
                "cpu": {"time": now, "usageCoreNanoSeconds": stats.cpu_usage_core_nano_seconds},
                "memory": {
                    "time": now,
                    "usageBytes": stats.memory_usage_bytes,
                    "workingSetBytes": stats.memory_working_set_bytes,
                },
            }));
        }
        let start = handle.pod.status.as_ref().and_then(|s| s.start_time.as_ref());
        list.push(json!({
            "podRef": {
                "name": names::name(&handle.pod),
                "namespace": names::namespace(&handle.pod),
                "uid": names::uid(&handle.pod),
            },
            "startTime": start.map(|t| t.0.to_string()),
            "containers": containers,
        }));
    }
    json!({
        "node": {"nodeName": cx.config.node_name, "startTime": cx.started.to_string()},
        "pods": list,
    })
}
