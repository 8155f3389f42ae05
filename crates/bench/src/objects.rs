//! The objects that scenarios create.

use rand::Rng;
use serde_json::{Value, json};

/// Names of one run, so that runs beside each other do not collide.
pub fn run_id() -> String {
    format!("{:06x}", rand::rng().random::<u32>() & 0x00ff_ffff)
}

/// A pod as people write them: about 1 KB, with labels, resources, environment and a probe.
pub fn pod(name: &str, image: &str, args: &[String]) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {
                "app": "bench", "app.kubernetes.io/name": "bench", "tier": "backend", "version": "v1",
            },
            "annotations": { "example.com/owner": "team-bench@example.com", "example.com/purpose": "load" },
        },
        "spec": {
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "env": [
                    { "name": "LOG_LEVEL", "value": "info" },
                    { "name": "POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                ],
                "ports": [{ "name": "http", "containerPort": 8080 }],
                "resources": {
                    "requests": { "cpu": "10m", "memory": "16Mi" },
                    "limits": { "cpu": "500m", "memory": "128Mi" },
                },
            }],
        },
    });
    if !args.is_empty() {
        pod["spec"]["containers"][0]["args"] = args.into();
    }
    pod
}

/// A Deployment of pods as [`pod`] makes them, for the nodes of a run.
pub fn deployment(name: &str, replicas: u64, run: &str) -> Value {
    let mut template = pod(name, "registry.k8s.io/pause:3.10", &[]);
    onto_run(&mut template, run, false);
    let labels = json!({ "app": "bench", "deployment": name });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": name, "labels": labels },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "deployment": name } },
            "template": { "metadata": { "labels": labels }, "spec": template["spec"] },
        },
    })
}

/// A ConfigMap with `size` bytes of data.
pub fn config_map(name: &str, size: usize) -> Value {
    let line = "key.of.some.setting=value-of-that-setting\n";
    let data: String = line.chars().cycle().take(size).collect();
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": name, "labels": { "app": "bench" } },
        "data": { "settings.properties": data },
    })
}

/// A fake node of a run in a zone.
pub fn node(name: &str, run: &str, zone: u64) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
                "topology.kubernetes.io/zone": format!("zone-{zone}"),
                "bench.coracle.dev/run": run,
            },
        },
    })
}

/// The status of a fake node: room for many pods, and Ready as of `now`.
pub fn node_status(now: &str) -> Value {
    let room = json!({ "cpu": "32", "memory": "128Gi", "pods": "110", "ephemeral-storage": "100Gi" });
    let condition = |ty: &str, status: &str, reason: &str| {
        json!({
            "type": ty, "status": status, "reason": reason, "message": reason,
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        })
    };
    json!({ "status": {
        "capacity": room, "allocatable": room,
        "conditions": [
            condition("Ready", "True", "KubeletReady"),
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID"),
        ],
    } })
}

/// Now, as the API writes times.
pub fn now() -> String {
    format!("{:.0}", jiff::Timestamp::now())
}

/// Binds a pod to nodes of a run, by selector; optionally no two on one node.
pub fn onto_run(pod: &mut Value, run: &str, anti_affinity: bool) {
    pod["spec"]["nodeSelector"] = json!({ "bench.coracle.dev/run": run });
    pod["spec"]["tolerations"] = json!([{ "operator": "Exists" }]);
    if anti_affinity {
        pod["spec"]["affinity"] = json!({ "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [{
                "labelSelector": { "matchLabels": { "app": "bench" } },
                "topologyKey": "kubernetes.io/hostname",
            }],
        } });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_map_has_the_size_asked_for() {
        let object = config_map("a", 2048);
        assert_eq!(object["data"]["settings.properties"].as_str().map(str::len), Some(2048));
    }

    #[test]
    fn pods_of_a_run_select_its_nodes() {
        let mut object = pod("p", "i", &[]);
        onto_run(&mut object, "abc", true);
        let labels = node("n", "abc", 3)["metadata"]["labels"].clone();
        assert_eq!(object["spec"]["nodeSelector"]["bench.coracle.dev/run"], labels["bench.coracle.dev/run"]);
        assert_eq!(labels["topology.kubernetes.io/zone"], "zone-3");
        assert!(now().ends_with('Z'));
    }
}
