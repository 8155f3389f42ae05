//! From what Services need to elements added and removed, set by set.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;

use super::guard::Guard;
use super::program::{self, Balancer, SharedChain};
use super::ruleset::{Action, Backend, Frontend, RuleSet};
use crate::conntrack::Stale;
use crate::nft::{Batch, Data, Element, Verdict};
use crate::pods::port_bytes;

const UDP: u8 = 17;

/// Elements to remove and to add, and the chains that they go to.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    chains: BTreeSet<SharedChain>,
    removed: BTreeMap<&'static str, Vec<Element>>,
    added: BTreeMap<&'static str, Vec<Element>>,
    pub(crate) stale: Vec<Stale>,
}

impl Changes {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty()
    }

    /// How many elements are removed and added.
    pub fn size(&self) -> (usize, usize) {
        let count = |sets: &BTreeMap<_, Vec<Element>>| sets.values().map(Vec::len).sum();
        (count(&self.removed), count(&self.added))
    }

    fn remove(&mut self, set: &'static str, key: Vec<u8>) {
        self.removed.entry(set).or_default().push(Element { key, data: Data::None });
    }

    fn add(&mut self, set: &'static str, key: Vec<u8>, data: Data) {
        self.added.entry(set).or_default().push(Element { key, data });
    }

    /// Writes the changes as commands. Chains in `known` stand already; new ones are entered there.
    pub(crate) fn encode(&self, batch: &mut Batch, known: &mut HashSet<SharedChain>) {
        for chain in &self.chains {
            if known.insert(chain.clone()) {
                program::add_shared(batch, chain);
            }
        }
        self.removed.iter().for_each(|(set, elements)| batch.delete_elements(set, elements));
        self.added.iter().for_each(|(set, elements)| batch.add_elements(set, elements));
    }
}

/// A frontend as the beginning of a key: with its address, or (node port) without.
fn key(frontend: Frontend) -> Vec<u8> {
    let mut key = Vec::with_capacity(20);
    if let Some(address) = frontend.address {
        key.extend_from_slice(&address.octets());
    }
    key.extend_from_slice(&[frontend.protocol, 0, 0, 0]);
    key.extend_from_slice(&port_bytes(frontend.port));
    key
}

fn backend_bytes((address, port): Backend) -> Vec<u8> {
    [address.octets(), port_bytes(port)].concat()
}

fn indexed(frontend: Frontend, index: usize) -> Vec<u8> {
    let index = u32::try_from(index).unwrap_or(u32::MAX);
    [key(frontend), index.to_ne_bytes().to_vec()].concat()
}

fn balancer(frontend: Frontend, action: &Action) -> Option<Balancer> {
    let Action::Balance { backends, masquerade, affinity } = action else { return None };
    Some(Balancer {
        node_port: frontend.address.is_none(),
        backends: u32::try_from(backends.len()).unwrap_or(u32::MAX),
        masquerade: *masquerade,
        affinity: *affinity,
    })
}

/// The backends that clients may be bound to: one port per address, since clients are bound to an address.
fn sticky(action: Option<&Action>) -> Vec<Backend> {
    let mut bound = match action {
        Some(Action::Balance { backends, affinity: Some(_), .. }) => backends.clone(),
        _ => Vec::new(),
    };
    bound.dedup_by_key(|backend| backend.0);
    bound
}

fn backends(action: Option<&Action>) -> &[Backend] {
    match action {
        Some(Action::Balance { backends, .. }) => backends,
        _ => &[],
    }
}

/// The changes of one frontend; `None` means that it is not there.
fn change(frontend: Frontend, old: Option<&Action>, new: Option<&Action>, out: &mut Changes) {
    if old == new {
        return;
    }
    let sets = program::sets(frontend.address.is_none());
    let is_rejected = |action: Option<&Action>| matches!(action, Some(Action::Reject));
    match (is_rejected(old), is_rejected(new)) {
        (true, false) => out.remove(sets.rejected, key(frontend)),
        (false, true) => out.add(sets.rejected, key(frontend), Data::None),
        _ => {}
    }
    let before = old.and_then(|a| balancer(frontend, a));
    let after = new.and_then(|a| balancer(frontend, a));
    if before != after {
        if before.is_some() {
            out.remove(sets.services, key(frontend));
        }
        if let Some(balancer) = after {
            out.chains.insert(SharedChain::Balancer(balancer));
            out.add(sets.services, key(frontend), Data::Verdict(Verdict::Goto(balancer.chain())));
        }
    }
    let (was, is) = (backends(old), backends(new));
    for index in 0..was.len().max(is.len()) {
        if was.get(index) == is.get(index) {
            continue;
        }
        if index < was.len() {
            out.remove(sets.endpoints, indexed(frontend, index));
        }
        if let Some(backend) = is.get(index) {
            out.add(sets.endpoints, indexed(frontend, index), Data::Bytes(backend_bytes(*backend)));
        }
    }
    let with = |backend: &Backend| [key(frontend), backend.0.octets().to_vec()].concat();
    let (was_sticky, is_sticky) = (sticky(old), sticky(new));
    for backend in was_sticky.iter().filter(|b| !is_sticky.contains(b)) {
        out.remove(sets.sticky, with(backend));
    }
    for backend in is_sticky.iter().filter(|b| !was_sticky.contains(b)) {
        out.add(sets.sticky, with(backend), Data::Bytes(backend_bytes(*backend)));
    }
    if frontend.protocol == UDP {
        let gone = was.iter().filter(|b| !is.contains(b)).copied().collect();
        out.stale.push(Stale { address: frontend.address, port: frontend.port, backends: gone });
    }
}

