//! The behaviour of custom resources, by the schema of the version.

use std::sync::Arc;

use coracle_apiextensions::{defaults, list_types, object_meta, prune, validate};
use coracle_meta::field::{Error, ErrorKind, ErrorList, Path};
use coracle_meta::{DynamicObject, GroupVersionKind, Object, Status, names};
use parking_lot::RwLock;
use serde_json::{Map, Value};

use super::version::{CustomVersion, Scale};
use crate::def::{self, Context, ErasedStrategy, Subresource};

/// Strategy of a custom resource's row. Its version is replaced when the definition changes.
#[derive(Debug)]
pub struct CustomStrategy {
    current: RwLock<Arc<CustomVersion>>,
}

impl CustomStrategy {
    pub(super) fn new(version: CustomVersion) -> Self {
        Self { current: RwLock::new(Arc::new(version)) }
    }

    /// The version as it is now.
    pub fn current(&self) -> Arc<CustomVersion> {
        self.current.read().clone()
    }

    pub(super) fn serve(&self, mut version: CustomVersion) {
        let mut current = self.current.write();
        version.inherit(&current);
        *current = Arc::new(version);
    }

    /// The version's definition is gone: what it took of memory is given back, as rows outlive it.
    pub fn retire(&self) {
        let mut current = self.current.write();
        let mut bare = CustomVersion::clone(&current);
        bare.forget();
        bare.terminating = true;
        *current = Arc::new(bare);
    }

    /// Prunes a sent or stored object of this version. Yields the paths of what went, sorted.
    ///
    /// # Errors
    /// Upstream's text for metadata of the wrong type. `lenient` drops it instead.
    pub fn prune(&self, value: &mut Value, lenient: bool) -> Result<Vec<String>, String> {
        let version = self.current();
        let schema = version.schema();
        let mut unknown = Vec::new();
        if !lenient {
            let mut errs = ErrorList::new();
            object_meta::check_shape(value, schema, &Path::new(""), false, &mut errs);
            if let Some(first) = errs.iter().next() {
                return Err(first.to_string());
            }
        }
        if let Some(meta) = value.get_mut("metadata") {
            unknown
                .extend(object_meta::tidy(meta, lenient)?.into_iter().map(|name| format!("metadata.{name}")));
        }
        if !version.preserve {
            object_meta::coerce(value, schema, lenient, &mut unknown);
            unknown.extend(prune::prune(value, schema, true));
        }
        go_numbers(value);
        unknown.sort();
        Ok(unknown)
    }

    /// Sets the defaults of the version.
    pub fn set_defaults(&self, value: &mut Value) {
        let version = self.current();
        if !version.preserve {
            defaults::drop_nulls(value, Some(version.schema()));
        }
        self.fill(value);
    }

    /// As [`CustomStrategy::set_defaults`], but nulls stay and are refused: so it is with what was applied.
    pub fn fill(&self, value: &mut Value) {
        let version = self.current();
        if !version.preserve {
            defaults::apply(value, version.schema());
        }
    }
}

