//! Pools of devices that a node can reach: the newest slices of each, in an order that drivers choose by names. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use coracle_meta::placement::selects_node;
use coracle_meta::quantity::Quantity;
use k8s_openapi::api::core::v1::NodeSelector;
use k8s_openapi::api::resource::v1::{Device, ResourceSlice};

use super::{Allocated, Id};
use crate::cache::NodeInfo;

/// A counter: its set and its name.
pub(super) type Counter = (String, String);

/// A device and the slice that it stands in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found<'a> {
    pub slice: &'a ResourceSlice,
    pub device: &'a Device,
}

impl Found<'_> {
    pub fn id(&self) -> Id {
        let spec = &self.slice.spec;
        (spec.driver.clone(), spec.pool.name.clone(), self.device.name.clone())
    }

    /// Whether it may be used on the node, where each device says so for itself.
    pub fn reaches(&self, node: &NodeInfo) -> bool {
        self.slice.spec.per_device_node_selection != Some(true) || device_matches(self.device, node)
    }

    /// Amounts of counters that it needs.
    pub fn counters(&self) -> impl Iterator<Item = (Counter, Quantity)> {
        self.device.consumes_counters.iter().flatten().flat_map(|consumption| {
            consumption.counters.iter().map(|(name, counter)| {
                ((consumption.counter_set.clone(), name.clone()), Quantity::from_api(&counter.value))
            })
        })
    }
}

/// The devices of one pool.
#[derive(Debug, Default)]
pub(super) struct Pool<'a> {
    pub driver: String,
    pub name: String,
    /// Slices are missing: the driver is at work.
    pub is_incomplete: bool,
    /// The driver contradicts itself.
    pub is_invalid: bool,
    /// Those that the node may reach, in the order in which they are tried.
    pub devices: Vec<Found<'a>>,
    /// What is left of the pool's counters.
    pub counters: BTreeMap<Counter, Quantity>,
}

fn matches(node: &NodeInfo, name: Option<&str>, all: Option<bool>, selector: Option<&NodeSelector>) -> bool {
    match (name.filter(|name| !name.is_empty()), all, selector) {
        (Some(name), ..) => node.name == name,
        (None, Some(true), _) => true,
        (None, _, Some(selector)) => selects_node(selector, &node.name, &node.labels),
        (None, _, None) => false,
    }
}

fn device_matches(device: &Device, node: &NodeInfo) -> bool {
    matches(node, device.node_name.as_deref(), device.all_nodes, device.node_selector.as_ref())
}

fn has_counters(slice: &ResourceSlice) -> bool {
    slice.spec.shared_counters.as_ref().is_some_and(|sets| !sets.is_empty())
}

/// Whether a slice matters for a node; counters matter wherever the devices are.
fn is_relevant(slice: &ResourceSlice, node: &NodeInfo) -> bool {
    let spec = &slice.spec;
    if has_counters(slice) {
        return true;
    }
    if spec.per_device_node_selection == Some(true) {
        return spec.devices.iter().flatten().any(|device| device_matches(device, node));
    }
    matches(node, spec.node_name.as_deref(), spec.all_nodes, spec.node_selector.as_ref())
}

type PoolId<'a> = (&'a str, &'a str);

fn pool_of(slice: &ResourceSlice) -> PoolId<'_> {
    (&slice.spec.driver, &slice.spec.pool.name)
}

/// The pools of a node. `all` comes in the order of the slices' names.
pub(super) fn gather<'a>(
    all: &[&'a Arc<ResourceSlice>],
    node: &NodeInfo,
    allocated: &Allocated,
) -> Vec<Pool<'a>> {
    let mut newest: HashMap<PoolId<'_>, i64> = HashMap::new();
    for slice in all.iter().copied() {
        let generation = newest.entry(pool_of(slice)).or_insert(i64::MIN);
        *generation = slice.spec.pool.generation.max(*generation);
    }
    let mut slices: BTreeMap<PoolId<'a>, Vec<&'a ResourceSlice>> = BTreeMap::new();
    for slice in all.iter().copied() {
        if newest.get(&pool_of(slice)) == Some(&slice.spec.pool.generation) {
            slices.entry(pool_of(slice)).or_default().push(slice);
        }
    }
    slices.retain(|_, slices| slices.iter().any(|slice| is_relevant(slice, node)));
    let mut pools: Vec<Pool<'a>> = slices
        .into_iter()
        .map(|((driver, name), slices)| {
            let (driver, name) = (driver.to_owned(), name.to_owned());
            Pool { driver, name, ..pool(&slices, node, allocated) }
        })
        .collect();
    // What has to be waited for comes last.
    pools.sort_by_key(|pool| pool.devices.iter().any(|found| found.device.binding_conditions.is_some()));
    pools
}

/// The pool that all slices of one generation make.
fn pool<'a>(slices: &[&'a ResourceSlice], node: &NodeInfo, allocated: &Allocated) -> Pool<'a> {
    let wanted = slices.first().map_or(0, |slice| slice.spec.pool.resource_slice_count);
    if usize::try_from(wanted) != Ok(slices.len()) {
        return Pool { is_incomplete: true, ..Pool::default() };
    }
    let found = |slice: &'a ResourceSlice| {
        slice.spec.devices.iter().flatten().map(move |device| Found { slice, device })
    };
    let here = slices.iter().copied().filter(|slice| !has_counters(slice) && is_relevant(slice, node));
    let devices: Vec<Found<'a>> = here.flat_map(found).collect();
    let names: BTreeSet<&str> = devices.iter().map(|found| found.device.name.as_str()).collect();
    let mut counters = BTreeMap::new();
    let (mut is_invalid, mut sets) = (names.len() < devices.len(), BTreeSet::new());
    for set in slices.iter().flat_map(|slice| slice.spec.shared_counters.iter().flatten()) {
        is_invalid |= !sets.insert(set.name.as_str());
        for (name, counter) in &set.counters {
            counters.insert((set.name.clone(), name.clone()), Quantity::from_api(&counter.value));
        }
    }
    let everywhere = || slices.iter().copied().flat_map(found);
    is_invalid |= everywhere().any(|found| found.counters().any(|(name, _)| !counters.contains_key(&name)));
    for taken in everywhere().filter(|found| allocated.has(&found.id())) {
        for (name, amount) in taken.counters() {
            *counters.entry(name).or_default() -= amount;
        }
    }
    Pool { is_invalid, devices, counters, ..Pool::default() }
}
