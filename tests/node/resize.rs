//! Requests and limits changed while a pod runs.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{Claim, Lab, MAIN, shell};

pub const CLAIMS: &[Claim] =
    &[("resize: in place", in_place), ("resize: by restart", by_restart), ("resize: deferred", deferred)];

/// The container's limits as the kernel has them: CPU shares or weight, and memory.
fn kernel(lab: &Lab, pod: &str) -> (String, String) {
    let dir = |controller: &str| -> PathBuf {
        let v1 = Path::new("/sys/fs/cgroup").join(controller);
        if v1.exists() { v1 } else { "/sys/fs/cgroup".into() }
    };
    let id = lab.get("pod", pod)["status"]["containerStatuses"][0]["containerID"].clone();
    let id = id.as_str().unwrap_or("").trim_start_matches("coracle://").to_owned();
    let find = |controller: &str, files: [&str; 2]| -> String {
        let out = std::process::Command::new("find")
            .args([
                dir(controller).as_os_str(),
                "-type".as_ref(),
                "d".as_ref(),
                "-name".as_ref(),
                id.as_ref(),
            ])
            .output()
            .expect("find");
        let place = String::from_utf8_lossy(&out.stdout).lines().next().unwrap_or("").to_owned();
        let read = |f: &str| std::fs::read_to_string(Path::new(&place).join(f)).ok();
        files.iter().find_map(|f| read(f)).unwrap_or_default().trim().to_owned()
    };
    (find("cpu", ["cpu.shares", "cpu.weight"]), find("memory", ["memory.limit_in_bytes", "memory.max"]))
}

fn patch(lab: &Lab, pod: &str, resources: Value) {
    let patch = json!({"spec": {"containers": [{"name": "main", "resources": resources}]}}).to_string();
    lab.machine.kubectl(MAIN, &["patch", "pod", pod, "--subresource=resize", "-p", &patch]).ok();
}

fn in_place(lab: &Lab) {
    let mut main = shell("sleep 1000");
    main["resources"] = json!({"requests": {"cpu": "100m", "memory": "32Mi"},
        "limits": {"cpu": "200m", "memory": "64Mi"}});
    lab.pod("grow", json!({"containers": [main]}));
    let before = lab.running("grow");
    let (shares, memory) = kernel(lab, "grow");
    assert_eq!(memory, (64 << 20).to_string());
    patch(
        lab,
        "grow",
        json!({"requests": {"cpu": "150m", "memory": "48Mi"},
        "limits": {"cpu": "300m", "memory": "96Mi"}}),
    );
    let after = lab.wait("grow", "resized", |p| {
        let r = &p["status"]["containerStatuses"][0]["resources"];
        let waiting = p["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let open = waiting.iter().any(|c| c["type"].as_str().is_some_and(|t| t.starts_with("PodResize")));
        r["limits"]["memory"] == "96Mi" && r["requests"]["cpu"] == "150m" && !open
    });
    let id = |p: &Value| p["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(id(&before), id(&after), "the container was not restarted");
    let allocated = &after["status"]["containerStatuses"][0]["allocatedResources"];
    assert_eq!(allocated, &json!({"cpu": "150m", "memory": "48Mi"}));
    let now = kernel(lab, "grow");
    assert!(now.1 == (96 << 20).to_string() && now.0 != shares, "{now:?} after {shares}");
    lab.event("grow", "ResizeStarted", "Pod resize started: {\"containers\":[{\"name\":\"main\"");
    lab.event("grow", "ResizeCompleted", "\"generation\":2");
    patch(
        lab,
        "grow",
        json!({"requests": {"cpu": "100m", "memory": "32Mi"},
        "limits": {"cpu": "200m", "memory": "64Mi"}}),
    );
    lab.wait("grow", "shrunk", |p| {
        p["status"]["containerStatuses"][0]["resources"]["limits"]["memory"] == "64Mi"
    });
    assert_eq!(kernel(lab, "grow"), (shares, memory));
    lab.kubectl("delete pod grow --now");
}

fn by_restart(lab: &Lab) {
    let mut main = shell("sleep 1000");
    main["resources"] = json!({"requests": {"memory": "32Mi"}, "limits": {"memory": "64Mi"}});
    main["resizePolicy"] = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    lab.pod("anew", json!({"containers": [main]}));
    lab.running("anew");
    patch(lab, "anew", json!({"limits": {"memory": "80Mi"}}));
    lab.wait("anew", "restarted with the new limit", |p| {
        let c = &p["status"]["containerStatuses"][0];
        c["restartCount"] == 1 && c["ready"] == true && c["resources"]["limits"]["memory"] == "80Mi"
    });
    lab.event("anew", "Killing", "Container main resize requires restart");
    lab.kubectl("delete pod anew --now");
}

fn deferred(lab: &Lab) {
    let mut main = shell("sleep 1000");
    main["resources"] = json!({"requests": {"cpu": "10m"}});
    lab.pod("greedy", json!({"containers": [main]}));
    lab.running("greedy");
    let more = |cpu: &str| json!({"spec": {"containers": [{"name": "main", "resources": {"requests": {"cpu": cpu}}}]}});
    let too_much = more("1000").to_string();
    let args = ["patch", "pod", "greedy", "--subresource=resize", "-p", &too_much];
    let refused = lab.machine.kubectl(MAIN, &args).fails();
    assert!(
        refused.contains("node didn't have enough allocatable resources: cpu, requested: 1000000"),
        "{refused}"
    );
    let mut neighbour = shell("sleep 1000");
    neighbour["resources"] = json!({"requests": {"cpu": "10m"}});
    lab.pod("neighbour", json!({"containers": [neighbour]}));
    lab.running("neighbour");
    let nodes = ["get", "nodes", "-o", "jsonpath={.items[0].status.allocatable.cpu}"];
    let all = lab.machine.kubectl(MAIN, &nodes).ok();
    patch(lab, "greedy", json!({"requests": {"cpu": all.trim()}}));
    let condition = |p: &Value| {
        let all = p["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|c| c["type"] == "PodResizePending").unwrap_or_default()
    };
    let pod = lab.wait("greedy", "waiting for room", |p| condition(p)["reason"] == "Deferred");
    let message = condition(&pod)["message"].as_str().unwrap_or("").to_owned();
    let text = "Node didn't have enough resource: cpu, requested: ";
    assert!(message.starts_with(text), "{message}");
    patch(lab, "greedy", json!({"requests": {"cpu": "20m"}}));
    lab.wait("greedy", "granted", |p| {
        condition(p).is_null() && p["status"]["containerStatuses"][0]["resources"]["requests"]["cpu"] == "20m"
    });
    lab.kubectl("delete pod greedy neighbour --now");
}
