//! Requests and limits as cgroup values; cgroup parents by quality of service.

use std::collections::BTreeMap;

use coracle_cri::v1::LinuxResources;
use coracle_meta::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

/// CFS period in microseconds.
const PERIOD: i64 = 100_000;
/// Least shares the kernel takes.
const MIN_SHARES: i64 = 2;
/// Least quota the kernel takes.
const MIN_QUOTA: i64 = 1_000;

fn amount(r: &ResourceRequirements, limits: bool, name: &str) -> Option<Quantity> {
    let side = if limits { &r.limits } else { &r.requests };
    side.as_ref()?.get(name).map(Quantity::from_api).filter(|q| !q.is_zero())
}

/// What a container asks for: its requests, and its limits where it has no request.
pub fn requests(container: &Container) -> BTreeMap<String, Quantity> {
    let of = |r: &ResourceRequirements| {
        let all = r.limits.iter().chain(&r.requests).flatten();
        all.map(|(name, amount)| (name.clone(), Quantity::from_api(amount))).collect()
    };
    container.resources.as_ref().map(of).unwrap_or_default()
}

fn milli(q: Quantity) -> i64 {
    i64::try_from(q.milli()).unwrap_or(i64::MAX / 2048)
}

pub fn shares(milli: i64) -> i64 {
    (milli * 1024 / 1000).clamp(MIN_SHARES, 262_144)
}

fn quota(milli: i64) -> i64 {
    (milli * PERIOD / 1000).max(MIN_QUOTA)
}

/// How readily the kernel kills a container when memory runs out: guaranteed last, best effort first.
pub fn oom_score(pod: &Pod, container: &Container, memory_capacity: i64) -> i64 {
    match coracle_meta::pod::qos(pod) {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let resources = container.resources.as_ref();
            let request = resources.and_then(|r| amount(r, false, "memory")).map_or(0, Quantity::value);
            let share = 1000_i128 * i128::from(request) / i128::from(memory_capacity.max(1));
            i64::try_from(1000 - share).unwrap_or(3).clamp(3, 999)
        }
    }
}

/// cgroup values of a container.
pub fn of_container(pod: &Pod, container: &Container, memory_capacity: i64) -> LinuxResources {
    let empty = ResourceRequirements::default();
    let r = container.resources.as_ref().unwrap_or(&empty);
    let limit = amount(r, true, "cpu").map(milli);
    let request = amount(r, false, "cpu").map(milli).or(limit);
    LinuxResources {
        cpu_period: if limit.is_some() { PERIOD } else { 0 },
        cpu_quota: limit.map_or(0, quota),
        cpu_shares: request.map_or(MIN_SHARES, shares),
        memory_limit_in_bytes: amount(r, true, "memory").map_or(0, Quantity::value),
        oom_score_adj: oom_score(pod, container, memory_capacity),
        ..LinuxResources::default()
    }
}

/// Limits a container's huge pages: of each size that the machine has, to what it asks for, else to none.
pub fn limit_huge_pages(container: &Container, sizes: impl Iterator<Item = i64>, to: &mut LinuxResources) {
    for size in sizes {
        let name = format!("hugepages-{}", Quantity::from_bytes(size).to_api().0);
        let limit = container.resources.as_ref().and_then(|r| amount(r, true, &name));
        let bytes = u64::try_from(limit.map_or(0, Quantity::value)).unwrap_or(0);
        to.hugepages.insert(page_size(size), bytes);
    }
}

/// A size of pages as cgroups name it: `64KB`, `2MB`, `1GB`.
fn page_size(bytes: i64) -> String {
    let units = [(30, "GB"), (20, "MB"), (10, "KB")];
    let fits = units.iter().find(|(shift, _)| bytes >= 1 << shift);
    fits.map_or_else(|| format!("{bytes}B"), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

/// cgroup values of a whole pod: limits only where every container has one.
pub fn of_pod(pod: &Pod) -> LinuxResources {
    let requests = coracle_meta::pod::requests(pod);
    let limits = coracle_meta::pod::limits(pod);
    let all_limited = |name: &str| {
        let own = crate::pod::spec(pod).resources.as_ref();
        own.is_some_and(|r| amount(r, true, name).is_some())
            || crate::pod::containers(pod)
                .all(|(c, _)| c.resources.as_ref().is_some_and(|r| amount(r, true, name).is_some()))
    };
    let get = |map: &BTreeMap<String, Quantity>, name: &str| map.get(name).copied().filter(|q| !q.is_zero());
    let cpu_limit = get(&limits, "cpu").filter(|_| all_limited("cpu")).map(milli);
    let memory = get(&limits, "memory").filter(|_| all_limited("memory"));
    LinuxResources {
        cpu_period: if cpu_limit.is_some() { PERIOD } else { 0 },
        cpu_quota: cpu_limit.map_or(0, quota),
        cpu_shares: get(&requests, "cpu").map(milli).map_or(MIN_SHARES, shares),
        memory_limit_in_bytes: memory.map_or(0, Quantity::value),
        ..LinuxResources::default()
    }
}

/// The cgroup under which a pod's containers go: guaranteed pods at the root, others under their class.
pub fn cgroup_parent(root: &str, pod: &Pod) -> String {
    let uid = crate::names::uid(pod);
    match coracle_meta::pod::qos(pod) {
        "Guaranteed" => format!("{root}/pod{uid}"),
        class => format!("{root}/{}/pod{uid}", class.to_lowercase()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn requests_become_shares_and_limits_become_quota_and_memory() {
        let p = pod(json!({"containers": [{"name": "a", "resources": {
            "requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"cpu": "500m", "memory": "128Mi"}}}]}));
        let r = of_container(&p, &crate::pod::spec(&p).containers[0], 1 << 30);
        assert_eq!((r.cpu_shares, r.cpu_quota, r.cpu_period), (256, 50_000, 100_000));
        assert_eq!(r.memory_limit_in_bytes, 128 << 20);
        assert_eq!(r.oom_score_adj, 938);
        assert_eq!(cgroup_parent("/x", &p), "/x/burstable/podu1");
    }

    #[test]
    fn huge_pages_are_limited_to_what_is_asked_for_else_to_none() {
        let p =
            pod(json!({"containers": [{"name": "a", "resources": {"limits": {"hugepages-2Mi": "4Mi"}}}]}));
        let mut r = LinuxResources::default();
        limit_huge_pages(&crate::pod::spec(&p).containers[0], [2 << 20, 1 << 30].into_iter(), &mut r);
        assert_eq!(r.hugepages, [("2MB".to_owned(), 4 << 20), ("1GB".to_owned(), 0)].into());
    }

    #[test]
    fn a_best_effort_container_gets_the_least_and_dies_first() {
        let p = pod(json!({"containers": [{"name": "a"}]}));
        let r = of_container(&p, &crate::pod::spec(&p).containers[0], 1 << 30);
        assert_eq!((r.cpu_shares, r.cpu_quota, r.oom_score_adj), (2, 0, 1000));
        assert_eq!(of_pod(&p).memory_limit_in_bytes, 0);
    }
}
