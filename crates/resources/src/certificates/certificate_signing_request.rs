//! CertificateSigningRequest: a wish for a certificate, its approval, and the certificate.

use std::collections::BTreeSet;

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition as Condition,
    CertificateSigningRequestStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::{pem, signer_name};
use crate::check::one_of;
use crate::common::{column, or_else, text};
use crate::def::{
    AGE, Column, Context, NAME, ResourceDef, Scope, Strategy, Subresource, Typed, age, human_duration,
};

const COLUMNS: &[Column] = &[
    NAME,
    AGE,
    column(
        "SignerName",
        "string",
        "",
        "Requested signer for the request. It is a qualified name in the form: \
         `scope-hostname.io/name`. If empty, it will be defaulted:\n 1. If it's a kubelet client \
         certificate, it is assigned\n    \"kubernetes.io/kube-apiserver-client-kubelet\".\n 2. If \
         it's a kubelet serving certificate, it is assigned\n    \"kubernetes.io/kubelet-serving\".\n \
         3. Otherwise, it is assigned \"kubernetes.io/legacy-unknown\".\nDistribution of trust for \
         signers happens out of band. You can select on this field using `spec.signerName`.",
    ),
    column("Requestor", "string", "", "Base64-encoded PKCS#10 CSR data"),
    column(
        "RequestedDuration",
        "string",
        "",
        "expirationSeconds is the requested duration of validity of the issued certificate. The \
         certificate signer may issue a certificate with a different validity duration so a client \
         must check the delta between the notBefore and and notAfter fields in the issued certificate \
         to determine the actual duration.\n\nThe v1.22+ in-tree implementations of the well-known \
         Kubernetes signers will honor this field as long as the requested duration is not greater \
         than the maximum duration they will honor per the --cluster-signing-duration CLI flag to the \
         Kubernetes controller manager.\n\nCertificate signers may not honor this field for various \
         reasons:\n\n  1. Old signer that is unaware of the field (such as the in-tree\n     \
         implementations prior to v1.22)\n  2. Signer whose configured maximum is shorter than the \
         requested duration\n  3. Signer whose configured minimum is longer than the requested \
         duration\n\nThe minimum valid value for expirationSeconds is 600, i.e. 10 minutes.",
    ),
    column("Condition", "string", "", "Conditions applied to the request, such as approval or denial."),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck_status: Recheck::Both,
    short_names: &["csr"],
    scope: Scope::Cluster,
    subresources: &[Subresource::Approval, Subresource::Status],
    columns: COLUMNS,
    ..ResourceDef::new::<CertificateSigningRequest>(
        "certificatesigningrequest",
        &Typed::<CertificateSigningRequest, _>::new(Requests),
    )
};

struct Requests;

const APPROVED: &str = "Approved";
const DENIED: &str = "Denied";
const FAILED: &str = "Failed";
const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";
const MIN_SECONDS: i32 = 600;
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

fn conditions(obj: &CertificateSigningRequest) -> &[Condition] {
    obj.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default()
}

fn of_type<'a>(obj: &'a CertificateSigningRequest, type_: &str) -> Vec<&'a Condition> {
    conditions(obj).iter().filter(|c| c.type_ == type_).collect()
}

fn certificate(obj: &CertificateSigningRequest) -> &[u8] {
    obj.status.as_ref().and_then(|s| s.certificate.as_ref()).map_or(&[], |bytes| &bytes.0)
}

impl Strategy<CertificateSigningRequest> for Requests {
    fn default(&self, obj: &mut CertificateSigningRequest) {
        obj.status.get_or_insert_default();
    }

    fn validate_name(&self, name: &str, _: bool) -> Vec<String> {
        names::path_segment(name)
    }

    fn prepare_create(&self, cx: Context<'_>, obj: &mut CertificateSigningRequest) {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        obj.spec.username = some(cx.user);
        obj.spec.uid = some(cx.uid);
        obj.spec.groups = (!cx.groups.is_empty()).then(|| cx.groups.to_vec());
        obj.spec.extra = cx.extra.filter(|extra| !extra.is_empty()).cloned();
        obj.status = Some(CertificateSigningRequestStatus::default());
    }

    fn prepare_update(
        &self,
        _: Context<'_>,
        new: &mut CertificateSigningRequest,
        old: &CertificateSigningRequest,
    ) {
        new.spec.clone_from(&old.spec);
        new.status.clone_from(&old.status);
    }

    fn prepare_status_update(
        &self,
        cx: Context<'_>,
        new: &mut CertificateSigningRequest,
        old: &CertificateSigningRequest,
    ) {
        new.spec.clone_from(&old.spec);
        for type_ in [APPROVED, DENIED] {
            keep_instances(new, old, type_);
        }
        stamp(new, old, cx.now);
    }

