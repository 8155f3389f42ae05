//! Which devices of a node a pod's claims get: the first solution of a search through all combinations, in the order
//! of pools, slices and devices. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use coracle_cel::device::{Attribute, Device as Seen};
use coracle_meta::placement::tolerates_device;
use coracle_meta::quantity::Quantity;
use coracle_stdx::uuid;
use k8s_openapi::api::resource::v1::{
    AllocationResult, CapacityRequirements, Device, DeviceClass, DeviceSelector, DeviceToleration,
    ResourceClaim,
};

use super::constraint::Constraint;
use super::pools::{Counter, Found, Pool, gather};
use super::{Allocated, Consumed, Devices, Id, capacity, outcome};
use crate::cache::NodeInfo;

/// Most devices of one claim.
const MOST_DEVICES: usize = 32;
/// Steps of one search: what takes longer is given up, so that one claim cannot hold up all pods.
const MOST_STEPS: usize = 1_000_000;

/// One way to satisfy a request.
pub(super) struct Way<'a> {
    /// The request's name, and that of the alternative if it is one of several.
    pub name: (&'a str, Option<&'a str>),
    pub class: Arc<DeviceClass>,
    pub tolerations: Option<&'a Vec<DeviceToleration>>,
    pub admin: Option<bool>,
    selectors: &'a [DeviceSelector],
    capacity: Option<&'a CapacityRequirements>,
    count: usize,
    /// Where all devices are wanted: which these are, by pool and device.
    all: Option<Vec<Place>>,
}

/// A device, by pool and place in the pool.
type Place = (usize, usize);

/// A device that was chosen for a request.
pub(super) struct Chosen<'a> {
    /// Request and way.
    pub request: (usize, usize),
    pub found: Found<'a>,
    pub share_id: Option<String>,
    pub consumed: Consumed,
}

/// Why a search ends early.
enum Stop {
    /// The claim would have too many devices; with other choices it may not.
    TooMany,
    Failed(String),
}

/// Where a search stands: claim, request, way, device of the request.
#[derive(Clone, Copy)]
struct At {
    claim: usize,
    request: usize,
    way: usize,
    device: usize,
}

struct Search<'a> {
    devices: &'a Devices,
    node: &'a NodeInfo,
    allocated: &'a Allocated,
    claims: &'a [Arc<ResourceClaim>],
    pools: Vec<Pool<'a>>,
    /// By claim and request: the ways, the preferred one first.
    ways: Vec<Vec<Vec<Way<'a>>>>,
    constraints: Vec<Vec<Constraint<'a>>>,
    chosen: Vec<Vec<Chosen<'a>>>,
    /// Devices taken in this search, by the claims that took them.
    taken: HashMap<Id, Vec<usize>>,
    shared: HashMap<Id, Consumed>,
    counters: HashMap<(usize, Counter), Quantity>,
    /// Whether a way's selectors match a device.
    matches: HashMap<(Place, (usize, usize, usize)), bool>,
    steps: usize,
}

/// Devices of `node` for claims that have none yet, one result for each; `None` where the node has not enough.
///
/// # Errors
/// What is wrong with a claim, a class or the node's pools.
pub(crate) fn allocate(
    devices: &Devices,
    allocated: &Allocated,
    claims: &[Arc<ResourceClaim>],
    node: &NodeInfo,
) -> Result<Option<Vec<AllocationResult>>, String> {
    let slices: Vec<_> = devices.slices().collect();
    let mut search = Search {
        devices,
        node,
        allocated,
        claims,
        pools: gather(&slices, node, allocated),
        ways: Vec::new(),
        constraints: Vec::new(),
        chosen: claims.iter().map(|_| Vec::new()).collect(),
        taken: HashMap::new(),
        shared: HashMap::new(),
        counters: HashMap::new(),
        matches: HashMap::new(),
        steps: 0,
    };
    search.prepare()?;
    match search.claim(0) {
        Ok(true) => {}
        Ok(false) | Err(Stop::TooMany) => {
            let broken = search.pools.iter().any(|pool| pool.is_invalid);
            return if broken { Err("invalid resource pools were encountered".to_owned()) } else { Ok(None) };
        }
        Err(Stop::Failed(why)) => return Err(why),
    }
    let results = claims.iter().zip(&search.ways).zip(&search.chosen);
    results
        .map(|((claim, ways), chosen)| outcome::result(claim, ways, chosen, &node.name))
        .collect::<Result<_, _>>()
        .map(Some)
}

fn shown(claim: &ResourceClaim) -> String {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}/{}", part(&claim.metadata.namespace), part(&claim.metadata.name))
}

