//! Which FlowSchema a request belongs to: the first, in order of precedence, one of whose rules matches.
//! Nothing is allocated on the way.

use coracle_auth::UserInfo;
use k8s_openapi::api::flowcontrol::v1::{
    FlowSchemaSpec, NonResourcePolicyRule, PolicyRulesWithSubjects, ResourcePolicyRule, Subject,
};

use crate::http::info::Info;

/// Stands for all values of a list, alone in it.
const ALL: &str = "*";

/// What classification looks at.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// Who asks.
    pub(crate) user: &'a UserInfo,
    /// For what.
    pub(crate) info: &'a Info<'a>,
    /// The path, which counts for requests outside the API groups.
    pub(crate) path: &'a str,
}

/// Whether one of the schema's rules matches.
pub(super) fn matches(spec: &FlowSchemaSpec, asked: &Asked<'_>) -> bool {
    spec.rules.iter().flatten().any(|rule| rule_matches(rule, asked))
}

fn rule_matches(rule: &PolicyRulesWithSubjects, asked: &Asked<'_>) -> bool {
    rule.subjects.iter().any(|subject| is_subject(subject, asked.user))
        && if asked.info.is_resource {
            rule.resource_rules.iter().flatten().any(|rule| covers_resource(rule, asked.info))
        } else {
            rule.non_resource_rules
                .iter()
                .flatten()
                .any(|rule| covers_path(rule, &asked.info.verb, asked.path))
        }
}

fn is_subject(subject: &Subject, user: &UserInfo) -> bool {
    match subject.kind.as_str() {
        "User" => subject.user.as_ref().is_some_and(|s| s.name == ALL || s.name == user.name),
        "Group" => subject.group.as_ref().is_some_and(|s| s.name == ALL || user.groups.contains(&s.name)),
        "ServiceAccount" => subject.service_account.as_ref().is_some_and(|s| {
            let rest = user.name.strip_prefix("system:serviceaccount:");
            let name = rest.and_then(|r| r.strip_prefix(s.namespace.as_str())?.strip_prefix(':'));
            name.is_some_and(|name| s.name == ALL || s.name == name)
        }),
        _ => false,
    }
}

/// Whether a list has a value, or has all.
fn has(list: &[String], value: &str) -> bool {
    matches!(list, [one] if one == ALL) || list.iter().any(|v| v == value)
}

fn covers_resource(rule: &ResourcePolicyRule, info: &Info<'_>) -> bool {
    let named = |entry: &String| match info.subresource {
        "" => entry == info.resource,
        sub => entry.strip_prefix(info.resource).and_then(|rest| rest.strip_prefix('/')) == Some(sub),
    };
    let resource = matches!(&rule.resources[..], [one] if one == ALL) || rule.resources.iter().any(named);
    if !resource || !has(&rule.verbs, &info.verb) || !has(&rule.api_groups, info.group) {
        return false;
    }
    match info.namespace {
        "" => rule.cluster_scope == Some(true),
        namespace => has(rule.namespaces.as_deref().unwrap_or_default(), namespace),
    }
}

