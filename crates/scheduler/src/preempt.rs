//! Makes room for a pod: which pods of lower priority give way, and where. Pure.
//!
//! The node is chosen by, in this order: fewest budgets violated, lowest of the highest priorities of victims, lowest
//! sum of priorities, fewest victims, youngest of the most important victims.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_meta::selector::LabelSelector;
use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::cache::Cache;
use crate::cycle::{Cycle, NO_VICTIMS, NOT_HELPFUL, Trial};
use crate::framework::Verdict;
use crate::pod_info::PodInfo;

/// What preempted pods say as the reason of their condition `DisruptionTarget`.
pub const REASON: &str = "PreemptionByScheduler";

/// A node, and the pods that give way there.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The node's name.
    pub node: String,
    /// The pods, the most important first.
    pub victims: Vec<Arc<PodInfo>>,
    violations: usize,
}

/// A disruption budget as preemption sees it.
#[derive(Debug)]
pub struct Budget {
    namespace: String,
    selector: LabelSelector,
    allowed: i32,
    /// Pods whose disruption is counted already.
    disrupted: Vec<String>,
}

impl Budget {
    /// From the API's object.
    pub fn new(budget: &PodDisruptionBudget) -> Self {
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let status = budget.status.clone().unwrap_or_default();
        Self {
            namespace: budget.metadata.namespace.clone().unwrap_or_default(),
            selector: LabelSelector::from_optional_api(selector).unwrap_or_else(|_| LabelSelector::nothing()),
            allowed: status.disruptions_allowed.unwrap_or(0),
            disrupted: status.disrupted_pods.unwrap_or_default().into_keys().collect(),
        }
    }

    fn is_about(&self, pod: &PodInfo) -> bool {
        !pod.labels.is_empty()
            && pod.namespace == self.namespace
            && !self.selector.is_empty()
            && self.selector.matches(&pod.labels)
            && !self.disrupted.contains(&pod.name)
    }
}

/// Why the pod may not make others give way.
pub fn ineligible(pod: &PodInfo, cache: &Cache) -> Option<&'static str> {
    let object = pod.pod();
    let policy = object.spec.as_ref().and_then(|spec| spec.preemption_policy.as_deref());
    if policy == Some("Never") {
        return Some("not eligible due to preemptionPolicy=Never");
    }
    let node =
        cache.nomination(&pod.uid).and_then(|node| cache.find(node)).and_then(|slot| cache.node(slot))?;
    let gives_way = |other: &Arc<PodInfo>| {
        let object = other.pod();
        let said = coracle_meta::pod::condition(&object, "DisruptionTarget");
        other.leaving
            && other.priority < pod.priority
            && said.is_some_and(|c| c.reason.as_deref() == Some(REASON))
    };
    node.placed.iter().any(gives_way).then_some("not eligible due to a terminating pod on the nominated node")
}

/// The best node to make room on; else how many nodes gave each reason.
///
/// # Errors
/// The reasons.
pub fn find(
    cycle: &Cycle,
    pod: &PodInfo,
    cache: &Cache,
    budgets: &[Budget],
) -> Result<Candidate, BTreeMap<String, usize>> {
    let (mut found, mut reasons): (Vec<Candidate>, BTreeMap<String, usize>) = (Vec::new(), BTreeMap::new());
    cycle.trials(pod, cache, |_, trial| {
        let outcome = trial.map_or_else(|| Err(vec![NOT_HELPFUL.to_owned()]), |t| victims(t, pod, budgets));
        match outcome {
            Ok(candidate) => found.push(candidate),
            Err(why) => why.into_iter().for_each(|why| *reasons.entry(why).or_insert(0) += 1),
        }
    });
    let best = found.into_iter().min_by_key(|candidate| {
        let priorities = || candidate.victims.iter().map(|pod| pod.priority);
        let highest = priorities().max().unwrap_or(i64::MIN);
        let top = candidate.victims.iter().filter(|pod| pod.priority == highest);
        let oldest = top.map(|pod| started(pod)).min();
        // Priorities may be negative: each counts for at least one.
        let sum: i64 = priorities().map(|p| p + i64::from(i32::MAX) + 1).sum();
        (candidate.violations, highest, sum, candidate.victims.len(), Reverse(oldest))
    });
    if best.is_none() && reasons.is_empty() {
        // No node was looked at.
        reasons.insert(NOT_HELPFUL.to_owned(), cache.node_count());
    }
    best.ok_or(reasons)
}

fn started(pod: &PodInfo) -> Timestamp {
    let object = pod.pod();
    object.status.as_ref().and_then(|status| status.start_time.as_ref()).map_or(Timestamp::MAX, |t| t.0)
}

