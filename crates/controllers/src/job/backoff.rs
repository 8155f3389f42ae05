//! How long a Job waits after failures before it makes pods again: pure.

use std::sync::Arc;
use std::time::Duration;

use coracle_meta::pod as podutil;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

const FIRST: SignedDuration = SignedDuration::from_secs(10);
const LONGEST: SignedDuration = SignedDuration::from_secs(600);

/// Failures of a Job since its last success.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Backoff {
    pub failures: u32,
    pub last: Option<Timestamp>,
}

/// When the pod's containers finished, sidecars too; else when it became unready, or its deletion was asked
/// for.
pub(super) fn finished_at(pod: &Pod) -> Timestamp {
    let status = pod.status.as_ref();
    let sidecars = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten());
    let sidecars: Vec<&str> =
        sidecars.filter(|c| podutil::is_restartable_init(c)).map(|c| c.name.as_str()).collect();
    let main = status.and_then(|s| s.container_statuses.as_ref()).into_iter().flatten();
    let init = status.and_then(|s| s.init_container_statuses.as_ref()).into_iter().flatten();
    let end = |c: &ContainerStatus| Some(c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0);
    let relevant = main.chain(init.filter(|c| sidecars.contains(&c.name.as_str())));
    let ends: Option<Vec<Timestamp>> = relevant.map(end).collect();
    let by_containers = ends.and_then(|ends| ends.into_iter().max());
    let by_condition = || {
        let ready = podutil::condition(pod, "Ready").filter(|c| c.status == "False")?;
        ready.last_transition_time.as_ref().map(|t| t.0)
    };
    let by_deletion = || {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
        let deadline = pod.metadata.deletion_timestamp.as_ref()?.0;
        deadline.checked_sub(SignedDuration::from_secs(grace)).ok()
    };
    let created = || pod.metadata.creation_timestamp.as_ref().map(|t| t.0);
    by_containers.or_else(by_condition).or_else(by_deletion).or_else(created).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn wait_after(failures: u32, last: Timestamp, now: Timestamp) -> Option<Duration> {
    let factor = 1_i32.checked_shl(failures.saturating_sub(1).min(20)).unwrap_or(i32::MAX);
    let wait = FIRST.checked_mul(factor).unwrap_or(LONGEST).min(LONGEST);
    let left = wait - now.duration_since(last);
    Duration::try_from(left).ok().filter(|left| !left.is_zero())
}

impl Backoff {
    /// With newly finished pods counted in.
    pub(super) fn after(self, succeeded: &[Arc<Pod>], failed: &[Arc<Pod>]) -> Self {
        let times =
            |pods: &[Arc<Pod>]| -> Vec<Timestamp> { pods.iter().map(|pod| finished_at(pod)).collect() };
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let failed = times(failed);
        match times(succeeded).into_iter().max() {
            None if failed.is_empty() => self,
            None => Self {
                failures: self.failures.saturating_add(count(failed.len())),
                last: failed.into_iter().max(),
            },
            Some(success) => {
                let later: Vec<Timestamp> = failed.into_iter().filter(|at| *at > success).collect();
                Self { failures: count(later.len()), last: later.into_iter().max() }
            }
        }
    }

    /// How long to wait still.
    pub(super) fn left(self, now: Timestamp) -> Option<Duration> {
        self.last.filter(|_| self.failures > 0).and_then(|last| wait_after(self.failures, last, now))
    }
}

/// How long to wait still before the pod, which failed as the `failures`-th of its index, is replaced.
pub(super) fn left_for_index(failures: u32, pod: &Pod, now: Timestamp) -> Option<Duration> {
    wait_after(failures, finished_at(pod), now)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(second: i64) -> Arc<Pod> {
        let at = Timestamp::from_second(second).expect("in range").to_string();
        let container = json!({ "name": "c", "ready": false, "restartCount": 0, "image": "", "imageID": "",
            "state": { "terminated": { "exitCode": 1, "finishedAt": at } } });
        let pod = json!({ "metadata": {}, "status": { "containerStatuses": [container] } });
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    #[test]
    fn the_wait_doubles_with_failures_up_to_ten_minutes_and_ends_with_a_success() {
        let one = Backoff::default().after(&[], &[pod(100)]);
        assert_eq!(one.left(at(103)).map(|w| w.as_secs()), Some(7));
        assert_eq!(one.left(at(110)), None);
        let three = one.after(&[], &[pod(200), pod(190)]);
        assert_eq!(three.left(at(200)).map(|w| w.as_secs()), Some(40));
        let many = (0..40).fold(three, |backoff, _| backoff.after(&[], &[pod(200)]));
        assert_eq!(many.left(at(200)).map(|w| w.as_secs()), Some(600));
        assert_eq!(many.after(&[pod(300)], &[]).left(at(300)), None);
        assert_eq!(many.after(&[pod(300)], &[pod(299), pod(301)]).failures, 1);
    }
}
