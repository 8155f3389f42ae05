//! MutatingAdmissionPolicy: changes of objects on their way in, as CEL expressions.

use coracle_cel::policy::{Compiler, Options, Returns};
use coracle_meta::field::{ErrorList, Path};
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::{MutatingAdmissionPolicy, Mutation};
use serde_json::Value;

use super::policy::{param_kind, param_kind_cell, variables};
use super::{CATEGORIES, FAILURE_POLICIES, REINVOCATION_POLICIES, matching, name_warnings, needed};
use crate::check::one_of;
use crate::common::{column, text};
use crate::def::{AGE, Column, NAME, ResourceDef, Scope, Strategy, Typed, age};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Mutations",
        "integer",
        "",
        "Mutation indicates the number of mutations rules defined in this configuration",
    ),
    column(
        "ParamKind",
        "string",
        "",
        "ParamKind specifies the kind of resources used to parameterize this policy",
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
    ..ResourceDef::new::<MutatingAdmissionPolicy>(
        "mutatingadmissionpolicy",
        &Typed::<MutatingAdmissionPolicy, _>::new(Policies),
    )
};

struct Policies;

impl Strategy<MutatingAdmissionPolicy> for Policies {
    fn default(&self, obj: &mut MutatingAdmissionPolicy) {
        let spec = obj.spec.get_or_insert_default();
        spec.failure_policy.get_or_insert_with(|| "Fail".to_owned());
        if let Some(resources) = &mut spec.match_constraints {
            matching::default(resources);
        }
    }

    fn validate(&self, obj: &MutatingAdmissionPolicy, errs: &mut ErrorList) {
        check(obj, true, errs);
    }

    fn validate_update(
        &self,
        new: &MutatingAdmissionPolicy,
        old: &MutatingAdmissionPolicy,
        errs: &mut ErrorList,
    ) {
        let of = |p: &MutatingAdmissionPolicy| p.spec.clone().map(|s| (s.param_kind, s.match_conditions));
        check(new, of(new) != of(old), errs);
    }

    fn warnings(&self, new: &MutatingAdmissionPolicy, old: Option<&MutatingAdmissionPolicy>) -> Vec<String> {
        name_warnings(new.metadata.name.as_ref(), old.is_none())
    }

    fn row(&self, obj: &MutatingAdmissionPolicy, now: Timestamp) -> Vec<Value> {
        let spec = obj.spec.as_ref();
        vec![
            obj.metadata.name.clone().into(),
            spec.and_then(|s| s.mutations.as_ref()).map_or(0, Vec::len).into(),
            param_kind_cell(spec.and_then(|s| s.param_kind.as_ref())),
            age(obj.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}

fn check(obj: &MutatingAdmissionPolicy, conditions: bool, errs: &mut ErrorList) {
    let Some(spec) = &obj.spec else { return };
    let (path, params) = (Path::new("spec"), spec.param_kind.is_some());
    needed(spec.failure_policy.as_ref(), FAILURE_POLICIES, &path.child("failurePolicy"), errs);
    if let Some(kind) = &spec.param_kind {
        param_kind(kind, &path.child("paramKind"), errs);
    }
    let at = path.child("matchConstraints");
    matching::constraints(spec.match_constraints.as_ref(), &at, errs);
    matching::mutable_only(spec.match_constraints.as_ref(), &at, errs);
    if conditions {
        let list = spec.match_conditions.as_deref().unwrap_or_default();
        matching::conditions(list, params, &path.child("matchConditions"), errs);
    }
    let list = spec.variables.as_deref().unwrap_or_default();
    let compiler = variables(list, params, &path.child("variables"), errs);
    let (mutations, at) = (spec.mutations.as_deref().unwrap_or_default(), path.child("mutations"));
    if mutations.is_empty() {
        errs.required(&at, "mutations must contain at least one item");
    }
    for (i, one) in mutations.iter().enumerate() {
        mutation(one, &compiler, params, &at.index(i), errs);
    }
    let at = path.child("reinvocationPolicy");
    match text(spec.reinvocation_policy.as_ref()) {
        "" => errs.required(at, ""),
        policy => one_of(errs, &at, policy, REINVOCATION_POLICIES),
    }
}

fn mutation(one: &Mutation, compiler: &Compiler, params: bool, path: &Path, errs: &mut ErrorList) {
    let json = one.json_patch.as_ref().map(|p| text(p.expression.as_ref()));
    let apply = one.apply_configuration.as_ref().map(|p| text(p.expression.as_ref()));
    let (wanted, other) = (("jsonPatch", json), ("applyConfiguration", apply));
    let ((field, expression), (excluded, unwanted)) = match one.patch_type.as_str() {
        "" => return errs.required(path.child("patchType"), ""),
        "JSONPatch" => (wanted, other),
        "ApplyConfiguration" => (other, wanted),
        unknown => {
            return errs.not_supported(
                path.child("patchType"),
                unknown,
                &["ApplyConfiguration", "JSONPatch"],
            );
        }
    };
    match expression {
        None => {
            let why = format!("must be specified when patchType is {}", one.patch_type);
            errs.required(path.child(field), why);
        }
        Some(text) if text.trim().is_empty() => errs.required(path.child(field).child("expression"), ""),
        Some(text) => {
            let options = Options { params, authorizer: true, patch_types: true };
            let returns = if field == "jsonPatch" { Returns::JsonPatch } else { Returns::Object };
            let compiled = compiler.compile(text.trim(), options, returns);
            matching::compiled_or(compiled, text.trim(), path.child(field).child("expression"), errs);
        }
    }
    if unwanted.is_some() {
        let why = format!("must not be specified when patchType is {}", one.patch_type);
        errs.invalid(path.child(excluded), format!("{{{excluded}}}"), why);
    }
}
