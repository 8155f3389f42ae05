//! Whether a rule allows a request.

use std::borrow::Cow;

use k8s_openapi::api::rbac::v1::PolicyRule;

use crate::user::Attributes;

/// A request with its combined resource name made once.
pub(super) struct Request<'a> {
    attributes: &'a Attributes,
    /// `pods` or `pods/log`.
    combined: Cow<'a, str>,
}

impl<'a> Request<'a> {
    pub(super) fn new(attributes: &'a Attributes) -> Self {
        let combined = if attributes.subresource.is_empty() {
            Cow::Borrowed(attributes.resource.as_str())
        } else {
            Cow::Owned(format!("{}/{}", attributes.resource, attributes.subresource))
        };
        Self { attributes, combined }
    }

    pub(super) fn allowed_by(&self, rule: &PolicyRule) -> bool {
        let a = self.attributes;
        if !matches(&rule.verbs, &a.verb) {
            return false;
        }
        if !a.is_resource {
            return items(rule.non_resource_urls.as_ref()).iter().any(|url| url_matches(url, &a.path));
        }
        matches(items(rule.api_groups.as_ref()), &a.group)
            && items(rule.resources.as_ref()).iter().any(|r| self.resource_matches(r))
            && name_matches(items(rule.resource_names.as_ref()), &a.name)
    }

    fn resource_matches(&self, rule: &str) -> bool {
        rule == "*"
            || rule == self.combined
            || (!self.attributes.subresource.is_empty()
                && rule.strip_prefix("*/").is_some_and(|sub| sub == self.attributes.subresource))
    }
}

/// Whether `rule` allows the request that `attributes` describe.
pub fn rule_allows(attributes: &Attributes, rule: &PolicyRule) -> bool {
    Request::new(attributes).allowed_by(rule)
}

pub(super) fn items(list: Option<&Vec<String>>) -> &[String] {
    list.map_or(&[], Vec::as_slice)
}

fn matches(rule: &[String], wanted: &str) -> bool {
    rule.iter().any(|item| item == "*" || item == wanted)
}

fn name_matches(rule: &[String], wanted: &str) -> bool {
    rule.is_empty() || rule.iter().any(|name| name == wanted)
}

pub(super) fn url_matches(rule: &str, path: &str) -> bool {
    rule == "*" || rule == path || (rule.ends_with('*') && path.starts_with(rule.trim_end_matches('*')))
}