/// A device as selectors see it.
fn seen(found: &Found<'_>) -> Seen {
    let attribute = |of: &k8s_openapi::api::resource::v1::DeviceAttribute| {
        let text = of.string.clone().map(Attribute::String).or(of.version.clone().map(Attribute::Version));
        of.int.map(Attribute::Int).or(of.bool.map(Attribute::Bool)).or(text)
    };
    let device = found.device;
    Seen {
        driver: found.slice.spec.driver.clone(),
        allow_multiple_allocations: is_shareable(device),
        attributes: (device.attributes.iter().flatten())
            .filter_map(|(name, of)| Some((name.clone(), attribute(of)?)))
            .collect(),
        capacity: (device.capacity.iter().flatten())
            .map(|(name, of)| (name.clone(), Quantity::from_api(&of.value)))
            .collect(),
    }
}

fn is_shareable(device: &Device) -> bool {
    device.allow_multiple_allocations == Some(true)
}

fn is_tainted(device: &Device, tolerations: Option<&Vec<DeviceToleration>>) -> bool {
    let prevents = |effect: &str| matches!(effect, "NoSchedule" | "NoExecute");
    let tolerated =
        |taint| tolerations.is_some_and(|list| list.iter().any(|one| tolerates_device(one, taint)));
    device.taints.iter().flatten().any(|taint| prevents(&taint.effect) && !tolerated(taint))
}

impl<'a> Search<'a> {
    /// Lists the ways of all requests, and refuses what cannot be satisfied anywhere.
    fn prepare(&mut self) -> Result<(), String> {
        for (index, claim) in self.claims.iter().enumerate() {
            let spec = claim.spec.devices.as_ref();
            let mut requests = Vec::new();
            let mut least = 0_usize;
            for request in spec.iter().flat_map(|spec| spec.requests.iter().flatten()) {
                let mut ways = Vec::new();
                if let Some(exact) = &request.exactly {
                    ways.push(Way {
                        name: (&request.name, None),
                        class: self.class(claim, &request.name, &exact.device_class_name)?,
                        tolerations: exact.tolerations.as_ref(),
                        admin: exact.admin_access.filter(|admin| *admin),
                        selectors: exact.selectors.as_deref().unwrap_or(&[]),
                        capacity: exact.capacity.as_ref(),
                        count: usize::try_from(exact.count.unwrap_or(1)).unwrap_or(usize::MAX),
                        all: (exact.allocation_mode.as_deref() == Some("All")).then(Vec::new),
                    });
                }
                for sub in request.first_available.iter().flatten() {
                    ways.push(Way {
                        name: (&request.name, Some(&sub.name)),
                        class: self.class(claim, &sub.name, &sub.device_class_name)?,
                        tolerations: sub.tolerations.as_ref(),
                        admin: None,
                        selectors: sub.selectors.as_deref().unwrap_or(&[]),
                        capacity: sub.capacity.as_ref(),
                        count: usize::try_from(sub.count.unwrap_or(1)).unwrap_or(usize::MAX),
                        all: (sub.allocation_mode.as_deref() == Some("All")).then(Vec::new),
                    });
                }
                let number = requests.len();
                for (way, of) in ways.iter_mut().enumerate().filter(|(_, of)| of.all.is_some()) {
                    let all = self.everything(of, (index, number, way))?;
                    (of.count, of.all) = (all.len(), Some(all));
                }
                let fewest = ways.iter().map(|way| way.count).min().unwrap_or(0);
                least = least.saturating_add(fewest);
                requests.push(ways);
            }
            if least > MOST_DEVICES {
                let claim = shown(claim);
                return Err(format!(
                    "claim {claim}: number of requested devices {least} exceeds the claim limit of {MOST_DEVICES}"
                ));
            }
            self.ways.push(requests);
            let constraints = spec.iter().flat_map(|spec| spec.constraints.iter().flatten());
            let constraints: Option<Vec<_>> = constraints.map(Constraint::new).collect();
            self.constraints.push(constraints.ok_or_else(|| {
                format!("claim {}: empty constraint (unsupported constraint type?)", shown(claim))
            })?);
        }
        Ok(())
    }

    fn class(&self, claim: &ResourceClaim, request: &str, name: &str) -> Result<Arc<DeviceClass>, String> {
        self.devices.class(name).cloned().ok_or_else(|| {
            let claim = shown(claim);
            format!("claim {claim}, request {request}: could not retrieve device class {name}: not found")
        })
    }

    /// All devices that a request for all of them means.
    fn everything(&mut self, way: &Way<'a>, of: (usize, usize, usize)) -> Result<Vec<Place>, String> {
        let mut all = Vec::new();
        for pool in 0..self.pools.len() {
            let Pool { driver, name, is_incomplete, is_invalid, devices, .. } = &self.pools[pool];
            if *is_incomplete || *is_invalid {
                let (claim, request) = (shown(&self.claims[of.0]), way.name.1.unwrap_or(way.name.0));
                let why = if *is_incomplete { "being updated" } else { "invalid" };
                return Err(format!(
                    "claim {claim}, request {request}: asks for all devices, but resource pool {driver}/{name} is \
                     currently {why}"
                ));
            }
            for place in 0..devices.len() {
                if self.selects(way, of, (pool, place))? && self.has_capacity(way, self.found((pool, place)))
                {
                    all.push((pool, place));
                }
            }
        }
        Ok(all)
    }

