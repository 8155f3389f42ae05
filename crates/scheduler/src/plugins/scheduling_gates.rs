//! SchedulingGates: a pod with gates waits outside the queue until they are removed.

use crate::framework::{ClusterEvent, PluginDef, PreEnqueue, Verdict, events};
use crate::pod_info::PodInfo;

pub(super) const DEF: PluginDef = PluginDef {
    wakes_on: events(&[ClusterEvent::PodUpdate]),
    pre_enqueue: Some(&SchedulingGates),
    ..PluginDef::named("SchedulingGates")
};

struct SchedulingGates;

impl PreEnqueue for SchedulingGates {
    fn pre_enqueue(&self, pod: &PodInfo) -> Verdict {
        if pod.gates.is_empty() {
            return Verdict::Success;
        }
        Verdict::unresolvable(format!("waiting for scheduling gates: [{}]", pod.gates.join(" ")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plugins::testing::pod;

    #[test]
    fn a_gated_pod_waits() {
        let gated = pod(json!({"schedulingGates": [{"name": "a"}, {"name": "b"}]}));
        assert_eq!(
            SchedulingGates.pre_enqueue(&gated),
            Verdict::unresolvable("waiting for scheduling gates: [a b]")
        );
        assert_eq!(SchedulingGates.pre_enqueue(&pod(json!({}))), Verdict::Success);
    }
}
