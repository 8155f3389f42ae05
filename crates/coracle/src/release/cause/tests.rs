//! Tests of the sentences.

use serde_json::{Value, json};

use super::*;

fn pod(status: &Value) -> Pod {
    let probe = |limit: i32| json!({ "failureThreshold": limit, "exec": { "command": ["x"] } });
    let container =
        json!({ "name": "c", "livenessProbe": probe(2), "readinessProbe": {}, "startupProbe": probe(30) });
    serde_json::from_value(json!({ "metadata": { "name": "p", "uid": "u" }, "status": status,
        "spec": { "containers": [container, { "name": "other" }], "volumes": [
            { "name": "v", "persistentVolumeClaim": { "claimName": "data" } }] } }))
    .unwrap()
}

fn event_about(uid: &str, reason: &str, message: &str, count: i32) -> Event {
    serde_json::from_value(json!({ "metadata": {}, "reason": reason, "message": message, "count": count,
        "involvedObject": { "uid": uid, "fieldPath": "spec.containers{c}" } }))
    .unwrap()
}

fn event(reason: &str, message: &str, count: i32) -> Event {
    event_about("u", reason, message, count)
}

fn container(state: &Value, last: &Value, restarts: i32) -> Value {
    json!({ "containerStatuses": [{ "name": "c", "image": "shop:2", "imageID": "", "ready": false,
        "restartCount": restarts, "state": state, "lastState": last }] })
}

fn found(status: &Value, events: &[Event], claims: &[PersistentVolumeClaim]) -> Option<Finding> {
    let pods = [pod(status)];
    find(&Evidence { pods: &pods, before: &[], claims, events, owners: &[], lacks_pods: false })
}

#[track_caller]
fn told(status: &Value, events: &[Event], wanted: &str) {
    match found(status, events, &[]) {
        Some(Finding::Fails(cause)) => assert_eq!(cause.what, wanted),
        other => panic!("{other:?} instead of {wanted}"),
    }
}

fn waiting(reason: &str, message: &str) -> Value {
    json!({ "waiting": { "reason": reason, "message": message } })
}

#[test]
fn every_common_fault_of_a_container_is_named_in_a_sentence() {
    let none = json!({});
    let pull = container(&waiting("ErrImagePull", "no such image\nmore"), &none, 0);
    told(&pull, &[], "image \"shop:2\" of container c of pod p cannot be had: no such image");
    let config = container(&waiting("CreateContainerConfigError", "configmap \"x\" not found"), &none, 0);
    told(&config, &[], "container c of pod p cannot be started: configmap \"x\" not found");
    let command = "unable to start container process: exec: \"/x\": stat /x: no such file or directory";
    let run = container(&waiting("RunContainerError", command), &none, 0);
    told(
        &run,
        &[],
        "command of container c of pod p cannot be run: \"/x\": stat /x: no such file or directory",
    );
    let ended = json!({ "terminated": { "exitCode": 3 } });
    let crash = container(&waiting("CrashLoopBackOff", "back-off"), &ended, 2);
    told(&crash, &[], "container c of pod p ended with exit code 3");
    let memory = json!({ "terminated": { "exitCode": 137, "reason": "OOMKilled" } });
    told(&container(&none, &memory, 1), &[], "container c of pod p ran out of memory");
    let start =
        json!({ "terminated": { "exitCode": 128, "reason": "StartError", "message": "no such file" } });
    told(&container(&start, &none, 0), &[], "command of container c of pod p cannot be run: no such file");
    let thrown = json!({ "phase": "Failed", "reason": "OutOfcpu", "message": "Node didn't have enough resource: cpu" });
    told(&thrown, &[], "pod p was ended by its node: OutOfcpu: Node didn't have enough resource: cpu");
}

#[test]
fn an_init_container_that_did_its_work_at_last_is_no_fault() {
    let ended = |code: i32| json!({ "terminated": { "exitCode": code } });
    let init = |state: Value| {
        json!({ "initContainerStatuses": [{ "name": "c", "image": "i", "imageID": "", "ready": false,
            "restartCount": 2, "state": state, "lastState": ended(1) }] })
    };
    assert_eq!(found(&init(ended(0)), &[], &[]), None);
    told(&init(ended(1)), &[], "container c of pod p ended with exit code 1");
}

