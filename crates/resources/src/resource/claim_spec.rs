//! What a claim asks for: requests, constraints, configuration.

use std::collections::BTreeMap;

use coracle_cel::device::{MAX_COST, Selector};
use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use k8s_openapi::api::resource::v1::{
    CapacityRequirements, DeviceClaim, DeviceConstraint, DeviceRequest, DeviceSelector, DeviceToleration,
    ResourceClaimSpec,
};

use super::{MAX_LIST, TAINT_EFFECTS, configuration, items, qualified_name, set};
use crate::check::{named, one_of};
use crate::common::text;
use crate::podspec::defaults;

/// Alternatives of one request.
const MAX_ALTERNATIVES: usize = 8;
/// Bytes of a selector's expression.
const MAX_EXPRESSION: usize = 10 * 1024;
const NO_REQUEST: &str =
    "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

/// Names of requests, each with those of its alternatives.
pub(super) type Requests<'a> = BTreeMap<&'a str, Vec<&'a str>>;

/// The names of the requests of a claim.
pub(super) fn requests(spec: &ResourceClaimSpec) -> Requests<'_> {
    let list = spec.devices.iter().flat_map(|d| d.requests.iter().flatten());
    list.map(|r| (r.name.as_str(), r.first_available.iter().flatten().map(|s| s.name.as_str()).collect()))
        .collect()
}

/// Fills in defaults.
pub(super) fn default(spec: &mut ResourceClaimSpec) {
    let mode = |mode: &mut Option<String>, count: &mut Option<i64>| {
        defaults::string(mode, "ExactCount");
        if text(mode.as_ref()) == "ExactCount" && count.unwrap_or(0) == 0 {
            *count = Some(1);
        }
    };
    let amounts = |capacity: &mut Option<CapacityRequirements>| {
        let requests = capacity.iter_mut().flat_map(|c| c.requests.iter_mut().flatten());
        requests.for_each(|(_, amount)| defaults::canonical(amount));
    };
    let operators = |tolerations: &mut Option<Vec<DeviceToleration>>| {
        for one in tolerations.iter_mut().flatten() {
            defaults::string(&mut one.operator, "Equal");
        }
    };
    for request in spec.devices.get_or_insert_default().requests.iter_mut().flatten() {
        if let Some(exact) = &mut request.exactly {
            mode(&mut exact.allocation_mode, &mut exact.count);
            amounts(&mut exact.capacity);
            operators(&mut exact.tolerations);
        }
        for one in request.first_available.iter_mut().flatten() {
            mode(&mut one.allocation_mode, &mut one.count);
            amounts(&mut one.capacity);
            operators(&mut one.tolerations);
        }
    }
}

/// Checks a spec.
pub(super) fn check(spec: &ResourceClaimSpec, path: &Path, errs: &mut ErrorList) {
    let empty = DeviceClaim::default();
    let devices = spec.devices.as_ref().unwrap_or(&empty);
    let path = path.child("devices");
    let known = requests(spec);
    let list = devices.requests.as_deref().unwrap_or_default();
    set(list, MAX_LIST, &path.child("requests"), errs, |r| &r.name, request);
    let list = devices.constraints.as_deref().unwrap_or_default();
    items(list, MAX_LIST, &path.child("constraints"), errs, |one, path, errs| {
        constraint(one, &known, path, errs);
    });
    let list = devices.config.as_deref().unwrap_or_default();
    items(list, MAX_LIST, &path.child("config"), errs, |one, path, errs| {
        request_names(one.requests.as_deref().unwrap_or_default(), &known, &path.child("requests"), errs);
        configuration(one.opaque.as_ref(), path, errs);
    });
}

fn request(request: &DeviceRequest, path: &Path, errs: &mut ErrorList) {
    named(errs, &path.child("name"), &request.name, names::dns1123_label);
    let alternatives = request.first_available.as_deref().unwrap_or_default();
    let one = "exactly one of `exactly` or `firstAvailable` is required";
    match (&request.exactly, alternatives.is_empty()) {
        (None, true) => errs.required(path, one),
        (Some(_), false) => {
            errs.invalid(path, serde_json::Value::Null, format!("{one}, but multiple fields are set"));
        }
        (Some(exact), true) => Wanted {
            class: &exact.device_class_name,
            selectors: exact.selectors.as_deref().unwrap_or_default(),
            mode: text(exact.allocation_mode.as_ref()),
            count: exact.count.unwrap_or(0),
            tolerations: exact.tolerations.as_deref().unwrap_or_default(),
        }
        .check(&path.child("exactly"), errs),
        (None, false) => {
            let path = path.child("firstAvailable");
            set(
                alternatives,
                MAX_ALTERNATIVES,
                &path,
                errs,
                |r| &r.name,
                |one, path, errs| {
                    named(errs, &path.child("name"), &one.name, names::dns1123_label);
                    Wanted {
                        class: &one.device_class_name,
                        selectors: one.selectors.as_deref().unwrap_or_default(),
                        mode: text(one.allocation_mode.as_ref()),
                        count: one.count.unwrap_or(0),
                        tolerations: one.tolerations.as_deref().unwrap_or_default(),
                    }
                    .check(path, errs);
                },
            );
        }
    }
}

