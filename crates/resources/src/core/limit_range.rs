//! LimitRange: bounds and defaults for the resources of a namespace's pods and claims.

use std::collections::{BTreeMap, BTreeSet};

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use coracle_meta::object_meta::Recheck;
use coracle_meta::quantity::Quantity as Number;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{LimitRange, LimitRangeItem};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;

use crate::common::{column, date};
use crate::def::{Column, Context, NAME, ResourceDef, Strategy, Typed};
use crate::podspec::defaults::canonical_list;
use crate::podspec::requirements::{container_resource_name, is_overcommit_allowed, resource_name};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Created At",
        "date",
        "",
        "CreationTimestamp is a timestamp representing the server time when this object was \
         created. It is not guaranteed to be set in happens-before order across separate \
         operations. Clients may not set this value. It is represented in RFC3339 form and is in \
         UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: \
         https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata",
    ),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::New,
    short_names: &["limits"],
    columns: COLUMNS,
    create_on_update: true,
    ..ResourceDef::new::<LimitRange>("limitrange", &Typed::<LimitRange, _>::new(LimitRanges))
};

struct LimitRanges;

type List = BTreeMap<String, Quantity>;

impl Strategy<LimitRange> for LimitRanges {
    fn default(&self, obj: &mut LimitRange) {
        for limit in &mut obj.spec.get_or_insert_default().limits {
            if limit.type_ == "Container" {
                fill_in(limit);
            }
            canonical_list(&mut limit.max);
            canonical_list(&mut limit.min);
            canonical_list(&mut limit.default);
            canonical_list(&mut limit.default_request);
            canonical_list(&mut limit.max_limit_request_ratio);
        }
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut LimitRange) {
        if obj.metadata.name.as_ref().is_none_or(String::is_empty) {
            obj.metadata.name = Some(random_name());
        }
    }

    fn validate(&self, obj: &LimitRange, errs: &mut ErrorList) {
        let path = Path::new("spec").child("limits");
        let mut seen = BTreeSet::new();
        for (i, limit) in obj.spec.iter().flat_map(|s| &s.limits).enumerate() {
            let path = path.index(i);
            type_name(&limit.type_, &path.child("type"), errs);
            if !seen.insert(&limit.type_) {
                errs.duplicate(path.child("type"), limit.type_.as_str());
            }
            validate_limit(limit, &path, errs);
        }
    }

    fn row(&self, obj: &LimitRange, _: Timestamp) -> Vec<Value> {
        vec![obj.metadata.name.clone().into(), date(obj.metadata.creation_timestamp.as_ref())]
    }
}

/// A version 4 UUID: the name of a limit range that its creator did not name.
fn random_name() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    format!("{a}-{b}-{c}-{d}-{e}")
}

/// What is not given of a container's limit follows from what is.
fn fill_in(limit: &mut LimitRangeItem) {
    let default = limit.default.get_or_insert_default();
    for (name, amount) in limit.max.iter().flatten() {
        default.entry(name.clone()).or_insert_with(|| amount.clone());
    }
    let request = limit.default_request.get_or_insert_default();
    for (name, amount) in default.iter().chain(limit.min.iter().flatten()) {
        request.entry(name.clone()).or_insert_with(|| amount.clone());
    }
}

fn type_name(name: &str, path: &Path, errs: &mut ErrorList) {
    let messages = names::qualified_name(name);
    if !messages.is_empty() {
        return messages.into_iter().for_each(|message| errs.invalid_typed(path, name, message));
    }
    if !name.contains('/') && !matches!(name, "Pod" | "Container" | "PersistentVolumeClaim") {
        errs.invalid_typed(path, name, "must be a standard limit type or fully qualified");
    }
}

