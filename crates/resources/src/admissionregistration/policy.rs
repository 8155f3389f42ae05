//! Admission policies and their bindings: what mutating and validating ones have in common.

use coracle_cel::policy::{Compiler, Options};
use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use k8s_openapi::api::admissionregistration::v1::{MatchResources, ParamKind, ParamRef, Variable};
use serde_json::Value;

use super::matching;
use crate::check::{label_selector, named, one_of};
use crate::common::text;

const CEL_RESERVED: &[&str] = &[
    "as",
    "break",
    "const",
    "continue",
    "else",
    "false",
    "for",
    "function",
    "if",
    "import",
    "in",
    "let",
    "loop",
    "namespace",
    "null",
    "package",
    "return",
    "true",
    "var",
    "void",
    "while",
];

/// Checks the kind of a policy's parameters.
pub(super) fn param_kind(kind: &ParamKind, path: &Path, errs: &mut ErrorList) {
    let (group_version, at) = (text(kind.api_version.as_ref()), path.child("apiVersion"));
    let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
    if group_version.is_empty() {
        errs.required(&at, "");
    } else if version.contains('/') {
        errs.invalid(&at, group_version, format!("unexpected GroupVersion string: {group_version}"));
    } else {
        let messages = if group.is_empty() { Vec::new() } else { names::dns1123_subdomain(group) };
        if !messages.is_empty() {
            errs.invalid(&at, group, messages.join(","));
        }
        let messages = names::dns1035_label(version);
        if version.is_empty() {
            errs.invalid(&at, group_version, "version must be specified");
        } else if !messages.is_empty() {
            errs.invalid(&at, version, messages.join(","));
        }
    }
    let (kind, at) = (text(kind.kind.as_ref()), path.child("kind"));
    let messages = names::dns1035_label(&kind.to_lowercase());
    if kind.is_empty() {
        errs.required(at, "");
    } else if !messages.is_empty() {
        let why = format!("may have mixed case, but should otherwise match: {}", messages.join(","));
        errs.invalid(at, kind, why);
    }
}

/// The table cell of a policy's parameters.
pub(super) fn param_kind_cell(kind: Option<&ParamKind>) -> Value {
    let shown = kind.map(|k| format!("{}/{}", text(k.api_version.as_ref()), text(k.kind.as_ref())));
    shown.unwrap_or_else(|| "<unset>".to_owned()).into()
}

/// Checks the variables of a policy; the compiler for its other expressions, which may name them.
pub(super) fn variables(variables: &[Variable], params: bool, path: &Path, errs: &mut ErrorList) -> Compiler {
    let mut compiler = if variables.is_empty() { Compiler::plain() } else { Compiler::composed() };
    let options = Options { params, authorizer: true, ..Options::default() };
    for (i, variable) in variables.iter().enumerate() {
        let (path, name) = (path.index(i), variable.name.as_str());
        if name.trim().is_empty() {
            errs.required(path.child("name"), "name is not specified");
        } else if !is_identifier(name) {
            errs.invalid(path.child("name"), name, "must be a valid CEL identifier");
        }
        let (expression, at) = (variable.expression.as_str(), path.child("expression"));
        if expression.trim().is_empty() {
            errs.required(at, "expression is not specified");
        } else {
            let compiled = compiler.add_variable(name, expression, options);
            matching::compiled_or(compiled, expression, at, errs);
        }
    }
    compiler
}

fn is_identifier(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    first && rest && !CEL_RESERVED.contains(&name)
}

/// Checks what bindings of both kinds have.
pub(super) fn binding(
    policy: &str,
    params: Option<&ParamRef>,
    resources: Option<&MatchResources>,
    errs: &mut ErrorList,
) {
    let path = Path::new("spec");
    match policy {
        "" => errs.required(path.child("policyName"), ""),
        name => named(errs, &path.child("policyName"), name, names::dns1123_subdomain),
    }
    if let Some(params) = params {
        param_ref(params, &path.child("paramRef"), errs);
    }
    if let Some(resources) = resources {
        matching::resources(resources, &path.child("matchResources"), errs);
    }
}

fn param_ref(params: &ParamRef, path: &Path, errs: &mut ErrorList) {
    let (name, exclusive) = (text(params.name.as_ref()), "name and selector are mutually exclusive");
    if !name.is_empty() {
        named(errs, &path.child("name"), name, names::path_segment);
    }
    label_selector(params.selector.as_ref(), &path.child("selector"), errs);
    match (name.is_empty(), params.selector.is_some()) {
        (false, true) => {
            errs.forbidden(path.child("name"), exclusive);
            errs.forbidden(path.child("selector"), exclusive);
        }
        (true, false) => errs.required(path, "one of name or selector must be specified"),
        _ => {}
    }
    let at = path.child("parameterNotFoundAction");
    match text(params.parameter_not_found_action.as_ref()) {
        "" => errs.required(at, ""),
        action => one_of(errs, &at, action, &["Deny", "Allow"]),
    }
}

/// The table cell of a binding's parameters.
pub(super) fn param_ref_cell(params: Option<&ParamRef>) -> Value {
    let Some(params) = params else { return "<unset>".into() };
    let (namespace, name) = (text(params.namespace.as_ref()), text(params.name.as_ref()));
    match (namespace, name, &params.selector) {
        (_, "", None) => "<unset>".into(),
        (_, "", Some(selector)) => go_selector(selector).into(),
        ("", name, _) => format!("*/{name}").into(),
        (namespace, name, _) => format!("{namespace}/{name}").into(),
    }
}

/// A selector as the generated Go code prints it.
fn go_selector(selector: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector) -> String {
    let labels: String =
        selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}: {value},")).collect();
    let terms: String = selector
        .match_expressions
        .iter()
        .flatten()
        .map(|term| {
            let values = term.values.as_deref().unwrap_or_default().join(" ");
            format!(
                "LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},",
                term.key, term.operator
            )
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},\
         MatchExpressions:[]LabelSelectorRequirement{{{terms}}},}}"
    )
}
