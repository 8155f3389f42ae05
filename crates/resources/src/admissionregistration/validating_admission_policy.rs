//! ValidatingAdmissionPolicy: checks of objects on their way in, as CEL expressions.

use std::collections::BTreeSet;

use coracle_cel::policy::{Compiler, Options, Returns};
use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::{
    AuditAnnotation, TypeChecking, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyStatus, Validation,
};
use serde_json::{Value, json};

use super::policy::{param_kind, param_kind_cell, variables};
use super::{CATEGORIES, FAILURE_POLICIES, matching, name_warnings, needed};
use crate::check::{each, one_of};
use crate::common::{column, keep_metadata, text};
use crate::conditions;
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Scope, Strategy, Subresource, Typed, age};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Validations",
        "integer",
        "",
        "Validations indicates the number of validation rules defined in this configuration",
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
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    has_generation: true,
    unconditional_update: false,
    ..ResourceDef::new::<ValidatingAdmissionPolicy>(
        "validatingadmissionpolicy",
        &Typed::<ValidatingAdmissionPolicy, _>::new(Policies),
    )
};

struct Policies;

const MAX_ANNOTATIONS: usize = 20;
/// Bytes of the expression of an audit annotation.
const MAX_ANNOTATION_EXPRESSION: usize = 5 * 1024;

impl Strategy<ValidatingAdmissionPolicy> for Policies {
    fn default(&self, obj: &mut ValidatingAdmissionPolicy) {
        let spec = obj.spec.get_or_insert_default();
        spec.failure_policy.get_or_insert_with(|| "Fail".to_owned());
        if let Some(resources) = &mut spec.match_constraints {
            matching::default(resources);
        }
        obj.status.get_or_insert_default();
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut ValidatingAdmissionPolicy) {
        obj.status = Some(ValidatingAdmissionPolicyStatus::default());
    }

    fn prepare_update(
        &self,
        _: Context<'_>,
        new: &mut ValidatingAdmissionPolicy,
        old: &ValidatingAdmissionPolicy,
    ) {
        new.status.clone_from(&old.status);
    }

    fn prepare_status_update(
        &self,
        _: Context<'_>,
        new: &mut ValidatingAdmissionPolicy,
        old: &ValidatingAdmissionPolicy,
    ) {
        new.spec.clone_from(&old.spec);
        keep_metadata(&mut new.metadata, &old.metadata);
    }

    fn validate(&self, obj: &ValidatingAdmissionPolicy, errs: &mut ErrorList) {
        check(obj, true, errs);
    }

    fn validate_update(
        &self,
        new: &ValidatingAdmissionPolicy,
        old: &ValidatingAdmissionPolicy,
        errs: &mut ErrorList,
    ) {
        let of = |p: &ValidatingAdmissionPolicy| p.spec.clone().map(|s| (s.param_kind, s.match_conditions));
        check(new, of(new) != of(old), errs);
    }

    fn validate_status_update(
        &self,
        new: &ValidatingAdmissionPolicy,
        _: &ValidatingAdmissionPolicy,
        errs: &mut ErrorList,
    ) {
        let Some(status) = &new.status else { return };
        let path = Path::new("status");
        if let Some(checking) = &status.type_checking {
            type_checking(checking, &path.child("typeChecking").child("expressionWarnings"), errs);
        }
        conditions::check(status.conditions.as_deref().unwrap_or_default(), &path.child("conditions"), errs);
    }

    fn warnings(
        &self,
        new: &ValidatingAdmissionPolicy,
        old: Option<&ValidatingAdmissionPolicy>,
    ) -> Vec<String> {
        name_warnings(new.metadata.name.as_ref(), old.is_none())
    }

