//! AuthorizationConfiguration of apiserver.config.k8s.io/v1: what it may say, with upstream's messages.

use std::collections::HashSet;
use std::sync::LazyLock;
use std::time::Duration;

use coracle_cel::{DeclType, Env, Program, Type};
use coracle_meta::cron::duration;
use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use serde::Deserialize;

/// Types of authorizers that there are.
pub const TYPES: [&str; 5] = ["AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook"];

/// The file of `--authorization-config`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(missing_docs, reason = "fields as in apiserver.config.k8s.io/v1 AuthorizationConfiguration")]
pub struct AuthorizationConfiguration {
    pub api_version: String,
    pub kind: String,
    #[serde(default)]
    pub authorizers: Vec<AuthorizerConfiguration>,
}

/// One authorizer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[expect(missing_docs, reason = "fields as in apiserver.config.k8s.io/v1 AuthorizerConfiguration")]
pub struct AuthorizerConfiguration {
    #[serde(rename = "type")]
    pub kind: String,
    pub name: String,
    pub webhook: Option<WebhookConfiguration>,
}

/// A server that is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[expect(missing_docs, reason = "fields as in apiserver.config.k8s.io/v1 WebhookConfiguration")]
pub struct WebhookConfiguration {
    #[serde(rename = "authorizedTTL")]
    pub authorized_ttl: Option<String>,
    pub cache_authorized_requests: Option<bool>,
    #[serde(rename = "unauthorizedTTL")]
    pub unauthorized_ttl: Option<String>,
    pub cache_unauthorized_requests: Option<bool>,
    pub timeout: Option<String>,
    pub subject_access_review_version: String,
    pub match_condition_subject_access_review_version: String,
    pub failure_policy: String,
    pub connection_info: ConnectionInfo,
    pub match_conditions: Vec<MatchCondition>,
}

/// Where the server is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[expect(missing_docs, reason = "fields as in apiserver.config.k8s.io/v1 WebhookConnectionInfo")]
pub struct ConnectionInfo {
    #[serde(rename = "type")]
    pub kind: String,
    pub kube_config_file: Option<String>,
}

/// A condition of asking.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "fields as in apiserver.config.k8s.io/v1 WebhookMatchCondition")]
pub struct MatchCondition {
    pub expression: String,
}

impl WebhookConfiguration {
    /// How long a yes, and how long anything else is believed, and the longest wait: after [`validate`].
    pub fn times(&self) -> (Duration, Duration, Duration) {
        let time = |text: &Option<String>, default: u64| {
            let given = text.as_deref().and_then(|text| duration(text).ok());
            given.unwrap_or(Duration::from_secs(default))
        };
        let believed =
            |time: Duration, on: Option<bool>| if on == Some(false) { Duration::ZERO } else { time };
        (
            believed(time(&self.authorized_ttl, 300), self.cache_authorized_requests),
            believed(time(&self.unauthorized_ttl, 30), self.cache_unauthorized_requests),
            time(&self.timeout, 0),
        )
    }
}

static REQUEST: LazyLock<Env> = LazyLock::new(|| {
    let text = || DeclType::simple(Type::String);
    let texts = || DeclType::list(text(), -1);
    let selector = |name: &'static str, of: &'static str| {
        let requirement = DeclType::object(of, [("key", text()), ("operator", text()), ("values", texts())]);
        DeclType::object(name, [("rawSelector", text()), ("requirements", DeclType::list(requirement, -1))])
    };
    let resource = DeclType::object(
        "kubernetes.ResourceAttributes",
        [
            ("namespace", text()),
            ("verb", text()),
            ("group", text()),
            ("version", text()),
            ("resource", text()),
            ("subresource", text()),
            ("name", text()),
            (
                "fieldSelector",
                selector("kubernetes.FieldSelectorAttributes", "kubernetes.FieldSelectorRequirement"),
            ),
            (
                "labelSelector",
                selector("kubernetes.LabelSelectorAttributes", "kubernetes.LabelSelectorRequirement"),
            ),
        ],
    );
    let path = DeclType::object("kubernetes.NonResourceAttributes", [("path", text()), ("verb", text())]);
    let request = DeclType::object(
        "kubernetes.SubjectAccessReviewSpec",
        [
            ("resourceAttributes", resource),
            ("nonResourceAttributes", path),
            ("user", text()),
            ("groups", texts()),
            ("extra", DeclType::map(text(), texts(), -1)),
            ("uid", text()),
        ],
    );
    Env::new().with_declared("request", &request)
});