/// The changes of who reaches a frontend.
fn change_guard(frontend: Frontend, old: Option<&Guard>, new: Option<&Guard>, out: &mut Changes) {
    if old == new {
        return;
    }
    if old.is_some() {
        out.remove(program::GUARDED.name, key(frontend));
    }
    if let Some(guard) = new {
        out.chains.insert(SharedChain::Guard(guard.clone()));
        out.add(program::GUARDED.name, key(frontend), Data::Verdict(Verdict::Jump(guard.chain())));
    }
}

/// A Service's namespace and name.
pub type Key = (String, String);

/// What stands in the maps, by Service.
#[derive(Debug, Default)]
pub struct Maps {
    services: HashMap<Key, RuleSet>,
    owners: HashMap<Frontend, Key>,
    /// Services that lost a frontend to another; tried again when one is given up.
    losers: HashSet<Key>,
    hairpins: HashMap<Ipv4Addr, usize>,
    cluster_ips: HashMap<Ipv4Addr, usize>,
}

fn count(counts: &mut HashMap<Ipv4Addr, usize>, address: Ipv4Addr, up: bool) -> bool {
    let n = counts.entry(address).or_insert(0);
    if up {
        *n += 1;
        return *n == 1;
    }
    *n = n.saturating_sub(1);
    let gone = *n == 0;
    if gone {
        counts.remove(&address);
    }
    gone
}

fn addresses(rules: &RuleSet) -> BTreeSet<Ipv4Addr> {
    rules.frontends.values().flat_map(|a| backends(Some(a))).map(|b| b.0).collect()
}

impl Maps {
    /// Changes what stands for a Service to `new`. Returns Services to look at again, since a frontend
    /// became free.
    pub fn update(&mut self, service: &Key, mut new: RuleSet, out: &mut Changes) -> Vec<Key> {
        let old = self.services.remove(service).unwrap_or_default();
        let mut lost = false;
        new.frontends.retain(|frontend, _| {
            let mine = self.owners.get(frontend).is_none_or(|owner| owner == service);
            lost |= !mine;
            mine
        });
        let kept = &new.frontends;
        new.guards.retain(|frontend, _| kept.contains_key(frontend));
        for frontend in old.frontends.keys().chain(new.frontends.keys()).collect::<BTreeSet<_>>() {
            change(*frontend, old.frontends.get(frontend), new.frontends.get(frontend), out);
            change_guard(*frontend, old.guards.get(frontend), new.guards.get(frontend), out);
        }
        let mut freed = false;
        for frontend in old.frontends.keys().filter(|f| !new.frontends.contains_key(f)) {
            self.owners.remove(frontend);
            freed = true;
        }
        for frontend in new.frontends.keys() {
            self.owners.insert(*frontend, service.clone());
        }
        self.count_addresses(&old, &new, out);
        if new == RuleSet::default() {
            self.losers.remove(service);
        } else {
            self.services.insert(service.clone(), new);
        }
        if lost {
            self.losers.insert(service.clone());
        } else {
            self.losers.remove(service);
        }
        if freed { self.losers.drain().filter(|k| k != service).collect() } else { Vec::new() }
    }

    fn count_addresses(&mut self, old: &RuleSet, new: &RuleSet, out: &mut Changes) {
        let (was, is) = (addresses(old), addresses(new));
        let twice = |a: Ipv4Addr| [a.octets(), a.octets()].concat();
        for address in is.difference(&was) {
            if count(&mut self.hairpins, *address, true) {
                out.add(program::HAIRPIN.name, twice(*address), Data::None);
            }
        }
        for address in was.difference(&is) {
            if count(&mut self.hairpins, *address, false) {
                out.remove(program::HAIRPIN.name, twice(*address));
            }
        }
        for address in new.cluster_ips.difference(&old.cluster_ips) {
            if count(&mut self.cluster_ips, *address, true) {
                out.add(program::CLUSTER_IPS.name, address.octets().to_vec(), Data::None);
            }
        }
        for address in old.cluster_ips.difference(&new.cluster_ips) {
            if count(&mut self.cluster_ips, *address, false) {
                out.remove(program::CLUSTER_IPS.name, address.octets().to_vec());
            }
        }
        cancel(out, program::HAIRPIN.name);
        cancel(out, program::CLUSTER_IPS.name);
    }
}

/// An element removed by one Service and added by another in the same changes stays: the order removals,
/// additions makes both harmless. The reverse, added and then removed again, must vanish from both lists.
fn cancel(out: &mut Changes, set: &'static str) {
    let (Some(removed), Some(added)) = (out.removed.get_mut(set), out.added.get_mut(set)) else { return };
    let both: HashSet<Vec<u8>> =
        removed.iter().filter(|r| added.iter().any(|a| a.key == r.key)).map(|r| r.key.clone()).collect();
    removed.retain(|e| !both.contains(&e.key));
    added.retain(|e| !both.contains(&e.key));
}

/// The changes that lead from one rule set to another.
pub fn diff(old: &RuleSet, new: &RuleSet) -> Changes {
    let (mut maps, key) = (Maps::default(), Key::default());
    maps.update(&key, old.clone(), &mut Changes::default());
    let mut changes = Changes::default();
    maps.update(&key, new.clone(), &mut changes);
    changes
}
