//! The topology manager: CPUs, memory and devices of a container are to be near each other. Every provider says from
//! which memory nodes it could serve a container, the policy merges that to one hint or refuses the pod, and the
//! providers give what the hint says.

mod merge;
mod numa;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Container, Pod};

pub use merge::{Hint, Hints, TopologyPolicy};
pub use numa::{NodeSet, NumaNode, read as read_nodes};

use crate::pod::containers;
use crate::state::Failure;
use merge::Merger;

/// Above it the combinations of nodes are too many.
const MOST_NODES: usize = 8;

/// For what a hint is sought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TopologyScope {
    /// For each container.
    #[default]
    Container,
    /// For all containers of a pod together.
    Pod,
}

/// What the topology manager is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopologyConfig {
    /// Which pods are taken.
    pub policy: TopologyPolicy,
    /// For what hints are sought.
    pub scope: TopologyScope,
    /// `prefer-closest-numa-nodes`.
    pub prefer_closest: bool,
    /// `max-allowable-numa-nodes`.
    pub most_nodes: usize,
}

impl TopologyConfig {
    /// Nobody looks where resources are.
    pub const NONE: Self = Self {
        policy: TopologyPolicy::None,
        scope: TopologyScope::Container,
        prefer_closest: false,
        most_nodes: MOST_NODES,
    };

    /// Options as upstream's configuration has them.
    ///
    /// # Errors
    /// One that is not known, or cannot be; upstream's text.
    pub fn options(&mut self, options: &BTreeMap<String, String>) -> Result<(), String> {
        for (name, value) in options {
            match name.as_str() {
                "prefer-closest-numa-nodes" => {
                    self.prefer_closest =
                        boolean(value).map_err(|e| format!("bad value for option {name:?}: {e}"))?;
                }
                "max-allowable-numa-nodes" => {
                    let most = value.parse();
                    self.most_nodes = most
                        .map_err(|e| format!("unable to convert policy option to integer {name:?}: {e}"))?;
                    if self.most_nodes < MOST_NODES {
                        return Err(format!(
                            "the minimum value of {name:?} should not be less than {MOST_NODES}"
                        ));
                    }
                }
                _ => return Err(format!("unknown Topology Manager Policy option: {name:?}")),
            }
        }
        Ok(())
    }
}

/// A truth value as Go reads it.
///
/// # Errors
/// It is none; Go's text.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {text:?}: invalid syntax")),
    }
}

/// How often something was asked for, and how often it was not to be had.
#[derive(Debug, Default)]
pub struct Counts {
    asked: AtomicU64,
    refused: AtomicU64,
}

impl Counts {
    /// Counts one answer.
    pub fn note<T, E>(&self, answer: &Result<T, E>) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.refused.fetch_add(answer.is_err().into(), Ordering::Relaxed);
    }
    /// Both figures.
    pub fn read(&self) -> (u64, u64) {
        (self.asked.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }
}

/// Who gives containers something that has a place.
#[async_trait]
pub trait HintProvider: Send + Sync {
    /// From where a container could be served; empty where nothing is given, or nobody looks at its place.
    fn hints(&self, pod: &Pod, container: &Container) -> Hints;
    /// From where all containers of a pod could be served.
    fn pod_hints(&self, pod: &Pod) -> Hints;
    /// Gives a container what it asks for, once; from `near`, as far as that goes.
    ///
    /// # Errors
    /// Upstream's refusal.
    async fn allocate(&self, pod: &Pod, container: &Container, near: Hint) -> Result<(), Failure>;
    /// A container starts: init containers before it need theirs no more.
    fn starts(&self, _pod: &Pod, _container: &Container) {}
    /// A pod needs its own no more.
    fn forget(&self, uid: &str);
}

/// The topology manager.
#[derive(Debug)]
pub struct TopologyManager {
    config: TopologyConfig,
    machine: Vec<NumaNode>,
    /// One pod at a time is given its resources.
    turn: tokio::sync::Mutex<()>,
    /// Pods that came, and those that were refused.
    pub counts: Counts,
}

impl TopologyManager {
    /// For a machine with these nodes.
    ///
    /// # Errors
    /// It cannot be done on this machine; upstream's text.
    pub fn new(config: TopologyConfig, machine: Vec<NumaNode>) -> Result<Self, String> {
        if config.policy != TopologyPolicy::None {
            if machine.len() > config.most_nodes {
                return Err(format!(
                    "unsupported on machines with more than {} NUMA Nodes",
                    config.most_nodes
                ));
            }
            if config.prefer_closest && machine.iter().any(|n| n.distances.is_empty()) && machine.len() > 1 {
                return Err(
                    "cannot discover NUMA topology: error getting NUMA distances from cadvisor".into()
                );
            }
        }
        Ok(Self { config, machine, turn: tokio::sync::Mutex::default(), counts: Counts::default() })
    }

    /// Gives a pod's containers what they ask of the providers; all or nothing.
    ///
    /// # Errors
    /// Upstream's refusal.
    pub async fn admit(&self, providers: &[&dyn HintProvider], pod: &Pod) -> Result<(), Failure> {
        let _turn = self.turn.lock().await;
        let given = self.give(providers, pod).await;
        self.counts.note(&given);
        if given.is_err() {
            providers.iter().for_each(|p| p.forget(crate::names::uid(pod)));
        }
        given
    }

    async fn give(&self, providers: &[&dyn HintProvider], pod: &Pod) -> Result<(), Failure> {
        let for_pod = match (self.config.policy, self.config.scope) {
            (TopologyPolicy::None, _) => Some(Hint::default()),
            (_, TopologyScope::Pod) => {
                Some(self.merge(providers.iter().map(|p| p.pod_hints(pod)).collect())?)
            }
            (_, TopologyScope::Container) => None,
        };
        for (container, _) in containers(pod) {
            let near = match for_pod {
                Some(hint) => hint,
                None => self.merge(providers.iter().map(|p| p.hints(pod, container)).collect())?,
            };
            for provider in providers {
                provider.allocate(pod, container, near).await?;
            }
        }
        Ok(())
    }

    fn merge(&self, hints: Vec<Hints>) -> Result<Hint, Failure> {
        let TopologyConfig { policy, prefer_closest, .. } = self.config;
        let (hint, admitted) = Merger { policy, prefer_closest, machine: &self.machine }.merge(&hints);
        if admitted { Ok(hint) } else { Err(refusal()) }
    }
}

fn refusal() -> Failure {
    Failure {
        reason: "TopologyAffinityError".to_owned(),
        message: "Resources cannot be allocated with Topology locality".to_owned(),
    }
}

#[cfg(test)]
mod tests;
