//! The first run, as a new user would make it, with the real kubectl: up, a workload, its streams, services and
//! DNS, rollouts, a crash of the daemon, a second cluster, down. Each step stands in a file of its own.

mod crash;
mod custom;
mod rollout;
mod second;
mod services;
mod streams;
mod workload;

use coracle_testkit::{Census, Machine, busybox_archive, retry, run};

/// The cluster's name in the test's directory.
const MAIN: &str = "main";
/// The test image.
const IMAGE: &str = "test.example/busybox:1";

/// Shorthand for the main cluster.
struct Story {
    machine: Machine,
}

impl Story {
    #[track_caller]
    fn kubectl(&self, args: &str) -> String {
        let args: Vec<&str> = args.split_whitespace().collect();
        self.machine.kubectl(MAIN, &args).ok()
    }

    /// Runs a shell line in a pod (or `deploy/x`) of the story's namespace.
    #[track_caller]
    fn sh(&self, target: &str, line: &str) -> String {
        self.machine.kubectl(MAIN, &["exec", "-n", "shop", target, "--", "sh", "-c", line]).ok()
    }

    #[track_caller]
    fn json(&self, args: &str) -> serde_json::Value {
        serde_json::from_str(&self.kubectl(&format!("{args} -o json"))).expect("kubectl prints JSON")
    }

    #[track_caller]
    fn apply(&self, name: &str, manifest: &str, extra: &[&str]) -> String {
        let path = self.machine.file(name, manifest);
        let path = path.display().to_string();
        let args = [&["apply", "-f", &path], extra].concat();
        self.machine.kubectl(MAIN, &args).ok()
    }

    /// Names of the running, not terminating pods with a label.
    fn pods(&self, label: &str) -> Vec<String> {
        let list = self.json(&format!("get pods -n shop -l {label}"));
        let items = list["items"].as_array().cloned().unwrap_or_default();
        items
            .iter()
            .filter(|p| p["status"]["phase"] == "Running" && p["metadata"]["deletionTimestamp"].is_null())
            .filter_map(|p| p["metadata"]["name"].as_str().map(str::to_owned))
            .collect()
    }
}

#[test]
fn a_new_user_gets_from_up_to_down_without_a_trace() {
    let machine = Machine::new("first");
    let before = Census::take(&machine);
    let story = Story { machine };

    up(&story);
    workload::run(&story);
    streams::run(&story);
    services::run(&story);
    rollout::run(&story);
    custom::run(&story);
    crash::run(&story);
    second::run(&story);

    story.machine.coracle(MAIN, &["down"]).ok();
    assert!(story.machine.data(MAIN).join("store").exists(), "down without --purge keeps the data");
    let left = Census::take(&story.machine).since(&before);
    assert!(left.is_empty(), "left behind after down:\n{}", left.join("\n"));
    story.machine.coracle(MAIN, &["up", "--detach"]).ok();
    assert!(story.kubectl("get deploy -n shop").contains("web"), "objects survive down and up");
    let purged = story.machine.coracle(MAIN, &["down", "--purge"]).ok();
    assert!(purged.contains("removed"), "{purged}");
    assert!(!story.machine.data(MAIN).exists(), "purge removes the data directory");
    let left = Census::take(&story.machine).since(&before);
    assert!(left.is_empty(), "left behind after down --purge:\n{}", left.join("\n"));
}

fn up(story: &Story) {
    let machine = &story.machine;
    let said = machine.coracle(MAIN, &["up", "--detach", "--node-name", "first"]).ok();
    let kubeconfig = machine.data(MAIN).join("kubeconfig");
    assert!(said.contains(&format!("kubeconfig: {}", kubeconfig.display())), "{said}");
    assert!(said.lines().last().is_some_and(|l| l.contains("kubectl")), "ends with what to type: {said}");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&kubeconfig.metadata().expect("written").permissions());
    assert_eq!(mode & 0o777, 0o600);
    // The user's kubeconfig works without any option.
    let user = run(machine.command(&coracle_testkit::kubectl()).args(["get", "nodes"])).ok();
    assert!(user.contains("first") && user.contains(" Ready "), "{user}");
    let version = user.lines().nth(1).and_then(|l| l.split_whitespace().last().map(str::to_owned));
    let version = version.unwrap_or_default();
    assert!(version.starts_with("v1.36.") && version.ends_with("+coracle"), "{version}");
    assert!(machine.coracle(MAIN, &["status"]).ok().contains("running"));
    let again = machine.coracle(MAIN, &["up", "--detach"]).ok();
    assert!(again.contains("already running"), "{again}");

    let archive = machine.dir().join("busybox.tar");
    busybox_archive(&archive, &[IMAGE, "test.example/busybox:2"], &["sh"]);
    let path = archive.display().to_string();
    let said = run(machine
        .command(&coracle_testkit::coracle())
        .args(["image", "import", &path, "--data-dir"])
        .arg(machine.data(MAIN)))
    .ok();
    assert!(said.contains(IMAGE), "{said}");
    retry("the image of this very program", 60, || {
        let listed = machine.coracle(MAIN, &["image", "ls"]).ok();
        if listed.contains(IMAGE) && listed.contains("coracle.local/self") { Ok(()) } else { Err(listed) }
    });
}
