//! Zones of nodes: how many of each are ready, and how fast those that are not may lose their pods. Pure.
//!
//! Many nodes that fall silent at once rather tell of a broken network than of broken nodes. So evictions slow down
//! where much of a zone is not ready, and stop where no node of the whole cluster is.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;

use super::decide::ready_status;

const REGION: [&str; 2] = ["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"];
const ZONE: [&str; 2] = ["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"];
/// Nodes with this label do not count when a zone is judged.
const EXCLUDED: &str = "node.kubernetes.io/exclude-disruption";
/// So many nodes may be gone without that the zone counts as disrupted.
const FEW: usize = 2;

/// How fast nodes are tainted so that their pods go: upstream's flags.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvictionRates {
    /// Nodes per second and zone.
    pub normal: f64,
    /// The same in large zones of which much is not ready.
    pub secondary: f64,
    /// Zones of more nodes are large; in smaller ones evictions stop instead.
    pub large_cluster: usize,
    /// Share of the nodes that must not be ready for that.
    pub unhealthy_zone: f64,
}

impl EvictionRates {
    /// Upstream's values.
    pub const UPSTREAM: Self = Self { normal: 0.1, secondary: 0.01, large_cluster: 50, unhealthy_zone: 0.55 };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Normal,
    Partial,
    Full,
}

#[derive(Debug, Default)]
struct Zone {
    ready: usize,
    not_ready: usize,
    /// When a node was tainted last.
    last: Option<Timestamp>,
}

impl Zone {
    fn state(&self, rates: &EvictionRates) -> State {
        let all = self.ready + self.not_ready;
        #[expect(clippy::cast_precision_loss, reason = "there are fewer nodes")]
        let share = self.not_ready as f64 / all.max(1) as f64;
        match self.not_ready {
            1.. if self.ready == 0 => State::Full,
            gone if gone > FEW && share >= rates.unhealthy_zone => State::Partial,
            _ => State::Normal,
        }
    }

    fn rate(&self, rates: &EvictionRates) -> f64 {
        match self.state(rates) {
            State::Partial if self.ready + self.not_ready > rates.large_cluster => rates.secondary,
            State::Partial => 0.0,
            // The zone as a whole is gone; others take its pods.
            State::Normal | State::Full => rates.normal,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    zone: String,
    is_ready: bool,
    counts: bool,
}

/// Whether a node may be tainted now so that its pods go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is the node's turn, which is taken by this answer.
    Now,
    /// Ask again after this long.
    In(Duration),
    /// Not before the zone changes.
    Held,
}

/// What a change of one node means for others.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Turn {
    /// Nodes to look at again.
    pub again: Vec<String>,
    /// Some node is ready again after none was: what was not heard meanwhile tells nothing.
    pub resumed: bool,
}

/// All nodes, by zone.
#[derive(Debug)]
pub(super) struct Zones {
    rates: EvictionRates,
    nodes: HashMap<String, Known>,
    zones: BTreeMap<String, Zone>,
}

/// The zone of a node: region and zone together, empty if neither is known.
fn zone_of(node: &Node) -> String {
    let label = |keys: [&str; 2]| {
        let labels = node.metadata.labels.as_ref()?;
        keys.iter().find_map(|key| labels.get(*key)).map(String::as_str)
    };
    match (label(REGION).unwrap_or(""), label(ZONE).unwrap_or("")) {
        ("", "") => String::new(),
        (region, zone) => format!("{region}/{zone}"),
    }
}

