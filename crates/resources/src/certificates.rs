//! The `certificates.k8s.io` group, `v1`.

mod certificate_signing_request;
mod pem;

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;

use crate::def::ResourceDef;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] = &[&certificate_signing_request::DEF];

/// The organizations (groups) that a PEM certificate request asks for.
///
/// # Errors
/// Why it is no such request.
pub fn requested_organizations(pem: &[u8]) -> Result<Vec<String>, String> {
    pem::organizations(pem)
}

/// Bytes of a signer's domain, and of each label of its path.
const MAX_DOMAIN: usize = 253;
/// Bytes of a signer's path: a label, a dot, a subdomain.
const MAX_SIGNER_PATH: usize = 253 + 63 + 1;

/// The name of a signer, such as `example.com/signer-name`.
fn signer_name(name: &str, path: &Path, errs: &mut ErrorList) {
    if name.is_empty() {
        return errs.required(path, "");
    }
    let Some((domain, rest)) = name.split_once('/').filter(|(_, rest)| !rest.contains('/')) else {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        return errs.invalid(path, name, why);
    };
    if domain.len() > MAX_DOMAIN {
        errs.too_long(path, MAX_DOMAIN);
    }
    labels(domain, names::dns1123_label, path, errs);
    if !domain.contains('.') {
        errs.invalid(path, domain, "should be a domain with at least two segments separated by dots");
    }
    labels(rest, names::dns1123_subdomain, path, errs);
    if rest.len() > MAX_SIGNER_PATH {
        errs.too_long(path, MAX_SIGNER_PATH);
    }
}

/// Checks the labels of a dotted name up to the first bad one.
fn labels(name: &str, rule: crate::check::Rule, path: &Path, errs: &mut ErrorList) {
    let bad = name.split('.').map(|label| (label, rule(label))).find(|(_, messages)| !messages.is_empty());
    let Some((label, messages)) = bad else { return };
    for message in messages {
        errs.invalid(path, name, format!("validating label {label:?}: {message}"));
    }
}
