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

/// A Deployment `name` of one pod with these fields of its container and pod.
fn faulty(story: &Story, name: &str, container: &Value, pod: &Value) {
    let mut spec = json!({ "terminationGracePeriodSeconds": 0,
        "containers": [{ "name": "c", "image": IMAGE, "command": ["sleep", "9999"] }] });
    for (key, value) in container.as_object().into_iter().flatten() {
        spec["containers"][0][key] = value.clone();
    }
    for (key, value) in pod.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    let deployment = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": { "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": { "app": name } }, "spec": spec } } });
    story.apply(&format!("{name}.json"), &deployment.to_string());
}

/// Command, probe, scheduling, volume, crash and quota.
pub fn every_fault_is_named_in_a_sentence(story: &Story) {
    let none = json!({});
    faulty(story, "command", &json!({ "command": ["/nowhere"] }), &none);
    faulty(story, "crash", &json!({ "command": ["sh", "-c", "echo out of luck; exit 3"] }), &none);
    let probe = json!({ "exec": { "command": ["false"] }, "periodSeconds": 1, "failureThreshold": 1 });
    faulty(story, "probe", &json!({ "readinessProbe": probe }), &none);
    faulty(story, "big", &json!({ "resources": { "requests": { "cpu": "999" } } }), &none);
    let volume = json!({ "volumes": [{ "name": "v", "secret": { "secretName": "absent" } }] });
    faulty(story, "volume", &json!({ "volumeMounts": [{ "name": "v", "mountPath": "/v" }] }), &volume);
    fails_with(story, "deployment/command", "command of container c of pod command-");
    fails_with(story, "deployment/crash", "ended with exit code 3");
    retry("the last log lines are shown", 60, || {
        let failed = release(story, "status deployment/crash");
        if failed.stderr.contains("| out of luck") { Ok(()) } else { Err(failed.stderr) }
    });
    fails_with(story, "deployment/probe", "does not become ready: Readiness probe failed");
    fails_with(story, "deployment/big", "finds no node: 0/1 nodes are available: 1 Insufficient cpu");
    fails_with(story, "deployment/volume", "a volume of pod volume-");
    story.kubectl("delete deploy/command deploy/crash deploy/probe deploy/big deploy/volume");
    story.kubectl("create quota small --hard=count/pods=0");
    faulty(story, "quota", &none, &none);
    fails_with(story, "deployment/quota", "pods cannot be made: pods \"quota-");
    story.kubectl("delete deploy/quota quota/small");
}

/// A StatefulSet and a DaemonSet succeed, fail and go back.
pub fn other_workloads_are_followed_too(story: &Story) {
    for (kind, short, extra) in [("StatefulSet", "sts", "serviceName: s,"), ("DaemonSet", "ds", "")] {
        let name = kind.to_lowercase();
        let manifest = format!(
            "{{ apiVersion: apps/v1, kind: {kind}, metadata: {{ name: {name} }}, spec: {{ {extra} selector: {{ \
             matchLabels: {{ app: {name} }} }}, template: {{ metadata: {{ labels: {{ app: {name} }} }}, spec: {{ \
             terminationGracePeriodSeconds: 0, containers: [{{ name: c, image: IMAGE, command: [sleep, '9999'] }}] \
             }} }} }} }}"
        );
        story.apply(&format!("{name}.yaml"), &manifest);
        release(story, &format!("status {short}/{name}")).ok();
        story.kubectl(&format!("set image {short}/{name} c=test.example/missing:1"));
        fails_with(story, &format!("{short}/{name}"), "image \"test.example/missing:1\" of container c");
        assert!(release(story, &format!("abort {short}/{name}")).ok().contains("goes back to revision 1"));
        release(story, &format!("status {short}/{name}")).ok();
        story.kubectl(&format!("delete {short}/{name}"));
    }
}
