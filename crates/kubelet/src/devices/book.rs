//! Who has which devices, and whom they may be given to. Pure; kept on disk as JSON.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// A device as its plug-in tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceState {
    /// It may be given away.
    pub healthy: bool,
    /// NUMA nodes that it is near to.
    pub nodes: Vec<i64>,
}

/// A mount that a device needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NeededMount {
    pub container_path: String,
    pub host_path: String,
    pub read_only: bool,
}

/// A device node that a device needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NeededNode {
    pub container_path: String,
    pub host_path: String,
    pub permissions: String,
}

/// What a container needs for its devices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Needs {
    pub envs: BTreeMap<String, String>,
    pub mounts: Vec<NeededMount>,
    pub devices: Vec<NeededNode>,
    pub annotations: BTreeMap<String, String>,
    pub cdi_devices: Vec<String>,
}

/// Devices of one resource that a container has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Their ids.
    pub ids: BTreeSet<String>,
    /// What goes with them.
    pub needs: Needs,
}

/// Grants by container and resource.
type Grants = BTreeMap<String, BTreeMap<String, Grant>>;

/// The book.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Book {
    /// Resources that plug-ins have told of, in this life or an earlier one.
    resources: BTreeSet<String>,
    /// Grants by pod.
    pods: BTreeMap<String, Grants>,
    /// What there is; told anew by each plug-in that registers.
    #[serde(skip)]
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
    /// Whether any of these resources is of devices.
    pub fn knows_any<'a>(&self, names: impl IntoIterator<Item = &'a String>) -> bool {
        names.into_iter().any(|n| self.resources.contains(n))
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
    /// has ended when this one starts.
    ///
    /// # Errors
    /// Upstream's text when there are too few.
    pub fn candidates(
        &self,
        resource: &str,
        count: usize,
        reusable: &BTreeSet<String>,
    ) -> Result<Candidates, String> {
        let taken = self.taken(resource);
        let healthy: Vec<(&String, &DeviceState)> =
            self.devices(resource).filter(|(_, d)| d.healthy).collect();
        if healthy.is_empty() {
            return Err(format!("no healthy devices present; cannot allocate unhealthy devices {resource}"));
        }
        let is_free = |id: &String| reusable.contains(id) || !taken.contains(id);
        let mut free: Vec<_> = healthy.into_iter().filter(|(id, _)| is_free(id)).collect();
        if free.len() < count {
            return Err(format!(
                "requested number of devices unavailable for {resource}. Requested: {count}, Available: {}",
                free.len()
            ));
        }
        free.sort_by_key(|(id, d)| (!reusable.contains(*id), d.nodes.clone(), (*id).clone()));
        let available: Vec<String> = free.into_iter().map(|(id, _)| id.clone()).collect();
        let must = available.iter().filter(|id| reusable.contains(*id)).take(count).cloned().collect();
        Ok(Candidates { must, available })
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

    /// Gives devices to a container.
    pub fn give(&mut self, uid: &str, container: &str, resource: &str, grant: Grant) {
        let pod = self.pods.entry(uid.to_owned()).or_default();
        pod.entry(container.to_owned()).or_default().insert(resource.to_owned(), grant);
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
        let one = book.candidates(GPU, 1, &ids(&[])).unwrap();
        assert_eq!(one.available, ["a", "c"]);
        book.give("p1", "m", GPU, Grant { ids: one.pick(1, &[]), needs: Needs::default() });
        assert_eq!(book.candidates(GPU, 1, &ids(&[])).unwrap().available, ["c"]);
        let short = book.candidates(GPU, 2, &ids(&[])).unwrap_err();
        let text = "requested number of devices unavailable for example.com/gpu. Requested: 2, Available: 1";
        assert_eq!(short, text);
        assert!(book.forget("p1") && !book.forget("p1"));
        assert_eq!(book.candidates(GPU, 2, &ids(&[])).unwrap().available.len(), 2);
    }

    #[test]
    fn devices_of_ended_init_containers_are_used_again_first() {
        let mut book = book(&[("a", true, 0), ("b", true, 0)]);
        book.give("p", "init", GPU, Grant { ids: ids(&["b"]), needs: Needs::default() });
        let again = book.candidates(GPU, 1, &ids(&["b"])).unwrap();
        assert_eq!((again.must.clone(), again.pick(1, &["a".into()])), (vec!["b".to_owned()], ids(&["b"])));
    }

    #[test]
    fn preference_counts_where_it_names_what_is_available_and_neighbours_come_together() {
        let book = book(&[("a", true, 1), ("b", true, 0), ("c", true, 1), ("d", true, 0)]);
        let all = book.candidates(GPU, 2, &ids(&[])).unwrap();
        assert_eq!(all.pick(2, &[]), ids(&["b", "d"]));
        assert_eq!(all.pick(2, &["c".into(), "x".into(), "a".into()]), ids(&["a", "c"]));
    }

    #[test]
    fn devices_of_a_plugin_that_is_gone_are_counted_but_not_given() {
        let mut book = book(&[("a", true, 0)]);
        book.doubt(GPU);
        assert_eq!(book.counts()[GPU], (1, 0));
        assert!(book.candidates(GPU, 1, &ids(&[])).unwrap_err().starts_with("no healthy devices"));
        book.remove(GPU);
        assert_eq!(book.counts()[GPU], (0, 0), "the node says that there is none, not nothing");
    }

    #[test]
    fn grants_are_kept_and_devices_are_asked_for_anew() {
        let mut book = book(&[("a", true, 0)]);
        let needs = Needs { cdi_devices: vec!["v/c=0".into()], ..Needs::default() };
        book.give("p", "m", GPU, Grant { ids: ids(&["a"]), needs });
        let text = serde_json::to_string(&book).unwrap();
        let read: Book = serde_json::from_str(&text).unwrap();
        assert_eq!(read.grant("p", "m", GPU), book.grant("p", "m", GPU));
        assert_eq!(read.counts()[GPU], (0, 0));
    }
}
