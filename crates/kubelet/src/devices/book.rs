//! Who has which devices, and whom they may be given to. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::wire::ContainerAllocateResponse;
use crate::topology_manager::{Hint, NodeSet};

/// A device as its plug-in tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// It may be given away.
    pub healthy: bool,
    /// NUMA nodes that it is near to.
    pub nodes: Vec<i64>,
}

impl DeviceState {
    fn is_near(&self, nodes: NodeSet) -> bool {
        self.nodes.iter().any(|node| u32::try_from(*node).is_ok_and(|node| nodes.has(node)))
    }
}

/// Number under which devices are listed that are near to no memory node.
const NOWHERE: i64 = -1;

/// Devices of one resource that a container has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grant {
    /// Their ids.
    pub ids: BTreeSet<String>,
    /// The same by memory node, as it was when they were given.
    pub places: BTreeMap<i64, BTreeSet<String>>,
    /// What goes with them.
    pub needs: ContainerAllocateResponse,
}

/// Grants by container and resource.
type Grants = BTreeMap<String, BTreeMap<String, Grant>>;

/// The book.
#[derive(Clone, Debug, Default)]
pub struct Book {
    /// Resources that plug-ins have told of, in this life or an earlier one.
    resources: BTreeSet<String>,
    /// Grants by pod.
    pods: BTreeMap<String, Grants>,
    /// What there is; told anew by each plug-in that registers.
    devices: BTreeMap<String, BTreeMap<String, DeviceState>>,
}

/// Devices that a container may get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    /// These first: they are the pod's already.
    pub must: Vec<String>,
    /// All, those included; near neighbours together.
    pub available: Vec<String>,
}

impl Candidates {
    /// `count` of them: the pod's own, then the preferred, then the others in order.
    pub fn pick(&self, count: usize, preferred: &[String]) -> BTreeSet<String> {
        let fit = preferred.iter().filter(|id| self.available.contains(id));
        let order = self.must.iter().chain(fit).chain(&self.available);
        let mut picked = BTreeSet::new();
        for id in order {
            if picked.len() == count {
                break;
            }
            picked.insert(id.clone());
        }
        picked
    }
}

impl Book {
    /// Whether a resource is of devices.
    pub fn knows(&self, resource: &str) -> bool {
        self.resources.contains(resource)
    }

    /// All and healthy devices, by resource.
    pub fn counts(&self) -> BTreeMap<String, (usize, usize)> {
        let count = |name: &String| {
            let devices = self.devices.get(name).into_iter().flatten();
            let healthy = devices.clone().filter(|(_, d)| d.healthy).count();
            (name.clone(), (devices.count(), healthy))
        };
        self.resources.iter().map(count).collect()
    }

    /// A plug-in tells which devices there are.
    pub fn set_devices(&mut self, resource: &str, devices: BTreeMap<String, DeviceState>) {
        self.resources.insert(resource.to_owned());
        self.devices.insert(resource.to_owned(), devices);
    }

    /// A plug-in is gone: its devices are there, but nobody knows how they do.
    pub fn doubt(&mut self, resource: &str) {
        self.devices
            .get_mut(resource)
            .into_iter()
            .flat_map(|d| d.values_mut())
            .for_each(|d| d.healthy = false);
    }

    /// A plug-in has not come back.
    pub fn remove(&mut self, resource: &str) {
        self.devices.remove(resource);
    }

    /// The devices of a resource.
    pub fn devices(&self, resource: &str) -> impl Iterator<Item = (&String, &DeviceState)> {
        self.devices.get(resource).into_iter().flatten()
    }

    /// Names of the resources.
    pub fn resources(&self) -> impl Iterator<Item = &String> {
        self.resources.iter()
    }

    fn taken(&self, resource: &str) -> BTreeSet<&String> {
        let grants = self.pods.values().flat_map(BTreeMap::values).filter_map(|c| c.get(resource));
        grants.flat_map(|g| &g.ids).collect()
    }

