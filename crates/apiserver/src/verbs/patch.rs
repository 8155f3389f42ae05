//! patch: the four patch types over one read-modify-write loop.

use std::sync::Arc;

use coracle_client::{PatchKind, WriteOptions};
use coracle_meta::field::ErrorList;
use coracle_meta::go::{self, Empties};
use coracle_meta::{DynamicObject, Object, Reason, Status};
use serde_json::Value;

use super::commit::Refused;
use super::create::place;
use super::decode::{NO_HEAD, head_fault, strict_warnings, version_fault};
use super::update::{CONFLICT_TRIES, Change, unset};
use super::{Caller, Outcome, Part, options_errors};
use crate::cache::CacheEntry;
use crate::codec;
use crate::fields::Applying;
use crate::registry::Resource;
use crate::server::Server;

/// A patch to an object.
#[derive(Clone, Copy)]
pub(crate) struct Patch<'a> {
    /// Its type.
    pub(crate) kind: PatchKind,
    /// Its body.
    pub(crate) body: &'a Value,
    /// Messages for fields that the body's text has twice.
    pub(crate) twice: &'a [String],
}

impl Server {
    /// Patches an object or a part of it.
    #[expect(clippy::too_many_arguments, reason = "the coordinates of a request")]
    pub(crate) async fn patch(
        &self,
        caller: &Caller,
        resource: &Arc<Resource>,
        namespace: &str,
        name: &str,
        part: Part,
        patch: Patch<'_>,
        opts: &WriteOptions,
    ) -> Result<Outcome, Status> {
        check_patch_options(patch.kind, opts)?;
        let caller = &caller.asking(opts, true);
        for attempt in 1.. {
            self.fresh().await?;
            let Some(entry) = self.look(resource, namespace, name).await? else {
                if patch.kind == PatchKind::Apply && part == Part::Main {
                    let made = self.apply_absent(caller, resource, namespace, name, patch, opts).await;
                    match made {
                        Err(status) if status.code() == 409 && attempt < CONFLICT_TRIES => continue,
                        made => return made,
                    }
                }
                return Err(Status::not_found(resource.def.group, resource.def.plural, name));
            };
            let tried = self.patch_once(caller, resource, namespace, part, &entry, patch, opts).await;
            match tried {
                Ok(outcome) => return Ok(outcome),
                Err(Refused::Condition(..)) if attempt < CONFLICT_TRIES => {}
                Err(Refused::Condition(..)) => break,
                Err(Refused::Failed(status)) => return Err(status),
            }
        }
        Err(Status::modified(resource.def.group, resource.def.plural, name))
    }

    #[expect(clippy::too_many_arguments, reason = "the coordinates of a request")]
    async fn patch_once(
        &self,
        caller: &Caller,
        resource: &Arc<Resource>,
        namespace: &str,
        part: Part,
        entry: &Arc<CacheEntry>,
        patch: Patch<'_>,
        opts: &WriteOptions,
    ) -> Result<Outcome, Refused> {
        if patch.kind == PatchKind::Apply {
            return self.apply_once(caller, resource, namespace, part, entry, patch, opts).await;
        }
        let current = self.fields.text_in(resource, &entry.encoded()).map_err(Refused::Failed)?;
        let (_, name) = entry.namespace_name();
        let mut patched =
            self.fields.patched(resource.def, current, patch.kind, patch.body).map_err(Refused::Failed)?;
        let no_object = |why: &str| Refused::Failed(self.no_object(resource, entry, patch, why));
        if patch.kind == PatchKind::Strategic {
            let kind = go::type_name(resource.def.group, resource.def.version, resource.def.kind);
            if let Some(why) = go::conversion_error(&kind, &patched) {
                return Err(no_object(&why));
            }
            go::narrow(&kind, &mut patched);
            // Upstream knows what it merges into, whatever the patch says that it is.
            patched["apiVersion"] = codec::api_version(resource.def).into();
            patched["kind"] = resource.def.kind.into();
        }
        if patch.kind != PatchKind::Strategic {
            if let Some(why) = head_fault(&patched) {
                return Err(no_object(&format!("{NO_HEAD}{why}")));
            }
            if let Some(why) = version_fault(&patched) {
                return Err(no_object(&why));
            }
        }
        let mut decoded = self
            .decode_value(resource, patched, &opts.field_validation)
            .map_err(|e| no_object(e.message()))?;
        if !patch.twice.is_empty() && opts.field_validation == "Strict" {
            let why = format!("strict decoding error: {}", patch.twice.join(", "));
            return Err(no_object(&why));
        }
        decoded.warnings.extend_from_slice(patch.twice);
        // Upstream looks at what a patch made of the owners when admission has been.
        let (early, late) = ("duplicate entries;", "duplicate entries after mutating admission happens;");
        for warning in decoded.warnings.iter_mut().filter(|w| w.starts_with(".metadata.ownerReferences")) {
            *warning = warning.replacen(early, late, 1);
        }
        caller.warn(&decoded.warnings);
        let mut obj = decoded.obj;
        check_identity(&*obj, name).map_err(Refused::Failed)?;
        place(resource, namespace, &mut *obj).map_err(Refused::Failed)?;
        let locked = obj.meta().resource_version.as_deref() != Some(&entry.revision.to_string());
        let change = Change { obj, warnings: decoded.warnings, empties: decoded.empties };
        match self.replace(caller, resource, namespace, part, entry, change, opts).await {
            // The client named a revision: do not try again behind its back.
            Err(Refused::Condition(..)) if locked => {
                Err(Refused::Failed(Status::modified(resource.def.group, resource.def.plural, name)))
            }
            other => other,
        }
    }

