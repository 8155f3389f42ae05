//! What the kubelet tells: figures, metrics, logs of the node.

use coracle_testkit::retry;
use serde_json::{Value, json};

use crate::{Claim, Lab, MAIN, shell};

pub const CLAIMS: &[Claim] = &[
    ("server: kubectl top", top),
    ("server: summary and metrics", summary),
    ("server: logs with options", logs),
    ("server: node logs", node_logs),
    ("server: static pods", statics),
    ("server: pods over their disk limit are evicted", evicted),
];

fn raw(lab: &Lab, path: &str) -> String {
    lab.machine.kubectl(MAIN, &["get", "--raw", path]).ok()
}

fn top(lab: &Lab) {
    lab.pod("busy", json!({"containers": [shell("while true; do :; done")]}));
    lab.running("busy");
    retry("kubectl top pod", 30, || {
        let out = lab.machine.kubectl(MAIN, &["top", "pod", "busy", "--containers"]);
        let row = out.stdout.lines().nth(1).unwrap_or("").to_owned();
        let cpu = row.split_whitespace().nth(2).and_then(|c| c.strip_suffix('m')?.parse::<u64>().ok());
        if cpu.is_some_and(|c| c > 50) { Ok(()) } else { Err(format!("{} {}", out.stdout, out.stderr)) }
    });
    let node = lab.kubectl("top node");
    assert!(node.contains("n1 ") && node.contains('%'), "{node}");
    lab.kubectl("delete pod busy --now");
}

fn summary(lab: &Lab) {
    let mut main = shell("head -c 20000000 /dev/zero > /big; sleep 1000");
    main["readinessProbe"] = json!({"exec": {"command": ["test", "-s", "/big"]}, "periodSeconds": 1});
    lab.pod("measured", json!({"containers": [main]}));
    lab.running("measured");
    let find = || -> Value {
        let text = raw(lab, "/api/v1/nodes/n1/proxy/stats/summary");
        let all: Value = serde_json::from_str(&text).expect("JSON");
        assert!(all["node"]["memory"]["workingSetBytes"].as_u64().is_some_and(|n| n > 0), "{text}");
        assert!(all["node"]["swap"]["swapAvailableBytes"].is_u64(), "{text}");
        let pods = all["pods"].as_array().cloned().unwrap_or_default();
        pods.into_iter().find(|p| p["podRef"]["name"] == "measured").unwrap_or_default()
    };
    retry("the writable layer is measured", 30, || {
        let pod = find();
        let used = pod["containers"][0]["rootfs"]["usedBytes"].as_u64().unwrap_or(0);
        if used >= 20_000_000 && pod["ephemeral-storage"]["usedBytes"].as_u64() >= Some(used) {
            Ok(())
        } else {
            Err(pod.to_string())
        }
    });
    let pod = find();
    for one in [&pod, &pod["containers"][0]] {
        assert!(one["swap"]["swapUsageBytes"].is_u64(), "{pod}");
    }
    let metrics = raw(lab, "/api/v1/nodes/n1/proxy/metrics/resource");
    assert!(
        metrics.contains(
            "container_swap_usage_bytes{container=\"main\",namespace=\"default\",pod=\"measured\"} "
        )
    );
    assert!(metrics.contains("pod_swap_usage_bytes{namespace=\"default\",pod=\"measured\"} "), "{metrics}");
    assert!(metrics.contains("\nnode_swap_usage_bytes "), "{metrics}");
    assert!(metrics.contains(
        "container_memory_working_set_bytes{container=\"main\",namespace=\"default\",pod=\"measured\"} "
    ));
    assert!(metrics.contains("# TYPE node_cpu_usage_seconds_total counter"), "{metrics}");
    let probes = raw(lab, "/api/v1/nodes/n1/proxy/metrics/probes");
    assert!(probes.contains("pod=\"measured\"") && probes.contains("probe_type=\"Readiness\""), "{probes}");
    assert!(raw(lab, "/api/v1/nodes/n1/proxy/metrics").contains("kubelet_running_pods "));
    assert!(raw(lab, "/api/v1/nodes/n1/proxy/pods").contains("\"name\":\"measured\""));
    lab.kubectl("delete pod measured --now");
}

