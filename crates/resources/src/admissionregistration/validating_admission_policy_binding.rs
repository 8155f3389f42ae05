//! ValidatingAdmissionPolicyBinding: puts a validating policy to work, with parameters, for some of the requests.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding;
use serde_json::Value;

use super::policy::{binding, param_ref_cell};
use super::{CATEGORIES, matching, name_warnings};
use crate::check::one_of;
use crate::common::column;
use crate::def::{AGE, Column, NAME, ResourceDef, Scope, Strategy, Typed, age};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "PolicyName",
        "string",
        "",
        "PolicyName indicates the policy definition which the policy binding binded to",
    ),
    column(
        "ParamRef",
        "string",
        "",
        "ParamRef indicates the param resource which sets the configuration param",
    ),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::New,
    categories: CATEGORIES,
    scope: Scope::Cluster,
    columns: COLUMNS,
    has_generation: true,
    unconditional_update: false,
    ..ResourceDef::new::<ValidatingAdmissionPolicyBinding>(
        "validatingadmissionpolicybinding",
        &Typed::<ValidatingAdmissionPolicyBinding, _>::new(Bindings),
    )
};

struct Bindings;

impl Strategy<ValidatingAdmissionPolicyBinding> for Bindings {
    fn default(&self, obj: &mut ValidatingAdmissionPolicyBinding) {
        if let Some(resources) = &mut obj.spec.match_resources {
            matching::default(resources);
        }
    }

    fn validate(&self, obj: &ValidatingAdmissionPolicyBinding, errs: &mut ErrorList) {
        let spec = &obj.spec;
        binding(&spec.policy_name, spec.param_ref.as_ref(), spec.match_resources.as_ref(), errs);
        actions(&spec.validation_actions, &Path::new("spec").child("validationActions"), errs);
    }

    fn warnings(
        &self,
        new: &ValidatingAdmissionPolicyBinding,
        old: Option<&ValidatingAdmissionPolicyBinding>,
    ) -> Vec<String> {
        name_warnings(new.metadata.name.as_ref(), old.is_none())
    }

    fn row(&self, obj: &ValidatingAdmissionPolicyBinding, now: Timestamp) -> Vec<Value> {
        let spec = &obj.spec;
        vec![
            obj.metadata.name.clone().into(),
            spec.policy_name.clone().into(),
            param_ref_cell(spec.param_ref.as_ref()),
            age(obj.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}

/// What is done about a request that fails: each action once, and not two that tell the client the same.
fn actions(actions: &[String], path: &Path, errs: &mut ErrorList) {
    for (i, action) in actions.iter().enumerate() {
        one_of(errs, &path.index(i), action, &["Audit", "Deny", "Warn"]);
        if actions[..i].contains(action) {
            errs.duplicate(path.index(i), action.as_str());
        }
    }
    let has = |wanted: &str| actions.iter().any(|action| action == wanted);
    if has("Deny") && has("Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in \
                   the API response and headers serves no purpose)";
        errs.invalid(path, actions.to_vec(), why);
    }
    if actions.is_empty() {
        errs.required(path, "at least one validation action is required");
    }
}