    fn prepare_part_update(
        &self,
        _: Subresource,
        cx: Context<'_>,
        new: &mut CertificateSigningRequest,
        old: &CertificateSigningRequest,
    ) {
        stamp(new, old, cx.now);
        new.spec.clone_from(&old.spec);
        let kept = old.status.as_ref().and_then(|s| s.certificate.clone());
        new.status.get_or_insert_default().certificate = kept;
    }

    fn validate(&self, obj: &CertificateSigningRequest, errs: &mut ErrorList) {
        check(obj, Lenience::default(), errs);
    }

    fn validate_update(
        &self,
        new: &CertificateSigningRequest,
        old: &CertificateSigningRequest,
        errs: &mut ErrorList,
    ) {
        change(new, old, Door::Main, errs);
    }

    fn validate_status_update(
        &self,
        new: &CertificateSigningRequest,
        old: &CertificateSigningRequest,
        errs: &mut ErrorList,
    ) {
        change(new, old, Door::Status, errs);
    }

    fn validate_part_update(
        &self,
        _: Subresource,
        new: &CertificateSigningRequest,
        old: &CertificateSigningRequest,
        errs: &mut ErrorList,
    ) {
        change(new, old, Door::Approval, errs);
    }

    fn selectable(&self, obj: &CertificateSigningRequest) -> Vec<(&'static str, String)> {
        vec![("spec.signerName", obj.spec.signer_name.clone())]
    }

    fn row(&self, obj: &CertificateSigningRequest, now: Timestamp) -> Vec<Value> {
        let duration = obj.spec.expiration_seconds.map(|s| human_duration(i64::from(s)));
        vec![
            obj.metadata.name.clone().into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
            or_else(&obj.spec.signer_name, "<none>"),
            text(obj.spec.username.as_ref()).into(),
            duration.unwrap_or_else(|| "<none>".to_owned()).into(),
            state(obj).into(),
        ]
    }
}

fn state(obj: &CertificateSigningRequest) -> String {
    let has = |type_: &str| !of_type(obj, type_).is_empty();
    let mut out = String::from(match (has(DENIED), has(APPROVED)) {
        (true, _) => "Denied",
        (false, true) => "Approved",
        (false, false) => "Pending",
    });
    if has(FAILED) {
        out.push_str(",Failed");
    }
    if !certificate(obj).is_empty() {
        out.push_str(",Issued");
    }
    out
}

/// Puts the present conditions of a type in the place of those sent, when there are as many.
fn keep_instances(new: &mut CertificateSigningRequest, old: &CertificateSigningRequest, type_: &str) {
    let kept = of_type(old, type_);
    let list = new.status.get_or_insert_default().conditions.get_or_insert_default();
    let places: Vec<&mut Condition> = list.iter_mut().filter(|c| c.type_ == type_).collect();
    if places.len() == kept.len() {
        places.into_iter().zip(kept).for_each(|(place, kept)| place.clone_from(kept));
    }
    if list.is_empty() {
        new.status.get_or_insert_default().conditions = None;
    }
}

/// Fills in the times of conditions that have none.
fn stamp(new: &mut CertificateSigningRequest, old: &CertificateSigningRequest, now: Timestamp) {
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let list = new.status.as_mut().and_then(|s| s.conditions.as_mut());
    for condition in list.into_iter().flatten() {
        condition.last_update_time.get_or_insert_with(|| now.clone());
        if condition.last_transition_time.is_none() {
            let same = |c: &&Condition| {
                c.type_ == condition.type_ && c.status == condition.status && c.last_transition_time.is_some()
            };
            let before = conditions(old).iter().find(same).and_then(|c| c.last_transition_time.clone());
            condition.last_transition_time = Some(before.unwrap_or_else(|| now.clone()));
        }
    }
}

/// Through which endpoint an update comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Door {
    Main,
    Status,
    Approval,
}

/// Faults that stay allowed in an object that has them already.
#[derive(Clone, Copy, Default)]
struct Lenience {
    both_decisions: bool,
    legacy_signer: bool,
    duplicate_conditions: bool,
    empty_conditions: bool,
    any_certificate: bool,
    duplicate_usages: bool,
    unknown_usages: bool,
}