    /// Who may be given to a container that wants `count`; `reusable` are devices of the same pod whose container
    /// has ended when this one starts. Those `near` the given memory nodes come first.
    ///
    /// # Errors
    /// Upstream's text when there are too few.
    pub fn candidates(
        &self,
        resource: &str,
        count: usize,
        reusable: &BTreeSet<String>,
        near: Option<NodeSet>,
    ) -> Result<Candidates, String> {
        let taken = self.taken(resource);
        let healthy: Vec<(&String, &DeviceState)> =
            self.devices(resource).filter(|(_, d)| d.healthy).collect();
        if healthy.is_empty() {
            return Err(format!("no healthy devices present; cannot allocate unhealthy devices {resource}"));
        }
        let again = healthy.iter().filter(|(id, _)| reusable.contains(*id));
        let mut must: Vec<String> = again.map(|(id, _)| (*id).clone()).take(count).collect();
        let needed = count - must.len();
        let is_free = |id: &String| !must.contains(id) && !taken.contains(id);
        let mut free: Vec<_> = healthy.into_iter().filter(|(id, _)| is_free(id)).collect();
        if free.len() < needed {
            return Err(format!(
                "requested number of devices unavailable for {resource}. Requested: {needed}, Available: {}",
                free.len()
            ));
        }
        let near = near.filter(|_| self.has_places(resource));
        let place = |d: &DeviceState| match near {
            Some(nodes) if d.is_near(nodes) => 0,
            Some(_) if d.nodes.is_empty() => 2,
            _ => 1,
        };
        free.sort_by_key(|(id, d)| (place(d), d.nodes.clone(), (*id).clone()));
        let aligned = free.iter().filter(|(_, d)| place(d) == 0).count();
        let ids = |list: &[(&String, &DeviceState)]| -> Vec<String> {
            list.iter().map(|(id, _)| (*id).clone()).collect()
        };
        // Where enough are near there is a choice among these only; else all of them are taken.
        let choice = if needed < aligned {
            ids(&free[..aligned])
        } else {
            must.extend(ids(&free[..aligned]));
            ids(&free[aligned..])
        };
        Ok(Candidates { available: must.iter().cloned().chain(choice).collect(), must })
    }

    /// Whether it is told of any device of a resource where it is.
    fn has_places(&self, resource: &str) -> bool {
        self.devices(resource).any(|(_, d)| !d.nodes.is_empty())
    }

    /// From which of the machine's nodes `count` devices could come, if some are the container's `own` already or may
    /// be used `again`. Nothing if the resource is not of devices; no list if their place is not known.
    pub fn hints(
        &self,
        resource: &str,
        count: usize,
        own: Option<&BTreeSet<String>>,
        again: &BTreeSet<String>,
        machine: NodeSet,
    ) -> Option<Option<Vec<Hint>>> {
        if !self.knows(resource) {
            return None;
        }
        if !self.has_places(resource) {
            return Some(None);
        }
        let taken = self.taken(resource);
        let healthy = self.devices(resource).filter(|(_, d)| d.healthy).map(|(id, _)| id);
        let free: BTreeSet<String> = match own {
            Some(own) => own.clone(),
            None => healthy.filter(|id| !taken.contains(id)).cloned().collect(),
        };
        let fits = match own {
            Some(own) => own.len() == count,
            None => free.union(again).count() >= count,
        };
        Some(Some(if fits { self.seek(resource, count, &free, again, machine) } else { Vec::new() }))
    }

    fn seek(
        &self,
        resource: &str,
        count: usize,
        free: &BTreeSet<String>,
        again: &BTreeSet<String>,
        machine: NodeSet,
    ) -> Vec<Hint> {
        let devices = || self.devices(resource);
        let nodes: NodeSet =
            devices().flat_map(|(_, d)| d.nodes.iter()).filter_map(|n| u32::try_from(*n).ok()).collect();
        let nodes = Some(nodes.and(machine)).filter(|nodes| !nodes.is_empty()).unwrap_or(machine);
        let mut least = nodes.len();
        let mut found = Vec::new();
        for nodes in nodes.combinations() {
            if devices().filter(|(_, d)| d.is_near(nodes)).count() >= count {
                least = least.min(nodes.len());
            }
            let far = |(id, d): (&String, &DeviceState)| {
                again.contains(id) && !d.nodes.is_empty() && !d.is_near(nodes)
            };
            let fits =
                devices().filter(|(id, d)| d.is_near(nodes) && (free.contains(*id) || again.contains(*id)));
            if !devices().any(far) && fits.count() >= count {
                found.push(nodes);
            }
        }
        found.into_iter().map(|n| Hint { nodes: Some(n), preferred: n.len() == least }).collect()
    }

