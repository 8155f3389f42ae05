//! ResourceSlice: devices that a driver offers, on a node or beyond nodes.

use coracle_meta::field::{Error, ErrorKind, ErrorList, Path};
use coracle_meta::names;
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::resource::v1::{CounterSet, Device, ResourceSlice, ResourceSliceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;

use super::{device, pool_name, set, shown};
use crate::check::{about_text, named};
use crate::common::{column, text};
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Scope, Strategy, Typed, age};
use crate::podspec::scheduling;
use crate::storage::driver_name;

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Node",
        "string",
        "",
        "NodeName identifies the node which provides the resources in this pool. A field selector can \
         be used to list only ResourceSlice objects belonging to a certain node.\n\nThis field can \
         be used to limit access from nodes to ResourceSlices with the same node name. It also \
         indicates to autoscalers that adding new nodes of the same type as some old node might also \
         make new resources available.\n\nExactly one of NodeName, NodeSelector, AllNodes, and \
         PerDeviceNodeSelection must be set. This field is immutable.",
    ),
    column(
        "Driver",
        "string",
        "",
        "Driver identifies the DRA driver providing the capacity information. A field selector can be \
         used to list only ResourceSlice objects with a certain driver name.\n\nMust be a DNS \
         subdomain and should end with a DNS domain owned by the vendor of the driver. It should use \
         only lower case characters. This field is immutable.",
    ),
    column(
        "Pool",
        "string",
        "",
        "Name is used to identify the pool. For node-local devices, this is often the node name, but \
         this is not required.\n\nIt must not be longer than 253 characters and must consist of one \
         or more DNS sub-domains separated by slashes. This field is immutable.",
    ),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::Change,
    returns_deleted: true,
    scope: Scope::Cluster,
    columns: COLUMNS,
    has_generation: true,
    ..ResourceDef::new::<ResourceSlice>("resourceslice", &Typed::<ResourceSlice, _>::new(Slices))
};

struct Slices;

const MAX_DEVICES: usize = 128;
/// Devices when any of them has taints or consumes counters.
const MAX_ADVANCED_DEVICES: usize = 64;
const MAX_COUNTER_SETS: usize = 8;
/// Counters of one set.
const MAX_COUNTERS: usize = 32;

impl Strategy<ResourceSlice> for Slices {
    fn default(&self, obj: &mut ResourceSlice) {
        obj.spec.devices.iter_mut().flatten().for_each(device::default);
        let sets = obj.spec.shared_counters.iter_mut().flatten();
        sets.flat_map(|s| s.counters.values_mut()).for_each(device::default_counter);
    }

    fn prepare_create(&self, cx: Context<'_>, obj: &mut ResourceSlice) {
        prepare(cx, obj, None);
    }

    fn prepare_update(&self, cx: Context<'_>, new: &mut ResourceSlice, old: &ResourceSlice) {
        prepare(cx, new, Some(old));
    }

    fn validate(&self, obj: &ResourceSlice, errs: &mut ErrorList) {
        check(&obj.spec, None, errs);
    }

    fn validate_update(&self, new: &ResourceSlice, old: &ResourceSlice, errs: &mut ErrorList) {
        check(&new.spec, Some(&old.spec), errs);
        let path = Path::new("spec");
        errs.immutable(path.child("pool").child("name"), &new.spec.pool.name, &old.spec.pool.name);
        errs.immutable(path.child("driver"), &new.spec.driver, &old.spec.driver);
        errs.immutable(path.child("nodeName"), &new.spec.node_name, &old.spec.node_name);
    }

    fn warnings(&self, new: &ResourceSlice, _: Option<&ResourceSlice>) -> Vec<String> {
        let driver = &new.spec.driver;
        if *driver == driver.to_lowercase() {
            return Vec::new();
        }
        vec![format!(
            "spec.driver: driver names should be lowercase; {driver:?} contains uppercase characters"
        )]
    }

    fn selectable(&self, obj: &ResourceSlice) -> Vec<(&'static str, String)> {
        vec![
            ("spec.driver", obj.spec.driver.clone()),
            ("spec.nodeName", text(obj.spec.node_name.as_ref()).to_owned()),
        ]
    }

