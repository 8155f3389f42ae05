//! The `resource.k8s.io` group, `v1` (dynamic resource allocation), and what its kinds share.

mod claim_spec;
mod device;
mod device_class;
mod resource_claim;
mod resource_claim_template;
mod resource_slice;
mod shown;

use std::collections::BTreeSet;

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use k8s_openapi::api::resource::v1::OpaqueDeviceConfiguration;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde_json::Value;

use crate::check::named;
use crate::def::ResourceDef;
use crate::storage::driver_name;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] =
    &[&device_class::DEF, &resource_claim::DEF, &resource_claim_template::DEF, &resource_slice::DEF];

/// Bytes of the name of a pool.
const MAX_POOL_NAME: usize = 253;
/// Bytes of the name of an attribute without its domain.
const MAX_IDENTIFIER: usize = 32;
/// Bytes of opaque parameters.
const MAX_PARAMETERS: usize = 10 * 1024;
/// Configurations, constraints, requests: of each at most this many.
const MAX_LIST: usize = 32;
const TAINT_EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];
const IDENTIFIER: &str = "a valid C identifier must start with alphabetic character or '_', followed by a string \
    of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is \
    '[A-Za-z_][A-Za-z0-9_]*')";

/// Checks each item of a list, unless the list is too long.
fn items<T>(
    list: &[T],
    max: usize,
    path: &Path,
    errs: &mut ErrorList,
    mut check: impl FnMut(&T, &Path, &mut ErrorList),
) -> bool {
    if list.len() > max {
        errs.too_many(path, list.len(), max);
        return false;
    }
    list.iter().enumerate().for_each(|(i, item)| check(item, &path.index(i), errs));
    true
}

/// As [`items`], and each key may occur once.
fn set<'a, T>(
    list: &'a [T],
    max: usize,
    path: &Path,
    errs: &mut ErrorList,
    key: impl Fn(&'a T) -> &'a str,
    check: impl FnMut(&T, &Path, &mut ErrorList),
) {
    if !items(list, max, path, errs, check) {
        return;
    }
    let mut seen = BTreeSet::new();
    for (i, item) in list.iter().enumerate() {
        if !seen.insert(key(item)) {
            errs.duplicate(path.index(i), key(item));
        }
    }
}

/// The name of a pool: DNS subdomains with slashes between them.
fn pool_name(name: &str, path: &Path, errs: &mut ErrorList) {
    if name.is_empty() {
        return errs.required(path, "");
    }
    if name.len() > MAX_POOL_NAME {
        errs.too_long(path, MAX_POOL_NAME);
    }
    name.split('/').for_each(|part| named(errs, path, part, names::dns1123_subdomain));
}

/// The name of an attribute or capacity: an identifier with an optional domain.
fn qualified_name(name: &str, path: &Path, errs: &mut ErrorList) {
    let parts: Vec<&str> = name.split('/').collect();
    match parts.as_slice() {
        [id] => identifier(id, path, errs),
        [domain, id] => {
            match *domain {
                "" => errs.invalid(path, "", "the domain must not be empty"),
                domain => driver_name(domain, path, errs),
            }
            match *id {
                "" => errs.invalid(path, "", "the name must not be empty"),
                id => identifier(id, path, errs),
            }
        }
        // Upstream accepts names of more parts.
        _ => {}
    }
}

fn identifier(id: &str, path: &Path, errs: &mut ErrorList) {
    if id.len() > MAX_IDENTIFIER {
        errs.too_long(path, MAX_IDENTIFIER);
    }
    let first = id.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    if !(first && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')) {
        errs.invalid(path, id, IDENTIFIER);
    }
}

/// Configuration that only the driver understands.
fn configuration(opaque: Option<&OpaqueDeviceConfiguration>, path: &Path, errs: &mut ErrorList) {
    let path = path.child("opaque");
    let Some(opaque) = opaque else { return errs.required(path, "") };
    driver_name(&opaque.driver, &path.child("driver"), errs);
    raw_object(&opaque.parameters, &path.child("parameters"), errs);
}

/// A JSON object of any content, within bounds.
fn raw_object(raw: &RawExtension, path: &Path, errs: &mut ErrorList) {
    match &raw.0 {
        Value::Null => errs.required(path, ""),
        value if value.to_string().len() > MAX_PARAMETERS => errs.too_long(path, MAX_PARAMETERS),
        Value::Object(_) => {}
        _ => errs.invalid(path, "<value omitted>", "must be a valid JSON object"),
    }
}

/// An id of RFC 4122 in lower case.
fn uuid(text: &str, path: &Path, errs: &mut ErrorList) {
    let dashes = [8, 13, 18, 23];
    let legal = |(i, b): (usize, u8)| if dashes.contains(&i) { b == b'-' } else { b.is_ascii_hexdigit() };
    if text.len() != 36 {
        errs.invalid(path, text, format!("error validating uid: invalid UUID length: {}", text.len()));
    } else if !text.bytes().enumerate().all(legal) {
        errs.invalid(path, text, "error validating uid: invalid UUID format");
    } else if text != text.to_lowercase() {
        let why = "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase \
                   hexadecimal characters";
        errs.invalid(path, text, why);
    }
}

/// Conditions that binding waits for, and those that make it fail: none twice, none in both.
fn binding_conditions(wait: &[String], fail: &[String], path: &Path, errs: &mut ErrorList) {
    const MAX: usize = 4;
    let name =
        |name: &String, path: &Path, errs: &mut ErrorList| named(errs, path, name, names::qualified_name);
    let (wait_path, fail_path) = (path.child("bindingConditions"), path.child("bindingFailureConditions"));
    items(wait, MAX, &wait_path, errs, name);
    items(fail, MAX, &fail_path, errs, name);
    for (list, path) in [(wait, &wait_path), (fail, &fail_path)] {
        for (i, condition) in list.iter().enumerate() {
            if list[..i].contains(condition) {
                errs.duplicate(path.index(i), condition.as_str());
            }
        }
    }
    for (i, condition) in fail.iter().enumerate().filter(|(_, condition)| wait.contains(condition)) {
        let why = "bindingFailureConditions must not overlap with bindingConditions";
        errs.invalid(fail_path.index(i), condition.as_str(), why);
    }
    match (wait.is_empty(), fail.is_empty()) {
        (true, false) => {
            let why = "bindingConditions are required to use bindingFailureConditions";
            errs.invalid(wait_path, Value::Null, why);
        }
        (false, true) => {
            let why = "bindingFailureConditions are required to use bindingConditions";
            errs.invalid(fail_path, Value::Null, why);
        }
        _ => {}
    }
}
