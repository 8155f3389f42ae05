//! An object as a server sent it: its metadata is read, the rest when somebody asks for it.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use coracle_meta::{GroupVersionKind, Kind, Object, Status};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

/// The fields that every object has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    metadata: ObjectMeta,
}

/// An object in the encoding that it came in. `managedFields` are left out, as servers keep them when a write
/// does not name them.
#[derive(Clone, Debug)]
pub struct Fetched {
    gvk: GroupVersionKind,
    meta: ObjectMeta,
    bytes: Bytes,
}

impl Fetched {
    /// Takes the JSON form of an object.
    ///
    /// # Errors
    /// 500 when it is none.
    pub fn new(bytes: Bytes) -> Result<Self, Status> {
        let head: Head = serde_json::from_slice(&bytes)
            .map_err(|e| Status::internal(format!("the server's answer is no object: {e}")))?;
        let (group, version) = head.api_version.split_once('/').unwrap_or(("", &head.api_version));
        let gvk = GroupVersionKind::new(group, version, &head.kind);
        Ok(Self { gvk, meta: ObjectMeta { managed_fields: None, ..head.metadata }, bytes })
    }

    /// The object as a `K`.
    ///
    /// # Errors
    /// 500 when it is none.
    pub fn decode<K: Kind>(&self) -> Result<K, Status> {
        let (what, name) = (&self.gvk.kind, self.meta.name.as_deref().unwrap_or(""));
        let mut object: K = serde_json::from_slice(&self.bytes)
            .map_err(|e| Status::internal(format!("{what} {name:?} does not decode as {}: {e}", K::KIND)))?;
        object.metadata_mut().clone_from(&self.meta);
        Ok(object)
    }
}

impl Object for Fetched {
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
        let mut value: Value = serde_json::from_slice(&self.bytes).unwrap_or(Value::Null);
        if let Value::Object(fields) = &mut value {
            fields.insert("metadata".into(), serde_json::to_value(&self.meta).unwrap_or(Value::Null));
        }
        value
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

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    #[test]
    fn what_was_changed_in_the_metadata_is_in_every_form_and_managed_fields_are_in_none() {
        let text = r#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a",
            "managedFields":[{"manager":"m"}]},"data":{"k":"v"}}"#;
        let mut fetched = Fetched::new(Bytes::from_static(text.as_bytes())).expect("an object");
        assert_eq!((fetched.gvk().kind.as_str(), fetched.gvk().version.as_str()), ("ConfigMap", "v1"));
        fetched.meta_mut().name = Some("b".to_owned());
        let map: ConfigMap = fetched.decode().expect("a ConfigMap");
        assert_eq!((map.metadata.name.as_deref(), map.metadata.managed_fields), (Some("b"), None));
        assert_eq!(fetched.to_value()["metadata"], serde_json::json!({ "name": "b" }));
        assert_eq!(fetched.to_value()["data"]["k"], "v");
        assert_eq!(Fetched::new(Bytes::from_static(b"no")).expect_err("no object").code(), 500);
    }
}
