//! What the server decides about a definition after it was written: which names it gets, whether it is served,
//! whether its schemas are structural, whether a protected group is approved. Pure; `now` is given.

use std::collections::BTreeSet;

use coracle_apiextensions::{Schema, structure};
use coracle_meta::field::{ErrorList, Path};
use jiff::Timestamp;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionCondition, CustomResourceDefinitionNames,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::spec::has_bad_ca;
use crate::url::Url;

/// Removed last, when no instances are left.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Who approved a definition in a protected group.
const APPROVED: &str = "api-approved.kubernetes.io";

/// Type of a condition, with status, reason and message.
type Told<'t> = (&'static str, &'static str, &'t str, &'t str);

/// The status of a condition; empty when there is none.
pub fn status<'c>(crd: &'c CustomResourceDefinition, kind: &str) -> &'c str {
    find(crd, kind).map_or("", |condition| condition.status.as_str())
}

/// Whether a condition is true.
pub fn is_true(crd: &CustomResourceDefinition, kind: &str) -> bool {
    status(crd, kind) == "True"
}

fn find<'c>(crd: &'c CustomResourceDefinition, kind: &str) -> Option<&'c CustomResourceDefinitionCondition> {
    crd.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == kind)
}

/// Sets a condition; its time changes with its status only.
pub fn set(crd: &mut CustomResourceDefinition, (kind, status, reason, message): Told<'_>, now: Timestamp) {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let conditions = crd.status.get_or_insert_default().conditions.get_or_insert_default();
    let told = |time| CustomResourceDefinitionCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: time,
        observed_generation: None,
    };
    match conditions.iter_mut().find(|c| c.type_ == kind) {
        None => conditions.push(told(Some(Time(now)))),
        Some(found) => {
            let time = found.last_transition_time.take().filter(|_| found.status == status);
            let observed = found.observed_generation;
            *found = told(time.or(Some(Time(now))));
            found.observed_generation = observed;
        }
    }
}

/// The definition with the names it gets beside those that `others` of its group have, if that changes anything.
fn accept_names(
    crd: &CustomResourceDefinition,
    others: &[&CustomResourceDefinitionNames],
    now: Timestamp,
) -> Option<CustomResourceDefinition> {
    let accepted = crd.status.as_ref().and_then(|s| s.accepted_names.clone()).unwrap_or_else(no_names);
    if same_names(&crd.spec.names, &accepted) {
        return None;
    }
    let (names, told) = decide_names(&crd.spec.names, &accepted, others);
    let noted = find(crd, "NamesAccepted").is_some_and(|c| {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        (c.status.as_str(), text(&c.reason), text(&c.message)) == (told.0, told.1.clone(), told.2.clone())
    });
    if noted && same_names(&names, &accepted) {
        return None;
    }
    let mut out = crd.clone();
    out.status.get_or_insert_default().accepted_names = Some(names);
    set(&mut out, ("NamesAccepted", told.0, &told.1, &told.2), now);
    let established = is_true(crd, "Established");
    if !established && told.0 == "True" {
        set(&mut out, ("Established", "False", "Installing", "the initial names have been accepted"), now);
    } else if find(crd, "Established").is_none() {
        set(&mut out, ("Established", "False", "NotAccepted", "not all names are accepted"), now);
    }
    Some(out)
}

fn no_names() -> CustomResourceDefinitionNames {
    CustomResourceDefinitionNames::default()
}

/// Names as they count: an absent list is an empty one.
fn same_names(a: &CustomResourceDefinitionNames, b: &CustomResourceDefinitionNames) -> bool {
    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    (a.plural.as_str(), a.kind.as_str()) == (b.plural.as_str(), b.kind.as_str())
        && (text(&a.singular), text(&a.list_kind)) == (text(&b.singular), text(&b.list_kind))
        && (list(&a.short_names), list(&a.categories)) == (list(&b.short_names), list(&b.categories))
}

