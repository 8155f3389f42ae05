//! Node IPAM: gives every node ranges of pod addresses of its own out of the cluster's, one of each family.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::{Api, EventRecorder, EventType, Informer, PatchKind};
use coracle_meta::{Object, Status};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use serde_json::json;

use crate::prefix::Prefix;
use crate::runtime::{Action, Context, Controller, Descriptor, ObjectKey, Reconciler, name_of};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "node-controller", workers: 1 };
const COMPONENT: &str = "cidrAllocator";
/// IPv6 ranges may be cut at most so many bits finer.
const MOST_IPV6_BITS: u32 = 16;

/// The cluster's ranges of pod addresses, and how they are cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCidrs {
    /// A range, and the leading bits of each node's part.
    pools: Vec<(Prefix, u32)>,
    /// Ranges of which no node gets anything: those of services.
    kept_free: Vec<Prefix>,
}

impl NodeCidrs {
    /// Cuts `--cluster-cidr` (one range, or one of each family) into parts of so many bits. `services` are ranges of
    /// service addresses.
    ///
    /// # Errors
    /// What does not go together, in upstream's words.
    pub fn new(cluster: &[String], (v4, v6): (u32, u32), services: &[String]) -> Result<Self, String> {
        if cluster.is_empty() {
            return Err("Controller: Must specify --cluster-cidr if --allocate-node-cidrs is set".to_owned());
        }
        let mut pools = Vec::new();
        for text in cluster {
            let range = Prefix::parse(text).ok_or_else(|| format!("invalid CIDR address: {text}"))?;
            let bits = if range.address.is_ipv4() { v4 } else { v6 };
            if range.bits > bits || bits > range.width() {
                return Err(
                    "Controller: Invalid --cluster-cidr, mask size of cluster CIDR must be less than or \
                            equal to --node-cidr-mask-size configured for CIDR family"
                        .to_owned(),
                );
            }
            if range.address.is_ipv6() && bits - range.bits > MOST_IPV6_BITS {
                return Err("New CIDR set failed; the node CIDR size is too big".to_owned());
            }
            pools.push((range, bits));
        }
        match pools.as_slice() {
            [_] => {}
            [(a, _), (b, _)] if a.address.is_ipv4() != b.address.is_ipv4() => {}
            [_, _] => {
                return Err(
                    "len of ClusterCIDRs==2 and they are not configured as dual stack (at least one \
                                  from each IPFamily"
                        .to_owned(),
                );
            }
            _ => return Err(format!("length of clusterCIDRs is:{} more than max allowed of 2", pools.len())),
        }
        let kept_free = services.iter().filter_map(|text| Prefix::parse(text)).collect();
        Ok(Self { pools, kept_free })
    }
}

/// The first part of a range, from `start` on and round, that touches none of `taken`; with its index.
fn free_part((range, bits): (Prefix, u32), taken: &[Prefix], start: u64) -> Option<(u64, Prefix)> {
    let mut spans: Vec<(u64, u64)> = taken.iter().filter_map(|t| range.touched(bits, t)).collect();
    spans.sort_unstable();
    let first_free = |from: u64| {
        let mut at = from;
        for (first, last) in &spans {
            if (*first..=*last).contains(&at) {
                at = last + 1;
            }
        }
        at
    };
    let parts = range.parts(bits);
    let found = Some(first_free(start % parts.max(1))).filter(|at| *at < parts);
    let found = found.or_else(|| Some(first_free(0)).filter(|at| *at < parts))?;
    Some((found, range.part(bits, found)))
}

/// Ranges that nodes hold.
fn held(node: &Node) -> Vec<Prefix> {
    let cidrs = node.spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten());
    cidrs.filter_map(|cidr| Prefix::parse(cidr)).collect()
}

/// Starts the controller; without ranges to give there is nothing to do.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let Some(cidrs) = cx.config.node_cidrs.clone() else { return std::future::pending().boxed() };
    let nodes = cx.informers.get::<Node>();
    let reconciler = Arc::new(Ranges {
        next: Mutex::new(vec![0; cidrs.pools.len()]),
        cidrs,
        nodes: nodes.clone(),
        api: cx.client(DESCRIPTOR.name).api(),
        events: cx.recorder_as(DESCRIPTOR.name, COMPONENT),
        given: Mutex::default(),
    });
    Controller::new(DESCRIPTOR).watch_primary(&nodes).run(reconciler).boxed()
}

struct Ranges {
    cidrs: NodeCidrs,
    nodes: Informer<Node>,
    api: Api<Node>,
    events: EventRecorder,
    /// Where the search goes on in each range, so that what a node gave back is used again late.
    next: Mutex<Vec<u64>>,
    /// What was given and the informer does not show yet.
    given: Mutex<BTreeMap<String, Vec<Prefix>>>,
}

