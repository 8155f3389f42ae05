//! Where a request goes: method, path and query, and body.

use bytes::Bytes;
use http::Method;
use serde_json::{Map, Value, json};

use crate::transport::{
    ApiRequest, Body, DeleteOptions, ListOptions, PatchKind, ResourceId, Verb, WriteOptions,
};

/// A request as HTTP has it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) method: Method,
    /// Path and query.
    pub(super) path: String,
    /// Empty where there is no body.
    pub(super) content_type: &'static str,
    pub(super) body: Bytes,
}

const JSON: &str = "application/json";

/// Parts of a query.
#[derive(Default)]
struct Query(String);

impl Query {
    fn with(mut self, key: &str, value: &str) -> Self {
        if !value.is_empty() {
            self.0.push(if self.0.is_empty() { '?' } else { '&' });
            self.0.push_str(key);
            self.0.push('=');
            self.0.push_str(&escaped(value));
        }
        self
    }

    fn selecting(self, options: &ListOptions) -> Self {
        self.with("labelSelector", &options.label_selector)
            .with("fieldSelector", &options.field_selector)
            .with("resourceVersion", &options.resource_version)
    }

    fn listing(self, options: &ListOptions) -> Self {
        let limit = if options.limit == 0 { String::new() } else { options.limit.to_string() };
        self.selecting(options)
            .with("resourceVersionMatch", &options.resource_version_match)
            .with("limit", &limit)
            .with("continue", &options.continue_token)
    }

    fn writing(self, options: &WriteOptions) -> Self {
        self.with("fieldManager", &options.field_manager)
            .with("fieldValidation", &options.field_validation)
            .with("dryRun", if options.dry_run { "All" } else { "" })
            .with("force", if options.force { "true" } else { "" })
    }
}

/// A text in which all that could mean something else in a URL is escaped.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn collection(resource: ResourceId, namespace: &str) -> String {
    let ResourceId { group, version, resource } = resource;
    let mut path =
        if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    if !namespace.is_empty() {
        path.push_str("/namespaces/");
        path.push_str(namespace);
    }
    path.push('/');
    path.push_str(resource);
    path
}

fn bytes_of(body: Body) -> Bytes {
    match body {
        Body::Object(object) => {
            let mut out = Vec::with_capacity(1024);
            object.write_json(&mut out);
            out.into()
        }
        Body::Json(value) => value.to_string().into(),
    }
}

fn delete_body(options: &DeleteOptions) -> Bytes {
    let mut body = Map::new();
    body.insert("apiVersion".into(), "v1".into());
    body.insert("kind".into(), "DeleteOptions".into());
    if let Some(seconds) = options.grace_period_seconds {
        body.insert("gracePeriodSeconds".into(), seconds.into());
    }
    if options.uid.is_some() || options.resource_version.is_some() {
        let mut conditions = Map::new();
        for (key, value) in [("uid", &options.uid), ("resourceVersion", &options.resource_version)] {
            if let Some(value) = value {
                conditions.insert(key.into(), value.as_str().into());
            }
        }
        body.insert("preconditions".into(), conditions.into());
    }
    if let Some(policy) = &options.propagation_policy {
        body.insert("propagationPolicy".into(), policy.as_str().into());
    }
    if options.dry_run {
        body.insert("dryRun".into(), json!(["All"]));
    }
    Value::Object(body).to_string().into()
}

/// Where a request goes.
pub(super) fn route(request: ApiRequest) -> Route {
    let ApiRequest { resource, namespace, name, subresource, verb } = request;
    let all = collection(resource, &namespace);
    let one = || {
        let mut path = format!("{all}/{name}");
        if !subresource.is_empty() {
            path.push('/');
            path.push_str(subresource);
        }
        path
    };
    let query = Query::default();
    let (method, path, query, content_type, body) = match verb {
        Verb::Get => (Method::GET, one(), query, "", Bytes::new()),
        Verb::List(options) => (Method::GET, all, query.listing(&options), "", Bytes::new()),
        Verb::Create(body, options) => {
            let path = if subresource.is_empty() { all } else { one() };
            (Method::POST, path, query.writing(&options), JSON, bytes_of(body))
        }
        Verb::Update(body, options) => (Method::PUT, one(), query.writing(&options), JSON, bytes_of(body)),
        Verb::Patch(kind, patch, options) => {
            let content_type = match kind {
                PatchKind::Json => "application/json-patch+json",
                PatchKind::Merge => "application/merge-patch+json",
                PatchKind::Strategic => "application/strategic-merge-patch+json",
                PatchKind::Apply => "application/apply-patch+yaml",
            };
            (Method::PATCH, one(), query.writing(&options), content_type, patch.to_string().into())
        }
        Verb::Delete(options) => (Method::DELETE, one(), query, JSON, delete_body(&options)),
        Verb::DeleteCollection(options, which) => {
            (Method::DELETE, all, query.listing(&which), JSON, delete_body(&options))
        }
    };
    Route { method, path: path + &query.0, content_type, body }
}