    fn row(&self, obj: &ResourceSlice, now: Timestamp) -> Vec<Value> {
        vec![
            obj.metadata.name.clone().into(),
            text(obj.spec.node_name.as_ref()).into(),
            obj.spec.driver.clone().into(),
            obj.spec.pool.name.clone().into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}

/// Stamps new taints, and drops what feature gates have off by default: lists as attributes, and mappings to
/// the node's own resources. What the object has already stays.
fn prepare(cx: Context<'_>, obj: &mut ResourceSlice, old: Option<&ResourceSlice>) {
    let now = Timestamp::from_second(cx.now.as_second()).unwrap_or(cx.now);
    let used = |test: fn(&Device) -> bool| old.is_some_and(|o| o.spec.devices.iter().flatten().any(test));
    let (lists, mappings) = (
        used(device::has_lists),
        used(|device| device.node_allocatable_resource_mappings.as_ref().is_some_and(|m| !m.is_empty())),
    );
    for device in obj.spec.devices.iter_mut().flatten() {
        for taint in device.taints.iter_mut().flatten() {
            taint.time_added.get_or_insert(Time(now));
        }
        if !mappings {
            device.node_allocatable_resource_mappings = None;
        }
        if !lists {
            for attribute in device.attributes.iter_mut().flat_map(|a| a.values_mut()) {
                (attribute.bools, attribute.ints) = (None, None);
                (attribute.strings, attribute.versions) = (None, None);
            }
        }
    }
}

fn check(spec: &ResourceSliceSpec, old: Option<&ResourceSliceSpec>, errs: &mut ErrorList) {
    let path = Path::new("spec");
    driver_name(&spec.driver, &path.child("driver"), errs);
    let at = path.child("pool");
    pool_name(&spec.pool.name, &at.child("name"), errs);
    let (count, generation) = (spec.pool.resource_slice_count, spec.pool.generation);
    if count <= 0 {
        errs.invalid(at.child("resourceSliceCount"), count, "must be greater than zero");
    }
    if generation < 0 {
        errs.invalid(at.child("generation"), generation, "must be greater than or equal to zero");
    }
    placement(spec, &path, errs);
    let devices = spec.devices.as_deref().unwrap_or_default();
    if spec.shared_counters.is_some() && spec.devices.is_some() {
        errs.invalid(&path, "", "only one of `sharedCounters` or `devices` is allowed");
    }
    let advanced = devices.iter().any(|d| {
        let some = |n: Option<usize>| n.is_some_and(|n| n > 0);
        some(d.taints.as_ref().map(Vec::len))
            || some(d.consumes_counters.as_ref().map(Vec::len))
            || device::has_lists(d)
    });
    let max = if advanced { MAX_ADVANCED_DEVICES } else { MAX_DEVICES };
    let per_device = spec.per_device_node_selection == Some(true);
    set(
        devices,
        max,
        &path.child("devices"),
        errs,
        |d| &d.name,
        |one, path, errs| {
            let known = old.and_then(|o| o.devices.iter().flatten().find(|d| d.name == one.name));
            device::check(one, known, per_device, path, errs);
        },
    );
    let sets = spec.shared_counters.as_deref().unwrap_or_default();
    set(sets, MAX_COUNTER_SETS, &path.child("sharedCounters"), errs, |s| &s.name, counter_set);
}

/// Where the devices are: said in exactly one way.
fn placement(spec: &ResourceSliceSpec, path: &Path, errs: &mut ErrorList) {
    let mut set = Vec::new();
    match spec.node_name.as_deref() {
        None => {}
        Some("") => {
            errs.invalid(path.child("nodeName"), "", "must be either unset or set to a non-empty string");
        }
        Some(name) => {
            set.push("`nodeName`");
            named(errs, &path.child("nodeName"), name, names::dns1123_subdomain);
        }
    }
    if let Some(selector) = &spec.node_selector {
        set.push("`nodeSelector`");
        let at = path.child("nodeSelector");
        scheduling::node_selector(selector, &at, errs);
        if selector.node_selector_terms.len() != 1 {
            let (at, shown) = (at.child("nodeSelectorTerms"), shown::node_selector_terms(selector));
            let why = "must have exactly one node selector term";
            about_text(errs, ErrorKind::Invalid, &at, shown, why);
        }
    }
    for (field, shown, flag) in [
        ("allNodes", "`allNodes`", spec.all_nodes),
        ("perDeviceNodeSelection", "`perDeviceNodeSelection`", spec.per_device_node_selection),
    ] {
        match flag {
            Some(true) => set.push(shown),
            Some(false) => errs.invalid(path.child(field), false, "must be either unset or set to true"),
            None => {}
        }
    }
    let one = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match set.len() {
        0 => errs.required(path, one),
        1 => {}
        _ => errs.push(Error {
            kind: ErrorKind::Invalid,
            path: path.to_string(),
            value: Some(format!("\"{{{}}}\"", set.join(", "))),
            detail: format!("{one}, but multiple fields are set"),
        }),
    }
}

fn counter_set(one: &CounterSet, path: &Path, errs: &mut ErrorList) {
    match one.name.as_str() {
        "" => errs.required(path.child("name"), ""),
        name => named(errs, &path.child("name"), name, names::dns1123_label),
    }
    device::counters(&one.counters, MAX_COUNTERS, &path.child("counters"), errs);
}
