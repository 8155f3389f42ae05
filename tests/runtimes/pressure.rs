//! What the kubelet keeps free of the node, and who goes when it cannot.

use std::path::{Path, PathBuf};

use coracle_testkit::{Machine, retry};
use serde_json::{Value, json};

use crate::{IMAGE, Lab, MAIN, archive};

/// Less than all but 1 % of the memory is too little: that is always so.
const CONFIG: &str = "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\n\
    systemReserved: {memory: 1Gi}\nevictionHard: {memory.available: 200Mi}\n\
    evictionSoft: {memory.available: 99%}\nevictionSoftGracePeriod: {memory.available: 15s}\n\
    evictionMaxPodGracePeriod: 2\n";

/// Bytes of a quantity that the node shows in `Ki`.
fn kibibytes(node: &Value, list: &str) -> u64 {
    let text = node["status"][list]["memory"].as_str().unwrap_or_default();
    text.trim_end_matches("Ki").parse::<u64>().expect("a number of Ki")
}

/// The memory limits of the cgroups of all pods of all clusters on this machine.
fn pods_limits() -> Vec<u64> {
    let roots = ["/sys/fs/cgroup/memory/coracle", "/sys/fs/cgroup/coracle"];
    let clusters = roots.iter().flat_map(|root| std::fs::read_dir(root).into_iter().flatten().flatten());
    let files = clusters.flat_map(|cluster| {
        ["memory.limit_in_bytes", "memory.max"].map(|file| cluster.path().join("pods").join(file))
    });
    let read = |path: &PathBuf| std::fs::read_to_string(path as &Path).ok()?.trim().parse().ok();
    files.collect::<Vec<_>>().iter().filter_map(read).collect()
}

#[test]
fn a_node_short_of_memory_says_so_and_lets_pods_go() {
    let machine = Machine::new("pressure");
    let archive = archive(&machine).display().to_string();
    let config = machine.file("kubelet.yaml", CONFIG).display().to_string();
    let lab = Lab::up(machine, &["--kubelet-config", &config]);
    lab.machine.coracle(MAIN, &["image", "import", &archive]).ok();
    lab.pod("first", &json!({"command": ["sleep", "1000"]}));

    let node: Value = serde_json::from_str(&lab.kubectl(&["get", "node", "n1", "-o", "json"])).expect("JSON");
    let (all, ours) = (kibibytes(&node, "capacity"), kibibytes(&node, "allocatable"));
    assert_eq!(all - ours, (1 << 20) + (200 << 10), "what is reserved, and what evictions keep free");
    let limit = (all - (1 << 20)) << 10;
    assert!(pods_limits().contains(&limit), "pods have {limit} together: {:?}", pods_limits());

    let ended = retry("the pod goes", 90, || {
        let pod: Value =
            serde_json::from_str(&lab.kubectl(&["get", "pod", "first", "-o", "json"])).unwrap_or_default();
        if pod["status"]["phase"] == "Failed" { Ok(pod) } else { Err(pod["status"].to_string()) }
    });
    assert_eq!(ended["status"]["reason"], "Evicted");
    let message = ended["status"]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("The node was low on resource: memory. Threshold quantity: "), "{message}");
    assert!(message.contains("Container main was using "), "{message}");
    let target = ended["status"]["conditions"]
        .as_array()
        .and_then(|all| all.iter().find(|c| c["type"] == "DisruptionTarget").map(|c| c["reason"].clone()));
    assert_eq!(target, Some(json!("TerminationByKubelet")));

    let events = retry("the node's events", 30, || {
        let selector = "involvedObject.kind=Node,involvedObject.name=n1";
        let shown = lab.kubectl(&[
            "get",
            "events",
            "--field-selector",
            selector,
            "-o",
            "jsonpath={.items[*].reason}",
        ]);
        let wanted = [
            "Starting",
            "NodeAllocatableEnforced",
            "NodeReady",
            "NodeHasInsufficientMemory",
            "EvictionThresholdMet",
        ];
        match wanted.iter().find(|w| !shown.contains(*w)) {
            None => Ok(shown),
            Some(missing) => Err(format!("{missing} is missing: {shown}")),
        }
    });
    assert!(!events.contains("NodeHasDiskPressure"), "{events}");
    let described = lab.kubectl(&["describe", "node", "n1"]);
    assert!(described.contains("Attempting to reclaim memory"), "{described}");

    lab.kubectl(&[
        "create",
        "-f",
        &lab.machine.file("second.json", &bound("second").to_string()).display().to_string(),
    ]);
    retry("a pod of the least class is refused", 60, || {
        let path = "jsonpath={.status.reason} {.status.message}";
        let shown = lab.kubectl(&["get", "pod", "second", "-o", path]);
        let why = "Evicted Pod was rejected: The node had condition: [MemoryPressure]. ";
        if shown == why { Ok(()) } else { Err(shown) }
    });
    lab.down();
}

/// A pod that no scheduler places.
fn bound(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"nodeName": "n1",
        "containers": [{"name": "main", "image": IMAGE, "command": ["sleep", "1000"]}]}})
}
