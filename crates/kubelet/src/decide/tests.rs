//! What the decision promises, one claim a test.

use coracle_cri::v1::{ContainerMetadata, PodSandboxMetadata, PodSandboxStatus};
use serde_json::json;

use super::*;
use crate::pod::tests::pod;
use crate::state::{Slot, Unhealthy};

const S: i64 = 1_000_000_000;

fn at(seconds: i64) -> Timestamp {
    pod::after(Timestamp::UNIX_EPOCH, seconds)
}

fn sandbox(id: &str, attempt: u32, ready: bool) -> PodSandboxStatus {
    PodSandboxStatus {
        id: id.into(),
        ready,
        ips: vec!["10.244.0.5".into()],
        metadata: PodSandboxMetadata { attempt, ..PodSandboxMetadata::default() },
        ..PodSandboxStatus::default()
    }
}

fn running(id: &str, name: &str) -> ContainerStatus {
    ContainerStatus {
        id: id.into(),
        pod_sandbox_id: "s0".into(),
        state: ContainerState::Running,
        metadata: ContainerMetadata { name: name.into(), attempt: 0 },
        ..ContainerStatus::default()
    }
}

fn exited(id: &str, name: &str, code: i32, finished: i64) -> ContainerStatus {
    let finished_at = finished * S;
    ContainerStatus { state: ContainerState::Exited, exit_code: code, finished_at, ..running(id, name) }
}

fn mounted() -> Memory {
    Memory { volumes: Step::Done, ..Memory::default() }
}

fn seen(containers: Vec<ContainerStatus>) -> Observed {
    Observed { sandboxes: vec![sandbox("s0", 0, true)], containers }
}

#[test]
fn a_new_pod_mounts_volumes_then_makes_its_sandbox_then_starts_all_containers() {
    let p = pod(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    let first = decide(&p, &Observed::default(), &Memory::default(), at(0));
    assert_eq!(first, Actions { mount_volumes: true, ..Actions::default() });
    let second = decide(&p, &Observed::default(), &mounted(), at(0));
    assert_eq!(second, Actions { create_sandbox: Some(0), ..Actions::default() });
    let third = decide(&p, &seen(vec![]), &mounted(), at(0));
    assert_eq!(third.start, ["a", "b"]);
}

#[test]
fn nothing_is_begun_twice() {
    let p = pod(json!({"containers": [{"name": "a"}]}));
    let mut m = mounted();
    m.sandbox = Step::Busy;
    assert_eq!(decide(&p, &Observed::default(), &m, at(0)), Actions::default());
    let mut m = mounted();
    m.slots.insert("a".into(), Slot { starting: true, ..Slot::default() });
    assert_eq!(decide(&p, &seen(vec![]), &m, at(0)), Actions::default());
}

#[test]
fn init_containers_run_one_after_the_other_and_a_failed_one_is_retried() {
    let p = pod(json!({"initContainers": [{"name": "i1"}, {"name": "i2"}], "containers": [{"name": "a"}]}));
    assert_eq!(decide(&p, &seen(vec![]), &mounted(), at(0)).start, ["i1"]);
    assert!(decide(&p, &seen(vec![running("x", "i1")]), &mounted(), at(0)).start.is_empty());
    assert_eq!(decide(&p, &seen(vec![exited("x", "i1", 0, 1)]), &mounted(), at(2)).start, ["i2"]);
    assert_eq!(decide(&p, &seen(vec![exited("x", "i1", 1, 1)]), &mounted(), at(2)).start, ["i1"]);
    let done = vec![exited("y", "i2", 0, 2), exited("x", "i1", 0, 1)];
    assert_eq!(decide(&p, &seen(done), &mounted(), at(2)).start, ["a"]);
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let p = pod(json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}],
        "containers": [{"name": "a"}]}));
    let a = decide(&p, &seen(vec![exited("x", "i", 1, 1)]), &mounted(), at(2));
    assert!(a.end && a.start.is_empty());
}

#[test]
fn a_sidecar_lets_the_next_through_only_when_started() {
    let p = pod(json!({"initContainers": [{"name": "s", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}]}));
    let view = seen(vec![running("x", "s")]);
    assert!(decide(&p, &view, &mounted(), at(0)).start.is_empty());
    let mut m = mounted();
    m.started.insert("x".into());
    assert_eq!(decide(&p, &view, &m, at(0)).start, ["a"]);
}

#[test]
fn a_crashed_container_restarts_at_once_the_first_time_and_waits_the_second() {
    let p = pod(json!({"containers": [{"name": "a"}]}));
    let mut m = mounted();
    assert_eq!(decide(&p, &seen(vec![exited("x", "a", 1, 10)]), &m, at(10)).start, ["a"]);
    m.backoff.next(&backoff_key(&pod::spec(&p).containers[0]), at(10));
    let a = decide(&p, &seen(vec![exited("y", "a", 1, 12)]), &m, at(13));
    assert_eq!(a.back_off, [BackOff { name: "a".into(), seconds: 10 }]);
    assert_eq!((a.start.len(), a.wake_at), (0, Some(at(22))));
    assert_eq!(decide(&p, &seen(vec![exited("y", "a", 1, 12)]), &m, at(22)).start, ["a"]);
}

