//! NodeResourcesBalancedAllocation: nodes whose CPU and memory would be used to the same degree rank higher.

use crate::cache::NodeInfo;
use crate::framework::{CycleState, MAX_NODE_SCORE, PluginDef, Score};
use crate::pod_info::PodInfo;

pub(super) const DEF: PluginDef =
    PluginDef { score: Some(&BalancedAllocation), ..PluginDef::named("NodeResourcesBalancedAllocation") };

struct BalancedAllocation;

impl Score for BalancedAllocation {
    /// A pod without requests unbalances nothing.
    fn applies(&self, pod: &PodInfo) -> bool {
        !pod.requests.is_zero()
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "fractions of capacities"
    )]
    fn score(&self, pod: &CycleState, node: &NodeInfo) -> i64 {
        let fraction = |used: i64, capacity: i64| (used as f64 / capacity as f64).min(1.0);
        let (has, used) = (&node.allocatable, &node.requested);
        if has.cpu == 0 || has.memory == 0 {
            return MAX_NODE_SCORE;
        }
        let cpu = fraction(used.cpu + pod.requests.cpu, has.cpu);
        let memory = fraction(used.memory + pod.requests.memory, has.memory);
        // The standard deviation of two numbers is half their distance.
        let deviation = (cpu - memory).abs() / 2.0;
        ((1.0 - deviation) * MAX_NODE_SCORE as f64) as i64
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plugins::testing::{node, pod, requests};

    #[test]
    fn equal_use_scores_highest() {
        let empty = node("a", json!({}));
        assert_eq!(BalancedAllocation.score(&pod(requests("2", "4Gi")), &empty), 100);
        assert_eq!(BalancedAllocation.score(&pod(requests("4", "0")), &empty), 50);
        assert!(!BalancedAllocation.applies(&pod(json!({}))));
    }
}