    fn found(&self, (pool, place): Place) -> Found<'a> {
        self.pools[pool].devices[place]
    }

    /// Whether class and request select a device; remembered, as it does not depend on the search.
    fn selects(&mut self, way: &Way<'a>, of: (usize, usize, usize), place: Place) -> Result<bool, String> {
        if let Some(known) = self.matches.get(&(place, of)) {
            return Ok(*known);
        }
        let found = self.found(place);
        let selects = found.reaches(self.node) && {
            let device = seen(&found);
            let of_class = way.class.spec.selectors.as_deref().unwrap_or(&[]);
            let class = format!("class {}", way.class.metadata.name.as_deref().unwrap_or(""));
            let claim = format!("claim {}", shown(&self.claims[of.0]));
            self.all_match(of_class, &device, &class)? && self.all_match(way.selectors, &device, &claim)?
        };
        self.matches.insert((place, of), selects);
        Ok(selects)
    }

    fn all_match(&self, selectors: &[DeviceSelector], device: &Seen, whose: &str) -> Result<bool, String> {
        for (number, selector) in selectors.iter().enumerate() {
            let compiled = self.devices.selector(selector);
            let compiled = (*compiled).as_ref();
            let compiled =
                compiled.map_err(|why| format!("{whose}: selector #{number}: CEL compile error: {why}"))?;
            let matches = compiled.matches(device);
            if !matches.map_err(|why| format!("{whose}: selector #{number}: CEL runtime error: {why}"))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn has_capacity(&self, way: &Way<'a>, found: Found<'a>) -> bool {
        if !is_shareable(found.device) {
            // Its capacities are all its claim's.
            return capacity::fits(way.capacity, found.device, [None, None]);
        }
        let id = found.id();
        capacity::fits(way.capacity, found.device, [self.allocated.shared.get(&id), self.shared.get(&id)])
    }

    /// Goes on with a claim.
    fn claim(&mut self, claim: usize) -> Result<bool, Stop> {
        if claim >= self.claims.len() { Ok(true) } else { self.request(claim, 0) }
    }

    /// Goes on with a request: the first way that leads to the end is taken.
    fn request(&mut self, claim: usize, request: usize) -> Result<bool, Stop> {
        if request >= self.ways[claim].len() {
            // Other choices in this claim leave no more room in the next.
            return match self.claim(claim + 1) {
                Err(Stop::TooMany) => Ok(false),
                other => other,
            };
        }
        let mut too_many = true;
        for way in 0..self.ways[claim][request].len() {
            match self.device(At { claim, request, way, device: 0 }, (0, 0)) {
                Err(Stop::TooMany) => {}
                Ok(false) => too_many = false,
                other => return other,
            }
        }
        if too_many { Err(Stop::TooMany) } else { Ok(false) }
    }

    /// Goes on with a device of a request, from a place on: the order of devices within a request does not matter.
    fn device(&mut self, at: At, from: Place) -> Result<bool, Stop> {
        self.steps += 1;
        if self.steps > MOST_STEPS {
            let node = &self.node.name;
            return Err(Stop::Failed(format!("node {node}: timed out trying to allocate devices")));
        }
        let way = &self.ways[at.claim][at.request][at.way];
        let (count, next) = (way.count, way.all.as_ref().map(|all| all.get(at.device).copied()));
        if way.all.as_ref().is_some_and(Vec::is_empty) {
            return Ok(false);
        }
        if at.device >= count {
            return self.request(at.claim, at.request + 1);
        }
        if (self.chosen[at.claim].len() - at.device).saturating_add(count) > MOST_DEVICES {
            return Err(Stop::TooMany);
        }
        if let Some(next) = next {
            let Some(place) = next else { return Ok(false) };
            return self.attempt(at, place, true);
        }
        for pool in from.0..self.pools.len() {
            if self.pools[pool].is_incomplete || self.pools[pool].is_invalid {
                continue;
            }
            let first = if pool == from.0 { from.1 } else { 0 };
            for place in first..self.pools[pool].devices.len() {
                if self.attempt(at, (pool, place), false)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Tries the search's rest with a device; what did not lead to the end is taken back.
    fn attempt(&mut self, at: At, place: Place, must: bool) -> Result<bool, Stop> {
        if !self.take(at, place, must)? {
            return Ok(false);
        }
        let next = At { device: at.device + 1, ..at };
        let done = self.device(next, (place.0, place.1 + 1));
        if !matches!(done, Ok(true)) {
            self.give_back(at, place);
        }
        done
    }

    fn is_free(&self, id: &Id, claim: usize, admin: bool) -> bool {
        let taken = self.taken.get(id).map_or(&[][..], Vec::as_slice);
        if admin {
            !taken.contains(&claim)
        } else {
            taken.is_empty() && !self.allocated.exclusive.contains(id)
        }
    }

    /// Takes a device, if it can be had.
    fn take(&mut self, at: At, place: Place, must: bool) -> Result<bool, Stop> {
        let found = self.found(place);
        let id = found.id();
        let ways = std::mem::take(&mut self.ways);
        let way = &ways[at.claim][at.request][at.way];
        let usable = self.is_free(&id, at.claim, way.admin.is_some())
            && !is_tainted(found.device, way.tolerations)
            && match self.selects(way, (at.claim, at.request, at.way), place) {
                Ok(selects) => selects && self.has_capacity(way, found),
                Err(why) => {
                    self.ways = ways;
                    return Err(Stop::Failed(why));
                }
            };
        let (name, shareable) = (way.name, is_shareable(found.device));
        let consumed =
            if shareable { capacity::consumed(way.capacity, found.device) } else { Consumed::new() };
        self.ways = ways;
        if !usable || !self.count_counters(&id, found, place.0) {
            return Ok(false);
        }
        let constraints = &mut self.constraints[at.claim];
        let allowed =
            (0..constraints.len()).take_while(|i| constraints[*i].add(name, &id.0, found.device)).count();
        if allowed < constraints.len() {
            constraints[..allowed].iter_mut().for_each(|constraint| constraint.remove(name));
            self.uncount_counters(&id, found, place.0);
            if must {
                let (claim, request) = (shown(&self.claims[at.claim]), name.1.unwrap_or(name.0));
                let (driver, pool, device) = &id;
                return Err(Stop::Failed(format!(
                    "claim {claim}, request {request}: cannot add device {driver}/{pool}/{device} because a claim \
                     constraint would not be satisfied"
                )));
            }
            return Ok(false);
        }
        if shareable {
            let sum = self.shared.entry(id).or_default();
            consumed.iter().for_each(|(name, amount)| *sum.entry(name.clone()).or_default() += *amount);
        } else {
            self.taken.entry(id).or_default().push(at.claim);
        }
        let share_id = shareable.then(uuid);
        let request = (at.request, at.way);
        self.chosen[at.claim].push(Chosen { request, found, share_id, consumed });
        Ok(true)
    }

    /// Takes back what the last [`Search::take`] took.
    fn give_back(&mut self, at: At, place: Place) {
        let name = self.ways[at.claim][at.request][at.way].name;
        self.constraints[at.claim].iter_mut().for_each(|constraint| constraint.remove(name));
        let Some(chosen) = self.chosen[at.claim].pop() else { return };
        let id = chosen.found.id();
        if chosen.share_id.is_none() {
            if let Some(claims) = self.taken.get_mut(&id) {
                claims.pop();
            }
        } else if let Some(sum) = self.shared.get_mut(&id) {
            chosen
                .consumed
                .iter()
                .for_each(|(name, amount)| *sum.entry(name.clone()).or_default() -= *amount);
        }
        self.uncount_counters(&id, chosen.found, place.0);
    }

    /// A device that several claims share takes its counters once.
    fn counts(&self, id: &Id, found: Found<'a>) -> bool {
        let mut chosen = self.chosen.iter().flatten().filter(|chosen| chosen.share_id.is_some());
        let is_it = |chosen: &Chosen<'_>| chosen.found.id() == *id;
        !is_shareable(found.device) || !(self.allocated.shared.contains_key(id) || chosen.any(is_it))
    }

    /// Counts a device's counters, if the pool has enough of each.
    fn count_counters(&mut self, id: &Id, found: Found<'a>, pool: usize) -> bool {
        if !self.counts(id, found) {
            return true;
        }
        let wanted: BTreeMap<Counter, Quantity> = found.counters().collect();
        let fits = wanted.iter().all(|(name, amount)| {
            let taken = self.counters.get(&(pool, name.clone())).copied().unwrap_or_default();
            self.pools[pool].counters.get(name).is_some_and(|left| taken + *amount <= *left)
        });
        if fits {
            for (name, amount) in wanted {
                *self.counters.entry((pool, name)).or_default() += amount;
            }
        }
        fits
    }

    fn uncount_counters(&mut self, id: &Id, found: Found<'a>, pool: usize) {
        if self.counts(id, found) {
            for (name, amount) in found.counters() {
                *self.counters.entry((pool, name)).or_default() -= amount;
            }
        }
    }
}