impl Lenience {
    fn towards(new: &CertificateSigningRequest, old: &CertificateSigningRequest) -> Self {
        let types: Vec<&str> = conditions(old).iter().map(|c| c.type_.as_str()).collect();
        let usages: Vec<&str> = old.spec.usages.iter().flatten().map(String::as_str).collect();
        let repeats = |list: &[&str]| list.iter().collect::<BTreeSet<_>>().len() < list.len();
        Self {
            both_decisions: types.contains(&APPROVED) && types.contains(&DENIED),
            legacy_signer: old.spec.signer_name == LEGACY_SIGNER,
            duplicate_conditions: repeats(&types),
            empty_conditions: types.contains(&""),
            any_certificate: certificate(new) == certificate(old) || pem::chain(certificate(old)).is_err(),
            duplicate_usages: repeats(&usages),
            unknown_usages: usages.iter().any(|usage| !USAGES.contains(usage)),
        }
    }
}

fn check(obj: &CertificateSigningRequest, lenience: Lenience, errs: &mut ErrorList) {
    let path = Path::new("spec");
    let spec = &obj.spec;
    if let Err(why) = pem::request(&spec.request.0) {
        let shown = if spec.request.0.is_empty() { Value::Null } else { json!(spec.request) };
        errs.invalid(path.child("request"), shown, why);
    }
    let (usages, list) = (spec.usages.as_deref().unwrap_or_default(), path.child("usages"));
    if usages.is_empty() {
        errs.required(&list, "");
    }
    let mut seen = BTreeSet::new();
    for (i, usage) in usages.iter().enumerate() {
        if !lenience.unknown_usages {
            one_of(errs, &list.index(i), usage, USAGES);
        }
        if !seen.insert(usage) && !lenience.duplicate_usages {
            errs.duplicate(list.index(i), usage.as_str());
        }
    }
    if spec.signer_name == LEGACY_SIGNER && !lenience.legacy_signer {
        let why = "the legacy signerName is not allowed via this API version";
        errs.invalid(path.child("signerName"), LEGACY_SIGNER, why);
    } else {
        signer_name(&spec.signer_name, &path.child("signerName"), errs);
    }
    if let Some(seconds) = spec.expiration_seconds.filter(|seconds| *seconds < MIN_SECONDS) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        errs.invalid(path.child("expirationSeconds"), seconds, why);
    }
    check_conditions(conditions(obj), lenience, errs);
    if !lenience.any_certificate
        && let Err(why) = pem::chain(certificate(obj))
    {
        errs.invalid(Path::new("status").child("certificate"), "<certificate data>", why);
    }
}

fn check_conditions(conditions: &[Condition], lenience: Lenience, errs: &mut ErrorList) {
    let list = Path::new("status").child("conditions");
    let mut seen = BTreeSet::new();
    for (i, condition) in conditions.iter().enumerate() {
        let (path, type_) = (list.index(i), condition.type_.as_str());
        if type_.is_empty() && !lenience.empty_conditions {
            errs.required(path.child("type"), "");
        }
        let decided = [APPROVED, DENIED, FAILED].contains(&type_);
        let allowed: &[&str] = if decided { &["True"] } else { &["False", "True", "Unknown"] };
        match condition.status.as_str() {
            "" => errs.required(path.child("status"), ""),
            status => one_of(errs, &path.child("status"), status, allowed),
        }
        let opposite = match type_ {
            APPROVED => DENIED,
            DENIED => APPROVED,
            _ => "",
        };
        if !opposite.is_empty() && seen.contains(opposite) && !lenience.both_decisions {
            errs.invalid(&list, type_, "Approved and Denied conditions are mutually exclusive");
        }
        if !seen.insert(type_) && !lenience.duplicate_conditions {
            errs.duplicate(path.child("type"), type_);
        }
    }
}

fn change(
    new: &CertificateSigningRequest,
    old: &CertificateSigningRequest,
    door: Door,
    errs: &mut ErrorList,
) {
    check(new, Lenience::towards(new, old), errs);
    let path = Path::new("status").child("conditions");
    for type_ in [APPROVED, DENIED, FAILED] {
        if of_type(new, type_).len() < of_type(old, type_).len() {
            errs.forbidden(&path, format!("updates may not remove a condition of type {type_:?}"));
        }
    }
    if door != Door::Approval {
        for type_ in [APPROVED, DENIED] {
            let (now, before) = (of_type(new, type_), of_type(old, type_));
            if now.len() > before.len() {
                errs.forbidden(&path, format!("updates may not add a condition of type {type_:?}"));
            } else if now.len() == before.len() && now != before {
                errs.forbidden(&path, format!("updates may not modify a condition of type {type_:?}\n"));
            }
        }
    }
    let path = Path::new("status").child("certificate");
    if certificate(new) != certificate(old) {
        if door != Door::Status {
            errs.forbidden(path, "updates may not set certificate content");
        } else if !certificate(old).is_empty() {
            errs.forbidden(path, "updates may not modify existing certificate content");
        }
    }
}
