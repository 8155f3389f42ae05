//! Custom resources in several versions: how objects get from the version they are stored in to that of a
//! request, and back.
//!
//! Verbs see the request's version only. Entries of another version are converted when they are looked up, and a
//! written object is converted to the storage version just before it is encoded. Without a webhook nothing but
//! `apiVersion` changes, and what the other version's schema does not have goes.

use std::sync::Arc;
use std::time::Duration;

use coracle_admission::HookTarget;
use coracle_meta::{Object, Status};
use coracle_resources::custom::{Conversion, CustomVersion};
use coracle_resources::def::ResourceDef;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::WebhookClientConfig;
use serde_json::{Value, json};

use crate::cache::CacheEntry;
use crate::codec;
use crate::hooks;
use crate::registry::Resource;
use crate::server::Server;

/// How long a conversion webhook may take.
const TIMEOUT: Duration = Duration::from_secs(30);

impl Server {
    /// An entry in the version of the resource.
    ///
    /// # Errors
    /// 500 when a conversion webhook fails.
    pub(crate) async fn in_version(
        &self,
        resource: &Resource,
        entry: Arc<CacheEntry>,
    ) -> Result<Arc<CacheEntry>, Status> {
        if resource.custom().is_none() || std::ptr::eq(entry.def, resource.def) {
            return Ok(entry);
        }
        let converted = self.all_in_version(resource, vec![entry]).await?;
        converted.into_iter().next().ok_or_else(|| Status::internal("conversion lost the object"))
    }

    /// All entries in the version of the resource; a webhook is asked once for those of each version.
    ///
    /// # Errors
    /// As [`Server::in_version`].
    pub(crate) async fn all_in_version(
        &self,
        resource: &Resource,
        mut entries: Vec<Arc<CacheEntry>>,
    ) -> Result<Vec<Arc<CacheEntry>>, Status> {
        let Some(custom) = resource.custom() else { return Ok(entries) };
        let foreign: Vec<usize> =
            (0..entries.len()).filter(|i| !std::ptr::eq(entries[*i].def, resource.def)).collect();
        if foreign.is_empty() {
            return Ok(entries);
        }
        let parse = |i: &usize| serde_json::from_slice(&entries[*i].encoded()).map_err(Status::internal);
        let values = foreign.iter().map(parse).collect::<Result<Vec<Value>, _>>()?;
        let converted = self.convert(&custom.current(), values, resource.def).await?;
        for (i, mut value) in foreign.into_iter().zip(converted) {
            let entry = &entries[i];
            if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
                meta.remove("resourceVersion");
            }
            let encoded = codec::encode_value(resource.def, &value, entry.size())?;
            entries[i] = Arc::new(entry.read_as(resource.def, codec::splice(&encoded, entry.revision)));
        }
        Ok(entries)
    }

    /// An object of the request's version as it is stored.
    ///
    /// # Errors
    /// As [`Server::in_version`].
    pub(crate) async fn in_storage_version(
        &self,
        resource: &Resource,
        obj: &dyn Object,
    ) -> Result<Option<Box<dyn Object>>, Status> {
        let Some(custom) = resource.custom().filter(|_| !std::ptr::eq(resource.def, resource.storage)) else {
            return Ok(None);
        };
        let mut value = obj.to_value();
        // Not of use to a webhook, and to be replaced anyway.
        let revision = obj.meta().resource_version.clone();
        if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.remove("resourceVersion");
        }
        let converted = self.convert(&custom.current(), vec![value], resource.storage).await?;
        let value =
            converted.into_iter().next().ok_or_else(|| Status::internal("conversion lost the object"))?;
        let mut stored = resource.storage.strategy.decode(value)?;
        stored.meta_mut().resource_version = revision;
        // As whoever reads the version would set them.
        resource.storage.strategy.default(&mut *stored);
        Ok(Some(stored))
    }

    async fn convert(
        &self,
        version: &CustomVersion,
        mut values: Vec<Value>,
        to: &'static ResourceDef,
    ) -> Result<Vec<Value>, Status> {
        let wanted = codec::api_version(to);
        match &version.conversion {
            Conversion::None => {
                values.iter_mut().for_each(|value| value["apiVersion"] = wanted.clone().into())
            }
            Conversion::Webhook { client, reviews } => {
                values = self.ask(client, reviews, values, &wanted).await?;
            }
        }
        if let Some(strategy) = to.strategy.custom() {
            for value in &mut values {
                strategy.prune(value, true).map_err(Status::internal)?;
            }
        }
        Ok(values)
    }

    /// Asks a webhook to convert objects; the answer must be the same objects in another version.
    async fn ask(
        &self,
        client: &WebhookClientConfig,
        reviews: &[String],
        values: Vec<Value>,
        wanted: &str,
    ) -> Result<Vec<Value>, Status> {
        // Of what is to be converted, as upstream says it.
        let of = |field: &str| values.first().and_then(|v| v[field].as_str()).unwrap_or_default();
        let gvk = format!("{}, Kind={}", of("apiVersion"), of("kind"));
        let failed = |why: String| {
            let message = format!("conversion webhook for {gvk} failed: {why}");
            Status::new(500, coracle_meta::Reason::Unknown, message, None)
        };
        let review = reviews.iter().find(|v| matches!(v.as_str(), "v1" | "v1beta1"));
        let review = review.ok_or_else(|| failed("no recognized conversion review versions".into()))?;
        let api_version = format!("apiextensions.k8s.io/{review}");
        let uid = coracle_stdx::uuid();
        let body = json!({
            "kind": "ConversionReview", "apiVersion": api_version,
            "request": { "uid": uid, "desiredAPIVersion": wanted, "objects": values },
        });
        let answer = hooks::post(self, &target(client), body.to_string().into_bytes(), TIMEOUT).await;
        let answer: Value = serde_json::from_slice(&answer.map_err(|e| failed(e.why))?)
            .map_err(|e| failed(format!("couldn't get version/kind; json parse error: {e}")))?;
        let response = &answer["response"];
        if review == "v1" {
            check_answer(&answer, &api_version, &uid).map_err(failed)?;
        }
        if response["result"]["status"] != "Success" {
            let message = response["result"]["message"].as_str().unwrap_or("");
            return Err(failed(message.to_owned()));
        }
        let converted = response["convertedObjects"].as_array().cloned().unwrap_or_default();
        if converted.len() != values.len() {
            let (got, want) = (converted.len(), values.len());
            return Err(failed(format!("returned {got} objects, expected {want}")));
        }
        let both = values.iter().zip(converted).enumerate();
        both.map(|(i, (before, after))| same_object(before, after, wanted, i))
            .collect::<Result<_, _>>()
            .map_err(failed)
    }
}

