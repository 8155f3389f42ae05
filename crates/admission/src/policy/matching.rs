//! Which requests a policy or binding is about.

use coracle_meta::Object;
use coracle_meta::selector::LabelSelector;
use coracle_resources::def::ResourceDef;
use k8s_openapi::api::admissionregistration::v1::{
    MatchResources, NamedRuleWithOperations, RuleWithOperations,
};

use crate::webhook::rule_matches;
use crate::{Environment, Request};

/// The version of the resource in which a policy sees the request.
pub(crate) type Matched<'a> = &'a ResourceDef;

/// Whether the resources are those of the request, and in which version.
///
/// # Errors
/// Why that cannot be told.
pub(crate) fn matched<'a>(
    env: &Environment,
    request: &Request<'a>,
    resources: &MatchResources,
) -> Result<Option<Matched<'a>>, String> {
    let selector = |of: &Option<_>, which: &str| match of {
        Some(selector) => LabelSelector::from_api(selector),
        None => Err(format!(
            "a nil {which} selector was passed, please ensure selectors are initialized properly"
        )),
    };
    let namespaces = selector(&resources.namespace_selector, "namespace")?;
    let objects = selector(&resources.object_selector, "object")?;
    let in_namespace = namespace_matches(env, request, &namespaces);
    if in_namespace == Ok(false) || !object_matches(request, &objects) {
        return Ok(None);
    }
    let equivalent = resources.match_policy.as_deref() != Some("Exact");
    let rules = |list: &Option<Vec<NamedRuleWithOperations>>| {
        by_rules(list.as_deref().unwrap_or_default(), equivalent, request)
    };
    if rules(&resources.exclude_resource_rules).is_some() {
        return Ok(None);
    }
    let found = match resources.resource_rules.as_deref() {
        None | Some([]) => Some(request.resource),
        Some(_) => rules(&resources.resource_rules),
    };
    let Some(found) = found else { return Ok(None) };
    in_namespace.map(|_| Some(found))
}

fn by_rules<'a>(
    rules: &[NamedRuleWithOperations],
    equivalent: bool,
    request: &Request<'a>,
) -> Option<Matched<'a>> {
    let fits = |rule: &NamedRuleWithOperations, def: &ResourceDef| {
        let plain = RuleWithOperations {
            api_groups: rule.api_groups.clone(),
            api_versions: rule.api_versions.clone(),
            operations: rule.operations.clone(),
            resources: rule.resources.clone(),
            scope: rule.scope.clone(),
        };
        let names = rule.resource_names.as_deref().unwrap_or_default();
        rule_matches(&plain, request, def)
            && (names.is_empty() || names.iter().any(|name| name == request.name))
    };
    let own = request.resource;
    if rules.iter().any(|rule| fits(rule, own)) {
        return Some(own);
    }
    if !equivalent {
        return None;
    }
    let same = |def: &&&ResourceDef| {
        (def.group, def.plural) == (own.group, own.plural) && def.version != own.version
    };
    let others = coracle_resources::all().iter().filter(same);
    rules.iter().find_map(|rule| others.clone().find(|def| fits(rule, def)).copied())
}

fn object_matches(request: &Request<'_>, selector: &LabelSelector) -> bool {
    let matches = |obj: &dyn Object| selector.matches_option(obj.meta().labels.as_ref());
    selector.is_empty()
        || request.object.as_deref().is_some_and(|obj| matches(&**obj))
        || request.old.is_some_and(matches)
}

fn namespace_matches(
    env: &Environment,
    request: &Request<'_>,
    selector: &LabelSelector,
) -> Result<bool, String> {
    let own = request.resource.group.is_empty() && request.resource.plural == "namespaces";
    if (request.namespace.is_empty() && !own) || selector.is_empty() {
        return Ok(true);
    }
    if own
        && request.subresource.is_empty()
        && let Some(object) = request.object.as_deref()
    {
        return Ok(selector.matches_option(object.meta().labels.as_ref()));
    }
    let name = if own { request.name } else { request.namespace };
    match env.reader.get("", "namespaces", "", name) {
        Some(namespace) => Ok(selector.matches_option(namespace.meta().labels.as_ref())),
        None => Err(format!("namespaces \"{name}\" not found")),
    }
}
