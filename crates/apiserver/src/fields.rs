//! The schema side of writes: unknown fields, patches, field ownership. A thin layer over `meta`.

use std::collections::HashMap;

use bytes::Bytes;
use coracle_client::PatchKind;
use coracle_meta::apply::{self, Manager, Operation, update_managed_fields};
use coracle_meta::go::Empties;
use coracle_meta::schema::Schemas;
use coracle_meta::{Object, Status, patch};
use coracle_resources::custom::CustomStrategy;
use coracle_resources::def::ResourceDef;
use coracle_stdx::Clock;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry, Time};
use serde_json::{Value, json};

use crate::codec;
use crate::openapi;
use crate::registry::Resource;
use crate::views::OtherVersions;

/// Schemas of all kinds.
pub(crate) struct Fields {
    schemas: Schemas,
    /// Definition name by group, version and kind.
    names: HashMap<(&'static str, &'static str, &'static str), String>,
}

impl Fields {
    /// Compiles the schemas of every kind served.
    pub(crate) fn new() -> Self {
        let defs = coracle_resources::all();
        let gvk = |def: &ResourceDef| (def.group, def.version, def.kind);
        let names = defs.iter().map(|def| (gvk(def), openapi::type_name(def))).collect();
        let schemas = openapi::builtin_schemas(defs);
        Self { schemas, names }
    }

    /// The name of the kind's schema.
    pub(crate) fn name(&self, def: &ResourceDef) -> &str {
        self.names.get(&(def.group, def.version, def.kind)).map_or("", String::as_str)
    }

    /// Calls `with` with the types that a kind is one of, and its name in them.
    fn with_types<T>(&self, def: &ResourceDef, with: impl FnOnce(&Schemas, &str) -> T) -> T {
        match def.strategy.custom().map(CustomStrategy::current) {
            Some(version) => with(version.fields(), version.fields_name()),
            None => with(&self.schemas, self.name(def)),
        }
    }

    /// Messages for fields that the kind does not have, and for fields given twice.
    pub(crate) fn strict_errors(&self, def: &ResourceDef, text: &[u8]) -> Vec<String> {
        if def.strategy.custom().is_none() {
            return self.schemas.strict_errors(self.name(def), text);
        }
        let mut out = coracle_meta::schema::duplicate_fields(text);
        out.extend(serde_json::from_slice(text).map(|value| self.unknown(def, &value)).unwrap_or_default());
        out
    }

    /// Messages for fields that a type does not have, and for fields given twice.
    pub(crate) fn strict_errors_of(&self, definition: &str, text: &[u8]) -> Vec<String> {
        self.schemas.strict_errors(definition, text)
    }

    /// Messages for fields that the kind does not have.
    pub(crate) fn unknown(&self, def: &ResourceDef, value: &Value) -> Vec<String> {
        match def.strategy.custom() {
            None => self.schemas.unknown_fields(self.name(def), value),
            Some(custom) => {
                let gone = custom.prune(&mut value.clone(), false).unwrap_or_default();
                gone.into_iter().map(|path| format!("unknown field {path:?}")).collect()
            }
        }
    }

    /// Brings a value into the shape that Go would encode. That of a custom resource is what it is.
    pub(crate) fn complete(&self, def: &ResourceDef, value: &mut Value) {
        if def.strategy.custom().is_none() {
            let _ = self.schemas.normalize(self.name(def), value);
            coracle_resources::show_absent_times(value, def.kind);
            tidy(def, value);
        }
    }

    /// Encodes an object for the store, in the shape Go would give it. Its resourceVersion is cleared.
    ///
    /// # Errors
    /// 500 when it does not encode.
    pub(crate) fn encode(
        &self,
        def: &'static ResourceDef,
        obj: &mut dyn Object,
        size: usize,
    ) -> Result<Bytes, Status> {
        let def = def.stored();
        if def.strategy.custom().is_some() {
            obj.meta_mut().resource_version = None;
            return codec::encode_value(def, &obj.to_value(), size);
        }
        if is_plain(obj) {
            return codec::encode(obj, size);
        }
        obj.meta_mut().resource_version = None;
        let mut value = obj.to_value();
        self.complete(def, &mut value);
        codec::encode_value(def, &value, size)
    }

