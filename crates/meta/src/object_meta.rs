//! Validation of `metadata`, on create and on update, with upstream's messages. managedFields are not
//! looked at.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::Value;

use crate::field::{Error, ErrorKind, ErrorList, Path};
use crate::names;

const MAX_ANNOTATIONS: usize = 256 * 1024;

/// Checks the metadata of a new object.
///
/// `name_check` gets a name and whether it is a generateName prefix, and returns messages. `namespaced` says
/// whether `metadata.namespace` must be set or must be absent.
pub fn validate(
    meta: &ObjectMeta,
    namespaced: bool,
    name_check: &dyn Fn(&str, bool) -> Vec<String>,
    errs: &mut ErrorList,
) {
    let at = Path::new("metadata");
    let generate_name = meta.generate_name.as_deref().unwrap_or("");
    if !generate_name.is_empty() {
        for message in name_check(generate_name, true) {
            errs.invalid(at.child("generateName"), generate_name, message);
        }
    }
    match meta.name.as_deref().unwrap_or("") {
        "" => errs.required(at.child("name"), "name or generateName is required"),
        name => {
            for message in name_check(name, false) {
                errs.invalid(at.child("name"), name, message);
            }
        }
    }
    match (namespaced, meta.namespace.as_deref().unwrap_or("")) {
        (true, "") => errs.required(at.child("namespace"), ""),
        (true, namespace) => {
            for message in names::dns1123_label(namespace) {
                errs.invalid(at.child("namespace"), namespace, message);
            }
        }
        (false, "") => {}
        (false, _) => errs.forbidden(at.child("namespace"), "not allowed on this type"),
    }
    if let Some(generation) = meta.generation.filter(|g| *g < 0) {
        errs.invalid(at.child("generation"), generation, "must be greater than or equal to 0");
    }
    labels_annotations_owners(meta, &at, errs);
    validate_finalizers(meta.finalizers.as_deref().unwrap_or_default(), &at.child("finalizers"), errs);
}

/// What a kind says to a name, or to what stands in front of one (`true`): messages.
pub type NameCheck<'a> = &'a dyn Fn(&str, bool) -> Vec<String>;

/// Names that fit a path: what upstream checks of every kind before the kind's own rules.
fn segment(name: &str, prefix: bool) -> Vec<String> {
    // What stands in front of more is not all of a segment.
    if prefix && matches!(name, "." | "..") { Vec::new() } else { names::path_segment(name) }
}

/// How often upstream's strategy of a kind checks metadata once more when an object changes. Clients see a
/// cause for every check that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recheck {
    /// As metadata of a new object, and as a change.
    Both,
    /// As a change only.
    Change,
    /// As metadata of a new object only.
    New,
    /// As metadata of a new object, twice.
    NewTwice,
    /// Not at all.
    Never,
}

impl Recheck {
    /// How often the object is checked like a new one.
    pub fn as_new(self) -> usize {
        match self {
            Self::Both | Self::New => 1,
            Self::NewTwice => 2,
            Self::Change | Self::Never => 0,
        }
    }

    /// Whether the change is checked.
    pub fn as_change(self) -> bool {
        matches!(self, Self::Both | Self::Change)
    }
}

/// Checks changed metadata as upstream does for every kind, and again as the strategy of the kind does, which
/// knows what its names look like (`name_check`, as for [`validate`]).
pub fn validate_change(
    new: &ObjectMeta,
    old: &ObjectMeta,
    namespaced: bool,
    (recheck, name_check): (Recheck, NameCheck<'_>),
    errs: &mut ErrorList,
) {
    let before = errs.len();
    validate(new, namespaced, &segment, errs);
    validate_update(new, old, errs);
    let fine = errs.len() == before;
    if !fine || new.generate_name.as_deref().is_some_and(|prefix| !prefix.is_empty()) {
        (0..recheck.as_new()).for_each(|_| validate(new, namespaced, name_check, errs));
    }
    if recheck.as_change() && !fine {
        validate_update(new, old, errs);
    }
}

/// Drops owner references that occur twice, and yields the warning about them.
pub fn dedup_owners(meta: &mut ObjectMeta) -> Option<String> {
    let owners = meta.owner_references.as_mut().filter(|owners| owners.len() > 1)?;
    let mut kept: Vec<OwnerReference> = Vec::with_capacity(owners.len());
    let mut twice: Vec<String> = Vec::new();
    for owner in std::mem::take(owners) {
        if !kept.contains(&owner) {
            kept.push(owner);
        } else if !twice.contains(&owner.uid) {
            twice.push(owner.uid);
        }
    }
    *owners = kept;
    let observed = twice.join(", ");
    (!twice.is_empty()).then(|| {
        format!(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in \
             1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) \
             observed: {observed}"
        )
    })
}

