//! Authorization by a server elsewhere: it is sent a SubjectAccessReview.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_cel::{PER_CALL_LIMIT, Program, Value as Cel};
use coracle_meta::selector::{FieldRequirement, FieldSelector, LabelSelector, Operator, Requirement};
use serde_json::{Value, json};

use crate::remote::{Answers, Remote, review};
use crate::user::{Attributes, Authorizer, Decision, NonResourceRule, ResourceRule, UserInfo};

/// Longer questions are not remembered.
const LONGEST: usize = 10_000;

/// How a server is asked.
#[derive(Clone, Debug)]
pub struct AuthorizationWebhook {
    /// Its name in the configuration.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// `v1` or `v1beta1`.
    pub version: String,
    /// How long a yes is believed; zero: not at all.
    pub allowed_for: Duration,
    /// How long anything else is believed.
    pub refused_for: Duration,
    /// Longest wait for one answer.
    pub timeout: Duration,
    /// Whether a request is refused when the server cannot say.
    pub deny_on_failure: bool,
    /// The server is asked about requests for which all of these hold.
    pub conditions: Vec<Program>,
}

/// A server that decides what users may do.
pub struct WebhookAuthorizer {
    config: AuthorizationWebhook,
    remote: Arc<dyn Remote>,
    known: Answers<String, (Decision, String)>,
}

impl WebhookAuthorizer {
    /// Asks as `config` says.
    pub fn new(config: AuthorizationWebhook, remote: Arc<dyn Remote>) -> Self {
        Self { config, remote, known: Answers::default() }
    }

    /// What is decided when the server cannot say.
    fn failed(&self, why: &str) -> (Decision, String) {
        tracing::error!(authorizer = self.config.name, why, "cannot ask the authorization webhook");
        let decision = if self.config.deny_on_failure { Decision::Deny } else { Decision::NoOpinion };
        (decision, String::new())
    }

    /// Whether the server is to be asked at all.
    fn matches(&self, spec: &Value) -> Result<bool, String> {
        if self.config.conditions.is_empty() {
            return Ok(true);
        }
        let request = Cel::from_json(spec);
        let mut failure = None;
        for condition in &self.config.conditions {
            let held = condition.eval(&[("request", request.clone())], PER_CALL_LIMIT).result;
            match held {
                Ok(Cel::Bool(true)) => {}
                // One that does not hold decides, whatever became of the others.
                Ok(Cel::Bool(false)) => return Ok(false),
                Ok(_) => failure = failure.or(Some("cel evaluation error: not a bool".to_owned())),
                Err(fault) => failure = failure.or(Some(format!("cel evaluation error: {fault}"))),
            }
        }
        failure.map_or(Ok(true), Err)
    }
}

#[async_trait]
impl Authorizer for WebhookAuthorizer {
    fn authorize(&self, attributes: &Attributes) -> (Decision, String) {
        crate::user::wait(self.ask(attributes))
    }

    fn is_remote(&self) -> bool {
        true
    }

    async fn ask(&self, attributes: &Attributes) -> (Decision, String) {
        let spec = spec(attributes);
        match self.matches(&spec) {
            Ok(true) => {}
            Ok(false) => return (Decision::NoOpinion, String::new()),
            Err(why) => return self.failed(&why),
        }
        let key = spec.to_string();
        if let Some(known) = self.known.get(&key) {
            return known;
        }
        let config = &self.config;
        let asked = asked(&config.version, spec);
        let answer = match review(&*self.remote, &config.url, &asked, config.timeout).await {
            Ok(answer) => answer,
            Err(why) => return self.failed(&why),
        };
        let status = &answer["status"];
        let reason = status["reason"].as_str().unwrap_or("").to_owned();
        let is = |field: &str| status[field] == true;
        let decision = match (is("allowed"), is("denied")) {
            (true, true) => return (Decision::Deny, String::new()),
            (true, false) => Decision::Allow,
            (false, true) => Decision::Deny,
            (false, false) => Decision::NoOpinion,
        };
        let ttl = if is("allowed") { config.allowed_for } else { config.refused_for };
        if key.len() <= LONGEST {
            self.known.put(key, (decision, reason.clone()), ttl);
        }
        (decision, reason)
    }

    /// The server decides request by request.
    fn rules_for(&self, _: &UserInfo, _: &str) -> (Vec<ResourceRule>, Vec<NonResourceRule>, bool) {
        (Vec::new(), Vec::new(), true)
    }
}

/// The review that the server gets; the older version names groups otherwise.
fn asked(version: &str, mut spec: Value) -> Value {
    if version == "v1beta1"
        && let Some(groups) = spec.as_object_mut().and_then(|spec| spec.remove("groups"))
    {
        spec["group"] = groups;
    }
    json!({
        "apiVersion": format!("authorization.k8s.io/{version}"), "kind": "SubjectAccessReview",
        "metadata": {}, "spec": spec, "status": { "allowed": false },
    })
}

/// What is asked, as the `spec` of a SubjectAccessReview.
fn spec(attributes: &Attributes) -> Value {
    let user = &attributes.user;
    let mut spec = json!({ "user": user.name });
    let mut put = |field: &str, value: Value, empty: bool| {
        if !empty {
            spec[field] = value;
        }
    };
    put("uid", json!(user.uid), user.uid.is_empty());
    put("groups", json!(user.groups), user.groups.is_empty());
    put("extra", json!(user.extra), user.extra.is_empty());
    let mut about = json!({});
    let resource = [
        ("namespace", &attributes.namespace),
        ("verb", &attributes.verb),
        ("group", &attributes.group),
        ("version", &attributes.version),
        ("resource", &attributes.resource),
        ("subresource", &attributes.subresource),
        ("name", &attributes.name),
    ];
    let path = [("path", &attributes.path), ("verb", &attributes.verb)];
    let fields: &[(&str, &String)] = if attributes.is_resource { &resource } else { &path };
    for (field, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        about[*field] = value.as_str().into();
    }
    if attributes.is_resource {
        let selectors = [
            ("fieldSelector", field_requirements(&attributes.field_selector)),
            ("labelSelector", label_requirements(&attributes.label_selector)),
        ];
        for (field, requirements) in selectors.into_iter().filter(|(_, list)| !list.is_empty()) {
            about[field] = json!({ "requirements": requirements });
        }
    }
    spec[if attributes.is_resource { "resourceAttributes" } else { "nonResourceAttributes" }] = about;
    spec
}

