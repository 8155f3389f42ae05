//! The parameters of a policy that a binding names.

use std::sync::Arc;

use coracle_meta::Object;
use coracle_meta::selector::LabelSelector;
use coracle_resources::def::Scope;
use k8s_openapi::api::admissionregistration::v1::{ParamKind, ParamRef};

use crate::Environment;

/// Where objects of a kind are.
struct Place {
    group: String,
    plural: String,
    namespaced: bool,
}

/// The parameters, each to be evaluated with on its own: one absent one if the policy has none.
///
/// # Errors
/// What is wrong with the configuration.
pub(crate) fn collect(
    env: &Environment,
    kind: Option<&ParamKind>,
    reference: Option<&ParamRef>,
    namespace: &str,
) -> Result<Vec<Option<Arc<dyn Object>>>, String> {
    let (Some(kind), Some(reference)) = (kind, reference) else { return Ok(vec![None]) };
    let place = find(env, kind).ok_or_else(|| unknown(kind))?;
    let own = reference.namespace.as_deref().filter(|ns| !ns.is_empty());
    let within = match (place.namespaced, own) {
        (false, Some(_)) => {
            return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned());
        }
        (false, None) => "",
        (true, Some(own)) => own,
        (true, None) if namespace.is_empty() => {
            let why =
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources";
            return Err(why.to_owned());
        }
        (true, None) => namespace,
    };
    let name = reference.name.as_deref().filter(|name| !name.is_empty());
    let found: Vec<_> = match (name, &reference.selector) {
        (Some(_), Some(_)) => {
            return Err("paramRef.name and paramRef.selector are mutually exclusive".to_owned());
        }
        (Some(name), None) => env.reader.get(&place.group, &place.plural, within, name).into_iter().collect(),
        (None, Some(selector)) => {
            let selector = LabelSelector::from_api(selector)?;
            let all = env.reader.list(&place.group, &place.plural, within);
            all.into_iter().filter(|obj| selector.matches_option(obj.meta().labels.as_ref())).collect()
        }
        (None, None) => return Err("one of name or selector must be provided".to_owned()),
    };
    if found.is_empty() && reference.parameter_not_found_action.as_deref() == Some("Deny") {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    Ok(found.into_iter().map(Some).collect())
}

/// The message for a kind that is not served.
pub(crate) fn unknown(kind: &ParamKind) -> String {
    let version = kind.api_version.as_deref().unwrap_or("");
    let kind = kind.kind.as_deref().unwrap_or("");
    format!("failed to find resource referenced by paramKind: '{version}, Kind={kind}'")
}

/// Whether objects of the kind can be had.
pub(crate) fn is_known(env: &Environment, kind: &ParamKind) -> bool {
    find(env, kind).is_some()
}

fn find(env: &Environment, kind: &ParamKind) -> Option<Place> {
    let (api_version, kind) = (kind.api_version.as_deref()?, kind.kind.as_deref()?);
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let built_in =
        coracle_resources::all().iter().find(|d| (d.group, d.version, d.kind) == (group, version, kind));
    if let Some(def) = built_in {
        return Some(Place {
            group: group.to_owned(),
            plural: def.plural.to_owned(),
            namespaced: def.scope == Scope::Namespaced,
        });
    }
    let (plural, namespaced) = env.reader.custom_kind(group, version, kind)?;
    Some(Place { group: group.to_owned(), plural, namespaced })
}
