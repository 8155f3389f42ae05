//! ResourceQuota: how much a namespace may use.

use std::collections::{BTreeMap, BTreeSet};

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ResourceQuota, ResourceQuotaSpec, ResourceQuotaStatus, ScopedResourceSelectorRequirement,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};

use crate::common::column;
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Strategy, Subresource, Typed, age};
use crate::go_dump;
use crate::podspec::defaults::canonical_list;
use crate::podspec::requirements::{quantity, resource_name};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Request",
        "string",
        "",
        "Request represents a minimum amount of cpu/memory that a container may consume.",
    ),
    column(
        "Limit",
        "string",
        "",
        "Limits control the maximum amount of cpu/memory that a container may use independent of \
         contention on the node.",
    ),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::Change,
    short_names: &["quota"],
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    returns_deleted: true,
    ..ResourceDef::new::<ResourceQuota>("resourcequota", &Typed::<ResourceQuota, _>::new(Quotas))
};

struct Quotas;

type List = BTreeMap<String, Quantity>;

/// Resources a quota can name without a prefix.
const STANDARD: &[&str] = &[
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];
const SCOPES: &[&str] = &[
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];
const COMPUTE: &[&str] =
    &["cpu", "limits.cpu", "limits.memory", "memory", "pods", "requests.cpu", "requests.memory"];

fn is_standard(name: &str) -> bool {
    STANDARD.contains(&name) || name.starts_with("hugepages-") || name.starts_with("requests.hugepages-")
}

/// Whether a scope can limit a resource.
fn fits(scope: &str, resource: &str) -> bool {
    match scope {
        "Terminating"
        | "NotTerminating"
        | "NotBestEffort"
        | "PriorityClass"
        | "CrossNamespacePodAffinity" => COMPUTE.contains(&resource),
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        _ => true,
    }
}

impl Strategy<ResourceQuota> for Quotas {
    fn default(&self, obj: &mut ResourceQuota) {
        canonical_list(&mut obj.spec.get_or_insert_default().hard);
        let status = obj.status.get_or_insert_default();
        canonical_list(&mut status.hard);
        canonical_list(&mut status.used);
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut ResourceQuota) {
        obj.status = Some(ResourceQuotaStatus::default());
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut ResourceQuota, old: &ResourceQuota) {
        new.status.clone_from(&old.status);
    }

    fn prepare_status_update(&self, _: Context<'_>, new: &mut ResourceQuota, old: &ResourceQuota) {
        new.spec.clone_from(&old.spec);
    }

    fn validate(&self, obj: &ResourceQuota, errs: &mut ErrorList) {
        if let Some(spec) = &obj.spec {
            validate_spec(spec, errs);
        }
    }

    fn validate_update(&self, new: &ResourceQuota, old: &ResourceQuota, errs: &mut ErrorList) {
        self.validate(new, errs);
        fn scopes(obj: &ResourceQuota) -> BTreeSet<&String> {
            obj.spec.iter().flat_map(|s| s.scopes.iter().flatten()).collect()
        }
        if scopes(new) != scopes(old) {
            let shown = json!(new.spec.as_ref().and_then(|s| s.scopes.as_ref()));
            errs.invalid(Path::new("spec").child("scopes"), shown, "field is immutable");
        }
    }

    fn validate_status_update(&self, new: &ResourceQuota, _: &ResourceQuota, errs: &mut ErrorList) {
        let path = Path::new("status");
        if let Some(status) = &new.status {
            amounts(status.hard.as_ref(), &path.child("hard"), errs);
            amounts(status.used.as_ref(), &path.child("used"), errs);
        }
    }

    fn row(&self, obj: &ResourceQuota, now: Timestamp) -> Vec<Value> {
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        let status = obj.status.as_ref();
        for (name, hard) in status.iter().flat_map(|s| s.hard.iter().flatten()) {
            let used = status.and_then(|s| s.used.as_ref()?.get(name)).map_or("0", |q| q.0.as_str());
            let cell = format!("{name}: {used}/{}", hard.0);
            if name.starts_with("limits.") { limits.push(cell) } else { requests.push(cell) }
        }
        vec![
            obj.metadata.name.clone().into(),
            requests.join(", ").into(),
            limits.join(", ").into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}

fn amounts(list: Option<&List>, path: &Path, errs: &mut ErrorList) {
    for (name, amount) in list.into_iter().flatten() {
        let at = path.key(name);
        resource_name(name, &at, errs);
        if !name.contains('/') && !is_standard(name) {
            errs.invalid(&at, name.as_str(), "must be a standard resource for quota");
        }
        quantity(name, amount, &at, errs);
    }
}

fn validate_spec(spec: &ResourceQuotaSpec, errs: &mut ErrorList) {
    let path = Path::new("spec");
    amounts(spec.hard.as_ref(), &path.child("hard"), errs);
    let scopes = spec.scopes.as_deref().unwrap_or_default();
    let at = path.child("scopes");
    for scope in scopes {
        if !SCOPES.contains(&scope.as_str()) {
            errs.invalid(&at, json!(scopes), "unsupported scope");
        }
        for _ in misfits(spec, scope) {
            errs.invalid(&at, json!(scopes), "unsupported scope applied to resource");
        }
    }
    conflicts(spec, scopes.iter().map(String::as_str), &at, errs);
    let Some(selector) = &spec.scope_selector else { return };
    let at = path.child("scopeSelector").child("matchExpressions");
    let terms = selector.match_expressions.as_deref().unwrap_or_default();
    for term in terms {
        if !SCOPES.contains(&term.scope_name.as_str()) {
            errs.invalid(at.child("scopeName"), term.scope_name.as_str(), "unsupported scope");
        }
        for _ in misfits(spec, &term.scope_name) {
            let why = "unsupported scope applied to resource";
            go_dump::invalid(errs, &at, "core.ScopeSelector", Some(selector), why);
        }
        validate_term(term, &at, errs);
    }
    conflicts(spec, terms.iter().map(|term| term.scope_name.as_str()), &at, errs);
}

/// The limited resources that a scope cannot limit.
fn misfits<'a>(spec: &'a ResourceQuotaSpec, scope: &'a str) -> impl Iterator<Item = &'a String> {
    let names = spec.hard.iter().flatten().map(|(name, _)| name);
    names.filter(move |name| is_standard(name) && !fits(scope, name))
}

fn conflicts<'a>(
    spec: &ResourceQuotaSpec,
    scopes: impl Iterator<Item = &'a str>,
    path: &Path,
    errs: &mut ErrorList,
) {
    let set: BTreeSet<&str> = scopes.collect();
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if pair.iter().all(|scope| set.contains(scope)) {
            errs.invalid(path, json!(spec.scopes), "conflicting scopes");
        }
    }
}

fn validate_term(term: &ScopedResourceSelectorRequirement, path: &Path, errs: &mut ErrorList) {
    let plain = !matches!(term.scope_name.as_str(), "PriorityClass" | "VolumeAttributesClass");
    if plain && SCOPES.contains(&term.scope_name.as_str()) && term.operator != "Exists" {
        let why = "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, \
                   ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
                   ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
        errs.invalid(path.child("operator"), term.operator.as_str(), why);
    }
    let values = term.values.as_deref().unwrap_or_default();
    match term.operator.as_str() {
        "In" | "NotIn" if values.is_empty() => {
            let why = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
            errs.required(path.child("values"), why);
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let why = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
            errs.invalid(path.child("values"), json!(values), why);
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => errs.invalid_typed(path.child("operator"), other, "not a valid selector operator"),
    }
}