/// Where a watch goes; the server ends it after so many seconds.
pub(super) fn watch_path(
    resource: ResourceId,
    namespace: &str,
    options: &ListOptions,
    send_initial_events: bool,
    seconds: u64,
) -> String {
    let mut query = Query::default()
        .with("watch", "true")
        .with("allowWatchBookmarks", "true")
        .with("timeoutSeconds", &seconds.to_string())
        .selecting(options);
    if send_initial_events {
        query = query.with("sendInitialEvents", "true").with("resourceVersionMatch", "NotOlderThan");
    }
    collection(resource, namespace) + &query.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const PODS: ResourceId = ResourceId { group: "", version: "v1", resource: "pods" };
    const DEPLOYMENTS: ResourceId = ResourceId { group: "apps", version: "v1", resource: "deployments" };

    fn of(resource: ResourceId, name: &str, subresource: &'static str, verb: Verb) -> Route {
        let (namespace, name) = ("ns".to_owned(), name.to_owned());
        route(ApiRequest { resource, namespace, name, subresource, verb })
    }

    #[test]
    fn verbs_become_methods_and_paths() {
        let get = of(DEPLOYMENTS, "web", "status", Verb::Get);
        assert_eq!(
            (get.method, get.path.as_str()),
            (Method::GET, "/apis/apps/v1/namespaces/ns/deployments/web/status")
        );
        let options = WriteOptions { field_manager: "m".to_owned(), ..WriteOptions::default() };
        let create = of(PODS, "p", "", Verb::Create(Body::Json(json!({})), options.clone()));
        assert_eq!(create.path, "/api/v1/namespaces/ns/pods?fieldManager=m", "the name stands in the body");
        let evict = of(PODS, "p", "eviction", Verb::Create(Body::Json(json!({})), WriteOptions::default()));
        assert_eq!(
            (evict.method, evict.path.as_str()),
            (Method::POST, "/api/v1/namespaces/ns/pods/p/eviction")
        );
        let patch = of(PODS, "p", "", Verb::Patch(PatchKind::Strategic, json!({}), options));
        assert_eq!(patch.content_type, "application/strategic-merge-patch+json");
    }

    #[test]
    fn selectors_are_escaped_and_empty_ones_left_out() {
        let which =
            ListOptions { label_selector: "a in (b,c)".to_owned(), limit: 5, ..ListOptions::default() };
        let list = of(PODS, "", "", Verb::List(which));
        assert_eq!(list.path, "/api/v1/namespaces/ns/pods?labelSelector=a%20in%20%28b%2Cc%29&limit=5");
        let options = ListOptions { resource_version: "7".to_owned(), ..ListOptions::default() };
        let path = watch_path(PODS, "", &options, false, 300);
        assert_eq!(
            path,
            "/api/v1/pods?watch=true&allowWatchBookmarks=true&timeoutSeconds=300&resourceVersion=7"
        );
        let initial = watch_path(PODS, "", &ListOptions::default(), true, 300);
        assert!(initial.ends_with("&sendInitialEvents=true&resourceVersionMatch=NotOlderThan"), "{initial}");
    }

    #[test]
    fn deletions_carry_only_the_preconditions_that_are_given() {
        let options = DeleteOptions { uid: Some("u".to_owned()), ..DeleteOptions::default() };
        let body: Value =
            serde_json::from_slice(&of(PODS, "p", "", Verb::Delete(options)).body).expect("JSON");
        assert_eq!(
            body,
            json!({ "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": { "uid": "u" } })
        );
    }
}