/// What both forms of a request say of the devices wanted.
struct Wanted<'a> {
    class: &'a str,
    selectors: &'a [DeviceSelector],
    mode: &'a str,
    count: i64,
    tolerations: &'a [DeviceToleration],
}

impl Wanted<'_> {
    fn check(&self, path: &Path, errs: &mut ErrorList) {
        match self.class {
            "" => errs.required(path.child("deviceClassName"), ""),
            class => named(errs, &path.child("deviceClassName"), class, names::dns1123_subdomain),
        }
        selectors(self.selectors, &path.child("selectors"), errs);
        let at = path.child("count");
        match self.mode {
            "All" if self.count != 0 => {
                errs.invalid(at, self.count, "must not be specified when allocationMode is 'All'");
            }
            "ExactCount" if self.count <= 0 => errs.invalid(at, self.count, "must be greater than zero"),
            mode => one_of(errs, &path.child("allocationMode"), mode, &["All", "ExactCount"]),
        }
        for (i, one) in self.tolerations.iter().enumerate() {
            toleration(one, &path.child("tolerations").index(i), errs);
        }
    }
}

/// Checks selectors of devices.
pub(super) fn selectors(list: &[DeviceSelector], path: &Path, errs: &mut ErrorList) {
    items(list, MAX_LIST, path, errs, |selector, path, errs| match &selector.cel {
        None => errs.required(path.child("cel"), ""),
        Some(cel) if cel.expression.len() > MAX_EXPRESSION => {
            errs.too_long(path.child("cel").child("expression"), MAX_EXPRESSION);
        }
        Some(cel) => {
            let at = path.child("cel").child("expression");
            match Selector::compile(&cel.expression) {
                Err(why) if why.internal => errs.internal(at, why.detail),
                Err(why) => errs.invalid(at, cel.expression.as_str(), why.detail),
                Ok(selector) if selector.max_cost > MAX_COST => {
                    errs.forbidden(at, "too complex, exceeds cost limit");
                }
                Ok(_) => {}
            }
        }
    });
}

fn toleration(one: &DeviceToleration, path: &Path, errs: &mut ErrorList) {
    let (key, value) = (text(one.key.as_ref()), text(one.value.as_ref()));
    if !key.is_empty() {
        named(errs, &path.child("key"), key, names::qualified_name);
    }
    match text(one.operator.as_ref()) {
        "Exists" if !value.is_empty() => {
            errs.invalid(path.child("value"), value, "must be empty for operator `Exists`");
        }
        "Equal" => named(errs, &path.child("value"), value, names::label_value),
        "" => errs.required(path.child("operator"), ""),
        operator => one_of(errs, &path.child("operator"), operator, &["Equal", "Exists"]),
    }
    let effect = text(one.effect.as_ref());
    if !effect.is_empty() {
        one_of(errs, &path.child("effect"), effect, TAINT_EFFECTS);
    }
}

fn constraint(one: &DeviceConstraint, known: &Requests<'_>, path: &Path, errs: &mut ErrorList) {
    request_names(one.requests.as_deref().unwrap_or_default(), known, &path.child("requests"), errs);
    let (name, at) = match (&one.match_attribute, &one.distinct_attribute) {
        (Some(name), _) => (name, path.child("matchAttribute")),
        (None, Some(name)) => (name, path.child("distinctAttribute")),
        (None, None) => {
            let why = "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields \
                       are set";
            return errs.required(path, why);
        }
    };
    qualified_name(name, &at, errs);
    if !name.contains('/') {
        let why = "a fully qualified name must be a domain and a name separated by a slash";
        errs.invalid(at, name.as_str(), why);
    }
}

/// Checks a list of names of requests.
pub(super) fn request_names(list: &[String], known: &Requests<'_>, path: &Path, errs: &mut ErrorList) {
    set(list, MAX_LIST, path, errs, |name| name, |name, path, errs| request_name(name, known, path, errs));
}

/// Checks the name of a request, or of one of its alternatives.
pub(super) fn request_name(name: &str, known: &Requests<'_>, path: &Path, errs: &mut ErrorList) {
    let parts: Vec<&str> = name.split('/').collect();
    if parts.len() > 2 {
        return errs.invalid(path, name, NO_REQUEST);
    }
    parts.iter().for_each(|part| named(errs, path, part, names::dns1123_label));
    let found = known.get(parts[0]);
    if !found.is_some_and(|alternatives| parts.get(1).is_none_or(|part| alternatives.contains(part))) {
        errs.invalid(path, name, NO_REQUEST);
    }
}
