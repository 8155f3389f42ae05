//! Who owns which field: managedFields for every write, and server-side apply.
//!
//! Call [`update_managed_fields`] as upstream does: with the decoded and defaulted object **before** mutating
//! admission and the strategy's prepare step, on create, update and patch. What admission and prepare change
//! is owned by nobody. Follows `k8s.io/apimachinery/pkg/util/managedfields`.

mod compare;
mod fields;
mod merge;
mod versions;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::schema::{NodeId, Schemas};
use crate::status::{Reason, Status};
use compare::{Scope, Walker};
use fields::Fields;
use versions::Comparisons;

pub use versions::{OneVersion, Versions};

/// Where kubectl's client-side apply keeps what it applied last.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
const ANCIENT: &str = "ancient-changes";
const MAX_UPDATE_MANAGERS: usize = 10;

/// How a manager came to own fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// By create, update or patch.
    Update,
    /// By server-side apply.
    Apply,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Update => "Update",
            Self::Apply => "Apply",
        }
    }
}

/// Who writes, as it appears in `metadata.managedFields`.
#[derive(Clone, Copy, Debug)]
pub struct Manager<'a> {
    /// See [`manager_name`]; an empty name counts as `unknown`.
    pub name: &'a str,
    /// Kind of write.
    pub operation: Operation,
    /// `apiVersion` the request uses, e.g. `apps/v1`.
    pub api_version: &'a str,
    /// `status`, `scale` …; empty for the main resource.
    pub subresource: &'a str,
    /// Time of the write.
    pub now: Timestamp,
}

/// The manager of a request: the `fieldManager` parameter, else the User-Agent up to its first slash.
pub fn manager_name(field_manager: Option<&str>, user_agent: &str) -> String {
    if let Some(name) = field_manager.filter(|name| !name.is_empty()) {
        return name.to_owned();
    }
    let mut out = String::new();
    for c in user_agent.split('/').next().unwrap_or("").chars() {
        if c.is_control() || out.len() + c.len_utf8() > 128 {
            break;
        }
        out.push(c);
    }
    out
}

/// One entry of `metadata.managedFields`.
struct Entry {
    manager: String,
    operation: &'static str,
    api_version: String,
    subresource: String,
    time: Option<String>,
    fields: Fields,
}

impl Entry {
    fn decode(value: Value) -> Option<Self> {
        let Value::Object(mut map) = value else { return None };
        let mut text = |key: &str| match map.remove(key) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        };
        let operation = match text("operation").as_str() {
            "Apply" => "Apply",
            "Update" => "Update",
            _ => return None,
        };
        let (manager, api_version, subresource) = (text("manager"), text("apiVersion"), text("subresource"));
        let time = Some(text("time")).filter(|time| !time.is_empty());
        let Some(Value::Object(fields)) = map.remove("fieldsV1") else { return None };
        Some(Self { manager, operation, api_version, subresource, time, fields })
    }

    fn encode(self) -> Value {
        let mut map = Map::new();
        map.insert("manager".to_owned(), self.manager.into());
        map.insert("operation".to_owned(), self.operation.into());
        map.insert("apiVersion".to_owned(), self.api_version.into());
        if let Some(time) = self.time {
            map.insert("time".to_owned(), time.into());
        }
        map.insert("fieldsType".to_owned(), "FieldsV1".into());
        map.insert("fieldsV1".to_owned(), Value::Object(self.fields));
        if !self.subresource.is_empty() {
            map.insert("subresource".to_owned(), self.subresource.into());
        }
        Value::Object(map)
    }

    fn of(manager: &Manager<'_>) -> Self {
        Self {
            manager: if manager.name.is_empty() { "unknown" } else { manager.name }.to_owned(),
            operation: manager.operation.as_str(),
            api_version: manager.api_version.to_owned(),
            subresource: manager.subresource.to_owned(),
            time: None,
            fields: Fields::new(),
        }
    }

    /// Same manager: the version tells updaters apart, not appliers.
    fn same(&self, other: &Self) -> bool {
        self.manager == other.manager
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == "Apply" || self.api_version == other.api_version)
    }

    /// The manager as conflict messages name it.
    fn show(&self) -> String {
        let mut out = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            out.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == "Update" {
            out.push_str(&format!(" using {}", self.api_version));
        }
        out
    }
}

fn stamp(now: Timestamp) -> String {
    let whole = Timestamp::from_second(now.as_second()).unwrap_or(now);
    whole.to_string()
}

/// The entries of a list, and whether the list was the reset `[{}]`.
fn decode(value: Option<Value>) -> (Vec<Entry>, bool) {
    match value {
        Some(Value::Array(items)) => {
            let reset = matches!(items.as_slice(), [Value::Object(only)] if only.is_empty());
            let wanted = items.len();
            let entries: Vec<Entry> = items.into_iter().filter_map(Entry::decode).collect();
            // One malformed entry spoils the list.
            if entries.len() == wanted { (entries, reset) } else { (Vec::new(), reset) }
        }
        _ => (Vec::new(), false),
    }
}

