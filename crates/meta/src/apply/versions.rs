//! Managers that wrote through different versions of a resource: a change is compared in each manager's own
//! version, and what an applier dropped is taken out in the version it applied before.

use std::collections::BTreeMap;

use serde_json::Value;

use super::compare::{Comparison, Scope, Walker};
use super::fields::{self, Fields};
use super::{Entry, Manager, Operation, prune_root};
use crate::schema::{NodeId, Schemas};

/// The other versions an object is served in.
pub trait Versions {
    /// The schema's name of the object's kind in `api_version`; `None` when it is not served in it.
    fn type_name(&self, api_version: &str) -> Option<String>;
    /// The object in another version.
    fn convert(&self, object: &Value, api_version: &str) -> Option<Value>;
    /// Why an object, taken as it is for one of another version, does not fit that version's type.
    fn misfit(&self, _object: &Value, _api_version: &str) -> Option<String> {
        None
    }
}

/// For kinds with one version.
#[derive(Clone, Copy, Debug)]
pub struct OneVersion;

impl Versions for OneVersion {
    fn type_name(&self, _: &str) -> Option<String> {
        None
    }
    fn convert(&self, _: &Value, _: &str) -> Option<Value> {
        None
    }
}

/// What a change did, in the version of the request and (made when asked for) in others.
pub(super) struct Comparisons<'a> {
    schemas: &'a Schemas,
    live: Option<&'a Value>,
    new: &'a Value,
    manager: &'a Manager<'a>,
    versions: &'a dyn Versions,
    /// In the version of the request.
    pub(super) own: Comparison,
    /// In others; `None` for those that are not served.
    others: BTreeMap<String, Option<Comparison>>,
}

impl<'a> Comparisons<'a> {
    pub(super) fn new(
        schemas: &'a Schemas,
        type_name: &str,
        live: Option<&'a Value>,
        new: &'a Value,
        manager: &'a Manager<'a>,
        versions: &'a dyn Versions,
    ) -> Self {
        let own = compare(schemas, type_name, How::of(manager), live, new);
        Self { schemas, live, new, manager, versions, own, others: BTreeMap::new() }
    }

    /// The change in a version; `None` when the object is not served in it.
    pub(super) fn of(&mut self, api_version: &str) -> Option<&Comparison> {
        if api_version == self.manager.api_version {
            return Some(&self.own);
        }
        if !self.others.contains_key(api_version) {
            let made = self.compare_in(api_version);
            self.others.insert(api_version.to_owned(), made);
        }
        self.others.get(api_version)?.as_ref()
    }

    fn compare_in(&self, api_version: &str) -> Option<Comparison> {
        let type_name = self.versions.type_name(api_version)?;
        let new = self.versions.convert(self.new, api_version)?;
        let live = match self.live {
            Some(live) => Some(self.versions.convert(live, api_version)?),
            None => None,
        };
        Some(compare(self.schemas, &type_name, How::of(self.manager), live.as_ref(), &new))
    }

    /// Takes the changed fields from all entries. Managers of versions that are not served any more go.
    pub(super) fn take_from(&mut self, entries: &mut Vec<Entry>) {
        if self.own.is_empty() && entries.iter().all(|e| e.api_version == self.manager.api_version) {
            return;
        }
        entries.retain_mut(|entry| {
            let Some(change) = self.of(&entry.api_version) else { return false };
            fields::subtract(&mut entry.fields, &change.taken);
            fields::subtract(&mut entry.fields, &change.removed);
            true
        });
    }
}

/// What of two objects is compared, and how.
#[derive(Clone, Copy)]
struct How<'a> {
    subresource: &'a str,
    /// See [`Walker::exact`].
    exact: bool,
}

impl<'a> How<'a> {
    fn of(manager: &Manager<'a>) -> Self {
        Self { subresource: manager.subresource, exact: manager.operation == Operation::Apply }
    }
}

fn compare(
    schemas: &Schemas,
    type_name: &str,
    how: How<'_>,
    live: Option<&Value>,
    new: &Value,
) -> Comparison {
    let (walker, root) = (Walker { schemas, exact: how.exact }, root(schemas, type_name));
    let scope = Scope::of(type_name, how.subresource);
    match live {
        Some(live) => walker.objects(root, &scope, live, new),
        None => Comparison { taken: walker.created(root, &scope, new), removed: Fields::new() },
    }
}

fn root(schemas: &Schemas, type_name: &str) -> NodeId {
    schemas.find(type_name).unwrap_or(0)
}

/// Takes out of `new` what the manager applied `last` and nobody owns now.
pub(super) fn prune(
    schemas: &Schemas,
    type_name: &str,
    new: &mut Value,
    last: &Entry,
    own: &Entry,
    entries: &[Entry],
    versions: &dyn Versions,
) {
    let managed = |version: &str| -> Vec<&Fields> {
        entries.iter().chain([own]).filter(|e| e.api_version == version).map(|e| &e.fields).collect()
    };
    let others: Vec<&str> = entries
        .iter()
        .chain([own])
        .map(|e| e.api_version.as_str())
        .filter(|version| *version != last.api_version)
        .collect();
    if last.api_version == own.api_version && others.is_empty() {
        let managed = managed(&own.api_version);
        return prune_root(schemas, root(schemas, type_name), new, &last.fields, &managed);
    }
    let Some(pruned) = prune_between(schemas, new, last, &managed, &others, versions) else { return };
    if let Some(pruned) = in_version(&pruned, &own.api_version, versions) {
        *new = pruned;
    }
}

/// As [`prune`] when managers of several versions have a say; the result is in the version of `last` or of
/// one of the others.
fn prune_between<'f>(
    schemas: &Schemas,
    merged: &Value,
    last: &Entry,
    managed: &dyn Fn(&str) -> Vec<&'f Fields>,
    others: &[&str],
    versions: &dyn Versions,
) -> Option<Value> {
    let mut pruned = in_version(merged, &last.api_version, versions)?;
    let last_root = root(schemas, &versions.type_name(&last.api_version)?);
    prune_root(schemas, last_root, &mut pruned, &last.fields, &managed(&last.api_version));
    let mut seen: Vec<&str> = Vec::new();
    for version in others {
        if seen.contains(version) {
            continue;
        }
        seen.push(version);
        let Some(type_name) = versions.type_name(version) else { continue };
        // What went by the other version's rules stays where a manager of this version owns it.
        let mut whole = in_version(merged, version, versions)?;
        let rest = in_version(&pruned, version, versions)?;
        let gone =
            compare(schemas, &type_name, How { subresource: "", exact: false }, Some(&whole), &rest).removed;
        prune_root(schemas, root(schemas, &type_name), &mut whole, &gone, &managed(version));
        pruned = whole;
    }
    Some(pruned)
}

fn in_version(object: &Value, api_version: &str, versions: &dyn Versions) -> Option<Value> {
    if object.get("apiVersion").and_then(Value::as_str) == Some(api_version) {
        return Some(object.clone());
    }
    versions.convert(object, api_version)
}
