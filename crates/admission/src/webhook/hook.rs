//! One webhook of a configuration, of either kind, and what it wants to be asked about.

use std::time::Duration;

use coracle_meta::Object;
use coracle_meta::selector::LabelSelector;
use coracle_resources::def::ResourceDef;
use k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MutatingWebhookConfiguration, RuleWithOperations, ValidatingWebhookConfiguration,
    WebhookClientConfig,
};

use super::{TIMEOUT, Target};
use crate::Request;

/// The two kinds of webhooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Mutating,
    Validating,
}

impl Kind {
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Mutating => "mutatingwebhookconfigurations",
            Self::Validating => "validatingwebhookconfigurations",
        }
    }
}

/// A webhook.
#[derive(Clone, Debug)]
pub(crate) struct Hook {
    /// The configuration's name.
    pub(crate) configuration: String,
    pub(crate) name: String,
    /// Unique among all webhooks.
    pub(crate) uid: String,
    client: WebhookClientConfig,
    rules: Vec<RuleWithOperations>,
    /// Requests pass when it cannot be asked.
    pub(crate) ignore_failure: bool,
    /// Rules for other versions of the same resource count, too.
    equivalent: bool,
    pub(super) namespaces: LabelSelector,
    objects: LabelSelector,
    pub(super) side_effects: String,
    pub(super) timeout: Duration,
    pub(super) review_versions: Vec<String>,
    /// Asked again when the object changed behind it.
    pub(crate) again: bool,
    pub(super) conditions: Vec<MatchCondition>,
}

impl Hook {
    /// The webhooks of a configuration.
    pub(super) fn of(configuration: &dyn Object) -> Vec<Self> {
        let name = configuration.name().to_owned();
        macro_rules! hook {
            ($hook:expr, $index:expr, $again:expr) => {{
                let h = $hook;
                let selector = |s: &Option<_>| {
                    let parsed = s.as_ref().map(LabelSelector::from_api);
                    parsed.transpose().ok().flatten().unwrap_or_else(LabelSelector::everything)
                };
                let seconds = h.timeout_seconds.and_then(|s| u64::try_from(s).ok());
                Self {
                    configuration: name.clone(),
                    name: h.name.clone(),
                    uid: format!("{name}/{}/{}", h.name, $index),
                    client: h.client_config.clone(),
                    rules: h.rules.clone().unwrap_or_default(),
                    ignore_failure: h.failure_policy.as_deref() == Some("Ignore"),
                    equivalent: h.match_policy.as_deref() != Some("Exact"),
                    namespaces: selector(&h.namespace_selector),
                    objects: selector(&h.object_selector),
                    side_effects: h.side_effects.clone(),
                    timeout: seconds.map_or(TIMEOUT, Duration::from_secs),
                    review_versions: h.admission_review_versions.clone(),
                    again: $again,
                    conditions: h.match_conditions.clone().unwrap_or_default(),
                }
            }};
        }
        if let Some(found) = configuration.downcast::<MutatingWebhookConfiguration>() {
            let all = found.webhooks.iter().flatten().enumerate();
            return all
                .map(|(i, h)| hook!(h, i, h.reinvocation_policy.as_deref() == Some("IfNeeded")))
                .collect();
        }
        let Some(found) = configuration.downcast::<ValidatingWebhookConfiguration>() else {
            return Vec::new();
        };
        found.webhooks.iter().flatten().enumerate().map(|(i, h)| hook!(h, i, false)).collect()
    }

    /// Whether the object selector holds for the object as it is or as it shall be.
    pub(super) fn selects(&self, request: &Request<'_>) -> bool {
        let matches = |obj: &dyn Object| self.objects.matches_option(obj.meta().labels.as_ref());
        self.objects.is_empty()
            || request.object.as_deref().is_some_and(|obj| matches(&**obj))
            || request.old.is_some_and(matches)
    }

    /// The version of the resource to send: the request's, or another that a rule names.
    pub(super) fn version_for<'a>(&self, request: &Request<'a>) -> Option<&'a ResourceDef> {
        let own = request.resource;
        if self.rules.iter().any(|rule| matches(rule, request, own)) {
            return Some(own);
        }
        if !self.equivalent {
            return None;
        }
        let same =
            |d: &&&ResourceDef| (d.group, d.plural) == (own.group, own.plural) && d.version != own.version;
        let others = coracle_resources::all().iter().filter(same);
        self.rules.iter().find_map(|rule| others.clone().find(|def| matches(rule, request, def)).copied())
    }

    /// Where the webhook is.
    ///
    /// # Errors
    /// A configuration that names no place.
    pub(super) fn target(&self) -> Result<Target, String> {
        let ca_bundle = self.client.ca_bundle.as_ref().map(|b| b.0.clone()).filter(|b| !b.is_empty());
        if let Some(service) = &self.client.service {
            let (namespace, name) = (&service.namespace, &service.name);
            return Ok(Target::of_service(namespace, name, service.port, service.path.as_deref(), ca_bundle));
        }
        match &self.client.url {
            Some(url) => Ok(Target { url: url.clone(), service: None, ca_bundle }),
            None => Err("webhook configuration must have either service or URL".to_owned()),
        }
    }
}

fn names(list: Option<&Vec<String>>, asked: &str) -> bool {
    list.into_iter().flatten().any(|item| item == "*" || item == asked)
}

/// Whether a rule is about the request, as if it were for `def`'s version.
pub(crate) fn matches(rule: &RuleWithOperations, request: &Request<'_>, def: &ResourceDef) -> bool {
    let cluster = request.namespace.is_empty() || (def.group.is_empty() && def.plural == "namespaces");
    let scope = match rule.scope.as_deref() {
        Some("Namespaced") => !cluster,
        Some("Cluster") => cluster,
        _ => true,
    };
    let operation = request.operation.as_str();
    let resource = |item: &String| {
        let (resource, sub) = item.split_once('/').unwrap_or((item, ""));
        (resource == "*" || resource == def.plural) && (sub == "*" || sub == request.subresource)
    };
    scope
        && names(rule.operations.as_ref(), operation)
        && names(rule.api_groups.as_ref(), def.group)
        && names(rule.api_versions.as_ref(), def.version)
        && rule.resources.iter().flatten().any(resource)
}