/// Checks a change of metadata; whether a resourceVersion is needed is the caller's affair.
pub fn validate_update(new: &ObjectMeta, old: &ObjectMeta, errs: &mut ErrorList) {
    let at = Path::new("metadata");
    if old.deletion_timestamp.is_some() {
        let before = old.finalizers.as_deref().unwrap_or_default();
        let mut added: Vec<&String> =
            new.finalizers.iter().flatten().filter(|name| !before.contains(name)).collect();
        added.sort();
        added.dedup();
        if !added.is_empty() {
            let shown: Vec<String> = added.iter().map(|name| format!("{name:?}")).collect();
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers \
                    []string{{{}}}",
                shown.join(", ")
            );
            errs.forbidden(at.child("finalizers"), detail);
        }
    }
    let generation = |meta: &ObjectMeta| meta.generation.unwrap_or(0);
    if generation(new) < generation(old) {
        errs.invalid(at.child("generation"), generation(new), "must not be decremented");
    }
    let same = |field: &str, new: &Option<String>, old: &Option<String>, errs: &mut ErrorList| {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        errs.immutable(at.child(field), &text(new), &text(old));
    };
    same("name", &new.name, &old.name, errs);
    same("namespace", &new.namespace, &old.namespace, errs);
    same("uid", &new.uid, &old.uid, errs);
    errs.immutable(at.child("creationTimestamp"), &new.creation_timestamp, &old.creation_timestamp);
    errs.immutable(at.child("deletionTimestamp"), &new.deletion_timestamp, &old.deletion_timestamp);
    errs.immutable(
        at.child("deletionGracePeriodSeconds"),
        &new.deletion_grace_period_seconds,
        &old.deletion_grace_period_seconds,
    );
    labels_annotations_owners(new, &at, errs);
}

fn labels_annotations_owners(meta: &ObjectMeta, at: &Path, errs: &mut ErrorList) {
    if let Some(labels) = &meta.labels {
        validate_labels(labels, &at.child("labels"), errs);
    }
    if let Some(annotations) = &meta.annotations {
        validate_annotations(annotations, &at.child("annotations"), errs);
    }
    if let Some(owners) = &meta.owner_references {
        validate_owner_references(owners, &at.child("ownerReferences"), errs);
    }
}

/// Checks the keys and values of labels; all errors are reported at `at`.
pub fn validate_labels(labels: &std::collections::BTreeMap<String, String>, at: &Path, errs: &mut ErrorList) {
    for (key, value) in labels {
        for message in names::qualified_name(key) {
            errs.invalid(at, key.as_str(), message);
        }
        for message in names::label_value(value) {
            errs.invalid(at, value.as_str(), message);
        }
    }
}

/// Checks the keys of annotations and their total size.
pub fn validate_annotations(
    annotations: &std::collections::BTreeMap<String, String>,
    at: &Path,
    errs: &mut ErrorList,
) {
    for key in annotations.keys() {
        for message in names::qualified_name(&key.to_lowercase()) {
            errs.invalid(at, key.as_str(), message);
        }
    }
    if annotations.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() > MAX_ANNOTATIONS {
        errs.too_long(at, MAX_ANNOTATIONS);
    }
}