fn covers_path(rule: &NonResourcePolicyRule, verb: &str, path: &str) -> bool {
    let below = |url: &String| {
        let prefix = url.strip_suffix('*').unwrap_or(url);
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        url == ALL || url == path || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
    };
    has(&rule.verbs, verb) && rule.non_resource_urls.iter().any(below)
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::{Value, json};

    use super::*;
    use crate::http::query::Query;

    #[track_caller]
    fn check(rule: &Value, user: (&str, &[&str]), request: (Method, &str), want: bool) {
        let spec = json!({ "priorityLevelConfiguration": { "name": "l" }, "rules": [rule] });
        let spec: FlowSchemaSpec = serde_json::from_value(spec).unwrap();
        let groups = user.1.iter().map(|g| (*g).to_owned()).collect();
        let user = UserInfo { name: user.0.into(), groups, ..UserInfo::default() };
        let (path, query) = request.1.split_once('?').unwrap_or((request.1, ""));
        let query = Query::new(query);
        let info = Info::new(&request.0, path, &query);
        assert_eq!(matches(&spec, &Asked { user: &user, info: &info, path }), want, "{} {}", user.name, path);
    }

    fn anything(subject: Value) -> Value {
        json!({
            "subjects": [subject],
            "resourceRules": [{
                "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true,
            }],
            "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }],
        })
    }

    #[test]
    fn subjects_are_users_groups_and_service_accounts() {
        let get = || (Method::GET, "/api/v1/pods");
        let jane = anything(json!({ "kind": "User", "user": { "name": "jane" } }));
        check(&jane, ("jane", &[]), get(), true);
        check(&jane, ("joe", &["jane"]), get(), false);
        let all = anything(json!({ "kind": "User", "user": { "name": "*" } }));
        check(&all, ("joe", &[]), get(), true);
        let nodes = anything(json!({ "kind": "Group", "group": { "name": "system:nodes" } }));
        check(&nodes, ("n", &["a", "system:nodes"]), get(), true);
        check(&nodes, ("system:nodes", &[]), get(), false);
        let account = |name: &str| {
            let account = json!({ "namespace": "kube-system", "name": name });
            anything(json!({ "kind": "ServiceAccount", "serviceAccount": account }))
        };
        check(&account("a"), ("system:serviceaccount:kube-system:a", &[]), get(), true);
        check(&account("a"), ("system:serviceaccount:kube-system:ab", &[]), get(), false);
        check(&account("*"), ("system:serviceaccount:kube-system:ab", &[]), get(), true);
        check(&account("*"), ("system:serviceaccount:kube-system2:ab", &[]), get(), false);
    }

    #[test]
    fn resource_rules_name_verb_group_resource_and_scope() {
        let rule = |resources: &[&str], namespaces: &[&str], cluster: bool| {
            json!({
                "subjects": [{ "kind": "User", "user": { "name": "*" } }],
                "resourceRules": [{
                    "verbs": ["get", "list"], "apiGroups": [""], "resources": resources,
                    "namespaces": namespaces, "clusterScope": cluster,
                }],
            })
        };
        let u = ("u", &[] as &[&str]);
        check(&rule(&["pods"], &["a"], false), u, (Method::GET, "/api/v1/namespaces/a/pods/p"), true);
        check(&rule(&["pods"], &["a"], false), u, (Method::GET, "/api/v1/namespaces/b/pods/p"), false);
        check(&rule(&["pods"], &["a"], false), u, (Method::GET, "/api/v1/pods"), false);
        check(&rule(&["pods"], &[], true), u, (Method::GET, "/api/v1/pods"), true);
        check(&rule(&["pods"], &["*"], true), u, (Method::DELETE, "/api/v1/namespaces/a/pods/p"), false);
        check(&rule(&["pods"], &["*"], true), u, (Method::GET, "/api/v1/namespaces/a/pods/p/log"), false);
        check(&rule(&["pods/log"], &["*"], true), u, (Method::GET, "/api/v1/namespaces/a/pods/p/log"), true);
        check(&rule(&["pods"], &["*"], true), u, (Method::GET, "/apis/x.io/v1/namespaces/a/pods/p"), false);
        check(&rule(&["pods"], &["*"], true), u, (Method::GET, "/version"), false);
    }

    #[test]
    fn paths_match_exactly_and_below() {
        let rule = |url: &str| {
            json!({
                "subjects": [{ "kind": "Group", "group": { "name": "*" } }],
                "nonResourceRules": [{ "verbs": ["get"], "nonResourceURLs": [url] }],
            })
        };
        let u = ("u", &[] as &[&str]);
        check(&rule("/healthz"), u, (Method::GET, "/healthz"), true);
        check(&rule("/healthz"), u, (Method::GET, "/healthz/ping"), true);
        check(&rule("/healthz"), u, (Method::GET, "/healthzz"), false);
        check(&rule("/apis/*"), u, (Method::GET, "/apis/apps"), true);
        check(&rule("/apis/*"), u, (Method::GET, "/api"), false);
        check(&rule("*"), u, (Method::POST, "/version"), false);
    }
}
