//! The audit log: one JSON line per request and stage, as a policy asks for. Follows
//! <https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/>.

mod policy;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::sync::Arc;

use coracle_auth::UserInfo;
use http::HeaderMap;
use http::header::USER_AGENT;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tracing::error;

pub use policy::{AuditPolicy, PolicyError};

use crate::http::info::Info;
use policy::{Level, Stage, Subject};

/// Most characters of a User-Agent that are logged.
const MAX_AGENT: usize = 1024;

/// Where events go: one line each.
pub type AuditSink = Box<dyn Write + Send>;

/// What is logged, and where.
pub struct AuditConfig {
    /// Which requests at which level.
    pub policy: AuditPolicy,
    /// The log.
    pub sink: AuditSink,
}

impl std::fmt::Debug for AuditConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuditConfig").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// The running log.
pub(crate) struct AuditLog {
    policy: AuditPolicy,
    sink: Mutex<AuditSink>,
}

impl AuditLog {
    pub(crate) fn new(config: AuditConfig) -> Self {
        Self { policy: config.policy, sink: Mutex::new(config.sink) }
    }

    /// Begins the trail of an authenticated request; none when the policy does not want it.
    pub(crate) fn begin(
        &self,
        user: &Arc<UserInfo>,
        info: &Info<'_>,
        request: &http::Request<impl Sized>,
        peer: Option<IpAddr>,
        received: Timestamp,
    ) -> Option<Arc<Trail>> {
        let (uri, headers) = (request.uri(), request.headers());
        let subject = Subject { user, info, path: uri.path() };
        let decision = self.policy.decide(&subject);
        if decision.level == Level::None {
            return None;
        }
        let agent = headers.get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("");
        let mut head = Map::new();
        head.insert("auditID".into(), coracle_stdx::uuid().into());
        head.insert("requestURI".into(), uri.path_and_query().map_or("/", |p| p.as_str()).into());
        head.insert("verb".into(), info.verb.clone().into());
        head.insert("user".into(), user.to_json());
        let sources = sources(headers, peer);
        if !sources.is_empty() {
            head.insert("sourceIPs".into(), json!(sources));
        }
        if !agent.is_empty() {
            let whole = agent.char_indices().nth(MAX_AGENT).is_none();
            let cut = || agent.chars().take(MAX_AGENT).chain("...TRUNCATED".chars()).collect::<String>();
            head.insert("userAgent".into(), if whole { agent.to_owned() } else { cut() }.into());
        }
        if info.is_resource {
            head.insert("objectRef".into(), reference(info));
        }
        let trail = Trail { decision, head, received, parts: Mutex::default(), notes: Arc::default() };
        self.write(&trail, Stage::RequestReceived, None, received);
        Some(Arc::new(trail))
    }

    /// Logs the end of a request (for watches and connections: its beginning).
    pub(crate) fn end(&self, trail: &Trail, code: u16, body: Option<&Value>, long: bool, now: Timestamp) {
        let stage = if long { Stage::ResponseStarted } else { Stage::ResponseComplete };
        self.write(trail, stage, Some((code, body)), now);
    }

    fn write(&self, trail: &Trail, stage: Stage, response: Option<(u16, Option<&Value>)>, now: Timestamp) {
        if trail.decision.omits(stage) {
            return;
        }
        let mut line = trail.event(stage, response, now).to_string();
        line.push('\n');
        if let Err(e) = self.sink.lock().write_all(line.as_bytes()) {
            error!(error = %e, "audit event lost");
        }
    }
}

/// What is known of one request.
pub(crate) struct Trail {
    decision: policy::Verdict,
    head: Map<String, Value>,
    received: Timestamp,
    parts: Mutex<Parts>,
    /// Annotations; admission adds to them.
    pub(crate) notes: Arc<Mutex<BTreeMap<String, String>>>,
}

#[derive(Default)]
struct Parts {
    impersonated: Option<Value>,
    constraint: &'static str,
    request: Option<Value>,
    response: Option<Value>,
}

impl Trail {
    /// Whether the body of the request is to be noted.
    pub(crate) fn wants_request(&self) -> bool {
        self.decision.level >= Level::Request
    }

    /// Whether the body of the response is to be noted.
    pub(crate) fn wants_response(&self) -> bool {
        self.decision.level >= Level::RequestResponse
    }

    /// Whether the body of the response is to be noted, and nobody has yet.
    pub(crate) fn misses_response(&self) -> bool {
        self.wants_response() && self.parts.lock().response.is_none()
    }

    /// Notes the body of the request, as the JSON that it means.
    pub(crate) fn request(&self, body: Value) {
        self.parts.lock().request = Some(body);
    }

    /// Notes the body of the response before it is encoded.
    pub(crate) fn response(&self, body: Value) {
        self.parts.lock().response = Some(body);
    }

    /// Notes as whom the user acts, and by which constraint ("" for none).
    pub(crate) fn impersonated(&self, user: &UserInfo, constraint: &'static str) {
        let mut parts = self.parts.lock();
        parts.impersonated = Some(user.to_json());
        parts.constraint = constraint;
    }

    /// Notes the decision of the authorizers.
    pub(crate) fn decided(&self, allowed: bool, reason: &str) {
        let decision = if allowed { "allow" } else { "forbid" };
        let mut notes = self.notes.lock();
        notes.insert("authorization.k8s.io/decision".into(), decision.into());
        notes.insert("authorization.k8s.io/reason".into(), reason.into());
    }

