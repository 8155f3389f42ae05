//! What the node survives, and that nothing of many pods stays behind.

use std::path::PathBuf;

use coracle_testkit::{Census, retry};
use serde_json::{Value, json};

use crate::{Claim, IMAGE, Lab, MAIN, shell};

pub const CLAIMS: &[Claim] = &[
    ("survival: a killed shim costs a restart", shim_killed),
    ("survival: a killed daemon costs nothing", daemon_killed),
    ("survival: an exhausted memory limit is told", out_of_memory),
    ("survival: a thousand pods leave nothing", churn),
];

/// Where the runtime keeps the sandboxes of this cluster.
fn sandboxes(lab: &Lab) -> PathBuf {
    let text =
        std::fs::read_to_string(lab.machine.data(MAIN).join("cluster.json")).expect("the cluster's file");
    let cluster: Value = serde_json::from_str(&text).expect("JSON");
    let id = cluster["id"].as_str().expect("an id").to_owned();
    let run = PathBuf::from("/run/coracle").join(id);
    [run.join("sandboxes"), run.join("runtime/sandboxes")]
        .into_iter()
        .find(|p| p.exists())
        .expect("sandboxes")
}

fn shim_of(lab: &Lab, pod: &str) -> i32 {
    for entry in std::fs::read_dir(sandboxes(lab)).into_iter().flatten().flatten() {
        let read = |name: &str| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let record: Value = serde_json::from_str(&read("sandbox.json")).unwrap_or_default();
        if record["config"]["metadata"]["name"] == pod && record["stopped"] == false {
            let pid = read("shim.pid");
            return pid.split_whitespace().next().and_then(|p| p.parse().ok()).expect("a pid");
        }
    }
    panic!("no shim of {pod}");
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).expect("killed");
}

fn container(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

fn shim_killed(lab: &Lab) {
    lab.pod("orphaned", json!({"containers": [shell("sleep 4321")]}));
    let before = lab.running("orphaned");
    kill(shim_of(lab, "orphaned"));
    let after = lab.wait("orphaned", "runs again in a new sandbox", |p| {
        container(p)["restartCount"].as_i64() >= Some(1) && container(p)["ready"] == true
    });
    assert_ne!(container(&before)["containerID"], container(&after)["containerID"]);
    lab.event("orphaned", "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.");
    let left = coracle_testkit::run(std::process::Command::new("pgrep").args(["-fc", "^sleep 4321$"])).stdout;
    assert_eq!(left.trim(), "1", "only the new process runs");
    lab.kubectl("delete pod orphaned --now");
}

fn daemon_killed(lab: &Lab) {
    lab.pod("steady", json!({"containers": [shell("sleep 1000")]}));
    let before = lab.running("steady");
    let pid = std::fs::read_to_string(lab.machine.data(MAIN).join("coracle.pid")).expect("a pid");
    kill(pid.split_whitespace().next().and_then(|p| p.parse().ok()).expect("a number"));
    std::thread::sleep(std::time::Duration::from_millis(300));
    lab.machine.coracle(MAIN, &["up", "--detach"]).ok();
    let after = lab.running("steady");
    assert_eq!(container(&before)["containerID"], container(&after)["containerID"]);
    assert_eq!(container(&after)["restartCount"], 0);
    lab.kubectl("delete pod steady --now");
}

fn out_of_memory(lab: &Lab) {
    let mut main = shell("x=a; while true; do x=$x$x; done");
    main["resources"] = json!({"limits": {"memory": "16Mi"}});
    lab.pod("hungry", json!({"restartPolicy": "Never", "containers": [main]}));
    let pod = lab.ended("hungry");
    let state = &container(&pod)["state"]["terminated"];
    assert_eq!((&state["reason"], &state["exitCode"]), (&json!("OOMKilled"), &json!(137)), "{state}");
    lab.kubectl("delete pod hungry --now");
}

fn count(lab: &Lab) -> usize {
    std::fs::read_dir(sandboxes(lab)).into_iter().flatten().flatten().count()
}

/// Pods that come and go; `CORACLE_NODE_CYCLES` says how many (60 unless set).
fn churn(lab: &Lab) {
    let cycles = std::env::var("CORACLE_NODE_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let batch = 20;
    let (before, there) = (Census::own(&lab.machine), count(lab));
    for round in 0..cycles / batch {
        let items: Vec<Value> = (0..batch)
            .map(|n| {
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {
                    "name": format!("churn-{round}-{n}"), "labels": {"app": "churn"}},
                    "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [
                        {"name": "main", "image": IMAGE, "command": ["true"]}]}})
            })
            .collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
        let path = lab.machine.file("churn.json", &list);
        lab.machine.kubectl(MAIN, &["create", "-f", &path.display().to_string()]).ok();
        retry("the batch ends", 60, || {
            let done = lab.kubectl("get pods -l app=churn --field-selector status.phase=Succeeded -o name");
            if done.lines().count() == batch { Ok(()) } else { Err(done) }
        });
        lab.kubectl("delete pods -l app=churn --wait=true");
    }
    retry("nothing of them is left", 60, || {
        let left = Census::own(&lab.machine).since(&before);
        if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
    });
    assert_eq!(count(lab), there, "sandboxes are left");
}
