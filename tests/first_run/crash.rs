//! kill -9 of the daemon: pods go on, the next start adopts them, and nothing acknowledged is lost.

use std::collections::BTreeMap;
use std::path::Path;

use coracle_testkit::retry;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{MAIN, Story};

fn containers(story: &Story) -> BTreeMap<String, (String, u64)> {
    let list = story.json("get pods -n shop");
    let mut out = BTreeMap::new();
    for pod in list["items"].as_array().into_iter().flatten() {
        for status in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
            let key = format!("{}/{}", pod["metadata"]["name"], status["name"]);
            let id = status["containerID"].as_str().unwrap_or("").to_owned();
            out.insert(key, (id, status["restartCount"].as_u64().unwrap_or(0)));
        }
    }
    out
}

/// The host's pid of a container's first process: in its cgroup, and number 1 in its own pid namespace.
fn init_of(id: &str) -> Pid {
    let id = id.rsplit('/').next().unwrap_or(id);
    for entry in std::fs::read_dir("/proc").expect("procfs").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let read = |name: &str| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let first = read("status").lines().any(|l| l.starts_with("NSpid:") && l.ends_with("\t1"));
        if first && read("cgroup").contains(id) {
            return Pid::from_raw(pid);
        }
    }
    panic!("no process of container {id}");
}

pub fn run(story: &Story) {
    let before = containers(story);
    assert_eq!(before.len(), 8, "four pods of two containers: {before:?}");
    let ips: Vec<String> = story.json("get pods -n shop -l app=web")["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|p| p["status"]["podIP"].as_str().map(str::to_owned))
        .collect();
    let pid = std::fs::read_to_string(story.machine.data(MAIN).join("coracle.pid")).expect("a pid file");
    let pid: i32 = pid.split_whitespace().next().and_then(|p| p.parse().ok()).expect("a pid");
    // Acknowledged just before the end: must be there afterwards.
    for i in 0..20 {
        story.kubectl(&format!("create configmap written-{i} -n shop --from-literal=n={i}"));
    }
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the daemon runs");
    for ip in &ips {
        let url = format!("http://{ip}:8080/");
        let answer = coracle_testkit::run(
            story
                .machine
                .command(Path::new("busybox"))
                .args(["timeout", "5", "busybox", "wget", "-qO-", &url]),
        )
        .ok();
        assert!(answer.starts_with("web-"), "pods answer while the daemon is dead");
    }
    let status = story.machine.coracle(MAIN, &["status"]);
    assert!(status.clone().fails().contains("stopped"), "{status:?}");

    story.machine.coracle(MAIN, &["up", "--detach"]).ok();
    for i in 0..20 {
        let path = format!("get configmap written-{i} -n shop -o jsonpath={{.data.n}}");
        assert_eq!(story.kubectl(&path), i.to_string());
    }
    story.kubectl("wait -n shop pod -l app=web --for=condition=Ready --timeout=30s");
    assert_eq!(containers(story), before, "same containers, same restart counts");
    assert_eq!(story.sh("deploy/web", "echo alive"), "alive\n");

    // An adopted container is still supervised: killed, it is started again.
    let pods = story.pods("app=web");
    let key = format!("\"{}\"/\"httpd\"", pods[0]);
    kill(init_of(&before[&key].0), Signal::SIGKILL).expect("the container's init runs");
    retry("the killed container is started again", 40, || {
        let now = containers(story);
        match now.get(&key) {
            Some((id, 1)) if *id != before[&key].0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    story.kubectl("rollout status -n shop deploy/web --timeout=60s");
}