/// Compiles a condition of asking a webhook.
///
/// # Errors
/// What is wrong with it.
pub fn condition(expression: &str) -> Result<Program, String> {
    let checked = REQUEST.compile(expression).map_err(|issues| format!("compilation failed: {issues}"))?;
    let of = checked.output_type();
    if *of != Type::Bool {
        return Err(format!("must evaluate to bool but got {of}"));
    }
    checked.program().map_err(|fault| format!("program instantiation failed: {fault}"))
}

/// Checks a configuration.
///
/// # Errors
/// All that is wrong with it.
pub fn validate(config: &AuthorizationConfiguration) -> Result<(), ErrorList> {
    let mut errs = ErrorList::new();
    let root = Path::new("authorizers");
    if config.authorizers.is_empty() {
        errs.required(&root, "at least one authorization mode must be defined");
    }
    let (mut types, mut used) = (HashSet::new(), HashSet::new());
    for (i, authorizer) in config.authorizers.iter().enumerate() {
        let path = root.index(i);
        let (kind, name) = (authorizer.kind.as_str(), authorizer.name.as_str());
        let at = path.child("type");
        if kind.is_empty() {
            errs.required(at, "");
            continue;
        }
        if !TYPES.contains(&kind) {
            errs.not_supported(at, kind, &TYPES);
            continue;
        }
        if !types.insert(kind) && kind != "Webhook" {
            errs.duplicate(at, kind);
            continue;
        }
        let at = path.child("name");
        if name.is_empty() {
            errs.required(at, "");
        } else if !used.insert(name) {
            errs.duplicate(at, name);
        } else {
            let wrong = names::dns1123_subdomain(name);
            if !wrong.is_empty() {
                errs.invalid(at, name, format!("authorizer name is invalid: {}", wrong.join(", ")));
            }
        }
        match (&authorizer.webhook, kind) {
            (None, "Webhook") => errs.required(path.child("webhook"), "required when type=Webhook"),
            (Some(hook), "Webhook") => webhook(hook, &path, &mut errs),
            (Some(_), _) => {
                errs.invalid(path.child("webhook"), "non-null", "may only be specified when type=Webhook");
            }
            (None, _) => {}
        }
    }
    if errs.is_empty() { Ok(()) } else { Err(errs) }
}

fn webhook(hook: &WebhookConfiguration, path: &Path, errs: &mut ErrorList) {
    let most = Duration::from_secs(30);
    time(&hook.timeout, Some(most), "must be > 0s and <= 30s", path.child("timeout"), errs);
    // These two have defaults.
    for (given, field) in
        [(&hook.authorized_ttl, "authorizedTTL"), (&hook.unauthorized_ttl, "unauthorizedTTL")]
    {
        if given.is_some() {
            time(given, None, "must be > 0s", path.child(field), errs);
        }
    }
    let at = path.child("subjectAccessReviewVersion");
    match hook.subject_access_review_version.as_str() {
        "" => errs.required(at, ""),
        "v1" | "v1beta1" => {}
        other => errs.not_supported(at, other, &["v1", "v1beta1"]),
    }
    let at = path.child("matchConditionSubjectAccessReviewVersion");
    match hook.match_condition_subject_access_review_version.as_str() {
        "" if !hook.match_conditions.is_empty() => {
            errs.required(at, "required if match conditions are specified");
        }
        "" | "v1" => {}
        other => errs.not_supported(at, other, &["v1"]),
    }
    let at = path.child("failurePolicy");
    match hook.failure_policy.as_str() {
        "" => errs.required(at, ""),
        "NoOpinion" | "Deny" => {}
        other => errs.not_supported(at, other, &["NoOpinion", "Deny"]),
    }
    connection(&hook.connection_info, &path.child("connectionInfo"), errs);
    if hook.match_conditions.len() > 64 {
        errs.too_many(path.child("matchConditions"), hook.match_conditions.len(), 64);
        return;
    }
    let mut seen = HashSet::new();
    for (i, given) in hook.match_conditions.iter().enumerate() {
        let at = path.child("matchConditions").index(i).child("expression");
        let text = given.expression.as_str();
        if text.trim().is_empty() {
            errs.required(at, "");
        } else if !seen.insert(text) {
            errs.duplicate(at, text);
        } else if let Err(why) = condition(text) {
            errs.invalid(at, text, why);
        }
    }
}

