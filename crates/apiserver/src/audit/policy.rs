//! Which requests are logged, and how much of them: the first rule that a request meets decides.

use coracle_auth::UserInfo;
use serde::Deserialize;

use crate::http::info::Info;

/// How much of a request is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) enum Level {
    /// Nothing.
    #[default]
    None,
    /// Who, what and when.
    Metadata,
    /// And what was sent.
    Request,
    /// And what was answered.
    RequestResponse,
}

impl Level {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// When an event is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum Stage {
    /// Before anything is done.
    RequestReceived,
    /// A watch or a connection has begun.
    ResponseStarted,
    /// The response is sent.
    ResponseComplete,
    /// The handler panicked.
    Panic,
}

impl Stage {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

/// A policy as upstream's `audit.k8s.io/v1` has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuditPolicy {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default, rename = "metadata")]
    _metadata: Option<serde_json::Value>,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<GroupResources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GroupResources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It is not YAML of the right shape.
    #[error("{0}")]
    Malformed(#[from] serde_yaml_ng::Error),
    /// It is of another kind.
    #[error("{api_version} {kind} is not an audit.k8s.io/v1 Policy")]
    Kind {
        /// Its `apiVersion`.
        api_version: String,
        /// Its `kind`.
        kind: String,
    },
    /// A policy without rules logs nothing.
    #[error("loaded illegal policy with 0 rules")]
    Empty,
}

/// A request as rules see it.
pub(super) struct Subject<'a> {
    pub(super) user: &'a UserInfo,
    pub(super) info: &'a Info<'a>,
    pub(super) path: &'a str,
}

/// What the policy says of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict {
    pub(super) level: Level,
    omit: Vec<Stage>,
    pub(super) omit_managed_fields: bool,
}

impl Verdict {
    pub(super) fn omits(&self, stage: Stage) -> bool {
        self.omit.contains(&stage)
    }
}

impl AuditPolicy {
    /// Reads a policy file.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let policy: Self = serde_yaml_ng::from_str(text)?;
        if (policy.api_version.as_str(), policy.kind.as_str()) != ("audit.k8s.io/v1", "Policy") {
            return Err(PolicyError::Kind { api_version: policy.api_version, kind: policy.kind });
        }
        if policy.rules.is_empty() {
            return Err(PolicyError::Empty);
        }
        Ok(policy)
    }

    pub(super) fn decide(&self, subject: &Subject<'_>) -> Verdict {
        let Some(rule) = self.rules.iter().find(|rule| rule.matches(subject)) else {
            return Verdict::default();
        };
        Verdict {
            level: rule.level,
            omit: self.omit_stages.iter().chain(&rule.omit_stages).copied().collect(),
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

fn has(list: &[String], text: &str) -> bool {
    list.iter().any(|item| item == text)
}

impl Rule {
    fn matches(&self, subject: &Subject<'_>) -> bool {
        let Subject { user, info, path } = subject;
        if !self.users.is_empty() && !has(&self.users, &user.name) {
            return false;
        }
        if !self.user_groups.is_empty() && !user.groups.iter().any(|group| has(&self.user_groups, group)) {
            return false;
        }
        if !self.verbs.is_empty() && !has(&self.verbs, &info.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return info.is_resource && self.matches_resource(info);
        }
        if !self.non_resource_urls.is_empty() {
            let fits = |pattern: &String| match pattern.strip_suffix('*') {
                Some(start) => path.starts_with(start),
                None => path == pattern,
            };
            return !info.is_resource && self.non_resource_urls.iter().any(fits);
        }
        true
    }

    fn matches_resource(&self, info: &Info<'_>) -> bool {
        if !self.namespaces.is_empty() && !has(&self.namespaces, info.namespace) {
            return false;
        }
        self.resources.is_empty() || self.resources.iter().any(|group| group.matches(info))
    }
}

impl GroupResources {
    fn matches(&self, info: &Info<'_>) -> bool {
        if self.group != info.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        if !self.resource_names.is_empty() && !has(&self.resource_names, info.name) {
            return false;
        }
        self.resources.iter().any(|item| match item.split_once('/') {
            None => item == "*" || (item == info.resource && info.subresource.is_empty()),
            Some(("*", sub)) => !info.subresource.is_empty() && sub == info.subresource,
            Some((resource, "*")) => resource == info.resource,
            Some((resource, sub)) => (resource, sub) == (info.resource, info.subresource),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::query::Query;

    #[track_caller]
    fn check(rule: &str, path: &str, want: bool) {
        let text =
            format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Metadata\n  {rule}\n");
        let policy = AuditPolicy::parse(&text).unwrap();
        let (query, user) = (Query::new(""), UserInfo::authenticated("jane", &["devs"]));
        let info = Info::new(&http::Method::GET, path, &query);
        let level = policy.decide(&Subject { user: &user, info: &info, path }).level;
        assert_eq!(level == Level::Metadata, want, "{rule} on {path}");
    }

    #[test]
    fn rules_select_by_user_resource_namespace_and_path() {
        let pods = "/api/v1/namespaces/a/pods/p";
        check("users: [jane]", pods, true);
        check("userGroups: [ops]", pods, false);
        check("verbs: [get]", pods, true);
        check("namespaces: [b]", pods, false);
        check("resources: [{ resources: [pods] }]", pods, true);
        check("resources: [{ resources: [pods] }]", "/api/v1/namespaces/a/pods/p/log", false);
        check("resources: [{ resources: [\"pods/*\"] }]", "/api/v1/namespaces/a/pods/p/log", true);
        check("resources: [{ group: apps }]", pods, false);
        check("nonResourceURLs: [\"/healthz*\"]", "/healthz/ping", true);
        check("nonResourceURLs: [\"/healthz*\"]", pods, false);
    }

    #[test]
    fn a_policy_without_rules_or_of_another_kind_is_refused() {
        assert!(matches!(
            AuditPolicy::parse("apiVersion: audit.k8s.io/v1\nkind: Policy\n"),
            Err(PolicyError::Empty)
        ));
        assert!(matches!(AuditPolicy::parse("apiVersion: v1\nkind: Pod\n"), Err(PolicyError::Kind { .. })));
    }
}
