//! The scale subresource: an autoscaling/v1 Scale as a view of its parent.

use std::sync::Arc;

use coracle_client::{PatchKind, WriteOptions};
use coracle_meta::field::ErrorList;
use coracle_meta::selector::LabelSelector;
use coracle_meta::{DynamicObject, GroupVersionKind, Object, Status, go};
use coracle_resources::def::{ResourceDef, ScalePaths};
use serde_json::{Value, json};

use super::commit::Refused;
use super::decode::strict_warnings;
use super::patch::{Patch, check_patch_options, shown, unusable};
use super::sent::SCALE;
use super::update::{CONFLICT_TRIES, Change, uid_conflict, unset};
use super::{Caller, Outcome, Part};
use crate::cache::CacheEntry;
use crate::registry::Resource;
use crate::server::Server;

/// What a client wants to do to a Scale.
pub(crate) enum ScaleWrite<'a> {
    /// PUT.
    Replace(Value),
    /// PATCH.
    Patch(PatchKind, &'a Value),
}

impl Server {
    /// Reads a Scale.
    pub(crate) async fn get_scale(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Outcome, Status> {
        let entry = self.get(resource, namespace, name).await?;
        let scale = scale_of(resource, paths(resource)?, &entry)?;
        Ok(Outcome::of(transient(resource.def, scale)?))
    }

    /// Writes a Scale: sets the parent's replicas.
    pub(crate) async fn write_scale(
        &self,
        caller: &Caller,
        resource: &Arc<Resource>,
        namespace: &str,
        name: &str,
        write: ScaleWrite<'_>,
        opts: &WriteOptions,
    ) -> Result<Outcome, Status> {
        let paths = paths(resource)?;
        if let ScaleWrite::Patch(kind, _) = write {
            check_patch_options(kind, opts)?;
        }
        for _ in 0..CONFLICT_TRIES {
            let entry = self.get(resource, namespace, name).await?;
            if let ScaleWrite::Patch(PatchKind::Apply, body) = write {
                let config = applied_to_parent(resource, name, body)?;
                let part = Part::Scale;
                let patch = Patch { kind: PatchKind::Apply, body: &config, twice: &[] };
                match self.apply_once(caller, resource, namespace, part, &entry, patch, opts).await {
                    Ok(outcome) => {
                        let scale = scale_of(resource, paths, &outcome.entry)?;
                        return Ok(Outcome { entry: transient(resource.def, scale)?, ..outcome });
                    }
                    Err(Refused::Condition(..)) => continue,
                    Err(Refused::Failed(status)) => return Err(of_scales(resource, status)),
                }
            }
            let current = scale_of(resource, paths, &entry)?;
            let wanted = match &write {
                ScaleWrite::Replace(value) => value.clone(),
                ScaleWrite::Patch(kind, body) => {
                    let mut shown = current.clone();
                    shown["metadata"]["managedFields"] = managed_by(paths, &entry)?;
                    self.patched_scale(caller, shown, *kind, body, &opts.field_validation)?
                }
            };
            check_scale(resource, (namespace, name), (&wanted, &current), &entry, opts.dry_run)?;
            let locked = !unset(wanted.pointer("/metadata/resourceVersion").and_then(Value::as_str))
                && matches!(write, ScaleWrite::Replace(_));
            let count = wanted.pointer("/spec/replicas").filter(|count| !count.is_null());
            let replicas = count.cloned().unwrap_or(json!(0));
            let change = parent_with(resource, paths, &entry, replicas)?;
            match self.replace(caller, resource, namespace, Part::Scale, &entry, change, opts).await {
                Ok(outcome) => {
                    let scale = scale_of(resource, paths, &outcome.entry)?;
                    return Ok(Outcome { entry: transient(resource.def, scale)?, ..outcome });
                }
                Err(Refused::Condition(..)) if !locked => {}
                Err(Refused::Condition(..)) => break,
                Err(Refused::Failed(status)) => return Err(status),
            }
        }
        Err(Status::modified(resource.def.group, resource.def.plural, name))
    }
}

impl Server {
    /// A Scale with a patch applied. The caller is warned of unknown fields, or refused if strict.
    fn patched_scale(
        &self,
        caller: &Caller,
        current: Value,
        kind: PatchKind,
        body: &Value,
        validation: &str,
    ) -> Result<Value, Status> {
        let mut patched = self.fields.patched(scale_def(), current, kind, body)?;
        let fault = match kind {
            PatchKind::Strategic => go::conversion_error(SCALE.go_type, &patched),
            _ => go::type_error(SCALE.go_type, patched.to_string().as_bytes()),
        };
        let patch = Patch { kind, body, twice: &[] };
        if let Some(why) = fault {
            return Err(unusable(&shown(patch, SCALE.go_type, &patched), &why));
        }
        if kind == PatchKind::Strategic {
            go::narrow(SCALE.go_type, &mut patched);
        }
        if validation != "Ignore" {
            let strict = self.fields.strict_errors_of(SCALE.schema, patched.to_string().as_bytes());
            if validation == "Strict" && !strict.is_empty() {
                let why = format!("strict decoding error: {}", strict.join(", "));
                return Err(unusable(&shown(patch, SCALE.go_type, &patched), &why));
            }
            caller.warn(&strict_warnings(strict));
        }
        Ok(patched)
    }
}

/// Who owns the count, as owners of a Scale.
fn managed_by(paths: ScalePaths, entry: &CacheEntry) -> Result<Value, Status> {
    let mut value: Value = serde_json::from_slice(&entry.encoded()).map_err(Status::internal)?;
    let Some(Value::Array(entries)) = value.pointer_mut("/metadata/managedFields").map(Value::take) else {
        return Ok(Value::Null);
    };
    let count: String = paths.spec_replicas.split('/').skip(1).map(|step| format!("/f:{step}")).collect();
    let owning = entries.into_iter().filter(|e| e["fieldsV1"].pointer(&count).is_some()).map(|mut e| {
        e["apiVersion"] = SCALE.api_version.into();
        e["fieldsV1"] = json!({ "f:spec": { "f:replicas": {} } });
        e
    });
    Ok(owning.collect())
}

/// A conflict over the parent's count, as one over that of its Scale.
fn of_scales(resource: &Resource, status: Status) -> Status {
    if status.code() != 409 {
        return status;
    }
    let parent = format!(" using {}", crate::codec::api_version(resource.def));
    let scale = format!(" using {}", SCALE.api_version);
    let mut details = status.details().cloned();
    let causes = details.as_mut().and_then(|d| d.get_mut("causes")?.as_array_mut());
    for cause in causes.into_iter().flatten() {
        if let Some(Value::String(message)) = cause.get_mut("message") {
            *message = message.replace(&parent, &scale);
        }
    }
    Status::new(409, status.reason(), status.message().replace(&parent, &scale), details)
}

fn paths(resource: &Resource) -> Result<ScalePaths, Status> {
    resource.def.scale.ok_or_else(Status::no_such_path)
}

/// What an applied Scale says of its parent.
fn applied_to_parent(resource: &Resource, name: &str, body: &Value) -> Result<Value, Status> {
    let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).unwrap_or("");
    let (api_version, kind) = (text("/apiVersion"), text("/kind"));
    if (api_version, kind) != ("autoscaling/v1", "Scale") {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        return Err(Status::bad_request(format!("invalid object type: {group}/{version}, Kind={kind}")));
    }
    if let Some(why) = go::type_error(SCALE.go_type, body.to_string().as_bytes()) {
        return Err(SCALE.unusable(&why));
    }
    let mut config = json!({
        "apiVersion": crate::codec::api_version(resource.def), "kind": resource.def.kind,
        "metadata": { "name": text("/metadata/name") },
    });
    if let Some(version) = body.pointer("/metadata/resourceVersion") {
        config["metadata"]["resourceVersion"] = version.clone();
    }
    if let Some(replicas) = body.pointer("/spec/replicas") {
        if replicas.as_i64().is_some_and(|n| n < 0) {
            return Err(negative(resource, name, replicas));
        }
        set_at(&mut config, paths(resource)?.spec_replicas, replicas.clone());
    }
    Ok(config)
}