fn time(given: &Option<String>, most: Option<Duration>, why: &str, path: Path, errs: &mut ErrorList) {
    let text = given.as_deref().unwrap_or("0s");
    match duration(text) {
        Ok(Duration::ZERO) => errs.required(path, ""),
        Ok(time) if most.is_none_or(|most| time <= most) => {}
        _ => errs.invalid(path, text, why),
    }
}

fn connection(info: &ConnectionInfo, path: &Path, errs: &mut ErrorList) {
    let file = info.kube_config_file.as_deref();
    let at = path.child("kubeConfigFile");
    match (info.kind.as_str(), file) {
        ("", _) => errs.required(path.child("type"), ""),
        ("InClusterConfig", None) => {}
        ("InClusterConfig", Some(file)) => {
            errs.invalid(at, file, "can only be set when type=KubeConfigFile");
        }
        ("KubeConfigFile", None | Some("")) => errs.required(at, ""),
        ("KubeConfigFile", Some(file)) if !file.starts_with('/') => {
            errs.invalid(at, file, "must be an absolute path");
        }
        ("KubeConfigFile", Some(_)) => {}
        (other, _) => {
            errs.not_supported(path.child("type"), other, &["InClusterConfig", "KubeConfigFile"]);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn messages(authorizers: serde_json::Value) -> Vec<String> {
        let config = json!({ "apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration",
            "authorizers": authorizers });
        let config: AuthorizationConfiguration = serde_json::from_value(config).expect("reads");
        match validate(&config) {
            Ok(()) => Vec::new(),
            Err(errs) => errs.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn what_is_missing_or_contradictory_is_named() {
        let hook = json!({ "type": "Webhook", "name": "w", "webhook": {
            "timeout": "3s", "subjectAccessReviewVersion": "v1", "failurePolicy": "Deny",
            "matchConditionSubjectAccessReviewVersion": "v1",
            "connectionInfo": { "type": "KubeConfigFile", "kubeConfigFile": "/f" },
            "matchConditions": [{ "expression": "request.user == 'x'" }] } });
        let rbac = json!({ "type": "RBAC", "name": "rbac" });
        assert_eq!(messages(json!([hook, rbac])), [""; 0]);
        assert_eq!(
            messages(json!([])),
            ["authorizers: Required value: at least one authorization mode must be defined"]
        );
        assert_eq!(messages(json!([rbac, rbac])), ["authorizers[1].type: Duplicate value: \"RBAC\""]);
        let mut bad = hook.clone();
        bad["webhook"]["timeout"] = json!("31s");
        bad["webhook"]["connectionInfo"]["kubeConfigFile"] = json!("f");
        bad["webhook"]["matchConditions"][0]["expression"] = json!("request.user");
        assert_eq!(
            messages(json!([bad])),
            [
                "authorizers[0].timeout: Invalid value: \"31s\": must be > 0s and <= 30s",
                "authorizers[0].connectionInfo.kubeConfigFile: Invalid value: \"f\": must be an absolute path",
                "authorizers[0].matchConditions[0].expression: Invalid value: \"request.user\": must evaluate to \
                 bool but got string",
            ]
        );
    }
}
