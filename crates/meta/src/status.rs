//! `metav1.Status` as an error: one constructor per reason, with upstream's codes and message texts.
//!
//! Follows <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/>.

use std::fmt;

use serde_json::{Value, json};

use crate::field::ErrorList;

/// Machine-readable cause of a failure: `Status.reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are upstream's StatusReason values")]
pub enum Reason {
    Unknown,
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Invalid,
    Timeout,
    ServerTimeout,
    TooManyRequests,
    BadRequest,
    MethodNotAllowed,
    NotAcceptable,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    InternalError,
    Expired,
    ServiceUnavailable,
}

impl Reason {
    /// The reason of that name; [`Reason::Unknown`] for others.
    pub fn named(text: &str) -> Self {
        ALL_REASONS.iter().copied().find(|r| r.as_str() == text).unwrap_or(Self::Unknown)
    }

    /// The text of the `reason` field; empty for unknown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "NotFound",
            Self::AlreadyExists => "AlreadyExists",
            Self::Conflict => "Conflict",
            Self::Gone => "Gone",
            Self::Invalid => "Invalid",
            Self::Timeout => "Timeout",
            Self::ServerTimeout => "ServerTimeout",
            Self::TooManyRequests => "TooManyRequests",
            Self::BadRequest => "BadRequest",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::NotAcceptable => "NotAcceptable",
            Self::RequestEntityTooLarge => "RequestEntityTooLarge",
            Self::UnsupportedMediaType => "UnsupportedMediaType",
            Self::InternalError => "InternalError",
            Self::Expired => "Expired",
            Self::ServiceUnavailable => "ServiceUnavailable",
        }
    }
}

/// A failed request: HTTP code, reason, message and details. Boxed inside: cheap to return.
#[derive(Clone, Debug)]
pub struct Status(Box<Body>);

#[derive(Clone, Debug)]
struct Body {
    code: u16,
    reason: Reason,
    message: String,
    details: Option<Value>,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for Status {}

/// `configmaps` or `deployments.apps`: how messages name a resource (also a kind with its group).
pub fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

impl Status {
    /// A failure with the given parts; prefer the named constructors.
    pub fn new(code: u16, reason: Reason, message: impl Into<String>, details: Option<Value>) -> Self {
        Self(Box::new(Body { code, reason, message: message.into(), details }))
    }

    fn about(group: &str, resource: &str, name: &str) -> Option<Value> {
        let mut details = serde_json::Map::new();
        for (key, value) in [("name", name), ("group", group), ("kind", resource)] {
            if !value.is_empty() {
                details.insert(key.into(), value.into());
            }
        }
        Some(Value::Object(details))
    }

    /// 404: the object does not exist.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} not found", qualified(group, resource));
        Self::new(404, Reason::NotFound, message, Self::about(group, resource, name))
    }

    /// 404: no such path.
    pub fn no_such_path() -> Self {
        let message = "the server could not find the requested resource";
        Self::new(404, Reason::NotFound, message, Some(json!({})))
    }

