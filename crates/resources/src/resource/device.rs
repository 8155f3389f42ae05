//! A device of a slice: attributes, capacity, taints, counters, and where it is.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use coracle_meta::field::{ErrorKind, ErrorList, Path};
use coracle_meta::names;
use coracle_meta::quantity::Quantity;
use k8s_openapi::api::resource::v1::{
    CapacityRequestPolicy, CapacityRequestPolicyRange, Counter, Device, DeviceAttribute,
    DeviceCounterConsumption, DeviceTaint,
};
use regex::Regex;
use serde_json::{Value, json};

use super::{TAINT_EFFECTS, binding_conditions, items, qualified_name, set};
use crate::check::{about_struct, named, one_of};
use crate::common::text;
use crate::podspec::{defaults, scheduling};

/// Attributes and capacities of one device.
const MAX_ATTRIBUTES: usize = 32;
/// Values of all attributes of one device.
const MAX_VALUES: usize = 48;
/// Bytes of a value.
const MAX_VALUE: usize = 64;
/// Bytes of a name that a path shows in full.
const MAX_KEY: usize = 63 + 1 + 32;
const MAX_TAINTS: usize = 16;
/// Counter sets that a device draws from.
const MAX_CONSUMED_SETS: usize = 2;
/// Counters that it draws from one set.
const MAX_CONSUMED_COUNTERS: usize = 32;
/// Values that a request for capacity may have.
const MAX_VALID_VALUES: usize = 10;

static SEMVER: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let number = r"(0|[1-9]\d*)";
    let pre = r"(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)";
    let build = r"[0-9a-zA-Z-]+";
    Regex::new(&format!(r"^{number}\.{number}\.{number}(-{pre}(\.{pre})*)?(\+{build}(\.{build})*)?$")).ok()
});

/// Brings amounts into canonical form.
pub(super) fn default(device: &mut Device) {
    for capacity in device.capacity.iter_mut().flat_map(|c| c.values_mut()) {
        defaults::canonical(&mut capacity.value);
        let Some(policy) = &mut capacity.request_policy else { continue };
        policy
            .default
            .iter_mut()
            .chain(policy.valid_values.iter_mut().flatten())
            .for_each(defaults::canonical);
        if let Some(range) = &mut policy.valid_range {
            let ends = range.max.iter_mut().chain(&mut range.step);
            ends.chain(std::iter::once(&mut range.min)).for_each(defaults::canonical);
        }
    }
    let consumed = device.consumes_counters.iter_mut().flatten();
    consumed.flat_map(|c| c.counters.values_mut()).for_each(default_counter);
}

/// Brings the amount of a counter into canonical form.
pub(super) fn default_counter(counter: &mut Counter) {
    defaults::canonical(&mut counter.value);
}

/// Whether an attribute of the device is a list.
pub(super) fn has_lists(device: &Device) -> bool {
    let list = |a: &DeviceAttribute| {
        a.bools.is_some() || a.ints.is_some() || a.strings.is_some() || a.versions.is_some()
    };
    device.attributes.iter().flat_map(|a| a.values()).any(list)
}

/// Checks a device; `known` is the one of that name before.
pub(super) fn check(
    device: &Device,
    known: Option<&Device>,
    placed: bool,
    path: &Path,
    errs: &mut ErrorList,
) {
    named(errs, &path.child("name"), &device.name, names::dns1123_label);
    let attributes = device.attributes.as_ref();
    let count = attributes.map_or(0, BTreeMap::len) + device.capacity.as_ref().map_or(0, BTreeMap::len);
    if count > MAX_ATTRIBUTES {
        let why = format!("the total number of attributes and capacities must not exceed {MAX_ATTRIBUTES}");
        errs.invalid(path, count, why);
    }
    let values: usize = attributes.into_iter().flatten().map(|(_, a)| value_count(a)).sum();
    if values > MAX_VALUES {
        errs.invalid(
            path,
            values,
            format!("the total number of attribute values must not exceed {MAX_VALUES}"),
        );
    }
    let at = path.child("attributes");
    for (name, one) in attributes.into_iter().flatten() {
        qualified_name(name, &at, errs);
        attribute(one, &at.key(&shortened(name)), errs);
    }
    capacities(device, &path.child("capacity"), errs);
    if known.is_none_or(|known| known.taints != device.taints) {
        let taints = device.taints.as_deref().unwrap_or_default();
        items(taints, MAX_TAINTS, &path.child("taints"), errs, taint);
    }
    let list = device.consumes_counters.as_deref().unwrap_or_default();
    let at = path.child("consumesCounters");
    set(list, MAX_CONSUMED_SETS, &at, errs, |c| &c.counter_set, consumption);
    placement(device, placed, path, errs);
    binding_conditions(
        device.binding_conditions.as_deref().unwrap_or_default(),
        device.binding_failure_conditions.as_deref().unwrap_or_default(),
        path,
        errs,
    );
}