/// Where the webhook of a definition is.
fn target(client: &WebhookClientConfig) -> HookTarget {
    let ca_bundle = client.ca_bundle.as_ref().map(|ca| ca.0.clone()).filter(|ca| !ca.is_empty());
    match &client.service {
        Some(s) => HookTarget::of_service(&s.namespace, &s.name, s.port, s.path.as_deref(), ca_bundle),
        None => HookTarget { url: client.url.clone().unwrap_or_default(), service: None, ca_bundle },
    }
}

fn check_answer(answer: &Value, api_version: &str, uid: &str) -> Result<(), String> {
    if answer["kind"] != "ConversionReview" || answer["apiVersion"] != api_version {
        let (version, kind) = (&answer["apiVersion"], &answer["kind"]);
        return Err(format!(
            "invalid response: expected {api_version} ConversionReview, got {version} {kind}"
        ));
    }
    match answer["response"]["uid"].as_str() {
        Some(got) if got == uid => Ok(()),
        got => Err(format!("expected response.uid={uid:?}, got {:?}", got.unwrap_or(""))),
    }
}

/// The converted object, whose metadata the webhook may change in labels and annotations only.
fn same_object(before: &Value, mut after: Value, wanted: &str, i: usize) -> Result<Value, String> {
    let version = after["apiVersion"].as_str().unwrap_or("").to_owned();
    if version != wanted {
        return Err(format!(
            "returned invalid converted object at index {i}: invalid groupVersion (expected {wanted}, received {version})"
        ));
    }
    if after["kind"] != before["kind"] {
        let (want, got) = (before["kind"].as_str().unwrap_or(""), after["kind"].as_str().unwrap_or(""));
        return Err(format!(
            "returned invalid converted object at index {i}: invalid kind (expected {want}, received {got})"
        ));
    }
    for field in ["name", "namespace", "uid"] {
        if after["metadata"][field] != before["metadata"][field] {
            return Err(format!(
                "returned invalid converted object at index {i}: metadata.{field} must not change"
            ));
        }
    }
    let mut meta = before["metadata"].clone();
    for field in ["labels", "annotations"] {
        let fields = meta.as_object_mut().ok_or("metadata is missing")?;
        match after["metadata"].get(field) {
            Some(value) => drop(fields.insert(field.into(), value.clone())),
            None => drop(fields.remove(field)),
        }
    }
    after["metadata"] = meta;
    Ok(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn webhooks_change_labels_and_annotations_but_nothing_else_of_metadata() {
        let before = json!({ "apiVersion": "g/v1", "kind": "K",
            "metadata": { "name": "a", "generation": 3, "labels": { "x": "1" } } });
        let after = json!({ "apiVersion": "g/v2", "kind": "K",
            "metadata": { "name": "a", "generation": 9, "annotations": { "y": "2" } }, "spec": {} });
        let made = same_object(&before, after.clone(), "g/v2", 0).expect("the same object");
        let expected = json!({ "name": "a", "generation": 3, "annotations": { "y": "2" } });
        assert_eq!(made["metadata"], expected);
        let mut renamed = after;
        renamed["metadata"]["name"] = "b".into();
        assert!(same_object(&before, renamed, "g/v2", 0).is_err());
    }
}