    /// 409: an object of that name exists.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", qualified(group, resource));
        Self::new(409, Reason::AlreadyExists, message, Self::about(group, resource, name))
    }

    /// 409: the operation does not fit the object's present state.
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} {name:?}: {why}", qualified(group, resource));
        Self::new(409, Reason::Conflict, message, Self::about(group, resource, name))
    }

    /// 409 for a stale resourceVersion.
    pub fn modified(group: &str, resource: &str, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, resource, name, why)
    }

    /// 403: authorization or admission refused.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let what = qualified(group, resource);
        let message = match (resource, name) {
            ("", _) => format!("forbidden: {why}"),
            (_, "") => format!("{what} is forbidden: {why}"),
            _ => format!("{what} {name:?} is forbidden: {why}"),
        };
        Self::new(403, Reason::Forbidden, message, Self::about(group, resource, name))
    }

    /// 401: no valid credentials.
    pub fn unauthorized() -> Self {
        Self::new(401, Reason::Unauthorized, "Unauthorized", None)
    }

    /// 400: the request is malformed.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, Reason::BadRequest, message, None)
    }

    /// 422: field errors, with one cause each. `kind` is the kind, not the resource.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &ErrorList) -> Self {
        let message = format!("{} {name:?} is invalid: {}", qualified(group, kind), errors.aggregate());
        let mut details = Self::about(group, kind, name);
        if let Some(Value::Object(map)) = &mut details {
            map.insert("causes".into(), errors.causes());
        }
        Self::new(422, Reason::Invalid, message, details)
    }

    /// 410: the resourceVersion or continue token is too old; list again.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, Reason::Expired, message, None)
    }

    /// 405: the resource does not have this verb.
    pub fn method_not_supported(group: &str, resource: &str, verb: &str) -> Self {
        let message =
            format!("{verb} is not supported on resources of kind {:?}", qualified(group, resource));
        Self::new(405, Reason::MethodNotAllowed, message, Self::about(group, resource, ""))
    }

    /// 406: no acceptable encoding.
    pub fn not_acceptable(accepted: &str) -> Self {
        let message = format!("only the following media types are accepted: {accepted}");
        Self::new(406, Reason::NotAcceptable, message, None)
    }

    /// 415: the body's content type is not understood.
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(415, Reason::UnsupportedMediaType, message, None)
    }

    /// 413: the body is too large.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(413, Reason::RequestEntityTooLarge, message, None)
    }

    /// 429: retry after `seconds`.
    pub fn too_many_requests(message: impl Into<String>, seconds: u32) -> Self {
        let details = Some(json!({ "retryAfterSeconds": seconds }));
        Self::new(429, Reason::TooManyRequests, message, details)
    }

    /// 504: the request did not finish in time.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(504, Reason::Timeout, message, None)
    }

    /// 500: a fault of the server.
    pub fn internal(why: impl fmt::Display) -> Self {
        let details = json!({ "causes": [{ "message": why.to_string() }] });
        Self::new(500, Reason::InternalError, format!("Internal error occurred: {why}"), Some(details))
    }

    /// 503: cannot serve this now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, Reason::ServiceUnavailable, message, None)
    }

    /// HTTP status code.
    pub fn code(&self) -> u16 {
        self.0.code
    }

    /// Machine-readable cause.
    pub fn reason(&self) -> Reason {
        self.0.reason
    }

    /// Text for people.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The details object, if any.
    pub fn details(&self) -> Option<&Value> {
        self.0.details.as_ref()
    }

    /// The JSON body as sent to clients.
    pub fn to_value(&self) -> Value {
        let mut body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.0.message, "code": self.0.code,
        });
        if self.0.reason != Reason::Unknown {
            body["reason"] = self.0.reason.as_str().into();
        }
        if let Some(details) = &self.0.details {
            body["details"] = details.clone();
        }
        body
    }

    /// Reads a Status body received from a server.
    pub fn from_value(body: &Value) -> Option<Self> {
        let code = u16::try_from(body.get("code")?.as_u64()?).ok()?;
        let text = body.get("reason").and_then(Value::as_str).unwrap_or("");
        let reason = Reason::named(text);
        let message = body.get("message").and_then(Value::as_str).unwrap_or("").to_owned();
        Some(Self::new(code, reason, message, body.get("details").cloned()))
    }
}

const ALL_REASONS: &[Reason] = &[
    Reason::Unauthorized,
    Reason::Forbidden,
    Reason::NotFound,
    Reason::AlreadyExists,
    Reason::Conflict,
    Reason::Gone,
    Reason::Invalid,
    Reason::Timeout,
    Reason::ServerTimeout,
    Reason::TooManyRequests,
    Reason::BadRequest,
    Reason::MethodNotAllowed,
    Reason::NotAcceptable,
    Reason::RequestEntityTooLarge,
    Reason::UnsupportedMediaType,
    Reason::InternalError,
    Reason::Expired,
    Reason::ServiceUnavailable,
];