/// The parent with another number of replicas.
fn parent_with(
    resource: &Resource,
    paths: ScalePaths,
    entry: &CacheEntry,
    replicas: Value,
) -> Result<Change, Status> {
    let mut value: Value = serde_json::from_slice(&entry.encoded()).map_err(Status::internal)?;
    set_at(&mut value, paths.spec_replicas, replicas);
    Ok(Change::of(resource.def.strategy.decode(value)?, Vec::new()))
}

fn scale_of(resource: &Resource, paths: ScalePaths, entry: &CacheEntry) -> Result<Value, Status> {
    let value: Value = serde_json::from_slice(&entry.encoded()).map_err(Status::internal)?;
    if resource.custom().is_some() && value.pointer(paths.spec_replicas).is_none_or(Value::is_null) {
        let path = paths.spec_replicas.replace('/', ".");
        return Err(Status::internal(format!("the spec replicas field {path:?} does not exist")));
    }
    let mut meta = serde_json::Map::new();
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(v) = value["metadata"].get(key) {
            meta.insert(key.into(), v.clone());
        }
    }
    let mut spec = serde_json::Map::new();
    if let Some(n) = value.pointer(paths.spec_replicas).filter(|n| **n != json!(0)) {
        spec.insert("replicas".into(), n.clone());
    }
    let replicas = value.pointer(paths.status_replicas).cloned().unwrap_or(json!(0));
    let mut status = json!({ "replicas": replicas });
    if let Some(text) = value.pointer(paths.selector).and_then(selector_text).filter(|t| !t.is_empty()) {
        status["selector"] = text.into();
    }
    Ok(json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": meta, "spec": spec, "status": status,
    }))
}

