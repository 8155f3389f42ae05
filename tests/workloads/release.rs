//! `coracle release`: what a rollout comes to, why it fails, and the way back.

use coracle_testkit::{Output, retry};
use serde_json::{Value, json};

use crate::{IMAGE, MAIN, Story};

fn release(story: &Story, args: &str) -> Output {
    let args: Vec<&str> = ["release"].into_iter().chain(args.split_whitespace()).collect();
    story.machine.coracle(MAIN, &args)
}

/// Status 1, and the sentence.
#[track_caller]
fn fails_with(story: &Story, target: &str, sentence: &str) {
    let failed = release(story, &format!("status {target}"));
    assert_eq!(failed.status, 1, "{target}: {}{}", failed.stdout, failed.stderr);
    assert!(failed.stderr.contains(sentence), "{target}: {}", failed.stderr);
}

/// Success, failure, pause and the way back of a Deployment.
pub fn a_rollout_is_followed_and_taken_back(story: &Story) {
    let create = ["create", "deployment", "shop", "--image", IMAGE, "--", "sleep", "9999"];
    story.machine.kubectl(MAIN, &create).ok();
    let done = release(story, "status deployment/shop").ok();
    assert!(done.contains("1 of 1 pods are of the new version and available"), "{done}");
    story.kubectl("set image deploy/shop busybox=test.example/missing:1");
    fails_with(story, "deployment/shop", "image \"test.example/missing:1\" of container busybox");
    let json = release(story, "status deployment/shop -o json");
    let told: Value = serde_json::from_str(&json.stdout).expect("one JSON object");
    assert_eq!((json.status, &told["outcome"]), (1, &json!("failed")), "{told}");
    assert!(told["cause"].as_str().is_some_and(|cause| cause.contains("test.example/missing:1")), "{told}");
    assert!(release(story, "abort deployment/shop").ok().contains("goes back to revision 1"));
    release(story, "status deployment/shop").ok();
    let image = story.json("get deploy shop")["spec"]["template"]["spec"]["containers"][0]["image"].clone();
    assert_eq!(image, IMAGE);
    // A paused one does not move; the time is over before it is done.
    release(story, "pause deployment/shop").ok();
    story.kubectl("set image deploy/shop busybox=test.example/busybox:2");
    let waits = release(story, "status deployment/shop --timeout 2");
    assert_eq!(waits.status, 2, "{}", waits.stdout);
    assert!(waits.stderr.contains("is still going on"), "{}", waits.stderr);
    release(story, "resume deployment/shop").ok();
    release(story, "status deployment/shop").ok();
    assert!(release(story, "undo deployment/shop").ok().contains("goes back to revision"));
    release(story, "status deployment/shop").ok();
    story.kubectl("delete deploy/shop");
}

/// The kinds that are released, as kubectl calls them for short.
const KINDS: [(&str, &str); 3] = [("Deployment", "deploy"), ("StatefulSet", "sts"), ("DaemonSet", "ds")];

/// A fault: what the workload is called after it, fields of its container and pod, and what the sentence says.
struct Fault {
    name: &'static str,
    container: Value,
    pod: Value,
    sentence: &'static str,
    /// What the log says last.
    log: Option<&'static str>,
}

fn fault(name: &'static str, container: Value, pod: Value, sentence: &'static str) -> Fault {
    Fault { name, container, pod, sentence, log: None }
}