type Verdict = (&'static str, String, String);

fn decide_names(
    wanted: &CustomResourceDefinitionNames,
    accepted: &CustomResourceDefinitionNames,
    others: &[&CustomResourceDefinitionNames],
) -> (CustomResourceDefinitionNames, Verdict) {
    let (mut resources, mut kinds) = (BTreeSet::new(), BTreeSet::new());
    for names in others.iter().copied().chain([accepted]) {
        resources.insert(names.plural.as_str());
        resources.extend(names.singular.as_deref());
        resources.extend(names.short_names.iter().flatten().map(String::as_str));
        kinds.insert(names.kind.as_str());
        kinds.extend(names.list_kind.as_deref());
    }
    let taken = |wanted: &str, accepted: &str, used: &BTreeSet<&str>| {
        (wanted != accepted && used.contains(wanted)).then(|| format!("{wanted:?} is already in use"))
    };
    let mut names = accepted.clone();
    let mut conflict: Option<(&str, String)> = None;
    match taken(&wanted.plural, &accepted.plural, &resources) {
        Some(why) => conflict = Some(("PluralConflict", why)),
        None => names.plural.clone_from(&wanted.plural),
    }
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    match taken(&text(&wanted.singular), &text(&accepted.singular), &resources) {
        Some(why) => conflict = Some(("SingularConflict", why)),
        None => names.singular.clone_from(&wanted.singular),
    }
    let had = accepted.short_names.clone().unwrap_or_default();
    let fresh = wanted.short_names.iter().flatten().filter(|name| !had.contains(name));
    let clashes: Vec<String> = fresh.filter_map(|name| taken(name, "", &resources)).collect();
    match clashes.as_slice() {
        [] => names.short_names.clone_from(&wanted.short_names),
        [one] => conflict = Some(("ShortNamesConflict", one.clone())),
        many => conflict = Some(("ShortNamesConflict", format!("[{}]", many.join(", ")))),
    }
    match taken(&wanted.kind, &accepted.kind, &kinds) {
        Some(why) => conflict = Some(("KindConflict", why)),
        None => names.kind.clone_from(&wanted.kind),
    }
    match taken(&text(&wanted.list_kind), &text(&accepted.list_kind), &kinds) {
        Some(why) => conflict = Some(("ListKindConflict", why)),
        None => names.list_kind.clone_from(&wanted.list_kind),
    }
    names.categories.clone_from(&wanted.categories);
    let told = match conflict {
        Some((reason, why)) => ("False", reason.to_owned(), why),
        None => ("True", "NoConflicts".to_owned(), "no conflicts found".to_owned()),
    };
    (names, told)
}

/// What the server decides about a definition after it was written, all at once; `None` when nothing is left to be
/// decided. `others` are the names that the other definitions of its group have.
pub fn decide(
    crd: &CustomResourceDefinition,
    others: &[&CustomResourceDefinitionNames],
    now: Timestamp,
) -> Option<CustomResourceDefinition> {
    let named = accept_names(crd, others, now);
    let established = establish(named.as_ref().unwrap_or(crd), now).or(named);
    let judged = judge_schemas(established.as_ref().unwrap_or(crd), now).or(established);
    judge_approval(judged.as_ref().unwrap_or(crd), now).or(judged)
}

/// The definition as established, when its names are accepted and it is not yet.
fn establish(crd: &CustomResourceDefinition, now: Timestamp) -> Option<CustomResourceDefinition> {
    if !is_true(crd, "NamesAccepted") || is_true(crd, "Established") {
        return None;
    }
    let told = if has_bad_ca(crd) {
        ("Established", "False", "InvalidCABundle", "The conversion webhook CABundle is invalid")
    } else {
        ("Established", "True", "InitialNamesAccepted", "the initial names have been accepted")
    };
    if find(crd, "Established").is_some_and(|c| c.reason.as_deref() == Some(told.2)) {
        return None;
    }
    let mut out = crd.clone();
    set(&mut out, told, now);
    Some(out)
}

/// The definition with the condition about schemas that are not structural, if that changes anything.
fn judge_schemas(crd: &CustomResourceDefinition, now: Timestamp) -> Option<CustomResourceDefinition> {
    const KIND: &str = "NonStructuralSchema";
    let mut errs = ErrorList::new();
    if crd.spec.preserve_unknown_fields == Some(true) {
        errs.invalid("spec.preserveUnknownFields", true, "must be false");
    }
    let mut refused = None;
    for (i, version) in crd.spec.versions.iter().enumerate() {
        let Some(props) = version.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref()) else {
            continue;
        };
        match Schema::new(props) {
            Err(why) => {
                let name = &version.name;
                refused = Some(format!("failed to check validation schema for version {name}: {why}"));
                break;
            }
            Ok(schema) => {
                let at = Path::new("spec.versions").index(i).child("schema").child("openAPIV3Schema");
                errs.extend(structure::faults(&schema, &at));
            }
        }
    }
    let told = match refused {
        Some(why) => Some(("Unknown", "StructuralError", why)),
        None if errs.is_empty() => None,
        None => Some(("True", "Violations", errs.aggregate())),
    };
    let old = find(crd, KIND);
    match (&told, old) {
        (None, None) => None,
        (Some((status, reason, message)), Some(old))
            if (old.status.as_str(), old.reason.as_deref(), old.message.as_deref())
                == (*status, Some(*reason), Some(message.as_str())) =>
        {
            None
        }
        (None, Some(_)) => {
            let mut out = crd.clone();
            out.status.get_or_insert_default().conditions.get_or_insert_default().retain(|c| c.type_ != KIND);
            Some(out)
        }
        (Some((status, reason, message)), _) => {
            let mut out = crd.clone();
            set(&mut out, (KIND, status, reason, message), now);
            Some(out)
        }
    }
}