#[test]
fn volumes_and_nodes_are_named() {
    let node = |message: &str| {
        json!({ "conditions": [{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": message }] })
    };
    let cpu = "0/1 nodes are available: 1 Insufficient cpu.";
    told(&node(cpu), &[], "pod p finds no node: 0/1 nodes are available: 1 Insufficient cpu.");
    let unbound = node("0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims.");
    told(&unbound, &[], "volume claim data of pod p does not exist");
    let claim = json!({ "metadata": { "name": "data", "uid": "k" }, "status": { "phase": "Pending" } });
    let claims = [serde_json::from_value(claim).unwrap()];
    let refused =
        [event_about("k", "ProvisioningFailed", "storageclass.storage.k8s.io \"fast\" not found", 1)];
    let Some(Finding::Fails(cause)) = found(&unbound, &refused, &claims) else { panic!("no cause") };
    let wanted = "volume claim data of pod p is not bound: storageclass.storage.k8s.io \"fast\" not found";
    assert_eq!(cause.what, wanted);
    let mount = [event("FailedMount", "secret \"s\" not found", 1)];
    told(&json!({}), &mount, "a volume of pod p cannot be mounted: secret \"s\" not found");
    // What runs has its volumes.
    let runs = container(&json!({ "running": {} }), &json!({}), 0);
    assert_eq!(found(&runs, &mount, &[]), None);
}

#[test]
fn a_probe_is_a_fault_once_it_failed_as_often_as_it_may_and_a_hint_before() {
    let none = json!({});
    let hint = |events: &[Event]| match found(&none, events, &[]) {
        Some(Finding::Hints(text)) => text,
        other => panic!("{other:?}"),
    };
    let unhealthy = |message: &str, count: i32| event("Unhealthy", message, count);
    let said = hint(&[unhealthy("Readiness probe failed: 503", 2)]);
    assert_eq!(said, "container c of pod p is not ready yet: Readiness probe failed: 503");
    let several = [unhealthy("Readiness probe failed: 503", 2), unhealthy("Readiness probe failed: 502", 1)];
    told(&none, &several, "container c of pod p does not become ready: Readiness probe failed: 502");
    hint(&[unhealthy("Startup probe failed: 1", 29)]);
    told(
        &none,
        &[unhealthy("Startup probe failed: 1", 30)],
        "container c of pod p does not start: Startup probe failed: 1",
    );
    told(
        &none,
        &[unhealthy("Liveness probe failed: 500", 2)],
        "container c of pod p is unhealthy: Liveness probe failed: 500",
    );
}

#[test]
fn what_keeps_pods_from_being_made_is_named_while_they_are_missing() {
    let check = |lacks_pods: bool, reason: &str, message: &str| {
        let event = event(reason, message, 1);
        let owners = [&event];
        find(&Evidence { pods: &[], before: &[], claims: &[], events: &[], owners: &owners, lacks_pods })
    };
    let wanted = "pods cannot be made: pods \"p\" is forbidden: exceeded quota: q";
    let fails = Some(Finding::Fails(Cause::of(wanted.into())));
    let quota = "pods \"p\" is forbidden: exceeded quota: q";
    assert_eq!(check(true, "FailedCreate", &format!("Error creating: {quota}")), fails);
    assert_eq!(
        check(true, "FailedCreate", &format!("(combined from similar events): Error creating: {quota}")),
        fails
    );
    let set = format!("create Pod p in StatefulSet s failed error: {quota}");
    assert_eq!(check(true, "FailedCreate", &set), fails);
    assert_eq!(check(false, "FailedCreate", &set), None);
    let turn = "Waiting for 2 other rollouts: at most 2 go on at once";
    assert_eq!(check(true, "RolloutWaiting", turn), Some(Finding::Hints(turn.into())));
}

#[test]
fn a_pod_of_an_earlier_version_that_is_broken_is_named_when_nothing_else_is_wrong() {
    let status = container(&waiting("ErrImagePull", "no"), &json!({}), 0);
    let before = [pod(&status)];
    let found = find(&Evidence {
        pods: &[],
        before: &before,
        claims: &[],
        events: &[],
        owners: &[],
        lacks_pods: false,
    });
    let Some(Finding::Fails(cause)) = found else { panic!("no cause") };
    assert!(
        cause.what.starts_with("a pod of an earlier version holds it up: image \"shop:2\""),
        "{}",
        cause.what
    );
}
