//! ABAC: a file of policies, one JSON object a line, that say who may do what. Follows
//! <https://kubernetes.io/docs/reference/access-authn-authz/abac/>.

use serde::Deserialize;
use serde_json::Value;

use crate::{Attributes, Authorizer, Decision};

const API_VERSION: &str = "abac.authorization.kubernetes.io/v1beta1";
const EVERYBODY: &str = "system:authenticated";

/// One policy: whom it is about, and what they may do.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "camelCase")]
struct Policy {
    user: String,
    group: String,
    readonly: bool,
    #[serde(rename = "apiGroup")]
    api_group: String,
    resource: String,
    namespace: String,
    #[serde(rename = "nonResourcePath")]
    non_resource_path: String,
}

/// Allows what a policy of the file allows.
#[derive(Debug)]
pub struct AbacAuthorizer(Vec<Policy>);

impl AbacAuthorizer {
    /// The policies of a file's text; `path` names it in errors.
    ///
    /// # Errors
    /// The first line that is no policy.
    pub fn parse(path: &str, text: &str) -> Result<Self, String> {
        let lines = text.lines().enumerate().filter(|(_, line)| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with('#')
        });
        let policies = lines.map(|(i, line)| {
            let number = i + 1;
            policy(line)
                .map_err(|why| format!("error reading policy file {path}, line {number}: {line}: {why}"))
        });
        policies.collect::<Result<_, _>>().map(Self)
    }
}

fn policy(line: &str) -> Result<Policy, String> {
    let value: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("");
    let read = |value: &Value| serde_json::from_value::<Policy>(value.clone()).map_err(|e| e.to_string());
    let mut policy = match (text("apiVersion"), text("kind")) {
        (API_VERSION, "Policy") => read(value.get("spec").unwrap_or(&Value::Object(Default::default())))?,
        (API_VERSION, kind) => return Err(format!("unrecognized object: {kind:?}")),
        _ => older(read(&value)?),
    };
    if policy.user == "*" || policy.group == "*" {
        (policy.user, policy.group) = (String::new(), EVERYBODY.to_owned());
    }
    Ok(policy)
}

/// A policy without a version: what it leaves out it does not restrict.
fn older(policy: Policy) -> Policy {
    let any = |text: String| if text.is_empty() { "*".to_owned() } else { text };
    let everything = policy.namespace.is_empty() && policy.resource.is_empty();
    let nobody = policy.user.is_empty() && policy.group.is_empty();
    Policy {
        group: if nobody { EVERYBODY.to_owned() } else { policy.group },
        namespace: any(policy.namespace),
        resource: any(policy.resource),
        api_group: "*".to_owned(),
        non_resource_path: if everything { "*" } else { "" }.to_owned(),
        ..policy
    }
}

impl Policy {
    fn allows(&self, what: &Attributes) -> bool {
        let reading = matches!(what.verb.as_str(), "get" | "list" | "watch");
        self.is_about(what) && (reading || !self.readonly) && self.covers(what)
    }

    fn is_about(&self, what: &Attributes) -> bool {
        let user = self.user.is_empty() || self.user == what.user.name;
        let group = self.group.is_empty() || what.user.in_group(&self.group);
        user && group && !(self.user.is_empty() && self.group.is_empty())
    }

    fn covers(&self, what: &Attributes) -> bool {
        let is = |wanted: &str, is: &str| wanted == "*" || wanted == is;
        if what.is_resource {
            return is(&self.namespace, &what.namespace)
                && is(&self.resource, &what.resource)
                && is(&self.api_group, &what.group);
        }
        match self.non_resource_path.strip_suffix('*') {
            Some(prefix) => what.path.starts_with(prefix),
            None => !self.non_resource_path.is_empty() && self.non_resource_path == what.path,
        }
    }
}

impl Authorizer for AbacAuthorizer {
    fn authorize(&self, attributes: &Attributes) -> (Decision, String) {
        match self.0.iter().any(|policy| policy.allows(attributes)) {
            true => (Decision::Allow, String::new()),
            false => (Decision::NoOpinion, "No policy matched.".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::UserInfo;

    fn asks(user: &str, verb: &str, resource: &str, namespace: &str) -> Attributes {
        Attributes {
            user: UserInfo::authenticated(user, &["devs"]),
            verb: verb.into(),
            is_resource: true,
            resource: resource.into(),
            namespace: namespace.into(),
            ..Attributes::default()
        }
    }

    fn path(path: &str) -> Attributes {
        Attributes { is_resource: false, path: path.into(), ..asks("jane", "get", "", "") }
    }

    fn allows(policies: &str, what: &Attributes) -> bool {
        AbacAuthorizer::parse("f", policies).expect("policies").authorize(what).0 == Decision::Allow
    }

    #[test]
    fn a_policy_allows_its_user_what_it_names() {
        let policy = |spec: &str| {
            format!("# c\n\n{{\"apiVersion\":\"{API_VERSION}\",\"kind\":\"Policy\",\"spec\":{spec}}}")
        };
        let jane =
            policy(r#"{"user":"jane","namespace":"a","resource":"pods","apiGroup":"","readonly":true}"#);
        assert!(allows(&jane, &asks("jane", "list", "pods", "a")));
        assert!(!allows(&jane, &asks("jane", "create", "pods", "a")), "read only");
        assert!(!allows(&jane, &asks("jane", "list", "pods", "b")));
        assert!(!allows(&jane, &asks("john", "list", "pods", "a")));
        let devs = policy(r#"{"group":"devs","namespace":"*","resource":"*","apiGroup":"*"}"#);
        assert!(allows(&devs, &asks("john", "delete", "secrets", "b")));
        assert!(!allows(&devs, &path("/metrics")));
        let paths = policy(r#"{"user":"*","nonResourcePath":"/healthz*"}"#);
        assert!(allows(&paths, &path("/healthz/ping")) && !allows(&paths, &path("/metrics")));
        assert!(!allows(
            &policy("{\"namespace\":\"*\",\"resource\":\"*\"}"),
            &asks("jane", "get", "pods", "a")
        ));
    }

    #[test]
    fn policies_without_a_version_restrict_only_what_they_name() {
        assert!(allows("{\"user\":\"jane\"}", &asks("jane", "create", "pods", "a")));
        assert!(allows("{\"user\":\"jane\"}", &path("/metrics")));
        assert!(allows("{}", &asks("john", "create", "pods", "a")));
        assert!(!allows("{\"namespace\":\"b\"}", &asks("john", "get", "pods", "a")));
    }

    #[test]
    fn a_line_that_is_no_policy_is_told_by_its_number() {
        let why = AbacAuthorizer::parse("f.jsonl", "{}\n{").expect_err("malformed");
        assert!(why.starts_with("error reading policy file f.jsonl, line 2: {: "), "{why}");
    }
}