/// The requirements of a field selector; none of a malformed one.
fn field_requirements(text: &str) -> Vec<Value> {
    let parsed = FieldSelector::parse(text).unwrap_or_default();
    let one = |r: &FieldRequirement| {
        let operator = if r.equals { "In" } else { "NotIn" };
        json!({ "key": r.path, "operator": operator, "values": [r.value] })
    };
    parsed.requirements().iter().map(one).collect()
}

/// The requirements of a label selector; none of a malformed one.
fn label_requirements(text: &str) -> Vec<Value> {
    let parsed = LabelSelector::parse(text).unwrap_or_else(|_| LabelSelector::everything());
    let one = |r: &Requirement| {
        let operator = match r.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => "In",
            Operator::NotIn | Operator::NotEquals => "NotIn",
            Operator::Exists => "Exists",
            Operator::DoesNotExist => "DoesNotExist",
            // A review has no word for comparisons; without them it asks for more.
            Operator::GreaterThan | Operator::LessThan => return None,
        };
        let mut requirement = json!({ "key": r.key, "operator": operator });
        if !r.values.is_empty() {
            requirement["values"] = json!(r.values);
        }
        Some(requirement)
    };
    parsed.requirements().iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::remote::Exchange;

    struct Told(Value, AtomicUsize);

    #[async_trait]
    impl Remote for Told {
        async fn exchange(&self, _: &str, sent: Exchange<'_>) -> Result<(u16, Vec<u8>), String> {
            let Exchange::Post(body) = sent else { panic!("{sent:?}") };
            let body: Value = serde_json::from_slice(&body).expect("JSON");
            assert_eq!(body["kind"], "SubjectAccessReview");
            self.1.fetch_add(1, Ordering::Relaxed);
            Ok((200, json!({ "status": self.0 }).to_string().into_bytes()))
        }
    }

    fn attributes(namespace: &str) -> Attributes {
        Attributes {
            user: UserInfo::authenticated("jane", &["devs"]),
            verb: "list".into(),
            is_resource: true,
            version: "v1".into(),
            resource: "pods".into(),
            namespace: namespace.into(),
            field_selector: "spec.nodeName=n".into(),
            label_selector: "a in (b,c),!d".into(),
            ..Attributes::default()
        }
    }

    fn authorizer(
        status: Value,
        conditions: &[&str],
        deny_on_failure: bool,
    ) -> (WebhookAuthorizer, Arc<Told>) {
        let told = Arc::new(Told(status, AtomicUsize::new(0)));
        let minute = Duration::from_secs(60);
        let config = AuthorizationWebhook {
            name: "default".into(),
            url: "https://h/".into(),
            version: "v1".into(),
            allowed_for: minute,
            refused_for: minute,
            timeout: minute,
            deny_on_failure,
            conditions: conditions
                .iter()
                .map(|text| crate::authz_config::condition(text).expect("compiles"))
                .collect(),
        };
        (WebhookAuthorizer::new(config, told.clone()), told)
    }

    #[tokio::test]
    async fn the_servers_word_counts_and_is_remembered() {
        let cases = [
            (json!({ "allowed": true, "reason": "r" }), Decision::Allow),
            (json!({ "denied": true, "reason": "r" }), Decision::Deny),
            (json!({ "reason": "r" }), Decision::NoOpinion),
        ];
        for (status, want) in cases {
            let (authorizer, told) = authorizer(status, &[], false);
            for _ in 0..2 {
                assert_eq!(authorizer.ask(&attributes("x")).await, (want, "r".to_owned()));
            }
            assert_eq!(told.1.load(Ordering::Relaxed), 1);
        }
    }

    #[tokio::test]
    async fn it_is_asked_only_where_all_conditions_hold() {
        let conditions =
            ["has(request.resourceAttributes)", "request.resourceAttributes.namespace == 'kube-system'"];
        let (authorizer, told) = authorizer(json!({ "allowed": true }), &conditions, true);
        assert_eq!(authorizer.ask(&attributes("x")).await.0, Decision::NoOpinion);
        assert_eq!(told.1.load(Ordering::Relaxed), 0);
        assert_eq!(authorizer.ask(&attributes("kube-system")).await.0, Decision::Allow);
    }

    #[test]
    fn a_question_says_who_what_and_with_which_selectors() {
        let got = spec(&attributes("x"));
        assert_eq!(got["groups"], json!(["devs", "system:authenticated"]));
        let about = &got["resourceAttributes"];
        assert_eq!((&about["resource"], about.get("subresource")), (&json!("pods"), None));
        let field = json!([{ "key": "spec.nodeName", "operator": "In", "values": ["n"] }]);
        assert_eq!(about["fieldSelector"]["requirements"], field);
        let label = json!([{ "key": "a", "operator": "In", "values": ["b", "c"] },
            { "key": "d", "operator": "DoesNotExist" }]);
        assert_eq!(about["labelSelector"]["requirements"], label);
        let old = asked("v1beta1", got);
        assert_eq!((old["spec"].get("groups"), &old["spec"]["group"][0]), (None, &json!("devs")));
    }
}