/// Checks that finalizers are qualified names.
pub fn validate_finalizers(finalizers: &[String], at: &Path, errs: &mut ErrorList) {
    let has = |name: &str| finalizers.iter().any(|f| f == name);
    for name in finalizers {
        for message in names::qualified_name(name) {
            errs.invalid(at, name.as_str(), message);
        }
    }
    if has("orphan") && has("foregroundDeletion") {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errs.invalid(at, finalizers.to_vec(), detail);
    }
}

/// Checks that finalizers without a slash are standard ones, as upstream does for the kinds of its core.
pub fn validate_standard_finalizers(meta: &ObjectMeta, errs: &mut ErrorList) {
    let at = Path::new("metadata").child("finalizers");
    for (i, name) in meta.finalizers.iter().flatten().enumerate() {
        let standard = matches!(name.as_str(), "kubernetes" | "orphan" | "foregroundDeletion");
        if !standard && !name.contains('/') {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errs.invalid(at.index(i), name.as_str(), detail);
        }
    }
}

fn validate_owner_references(owners: &[OwnerReference], at: &Path, errs: &mut ErrorList) {
    let mut first_controller: Option<String> = None;
    for owner in owners {
        let (group, version) = match owner.api_version.split_once('/') {
            None => ("", owner.api_version.as_str()),
            Some((_, rest)) if rest.contains('/') => ("", ""),
            Some((group, version)) => (group, version),
        };
        if version.is_empty() {
            errs.invalid(at.child("apiVersion"), owner.api_version.as_str(), "version must not be empty");
        }
        for (field, value) in [("kind", &owner.kind), ("name", &owner.name), ("uid", &owner.uid)] {
            if value.is_empty() {
                errs.invalid(at.child(field), value.as_str(), "must not be empty");
            }
        }
        if group.is_empty() && version == "v1" && owner.kind == "Event" {
            invalid_shown(
                errs,
                at,
                go_json(owner),
                "/v1, Kind=Event is disallowed from being an owner".into(),
            );
        }
        if owner.controller == Some(true) {
            let name = format!("{}/{}", owner.kind, owner.name);
            match &first_controller {
                None => first_controller = Some(name),
                Some(first) => {
                    let shown: Vec<String> = owners.iter().map(go_json).collect();
                    let detail = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references \
                            for \
                         {first} and {name}"
                    );
                    invalid_shown(errs, at, format!("[{}]", shown.join(",")), detail);
                }
            }
        }
    }
}

fn invalid_shown(errs: &mut ErrorList, at: &Path, value: String, detail: String) {
    errs.push(Error { kind: ErrorKind::Invalid, path: at.to_string(), value: Some(value), detail });
}

