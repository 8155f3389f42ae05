//! What is written down of the devices that were chosen for a claim. Pure.

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult, DeviceRequestAllocationResult,
    ResourceClaim,
};

use super::allocate::{Chosen, Way};

fn full_name((request, sub): (&str, Option<&str>)) -> String {
    sub.map_or_else(|| request.to_owned(), |sub| format!("{request}/{sub}"))
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    Some(list).filter(|list| !list.is_empty())
}

/// The way that was taken of each request. One without devices was satisfied the first way.
fn taken<'w, 'a>(ways: &'w [Vec<Way<'a>>], chosen: &[Chosen<'_>]) -> Vec<&'w Way<'a>> {
    let way_of = |request: usize| chosen.iter().find(|c| c.request.0 == request).map_or(0, |c| c.request.1);
    ways.iter().enumerate().filter_map(|(number, ways)| ways.get(way_of(number))).collect()
}

/// The result of a claim.
pub(super) fn result(
    claim: &ResourceClaim,
    ways: &[Vec<Way<'_>>],
    chosen: &[Chosen<'_>],
    node: &str,
) -> Result<AllocationResult, String> {
    let devices = chosen.iter().map(|chosen| {
        let way = &ways[chosen.request.0][chosen.request.1];
        let (driver, pool, device) = chosen.found.id();
        let amounts = chosen.consumed.iter().map(|(name, amount)| (name.clone(), amount.to_api()));
        let consumed = Some(amounts.collect()).filter(|_| !chosen.consumed.is_empty());
        DeviceRequestAllocationResult {
            admin_access: way.admin,
            binding_conditions: chosen.found.device.binding_conditions.clone(),
            binding_failure_conditions: chosen.found.device.binding_failure_conditions.clone(),
            consumed_capacity: consumed,
            device,
            driver,
            pool,
            request: full_name(way.name),
            share_id: chosen.share_id.clone(),
            tolerations: way.tolerations.cloned(),
        }
    });
    let devices = DeviceAllocationResult {
        config: some(config(claim, ways, chosen)),
        results: some(devices.collect()),
    };
    Ok(AllocationResult {
        allocation_timestamp: None,
        devices: Some(devices),
        node_selector: node_selector(chosen, node)?,
    })
}

/// Configuration of the classes, each once, then that of the claim.
fn config(
    claim: &ResourceClaim,
    ways: &[Vec<Way<'_>>],
    chosen: &[Chosen<'_>],
) -> Vec<DeviceAllocationConfiguration> {
    let taken = taken(ways, chosen);
    let mut all: Vec<DeviceAllocationConfiguration> = Vec::new();
    let mut classes: Vec<(Option<&String>, std::ops::Range<usize>)> = Vec::new();
    for way in &taken {
        let (class, name) = (way.class.metadata.name.as_ref(), full_name(way.name));
        if let Some((_, known)) = classes.iter().find(|(known, _)| *known == class) {
            all[known.clone()].iter_mut().for_each(|c| c.requests.get_or_insert_default().push(name.clone()));
            continue;
        }
        let first = all.len();
        all.extend(way.class.spec.config.iter().flatten().map(|config| DeviceAllocationConfiguration {
            opaque: config.opaque.clone(),
            requests: Some(vec![name.clone()]),
            source: "FromClass".to_owned(),
        }));
        classes.push((class, first..all.len()));
    }
    for config in claim.spec.devices.iter().flat_map(|devices| devices.config.iter().flatten()) {
        let one = DeviceAllocationConfiguration {
            opaque: config.opaque.clone(),
            requests: config.requests.clone(),
            source: "FromClaim".to_owned(),
        };
        let requests = config.requests.as_deref().unwrap_or(&[]);
        if requests.is_empty() {
            all.push(one);
            continue;
        }
        let is_about =
            |way: &&&Way<'_>| requests.iter().any(|name| name == way.name.0 || *name == full_name(way.name));
        all.extend(taken.iter().filter(is_about).map(|_| one.clone()));
    }
    all
}

/// Where pods with the devices can run; `None` is everywhere.
fn node_selector(chosen: &[Chosen<'_>], node: &str) -> Result<Option<NodeSelector>, String> {
    let mut term = NodeSelectorTerm::default();
    for chosen in chosen {
        let (spec, device) = (&chosen.found.slice.spec, chosen.found.device);
        let (name, selector) = match spec.per_device_node_selection {
            Some(true) => (&device.node_name, &device.node_selector),
            _ => (&spec.node_name, &spec.node_selector),
        };
        if name.is_some() || device.binds_to_node == Some(true) {
            let here = NodeSelectorRequirement {
                key: "metadata.name".to_owned(),
                operator: "In".to_owned(),
                values: Some(vec![node.to_owned()]),
            };
            let term = NodeSelectorTerm { match_fields: Some(vec![here]), ..NodeSelectorTerm::default() };
            return Ok(Some(NodeSelector { node_selector_terms: vec![term] }));
        }
        match selector.as_ref().map(|selector| selector.node_selector_terms.as_slice()) {
            None | Some([]) => {}
            Some([one]) => {
                add(&mut term.match_fields, one.match_fields.as_deref());
                add(&mut term.match_expressions, one.match_expressions.as_deref());
            }
            Some(terms) => {
                return Err(format!("unsupported ResourceSlice.NodeSelector with {} terms", terms.len()));
            }
        }
    }
    let limits = term.match_fields.is_some() || term.match_expressions.is_some();
    Ok(limits.then(|| NodeSelector { node_selector_terms: vec![term] }))
}

/// Adds requirements that are not there yet.
fn add(to: &mut Option<Vec<NodeSelectorRequirement>>, from: Option<&[NodeSelectorRequirement]>) {
    let same = |a: &NodeSelectorRequirement, b: &NodeSelectorRequirement| {
        let sorted = |of: &NodeSelectorRequirement| {
            let mut values = of.values.clone().unwrap_or_default();
            values.sort();
            values.dedup();
            values
        };
        a.key == b.key && a.operator == b.operator && sorted(a) == sorted(b)
    };
    for requirement in from.unwrap_or(&[]) {
        if !to.iter().flatten().any(|known| same(known, requirement)) {
            to.get_or_insert_default().push(requirement.clone());
        }
    }
}