impl Zones {
    pub(super) fn new(rates: EvictionRates) -> Self {
        Self { rates, nodes: HashMap::new(), zones: BTreeMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether no node of the cluster is ready: then none loses its pods.
    pub(super) fn is_stopped(&self) -> bool {
        let mut counted = self.zones.values().filter(|zone| zone.ready + zone.not_ready > 0).peekable();
        counted.peek().is_some() && counted.all(|zone| zone.state(&self.rates) == State::Full)
    }

    /// Takes note of a node.
    pub(super) fn observe(&mut self, name: &str, node: &Node) -> Turn {
        let labels = node.metadata.labels.as_ref();
        let known = Known {
            zone: zone_of(node),
            is_ready: ready_status(node) == "True",
            counts: !labels.is_some_and(|labels| labels.contains_key(EXCLUDED)),
        };
        if self.nodes.get(name) == Some(&known) {
            return Turn::default();
        }
        self.change(name, Some(known))
    }

    /// Takes note of a node's end.
    pub(super) fn forget(&mut self, name: &str) -> Turn {
        self.change(name, None)
    }

    fn change(&mut self, name: &str, new: Option<Known>) -> Turn {
        let was_stopped = self.is_stopped();
        let old = self.nodes.remove(name);
        let touched: Vec<String> = old.iter().chain(&new).map(|known| known.zone.clone()).collect();
        let before: Vec<f64> = touched.iter().map(|zone| self.rate(zone)).collect();
        for (known, is_new) in old.iter().map(|known| (known, false)).chain(new.iter().map(|n| (n, true))) {
            let zone = self.zones.entry(known.zone.clone()).or_default();
            let count = if known.is_ready { &mut zone.ready } else { &mut zone.not_ready };
            match (known.counts, is_new) {
                (false, _) => {}
                (true, true) => *count += 1,
                (true, false) => *count = count.saturating_sub(1),
            }
        }
        if let Some(new) = new {
            self.nodes.insert(name.to_owned(), new);
        }
        let is_stopped = self.is_stopped();
        let changed = |known: &Known| {
            let of_zone = touched.iter().zip(&before).find(|(zone, _)| **zone == known.zone);
            of_zone.is_some_and(|(zone, before)| self.rate(zone).total_cmp(before).is_ne())
        };
        let concerned = |known: &Known| was_stopped != is_stopped || (!known.is_ready && changed(known));
        let again = self.nodes.iter().filter(|(_, known)| concerned(known));
        Turn { again: again.map(|(name, _)| name.clone()).collect(), resumed: was_stopped && !is_stopped }
    }

    fn rate(&self, zone: &str) -> f64 {
        self.zones.get(zone).map_or(self.rates.normal, |zone| zone.rate(&self.rates))
    }

    /// Asks for a node's turn.
    pub(super) fn admit(&mut self, name: &str, now: Timestamp) -> Admission {
        let Some(known) = self.nodes.get(name) else { return Admission::Held };
        let rate = self.rate(&known.zone);
        let Some(zone) = self.zones.get_mut(&known.zone).filter(|_| rate > 0.0) else {
            return Admission::Held;
        };
        let step = Duration::try_from_secs_f64(1.0 / rate).unwrap_or(Duration::MAX);
        let since = zone.last.map(|last| Duration::try_from(now.duration_since(last)).unwrap_or_default());
        match since.map(|since| step.saturating_sub(since)) {
            Some(wait) if !wait.is_zero() => Admission::In(wait),
            _ => {
                zone.last = Some(now);
                Admission::Now
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(zone: &str, is_ready: bool) -> Node {
        let status = if is_ready { "True" } else { "Unknown" };
        let labels = json!({ "topology.kubernetes.io/zone": zone });
        serde_json::from_value(json!({ "metadata": { "labels": labels },
            "status": { "conditions": [{ "type": "Ready", "status": status }] } }))
        .expect("a node")
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    fn cluster(zones: &[(&str, usize, usize)]) -> Zones {
        let mut all = Zones::new(EvictionRates::UPSTREAM);
        for (zone, ready, not_ready) in zones {
            for i in 0..ready + not_ready {
                all.observe(&format!("{zone}{i}"), &node(zone, i < *ready));
            }
        }
        all
    }

    #[test]
    fn one_node_of_a_zone_goes_every_ten_seconds() {
        let mut zones = cluster(&[("a", 8, 2)]);
        assert_eq!(zones.admit("a8", at(0)), Admission::Now);
        assert_eq!(zones.admit("a9", at(3)), Admission::In(Duration::from_secs(7)));
        assert_eq!(zones.admit("a9", at(10)), Admission::Now);
    }

    #[test]
    fn small_zones_hold_when_most_of_their_nodes_are_gone_and_large_ones_slow_down() {
        let mut small = cluster(&[("a", 2, 3)]);
        assert_eq!(small.admit("a4", at(0)), Admission::Held);
        let turn = small.observe("a2", &node("a", true));
        assert!(!turn.resumed && turn.again.len() == 2, "those that waited: {turn:?}");
        assert_eq!(small.admit("a4", at(0)), Admission::Now);
        let mut large = cluster(&[("a", 20, 40)]);
        assert_eq!(large.admit("a50", at(0)), Admission::Now);
        assert_eq!(large.admit("a51", at(1)), Admission::In(Duration::from_secs(99)));
        let mut two_gone = cluster(&[("a", 1, 2)]);
        assert_eq!(two_gone.admit("a2", at(0)), Admission::Now, "two are few in any zone");
    }

    #[test]
    fn a_zone_that_is_gone_loses_its_pods_to_others_unless_all_are_gone() {
        let mut zones = cluster(&[("a", 0, 5), ("b", 1, 0)]);
        assert!(!zones.is_stopped());
        assert_eq!(zones.admit("a0", at(0)), Admission::Now);
        let turn = zones.observe("b0", &node("b", false));
        assert!(zones.is_stopped() && turn.again.len() == 6 && !turn.resumed);
        let turn = zones.observe("b0", &node("b", true));
        assert!(!zones.is_stopped() && turn.again.len() == 6 && turn.resumed);
        assert!(zones.forget("b0").again.len() == 5 && zones.is_stopped());
    }

    #[test]
    fn nodes_that_are_excluded_do_not_count() {
        let mut zones = cluster(&[("a", 1, 1)]);
        let mut excluded = node("a", true);
        excluded.metadata.labels.get_or_insert_default().insert(EXCLUDED.to_owned(), String::new());
        zones.observe("a0", &excluded);
        assert!(zones.is_stopped());
    }
}