/// Takes all pods of lower priority away, and gives back those that fit beside the new one.
fn victims(mut trial: Trial<'_>, pod: &PodInfo, budgets: &[Budget]) -> Result<Candidate, Vec<String>> {
    let mut lower: Vec<Arc<PodInfo>> =
        trial.node.placed.iter().filter(|other| other.priority < pod.priority).cloned().collect();
    if lower.is_empty() {
        return Err(vec![NO_VICTIMS.to_owned()]);
    }
    lower.iter().for_each(|other| trial.change(other, -1));
    if let Verdict::Unschedulable(why) | Verdict::Unresolvable(why) = trial.judge() {
        return Err(why.into_iter().map(std::borrow::Cow::into_owned).collect());
    }
    lower.sort_by_key(|other| (Reverse(other.priority), started(other)));
    let (violating, others) = by_budgets(lower, budgets);
    let mut gone: Vec<Arc<PodInfo>> = Vec::new();
    let mut violations = 0;
    for (other, violates) in
        violating.into_iter().map(|p| (p, true)).chain(others.into_iter().map(|p| (p, false)))
    {
        trial.change(&other, 1);
        if trial.judge() != Verdict::Success {
            trial.change(&other, -1);
            violations += usize::from(violates);
            gone.push(other);
        }
    }
    gone.sort_by_key(|other| (Reverse(other.priority), started(other)));
    Ok(Candidate { node: trial.node.name, victims: gone, violations })
}

