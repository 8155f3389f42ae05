//! Which requests a webhook or policy is for: rules, match resources, match conditions.

use std::collections::BTreeSet;

use coracle_cel::Program;
use coracle_cel::policy::{Compiler, Options, Returns, Unusable};
use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MatchResources, NamedRuleWithOperations, RuleWithOperations,
};

use super::{MATCH_POLICIES, needed};
use crate::check::{label_selector, named, one_of};

/// Match conditions of one webhook or policy.
const MAX_CONDITIONS: usize = 64;
const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
/// Operations that a policy can change something of.
const MUTATING_OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "UPDATE"];
const SCOPES: &[&str] = &["*", "Cluster", "Namespaced"];

/// A rule of either type.
#[derive(Clone, Copy)]
struct Rule<'a> {
    operations: &'a [String],
    groups: &'a [String],
    versions: &'a [String],
    resources: &'a [String],
    scope: Option<&'a String>,
}

impl<'a> From<&'a RuleWithOperations> for Rule<'a> {
    fn from(rule: &'a RuleWithOperations) -> Self {
        Self {
            operations: rule.operations.as_deref().unwrap_or_default(),
            groups: rule.api_groups.as_deref().unwrap_or_default(),
            versions: rule.api_versions.as_deref().unwrap_or_default(),
            resources: rule.resources.as_deref().unwrap_or_default(),
            scope: rule.scope.as_ref(),
        }
    }
}

impl<'a> From<&'a NamedRuleWithOperations> for Rule<'a> {
    fn from(rule: &'a NamedRuleWithOperations) -> Self {
        Self {
            operations: rule.operations.as_deref().unwrap_or_default(),
            groups: rule.api_groups.as_deref().unwrap_or_default(),
            versions: rule.api_versions.as_deref().unwrap_or_default(),
            resources: rule.resources.as_deref().unwrap_or_default(),
            scope: rule.scope.as_ref(),
        }
    }
}

/// Defaults of match resources.
pub(super) fn default(resources: &mut MatchResources) {
    resources.match_policy.get_or_insert_with(|| "Equivalent".to_owned());
    resources.namespace_selector.get_or_insert_default();
    resources.object_selector.get_or_insert_default();
    let rules = resources.resource_rules.iter_mut().chain(&mut resources.exclude_resource_rules);
    rules.flatten().for_each(|rule| default_scope(&mut rule.scope));
}

/// A rule is for both scopes unless it says otherwise.
pub(super) fn default_scope(scope: &mut Option<String>) {
    scope.get_or_insert_with(|| "*".to_owned());
}

/// Checks match resources.
pub(super) fn resources(resources: &MatchResources, path: &Path, errs: &mut ErrorList) {
    needed(resources.match_policy.as_ref(), MATCH_POLICIES, &path.child("matchPolicy"), errs);
    for (field, selector) in
        [("namespaceSelector", &resources.namespace_selector), ("objectSelector", &resources.object_selector)]
    {
        match selector {
            None => errs.required(path.child(field), ""),
            Some(selector) => label_selector(Some(selector), &path.child(field), errs),
        }
    }
    for (field, rules) in [
        ("resourceRules", &resources.resource_rules),
        ("excludeResourceRules", &resources.exclude_resource_rules),
    ] {
        for (i, rule) in rules.iter().flatten().enumerate() {
            named_rule(rule, &path.child(field).index(i), errs);
        }
    }
}

/// Checks the match constraints of a policy, which needs resource rules for type information.
pub(super) fn constraints(constraints: Option<&MatchResources>, path: &Path, errs: &mut ErrorList) {
    let Some(constraints) = constraints else { return errs.required(path, "") };
    resources(constraints, path, errs);
    if constraints.resource_rules.as_ref().is_none_or(Vec::is_empty) {
        errs.required(path.child("resourceRules"), "");
    }
}

/// Checks that only requests are matched that a policy can change.
pub(super) fn mutable_only(resources: Option<&MatchResources>, path: &Path, errs: &mut ErrorList) {
    let rules = resources.iter().flat_map(|r| r.resource_rules.iter().flatten());
    let at = path.child("resourceRules").child("operations");
    for operation in rules.flat_map(|rule| rule.operations.iter().flatten()) {
        one_of(errs, &at, operation, MUTATING_OPERATIONS);
    }
}

fn named_rule(rule: &NamedRuleWithOperations, path: &Path, errs: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, name) in rule.resource_names.iter().flatten().enumerate() {
        let at = path.child("resourceNames").index(i);
        named(errs, &at, name, names::path_segment);
        if !seen.insert(name) {
            errs.duplicate(at, name.as_str());
        }
    }
    check(rule.into(), path, errs);
}