/// A long name with its middle left out.
fn shortened(name: &str) -> String {
    if name.len() <= MAX_KEY {
        return name.to_owned();
    }
    let kept = MAX_KEY - 3;
    let bytes = name.as_bytes();
    let (head, tail) = (&bytes[..kept.div_ceil(2)], &bytes[bytes.len() - kept / 2..]);
    format!("{}...{}", String::from_utf8_lossy(head), String::from_utf8_lossy(tail))
}

fn value_count(a: &DeviceAttribute) -> usize {
    let lists = [
        a.bools.as_ref().map_or(0, Vec::len),
        a.ints.as_ref().map_or(0, Vec::len),
        a.strings.as_ref().map_or(0, Vec::len),
        a.versions.as_ref().map_or(0, Vec::len),
    ];
    lists.iter().sum::<usize>().max(1)
}

fn attribute(a: &DeviceAttribute, path: &Path, errs: &mut ErrorList) {
    let set = [
        a.bool.is_some(),
        a.int.is_some(),
        a.string.is_some(),
        a.version.is_some(),
        a.bools.is_some(),
        a.ints.is_some(),
        a.strings.is_some(),
        a.versions.is_some(),
    ];
    for (field, one, many) in [("string", &a.string, &a.strings), ("version", &a.version, &a.versions)] {
        let mut check = |value: &str, path: &Path| {
            if field == "version" && !SEMVER.as_ref().is_some_and(|re| re.is_match(value)) {
                errs.invalid(path, value, "must be a string compatible with semver.org spec 2.0.0");
            }
            if value.len() > MAX_VALUE {
                errs.too_long(path, MAX_VALUE);
            }
        };
        if let Some(value) = one {
            check(value, &path.child(field));
        }
        for (i, value) in many.iter().flatten().enumerate() {
            check(value, &path.child(&format!("{field}s")).index(i));
        }
    }
    match set.iter().filter(|set| **set).count() {
        0 => errs.invalid(path, "", "exactly one value must be specified"),
        1 => {}
        _ => {
            let shown = [
                ("IntValue", json!(a.int)),
                ("BoolValue", json!(a.bool)),
                ("StringValue", json!(a.string)),
                ("VersionValue", json!(a.version)),
                ("IntValues", json!(a.ints)),
                ("BoolValues", json!(a.bools)),
                ("StringValues", json!(a.strings)),
                ("VersionValues", json!(a.versions)),
            ];
            about_struct(errs, ErrorKind::Invalid, path, &shown, "exactly one value must be specified");
        }
    }
}

fn capacities(device: &Device, path: &Path, errs: &mut ErrorList) {
    let shared = device.allow_multiple_allocations == Some(true);
    for (name, capacity) in device.capacity.iter().flatten() {
        qualified_name(name, path, errs);
        let Some(policy) = &capacity.request_policy else { continue };
        let at = path.key(&shortened(name)).child("requestPolicy");
        if shared {
            request_policy(policy, Quantity::from_api(&capacity.value), &at, errs);
        } else {
            errs.forbidden(at, "allowMultipleAllocations must be true");
        }
    }
}

fn request_policy(policy: &CapacityRequestPolicy, total: Quantity, path: &Path, errs: &mut ErrorList) {
    let values = policy.valid_values.as_deref().unwrap_or_default();
    let default = policy.default.as_ref().map(Quantity::from_api);
    let need = |what: &str| format!("required when {what} is defined");
    match (values.is_empty(), &policy.valid_range, default) {
        (true, None, _) => {}
        (false, Some(_), _) => {
            let why = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the \
                       same time";
            errs.forbidden(path, why);
        }
        (false, None, None) => errs.required(path.child("default"), need("validValues")),
        (true, Some(_), None) => errs.required(path.child("default"), need("validRange")),
        (false, None, Some(default)) => {
            let values: Vec<Quantity> = values.iter().map(Quantity::from_api).collect();
            valid_values(&values, default, total, &path.child("validValues"), errs);
        }
        (true, Some(range), Some(default)) => {
            valid_range(range, default, total, &path.child("validRange"), errs);
        }
    }
}