impl Ranges {
    /// Chooses a node's ranges and keeps them for it; `None` if there are none left.
    fn choose(&self, node: &Node) -> Option<Vec<Prefix>> {
        let all = self.nodes.list();
        let mut given = self.given.lock();
        given.retain(|name, _| all.iter().any(|n| name_of(&**n) == name && held(n).is_empty()));
        if let Some(known) = given.get(name_of(node)) {
            return Some(known.clone());
        }
        let mut taken: Vec<Prefix> = all.iter().flat_map(|node| held(node)).collect();
        taken.extend(given.values().flatten().chain(&self.cidrs.kept_free));
        let mut next = self.next.lock();
        let mut chosen = Vec::new();
        for (pool, next) in self.cidrs.pools.iter().zip(next.iter_mut()) {
            let (index, part) = free_part(*pool, &taken, *next)?;
            *next = index + 1;
            chosen.push(part);
        }
        given.insert(name_of(node).to_owned(), chosen.clone());
        Some(chosen)
    }

    fn tell(&self, node: &Node, status: &str) {
        let message = format!("Node {} status is now: {status}", name_of(node));
        self.events.event(node as &dyn Object, EventType::Normal, status, message);
    }
}

#[async_trait]
impl Reconciler for Ranges {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(node) = self.nodes.get("", &key.name) else { return Ok(Action::AwaitChange) };
        let has = node.spec.iter().any(|spec| spec.pod_cidrs.iter().flatten().next().is_some());
        if has || node.metadata.deletion_timestamp.is_some() {
            return Ok(Action::AwaitChange);
        }
        let Some(chosen) = self.choose(&node) else {
            self.tell(&node, "CIDRNotAvailable");
            return Err(Status::internal(format!("no range of pod addresses is left for node {}", key.name)));
        };
        let texts: Vec<String> = chosen.iter().map(Prefix::to_string).collect();
        let patch = json!({ "spec": { "podCIDR": texts[0], "podCIDRs": texts } });
        if let Err(status) = self.api.patch("", &key.name, PatchKind::Strategic, patch).await {
            self.tell(&node, "CIDRAssignmentFailed");
            return Err(status);
        }
        Ok(Action::AwaitChange)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use coracle_client::testing::FakeTransport;
    use coracle_stdx::Clock;
    use rand::Rng as _;

    use super::*;
    use crate::testing::{context, eventually, seeded};

    fn cidrs(cluster: &[&str], services: &[&str]) -> Result<NodeCidrs, String> {
        let owned = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<String>>();
        NodeCidrs::new(&owned(cluster), (24, 64), &owned(services))
    }

    #[test]
    fn ranges_that_do_not_go_together_are_refused() {
        assert!(cidrs(&["10.244.0.0/16", "fd00::/48"], &[]).is_ok());
        for bad in [&[][..], &["10.0.0.0/25"], &["fd00::/40"], &["10.0.0.0/16", "10.1.0.0/16"], &["x"]] {
            assert!(cidrs(bad, &[]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn in_any_order_of_joins_and_leaves_no_two_nodes_share_an_address() {
        let mut random = seeded(3);
        let pool = (Prefix::parse("10.0.0.0/20").expect("a range"), 24);
        let service = Prefix::parse("10.0.3.0/25").expect("a range");
        let (mut nodes, mut next): (Vec<Prefix>, u64) = (Vec::new(), 0);
        for _ in 0..2000 {
            if !nodes.is_empty() && random.random_bool(0.45) {
                nodes.swap_remove(random.random_range(0..nodes.len()));
                continue;
            }
            let taken: Vec<Prefix> = nodes.iter().copied().chain([service]).collect();
            match free_part(pool, &taken, next) {
                Some((index, part)) => {
                    assert!(!taken.iter().any(|t| t.holds(&part) || part.holds(t)), "{part} of {taken:?}");
                    next = index + 1;
                    nodes.push(part);
                }
                None => assert_eq!(nodes.len(), 15, "all but the services' part are given"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_node_gets_one_range_of_each_family_and_keeps_what_it_has() {
        let fake = FakeTransport::new(Clock::system());
        let nodes = fake.client().api::<Node>();
        let mut cx = context(&fake);
        let config = crate::ControllersConfig {
            node_cidrs: Some(cidrs(&["10.0.0.0/16", "fd00::/56"], &["10.0.1.0/24"]).expect("ranges")),
            ..(*cx.config).clone()
        };
        cx.config = Arc::new(config);
        let with =
            json!({ "metadata": { "name": "old" }, "spec": { "podCIDRs": ["10.0.0.0/24", "fd00::/64"] } });
        nodes.create("", serde_json::from_value(with).expect("a node")).await.expect("created");
        let task = tokio::spawn(run(&cx));
        for name in ["a", "b", "c"] {
            let node = json!({ "metadata": { "name": name } });
            nodes.create("", serde_json::from_value(node).expect("a node")).await.expect("created");
        }
        let all = || async {
            let list = nodes.list("", coracle_client::ListOptions::default()).await.expect("listed");
            list.iter().flat_map(|node| held(node)).map(|p| p.to_string()).collect::<BTreeSet<String>>()
        };
        eventually(|| async { all().await.len() == 8 }).await;
        assert!(!all().await.contains("10.0.1.0/24"), "that is the services'");
        task.abort();
    }
}
