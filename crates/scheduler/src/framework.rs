//! What plugins implement: the extension points that are in use, and what they answer.
//!
//! The points and their order are those of
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/scheduling-framework/>. A plugin is a unit
//! struct that implements the traits of its points, and one [`PluginDef`] that lists them.

use std::borrow::Cow;

use coracle_client::Client;
use coracle_meta::Status;
use futures::future::BoxFuture;

use crate::cache::{Cache, NodeInfo};
use crate::pod_info::PodInfo;
use crate::pod_terms::Labels;

/// The highest score of a plugin.
pub const MAX_NODE_SCORE: i64 = 100;

/// Why a node or pod was turned away, in words that users see.
pub type Reasons = Vec<Cow<'static, str>>;

/// What a plugin says about a pod and a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The pod may run there.
    Success,
    /// Not now: removing pods from the node could help. The pod waits for one of the plugin's events.
    Unschedulable(Reasons),
    /// Not there: removing pods would not help. The pod waits for one of the plugin's events.
    Unresolvable(Reasons),
}

impl Verdict {
    /// Turned away for one reason; removing pods could help.
    pub fn unschedulable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Unschedulable(vec![reason.into()])
    }
    /// Turned away for one reason; removing pods would not help.
    pub fn unresolvable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Unresolvable(vec![reason.into()])
    }
}

/// What can make a rejected pod schedulable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterEvent {
    /// A node came.
    NodeAdd,
    /// A node's allocatable resources changed.
    NodeAllocatable,
    /// A node's labels changed.
    NodeLabel,
    /// A node's taints or its `unschedulable` changed.
    NodeTaint,
    /// A pod that was on a node ended, went away or needs less.
    AssignedPodDelete,
    /// The waiting pod itself changed.
    PodUpdate,
    /// A pod came to be on a node, or its labels changed.
    AssignedPodAdd,
    /// A claim, a volume or a storage class changed.
    Volume,
    /// A resource claim, a device class or a resource slice changed.
    Device,
}

impl ClusterEvent {
    /// The event's bit in a set.
    pub const fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// A set of events.
pub const fn events(all: &[ClusterEvent]) -> u16 {
    let mut set = 0;
    let mut n = 0;
    while n < all.len() {
        set |= all[n].bit();
        n += 1;
    }
    set
}

/// What plugins learn about a pod before they look at nodes, kept for the whole cycle, by plugin.
pub type CycleState = PodInfo;

/// Decides whether a pod may enter the queue.
pub trait PreEnqueue: Sync {
    /// Success, or why the pod waits outside. It is asked again when the pod changes.
    fn pre_enqueue(&self, pod: &PodInfo) -> Verdict;
}

/// Turns nodes away.
pub trait Filter: Sync {
    /// Whether the plugin has anything to say about this pod: if not, its filter is skipped on all nodes.
    fn applies(&self, _pod: &PodInfo) -> bool {
        true
    }
    /// Whether the pod may run on the node, given what runs there.
    fn filter(&self, state: &CycleState, node: &NodeInfo) -> Verdict;
}

/// How raw scores become scores of 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalize {
    /// They are.
    None,
    /// The highest raw score becomes 100.
    Highest,
    /// The highest raw score becomes 0, zero becomes 100.
    Lowest,
}

/// Ranks the nodes that are left.
pub trait Score: Sync {
    /// Whether the plugin ranks nodes for this pod.
    fn applies(&self, _pod: &PodInfo) -> bool {
        true
    }
    /// The node's raw score; higher is better.
    fn score(&self, state: &CycleState, node: &NodeInfo) -> i64;
    /// How raw scores are scaled.
    fn normalize(&self) -> Normalize {
        Normalize::None
    }
}

/// Turns a pod away before any node is looked at.
pub trait PreFilter: Sync {
    /// Why no node can take the pod; `None` if some may.
    fn pre_filter(&self, pod: &PodInfo, cache: &Cache) -> Option<String>;
}

/// Judges nodes by what runs on other nodes too. Asked after the filters, in each cycle anew.
pub trait ClusterWide: Sync {
    /// Counts what matters for this pod; `None`: the plugin has nothing to say about it.
    fn prepare(&self, pod: &PodInfo, cache: &Cache) -> Option<Box<dyn Prepared>>;
}

/// What a plugin counted for a pod.
pub trait Prepared {
    /// Whether the pod may run on the node.
    fn filter(&self, pod: &PodInfo, node: &NodeInfo) -> Verdict;
    /// Scores of 0 to 100 for the nodes that are left; `None`: all are equally good.
    fn score(&self, _pod: &PodInfo, _nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        None
    }
    /// Counts another pod in (`sign` 1) or out (`sign` -1) on a node; `namespace` are its namespace's labels.
    fn change(&mut self, pod: &PodInfo, other: &PodInfo, namespace: &Labels, node: &NodeInfo, sign: i64);
    /// A copy, to try changes on.
    fn duplicate(&self) -> Box<dyn Prepared>;
}

/// Orders the queue.
pub trait QueueSort: Sync {
    /// The pod's rank; the highest is scheduled first, the oldest first among equals.
    fn rank(&self, pod: &PodInfo) -> i64;
}

/// Carries a decision out.
pub trait Bind: Sync {
    /// Tells the API that the pod runs on the node.
    fn bind<'a>(
        &'a self,
        client: &'a Client,
        pod: &'a PodInfo,
        node: &'a str,
    ) -> BoxFuture<'a, Result<(), Status>>;
}

/// A plugin: its name, its weight when scores are summed, and its extension points.
#[derive(Clone, Copy)]
pub struct PluginDef {
    /// Upstream's name.
    pub name: &'static str,
    /// Weight of its score.
    pub weight: i64,
    /// Events that may make a pod schedulable that this plugin turned away; see [`events`].
    pub wakes_on: u16,
    /// Before the queue.
    pub pre_enqueue: Option<&'static dyn PreEnqueue>,
    /// Order of the queue.
    pub queue_sort: Option<&'static dyn QueueSort>,
    /// Before nodes are looked at.
    pub pre_filter: Option<&'static dyn PreFilter>,
    /// Turning nodes away.
    pub filter: Option<&'static dyn Filter>,
    /// Judging nodes by the whole cluster.
    pub cluster_wide: Option<&'static dyn ClusterWide>,
    /// Ranking nodes.
    pub score: Option<&'static dyn Score>,
    /// Binding.
    pub bind: Option<&'static dyn Bind>,
}

impl std::fmt::Debug for PluginDef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl PluginDef {
    /// A plugin of weight 1 without extension points: the base of each plugin's value.
    pub const fn named(name: &'static str) -> Self {
        Self {
            name,
            weight: 1,
            wakes_on: 0,
            pre_enqueue: None,
            queue_sort: None,
            pre_filter: None,
            filter: None,
            cluster_wide: None,
            score: None,
            bind: None,
        }
    }
}
