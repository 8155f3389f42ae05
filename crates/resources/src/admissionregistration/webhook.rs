//! Webhooks: what mutating and validating ones have in common.

use std::collections::BTreeSet;

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MutatingWebhook, RuleWithOperations, ServiceReference, ValidatingWebhook,
    WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{FAILURE_POLICIES, MATCH_POLICIES, REINVOCATION_POLICIES, matching};
use crate::check::{each, label_selector, one_of};
use crate::gaps::EMPTY_TEXT;
use crate::url::Url;

/// Versions of AdmissionReview, one of which a webhook must understand.
const REVIEWS: &[&str] = &["v1", "v1beta1"];
const SIDE_EFFECTS: &[&str] = &["None", "NoneOnDryRun", "Some", "Unknown"];
const NO_SIDE_EFFECTS: &[&str] = &["None", "NoneOnDryRun"];
const URL_FORM: &str = "; desired format: https://host[/path]";

/// The fields of a webhook of either kind.
#[derive(Clone, Copy)]
pub(super) struct Webhook<'a> {
    name: &'a str,
    client: &'a WebhookClientConfig,
    rules: &'a [RuleWithOperations],
    failure_policy: Option<&'a String>,
    match_policy: Option<&'a String>,
    reinvocation_policy: Option<&'a String>,
    side_effects: &'a str,
    timeout: Option<i32>,
    namespace_selector: Option<&'a LabelSelector>,
    object_selector: Option<&'a LabelSelector>,
    reviews: &'a [String],
    conditions: &'a [MatchCondition],
}

impl<'a> From<&'a MutatingWebhook> for Webhook<'a> {
    fn from(hook: &'a MutatingWebhook) -> Self {
        Self {
            name: &hook.name,
            client: &hook.client_config,
            rules: hook.rules.as_deref().unwrap_or_default(),
            failure_policy: hook.failure_policy.as_ref(),
            match_policy: hook.match_policy.as_ref(),
            reinvocation_policy: hook.reinvocation_policy.as_ref(),
            side_effects: &hook.side_effects,
            timeout: hook.timeout_seconds,
            namespace_selector: hook.namespace_selector.as_ref(),
            object_selector: hook.object_selector.as_ref(),
            reviews: &hook.admission_review_versions,
            conditions: hook.match_conditions.as_deref().unwrap_or_default(),
        }
    }
}

impl<'a> From<&'a ValidatingWebhook> for Webhook<'a> {
    fn from(hook: &'a ValidatingWebhook) -> Self {
        Self {
            name: &hook.name,
            client: &hook.client_config,
            rules: hook.rules.as_deref().unwrap_or_default(),
            failure_policy: hook.failure_policy.as_ref(),
            match_policy: hook.match_policy.as_ref(),
            reinvocation_policy: None,
            side_effects: &hook.side_effects,
            timeout: hook.timeout_seconds,
            namespace_selector: hook.namespace_selector.as_ref(),
            object_selector: hook.object_selector.as_ref(),
            reviews: &hook.admission_review_versions,
            conditions: hook.match_conditions.as_deref().unwrap_or_default(),
        }
    }
}

/// Defaults of the fields that both kinds of webhooks have.
pub(super) struct Defaults<'a> {
    pub(super) failure_policy: &'a mut Option<String>,
    pub(super) match_policy: &'a mut Option<String>,
    pub(super) namespace_selector: &'a mut Option<LabelSelector>,
    pub(super) object_selector: &'a mut Option<LabelSelector>,
    pub(super) timeout: &'a mut Option<i32>,
    pub(super) client: &'a mut WebhookClientConfig,
    pub(super) rules: &'a mut Option<Vec<RuleWithOperations>>,
}

impl Defaults<'_> {
    /// Fills them in.
    pub(super) fn apply(self) {
        self.failure_policy.get_or_insert_with(|| "Fail".to_owned());
        self.match_policy.get_or_insert_with(|| "Equivalent".to_owned());
        self.namespace_selector.get_or_insert_default();
        self.object_selector.get_or_insert_default();
        self.timeout.get_or_insert(10);
        if let Some(service) = &mut self.client.service {
            service.port.get_or_insert(443);
        }
        self.rules.iter_mut().flatten().for_each(|rule| matching::default_scope(&mut rule.scope));
    }
}

/// Faults that stay allowed in a configuration that has them already.
#[derive(Clone, Copy)]
pub(super) struct Strictness {
    side_effects: bool,
    reviews: bool,
    unique_names: bool,
    conditions: bool,
}

impl Strictness {
    /// For a new configuration.
    pub(super) const FULL: Self =
        Self { side_effects: true, reviews: true, unique_names: true, conditions: true };

    /// For a change of one.
    pub(super) fn towards(new: &[Webhook<'_>], old: &[Webhook<'_>]) -> Self {
        let known = |hook: &&Webhook<'_>| {
            hook.reviews.is_empty() || hook.reviews.iter().any(|v| REVIEWS.contains(&v.as_str()))
        };
        let names: BTreeSet<&str> = old.iter().map(|hook| hook.name).collect();
        let same = |(new, old): (&Webhook<'_>, &Webhook<'_>)| new.conditions == old.conditions;
        Self {
            side_effects: old.iter().all(|hook| NO_SIDE_EFFECTS.contains(&hook.side_effects)),
            reviews: old.iter().all(|hook| known(&hook)),
            unique_names: names.len() == old.len(),
            conditions: new.len() != old.len() || !new.iter().zip(old).all(same),
        }
    }
}