/// Those whose removal a budget does not allow, given those before them; and the others.
fn by_budgets(pods: Vec<Arc<PodInfo>>, budgets: &[Budget]) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut left: Vec<i32> = budgets.iter().map(|budget| budget.allowed).collect();
    pods.into_iter().partition(|pod| {
        let mut violates = false;
        for (budget, left) in budgets.iter().zip(&mut left) {
            if budget.is_about(pod) {
                *left -= 1;
                violates |= *left < 0;
            }
        }
        violates
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plugins::{self, testing};

    fn pod(name: &str, priority: i64, cpu: &str, labels: &Value) -> Arc<PodInfo> {
        let object = json!({"metadata": {"name": name, "namespace": "default", "uid": name, "labels": labels},
            "spec": {"priority": priority, "containers": [
                {"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
        Arc::new(PodInfo::new(Arc::new(serde_json::from_value(object).expect("pod"))))
    }

    fn cluster(nodes: &[&str]) -> Cache {
        let mut cache = Cache::default();
        for name in nodes {
            let node = json!({"metadata": {"name": name},
                "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}});
            cache.set_node(&serde_json::from_value(node).expect("node"));
        }
        cache
    }

    fn look(
        cache: &Cache,
        wanted: &PodInfo,
        budgets: &[Budget],
    ) -> Result<(String, Vec<String>), BTreeMap<String, usize>> {
        let mut cycle = Cycle::new(plugins::ALL, Box::new(|_| 0));
        cycle.schedule(wanted, cache).expect_err("no room");
        let names = |c: Candidate| (c.node, c.victims.iter().map(|v| v.name.clone()).collect());
        find(&cycle, wanted, cache, budgets).map(names)
    }

    #[test]
    fn the_least_important_pods_give_way_and_only_as_many_as_needed() {
        let mut cache = cluster(&["a", "b"]);
        for (name, priority, cpu, node) in
            [("a1", 5, "2", "a"), ("a2", 5, "2", "a"), ("b1", 1, "3", "b"), ("b2", 2, "1", "b")]
        {
            cache.assume(pod(name, priority, cpu, &json!({})), node);
        }
        let wanted = pod("w", 10, "2", &json!({}));
        assert_eq!(look(&cache, &wanted, &[]), Ok(("b".into(), vec!["b1".into()])));
        let equal = pod("w", 1, "2", &json!({}));
        let none = look(&cache, &equal, &[]).expect_err("nobody is less important");
        assert_eq!(none, BTreeMap::from([(NO_VICTIMS.to_owned(), 2)]));
        let some = look(&cache, &pod("w", 2, "2", &json!({})), &[]);
        assert_eq!(some, Ok(("b".into(), vec!["b1".into()])));
    }

    #[test]
    fn budgets_are_respected_where_there_is_a_choice() {
        let mut cache = cluster(&["a", "b"]);
        cache.assume(pod("a1", 1, "4", &json!({"app": "guarded"})), "a");
        cache.assume(pod("b1", 5, "4", &json!({})), "b");
        let budget = json!({"metadata": {"name": "g", "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": "guarded"}}}, "status": {"disruptionsAllowed": 0,
            "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}});
        let budgets = [Budget::new(&serde_json::from_value(budget).expect("budget"))];
        let wanted = pod("w", 10, "2", &json!({}));
        assert_eq!(look(&cache, &wanted, &budgets), Ok(("b".into(), vec!["b1".into()])));
        assert_eq!(look(&cache, &wanted, &[]), Ok(("a".into(), vec!["a1".into()])));
    }

    #[test]
    fn room_that_was_made_is_kept_against_less_important_pods() {
        let mut cache = cluster(&["a"]);
        let wanted = pod("w", 10, "3", &json!({}));
        cache.nominate(wanted.clone(), "a");
        let mut cycle = Cycle::new(plugins::ALL, Box::new(|_| 0));
        let small = pod("s", 1, "2", &json!({}));
        let refused = cycle.schedule(&small, &cache).expect_err("kept").to_string();
        assert!(refused.starts_with("0/1 nodes are available: 1 Insufficient cpu."), "{refused}");
        assert!(cycle.schedule(&pod("h", 20, "2", &json!({})), &cache).is_ok(), "the more important may");
        assert!(cycle.schedule(&wanted, &cache).is_ok());
    }

    #[test]
    fn affinity_to_pods_that_run_is_judged_by_topology() {
        let mut cache = Cache::default();
        for (name, zone) in [("a", "x"), ("b", "x"), ("c", "y")] {
            let node = json!({"metadata": {"name": name, "labels": {"zone": zone, "kubernetes.io/hostname": name}},
                "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}});
            cache.set_node(&serde_json::from_value(node).expect("node"));
        }
        let with = |name: &str, spec: Value| {
            let mut spec = spec;
            spec["containers"] = json!([{"name": "c"}]);
            let object = json!({"metadata": {"name": name, "namespace": "default", "uid": name,
                "labels": {"app": "web"}}, "spec": spec});
            Arc::new(PodInfo::new(Arc::new(serde_json::from_value(object).expect("pod"))))
        };
        let term =
            |key: &str| json!([{"topologyKey": key, "labelSelector": {"matchLabels": {"app": "web"}}}]);
        let near = |key: &str| {
            json!({"affinity": {"podAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": term(key)}}})
        };
        let apart = |key: &str| {
            json!({"affinity": {"podAntiAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": term(key)}}})
        };
        let mut cycle = Cycle::new(plugins::ALL, Box::new(|_| 0));
        let mut place = |cache: &mut Cache, pod: Arc<PodInfo>| -> Result<String, String> {
            let slot = cycle.schedule(&pod, cache).map_err(|e| e.to_string())?;
            let node = cache.node(slot).expect("node").name.clone();
            cache.assume(pod, &node);
            Ok(node)
        };
        // The first of its kind may go anywhere; those after it follow.
        let first = place(&mut cache, with("1", near("zone"))).expect("first");
        assert_eq!(first, "a");
        assert_eq!(place(&mut cache, with("2", near("zone"))).as_deref(), Ok("b"));
        assert_eq!(place(&mut cache, with("3", apart("zone"))).as_deref(), Ok("c"));
        let refused = place(&mut cache, with("4", json!({}))).expect("zone x is open");
        assert!(["a", "b"].contains(&refused.as_str()), "the pod in y keeps its like away: {refused}");
        let message = place(&mut cache, with("5", apart("zone"))).expect_err("no zone is left");
        assert!(
            message.starts_with("0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules."),
            "{message}"
        );
        let _ = testing::pod(json!({}));
    }

    #[test]
    fn spread_keeps_topologies_within_the_skew() {
        let mut cache = cluster(&[]);
        for (name, zone) in [("a", "x"), ("b", "y")] {
            let node = json!({"metadata": {"name": name, "labels": {"zone": zone}},
                "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}}});
            cache.set_node(&serde_json::from_value(node).expect("node"));
        }
        let bare = json!({"metadata": {"name": "bare"},
            "status": {"allocatable": {"cpu": "64", "memory": "64Gi", "pods": "110"}}});
        cache.set_node(&serde_json::from_value(bare).expect("node"));
        let mut cycle = Cycle::new(plugins::ALL, Box::new(|_| 0));
        let mut count = BTreeMap::new();
        for number in 0..6 {
            let object = json!({"metadata": {"name": "p", "namespace": "default", "uid": number.to_string(),
                "labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}],
                "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
                    "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]}});
            let pod = Arc::new(PodInfo::new(Arc::new(serde_json::from_value(object).expect("pod"))));
            let slot = cycle.schedule(&pod, &cache).expect("fits");
            let node = cache.node(slot).expect("node").name.clone();
            *count.entry(node.clone()).or_insert(0) += 1;
            cache.assume(pod, &node);
            let (x, y) = (count.get("a").copied().unwrap_or(0_i32), count.get("b").copied().unwrap_or(0));
            assert!((x - y).abs() <= 1, "{count:?}");
        }
        assert_eq!(count.get("bare"), None, "without the label it is no topology");
    }
}