/// Whether a group is one of the Kubernetes community's.
pub(super) fn is_protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|g| group.strip_suffix(g).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

/// How the approval of a protected group stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Approval {
    /// Neither a URL nor a refusal.
    Invalid,
    /// By a URL.
    Given,
    /// Knowingly left out.
    Bypassed,
    /// No annotation.
    Missing,
}

/// The approval, the annotation's text, and a sentence about it.
pub(super) fn approval(crd: &CustomResourceDefinition) -> (Approval, String, String) {
    let text = crd.metadata.annotations.as_ref().and_then(|a| a.get(APPROVED)).cloned().unwrap_or_default();
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    let url = Url::parse(&text).ok().filter(|url| !url.host.is_empty() && !url.scheme.is_empty());
    let (state, why) = if text.is_empty() {
        (Approval::Missing, format!("protected groups must have approval annotation {APPROVED:?}, {see}"))
    } else if text.starts_with("unapproved") {
        (Approval::Bypassed, format!("not approved: {text:?}"))
    } else if url.is_some() {
        (Approval::Given, format!("approved in {text}"))
    } else {
        let or = "with either a URL or a reason starting with \"unapproved\"";
        (
            Approval::Invalid,
            format!("protected groups must have approval annotation {APPROVED:?} {or}, {see}"),
        )
    };
    (state, text, why)
}

/// The definition with the condition about its approval, if that changes anything.
fn judge_approval(crd: &CustomResourceDefinition, now: Timestamp) -> Option<CustomResourceDefinition> {
    const KIND: &str = "KubernetesAPIApprovalPolicyConformant";
    if !is_protected(&crd.spec.group) {
        return None;
    }
    let (state, _, why) = approval(crd);
    let (status, reason) = match state {
        Approval::Invalid => ("False", "InvalidAnnotation"),
        Approval::Missing => ("False", "MissingAnnotation"),
        Approval::Given => ("True", "ApprovedAnnotation"),
        Approval::Bypassed => ("False", "UnapprovedAnnotation"),
    };
    let same = find(crd, KIND).is_some_and(|c| {
        (c.status.as_str(), c.reason.as_deref(), c.message.as_deref()) == (status, Some(reason), Some(&why))
    });
    if same {
        return None;
    }
    let mut out = crd.clone();
    set(&mut out, (KIND, status, reason, &why), now);
    Some(out)
}