/// The reference as Go encodes it: fields in declaration order.
fn go_json(owner: &OwnerReference) -> String {
    let text = |value: &str| Value::from(value).to_string();
    let mut out = format!(
        "{{\"apiVersion\":{},\"kind\":{},\"name\":{},\"uid\":{}",
        text(&owner.api_version),
        text(&owner.kind),
        text(&owner.name),
        text(&owner.uid)
    );
    for (name, value) in
        [("controller", owner.controller), ("blockOwnerDeletion", owner.block_owner_deletion)]
    {
        if let Some(value) = value {
            out.push_str(&format!(",\"{name}\":{value}"));
        }
    }
    out.push('}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(meta: Value) -> Vec<String> {
        let meta: ObjectMeta = serde_json::from_value(meta).expect("metadata");
        let mut errs = ErrorList::new();
        let names = |name: &str, prefix| names::maybe_prefix(names::dns1123_subdomain, name, prefix);
        validate(&meta, true, &names, &mut errs);
        validate_standard_finalizers(&meta, &mut errs);
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_plain_object_is_valid() {
        let meta =
            json!({ "name": "a", "namespace": "b", "labels": { "x/y": "z" }, "finalizers": ["kubernetes"] });
        assert_eq!(check(meta), Vec::<String>::new());
    }

    #[test]
    fn faults_are_reported_with_upstream_messages() {
        assert_eq!(
            check(json!({ "namespace": "b", "finalizers": ["noslash"], "ownerReferences": [
                { "apiVersion": "v1", "kind": "A", "name": "p", "uid": "1", "controller": true },
                { "apiVersion": "a/b/c", "kind": "B", "name": "q", "uid": "2", "controller": true },
            ] })),
            [
                "metadata.name: Required value: name or generateName is required",
                "metadata.ownerReferences.apiVersion: Invalid value: \"a/b/c\": version must not be empty",
                "metadata.ownerReferences: Invalid value: \
                 [{\"apiVersion\":\"v1\",\"kind\":\"A\",\"name\":\"p\",\"uid\":\"1\",\"controller\":true},\
                 {\"apiVersion\":\"a/b/c\",\"kind\":\"B\"\
                 ,\"name\":\"q\",\"uid\":\"2\",\"controller\":true}]: \
                 Only \
                 one reference can have Controller set to true. Found \"true\" in references for A/p and B/q",
                "metadata.finalizers[0]: Invalid value: \"noslash\": name is neither a standard finalizer \
                    name nor \
                 is it fully qualified",
            ]
        );
    }

    #[test]
    fn faults_of_a_change_are_told_once_per_check() {
        let meta = |value| serde_json::from_value::<ObjectMeta>(value).expect("metadata");
        let old = meta(json!({ "name": "a", "namespace": "n" }));
        let new = meta(json!({ "name": "a", "namespace": "n", "labels": { "-a": "x" } }));
        let count = |recheck| {
            let mut errs = ErrorList::new();
            validate_change(&new, &old, true, (recheck, &|_, _| Vec::new()), &mut errs);
            errs.len()
        };
        let all = [Recheck::Both, Recheck::Change, Recheck::New, Recheck::NewTwice, Recheck::Never];
        assert_eq!(all.map(count), [4, 3, 3, 4, 2]);
    }

    #[test]
    fn a_changed_prefix_of_names_is_checked_as_a_segment_and_by_the_rule_of_the_kind() {
        let meta = |prefix: &str| {
            let value = json!({ "name": "a", "namespace": "n", "generateName": prefix });
            serde_json::from_value::<ObjectMeta>(value).expect("metadata")
        };
        let told = |prefix: &str, recheck| {
            let mut errs = ErrorList::new();
            let check = |name: &str, _: bool| names::dns1123_label(name);
            validate_change(&meta(prefix), &meta(""), true, (recheck, &check), &mut errs);
            errs.iter().map(|e| e.detail.split(' ').take(3).collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(told("a/b", Recheck::Change), ["may not contain"]);
        assert_eq!(told("Bad_", Recheck::Change), Vec::<String>::new());
        assert_eq!(told("Bad_", Recheck::New), ["a lowercase RFC"]);
        assert_eq!(told(".", Recheck::Never), Vec::<String>::new());
    }

    #[test]
    fn owners_named_twice_are_dropped_with_a_warning() {
        let owner = json!({ "apiVersion": "v1", "kind": "A", "name": "p", "uid": "1" });
        let meta = json!({ "ownerReferences": [owner, owner] });
        let mut meta: ObjectMeta = serde_json::from_value(meta).expect("metadata");
        let warning = dedup_owners(&mut meta).expect("a warning");
        assert!(warning.ends_with("duplicate UID(s) observed: 1"), "{warning}");
        assert_eq!(meta.owner_references.as_ref().map(Vec::len), Some(1));
        assert_eq!(dedup_owners(&mut meta), None);
    }

    #[test]
    fn finalizers_may_not_be_added_during_deletion() {
        let meta = |value| serde_json::from_value::<ObjectMeta>(value).expect("metadata");
        let old = meta(json!({ "name": "a", "deletionTimestamp": "2020-01-01T00:00:00Z" }));
        let mut new = old.clone();
        new.finalizers = Some(vec!["example.com/z".into()]);
        let mut errs = ErrorList::new();
        validate_update(&new, &old, &mut errs);
        assert_eq!(
            errs.aggregate(),
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being \
                deleted, found \
             new finalizers []string{\"example.com/z\"}"
        );
    }
}