fn logs(lab: &Lab) {
    let script = "[ -e /v/x ] && { echo second; sleep 1000; }; touch /v/x
        for i in 1 2 3 4; do echo line$i; done; exit 1";
    let mut main = shell(script);
    main["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    lab.pod("talker", json!({"containers": [main], "volumes": [{"name": "v", "emptyDir": {}}]}));
    retry("the second life", 30, || {
        let said = lab.machine.kubectl(MAIN, &["logs", "talker"]).stdout;
        if said == "second\n" { Ok(()) } else { Err(said) }
    });
    assert_eq!(lab.kubectl("logs talker --previous"), "line1\nline2\nline3\nline4\n");
    assert_eq!(lab.kubectl("logs talker --previous --tail=2"), "line3\nline4\n");
    assert_eq!(lab.kubectl("logs talker --previous --limit-bytes=8"), "line1\nli");
    let stamped = lab.kubectl("logs talker --timestamps");
    assert!(stamped.starts_with("20") && stamped.ends_with("Z second\n"), "{stamped}");
    assert_eq!(lab.kubectl("logs talker --since=1h"), "second\n");
    lab.kubectl("delete pod talker --now");
}

fn node_logs(lab: &Lab) {
    let own = raw(lab, "/api/v1/nodes/n1/proxy/logs/?query=kubelet&tailLines=50");
    assert!(own.contains("node registered") || own.lines().count() == 50, "{own}");
    assert!(raw(lab, "/api/v1/nodes/n1/proxy/logs/").contains("<a href="));
    let up = lab.machine.kubectl(MAIN, &["get", "--raw", "/api/v1/nodes/n1/proxy/logs/..%2f..%2fetc/passwd"]);
    assert!(!up.stdout.contains("root:"), "{}", up.stdout);
}

fn statics(lab: &Lab) {
    let folder = lab.machine.data(MAIN).join("manifests");
    std::fs::create_dir_all(&folder).expect("the manifests' directory");
    let manifest = |word: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "fixed"}, "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": crate::IMAGE,
                "command": ["sh", "-c", format!("echo {word}; sleep 1000")]}]}})
        .to_string()
    };
    std::fs::write(folder.join("fixed.yaml"), manifest("one")).expect("a manifest");
    let pod = lab.running("fixed-n1");
    assert!(pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string(), "{pod}");
    assert_eq!(pod["metadata"]["ownerReferences"][0]["kind"], "Node");
    assert_eq!(lab.kubectl("logs fixed-n1"), "one\n");
    lab.kubectl("delete pod fixed-n1");
    let again = lab.running("fixed-n1");
    assert_ne!(again["metadata"]["uid"], pod["metadata"]["uid"], "the mirror is made anew");
    let id = |p: &Value| p["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(id(&again), id(&pod), "the pod itself goes on");
    std::fs::write(folder.join("fixed.yaml"), manifest("two")).expect("a manifest");
    retry("the changed manifest runs", 60, || {
        let said = lab.machine.kubectl(MAIN, &["logs", "fixed-n1"]).stdout;
        if said == "two\n" { Ok(()) } else { Err(said) }
    });
    std::fs::remove_file(folder.join("fixed.yaml")).expect("removed");
    retry("the pod is gone with its manifest", 60, || {
        let left = lab.get("pod", "fixed-n1");
        if left.is_null() { Ok(()) } else { Err(left.to_string()) }
    });
}

fn evicted(lab: &Lab) {
    let mut main = shell("head -c 8000000 /dev/zero > /v/big; sleep 1000");
    main["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    lab.pod(
        "fat",
        json!({"containers": [main], "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "4Mi"}}]}),
    );
    let pod = lab.ended("fat");
    assert_eq!(pod["status"]["reason"], "Evicted", "{}", pod["status"]);
    assert_eq!(pod["status"]["message"], "Usage of EmptyDir volume \"v\" exceeds the limit \"4Mi\". ");
    lab.event("fat", "Evicted", "Usage of EmptyDir volume \"v\" exceeds the limit \"4Mi\". ");
    lab.kubectl("delete pod fat --now");
}
