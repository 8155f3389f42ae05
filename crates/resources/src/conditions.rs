//! Status conditions of the common form: what is refused of them.

use std::collections::BTreeSet;

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::check::{named, one_of};

const MAX_REASON: usize = 1024;
const MAX_MESSAGE: usize = 32 * 1024;
const REASON: &str = "a condition reason must start with alphabetic character, optionally followed by a string \
    of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  \
    or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is \
    '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')";

/// Checks conditions, each type of which may stand once.
pub(crate) fn check(conditions: &[Condition], list: &Path, errs: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, condition) in conditions.iter().enumerate() {
        let path = list.index(i);
        if !seen.insert(condition.type_.as_str()) {
            errs.duplicate(path.child("type"), condition.type_.as_str());
        }
        one(condition, &path, errs);
    }
}

fn one(condition: &Condition, path: &Path, errs: &mut ErrorList) {
    named(errs, &path.child("type"), &condition.type_, names::qualified_name);
    one_of(errs, &path.child("status"), &condition.status, &["False", "True", "Unknown"]);
    if let Some(generation) = condition.observed_generation.filter(|generation| *generation < 0) {
        let why = "must be greater than or equal to zero";
        errs.invalid(path.child("observedGeneration"), generation, why);
    }
    if condition.last_transition_time == Time(jiff::Timestamp::UNIX_EPOCH) {
        errs.required(path.child("lastTransitionTime"), "");
    }
    let (reason, at) = (condition.reason.as_str(), path.child("reason"));
    if reason.is_empty() {
        errs.required(&at, "");
    } else {
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b',' | b':');
        let ends = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
        let bytes = reason.as_bytes();
        if !(bytes[0].is_ascii_alphabetic() && bytes.iter().all(|b| inner(*b)) && ends(bytes.last())) {
            errs.invalid(&at, reason, REASON);
        }
        if reason.len() > MAX_REASON {
            errs.too_long(&at, MAX_REASON);
        }
    }
    if condition.message.len() > MAX_MESSAGE {
        errs.too_long(path.child("message"), MAX_MESSAGE);
    }
}
