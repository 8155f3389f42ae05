//! serviceaccounts/token: issues a token for a service account, bound to an object if asked.

use std::sync::Arc;

use coracle_auth::service_account::TokenSpec;
use coracle_client::WriteOptions;
use coracle_meta::field::ErrorList;
use coracle_meta::{DynamicObject, GroupVersionKind, Object, Status, names};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::create::whole_seconds;
use super::{Caller, Input, Outcome, sent};

/// What a token is bound to, and the name and uid of its node where known.
type BoundTo = (Option<Bound>, Option<(String, String)>);
use crate::cache::CacheEntry;
use crate::registry::Resource;
use crate::server::Server;

const DEFAULT_SECONDS: i64 = 3600;
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;

/// The object a token is bound to: kind, name, uid.
type Bound = (String, String, String);

impl Server {
    /// Issues a token.
    pub(crate) async fn issue_token(
        &self,
        caller: &Caller,
        resource: &Resource,
        namespace: &str,
        name: &str,
        input: Input,
        opts: &WriteOptions,
    ) -> Result<Outcome, Status> {
        let issuer = self.token_issuer.as_ref().ok_or_else(Status::no_such_path)?;
        let request = self.sent(caller, &sent::TOKEN_REQUEST, input, &opts.field_validation)?;
        let account = self.get(resource, namespace, name).await?.decoded()?;
        let uid = account.meta().uid.clone().unwrap_or_default();
        check_request(&request, name)?;
        let audiences: Vec<String> = request
            .pointer("/spec/audiences")
            .and_then(Value::as_array)
            .map(|list| list.iter().filter_map(|a| Some(a.as_str()?.to_owned())).collect())
            .filter(|list: &Vec<String>| !list.is_empty())
            .unwrap_or_else(|| vec![self.default_audience()]);
        let seconds =
            request.pointer("/spec/expirationSeconds").and_then(Value::as_i64).unwrap_or(DEFAULT_SECONDS);
        let (bound, node) = self.bound_object(namespace, request.pointer("/spec/boundObjectRef"))?;
        let spec = TokenSpec {
            namespace: namespace.to_owned(),
            service_account: name.to_owned(),
            service_account_uid: uid.clone(),
            audiences: audiences.clone(),
            expiration_seconds: seconds,
            bound,
            node,
        };
        let now = self.clock.now();
        let (token, expires) = issuer.issue(&spec, now);
        let mut body = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "metadata": {
                "name": name, "namespace": namespace, "uid": uid,
                "creationTimestamp": whole_seconds(now).to_string(),
            },
            "spec": {
                "audiences": audiences,
                "expirationSeconds": seconds,
                "boundObjectRef": request.pointer("/spec/boundObjectRef").cloned().unwrap_or(Value::Null),
            },
            "status": { "token": token, "expirationTimestamp": whole_seconds(expires).to_string() },
        });
        let manager = self.manager(caller, opts);
        self.fields.track_token(&mut body, &request, &manager, now);
        let gvk = GroupVersionKind::new("authentication.k8s.io", "v1", "TokenRequest");
        let obj: Arc<dyn Object> = Arc::new(DynamicObject::from_value(gvk, body).map_err(Status::internal)?);
        let entry = Arc::new(CacheEntry::transient(resource.def, obj));
        Ok(Outcome { entry, warnings: Vec::new(), created: true })
    }

    /// Looks up what the token shall be bound to; also the node, if that is known.
    fn bound_object(&self, namespace: &str, reference: Option<&Value>) -> Result<BoundTo, Status> {
        let Some(reference @ Value::Object(_)) = reference else { return Ok((None, None)) };
        let text = |key: &str| reference.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
        let (api_version, kind, name, uid) = (text("apiVersion"), text("kind"), text("name"), text("uid"));
        // What is no version has neither a group.
        let parts = api_version.split_once('/').filter(|(_, version)| !version.contains('/'));
        let (group, version) = parts.unwrap_or(("", &api_version));
        // Of a version upstream asks nothing.
        let (resource, at) = match (group, kind.as_str()) {
            ("", "Pod") => ("pods", namespace),
            ("", "Secret") => ("secrets", namespace),
            ("", "Node") => ("nodes", ""),
            _ => {
                let why = format!("cannot bind token to object of type {group}/{version}, Kind={kind}");
                return Err(Status::bad_request(why));
            }
        };
        let resource = self.cache.registry.find("", resource).ok_or_else(Status::no_such_path)?;
        if let Some(why) = names::path_segment(&name).first() {
            return Err(Status::bad_request(format!("Name parameter invalid: {name:?}: {why}")));
        }
        let object = self.present(&resource, at, &name)?.decoded()?;
        let own = object.meta().uid.clone().unwrap_or_default();
        if !uid.is_empty() && uid != own {
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. \
                 The object might have been deleted and then recreated"
            );
            return Err(Status::conflict("", &kind, &name, &why));
        }
        let node = object.downcast::<Pod>().and_then(|p| p.spec.as_ref()?.node_name.clone());
        let node = node.filter(|n| !n.is_empty()).map(|node| {
            let nodes = self.cache.registry.find("", "nodes");
            let uid =
                nodes.and_then(|r| self.present(&r, "", &node).ok()?.decoded().ok()?.meta().uid.clone());
            (node, uid.unwrap_or_default())
        });
        Ok((Some((kind, name, own)), node))
    }
}

fn check_request(request: &Value, name: &str) -> Result<(), Status> {
    const GROUP: &str = "authentication.k8s.io";
    let mut errs = ErrorList::new();
    let own = request.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("");
    if !own.is_empty() && own != name {
        errs.invalid("metadata.name", own, "must match the service account name if specified");
        return Err(Status::invalid(GROUP, "TokenRequest", name, &errs));
    }
    if let Some(seconds) = request.pointer("/spec/expirationSeconds").and_then(Value::as_i64) {
        if seconds < MIN_SECONDS {
            let why = "may not specify a duration less than 10 minutes";
            errs.invalid("spec.expirationSeconds", seconds, why);
        }
        if seconds > MAX_SECONDS {
            let why = "may not specify a duration larger than 2^32 seconds";
            errs.invalid("spec.expirationSeconds", seconds, why);
        }
    }
    if errs.is_empty() { Ok(()) } else { Err(Status::invalid(GROUP, "TokenRequest", "", &errs)) }
}