    /// What a container has of a resource.
    pub fn grant(&self, uid: &str, container: &str, resource: &str) -> Option<&Grant> {
        self.pods.get(uid)?.get(container)?.get(resource)
    }

    /// All that a container has.
    pub fn grants(&self, uid: &str, container: &str) -> impl Iterator<Item = &Grant> {
        self.pods.get(uid).and_then(|p| p.get(container)).into_iter().flat_map(BTreeMap::values)
    }

    /// Ids that a container has, by resource.
    pub fn given(&self, uid: &str, container: &str) -> BTreeMap<String, BTreeSet<String>> {
        let grants = self.pods.get(uid).and_then(|p| p.get(container)).into_iter().flatten();
        grants.map(|(resource, grant)| (resource.clone(), grant.ids.clone())).collect()
    }

    /// Gives devices to a container, with what it needs for them.
    pub fn give(
        &mut self,
        uid: &str,
        container: &str,
        resource: &str,
        ids: BTreeSet<String>,
        needs: ContainerAllocateResponse,
    ) {
        let mut places: BTreeMap<i64, BTreeSet<String>> = BTreeMap::new();
        for id in &ids {
            let known = self.devices.get(resource).and_then(|devices| devices.get(id));
            let nodes = known.map(|device| device.nodes.clone()).unwrap_or_default();
            let nodes = if nodes.is_empty() { vec![NOWHERE] } else { nodes };
            for node in nodes {
                places.entry(node).or_default().insert(id.clone());
            }
        }
        self.keep(uid, container, resource, Grant { ids, places, needs });
    }

    /// A container has this from before.
    pub fn keep(&mut self, uid: &str, container: &str, resource: &str, grant: Grant) {
        let pod = self.pods.entry(uid.to_owned()).or_default();
        pod.entry(container.to_owned()).or_default().insert(resource.to_owned(), grant);
    }

    /// Some plug-in has told of a resource once.
    pub fn know(&mut self, resource: &str) {
        self.resources.insert(resource.to_owned());
    }

    /// All grants, with pod, container and resource.
    pub fn all(&self) -> impl Iterator<Item = (&String, &String, &String, &Grant)> {
        self.pods.iter().flat_map(|(uid, grants)| {
            grants.iter().flat_map(move |(container, of)| {
                of.iter().map(move |(resource, grant)| (uid, container, resource, grant))
            })
        })
    }