    /// `current` with a patch applied (not server-side apply).
    ///
    /// # Errors
    /// Those of the patch formats.
    pub(crate) fn patched(
        &self,
        def: &ResourceDef,
        mut current: Value,
        kind: PatchKind,
        body: &Value,
    ) -> Result<Value, Status> {
        match kind {
            PatchKind::Json => patch::json_patch(&mut current, body)?,
            PatchKind::Merge => patch::merge_patch(&mut current, body),
            PatchKind::Strategic => {
                patch::strategic_merge_patch(&mut current, body, &self.schemas, self.name(def))?;
            }
            PatchKind::Apply => {
                return Err(Status::unsupported_media_type(
                    "server-side apply is not a patch of this resource",
                ));
            }
        }
        Ok(current)
    }

    /// What messages show of a strategic merge patch to `current`.
    pub(crate) fn left_of(&self, def: &ResourceDef, current: &Value, body: &Value) -> Value {
        patch::left_of_strategic(current, body, &self.schemas, self.name(def))
    }

    /// Notes in `metadata.managedFields` which fields a write sets.
    pub(crate) fn track(
        &self,
        resource: &Resource,
        new: &mut dyn Object,
        empties: &Empties,
        live: Option<&[u8]>,
        write: Write<'_>,
    ) {
        let Write { manager, subresource, now } = write;
        let api_version = codec::api_version(resource.def);
        let manager = Manager {
            name: manager,
            operation: Operation::Update,
            api_version: &api_version,
            subresource,
            now,
        };
        if new.meta().managed_fields.as_ref().is_some_and(Vec::is_empty) {
            new.meta_mut().managed_fields = None;
            if live.is_some() {
                // An empty list, as opposed to none, makes the object forget its managers.
                return;
            }
        }
        let live: Option<Value> = live.and_then(|text| self.text_in(resource, text).ok());
        let mut value =
            if is_plain(new) { new.to_value() } else { self.value_in(resource, new).unwrap_or_default() };
        empties.fill(&mut value);
        let others = OtherVersions { fields: self, resource };
        let tracked = self.with_types(resource.def, |schemas, name| {
            // Validation lets values pass that do not fit the type: nobody owns anything of such an object.
            // Of the built-in kinds, only the secrets of an account may lack what tells them apart.
            let may_misfit = resource.custom().is_some() || new.as_any().is::<ServiceAccount>();
            let fits = !may_misfit || apply::misfit(schemas, name, &value).is_none();
            if fits {
                update_managed_fields(schemas, name, live.as_ref(), &mut value, &manager, &others);
            }
            fits
        });
        new.meta_mut().managed_fields = if tracked { managed_of(&mut value) } else { None };
    }

    /// The result of applying `config` to `live`.
    ///
    /// # Errors
    /// 409 for conflicts and those of a malformed configuration.
    pub(crate) fn apply(
        &self,
        resource: &Resource,
        live: Option<&Value>,
        config: &Value,
        how: Applying<'_>,
    ) -> Result<Value, Status> {
        let api_version = codec::api_version(resource.def);
        let manager = Manager {
            name: how.manager,
            operation: Operation::Apply,
            api_version: &api_version,
            subresource: how.subresource,
            now: how.clock.now(),
        };
        let others = OtherVersions { fields: self, resource };
        self.with_types(resource.def, |schemas, name| {
            apply::apply(schemas, name, live, config, &manager, how.force, &others)
        })
    }

    /// `live` with `config` merged into it, nobody owning anything.
    ///
    /// # Errors
    /// `config` does not fit the type, or states something that is changed as a whole.
    pub(crate) fn merged(&self, def: &ResourceDef, live: Value, config: &Value) -> Result<Value, String> {
        apply::merge_configuration(&self.schemas, self.name(def), live, config)
    }

