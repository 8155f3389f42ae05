//! NodeResourcesFit: a node takes a pod while what is left covers its requests; emptier nodes rank higher.

use std::borrow::Cow;

use crate::cache::NodeInfo;
use crate::framework::{ClusterEvent, CycleState, Filter, MAX_NODE_SCORE, PluginDef, Score, Verdict, events};

pub(super) const DEF: PluginDef = PluginDef {
    wakes_on: events(&[
        ClusterEvent::NodeAdd,
        ClusterEvent::NodeAllocatable,
        ClusterEvent::AssignedPodDelete,
        ClusterEvent::PodUpdate,
    ]),
    filter: Some(&NodeResourcesFit),
    score: Some(&NodeResourcesFit),
    ..PluginDef::named("NodeResourcesFit")
};

struct NodeResourcesFit;

impl Filter for NodeResourcesFit {
    fn filter(&self, pod: &CycleState, node: &NodeInfo) -> Verdict {
        let mut reasons: Vec<Cow<'static, str>> = Vec::new();
        let mut hopeless = false;
        if node.pods + 1 > node.allowed_pods {
            reasons.push("Too many pods".into());
        }
        let (wanted, has, used) = (&pod.requests, &node.allocatable, &node.requested);
        let mut check = |wanted: i64, has: i64, used: i64, reason: &dyn Fn() -> Cow<'static, str>| {
            if wanted > 0 && wanted > has - used {
                reasons.push(reason());
                hopeless |= wanted > has;
            }
        };
        check(wanted.cpu, has.cpu, used.cpu, &|| "Insufficient cpu".into());
        check(wanted.memory, has.memory, used.memory, &|| "Insufficient memory".into());
        check(wanted.storage, has.storage, used.storage, &|| "Insufficient ephemeral-storage".into());
        for (name, amount) in &wanted.others {
            let of =
                |amounts: &std::collections::BTreeMap<String, i64>| amounts.get(name).copied().unwrap_or(0);
            check(*amount, of(&has.others), of(&used.others), &|| format!("Insufficient {name}").into());
        }
        match (reasons.is_empty(), hopeless) {
            (true, _) => Verdict::Success,
            (false, true) => Verdict::Unresolvable(reasons),
            (false, false) => Verdict::Unschedulable(reasons),
        }
    }
}

/// The share of `capacity` that is left, in hundredths.
fn left(used: i64, capacity: i64) -> i64 {
    if capacity == 0 || used > capacity { 0 } else { (capacity - used) * MAX_NODE_SCORE / capacity }
}

impl Score for NodeResourcesFit {
    /// LeastAllocated over CPU and memory, of equal weight.
    fn score(&self, pod: &CycleState, node: &NodeInfo) -> i64 {
        let (cpu, memory) = node.score_requested;
        let parts = [
            (cpu + pod.score_requests.0, node.allocatable.cpu),
            (memory + pod.score_requests.1, node.allocatable.memory),
        ];
        let known = parts.iter().filter(|(_, capacity)| *capacity > 0);
        let (sum, count) =
            known.fold((0, 0), |(sum, n), (used, capacity)| (sum + left(*used, *capacity), n + 1));
        if count == 0 { 0 } else { sum / count }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plugins::testing::{node, pod, requests, verdict};

    #[test]
    fn every_shortage_is_named_and_what_never_fits_is_hopeless() {
        let mut half = node("a", json!({}));
        half.change(&pod(requests("3", "5Gi")), 1);
        assert_eq!(verdict(&DEF, &pod(requests("1", "3Gi")), &half), "ok");
        assert_eq!(verdict(&DEF, &pod(requests("1001m", "1Gi")), &half), "? Insufficient cpu");
        assert_eq!(
            verdict(&DEF, &pod(requests("2", "4Gi")), &half),
            "? Insufficient cpu, Insufficient memory"
        );
        assert_eq!(verdict(&DEF, &pod(requests("5", "1Gi")), &half), "! Insufficient cpu");
        assert_eq!(verdict(&DEF, &pod(json!({})), &half), "ok");
        let gpu =
            pod(json!({"containers": [{"name": "c", "resources": {"requests": {"nvidia.com/gpu": "1"}}}]}));
        assert_eq!(verdict(&DEF, &gpu, &half), "! Insufficient nvidia.com/gpu");
        let full = node("a", json!({"status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "0"}}}));
        assert_eq!(verdict(&DEF, &pod(json!({})), &full), "? Too many pods");
    }

    #[test]
    fn score_is_the_mean_of_what_is_left() {
        let empty = node("a", json!({}));
        // 3 of 4 CPUs and 6 of 8 GiB are left.
        assert_eq!(NodeResourcesFit.score(&pod(requests("1", "2Gi")), &empty), 75);
        // Containers without requests count as 100m and 200 MiB: (97 + 97) / 2.
        assert_eq!(NodeResourcesFit.score(&pod(json!({})), &empty), 97);
        assert_eq!(NodeResourcesFit.score(&pod(requests("9", "2Gi")), &empty), 37);
    }
}