/// Whole floats are integers in Go's encoding; what does not fit into 64 bits with a sign is a float.
fn go_numbers(value: &mut Value) {
    match value {
        Value::Number(n) if n.is_u64() && !n.is_i64() => {
            if let Some(float) = n.as_f64() {
                *value = float.into();
            }
        }
        Value::Number(n) if n.is_f64() => {
            let f = n.as_f64().unwrap_or(0.0);
            #[expect(clippy::cast_possible_truncation, reason = "whole and small enough")]
            if f.fract() == 0.0 && f.abs() < 9e15 {
                *value = (f as i64).into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(go_numbers),
        Value::Object(map) => map.values_mut().for_each(go_numbers),
        _ => {}
    }
}

fn dynamic(obj: &dyn Object) -> Option<&DynamicObject> {
    obj.downcast::<DynamicObject>()
}

/// Everything but metadata.
fn content(obj: &DynamicObject) -> Map<String, Value> {
    let mut map = obj.body().as_object().cloned().unwrap_or_default();
    map.retain(|name, _| !matches!(name.as_str(), "metadata" | "apiVersion" | "kind"));
    map
}

impl CustomStrategy {
    fn check(&self, new: &dyn Object, old: Option<&dyn Object>, errs: &mut ErrorList) {
        let version = self.current();
        let (schema, at, told) = (version.schema(), Path::new(""), errs.len());
        let value = new.to_value();
        let before = old.map(Object::to_value);
        match &before {
            None => validate::validate(&value, schema, &at, errs),
            Some(before) => validate::validate_update(&value, Some(before), schema, &at, errs),
        }
        if let Some(scale) = &version.scale {
            check_replicas(&value, &scale.spec, errs);
            check_scale_status(&value, scale, errs);
        }
        object_meta::validate(&value, schema, &at, false, errs);
        let mut already = ErrorList::new();
        if let Some(before) = &before {
            list_types::validate(before, schema, &at, &mut already);
        }
        if already.is_empty() {
            list_types::validate(&value, schema, &at, errs);
        }
        check_rules(&version, &value, before.as_ref(), told, errs);
    }
}

/// Applies the rules, unless an error (behind those that were told `already`) says that they would not know what
/// they look at.
fn check_rules(
    version: &CustomVersion,
    value: &Value,
    before: Option<&Value>,
    already: usize,
    errs: &mut ErrorList,
) {
    let Some(rules) = version.rules() else { return };
    let blocking = |e: &Error| {
        use ErrorKind::{NotSupported, Required, TooLong, TooMany, TypeInvalid};
        matches!(e.kind, NotSupported | Required | TooLong | TooMany | TypeInvalid)
    };
    if errs.iter().skip(already).any(blocking) {
        let why = "some validation rules were not checked because the object was invalid; correct the existing \
                   errors to complete validation";
        errs.invalid(Path::new("<nil>"), Value::Null, why);
        return;
    }
    // Upstream drops the warnings of ratcheting, too.
    rules.validate(value, before, errs, &mut Vec::new());
}

/// A count that must be a number that fits.
fn check_replicas(value: &Value, path: &str, errs: &mut ErrorList) {
    let pointer = path.replace('.', "/");
    let Some(found) = value.pointer(&pointer).filter(|v| !v.is_null()) else { return };
    match found.as_i64() {
        None => {
            let (shown, kind) = go_shown(found);
            let why = format!("{path} accessor error: {shown} is of the type {kind}, expected int64");
            errs.invalid(path, 0, why);
        }
        Some(n) if n < 0 => errs.invalid(path, n, "should be a non-negative integer"),
        Some(n) if n > i64::from(i32::MAX) => {
            errs.invalid(path, n, format!("should be less than or equal to {}", i32::MAX));
        }
        Some(_) => {}
    }
}

fn check_scale_status(value: &Value, scale: &Scale, errs: &mut ErrorList) {
    check_replicas(value, &scale.status, errs);
    let Some(path) = &scale.selector else { return };
    let found = value.pointer(&path.replace('.', "/"));
    if let Some(found) = found.filter(|v| !v.is_string() && !v.is_null()) {
        let (shown, kind) = go_shown(found);
        let why = format!("{path} accessor error: {shown} is of the type {kind}, expected string");
        errs.invalid(path.as_str(), "", why);
    }
}

/// A value and its type as Go prints them.
fn go_shown(value: &Value) -> (String, &'static str) {
    match value {
        Value::String(text) => (text.clone(), "string"),
        Value::Bool(b) => (b.to_string(), "bool"),
        Value::Number(n) if n.is_f64() => (n.to_string(), "float64"),
        Value::Number(n) => (n.to_string(), "int64"),
        Value::Array(_) => (value.to_string(), "[]interface {}"),
        Value::Object(_) => (value.to_string(), "map[string]interface {}"),
        Value::Null => ("<nil>".into(), "<nil>"),
    }
}

impl ErasedStrategy for CustomStrategy {
    fn custom(&self) -> Option<&CustomStrategy> {
        Some(self)
    }

    fn decode(&self, mut value: Value) -> Result<Box<dyn Object>, Status> {
        let version = self.current();
        let (kind, name) = (&version.kind, &version.version);
        let refused = |why: String| {
            Status::bad_request(format!("{kind} in version {name:?} cannot be handled as a {kind}: {why}"))
        };
        self.prune(&mut value, false).map_err(refused)?;
        let gvk = GroupVersionKind::new(&version.group, &version.version, &version.kind);
        let obj = DynamicObject::from_value(gvk, value).map_err(|e| refused(e.to_string()))?;
        Ok(Box::new(obj))
    }

    fn decode_plain(&self, _: &[u8]) -> Option<Box<dyn Object>> {
        None
    }

    fn decode_slice(&self, json: &[u8]) -> Result<Box<dyn Object>, Status> {
        let version = self.current();
        let gvk = GroupVersionKind::new(&version.group, &version.version, &version.kind);
        let value = serde_json::from_slice(json).map_err(Status::internal)?;
        let obj = DynamicObject::from_value(gvk, value)
            .map_err(|e| Status::internal(format!("stored {} cannot be decoded: {e}", version.kind)))?;
        Ok(Box::new(obj))
    }

    fn default(&self, obj: &mut dyn Object) {
        if let Some(obj) = obj.downcast_mut::<DynamicObject>() {
            self.set_defaults(obj.body_mut());
        }
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut dyn Object) {
        obj.meta_mut().generation = Some(1);
        if self.current().status
            && let Some(Value::Object(body)) =
                obj.downcast_mut::<DynamicObject>().map(DynamicObject::body_mut)
        {
            body.remove("status");
        }
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut dyn Object, old: &dyn Object) {
        let (Some(new), Some(old)) = (new.downcast_mut::<DynamicObject>(), dynamic(old)) else { return };
        if self.current().status
            && let Value::Object(body) = new.body_mut()
        {
            match old.body().get("status") {
                Some(status) => drop(body.insert("status".into(), status.clone())),
                None => drop(body.remove("status")),
            }
        }
        if content(new) != content(old) {
            new.meta_mut().generation = Some(old.meta().generation.unwrap_or(0) + 1);
        }
    }

    fn prepare_status_update(&self, _: Context<'_>, new: &mut dyn Object, old: &dyn Object) {
        let (Some(new), Some(old)) = (new.downcast_mut::<DynamicObject>(), dynamic(old)) else { return };
        let status = new.body().get("status").cloned();
        let managed = new.meta_mut().managed_fields.take();
        *new = old.clone();
        new.meta_mut().managed_fields = managed;
        if let Value::Object(body) = new.body_mut() {
            match status {
                Some(status) => drop(body.insert("status".into(), status)),
                None => drop(body.remove("status")),
            }
        }
    }

    fn validate(&self, obj: &dyn Object, errs: &mut ErrorList) {
        self.check(obj, None, errs);
    }

    fn validate_update(&self, new: &dyn Object, old: &dyn Object, errs: &mut ErrorList) {
        self.check(new, Some(old), errs);
    }

    fn validate_status_update(&self, new: &dyn Object, old: &dyn Object, errs: &mut ErrorList) {
        let version = self.current();
        let (schema, none, told) = (version.schema(), Path::new(""), errs.len());
        let (value, before) = (new.to_value(), old.to_value());
        if let (Some(status), Some(of_status)) = (value.get("status"), schema.properties.get("status")) {
            let at = Path::new("status");
            validate::validate_update(status, before.get("status"), of_status, &at, errs);
        }
        if let Some(scale) = &version.scale {
            check_scale_status(&value, scale, errs);
        }
        let mut found = ErrorList::new();
        list_types::validate(&value, schema, &none, &mut found);
        if !found.is_empty() {
            let mut already = ErrorList::new();
            list_types::validate(&before, schema, &none, &mut already);
            if already.is_empty() {
                errs.extend(found);
            }
        }
        check_rules(&version, &value, Some(&before), told, errs);
    }

    fn prepare_part_update(&self, _: Subresource, cx: Context<'_>, new: &mut dyn Object, old: &dyn Object) {
        self.prepare_update(cx, new, old);
    }

    fn validate_part_update(&self, _: Subresource, new: &dyn Object, old: &dyn Object, errs: &mut ErrorList) {
        self.validate_update(new, old, errs);
    }

    fn drop_disabled(&self, _: &mut dyn Object) {}

    fn settle(&self, _: &mut dyn Object) -> bool {
        false
    }

    fn completed(&self, _: &dyn Object) -> Option<(&'static str, &'static str)> {
        None
    }

    fn warnings(&self, new: &dyn Object, old: Option<&dyn Object>) -> Vec<String> {
        let before = old.and_then(|old| old.meta().finalizers.clone()).unwrap_or_default();
        let mut fresh: Vec<&String> =
            new.meta().finalizers.iter().flatten().filter(|f| !before.contains(f)).collect();
        fresh.sort();
        fresh.dedup();
        fresh.into_iter().flat_map(|name| finalizer_warnings(name)).collect()
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        def::dns1123_subdomain(name, prefix)
    }

    fn row(&self, obj: &dyn Object, now: jiff::Timestamp) -> Vec<Value> {
        let value = obj.to_value();
        let age = |text: &str| match text.parse::<jiff::Timestamp>() {
            Ok(time) => def::human_duration(now.as_second().saturating_sub(time.as_second())).into(),
            Err(_) => Value::from("<invalid>"),
        };
        let columns = &self.current().columns;
        let cells = columns.iter().map(|column| column.cell(&value, &age));
        std::iter::once(Value::from(obj.name())).chain(cells).collect()
    }

    fn selectable(&self, obj: &dyn Object) -> Vec<(&'static str, String)> {
        let version = self.current();
        if version.selectable.is_empty() {
            return Vec::new();
        }
        let value = obj.to_value();
        let text = |found: &Value| found.as_str().map_or_else(|| found.to_string(), str::to_owned);
        let of = |path: &coracle_apiextensions::json_path::JsonPath| {
            path.find(&value).first().filter(|v| !v.is_null()).map(|v| text(v)).unwrap_or_default()
        };
        version.selectable.iter().map(|(name, path)| (*name, of(path))).collect()
    }

    fn graceful_deletion(&self, _: &dyn Object, _: Option<i64>) -> Option<i64> {
        None
    }

    fn schema(&self, generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        generator.subschema_for::<Value>()
    }
}

fn finalizer_warnings(name: &str) -> Vec<String> {
    let at = "metadata.finalizers";
    let mut out: Vec<String> =
        names::qualified_name(name).into_iter().map(|why| format!("{at}: {name:?}: {why}")).collect();
    let standard = matches!(name, "orphan" | "foregroundDeletion" | "kubernetes");
    if !name.contains('/') && !standard {
        let path = if name.contains('.') { " including a path (/)" } else { "" };
        out.push(format!(
            "{at}: {name:?}: prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other \
             finalizer writers"
        ));
    }
    out
}