/// Sets the value that a pointer leads to, through objects made on the way.
fn set_at(value: &mut Value, pointer: &str, new: Value) {
    let mut place = value;
    for step in pointer.split('/').skip(1) {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[step];
    }
    *place = new;
}

/// The text form of a LabelSelector, or of a plain map (replication controllers).
fn selector_text(selector: &Value) -> Option<String> {
    if let Value::String(text) = selector {
        return Some(text.clone());
    }
    let typed = serde_json::from_value(selector.clone()).ok();
    let parsed = match typed {
        Some(api) if selector.get("matchLabels").is_some() || selector.get("matchExpressions").is_some() => {
            LabelSelector::from_api(&api).ok()?
        }
        _ => LabelSelector::from_map(&serde_json::from_value(selector.clone()).ok()?),
    };
    Some(parsed.to_string())
}

fn check_scale(
    resource: &Resource,
    (namespace, name): (&str, &str),
    (wanted, current): (&Value, &Value),
    entry: &CacheEntry,
    dry_run: bool,
) -> Result<(), Status> {
    let revision = entry.revision;
    let meta = |key: &str| wanted["metadata"].get(key).and_then(Value::as_str).unwrap_or("");
    if meta("name") != name {
        let own = meta("name");
        if own.is_empty() {
            let why = format!(
                "the name of the object ({name} based on URL) was undeterminable: name must be provided"
            );
            return Err(Status::bad_request(why));
        }
        let why = format!("the name of the object ({own}) does not match the name on the URL ({name})");
        return Err(Status::bad_request(why));
    }
    if !meta("namespace").is_empty() && meta("namespace") != namespace {
        let why = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Status::bad_request(why));
    }
    let present = current["metadata"]["uid"].as_str().unwrap_or("");
    if !meta("uid").is_empty() && meta("uid") != present {
        return Err(uid_conflict(resource, entry, (meta("uid"), present), dry_run));
    }
    let version = meta("resourceVersion");
    if !unset(Some(version)) && version != revision.to_string() {
        return Err(Status::modified(resource.def.group, resource.def.plural, name));
    }
    let replicas = wanted.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
    if replicas < 0 {
        return Err(negative(resource, name, &json!(replicas)));
    }
    Ok(())
}

/// 422: a custom resource's strategy checks the count where its schema has it.
fn negative(resource: &Resource, name: &str, replicas: &Value) -> Status {
    let mut errs = ErrorList::new();
    if resource.custom().is_some() {
        let path = resource.def.scale.map_or("", |paths| paths.spec_replicas).replace('/', ".");
        errs.invalid(path.as_str(), replicas.clone(), "should be a non-negative integer");
        return Status::invalid(resource.def.group, resource.def.kind, name, &errs);
    }
    errs.invalid("spec.replicas", replicas.clone(), "must be greater than or equal to 0");
    Status::invalid("autoscaling", "Scale", name, &errs)
}

fn transient(def: &'static ResourceDef, scale: Value) -> Result<Arc<CacheEntry>, Status> {
    let gvk = GroupVersionKind::new("autoscaling", "v1", "Scale");
    let obj: Arc<dyn Object> = Arc::new(DynamicObject::from_value(gvk, scale).map_err(Status::internal)?);
    Ok(Arc::new(CacheEntry::transient(def, obj)))
}

/// The definition by which a Scale is patched: that of any kind with plain maps will do.
fn scale_def() -> &'static ResourceDef {
    coracle_resources::all()[0]
}