/// Checks a rule of a webhook.
pub(super) fn rule(rule: &RuleWithOperations, path: &Path, errs: &mut ErrorList) {
    check(rule.into(), path, errs);
}

/// A list that is needed, and in which `*` stands alone.
fn list(items: &[String], others: &str, path: &Path, errs: &mut ErrorList) {
    if items.is_empty() {
        errs.required(path, "");
    }
    if items.len() > 1 && items.iter().any(|item| item == "*") {
        errs.invalid(path, items.to_vec(), format!("if '*' is present, must not specify other {others}"));
    }
}

fn check(rule: Rule<'_>, path: &Path, errs: &mut ErrorList) {
    let at = path.child("operations");
    list(rule.operations, "operations", &at, errs);
    for (i, operation) in rule.operations.iter().enumerate() {
        one_of(errs, &at.index(i), operation, OPERATIONS);
    }
    list(rule.groups, "API groups", &path.child("apiGroups"), errs);
    let at = path.child("apiVersions");
    list(rule.versions, "API versions", &at, errs);
    for (i, _) in rule.versions.iter().enumerate().filter(|(_, version)| version.is_empty()) {
        errs.required(at.index(i), "");
    }
    resource_list(rule.resources, &path.child("resources"), errs);
    if let Some(scope) = rule.scope {
        one_of(errs, &path.child("scope"), scope, SCOPES);
    }
}

/// Resources with subresources, such as `pods/*`; a wildcard excludes what it covers.
fn resource_list(resources: &[String], path: &Path, errs: &mut ErrorList) {
    if resources.is_empty() {
        errs.required(path, "");
    }
    let (mut all_of_resource, mut of_all_resources) = (BTreeSet::new(), BTreeSet::new());
    // Upstream forgets plain resources that stand before the last one of them.
    let mut plain = false;
    for (i, text) in resources.iter().enumerate() {
        let at = path.index(i);
        if text.is_empty() {
            errs.required(at, "");
            continue;
        }
        let Some((resource, part)) = text.split_once('/') else {
            plain = text != "*";
            continue;
        };
        if all_of_resource.contains(resource) {
            errs.invalid(
                &at,
                text.as_str(),
                format!("if '{resource}/*' is present, must not specify {text}"),
            );
        }
        if of_all_resources.contains(part) {
            errs.invalid(&at, text.as_str(), format!("if '*/{part}' is present, must not specify {text}"));
        }
        if part == "*" {
            all_of_resource.insert(resource);
        }
        if resource == "*" {
            of_all_resources.insert(part);
        }
    }
    let has = |wanted: &str| resources.iter().any(|text| text == wanted);
    if resources.len() > 1 && has("*/*") {
        errs.invalid(path, resources.to_vec(), "if '*/*' is present, must not specify other resources");
    }
    if has("*") && plain {
        let why = "if '*' is present, must not specify other resources without subresources";
        errs.invalid(path, resources.to_vec(), why);
    }
}

/// Checks match conditions: named, each name once, with an expression; `params` says whether these may name `params`.
pub(super) fn conditions(conditions: &[MatchCondition], params: bool, path: &Path, errs: &mut ErrorList) {
    if conditions.len() > MAX_CONDITIONS {
        errs.too_many(path, conditions.len(), MAX_CONDITIONS);
    }
    let mut seen = BTreeSet::new();
    for (i, condition) in conditions.iter().enumerate() {
        let path = path.index(i);
        let (expression, at) = (condition.expression.trim(), path.child("expression"));
        if expression.is_empty() {
            errs.required(at, "");
        } else {
            let options = Options { params, authorizer: true, ..Options::default() };
            let compiled = Compiler::plain().compile(expression, options, Returns::Bool);
            compiled_or(compiled, expression, at, errs);
        }
        let at = path.child("name");
        if condition.name.is_empty() {
            errs.required(at, "");
            continue;
        }
        named(errs, &at, &condition.name, names::qualified_name);
        if !seen.insert(condition.name.as_str()) {
            errs.duplicate(at, condition.name.as_str());
        }
    }
}

/// Reports why an expression cannot be used, if it cannot.
pub(super) fn compiled_or(
    compiled: Result<Program, Unusable>,
    expression: &str,
    path: Path,
    errs: &mut ErrorList,
) {
    match compiled {
        Ok(_) => {}
        Err(why) if why.internal => errs.internal(path, why.detail),
        Err(why) => errs.invalid(path, expression, why.detail),
    }
}
