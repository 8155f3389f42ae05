//! Tables and metadata-only objects, made on demand from the shared objects.

use std::sync::Arc;

use coracle_meta::{DynamicObject, Object, Status};
use serde_json::{Value, json};

use super::respond::{Answer, list_meta};
use crate::cache::CacheEntry;
use crate::registry::Resource;
use crate::verbs::list::Page;

/// A table of one object.
pub(crate) fn of_object(
    answer: &Answer<'_>,
    resource: &Resource,
    entry: &Arc<CacheEntry>,
) -> Result<Value, Status> {
    let rows = vec![row(answer, resource, entry)?];
    let mut meta = json!({});
    let obj = entry.decoded()?;
    if is_scale(&*obj) {
        let meta = json!({ "resourceVersion": obj.meta().resource_version });
        return Ok(table(answer.wanted.version, meta, scale_columns(), rows));
    }
    if entry.revision != 0 {
        meta["resourceVersion"] = entry.revision.to_string().into();
    }
    Ok(table(answer.wanted.version, meta, columns(resource), rows))
}

/// A table of a list.
pub(crate) fn of_list(answer: &Answer<'_>, resource: &Resource, page: &Page) -> Result<Value, Status> {
    check_include(answer.include_object)?;
    let rows = page.entries.iter().map(|e| row(answer, resource, e)).collect::<Result<_, _>>()?;
    Ok(table(answer.wanted.version, list_meta(page), columns(resource), rows))
}

/// A table of a watch event; the columns come with the first only.
pub(crate) fn of_event(
    answer: &Answer<'_>,
    resource: &Resource,
    entry: &Arc<CacheEntry>,
    first: bool,
) -> Result<Value, Status> {
    let columns = if first { columns(resource) } else { Value::Null };
    let meta = json!({ "resourceVersion": entry.revision.to_string() });
    Ok(table(answer.wanted.version, meta, columns, vec![row(answer, resource, entry)?]))
}

/// A table without rows: a bookmark.
pub(crate) fn empty(version: &str, revision: u64) -> Value {
    let meta = json!({ "resourceVersion": revision.to_string() });
    table(version, meta, Value::Null, Vec::new())
}

/// Checks `includeObject`.
///
/// # Errors
/// 400 as upstream.
pub(crate) fn check_include(include: &str) -> Result<(), Status> {
    if matches!(include, "" | "Metadata" | "Object" | "None") {
        return Ok(());
    }
    let why = format!(
        "Unable to convert to Table as requested: includeObject: Invalid value: {include:?}: must be \
         'Metadata', 'Object', 'None', or empty"
    );
    Err(Status::bad_request(why))
}

fn table(version: &str, metadata: Value, columns: Value, rows: Vec<Value>) -> Value {
    json!({
        "kind": "Table",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": metadata,
        "columnDefinitions": columns,
        "rows": rows,
    })
}

/// Whether the object is a Scale, which is a view of its parent.
fn is_scale(obj: &dyn Object) -> bool {
    obj.downcast::<DynamicObject>().is_some_and(|obj| {
        let of = obj.gvk();
        (of.group.as_str(), of.kind.as_str()) == ("autoscaling", "Scale")
    })
}

fn columns(resource: &Resource) -> Value {
    if let Some(custom) = resource.custom() {
        let name = &coracle_resources::def::NAME;
        let name = json!({ "name": name.name, "type": name.kind, "format": name.format,
            "description": name.description, "priority": 0 });
        let own = custom.current();
        let own = own.columns.iter().map(|c| {
            json!({ "name": c.name, "type": c.kind, "format": c.format, "description": c.description,
                "priority": c.priority })
        });
        return std::iter::once(name).chain(own).collect::<Vec<_>>().into();
    }
    let columns = resource.def.columns.iter().map(|c| {
        json!({
            "name": c.name, "type": c.kind, "format": c.format, "description": c.description,
            "priority": c.priority,
        })
    });
    columns.collect::<Vec<_>>().into()
}

/// The columns of a Scale, which is a view of its parent.
fn scale_columns() -> Value {
    let column = |name: &str, kind: &str, description: &str| json!({ "name": name, "type": kind, "format": "", "description": description, "priority": 0 });
    json!([
        column("Name", "string", NAME_TEXT),
        column("Desired", "integer", "replicas is the desired number of instances for the scaled object."),
        column(
            "Available",
            "integer",
            "replicas is the actual number of observed instances of the scaled object."
        ),
        column("Age", "string", AGE_TEXT),
    ])
}

const NAME_TEXT: &str = "Name must be unique within a namespace. Is required when creating resources, although some \
    resources may allow a client to request the generation of an appropriate name automatically. Name is primarily \
    intended for creation idempotence and configuration definition. Cannot be updated. More info: \
    https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";
const AGE_TEXT: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It \
    is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. \
    It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More \
    info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

/// The cells of a Scale.
fn scale_cells(obj: &dyn Object, now: jiff::Timestamp) -> Vec<Value> {
    let body = obj.to_value();
    let number = |at: &str| body.pointer(at).cloned().unwrap_or_else(|| 0.into());
    let age = coracle_resources::def::age(obj.meta().creation_timestamp.as_ref(), now);
    vec![obj.name().into(), number("/spec/replicas"), number("/status/replicas"), age]
}

fn row(answer: &Answer<'_>, resource: &Resource, entry: &Arc<CacheEntry>) -> Result<Value, Status> {
    check_include(answer.include_object)?;
    let obj = entry.decoded()?;
    let now = answer.server.clock.now();
    let cells = if is_scale(&*obj) { scale_cells(&*obj, now) } else { resource.def.strategy.row(&*obj, now) };
    let mut row = json!({ "cells": cells });
    if let Some((reason, message)) = resource.def.strategy.completed(&*obj) {
        row["conditions"] =
            json!([{ "type": "Completed", "status": "True", "reason": reason, "message": message }]);
    }
    match answer.include_object {
        "None" => row["object"] = Value::Null,
        "Object" => row["object"] = serde_json::from_slice(&entry.encoded()).map_err(Status::internal)?,
        _ => row["object"] = partial(entry, answer.wanted.version)?,
    }
    Ok(row)
}

/// The object's metadata alone.
pub(crate) fn partial(entry: &CacheEntry, version: &str) -> Result<Value, Status> {
    #[derive(serde::Deserialize)]
    struct Head {
        metadata: Value,
    }
    let mut head: Head = serde_json::from_slice(&entry.encoded()).map_err(Status::internal)?;
    hide(&mut head.metadata, entry.def.hidden_annotations);
    Ok(json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": head.metadata,
    }))
}

/// Takes annotations out.
fn hide(metadata: &mut Value, annotations: &[&str]) {
    let Some(map) = metadata.as_object_mut().filter(|_| !annotations.is_empty()) else { return };
    let Some(held) = map.get_mut("annotations").and_then(Value::as_object_mut) else { return };
    held.retain(|key, _| !annotations.contains(&key.as_str()));
    if held.is_empty() {
        map.remove("annotations");
    }
}

/// The metadata of all objects of a list.
pub(crate) fn partial_list(page: &Page, version: &str) -> Result<Value, Status> {
    let items = page.entries.iter().map(|e| partial(e, version)).collect::<Result<Vec<_>, _>>()?;
    Ok(json!({
        "kind": "PartialObjectMetadataList",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": list_meta(page),
        "items": items,
    }))
}