fn valid_values(values: &[Quantity], default: Quantity, total: Quantity, path: &Path, errs: &mut ErrorList) {
    for (i, pair) in values.windows(2).enumerate() {
        if pair[0] > pair[1] {
            let why = "values must be sorted in ascending order";
            errs.invalid(path.index(i + 1), pair[1].to_string(), why);
        }
    }
    let mut found = false;
    let fits = items(values, MAX_VALID_VALUES, path, errs, |value, path, errs| {
        if *value > total {
            let why = format!("option is larger than capacity value: {total}");
            errs.invalid(path, value.to_string(), why);
        }
        found |= *value == default;
    });
    if fits {
        for (i, value) in values.iter().enumerate() {
            if values[..i].iter().any(|other| other.value() == value.value()) {
                errs.duplicate(path.index(i), value.value().to_string());
            }
        }
    }
    if !found {
        let why = "default value is not valid according to the requestPolicy";
        errs.invalid(path, default.to_string(), why);
    }
}

fn valid_range(
    range: &CapacityRequestPolicyRange,
    default: Quantity,
    total: Quantity,
    path: &Path,
    errs: &mut ErrorList,
) {
    let at = path.child("min");
    if range.min.0.is_empty() {
        return errs.required(at, "required when validRange is defined");
    }
    let min = Quantity::from_api(&range.min);
    if min > total {
        errs.invalid(&at, min.to_string(), format!("min is larger than capacity value: {total}"));
    }
    if default < min {
        errs.invalid(&at, default.to_string(), format!("default is less than min: {min}"));
    }
    let max = range.max.as_ref().map(Quantity::from_api);
    if let Some(max) = max {
        let at = path.child("max");
        if min > max {
            errs.invalid(&at, min.to_string(), format!("min is larger than max: {max}"));
        }
        if max > total {
            errs.invalid(&at, max.to_string(), format!("max is larger than capacity value: {total}"));
        }
        if default > max {
            errs.invalid(&at, default.to_string(), format!("default is more than max: {max}"));
        }
    }
    let Some(step) = range.step.as_ref().map(Quantity::from_api) else { return };
    let (at, one) = (path.child("step"), min + step);
    if one > total {
        errs.invalid(&at, step.to_string(), format!("one step {one} is larger than capacity value: {total}"));
    }
    for value in std::iter::once(default).chain(max) {
        let distance = value.value().wrapping_sub(min.value());
        if step.value() == 0 || distance.wrapping_rem(step.value()) != 0 {
            let why = format!("value is not a multiple of a given step ({step}) from ({min})");
            errs.invalid(&at, value.to_string(), why);
        }
    }
}

fn taint(one: &DeviceTaint, path: &Path, errs: &mut ErrorList) {
    named(errs, &path.child("key"), &one.key, names::qualified_name);
    named(errs, &path.child("value"), text(one.value.as_ref()), names::label_value);
    match one.effect.as_str() {
        "" => errs.required(path.child("effect"), ""),
        effect => one_of(errs, &path.child("effect"), effect, TAINT_EFFECTS),
    }
}

fn consumption(one: &DeviceCounterConsumption, path: &Path, errs: &mut ErrorList) {
    match one.counter_set.as_str() {
        "" => errs.required(path.child("counterSet"), ""),
        name => named(errs, &path.child("counterSet"), name, names::dns1123_label),
    }
    counters(&one.counters, MAX_CONSUMED_COUNTERS, &path.child("counters"), errs);
}

/// Checks the names of counters.
pub(super) fn counters(counters: &BTreeMap<String, Counter>, max: usize, path: &Path, errs: &mut ErrorList) {
    if counters.is_empty() {
        return errs.required(path, "");
    }
    if counters.len() > max {
        return errs.too_many(path, counters.len(), max);
    }
    counters.keys().for_each(|name| named(errs, path, name, names::dns1123_label));
}

/// Where the device is, which it says itself only when the slice leaves that to its devices.
fn placement(device: &Device, placed: bool, path: &Path, errs: &mut ErrorList) {
    let one = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` \
               is set to true in the ResourceSlice spec";
    if !placed {
        if device.node_name.is_some() || device.node_selector.is_some() || device.all_nodes.is_some() {
            let why = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set \
                       to true in the ResourceSlice spec";
            errs.invalid(path, Value::Null, why);
        }
        return;
    }
    let mut set = Vec::new();
    match device.node_name.as_deref() {
        None => {}
        Some("") => errs.invalid(path.child("nodeName"), "", "must not be empty"),
        Some(name) => {
            set.push("`nodeName`");
            named(errs, &path.child("nodeName"), name, names::dns1123_subdomain);
        }
    }
    if let Some(selector) = &device.node_selector {
        set.push("`nodeSelector`");
        scheduling::node_selector(selector, &path.child("nodeSelector"), errs);
    }
    match device.all_nodes {
        Some(true) => set.push("`allNodes`"),
        Some(false) => errs.invalid(path.child("allNodes"), false, "must be either unset or set to true"),
        None => {}
    }
    match set.len() {
        0 => errs.required(path, one),
        1 => {}
        _ => errs.invalid(path, format!("{{{}}}", set.join(", ")), one),
    }
}