    /// 422 for a patch whose result is no object of the kind.
    fn no_object(&self, resource: &Resource, entry: &CacheEntry, patch: Patch<'_>, why: &str) -> Status {
        let def = resource.def;
        let current = self.fields.text_in(resource, &entry.encoded()).unwrap_or_default();
        let shown = match patch.kind {
            PatchKind::Strategic => go_value(&self.fields.left_of(def, &current, patch.body)),
            kind => {
                let patched = self.fields.patched(def, current, kind, patch.body).unwrap_or_default();
                shown(patch, &go::type_name(def.group, def.version, def.kind), &patched)
            }
        };
        unusable(&shown, why)
    }

    /// Server-side apply onto an object that exists.
    #[expect(clippy::too_many_arguments, reason = "the coordinates of a request")]
    pub(crate) async fn apply_once(
        &self,
        caller: &Caller,
        resource: &Arc<Resource>,
        namespace: &str,
        part: Part,
        entry: &Arc<CacheEntry>,
        patch: Patch<'_>,
        opts: &WriteOptions,
    ) -> Result<Outcome, Refused> {
        let body = patch.body;
        let (_, name) = entry.namespace_name();
        check_applied(resource, body).map_err(Refused::Failed)?;
        let old = entry.decode_full().map_err(Refused::Failed)?;
        let live = self.fields.text_in(resource, &entry.encoded()).map_err(Refused::Failed)?;
        check_applied_revision(resource, name, body, entry.revision).map_err(Refused::Failed)?;
        let how = self.applying(opts, part);
        let mut applied = self.fields.apply(resource, Some(&live), body, how).map_err(Refused::Failed)?;
        let mut warnings = doubled(patch, opts).map_err(Refused::Failed)?;
        caller.warn(&warnings);
        check_namespace(resource, namespace, body).map_err(Refused::Failed)?;
        if applied == live && !self.out_of_date(entry).await? {
            if part == Part::Main {
                warnings.extend(resource.def.strategy.warnings(&*old, Some(&*old)));
            }
            return Ok(Outcome { warnings, ..Outcome::of(entry.clone()) });
        }
        check_convertible(resource, body, &mut applied).map_err(Refused::Failed)?;
        let empties = Empties::of(&applied);
        let mut obj = resource.def.strategy.decode(applied).map_err(Refused::Failed)?;
        default_applied(resource, &mut *obj);
        place(resource, namespace, &mut *obj).map_err(Refused::Failed)?;
        check_identity(&*obj, name).map_err(Refused::Failed)?;
        let change = Change { obj, warnings, empties };
        self.finish(caller, resource, namespace, part, entry, &*old, change, opts.dry_run).await
    }