    /// Takes all from a pod; whether it had any.
    pub fn forget(&mut self, uid: &str) -> bool {
        self.pods.remove(uid).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: &str = "example.com/gpu";

    fn book(devices: &[(&str, bool, i64)]) -> Book {
        let mut book = Book::default();
        let state = |(id, healthy, node): &(&str, bool, i64)| {
            ((*id).to_owned(), DeviceState { healthy: *healthy, nodes: vec![*node] })
        };
        book.set_devices(GPU, devices.iter().map(state).collect());
        book
    }

    fn ids(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn only_healthy_and_free_devices_are_given_away() {
        let mut book = book(&[("a", true, 0), ("b", false, 0), ("c", true, 0)]);
        assert_eq!(book.counts()[GPU], (3, 2));
        let one = book.candidates(GPU, 1, &ids(&[]), None).unwrap();
        assert_eq!(one.available, ["a", "c"]);
        book.give("p1", "m", GPU, one.pick(1, &[]), Default::default());
        assert_eq!(book.candidates(GPU, 1, &ids(&[]), None).unwrap().available, ["c"]);
        let short = book.candidates(GPU, 2, &ids(&[]), None).unwrap_err();
        let text = "requested number of devices unavailable for example.com/gpu. Requested: 2, Available: 1";
        assert_eq!(short, text);
        assert!(book.forget("p1") && !book.forget("p1"));
        assert_eq!(book.candidates(GPU, 2, &ids(&[]), None).unwrap().available.len(), 2);
    }

    #[test]
    fn devices_of_ended_init_containers_are_used_again_first() {
        let mut book = book(&[("a", true, 0), ("b", true, 0)]);
        book.give("p", "init", GPU, ids(&["b"]), Default::default());
        let again = book.candidates(GPU, 1, &ids(&["b"]), None).unwrap();
        assert_eq!((again.must.clone(), again.pick(1, &["a".into()])), (vec!["b".to_owned()], ids(&["b"])));
    }

    #[test]
    fn preference_counts_where_it_names_what_is_available_and_neighbours_come_together() {
        let book = book(&[("a", true, 1), ("b", true, 0), ("c", true, 1), ("d", true, 0)]);
        let all = book.candidates(GPU, 2, &ids(&[]), None).unwrap();
        assert_eq!(all.pick(2, &[]), ids(&["b", "d"]));
        assert_eq!(all.pick(2, &["c".into(), "x".into(), "a".into()]), ids(&["a", "c"]));
    }

    #[test]
    fn devices_near_the_given_nodes_come_first() {
        let book = book(&[("a", true, 1), ("b", true, 0), ("c", true, 1), ("d", true, 0)]);
        let near = |node: u32| Some(NodeSet::default().with(node));
        let few = book.candidates(GPU, 1, &ids(&[]), near(1)).unwrap();
        assert_eq!(few.pick(1, &["b".into(), "c".into()]), ids(&["c"]), "one that is far is not taken");
        let many = book.candidates(GPU, 3, &ids(&[]), near(1)).unwrap();
        assert_eq!(many.must, ["a", "c"]);
        assert_eq!(many.pick(3, &["d".into()]), ids(&["a", "c", "d"]));
    }

    #[test]
    fn hints_name_the_nodes_whose_devices_are_free() {
        let mut book = book(&[("a", true, 0), ("b", true, 0), ("c", true, 1), ("d", false, 1)]);
        let machine: NodeSet = (0..4).collect();
        let hints = |book: &Book, count, own: Option<&[&str]>, again: &[&str]| -> Vec<(Vec<u32>, bool)> {
            let own = own.map(ids);
            let list = book.hints(GPU, count, own.as_ref(), &ids(again), machine).unwrap().unwrap();
            list.iter().map(|h| (h.nodes.unwrap().nodes().collect(), h.preferred)).collect()
        };
        assert_eq!(hints(&book, 1, None, &[]), [(vec![0], true), (vec![1], true), (vec![0, 1], false)]);
        assert_eq!(hints(&book, 2, None, &[]), [(vec![0], true), (vec![0, 1], false)]);
        assert_eq!(hints(&book, 4, None, &[]), [], "one is not healthy");
        book.give("p", "init", GPU, ids(&["c"]), Default::default());
        assert_eq!(hints(&book, 1, None, &["c"]), [(vec![1], true), (vec![0, 1], false)], "it is used again");
        assert_eq!(hints(&book, 1, Some(&["c"]), &[]), [(vec![1], true), (vec![0, 1], false)]);
        assert_eq!(hints(&book, 2, Some(&["c"]), &[]), [], "it asks for more than it has");
        assert_eq!(book.hints("x/y", 1, None, &ids(&[]), machine), None);
        let nowhere = DeviceState { healthy: true, nodes: Vec::new() };
        book.set_devices("x/y", [("z".to_owned(), nowhere)].into());
        assert_eq!(book.hints("x/y", 1, None, &ids(&[]), machine), Some(None));
    }

    #[test]
    fn devices_of_a_plugin_that_is_gone_are_counted_but_not_given() {
        let mut book = book(&[("a", true, 0)]);
        book.doubt(GPU);
        assert_eq!(book.counts()[GPU], (1, 0));
        assert!(book.candidates(GPU, 1, &ids(&[]), None).unwrap_err().starts_with("no healthy devices"));
        book.remove(GPU);
        assert_eq!(book.counts()[GPU], (0, 0), "the node says that there is none, not nothing");
    }
}