#[test]
fn restart_policy_decides_when_a_pod_has_ended() {
    let check = |policy: &str, code: i32, end: bool| {
        let p = pod(json!({"restartPolicy": policy, "containers": [{"name": "a"}]}));
        let a = decide(&p, &seen(vec![exited("x", "a", code, 1)]), &mounted(), at(5));
        assert_eq!(a.end, end, "{policy} {code}");
        assert_eq!(a.start.is_empty(), end, "{policy} {code}");
    };
    check("Never", 1, true);
    check("OnFailure", 0, true);
    check("OnFailure", 1, false);
    check("Always", 0, false);
}

#[test]
fn a_dead_sandbox_is_replaced_after_its_containers_are_gone() {
    let p = pod(json!({"containers": [{"name": "a"}]}));
    let mut view = seen(vec![running("x", "a")]);
    view.sandboxes[0].ready = false;
    let a = decide(&p, &view, &mounted(), at(0));
    assert_eq!((a.kill.len(), a.create_sandbox), (1, None));
    view.containers[0].state = ContainerState::Exited;
    assert_eq!(decide(&p, &view, &mounted(), at(0)).create_sandbox, Some(1));
}

#[test]
fn a_condemned_container_is_killed_once_with_the_probes_grace() {
    let p = pod(json!({"containers": [{"name": "a"}]}));
    let mut m = mounted();
    m.unhealthy.insert("x".into(), Unhealthy { message: "why".into(), grace: Some(3) });
    let a = decide(&p, &seen(vec![running("x", "a")]), &m, at(0));
    assert_eq!((a.kill[0].grace, a.kill[0].message.as_str()), (3, "why"));
    m.killing.insert("x".into(), at(3));
    assert!(decide(&p, &seen(vec![running("x", "a")]), &m, at(0)).kill.is_empty());
}

#[test]
fn deletion_kills_containers_then_sandboxes_then_is_over() {
    let mut p = pod(json!({"terminationGracePeriodSeconds": 7, "containers": [{"name": "a"}]}));
    p.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
    let a = decide(&p, &seen(vec![running("x", "a")]), &mounted(), at(0));
    assert_eq!((a.kill[0].grace, a.kill[0].message.as_str()), (7, "Stopping container a"));
    let mut view = seen(vec![exited("x", "a", 137, 1)]);
    let a = decide(&p, &view, &mounted(), at(2));
    assert_eq!((a.stop_sandboxes.len(), a.over), (1, false));
    view.sandboxes[0].ready = false;
    assert!(decide(&p, &view, &mounted(), at(2)).over);
    // A shorter grace period overtakes a kill under way.
    p.metadata.deletion_grace_period_seconds = Some(1);
    let mut m = mounted();
    m.killing.insert("x".into(), at(30));
    assert_eq!(decide(&p, &seen(vec![running("x", "a")]), &m, at(2)).kill[0].grace, 1);
}

#[test]
fn sidecars_are_killed_after_the_app_containers_and_from_the_last() {
    let mut p = pod(json!({"initContainers": [{"name": "s1", "restartPolicy": "Always"},
        {"name": "s2", "restartPolicy": "Always"}], "containers": [{"name": "a"}]}));
    p.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
    let all = vec![running("x", "a"), running("2", "s2"), running("1", "s1")];
    let killed = |c: Vec<ContainerStatus>| -> Vec<String> {
        decide(&p, &seen(c), &mounted(), at(0)).kill.into_iter().map(|k| k.name).collect()
    };
    assert_eq!(killed(all.clone()), ["a"]);
    assert_eq!(killed(all[1..].to_vec()), ["s2"]);
    assert_eq!(killed(all[2..].to_vec()), ["s1"]);
}

#[test]
fn a_rule_starts_the_whole_pod_over_once_nothing_of_it_runs() {
    let rule = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [9]}}]);
    let p = pod(json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [
        {"name": "a", "restartPolicy": "Never", "restartPolicyRules": rule}, {"name": "b"}]}));
    let view = vec![exited("x", "a", 9, 1), running("y", "b"), exited("z", "i", 0, 0)];
    let first = decide(&p, &seen(view), &mounted(), at(2));
    assert_eq!((first.kill.len(), first.reset, first.end), (1, false, false));
    let view = vec![exited("x", "a", 9, 1), exited("y", "b", 137, 2), exited("z", "i", 0, 0)];
    assert!(decide(&p, &seen(view.clone()), &mounted(), at(3)).reset);
    let mut m = mounted();
    m.resetting = true;
    assert!(!decide(&p, &seen(view), &m, at(3)).reset);
}

#[test]
fn the_deadline_fails_the_pod_and_is_waited_for() {
    let mut p = pod(json!({"activeDeadlineSeconds": 60, "containers": [{"name": "a"}]}));
    p.status = serde_json::from_value(json!({"startTime": "1970-01-01T00:00:00Z"})).ok();
    let a = decide(&p, &seen(vec![running("x", "a")]), &mounted(), at(10));
    assert_eq!(a.wake_at, Some(at(60)));
    let a = decide(&p, &seen(vec![running("x", "a")]), &mounted(), at(60));
    assert_eq!(a.fail.map(|f| f.reason).as_deref(), Some("DeadlineExceeded"));
}