/// Checks the webhooks of a configuration.
pub(super) fn check(hooks: &[Webhook<'_>], strict: Strictness, errs: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, hook) in hooks.iter().enumerate() {
        let path = Path::new("webhooks").index(i);
        one(hook, strict, &path, errs);
        reviews(hook.reviews, strict.reviews, &path.child("admissionReviewVersions"), errs);
        if strict.unique_names && !hook.name.is_empty() && !seen.insert(hook.name) {
            errs.duplicate(path.child("name"), hook.name);
        }
    }
}

fn one(hook: &Webhook<'_>, strict: Strictness, path: &Path, errs: &mut ErrorList) {
    full_name(hook.name, &path.child("name"), errs);
    for (i, rule) in hook.rules.iter().enumerate() {
        matching::rule(rule, &path.child("rules").index(i), errs);
    }
    for (field, value, set) in [
        ("failurePolicy", hook.failure_policy, FAILURE_POLICIES),
        ("matchPolicy", hook.match_policy, MATCH_POLICIES),
        ("reinvocationPolicy", hook.reinvocation_policy, REINVOCATION_POLICIES),
    ] {
        if let Some(value) = value {
            one_of(errs, &path.child(field), value, set);
        }
    }
    let allowed = if strict.side_effects { NO_SIDE_EFFECTS } else { SIDE_EFFECTS };
    match hook.side_effects {
        "" => {
            errs.required(path.child("sideEffects"), format!("must specify one of {}", allowed.join(", ")));
        }
        EMPTY_TEXT => errs.not_supported(path.child("sideEffects"), "", allowed),
        effects => one_of(errs, &path.child("sideEffects"), effects, allowed),
    }
    if let Some(seconds) = hook.timeout.filter(|seconds| !(1..=30).contains(seconds)) {
        let why = "the timeout value must be between 1 and 30 seconds";
        errs.invalid(path.child("timeoutSeconds"), seconds, why);
    }
    label_selector(hook.namespace_selector, &path.child("namespaceSelector"), errs);
    label_selector(hook.object_selector, &path.child("objectSelector"), errs);
    let at = path.child("clientConfig");
    match (&hook.client.url, &hook.client.service) {
        (Some(url), None) => webhook_url(url, &at.child("url"), errs),
        (None, Some(service)) => webhook_service(service, &at.child("service"), errs),
        _ => errs.required(at, "exactly one of url or service is required"),
    }
    if strict.conditions {
        matching::conditions(hook.conditions, false, &path.child("matchConditions"), errs);
    }
}

/// A DNS name of three labels or more.
fn full_name(name: &str, path: &Path, errs: &mut ErrorList) {
    if name.is_empty() {
        return errs.required(path, "");
    }
    let messages = names::dns1123_subdomain(name);
    if !messages.is_empty() {
        errs.invalid(path, name, messages.join(","));
    } else if name.split('.').count() < 3 {
        errs.invalid(path, name, "should be a domain with at least three segments separated by dots");
    }
}

fn reviews(versions: &[String], known: bool, path: &Path, errs: &mut ErrorList) {
    if versions.is_empty() {
        return errs.required(path, format!("must specify one of {}", REVIEWS.join(", ")));
    }
    let mut seen = BTreeSet::new();
    for (i, version) in versions.iter().enumerate() {
        if !seen.insert(version) {
            errs.invalid(path.index(i), version.as_str(), "duplicate version");
            continue;
        }
        each(errs, &path.index(i), version.as_str(), names::dns1035_label(version));
    }
    if known && !versions.iter().any(|version| REVIEWS.contains(&version.as_str())) {
        errs.invalid(path, versions.to_vec(), format!("must include at least one of {}", REVIEWS.join(", ")));
    }
}

pub(crate) fn webhook_url(text: &str, path: &Path, errs: &mut ErrorList) {
    let url = match Url::parse(text) {
        Ok(url) => url,
        Err(why) => return errs.required(path, format!("url must be a valid URL: {why}{URL_FORM}")),
    };
    if url.scheme != "https" {
        errs.invalid(path, url.scheme, format!("'https' is the only allowed URL scheme{URL_FORM}"));
    }
    if url.host.is_empty() {
        errs.invalid(path, "", format!("host must be specified{URL_FORM}"));
    }
    if let Some(user) = url.user {
        errs.invalid(path, user, "user information is not permitted in the URL");
    }
    if !url.fragment.is_empty() {
        errs.invalid(path, url.fragment, "fragments are not permitted in the URL");
    }
    if !url.query.is_empty() {
        errs.invalid(path, url.query, "query parameters are not permitted in the URL");
    }
}

/// Checks the service behind a webhook. As upstream, a missing name is told at `namespace` and the other way
/// round.
pub(crate) fn webhook_service(service: &ServiceReference, path: &Path, errs: &mut ErrorList) {
    if service.namespace.is_empty() {
        errs.required(path.child("name"), "");
    }
    if service.name.is_empty() {
        errs.required(path.child("namespace"), "");
    }
    let port = service.port.unwrap_or(0);
    let messages = names::port_number(i64::from(port));
    if !messages.is_empty() {
        errs.invalid(path.child("port"), port, format!("port is not valid: {}", messages.join(", ")));
    }
    let Some(text) = service.path.as_deref().filter(|text| !matches!(*text, "" | "/")) else { return };
    let at = path.child("path");
    if text == "//" {
        return errs.invalid(at, text, "segment[0] may not be empty");
    }
    if !text.starts_with('/') {
        errs.invalid(&at, text, "must start with a '/'");
    }
    let rest = String::from_utf8_lossy(&text.as_bytes()[1..]);
    for (i, step) in rest.strip_suffix('/').unwrap_or(&rest).split('/').enumerate() {
        if step.is_empty() {
            errs.invalid(&at, text, format!("segment[{i}] may not be empty"));
            continue;
        }
        for message in names::dns1123_subdomain(step) {
            errs.invalid(&at, text, format!("segment[{i}]: {message}"));
        }
    }
}
