//! Who may ask the kubelet what: the API server everything; others by their certificate or token, as the API server
//! decides about the node's subresources.

use coracle_client::{ApiRequest, ApiResponse, Body, ResourceId, Verb, WriteOptions};
use coracle_meta::Status;
use http::{HeaderMap, Method};
use serde_json::{Value, json};

use super::tls::Caller;
use crate::context::Context;

/// A user as the API server knows one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    name: String,
    groups: Vec<String>,
    uid: String,
}

/// Subresources of the node that a path stands for, the finest first.
pub fn subresources(path: &str) -> Vec<&'static str> {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or("");
    match first {
        "stats" => vec!["stats"],
        "metrics" => vec!["metrics"],
        "logs" => vec!["log"],
        "checkpoint" => vec!["checkpoint"],
        "healthz" => vec!["healthz", "proxy"],
        "pods" | "runningpods" | "runningPods" => vec!["pods", "proxy"],
        "configz" => vec!["configz", "proxy"],
        _ => vec!["proxy"],
    }
}

/// The API's verb for a method.
pub fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

async fn review(
    cx: &Context,
    group: &'static str,
    plural: &'static str,
    body: Value,
) -> Result<Value, Status> {
    let request = ApiRequest {
        resource: ResourceId { group, version: "v1", resource: plural },
        namespace: String::new(),
        name: String::new(),
        subresource: "",
        verb: Verb::Create(Body::Json(body), WriteOptions::default()),
    };
    match cx.client.request(request).await? {
        ApiResponse::Object(object) => Ok(object.to_value()),
        ApiResponse::Status(value) => Ok(value),
        ApiResponse::List { .. } => Err(Status::internal("a review returned a list")),
    }
}

/// The user behind a bearer token.
async fn by_token(cx: &Context, token: &str) -> Option<User> {
    let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {},
        "spec": {"token": token}});
    let answer = review(cx, "authentication.k8s.io", "tokenreviews", body).await.ok()?;
    if answer["status"]["authenticated"] != true {
        return None;
    }
    let user = &answer["status"]["user"];
    let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
    Some(User {
        name: text(&user["username"]),
        uid: text(&user["uid"]),
        groups: user["groups"].as_array().into_iter().flatten().map(text).collect(),
    })
}

/// Who is calling; `None` for nobody known.
pub async fn user(cx: &Context, caller: &Caller, headers: &HeaderMap) -> Option<User> {
    if let Caller::Other { name, groups } = caller {
        let mut groups = groups.clone();
        groups.push("system:authenticated".to_owned());
        return Some(User { name: name.clone(), groups, uid: String::new() });
    }
    let header = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    by_token(cx, header.strip_prefix("Bearer ")?.trim()).await
}

/// Whether the user may, or upstream's refusal.
pub async fn check(cx: &Context, user: &User, verb: &str, wanted: &[&str]) -> Result<(), String> {
    for subresource in wanted {
        let body = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {},
            "spec": {"user": user.name, "groups": user.groups, "uid": user.uid, "resourceAttributes": {
                "verb": verb, "version": "v1", "resource": "nodes", "subresource": subresource,
                "name": cx.config.node_name}}});
        let answer = review(cx, "authorization.k8s.io", "subjectaccessreviews", body).await;
        if answer.is_ok_and(|a| a["status"]["allowed"] == true) {
            return Ok(());
        }
    }
    let name = &user.name;
    Err(format!(
        "Forbidden (user={name}, verb={verb}, resource=nodes, subresource(s)=[{}])\n",
        wanted.join(" ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stand_for_subresources_of_the_node() {
        assert_eq!(subresources("/metrics/resource"), ["metrics"]);
        assert_eq!(subresources("/stats/summary"), ["stats"]);
        assert_eq!(subresources("/pods"), ["pods", "proxy"]);
        assert_eq!(subresources("/exec/ns/pod/c"), ["proxy"]);
        assert_eq!(subresources("/logs/"), ["log"]);
        assert_eq!(verb(&Method::POST), "create");
    }
}