    /// managedFields of a TokenRequest's answer.
    pub(crate) fn track_token(&self, body: &mut Value, request: &Value, manager: &str, now: Timestamp) {
        let mut spec = json!({ "f:expirationSeconds": {} });
        if request.pointer("/spec/audiences").is_some_and(|a| a.as_array().is_some_and(|a| !a.is_empty())) {
            spec["f:audiences"] = json!({});
        }
        if let Some(reference) = request.pointer("/spec/boundObjectRef").and_then(Value::as_object) {
            let set: serde_json::Map<String, Value> =
                reference.keys().map(|k| (format!("f:{k}"), json!({}))).collect();
            spec["f:boundObjectRef"] = set.into();
        }
        body["metadata"]["managedFields"] = json!([{
            "manager": manager, "operation": "Update", "apiVersion": "authentication.k8s.io/v1",
            "time": crate::verbs::create::whole_seconds(now).to_string(), "fieldsType": "FieldsV1",
            "fieldsV1": { "f:spec": spec }, "subresource": "token",
        }]);
    }
}

/// Schemas within definitions of custom resources have rules of their own.
pub(crate) fn tidy(def: &ResourceDef, value: &mut Value) {
    if def.kind == "CustomResourceDefinition" {
        coracle_resources::apiextensions::tidy(value);
    }
}

/// Who writes, through what, and when.
#[derive(Clone, Copy)]
pub(crate) struct Write<'a> {
    /// The field manager.
    pub(crate) manager: &'a str,
    /// Subresource, or empty.
    pub(crate) subresource: &'a str,
    /// Time of the write.
    pub(crate) now: Timestamp,
}

/// Who applies, and how.
#[derive(Clone, Copy)]
pub(crate) struct Applying<'a> {
    /// `fieldManager`.
    pub(crate) manager: &'a str,
    /// `force`.
    pub(crate) force: bool,
    /// Subresource, or empty.
    pub(crate) subresource: &'a str,
    /// Tells the time of the write.
    pub(crate) clock: &'a Clock,
}

/// Whether the typed encoding of the object is what Go would encode: nothing in it that Go always writes.
fn is_plain(obj: &dyn Object) -> bool {
    let any = obj.as_any();
    if let Some(pod) = any.downcast_ref::<Pod>() {
        let spec = pod.spec.as_ref();
        let nameless = spec.into_iter().flat_map(|s| s.image_pull_secrets.iter().flatten());
        let projected = spec.into_iter().flat_map(|s| s.volumes.iter().flatten());
        return !nameless.into_iter().any(|secret| secret.name.is_empty())
            && !projected.filter_map(|v| v.projected.as_ref()).any(|p| p.sources.is_none())
            && pod.status.as_ref().is_none_or(|s| {
                s.conditions.is_none()
                    && s.container_statuses.is_none()
                    && s.init_container_statuses.is_none()
                    && s.ephemeral_container_statuses.is_none()
            });
    }
    if let Some(account) = any.downcast_ref::<ServiceAccount>() {
        return !account.image_pull_secrets.iter().flatten().any(|secret| secret.name.is_empty());
    }
    any.is::<ConfigMap>() || any.is::<Secret>() || any.is::<Lease>()
}

fn managed_of(value: &mut Value) -> Option<Vec<ManagedFieldsEntry>> {
    match value.get_mut("metadata")?.get_mut("managedFields")?.take() {
        Value::Array(entries) => Some(entries.into_iter().map(managed_entry).collect()),
        _ => None,
    }
}

/// An entry as `update_managed_fields` writes it, without a copy of its field set.
fn managed_entry(mut entry: Value) -> ManagedFieldsEntry {
    let mut take = |name: &str| entry.get_mut(name).map(Value::take);
    let fields_v1 = take("fieldsV1").map(FieldsV1);
    let mut text = |name: &str| match take(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    ManagedFieldsEntry {
        api_version: text("apiVersion"),
        fields_type: text("fieldsType"),
        fields_v1,
        manager: text("manager"),
        operation: text("operation"),
        subresource: text("subresource"),
        time: text("time").and_then(|time| time.parse().ok()).map(Time),
    }
}