/// Every cause, and how it is told.
fn faults() -> Vec<Fault> {
    let none = || json!({});
    let shell = |script: &str| json!({ "command": ["sh", "-c", script] });
    let probe = |kind: &str, failures: u32| {
        json!({ kind: { "exec": { "command": ["sh", "-c", "echo not well; exit 1"] }, "periodSeconds": 1, "timeoutSeconds": 30,
            "failureThreshold": failures } })
    };
    let mounted = || json!({ "volumeMounts": [{ "name": "v", "mountPath": "/v" }] });
    let volume = |source: Value| {
        let mut volume = source;
        volume["name"] = "v".into();
        json!({ "volumes": [volume] })
    };
    let init = json!([{ "name": "first", "image": IMAGE, "command": ["sh", "-c", "echo no way; exit 7"] }]);
    let reference =
        json!([{ "name": "A", "valueFrom": { "configMapKeyRef": { "name": "absent", "key": "a" } } }]);
    vec![
        fault(
            "image",
            json!({ "image": "test.example/missing:1" }),
            none(),
            "image \"test.example/missing:1\" of container c",
        ),
        fault("imagename", json!({ "image": "Not A Name" }), none(), "image \"Not A Name\" of container c"),
        fault(
            "command",
            json!({ "command": ["/nowhere"] }),
            none(),
            "command of container c of pod command-",
        ),
        fault(
            "config",
            json!({ "env": reference }),
            none(),
            "cannot be started: configmap \"absent\" not found",
        ),
        Fault {
            log: Some("| out of luck"),
            ..fault("crash", shell("echo out of luck; exit 3"), none(), "ended with exit code 3")
        },
        Fault {
            log: Some("| no way"),
            ..fault("init", none(), json!({ "initContainers": init }), "container first of pod init-")
        },
        fault("ended", shell("exit 0"), none(), "ended with exit code 0"),
        fault(
            "ready",
            probe("readinessProbe", 2),
            none(),
            "does not become ready: Readiness probe failed: not well",
        ),
        fault("alive", probe("livenessProbe", 1), none(), "is unhealthy: Liveness probe failed: not well"),
        fault("startup", probe("startupProbe", 2), none(), "does not start: Startup probe failed: not well"),
        fault(
            "big",
            json!({ "resources": { "requests": { "cpu": "999" } } }),
            none(),
            "finds no node: 0/1 nodes are available: 1 Insufficient cpu",
        ),
        fault(
            "elsewhere",
            none(),
            json!({ "nodeSelector": { "disk": "fast" } }),
            "finds no node: 0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector",
        ),
        fault(
            "secret",
            mounted(),
            volume(json!({ "secret": { "secretName": "absent" } })),
            "failed for volume \"v\" : secret \"absent\" not found",
        ),
        fault(
            "claim",
            mounted(),
            volume(json!({ "persistentVolumeClaim": { "claimName": "slow" } })),
            "volume claim slow of pod claim-",
        ),
        fault(
            "noclaim",
            mounted(),
            volume(json!({ "persistentVolumeClaim": { "claimName": "absent" } })),
            "volume claim absent of pod noclaim-",
        ),
        fault("quota", none(), none(), "pods cannot be made: pods \"quota-"),
    ]
}

/// A workload of one pod with a fault.
fn faulty(kind: &str, fault: &Fault) -> Value {
    let mut spec = json!({ "terminationGracePeriodSeconds": 0,
        "containers": [{ "name": "c", "image": IMAGE, "command": ["sleep", "9999"] }] });
    for (key, value) in fault.container.as_object().into_iter().flatten() {
        spec["containers"][0][key] = value.clone();
    }
    for (key, value) in fault.pod.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    let name = fault.name;
    // What crashes or is killed is never ready in between, not even for a moment.
    if matches!(name, "crash" | "ended" | "alive") {
        let never = json!({ "exec": { "command": ["false"] }, "failureThreshold": 999 });
        spec["containers"][0]["readinessProbe"] = never;
    }
    let labels = json!({ "app": name, "kind": kind });
    let mut workload = json!({ "apiVersion": "apps/v1", "kind": kind,
        "metadata": { "name": name, "namespace": namespace(name) },
        "spec": { "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": spec } } });
    // No node of this cluster has the label: a DaemonSet wants no pod at all then.
    if kind == "DaemonSet" && name == "elsewhere" {
        workload["spec"]["template"]["spec"]["nodeSelector"] = Value::Null;
        workload["spec"]["template"]["spec"]["containers"][0]["resources"] =
            json!({ "requests": { "memory": "900Ti" } });
    }
    if kind == "StatefulSet" {
        workload["spec"]["serviceName"] = "s".into();
    }
    workload
}

fn namespace(fault: &str) -> &'static str {
    if fault == "quota" { "full" } else { "faults" }
}

const FAULTY_SETTING: &str = r#"
{ apiVersion: v1, kind: Namespace, metadata: { name: faults } }
---
{ apiVersion: v1, kind: Namespace, metadata: { name: full } }
---
{ apiVersion: v1, kind: ResourceQuota, metadata: { name: small, namespace: full }, spec: { hard: { count/pods: "0" } } }
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: { name: slow, namespace: faults }
spec: { accessModes: [ReadWriteOnce], storageClassName: nowhere, resources: { requests: { storage: 1Gi } } }
"#;

