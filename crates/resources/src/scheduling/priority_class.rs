//! PriorityClass: a name for a pod priority.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde_json::{Value, json};

use crate::common::{column, text};
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Scope, Strategy, Typed, age};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Value",
        "integer",
        "",
        "value represents the integer value of this priority class. This is the actual priority that \
         pods receive when they have the name of this class in their pod spec.",
    ),
    column(
        "Global-Default",
        "boolean",
        "",
        "globalDefault specifies whether this PriorityClass should be considered as the default \
         priority for pods that do not have any priority class. Only one PriorityClass can be marked \
         as `globalDefault`. However, if more than one PriorityClasses exists with their \
         `globalDefault` field set to true, the smallest value of such global default PriorityClasses \
         will be used as the default priority.",
    ),
    AGE,
    column(
        "PreemptionPolicy",
        "string",
        "",
        "preemptionPolicy is the Policy for preempting pods with lower priority. One of Never, \
         PreemptLowerPriority. Defaults to PreemptLowerPriority if unset.",
    ),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::Change,
    short_names: &["pc"],
    scope: Scope::Cluster,
    columns: COLUMNS,
    ..ResourceDef::new::<PriorityClass>("priorityclass", &Typed::<PriorityClass, _>::new(PriorityClasses))
};

struct PriorityClasses;

/// Users' classes may have this value at most.
const HIGHEST_USER_DEFINABLE: i32 = 1_000_000_000;
/// Names with this prefix belong to the system.
const SYSTEM_PREFIX: &str = "system-";
/// The classes of the system: name, value, description.
const SYSTEM: &[(&str, i32, &str)] = &[
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if \
         necessary.",
    ),
];

/// The classes of the system as objects.
pub(super) fn bootstrap() -> Vec<Value> {
    let object = |(name, value, description): &(&str, i32, &str)| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": { "name": name }, "value": value, "description": description,
        })
    };
    SYSTEM.iter().map(object).collect()
}

impl Strategy<PriorityClass> for PriorityClasses {
    fn default(&self, obj: &mut PriorityClass) {
        obj.preemption_policy.get_or_insert_with(|| "PreemptLowerPriority".to_owned());
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut PriorityClass) {
        obj.metadata.generation = Some(1);
    }

    fn validate(&self, obj: &PriorityClass, errs: &mut ErrorList) {
        let name = text(obj.metadata.name.as_ref());
        let value = obj.value.unwrap_or(0);
        if name.starts_with(SYSTEM_PREFIX) {
            if let Err(why) = is_system(name, value, obj.global_default.unwrap_or(false)) {
                errs.forbidden(
                    "metadata.name",
                    format!(
                        "priority class names with '{SYSTEM_PREFIX}' prefix are reserved for system use only. \
                         error: {why}"
                    ),
                );
            }
        } else if value > HIGHEST_USER_DEFINABLE {
            let why = format!("maximum allowed value of a user defined priority is {HIGHEST_USER_DEFINABLE}");
            errs.forbidden("value", why);
        }
        match obj.preemption_policy.as_deref() {
            None | Some("PreemptLowerPriority" | "Never") => {}
            Some("") => errs.required("preemptionPolicy", ""),
            Some(other) => {
                errs.not_supported("preemptionPolicy", other, &["PreemptLowerPriority", "Never"]);
            }
        }
    }

    fn validate_update(&self, new: &PriorityClass, old: &PriorityClass, errs: &mut ErrorList) {
        if new.value.unwrap_or(0) != old.value.unwrap_or(0) {
            errs.forbidden("value", "may not be changed in an update.");
        }
        if new.preemption_policy != old.preemption_policy {
            errs.invalid(Path::new("preemptionPolicy"), json!(new.preemption_policy), "field is immutable");
        }
    }

    fn row(&self, obj: &PriorityClass, now: Timestamp) -> Vec<Value> {
        vec![
            obj.metadata.name.clone().into(),
            obj.value.unwrap_or(0).into(),
            obj.global_default.unwrap_or(false).into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
            text(obj.preemption_policy.as_ref()).into(),
        ]
    }
}

/// Whether this is one of the system's classes as it must be.
fn is_system(name: &str, value: i32, global_default: bool) -> Result<(), String> {
    let Some((_, wanted, _)) = SYSTEM.iter().find(|(known, ..)| *known == name) else {
        return Err(format!("{name} is not a known system priority class"));
    };
    if *wanted != value {
        return Err(format!("value of {name} PriorityClass must be {wanted}"));
    }
    if global_default {
        return Err(format!("globalDefault of {name} PriorityClass must be false"));
    }
    Ok(())
}
