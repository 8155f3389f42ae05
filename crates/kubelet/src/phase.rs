//! The phase of a pod, by upstream's rule: what its containers' statuses add up to. Pure.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};

use crate::pod::{self, Role};

/// What counts besides the containers' statuses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Nothing of the pod runs any more, and nothing will.
    pub terminal: bool,
    /// An ordinary container was started in this sandbox.
    pub initialized: bool,
}

fn is_running(c: &ContainerStatus) -> bool {
    c.state.as_ref().is_some_and(|s| s.running.is_some())
}

/// The exit code of a container that has ended and may be held back from its next start.
fn ended(c: &ContainerStatus) -> Option<i32> {
    let code = |s: &Option<k8s_openapi::api::core::v1::ContainerState>| {
        s.as_ref().and_then(|s| s.terminated.as_ref()).map(|t| t.exit_code)
    };
    let waiting = c.state.as_ref().is_some_and(|s| s.waiting.is_some());
    code(&c.state).or_else(|| if waiting { code(&c.last_state) } else { None })
}

/// How far the ordinary init containers are: some not through, some failed for good.
fn init_containers(pod: &Pod, statuses: &[ContainerStatus]) -> (bool, bool) {
    let (mut pending, mut hopeless) = (false, false);
    for ((c, role), status) in pod::init_containers(pod).zip(statuses) {
        if role == Role::Sidecar {
            continue;
        }
        match ended(status).filter(|_| !is_running(status)) {
            Some(0) => {}
            Some(code) => hopeless |= !restarts(pod, c, code),
            None => pending = true,
        }
    }
    (pending, hopeless)
}

/// Upstream asks the same question for init and app containers: any exit restarts under `Always`.
fn restarts(pod: &Pod, c: &Container, code: i32) -> bool {
    pod::restarts(pod, c, Role::App, code)
}

#[derive(Debug, Default)]
struct Count {
    running: usize,
    waiting: usize,
    stopped: usize,
    for_good: usize,
    succeeded: usize,
}

impl Count {
    fn app(&mut self, pod: &Pod, c: &Container, status: &ContainerStatus) {
        if is_running(status) {
            self.running += 1;
            return;
        }
        let Some(code) = ended(status) else {
            self.waiting += 1;
            return;
        };
        self.stopped += 1;
        self.for_good += usize::from(!restarts(pod, c, code));
        let now = status.state.as_ref().is_some_and(|s| s.terminated.is_some());
        self.succeeded += usize::from(now && code == 0);
    }
}

/// The phase; `init` and `apps` are the statuses in the specification's order.
pub fn phase(pod: &Pod, init: &[ContainerStatus], apps: &[ContainerStatus], facts: Facts) -> &'static str {
    let (pending_init, hopeless) = init_containers(pod, init);
    let mut pending_sidecars = false;
    let mut count = Count::default();
    for ((_, role), status) in pod::init_containers(pod).zip(init) {
        if role != Role::Sidecar {
            continue;
        }
        if is_running(status) {
            pending_sidecars |= status.started != Some(true);
            count.running += 1;
        } else if ended(status).is_none() {
            pending_sidecars = true;
            count.waiting += 1;
        }
    }
    for (c, status) in pod::spec(pod).containers.iter().zip(apps) {
        count.app(pod, c, status);
    }
    if hopeless {
        return "Failed";
    }
    let initializing = pending_init || (pending_sidecars && !facts.initialized);
    if initializing || count.waiting > 0 {
        // What never ran and never will counts as failed.
        return if facts.terminal && count.running == 0 { "Failed" } else { "Pending" };
    }
    if count.running > 0 {
        return "Running";
    }
    if count.stopped == 0 {
        return "Pending";
    }
    if !facts.terminal && count.for_good != count.stopped {
        return "Running";
    }
    if count.stopped == count.succeeded { "Succeeded" } else { "Failed" }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::tests::pod;

    #[track_caller]
    fn check(spec: Value, init: Value, apps: Value, facts: Facts, expected: &str) {
        let list = |v: Value| -> Vec<ContainerStatus> {
            let full = v.as_array().cloned().unwrap_or_default().into_iter().map(|mut s| {
                for (key, value) in [("ready", json!(false)), ("image", json!("")), ("imageID", json!(""))] {
                    s[key] = value;
                }
                s["name"] = "x".into();
                s["restartCount"] = 0.into();
                serde_json::from_value(s).expect("status")
            });
            full.collect()
        };
        assert_eq!(phase(&pod(spec), &list(init), &list(apps), facts), expected);
    }

    fn running() -> Value {
        json!({"state": {"running": {}}, "started": true})
    }
    fn exited(code: i32) -> Value {
        json!({"state": {"terminated": {"exitCode": code}}})
    }
    fn held(code: i32) -> Value {
        json!({"state": {"waiting": {}}, "lastState": {"terminated": {"exitCode": code}}})
    }
    fn waiting() -> Value {
        json!({"state": {"waiting": {}}})
    }

    #[test]
    fn containers_add_up_to_a_phase() {
        let one = |policy: &str| json!({"restartPolicy": policy, "containers": [{"name": "a"}]});
        let no = Facts::default();
        let over = Facts { terminal: true, initialized: true };
        check(one("Always"), json!([]), json!([running()]), no, "Running");
        check(one("Always"), json!([]), json!([waiting()]), no, "Pending");
        check(one("Always"), json!([]), json!([held(1)]), no, "Running");
        check(one("Always"), json!([]), json!([exited(0)]), over, "Succeeded");
        check(one("Always"), json!([]), json!([exited(1)]), over, "Failed");
        check(one("Never"), json!([]), json!([exited(0)]), no, "Succeeded");
        check(one("OnFailure"), json!([]), json!([held(2)]), no, "Running");
        check(one("Always"), json!([]), json!([waiting()]), over, "Failed");
    }

    #[test]
    fn one_container_that_will_restart_keeps_the_pod_running() {
        let spec = json!({"restartPolicy": "Never", "containers": [
            {"name": "a"}, {"name": "b", "restartPolicy": "OnFailure"}]});
        check(spec.clone(), json!([]), json!([exited(1), exited(1)]), Facts::default(), "Running");
        check(spec, json!([]), json!([exited(1), exited(0)]), Facts::default(), "Failed");
    }

    #[test]
    fn init_containers_hold_the_phase_until_they_are_through() {
        let spec = |policy: &str| {
            json!({"restartPolicy": policy, "initContainers": [{"name": "i"}],
                "containers": [{"name": "a"}]})
        };
        check(spec("Always"), json!([running()]), json!([waiting()]), Facts::default(), "Pending");
        check(spec("Always"), json!([held(1)]), json!([waiting()]), Facts::default(), "Pending");
        check(spec("Never"), json!([exited(1)]), json!([waiting()]), Facts::default(), "Failed");
        check(spec("Always"), json!([exited(0)]), json!([running()]), Facts::default(), "Running");
        let sidecar = json!({"initContainers": [{"name": "s", "restartPolicy": "Always"}],
            "containers": [{"name": "a"}]});
        let starting = json!({"state": {"running": {}}, "started": false});
        let begun = Facts { initialized: true, terminal: false };
        check(sidecar.clone(), json!([starting.clone()]), json!([running()]), begun, "Running");
        check(sidecar, json!([starting]), json!([waiting()]), Facts::default(), "Pending");
    }
}