    fn row(&self, obj: &ValidatingAdmissionPolicy, now: Timestamp) -> Vec<Value> {
        let spec = obj.spec.as_ref();
        vec![
            obj.metadata.name.clone().into(),
            spec.and_then(|s| s.validations.as_ref()).map_or(0, Vec::len).into(),
            param_kind_cell(spec.and_then(|s| s.param_kind.as_ref())),
            age(obj.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}

fn check(obj: &ValidatingAdmissionPolicy, conditions: bool, errs: &mut ErrorList) {
    let Some(spec) = &obj.spec else { return };
    let (path, params) = (Path::new("spec"), spec.param_kind.is_some());
    needed(spec.failure_policy.as_ref(), FAILURE_POLICIES, &path.child("failurePolicy"), errs);
    if let Some(kind) = &spec.param_kind {
        param_kind(kind, &path.child("paramKind"), errs);
    }
    matching::constraints(spec.match_constraints.as_ref(), &path.child("matchConstraints"), errs);
    if conditions {
        let list = spec.match_conditions.as_deref().unwrap_or_default();
        matching::conditions(list, params, &path.child("matchConditions"), errs);
    }
    let list = spec.variables.as_deref().unwrap_or_default();
    let compiler = variables(list, params, &path.child("variables"), errs);
    let validations = spec.validations.as_deref().unwrap_or_default();
    let annotations = spec.audit_annotations.as_deref().unwrap_or_default();
    if validations.is_empty() && annotations.is_empty() {
        let why = "validations or auditAnnotations must contain at least one item";
        errs.required(path.child("validations"), why);
        errs.required(path.child("auditAnnotations"), why);
        return;
    }
    for (i, one) in validations.iter().enumerate() {
        validation(one, &compiler, params, &path.child("validations").index(i), errs);
    }
    let at = path.child("auditAnnotations");
    audit_annotations(text(obj.metadata.name.as_ref()), annotations, &at, errs);
    let options = Options { params, authorizer: true, ..Options::default() };
    for (i, annotation) in annotations.iter().enumerate() {
        let expression = annotation.value_expression.trim();
        if !expression.is_empty() && expression.len() <= MAX_ANNOTATION_EXPRESSION {
            let compiled = compiler.compile(expression, options, Returns::StringOrNull);
            let at = at.index(i).child("valueExpression");
            matching::compiled_or(compiled, &annotation.value_expression, at, errs);
        }
    }
}

fn validation(one: &Validation, compiler: &Compiler, params: bool, path: &Path, errs: &mut ErrorList) {
    let options = Options { params, authorizer: true, ..Options::default() };
    if one.expression.trim().is_empty() {
        errs.required(path.child("expression"), "expression is not specified");
    } else {
        let compiled = compiler.compile(&one.expression, options, Returns::Bool);
        matching::compiled_or(compiled, &one.expression, path.child("expression"), errs);
    }
    let blank = |text: &str| !text.is_empty() && text.trim().is_empty();
    let expression = text(one.message_expression.as_ref());
    if blank(expression) {
        errs.invalid(path.child("messageExpression"), expression, "must be non-empty if specified");
    } else if !expression.is_empty() {
        let options = Options { params, ..Options::default() };
        let compiled = compiler.compile(expression, options, Returns::String);
        matching::compiled_or(compiled, expression, path.child("messageExpression"), errs);
    }
    let message = text(one.message.as_ref());
    if blank(message) {
        errs.invalid(path.child("message"), message, "must be non-empty if specified");
    } else if message.trim().contains(['\n', '\r']) {
        errs.invalid(path.child("message"), message, "must not contain line breaks");
    }
    if let Some(reason) = &one.reason {
        one_of(errs, &path.child("reason"), reason, &["Forbidden", "Invalid", "RequestEntityTooLarge"]);
    }
}

fn audit_annotations(policy: &str, annotations: &[AuditAnnotation], path: &Path, errs: &mut ErrorList) {
    if annotations.len() > MAX_ANNOTATIONS {
        let shown: Vec<Value> = annotations
            .iter()
            .map(|a| json!({ "Key": a.key, "ValueExpression": a.value_expression }))
            .collect();
        errs.invalid(path, shown, format!("must not have more than {MAX_ANNOTATIONS} auditAnnotations"));
    }
    let mut seen = BTreeSet::new();
    for (i, annotation) in annotations.iter().enumerate() {
        let path = path.index(i);
        let (key, at) = (annotation.key.as_str(), path.child("key"));
        if policy.is_empty() {
            errs.invalid(&at, key, "requires metadata.name be non-empty");
        } else {
            let name = format!("{policy}/{key}");
            each(errs, &at, name.as_str(), names::qualified_name(&name));
        }
        let (length, limit) = (annotation.value_expression.trim().len(), MAX_ANNOTATION_EXPRESSION);
        if length == 0 {
            errs.required(path.child("valueExpression"), "valueExpression is not specified");
        } else if length > limit {
            errs.required(path.child("valueExpression"), format!("must not exceed {limit} bytes in length"));
        }
        if !seen.insert(key) {
            errs.duplicate(at, key);
        }
    }
}

fn type_checking(checking: &TypeChecking, path: &Path, errs: &mut ErrorList) {
    for (i, warning) in checking.expression_warnings.iter().flatten().enumerate() {
        let path = path.index(i);
        if warning.warning.is_empty() {
            errs.required(path.child("warning"), "");
        }
        if warning.field_ref.trim().is_empty() {
            errs.required(path.child("fieldRef"), "");
        }
    }
}
