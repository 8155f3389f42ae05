//! MutatingAdmissionPolicyBinding: puts a mutating policy to work, with parameters, for some of the requests.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::MutatingAdmissionPolicyBinding;
use serde_json::Value;

use super::policy::{binding, param_ref_cell};
use super::{CATEGORIES, matching, name_warnings};
use crate::common::{column, text};
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
    ..ResourceDef::new::<MutatingAdmissionPolicyBinding>(
        "mutatingadmissionpolicybinding",
        &Typed::<MutatingAdmissionPolicyBinding, _>::new(Bindings),
    )
};

struct Bindings;

impl Strategy<MutatingAdmissionPolicyBinding> for Bindings {
    fn default(&self, obj: &mut MutatingAdmissionPolicyBinding) {
        if let Some(resources) = &mut obj.spec.get_or_insert_default().match_resources {
            matching::default(resources);
        }
    }

    fn validate(&self, obj: &MutatingAdmissionPolicyBinding, errs: &mut ErrorList) {
        let Some(spec) = &obj.spec else { return errs.required(Path::new("spec").child("policyName"), "") };
        binding(
            text(spec.policy_name.as_ref()),
            spec.param_ref.as_ref(),
            spec.match_resources.as_ref(),
            errs,
        );
        let path = Path::new("spec").child("matchResources");
        matching::mutable_only(spec.match_resources.as_ref(), &path, errs);
    }

    fn warnings(
        &self,
        new: &MutatingAdmissionPolicyBinding,
        old: Option<&MutatingAdmissionPolicyBinding>,
    ) -> Vec<String> {
        name_warnings(new.metadata.name.as_ref(), old.is_none())
    }

    fn row(&self, obj: &MutatingAdmissionPolicyBinding, now: Timestamp) -> Vec<Value> {
        let spec = obj.spec.as_ref();
        vec![
            obj.metadata.name.clone().into(),
            text(spec.and_then(|s| s.policy_name.as_ref())).into(),
            param_ref_cell(spec.and_then(|s| s.param_ref.as_ref())),
            age(obj.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}