    fn event(&self, stage: Stage, response: Option<(u16, Option<&Value>)>, now: Timestamp) -> Value {
        let mut event = self.head.clone();
        let mut put = |key: &str, value: Value| event.insert(key.to_owned(), value);
        put("kind", "Event".into());
        put("apiVersion", "audit.k8s.io/v1".into());
        put("level", self.decision.level.name().into());
        put("stage", stage.name().into());
        put("requestReceivedTimestamp", micros(self.received).into());
        put("stageTimestamp", micros(now).into());
        let parts = self.parts.lock();
        if let Some(user) = &parts.impersonated {
            put("impersonatedUser", user.clone());
            if !parts.constraint.is_empty() {
                put("authenticationMetadata", json!({ "impersonationConstraint": parts.constraint }));
            }
        }
        if let Some((code, body)) = response {
            put("responseStatus", status_json(code, body));
            if self.wants_request()
                && let Some(object) = &parts.request
            {
                put("requestObject", self.bare(object));
            }
            if self.wants_response()
                && let Some(object) = parts.response.as_ref().or(body)
            {
                put("responseObject", self.bare(object));
            }
        }
        let notes = self.notes.lock();
        if !notes.is_empty() {
            put("annotations", json!(*notes));
        }
        Value::Object(event)
    }

    /// The object without what the policy does not want.
    fn bare(&self, object: &Value) -> Value {
        let mut object = object.clone();
        if self.decision.omit_managed_fields {
            let strip = |object: &mut Value| {
                if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                    meta.remove("managedFields");
                }
            };
            strip(&mut object);
            object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten().for_each(strip);
        }
        object
    }
}

fn micros(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

fn reference(info: &Info<'_>) -> Value {
    let mut out = json!({ "resource": info.resource });
    let parts = [
        ("namespace", info.namespace),
        ("name", info.name),
        ("apiGroup", info.group),
        ("apiVersion", info.version),
        ("subresource", info.subresource),
    ];
    for (key, text) in parts.into_iter().filter(|(_, text)| !text.is_empty()) {
        out[key] = text.into();
    }
    out
}

/// Where a request comes from: what proxies say, then what the connection says.
fn sources(headers: &HeaderMap, peer: Option<IpAddr>) -> Vec<IpAddr> {
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("");
    let said = header("x-forwarded-for").split(',');
    let mut out: Vec<IpAddr> = said.filter_map(|part| part.trim().parse().ok()).collect();
    if let Ok(real) = header("x-real-ip").parse()
        && !out.contains(&real)
    {
        out.push(real);
    }
    let peer = peer.map(|ip| ip.to_canonical());
    out.extend(peer.filter(|ip| out.last() != Some(ip)));
    out
}

/// The status of a response: of a failure what its body says.
fn status_json(code: u16, body: Option<&Value>) -> Value {
    let mut out = json!({ "metadata": {}, "code": code });
    if let Some(body) = body.filter(|b| b["kind"] == "Status") {
        for key in ["status", "message", "reason", "details"] {
            if let Some(value) = body.get(key) {
                out[key] = value.clone();
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::query::Query;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn requests_are_logged_in_stages_at_the_level_of_their_rule() {
        let text = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: Request\n  resources:\n  - resources: \
                    [configmaps]\n- level: None\n";
        let sink = Sink::default();
        let policy = AuditPolicy::parse(text).unwrap();
        let log = AuditLog::new(AuditConfig { policy, sink: Box::new(sink.clone()) });
        let user = Arc::new(UserInfo::authenticated("jane", &[]));
        let query = Query::new("");
        let at = Timestamp::UNIX_EPOCH;
        let begin = |path: &'static str| {
            let info = Info::new(&http::Method::POST, path, &query);
            let request = http::Request::post(path).header("x-forwarded-for", "10.0.0.1, x");
            let request = request.header("x-real-ip", "10.0.0.1").body(()).unwrap();
            log.begin(&user, &info, &request, Some([127, 0, 0, 1].into()), at)
        };
        assert!(begin("/api/v1/namespaces/a/secrets").is_none());
        let trail = begin("/api/v1/namespaces/a/configmaps").unwrap();
        trail.decided(true, "");
        trail.request(json!({ "kind": "ConfigMap" }));
        log.end(&trail, 201, Some(&json!({ "kind": "ConfigMap" })), false, at);
        let lines = String::from_utf8(sink.0.lock().clone()).unwrap();
        let events: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(
            events.iter().map(|e| e["stage"].as_str().unwrap()).collect::<Vec<_>>(),
            ["RequestReceived", "ResponseComplete"]
        );
        let last = &events[1];
        assert_eq!(
            last["objectRef"],
            json!({ "resource": "configmaps", "namespace": "a", "apiVersion": "v1" })
        );
        assert_eq!(last["requestObject"], json!({ "kind": "ConfigMap" }));
        assert_eq!(last["sourceIPs"], json!(["10.0.0.1", "127.0.0.1"]));
        assert_eq!((last.get("responseObject"), &last["responseStatus"]["code"]), (None, &json!(201)));
        assert_eq!(last["annotations"]["authorization.k8s.io/decision"], "allow");
    }
}