/// Image, command, configuration, crash, probe, scheduling, volume and quota, for every kind.
pub fn every_fault_is_named_in_a_sentence(story: &Story) {
    story.apply("faulty.yaml", FAULTY_SETTING);
    for (kind, short) in KINDS {
        let all: Vec<Value> = faults().iter().map(|fault| faulty(kind, fault)).collect();
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": all });
        story.apply(&format!("faulty-{short}.json"), &list.to_string());
        for fault in faults() {
            let target = format!("{short}/{} -n {}", fault.name, namespace(fault.name));
            let sentence = match (kind, fault.name) {
                ("DaemonSet", "elsewhere") => "finds no node: 0/1 nodes are available: 1 Insufficient memory",
                _ => fault.sentence,
            };
            fails_with(story, &target, sentence);
            if let Some(log) = fault.log {
                retry("the last log lines are shown", 60, || {
                    let failed = release(story, &format!("status {target}"));
                    if failed.stderr.contains(log) { Ok(()) } else { Err(failed.stderr) }
                });
            }
        }
        story.kubectl(&format!("delete {short} --all -n faults"));
    }
    story.kubectl("delete namespace faults full");
}

/// A StatefulSet and a DaemonSet succeed, fail twice, go back to what was ready, and can be paused.
pub fn other_workloads_are_followed_too(story: &Story) {
    for (kind, short) in &KINDS[1..] {
        let name = kind.to_lowercase();
        let ready = Fault { name: "later", ..fault("later", json!({}), json!({}), "") };
        let mut workload = faulty(kind, &ready);
        workload["metadata"] = json!({ "name": name });
        story.apply(&format!("{name}.json"), &workload.to_string());
        let target = format!("{short}/{name}");
        let image = || {
            story.kubectl(&format!("get {target} -o jsonpath={{.spec.template.spec.containers[0].image}}"))
        };
        release(story, &format!("status {target}")).ok();
        let nothing = release(story, &format!("abort {target}"));
        assert_ne!(nothing.status, 0, "{}", nothing.stdout);
        assert!(nothing.stderr.contains("there is nothing to abort"), "{}", nothing.stderr);
        // The second fault comes before the first one was mended: what was ready is two versions back.
        for missing in ["test.example/missing:1", "test.example/missing:2"] {
            story.kubectl(&format!("set image {target} c={missing}"));
            // In order, a StatefulSet gets no further than the pod that is broken already.
            let sentence = match (*kind, missing) {
                ("StatefulSet", "test.example/missing:2") => {
                    "a pod of an earlier version holds it up: image \"test.example/missing:1\"".to_owned()
                }
                _ => format!("image \"{missing}\" of container c"),
            };
            fails_with(story, &target, &sentence);
        }
        let said = release(story, &format!("abort {target}")).ok();
        assert!(said.contains("goes back to revision 1"), "{said}");
        release(story, &format!("status {target}")).ok();
        assert_eq!(image(), IMAGE);
        // A paused one keeps its pods until it goes on.
        release(story, &format!("pause {target}")).ok();
        story.kubectl(&format!("set image {target} c=test.example/busybox:2"));
        let waits = release(story, &format!("status {target} --timeout 2"));
        assert_eq!(waits.status, 2, "{}", waits.stdout);
        assert!(waits.stderr.contains("it is paused"), "{}", waits.stderr);
        release(story, &format!("resume {target}")).ok();
        release(story, &format!("status {target}")).ok();
        release(story, &format!("undo {target}")).ok();
        release(story, &format!("status {target}")).ok();
        assert_eq!(image(), IMAGE);
        story.kubectl(&format!("delete {target}"));
    }
}

/// Two broken versions one after the other, of a Deployment that stops everything first: no pod tells what was ready.
pub fn a_deployment_goes_back_to_what_was_ready(story: &Story) {
    let ready = fault("anew", json!({}), json!({}), "");
    let mut workload = faulty("Deployment", &ready);
    workload["metadata"] = json!({ "name": "anew" });
    workload["spec"]["strategy"] = json!({ "type": "Recreate" });
    story.apply("anew.json", &workload.to_string());
    release(story, "status deploy/anew").ok();
    for missing in ["test.example/missing:1", "test.example/missing:2"] {
        story.kubectl(&format!("set image deploy/anew c={missing}"));
        fails_with(story, "deploy/anew", &format!("image \"{missing}\" of container c"));
    }
    let said = release(story, "abort deploy/anew").ok();
    assert!(said.contains("goes back to revision 1"), "{said}");
    release(story, "status deploy/anew").ok();
    story.kubectl("delete deploy/anew");
}
