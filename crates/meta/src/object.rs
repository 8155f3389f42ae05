//! What every stored thing is to the machinery: an [`Object`], typed behind a trait object.
//!
//! A built-in kind is its `k8s-openapi` struct; a custom resource is a [`DynamicObject`]. Both are handled
//! by one path, and in-process readers share one decoded copy by `Arc`.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::go;

/// Group, version and kind, e.g. `apps`/`v1`/`Deployment`; the core group is the empty string.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersionKind {
    /// API group; empty for core.
    pub group: String,
    /// Version, e.g. `v1`.
    pub version: String,
    /// Kind in CamelCase.
    pub kind: String,
}

impl GroupVersionKind {
    /// Builds a value from its parts.
    pub fn new(group: &str, version: &str, kind: &str) -> Self {
        Self { group: group.into(), version: version.into(), kind: kind.into() }
    }

    /// `v1` or `apps/v1`: the `apiVersion` field.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }
}

/// An API object with `metadata`, decoded.
///
/// Guarantees: [`Object::to_value`] yields the JSON form with `apiVersion` and `kind`.
pub trait Object: Any + Send + Sync + fmt::Debug {
    /// The object's group, version and kind.
    fn gvk(&self) -> GroupVersionKind;
    /// Its metadata.
    fn meta(&self) -> &ObjectMeta;
    /// Its metadata, to change.
    fn meta_mut(&mut self) -> &mut ObjectMeta;
    /// Its JSON form, `apiVersion` and `kind` included.
    fn to_value(&self) -> Value;
    /// Appends the JSON form of [`Object::to_value`] to `out`, without building a value where possible.
    fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.to_value().to_string().as_bytes());
    }
    /// A deep copy.
    fn clone_object(&self) -> Box<dyn Object>;
    /// For downcasting to the concrete kind.
    fn as_any(&self) -> &dyn Any;
    /// For downcasting to the concrete kind, to change.
    fn as_any_mut(&mut self) -> &mut dyn Any;
    /// For downcasting a shared object without a copy.
    fn into_any_arc(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl dyn Object {
    /// The concrete kind, if it is `K`.
    pub fn downcast<K: 'static>(&self) -> Option<&K> {
        self.as_any().downcast_ref()
    }

    /// The concrete kind, if it is `K`, to change.
    pub fn downcast_mut<K: 'static>(&mut self) -> Option<&mut K> {
        self.as_any_mut().downcast_mut()
    }

    /// `metadata.name`, or the empty string.
    pub fn name(&self) -> &str {
        self.meta().name.as_deref().unwrap_or("")
    }

    /// `metadata.namespace`, or the empty string.
    pub fn namespace(&self) -> &str {
        self.meta().namespace.as_deref().unwrap_or("")
    }
}

/// A built-in kind: what a typed client, informer or strategy asks of its type parameter.
pub trait Kind:
    k8s_openapi::Resource
    + k8s_openapi::Metadata<Ty = ObjectMeta>
    + Serialize
    + DeserializeOwned
    + Clone
    + fmt::Debug
    + Send
    + Sync
    + 'static
{
}

impl<K> Kind for K where
    K: k8s_openapi::Resource
        + k8s_openapi::Metadata<Ty = ObjectMeta>
        + Serialize
        + DeserializeOwned
        + Clone
        + fmt::Debug
        + Send
        + Sync
        + 'static
{
}

