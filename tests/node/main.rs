//! The node with real containers: what a pod may ask for, and what its status and events say of it. One cluster;
//! each file is a group of claims.

mod devices;
mod lifecycle;
mod refused;
mod resize;
mod security;
mod server;
mod survival;
mod volumes;

use coracle_testkit::{Census, Machine, busybox_archive, retry};
use serde_json::{Value, json};

/// The cluster's name in the test's directory.
const MAIN: &str = "main";
/// The test image.
const IMAGE: &str = "test.example/busybox:1";

/// The cluster under test.
struct Lab {
    machine: Machine,
}

impl Lab {
    #[track_caller]
    fn kubectl(&self, args: &str) -> String {
        let args: Vec<&str> = args.split_whitespace().collect();
        self.machine.kubectl(MAIN, &args).ok()
    }

    /// Creates a pod of `default` from its specification; containers without an image get the test image, and no
    /// pod takes long to end.
    #[track_caller]
    fn pod(&self, name: &str, mut spec: Value) {
        for list in ["containers", "initContainers"] {
            for c in spec[list].as_array_mut().into_iter().flatten() {
                if c["image"].is_null() {
                    c["image"] = IMAGE.into();
                }
            }
        }
        if spec["terminationGracePeriodSeconds"].is_null() {
            spec["terminationGracePeriodSeconds"] = 1.into();
        }
        self.create(&json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}));
    }

    #[track_caller]
    fn create(&self, object: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap_or("object").to_owned();
        let path = self.machine.file(&format!("{name}.json"), &object.to_string());
        self.machine.kubectl(MAIN, &["create", "-f", &path.display().to_string()]).ok();
    }

    fn get(&self, kind: &str, name: &str) -> Value {
        let out = self.machine.kubectl(MAIN, &["get", kind, name, "-o", "json"]);
        serde_json::from_str(&out.stdout).unwrap_or_default()
    }

    /// Waits until the pod satisfies the claim.
    #[track_caller]
    fn wait(&self, name: &str, what: &str, claim: impl Fn(&Value) -> bool) -> Value {
        retry(&format!("{name}: {what}"), 60, || {
            let pod = self.get("pod", name);
            if claim(&pod) { Ok(pod) } else { Err(pod["status"].to_string()) }
        })
    }

    #[track_caller]
    fn running(&self, name: &str) -> Value {
        self.wait(name, "Running and ready", |p| {
            let ready = p["status"]["containerStatuses"].as_array();
            p["status"]["phase"] == "Running" && ready.is_some_and(|c| c.iter().all(|c| c["ready"] == true))
        })
    }

    #[track_caller]
    fn ended(&self, name: &str) -> Value {
        self.wait(name, "ended", |p| matches!(p["status"]["phase"].as_str(), Some("Succeeded" | "Failed")))
    }

    /// What a pod that ends prints.
    #[track_caller]
    fn output(&self, name: &str, spec: Value) -> String {
        let mut spec = spec;
        spec["restartPolicy"] = "Never".into();
        self.pod(name, spec);
        let pod = self.ended(name);
        let log = self.kubectl(&format!("logs {name} --all-containers"));
        assert_eq!(pod["status"]["phase"], "Succeeded", "{log}\n{}", pod["status"]);
        log
    }

    #[track_caller]
    fn sh(&self, pod: &str, container: &str, line: &str) -> String {
        self.machine.kubectl(MAIN, &["exec", pod, "-c", container, "--", "sh", "-c", line]).ok()
    }

    /// Reasons and messages of a pod's events.
    fn events(&self, pod: &str) -> Vec<(String, String)> {
        let out = self.kubectl(&format!("get events --field-selector involvedObject.name={pod} -o json"));
        let list: Value = serde_json::from_str(&out).unwrap_or_default();
        let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
        let items = list["items"].as_array().cloned().unwrap_or_default();
        items.iter().map(|e| (text(&e["reason"]), text(&e["message"]))).collect()
    }

    #[track_caller]
    fn event(&self, pod: &str, reason: &str, message: &str) {
        retry(&format!("event {reason} of {pod}"), 20, || {
            let events = self.events(pod);
            let found = events.iter().any(|(r, m)| r == reason && m.contains(message));
            if found { Ok(()) } else { Err(format!("{events:?}")) }
        });
    }
}

/// Something the node promises, and the test of it.
type Claim = (&'static str, fn(&Lab));

/// One shell container named `main`.
fn shell(script: &str) -> Value {
    json!({"name": "main", "command": ["sh", "-c", script]})
}

#[test]
fn the_node_does_what_pods_ask_for_and_leaves_nothing_behind() {
    let machine = Machine::new("node");
    let before = Census::own(&machine);
    let lab = Lab { machine };
    lab.machine.coracle(MAIN, &["up", "--detach", "--node-name", "n1"]).ok();
    let archive = lab.machine.dir().join("busybox.tar");
    busybox_archive(&archive, &[IMAGE], &["sh"]);
    lab.machine.coracle(MAIN, &["image", "import", &archive.display().to_string()]).ok();
    retry("the default service account", 20, || {
        let found = lab.machine.kubectl(MAIN, &["get", "serviceaccount", "default"]);
        if found.status == 0 { Ok(()) } else { Err(found.stderr) }
    });

    let only = std::env::var("CORACLE_NODE_ONLY").unwrap_or_default();
    let groups = [
        lifecycle::CLAIMS,
        devices::CLAIMS,
        security::CLAIMS,
        volumes::CLAIMS,
        resize::CLAIMS,
        server::CLAIMS,
        refused::CLAIMS,
        survival::CLAIMS,
    ];
    let wanted = |name: &str| only.is_empty() || only.split(',').any(|o| name.contains(o));
    let mut broken = Vec::new();
    for (name, claim) in groups.into_iter().flatten().filter(|(name, _)| wanted(name)) {
        eprintln!("--- {name}");
        // All claims are tried: one that is broken does not hide the next.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| claim(&lab))).is_err() {
            broken.push(*name);
        }
    }
    assert!(broken.is_empty(), "broken: {broken:#?}");

    lab.machine.coracle(MAIN, &["down", "--purge"]).ok();
    let left = Census::own(&lab.machine).since(&before);
    assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
}