    /// Server-side apply of an object that does not exist yet: a create.
    async fn apply_absent(
        &self,
        caller: &Caller,
        resource: &Arc<Resource>,
        namespace: &str,
        name: &str,
        patch: Patch<'_>,
        opts: &WriteOptions,
    ) -> Result<Outcome, Status> {
        let body = patch.body;
        check_applied(resource, body)?;
        let uid = body.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or("");
        if !uid.is_empty() {
            let why = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            return Err(Status::conflict(resource.def.group, resource.def.plural, name, &why));
        }
        let mut applied = self.fields.apply(resource, None, body, self.applying(opts, Part::Main))?;
        let warnings = doubled(patch, opts)?;
        caller.warn(&warnings);
        check_namespace(resource, namespace, body)?;
        check_convertible(resource, body, &mut applied)?;
        let empties = Empties::of(&applied);
        let mut obj = resource.def.strategy.decode(applied)?;
        check_identity(&*obj, name)?;
        place(resource, namespace, &mut *obj)?;
        // Of a new object it says nothing.
        obj.meta_mut().resource_version = None;
        default_applied(resource, &mut *obj);
        let change = Change { obj, warnings, empties };
        self.create_object(caller, resource, namespace, change, opts.dry_run).await
    }

    fn applying<'a>(&'a self, opts: &'a WriteOptions, part: Part) -> Applying<'a> {
        Applying {
            manager: &opts.field_manager,
            force: opts.force,
            subresource: part.path(),
            clock: &self.clock,
        }
    }
}

/// Checks an apply configuration before it is applied: its type, and that it says nothing of owners. A name that is not
/// the object's shows in what came of it.
fn check_applied(resource: &Resource, body: &Value) -> Result<(), Status> {
    let Value::Object(_) = body else {
        return Err(Status::bad_request("invalid object type: /, Kind="));
    };
    let managed = body.pointer("/metadata/managedFields").filter(|managed| !managed.is_null());
    if managed.is_some_and(|managed| managed.as_array().is_none_or(|entries| !entries.is_empty())) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    check_applied_type(resource, body)
}

/// An applied object is of the namespace of the request, where it says which.
fn check_namespace(resource: &Resource, namespace: &str, body: &Value) -> Result<(), Status> {
    let own = body.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or("");
    if resource.namespaced() && !own.is_empty() && own != namespace {
        let why = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Status::bad_request(why));
    }
    Ok(())
}

/// Defaults of what came of an apply.
fn default_applied(resource: &Resource, obj: &mut dyn Object) {
    match (resource.custom(), obj.downcast_mut::<DynamicObject>()) {
        (Some(custom), Some(obj)) => custom.fill(obj.body_mut()),
        _ => resource.def.strategy.default(obj),
    }
}

/// What is said of keys that an apply configuration has twice, as warnings or as the refusal of a strict client.
fn doubled(patch: Patch<'_>, opts: &WriteOptions) -> Result<Vec<String>, Status> {
    let converting = |why: &String| format!("error converting YAML to JSON: {why}");
    let said: Vec<String> = patch.twice.iter().map(converting).collect();
    match said.first() {
        Some(why) if opts.field_validation == "Strict" => {
            Err(Status::bad_request(format!("error strict decoding YAML: {why}")))
        }
        _ => Ok(strict_warnings(said)),
    }
}

/// What came of an apply must fit the kind's type, and is cut to fit where it is a number too large. Upstream takes
/// it for a fault of its own.
fn check_convertible(resource: &Resource, body: &Value, applied: &mut Value) -> Result<(), Status> {
    let def = resource.def;
    if def.strategy.custom().is_some() {
        return Ok(());
    }
    let name = go::type_name(def.group, def.version, def.kind);
    let Some(why) = go::conversion_error(&name, applied) else {
        go::narrow(&name, applied);
        return Ok(());
    };
    let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).unwrap_or("");
    let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
    let kind = format!("{}/{}, Kind={}", def.group, def.version, def.kind);
    let why = format!(
        "failed to convert new object ({namespace}/{name}; {kind}) to proper version: \
         unable to convert unstructured object to {kind}: {why}"
    );
    Err(Status::new(500, Reason::Unknown, why, None))
}

fn check_applied_type(resource: &Resource, body: &Value) -> Result<(), Status> {
    let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or("");
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let (expected_version, expected_kind) = (codec::api_version(resource.def), resource.def.kind);
    if api_version != expected_version || kind != expected_kind {
        let gvk = |version: &str, kind: &str| {
            let (group, version) = version.split_once('/').unwrap_or(("", version));
            format!("{group}/{version}, Kind={kind}")
        };
        let why = format!("invalid object type: {}", gvk(api_version, kind));
        return Err(Status::bad_request(why));
    }
    Ok(())
}