fn validate_limit(limit: &LimitRangeItem, path: &Path, errs: &mut ErrorList) {
    let pod = limit.type_ == "Pod";
    let mut keys = BTreeSet::new();
    for (field, list) in [
        ("max", &limit.max),
        ("min", &limit.min),
        ("default", &limit.default),
        ("defaultRequest", &limit.default_request),
        ("maxLimitRequestRatio", &limit.max_limit_request_ratio),
    ] {
        let Some(list) = list.as_ref().filter(|list| !list.is_empty()) else { continue };
        if pod && matches!(field, "default" | "defaultRequest") {
            errs.forbidden(path.child(field), "may not be specified when `type` is 'Pod'");
            continue;
        }
        for name in list.keys() {
            let at = path.child(field).key(name);
            match limit.type_.as_str() {
                "Pod" | "Container" => container_resource_name(name, &at, errs),
                _ => resource_name(name, &at, errs),
            }
            keys.insert(name.as_str());
        }
    }
    let has = |list: &Option<List>| list.as_ref().is_some_and(|list| list.contains_key("storage"));
    if limit.type_ == "PersistentVolumeClaim" && !has(&limit.min) && !has(&limit.max) {
        let why = "either minimum or maximum storage value is required, but neither was provided";
        errs.required(path.child("limits"), why);
    }
    for name in keys {
        validate_amounts(limit, name, path, errs);
    }
}

/// Checks the amounts of one resource against each other.
fn validate_amounts(limit: &LimitRangeItem, name: &str, path: &Path, errs: &mut ErrorList) {
    let of = |list: &Option<List>| list.as_ref().and_then(|list| list.get(name)).map(Number::from_api);
    let unless_pod = |list: &Option<List>| if limit.type_ == "Pod" { None } else { of(list) };
    let (min, max, ratio) = (of(&limit.min), of(&limit.max), of(&limit.max_limit_request_ratio));
    let (default, request) = (unless_pod(&limit.default), unless_pod(&limit.default_request));
    let mut above = |low: (Option<Number>, &str), high: (Option<Number>, &str), field: &str, second: bool| {
        let (Some(a), Some(b)) = (low.0, high.0) else { return };
        if a > b {
            let shown = if second { b } else { a };
            let why = format!("{} {a} is greater than {} {b}", low.1, high.1);
            errs.invalid(path.child(field).key(name), shown.to_string(), why);
        }
    };
    above((min, "min value"), (max, "max value"), "min", false);
    above((min, "min value"), (request, "default request value"), "defaultRequest", true);
    above((request, "default request value"), (max, "max value"), "defaultRequest", false);
    above((request, "default request value"), (default, "default limit value"), "defaultRequest", false);
    above((min, "min value"), (default, "default value"), "default", false);
    above((default, "default value"), (max, "max value"), "default", true);
    if let Some(ratio) = ratio {
        validate_ratio(ratio, min.zip(max), &path.child("maxLimitRequestRatio").key(name), errs);
    }
    if let (Some(default), Some(request)) = (default, request)
        && !is_overcommit_allowed(name)
        && default != request
    {
        let why = format!("default value {default} must equal to defaultRequest value {request} in {name}");
        errs.invalid(path.child("defaultRequest").key(name), request.to_string(), why);
    }
}

fn validate_ratio(ratio: Number, bounds: Option<(Number, Number)>, path: &Path, errs: &mut ErrorList) {
    if ratio.milli() < 1000 {
        errs.invalid(path, ratio.to_string(), format!("ratio {ratio} is less than 1"));
    }
    let Some((min, max)) = bounds else { return };
    // Beyond these amounts thousandths do not fit upstream's integers.
    const MILLI: i64 = i64::MAX / 1000;
    let fine = [ratio, min, max].iter().all(|n| n.value() < MILLI);
    let (value, limit) = if fine {
        (ratio.as_f64(), max.milli() as f64 / min.milli() as f64)
    } else {
        (ratio.value() as f64, max.value() as f64 / min.value() as f64)
    };
    if value > limit {
        errs.invalid(path, ratio.to_string(), format!("ratio {ratio} is greater than max/min = {limit:.6}"));
    }
}