fn managed_of(object: &Value) -> Option<Value> {
    object.get("metadata")?.get("managedFields").cloned()
}

fn take_managed(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

fn store(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    cap(&mut entries);
    fn key(e: &Entry) -> (&str, Option<&str>, &str, &str, &str) {
        (e.operation, e.time.as_deref(), &e.manager, &e.api_version, &e.subresource)
    }
    entries.sort_by(|a, b| key(a).cmp(&key(b)));
    let encoded: Vec<Value> = entries.into_iter().map(Entry::encode).collect();
    if let Value::Object(object) = object {
        let meta = object.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(meta) = meta {
            if encoded.is_empty() {
                meta.remove("managedFields");
            } else {
                meta.insert("managedFields".to_owned(), encoded.into());
            }
        }
    }
}

/// At most ten updaters: the oldest are folded into `ancient-changes`, one entry per version.
fn cap(entries: &mut Vec<Entry>) {
    let updaters = entries.iter().filter(|e| e.operation == "Update").count();
    if updaters <= MAX_UPDATE_MANAGERS {
        return;
    }
    let (mut updaters, appliers): (Vec<Entry>, Vec<Entry>) =
        std::mem::take(entries).into_iter().partition(|e| e.operation == "Update");
    updaters.sort_by(|a, b| a.time.cmp(&b.time));
    let mut count = updaters.len();
    let mut kept: Vec<Entry> = Vec::new();
    for entry in updaters {
        if count <= MAX_UPDATE_MANAGERS {
            kept.push(entry);
            continue;
        }
        match kept.iter_mut().find(|e| e.manager == ANCIENT && e.api_version == entry.api_version) {
            Some(bucket) => {
                fields::unite(&mut bucket.fields, entry.fields);
                bucket.time = bucket.time.take().max(entry.time);
                count -= 1;
            }
            None => kept.push(Entry { manager: ANCIENT.to_owned(), subresource: String::new(), ..entry }),
        }
    }
    entries.extend(appliers);
    entries.extend(kept);
}

/// Takes the changed fields from all entries and gives them to `own`.
fn transfer(entries: &mut Vec<Entry>, own: Entry, mut changes: Comparisons<'_>, now: Timestamp) {
    changes.take_from(entries);
    let change = changes.own;
    if !change.taken.is_empty() {
        // Upstream carries entries of Scale over to the parent without their times.
        let time = Some(stamp(now)).filter(|_| own.subresource != "scale");
        match entries.iter_mut().find(|entry| entry.same(&own)) {
            Some(entry) => {
                fields::unite(&mut entry.fields, change.taken);
                entry.time = time.or(entry.time.take());
            }
            None => entries.push(Entry { time, fields: change.taken, ..own }),
        }
    }
    entries.retain(|entry| !entry.fields.is_empty());
}

/// Records in `new.metadata.managedFields` what a create (`live` is `None`), update or patch changed.
///
/// Fields that change hands leave their former managers; a manager's time moves only when it takes fields.
/// Managers that wrote through another version are compared in that one, by `versions`.
/// managedFields that the client sent count, except through a subresource; `[{}]` forgets all managers.
pub fn update_managed_fields(
    schemas: &Schemas,
    type_name: &str,
    live: Option<&Value>,
    new: &mut Value,
    manager: &Manager<'_>,
    versions: &dyn Versions,
) {
    let sent = take_managed(new);
    let (mut entries, reset) =
        if manager.subresource.is_empty() { decode(sent) } else { (Vec::new(), false) };
    if entries.is_empty() && !reset {
        entries = decode(live.and_then(managed_of)).0;
    }
    // An object that nobody owns anything of stays so until it is applied.
    if entries.is_empty() && live.is_some_and(|live| live.pointer("/metadata/uid").is_some()) {
        return;
    }
    let changes = Comparisons::new(schemas, type_name, live, new, manager, versions);
    transfer(&mut entries, Entry::of(manager), changes, manager.now);
    store(new, entries);
}

/// Applies `config` to the live object (or to nothing), and returns the new object with its managedFields.
///
/// Lists and maps merge by their declared types; fields the manager applied before and does not any more are
/// removed unless others own them; fields of others that would change are conflicts unless `force`. kubectl
/// takes over from its own client-side apply without force where the last applied values still stand.
///
/// # Errors
/// 409 with one cause per conflict; 400 when the configuration carries managedFields; 500 with upstream's
/// text
/// when it does not fit the type.
pub fn apply(
    schemas: &Schemas,
    type_name: &str,
    live: Option<&Value>,
    config: &Value,
    manager: &Manager<'_>,
    force: bool,
    versions: &dyn Versions,
) -> Result<Value, Status> {
    let root = schemas.find(type_name).unwrap_or(0);
    check_config(schemas, root, config)?;
    let scope = Scope::of(type_name, manager.subresource);
    let walker = Walker { schemas, exact: false };
    let mut entries = decode(live.and_then(managed_of)).0;
    if let (Some(live), true) = (live, entries.is_empty()) {
        let before = Manager { name: BEFORE_FIRST_APPLY, operation: Operation::Update, ..*manager };
        let changes = Comparisons::new(schemas, type_name, None, live, &before, versions);
        transfer(&mut entries, Entry::of(&before), changes, manager.now);
    }
    let mut new = live.cloned().unwrap_or_else(|| Value::Object(Map::new()));
    take_managed(&mut new);
    merge::merge(schemas, root, &mut new, config);

    let mut own = Entry::of(manager);
    own.fields = walker.applied(root, &scope, config);
    let position = entries.iter().position(|entry| entry.same(&own));
    let last = position.map(|i| entries.swap_remove(i));
    own.time = last.as_ref().and_then(|last| last.time.clone());
    if let Some(last) = &last {
        versions::prune(schemas, type_name, &mut new, last, &own, &entries, versions);
    }
    let Some(live) = live else {
        own.time = Some(stamp(manager.now));
        store(&mut new, vec![own]);
        return Ok(new);
    };
    for entry in entries.iter().filter(|entry| entry.api_version != manager.api_version) {
        for (which, object) in [("old", live), ("new", &new)] {
            if let Some(why) = versions.misfit(object, &entry.api_version) {
                let message = format!("failed to convert {which} object: {why}");
                return Err(Status::new(500, Reason::Unknown, message, None));
            }
        }
    }
    let mut changes = Comparisons::new(schemas, type_name, Some(live), &new, manager, versions);
    if !force {
        let mut conflicts = conflicts(&entries, &mut changes);
        if manager.name == "kubectl" && !conflicts.is_empty() {
            let allowed = last_applied_fields(schemas, root, &scope, live);
            for (_, set) in &mut conflicts {
                fields::subtract(set, &allowed);
            }
            conflicts.retain(|(_, set)| !set.is_empty());
        }
        if !conflicts.is_empty() {
            return Err(conflict_error(&conflicts));
        }
    }
    changes.take_from(&mut entries);
    let change = changes.own;
    fields::subtract(&mut own.fields, &change.removed);
    if manager.subresource != "scale" && (!change.is_empty() || !same_but_managed(live, &new)) {
        own.time = Some(stamp(manager.now));
    }
    entries.push(own);
    if manager.name == "kubectl" {
        refresh_last_applied(live, config, &mut new);
    }
    store(&mut new, entries);
    Ok(new)
}

/// `live` with `config` merged into it by the type's merge rules, nobody owning anything. Types that are
/// changed as a whole may not occur in `config`.
///
/// # Errors
/// `config` does not fit the type, or states an atomic.
pub fn merge_configuration(
    schemas: &Schemas,
    type_name: &str,
    mut live: Value,
    config: &Value,
) -> Result<Value, String> {
    let root = schemas.find(type_name).unwrap_or(0);
    let mut found = Vec::new();
    merge::check(schemas, root, config, "", &mut found);
    if !found.is_empty() {
        return Err(format!("failed to convert patch object to typed object: {}", errors_text(&found)));
    }
    merge::atomics(schemas, root, config, "", &mut found);
    if !found.is_empty() {
        let paths = found.join(", ");
        return Err(format!(
            "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {paths}"
        ));
    }
    merge::merge(schemas, root, &mut live, config);
    Ok(live)
}

/// Why an object does not fit its type, as far as ownership of fields goes; `None` when it does. Items of a list
/// that share a key are let pass.
pub fn misfit(schemas: &Schemas, type_name: &str, object: &Value) -> Option<String> {
    let mut found = Vec::new();
    merge::check(schemas, schemas.find(type_name)?, object, "", &mut found);
    found.retain(|why| !why.contains(": duplicate entries for key "));
    (!found.is_empty()).then(|| errors_text(&found))
}

fn errors_text(errs: &[String]) -> String {
    match errs {
        [only] => only.clone(),
        _ => format!("errors:\n{}", errs.iter().map(|e| format!("  {e}")).collect::<Vec<_>>().join("\n")),
    }
}

fn check_config(schemas: &Schemas, root: NodeId, config: &Value) -> Result<(), Status> {
    let text = |pointer: &str| config.pointer(pointer).and_then(Value::as_str).unwrap_or("");
    if config.pointer("/metadata/managedFields").is_some_and(|value| !value.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let mut errs = Vec::new();
    merge::check(schemas, root, config, "", &mut errs);
    if errs.is_empty() {
        return Ok(());
    }
    let api_version = text("/apiVersion");
    let group_version =
        if api_version.contains('/') { api_version.to_owned() } else { format!("/{api_version}") };
    let details = errors_text(&errs);
    let message = format!(
        "failed to create typed patch object ({}/{}; {group_version}, Kind={}): {details}",
        text("/metadata/namespace"),
        text("/metadata/name"),
        text("/kind")
    );
    Err(Status::new(500, Reason::Unknown, message, None))
}

/// Prunes, but never the parts that make it an object.
fn prune_root(schemas: &Schemas, root: NodeId, new: &mut Value, last: &Fields, managed: &[&Fields]) {
    let identity: Fields =
        ["f:apiVersion", "f:kind"].into_iter().map(|k| (k.to_owned(), fields::leaf())).collect();
    let meta: Fields = [("f:metadata".to_owned(), json!({ ".": {}, "f:name": {} }))].into_iter().collect();
    let mut managed = managed.to_vec();
    managed.extend([&identity, &meta]);
    merge::prune(schemas, root, new, last, &managed);
}

type Conflicts = Vec<(String, Fields)>;

fn conflicts(entries: &[Entry], changes: &mut Comparisons<'_>) -> Conflicts {
    let found = entries.iter().filter_map(|entry| {
        let taken = &changes.of(&entry.api_version)?.taken;
        Some((entry.show(), fields::intersect(&entry.fields, taken)))
    });
    found.filter(|(_, set)| !set.is_empty()).collect()
}

fn conflict_error(conflicts: &Conflicts) -> Status {
    let mut by_manager: Vec<(&str, Vec<String>)> =
        conflicts.iter().map(|(manager, set)| (manager.as_str(), fields::paths(set))).collect();
    by_manager.sort();
    let causes: Vec<Value> = by_manager
        .iter()
        .flat_map(|(manager, paths)| {
            let message = format!("conflict with {manager}");
            paths.iter().map(
                move |path| json!({ "reason": "FieldManagerConflict", "message": message, "field": path }),
            )
        })
        .collect();
    let message = match by_manager.as_slice() {
        [(manager, paths)] if paths.len() == 1 => {
            format!("Apply failed with 1 conflict: conflict with {manager}: {}", paths.join(""))
        }
        all => {
            let lines = all.iter().flat_map(|(manager, paths)| {
                let heading = format!("conflicts with {manager}:");
                std::iter::once(heading).chain(paths.iter().map(|path| format!("- {path}")))
            });
            let text = lines.collect::<Vec<_>>().join("\n");
            format!("Apply failed with {} conflicts: {text}", causes.len())
        }
    };
    Status::new(409, Reason::Conflict, message, Some(json!({ "causes": causes })))
}

fn last_applied(object: &Value) -> Option<&str> {
    object.get("metadata")?.get("annotations")?.get(LAST_APPLIED)?.as_str()
}

/// The fields of the last client-side applied configuration whose values still stand in the live object.
fn last_applied_fields(schemas: &Schemas, root: NodeId, scope: &Scope, live: &Value) -> Fields {
    let Some(text) = last_applied(live) else { return Fields::new() };
    let Ok(before) = serde_json::from_str::<Value>(text) else { return Fields::new() };
    let walker = Walker { schemas, exact: false };
    let mut set = walker.applied(root, scope, &before);
    let change = walker.objects(root, scope, &before, live);
    fields::subtract(&mut set, &change.taken);
    fields::subtract(&mut set, &change.removed);
    set
}

/// Keeps kubectl's client-side annotation true when kubectl applies server-side.
fn refresh_last_applied(live: &Value, config: &Value, new: &mut Value) {
    if last_applied(live).is_none() {
        return;
    }
    let mut applied = config.clone();
    if let Some(Value::Object(annotations)) = applied.pointer_mut("/metadata/annotations") {
        annotations.remove(LAST_APPLIED);
    }
    if let Some(slot) = new.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        slot.insert(LAST_APPLIED.to_owned(), format!("{applied}\n").into());
    }
}

fn same_but_managed(live: &Value, new: &Value) -> bool {
    let (Value::Object(live), Value::Object(new)) = (live, new) else { return live == new };
    let meta = |a: Option<&Value>, b: Option<&Value>| match (a, b) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let entries = |m: &'_ Map<String, Value>| m.iter().filter(|(k, _)| *k != "managedFields").count();
            entries(a) == entries(b)
                && b.iter().all(|(key, value)| key == "managedFields" || a.get(key) == Some(value))
        }
        (a, b) => a == b,
    };
    live.len() == new.len()
        && new.iter().all(|(key, value)| match key.as_str() {
            "metadata" => meta(live.get(key), Some(value)),
            _ => live.get(key) == Some(value),
        })
}

#[cfg(test)]
mod tests;
