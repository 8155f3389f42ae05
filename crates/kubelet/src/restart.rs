//! Restarts that the kubelet itself wants are shown when they are done, not step by step. Pure.
//!
//! Upstream stops and starts such a container in one pass over the pod, and writes the status only before the
//! next one. Clients have come to count on it: a pod whose image changes is not unready in between.

use coracle_cri::v1::{ContainerState, ContainerStatus};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::pod::{self, Role};
use crate::state::{Memory, Observed};

/// A restart that takes longer is shown as it stands: others should know that nothing runs while an image is
/// pulled. Upstream learns of containers once in this time.
const LONGEST: i64 = 1;

/// Until when the status is not to be written, because containers are between their kill and their start.
pub fn settles_at(pod: &Pod, seen: &Observed, memory: &Memory, now: Timestamp) -> Option<Timestamp> {
    if memory.ended || memory.gone || memory.failed.is_some() || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let between = |(c, _): (&k8s_openapi::api::core::v1::Container, Role)| {
        let slot = memory.slots.get(&c.name);
        let newest = seen.newest(&c.name)?;
        let runs = newest.state == ContainerState::Running && !slot.is_some_and(|s| s.starting);
        let held = slot.is_some_and(|s| s.waiting.is_some());
        if runs || held {
            return None;
        }
        let killed = [Some(newest), seen.previous(&c.name)].into_iter().flatten().find(|i| was(i, memory))?;
        Some(pod::after(pod::from_nanos(killed.finished_at), LONGEST)).filter(|at| *at > now)
    };
    pod::containers(pod).filter_map(between).max()
}

/// Whether this instance has ended because the kubelet wants another in its place.
fn was(instance: &ContainerStatus, memory: &Memory) -> bool {
    instance.state == ContainerState::Exited && memory.replaced.contains(&instance.id)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::state::Waiting;

    fn instance(id: &str, state: ContainerState, finished: i64) -> ContainerStatus {
        let finished_at = finished * 1_000_000_000;
        let mut c = ContainerStatus { id: id.into(), state, finished_at, ..ContainerStatus::default() };
        c.metadata.name = "a".into();
        c
    }

    fn check(memory: &Memory, containers: Vec<ContainerStatus>, now: i64, until: Option<i64>) {
        let p = crate::pod::tests::pod(json!({"containers": [{"name": "a"}]}));
        let seen = Observed { containers, ..Observed::default() };
        let at = |s| pod::after(Timestamp::UNIX_EPOCH, s);
        assert_eq!(settles_at(&p, &seen, memory, at(now)), until.map(at));
    }

    #[test]
    fn a_replaced_container_is_shown_when_the_next_one_runs_or_after_a_second() {
        let mut m = Memory::default();
        m.replaced.insert("old".into());
        let old = || instance("old", ContainerState::Exited, 10);
        check(&m, vec![old()], 10, Some(11));
        check(&m, vec![old()], 11, None);
        check(&m, vec![instance("new", ContainerState::Created, 0), old()], 10, Some(11));
        check(&m, vec![instance("new", ContainerState::Running, 0), old()], 10, None);
        m.slot("a").starting = true;
        check(&m, vec![instance("new", ContainerState::Running, 0), old()], 10, Some(11));
        m.slot("a").waiting = Some(Waiting { reason: "ErrImagePull".into(), message: String::new() });
        check(&m, vec![old()], 10, None);
    }

    #[test]
    fn a_container_that_ended_by_itself_or_with_its_pod_is_shown_at_once() {
        let old = || instance("old", ContainerState::Exited, 10);
        check(&Memory::default(), vec![old()], 10, None);
        let mut m = Memory { ended: true, ..Memory::default() };
        m.replaced.insert("old".into());
        check(&m, vec![old()], 10, None);
    }
}