/// Checks the approval annotation of a new or changed definition.
pub(super) fn check_approval(
    new: &CustomResourceDefinition,
    old: Option<&CustomResourceDefinition>,
    errs: &mut ErrorList,
) {
    if !is_protected(&new.spec.group) {
        return;
    }
    let (state, text, why) = approval(new);
    if old.is_some_and(|old| approval(old).0 == state) {
        return;
    }
    let at = Path::new("metadata.annotations").key(APPROVED);
    match state {
        Approval::Invalid => errs.invalid(at, text, why),
        Approval::Missing => errs.required(at, why),
        Approval::Given | Approval::Bypassed => {}
    }
}

/// Marks a definition for deletion: it stays until its instances are gone.
pub fn begin_deletion(crd: &mut CustomResourceDefinition, now: Timestamp) {
    let whole = Timestamp::from_second(now.as_second()).unwrap_or(now);
    crd.metadata.deletion_timestamp.get_or_insert(Time(whole));
    let finalizers = crd.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|f| f == CLEANUP) {
        finalizers.push(CLEANUP.into());
    }
    let why = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    set(crd, ("Terminating", "True", "InstanceDeletionPending", why), now);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn crd(kind: &str, plural: &str, accepted: bool) -> CustomResourceDefinition {
        let names =
            json!({ "kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": plural });
        let status = if accepted { json!({ "acceptedNames": names }) } else { json!({}) };
        serde_json::from_value(json!({
            "metadata": { "name": format!("{plural}.e.com") },
            "spec": { "group": "e.com", "scope": "Namespaced", "names": names, "versions": [] },
            "status": status,
        }))
        .expect("a definition")
    }

    fn names_of(crd: &CustomResourceDefinition) -> &CustomResourceDefinitionNames {
        crd.status.as_ref().and_then(|s| s.accepted_names.as_ref()).expect("accepted names")
    }

    #[test]
    fn a_new_definition_is_decided_about_at_once_and_then_no_more() {
        let now = Timestamp::UNIX_EPOCH;
        let done = decide(&crd("Thing", "things", false), &[], now).expect("a decision");
        assert!(is_true(&done, "NamesAccepted") && is_true(&done, "Established"));
        assert_eq!(decide(&done, &[], now), None);
        let late = decide(&crd("Thing", "zings", false), &[names_of(&done)], now).expect("a decision");
        assert!(!is_true(&late, "NamesAccepted") && !is_true(&late, "Established"));
        let freed = decide(&late, &[], now).expect("the names are free");
        assert!(is_true(&freed, "Established"));
    }

    #[test]
    fn names_go_to_who_comes_first() {
        let now = Timestamp::UNIX_EPOCH;
        let fresh = accept_names(&crd("Thing", "things", false), &[], now).expect("a decision");
        assert!(is_true(&fresh, "NamesAccepted") && status(&fresh, "Established") == "False");
        let done = establish(&fresh, now).expect("established");
        assert!(is_true(&done, "Established") && establish(&done, now).is_none());
        let late = accept_names(&crd("Thing", "zings", false), &[names_of(&done)], now).expect("a decision");
        let told = find(&late, "NamesAccepted").expect("a condition");
        assert_eq!(told.reason.as_deref(), Some("ListKindConflict"));
        assert_eq!(told.message.as_deref(), Some("\"ThingList\" is already in use"));
        let names = late.status.and_then(|s| s.accepted_names).expect("names");
        assert_eq!((names.plural.as_str(), names.kind.as_str()), ("zings", ""));
    }

    #[test]
    fn protected_groups_need_an_approval() {
        let mut crd = crd("Thing", "things", false);
        crd.spec.group = "x.k8s.io".into();
        let mut errs = ErrorList::new();
        check_approval(&crd, None, &mut errs);
        assert_eq!(errs.len(), 1);
        crd.metadata.annotations = Some([(APPROVED.into(), "unapproved, for a test".into())].into());
        let mut errs = ErrorList::new();
        check_approval(&crd, None, &mut errs);
        assert!(errs.is_empty());
        assert!(!is_protected("examplek8s.io"));
    }
}