impl<K: Kind> Object for K {
    fn gvk(&self) -> GroupVersionKind {
        GroupVersionKind::new(K::GROUP, K::VERSION, K::KIND)
    }
    fn meta(&self) -> &ObjectMeta {
        self.metadata()
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.metadata_mut()
    }
    fn to_value(&self) -> Value {
        serde_json::to_value(self).unwrap_or(Value::Null)
    }
    fn write_json(&self, out: &mut Vec<u8>) {
        let start = out.len();
        if serde_json::to_writer(&mut *out, self).is_err() {
            return out.truncate(start);
        }
        put_kind_first(&mut out[start..], K::API_VERSION, K::KIND);
    }
    fn clone_object(&self) -> Box<dyn Object> {
        Box::new(self.clone())
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
    fn into_any_arc(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// Swaps the first two fields of an encoding that begins with `apiVersion` and `kind`, as it leaves our types: Go's
/// begin with `kind`. Texts that begin otherwise stay as they are.
fn put_kind_first(json: &mut [u8], api_version: &str, kind: &str) {
    let rest =
        json.strip_prefix(b"{\"apiVersion\":\"").and_then(|rest| rest.strip_prefix(api_version.as_bytes()));
    let rest = rest.and_then(|rest| rest.strip_prefix(b"\",\"kind\":\"")?.strip_prefix(kind.as_bytes()));
    let Some(rest) = rest.and_then(|rest| rest.strip_prefix(b"\"")) else { return };
    let end = json.len() - rest.len();
    let head = &mut json[1..end];
    let of_version = "\"apiVersion\":\"\"".len() + api_version.len();
    // `A,K` becomes `KA,` and then `K,A`.
    head.rotate_left(of_version + 1);
    let of_kind = head.len() - of_version - 1;
    head[of_kind..].rotate_right(1);
}

/// An object without a Rust type: a custom resource, or a virtual kind.
#[derive(Clone, Debug)]
pub struct DynamicObject {
    gvk: GroupVersionKind,
    meta: ObjectMeta,
    body: Value,
}

impl DynamicObject {
    /// Takes `value` apart into metadata and the rest.
    ///
    /// # Errors
    /// When `metadata` has the wrong shape.
    pub fn from_value(gvk: GroupVersionKind, mut value: Value) -> Result<Self, serde_json::Error> {
        let meta = match value.get_mut("metadata").map(Value::take) {
            None | Some(Value::Null) => ObjectMeta::default(),
            Some(meta) => serde_json::from_value(meta)?,
        };
        Ok(Self { gvk, meta, body: value })
    }

    /// The fields beside `metadata`.
    pub fn body(&self) -> &Value {
        &self.body
    }

    /// The fields beside `metadata`, to change.
    pub fn body_mut(&mut self) -> &mut Value {
        &mut self.body
    }
}

impl Object for DynamicObject {
    fn gvk(&self) -> GroupVersionKind {
        self.gvk.clone()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
    fn to_value(&self) -> Value {
        let mut value = self.body.clone();
        if let Value::Object(map) = &mut value {
            map.insert("apiVersion".into(), self.gvk.api_version().into());
            map.insert("kind".into(), self.gvk.kind.clone().into());
            map.insert("metadata".into(), serde_json::to_value(&self.meta).unwrap_or(Value::Null));
        }
        value
    }
    fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&go::encode(&self.to_value(), go::Style::Compact));
    }
    fn clone_object(&self) -> Box<dyn Object> {
        Box::new(self.clone())
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
    fn into_any_arc(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// Read access to the current objects of the cluster, decoded and shared. Synchronous and in memory: for
/// authorizers and admission, which run inside the API server.
pub trait ObjectReader: Send + Sync {
    /// One object; `namespace` is empty for cluster-scoped resources. `None` when absent.
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<dyn Object>>;
    /// All objects of a resource, of one namespace or (empty) of all, in key order.
    fn list(&self, group: &str, resource: &str, namespace: &str) -> Vec<Arc<dyn Object>>;
    /// A number that changes with every change of a resource's objects, so that readers can cache what
    /// they derive from them; `None`: not offered, compare the objects.
    fn generation(&self, _group: &str, _resource: &str) -> Option<u64> {
        None
    }
    /// The plural of a kind of custom resources that is served, and whether its objects live in namespaces; `None`
    /// where there are no custom resources.
    fn custom_kind(&self, _group: &str, _version: &str, _kind: &str) -> Option<(String, bool)> {
        None
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;

    use super::*;

    #[test]
    fn kind_comes_first() {
        let mut out = b"x".to_vec();
        let mut deployment = Deployment::default();
        deployment.metadata.name = Some("a".into());
        deployment.write_json(&mut out);
        let text = r#"x{"kind":"Deployment","apiVersion":"apps/v1","metadata":{"name":"a"}}"#;
        assert_eq!(String::from_utf8_lossy(&out), text);
        let gvk = GroupVersionKind::new("autoscaling", "v1", "Scale");
        let scale = DynamicObject::from_value(gvk, serde_json::json!({})).expect("object");
        out.clear();
        scale.write_json(&mut out);
        assert_eq!(
            String::from_utf8_lossy(&out),
            r#"{"kind":"Scale","apiVersion":"autoscaling/v1","metadata":{}}"#
        );
    }
}
