//! PodDisruptionBudget: how many of a set of pods may be evicted at a time.

use std::collections::BTreeSet;

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::int_or_string::{percent, to_text};
use coracle_meta::names;
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use crate::check::{int_or_percent, label_selector, named, non_negative, one_of};
use crate::common::column;
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Strategy, Subresource, Typed, age};
use crate::go_dump;

const COLUMNS: &[Column] = &[
    NAME,
    column("Min Available", "string", "", "The minimum number of pods that must be available."),
    column("Max Unavailable", "string", "", "The maximum number of pods that may be unavailable."),
    column(
        "Allowed Disruptions",
        "integer",
        "",
        "Calculated number of pods that may be disrupted at this time.",
    ),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::Never,
    recheck_status: Recheck::Never,
    short_names: &["pdb"],
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    has_generation: true,
    unconditional_update: false,
    ..ResourceDef::new::<PodDisruptionBudget>(
        "poddisruptionbudget",
        &Typed::<PodDisruptionBudget, _>::new(Budgets),
    )
};

struct Budgets;

const REASON: &str = "a condition reason must start with alphabetic character, optionally followed by a string of \
    alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or \
    'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is \
    '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')";
const MAX_REASON: usize = 1024;
const MAX_MESSAGE: usize = 32 * 1024;

impl Strategy<PodDisruptionBudget> for Budgets {
    fn default(&self, obj: &mut PodDisruptionBudget) {
        obj.spec.get_or_insert_default();
        obj.status.get_or_insert_default();
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut PodDisruptionBudget) {
        obj.status = Some(PodDisruptionBudgetStatus::default());
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut PodDisruptionBudget, old: &PodDisruptionBudget) {
        new.status.clone_from(&old.status);
    }

    fn prepare_status_update(
        &self,
        _: Context<'_>,
        new: &mut PodDisruptionBudget,
        old: &PodDisruptionBudget,
    ) {
        new.spec.clone_from(&old.spec);
    }

    fn validate_name(&self, name: &str, _: bool) -> Vec<String> {
        // Upstream's rules for this kind leave the name to those for all kinds.
        names::path_segment(name)
    }

    fn validate(&self, obj: &PodDisruptionBudget, errs: &mut ErrorList) {
        if let Some(spec) = &obj.spec {
            validate_spec(spec, errs);
        }
    }

    fn validate_status_update(
        &self,
        new: &PodDisruptionBudget,
        _: &PodDisruptionBudget,
        errs: &mut ErrorList,
    ) {
        let Some(status) = &new.status else { return };
        let path = Path::new("status");
        validate_conditions(status.conditions.as_deref().unwrap_or_default(), &path, errs);
        for (field, value) in [
            ("disruptionsAllowed", status.disruptions_allowed),
            ("currentHealthy", status.current_healthy),
            ("desiredHealthy", status.desired_healthy),
            ("expectedPods", status.expected_pods),
        ] {
            non_negative(errs, &path.child(field), i64::from(value.unwrap_or(0)));
        }
    }

    fn row(&self, obj: &PodDisruptionBudget, now: Timestamp) -> Vec<Value> {
        let spec = obj.spec.as_ref();
        let amount = |value: Option<&IntOrString>| value.map_or("N/A".to_owned(), to_text);
        let allowed = obj.status.as_ref().and_then(|s| s.disruptions_allowed).unwrap_or(0);
        vec![
            obj.metadata.name.clone().into(),
            amount(spec.and_then(|s| s.min_available.as_ref())).into(),
            amount(spec.and_then(|s| s.max_unavailable.as_ref())).into(),
            allowed.into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}

fn validate_spec(spec: &PodDisruptionBudgetSpec, errs: &mut ErrorList) {
    let path = Path::new("spec");
    if spec.min_available.is_some() && spec.max_unavailable.is_some() {
        let why = "minAvailable and maxUnavailable cannot be both set";
        go_dump::invalid(errs, &path, "policy.PodDisruptionBudgetSpec", Some(spec), why);
    }
    for (field, value) in [("minAvailable", &spec.min_available), ("maxUnavailable", &spec.max_unavailable)] {
        let Some(value) = value else { continue };
        let at = path.child(field);
        int_or_percent(errs, &at, value);
        if let IntOrString::String(text) = value
            && percent(text).is_some_and(|percent| percent > 100)
        {
            errs.invalid(at, text.as_str(), "must not be greater than 100%");
        }
    }
    label_selector(spec.selector.as_ref(), &path.child("selector"), errs);
    if let Some(policy) = &spec.unhealthy_pod_eviction_policy {
        let at = path.child("unhealthyPodEvictionPolicy");
        one_of(errs, &at, policy, &["AlwaysAllow", "IfHealthyBudget"]);
    }
}

fn validate_conditions(conditions: &[Condition], path: &Path, errs: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, condition) in conditions.iter().enumerate() {
        let path = path.child("conditions").index(i);
        if !seen.insert(&condition.type_) {
            errs.duplicate(path.child("type"), condition.type_.as_str());
        }
        named(errs, &path.child("type"), &condition.type_, names::qualified_name);
        one_of(errs, &path.child("status"), &condition.status, &["False", "True", "Unknown"]);
        if let Some(generation) = condition.observed_generation.filter(|generation| *generation < 0) {
            let why = "must be greater than or equal to zero";
            errs.invalid(path.child("observedGeneration"), generation, why);
        }
        // An absent time is the beginning of the clock, see `canonical`.
        if condition.last_transition_time.0 == Timestamp::UNIX_EPOCH {
            errs.required(path.child("lastTransitionTime"), "");
        }
        let reason = condition.reason.as_str();
        if reason.is_empty() {
            errs.required(path.child("reason"), "");
        } else {
            if !is_reason(reason) {
                errs.invalid(path.child("reason"), reason, REASON);
            }
            if reason.len() > MAX_REASON {
                errs.too_long(path.child("reason"), MAX_REASON);
            }
        }
        if condition.message.len() > MAX_MESSAGE {
            errs.too_long(path.child("message"), MAX_MESSAGE);
        }
    }
}

fn is_reason(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ',' | ':');
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.chars().all(inner)
}