fn check_applied_revision(
    resource: &Resource,
    name: &str,
    body: &Value,
    revision: u64,
) -> Result<(), Status> {
    match body.pointer("/metadata/resourceVersion").and_then(Value::as_str) {
        Some(version) if !unset(Some(version)) && version != revision.to_string() => {
            if version.bytes().any(|b| !b.is_ascii_digit()) {
                let why = format!("strconv.ParseUint: parsing {version:?}: invalid syntax");
                return Err(Status::new(500, Reason::Unknown, why, None));
            }
            Err(Status::modified(resource.def.group, resource.def.plural, name))
        }
        _ => Ok(()),
    }
}

/// How a message shows a patch that cannot be had: what came of it, or a strategic patch itself.
pub(super) fn shown(patch: Patch<'_>, go_type: &str, patched: &Value) -> String {
    match patch.kind {
        PatchKind::Strategic => go_value(patch.body),
        _ => go::patched_json(go_type, patched, &touched(patch)),
    }
}

/// 422 for a patch whose result is no object of the kind.
pub(super) fn unusable(shown: &str, why: &str) -> Status {
    let why = why
        .split_once("cannot be handled as a ")
        .map_or(why, |(_, rest)| rest.split_once(": ").map_or(rest, |(_, why)| why));
    let mut errs = ErrorList::new();
    errs.invalid("patch", shown, why);
    Status::invalid("", "", "", &errs)
}

/// The objects and lists that a patch goes through, as objects within objects.
fn touched(patch: Patch<'_>) -> Value {
    let mut out = Value::Object(serde_json::Map::new());
    match patch.body {
        Value::Array(operations) => {
            let path = |op: &Value, key: &str| op.get(key).and_then(Value::as_str).map(str::to_owned);
            let moved = |op: &Value| path(op, "from").filter(|_| op.get("op") == Some(&"move".into()));
            for pointer in operations.iter().flat_map(|op| path(op, "path").into_iter().chain(moved(op))) {
                let parents = pointer.rsplit_once('/').map_or("", |(parents, _)| parents);
                let mut place = &mut out;
                for step in parents.split('/').skip(1) {
                    let step = step.replace("~1", "/").replace("~0", "~");
                    place = &mut place[step];
                    if !place.is_object() {
                        *place = Value::Object(serde_json::Map::new());
                    }
                }
            }
        }
        merged => out = by_index(merged),
    }
    out
}

/// The value with lists as objects by index: what a merge patch puts into an object has lost its order all the way.
fn by_index(value: &Value) -> Value {
    match value {
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), by_index(v))).collect(),
        Value::Array(items) => {
            items.iter().enumerate().map(|(i, item)| (i.to_string(), by_index(item))).collect()
        }
        other => other.clone(),
    }
}

/// A value as Go's `%+v` prints it.
fn go_value(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_value).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut fields: Vec<String> = map.iter().map(|(k, v)| format!("{k}:{}", go_value(v))).collect();
            fields.sort();
            format!("map[{}]", fields.join(" "))
        }
        other => other.to_string(),
    }
}

/// A patch may not rename.
fn check_identity(patched: &dyn Object, name: &str) -> Result<(), Status> {
    let own = patched.name();
    if own == name {
        return Ok(());
    }
    if own.is_empty() {
        let why =
            format!("the name of the object ({name} based on URL) was undeterminable: name must be provided");
        return Err(Status::bad_request(why));
    }
    let why = format!("the name of the object ({own}) does not match the name on the URL ({name})");
    Err(Status::bad_request(why))
}

/// `fieldManager` and `force` belong to apply.
pub(crate) fn check_patch_options(kind: PatchKind, opts: &WriteOptions) -> Result<(), Status> {
    let mut errs = ErrorList::new();
    if kind == PatchKind::Apply {
        if opts.field_manager.is_empty() {
            errs.required("fieldManager", "is required for apply patch");
        }
    } else if opts.force {
        errs.forbidden("force", "may not be specified for non-apply patch");
    }
    options_errors(opts, &mut errs);
    if errs.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &errs)) }
}
