//! Certificate signing: approves what kubelets ask for themselves, signs what is approved, and removes old requests.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_client::{Api, ApiRequest, ApiResponse, Body, Client, DeleteOptions, Informer, ResourceId, Verb};
use coracle_meta::{Reason, Status};
use coracle_stdx::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use crate::runtime::{
    Action, Context, Controller, Descriptor, ObjectKey, Reconciler, ignore_not_found, name_of,
};

/// The service account of all three.
pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "certificate-controller", workers: 1 };

const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const LEGACY: &str = "kubernetes.io/legacy-unknown";

/// Shortest life of a certificate.
const SHORTEST: Duration = Duration::from_secs(600);
const HOUR: SignedDuration = SignedDuration::from_hours(1);
/// For how long requests are kept: approved or denied ones, and those that nobody answered.
const ANSWERED: SignedDuration = SignedDuration::from_hours(1);
const PENDING: SignedDuration = SignedDuration::from_hours(24);

/// What a request for a certificate asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateRequest {
    /// CN.
    pub common_name: String,
    /// O.
    pub organizations: Vec<String>,
    /// DNS names.
    pub dns_names: Vec<String>,
    /// IP addresses, as text.
    pub ip_addresses: Vec<String>,
    /// Whether it asks for e-mail addresses or URIs.
    pub has_other_names: bool,
}

/// Reads requests and signs certificates with the cluster's CA.
pub trait CertificateSigner: Send + Sync + 'static {
    /// What a request (PEM) asks for.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn read(&self, request_pem: &[u8]) -> Result<CertificateRequest, String>;
    /// A certificate (PEM) for the request, valid for `life` from a little before `now`; `usages` as the API names
    /// them.
    ///
    /// # Errors
    /// Why it cannot be signed.
    fn sign(
        &self,
        request_pem: &[u8],
        usages: &[String],
        life: Duration,
        now: Timestamp,
    ) -> Result<String, String>;
}

fn usages(spec: &CertificateSigningRequestSpec) -> Vec<&str> {
    let mut usages: Vec<&str> = spec.usages.iter().flatten().map(String::as_str).collect();
    usages.sort_unstable();
    usages
}

/// Whether the usages are exactly these, `key encipherment` left aside.
fn are(spec: &CertificateSigningRequestSpec, wanted: [&str; 2]) -> bool {
    let mut found = usages(spec);
    found.retain(|usage| *usage != "key encipherment");
    let mut wanted = wanted.to_vec();
    wanted.sort_unstable();
    found == wanted
}

/// What keeps a kubelet's client certificate from being one; `None` if nothing does.
fn fault_of_kubelet_client(
    request: &CertificateRequest,
    spec: &CertificateSigningRequestSpec,
) -> Option<&'static str> {
    if request.organizations != ["system:nodes"] {
        return Some("subject organization is not system:nodes");
    }
    if !request.dns_names.is_empty() {
        return Some("DNS subjectAltNames are not allowed");
    }
    if request.has_other_names {
        return Some("Email subjectAltNames are not allowed");
    }
    if !request.ip_addresses.is_empty() {
        return Some("IP subjectAltNames are not allowed");
    }
    if !request.common_name.starts_with("system:node:") {
        return Some("subject common name does not begin with system:node: ");
    }
    (!are(spec, ["client auth", "digital signature"]))
        .then_some("usages did not match [client auth digital signature]")
}

fn fault_of_kubelet_serving(
    request: &CertificateRequest,
    spec: &CertificateSigningRequestSpec,
) -> Option<&'static str> {
    if request.organizations != ["system:nodes"] {
        return Some("subject organization is not system:nodes");
    }
    if request.dns_names.is_empty() && request.ip_addresses.is_empty() {
        return Some("DNS or IP subjectAltName is required");
    }
    if request.has_other_names {
        return Some("Email subjectAltNames are not allowed");
    }
    if !request.common_name.starts_with("system:node:") {
        return Some("subject common name does not begin with system:node: ");
    }
    if spec.username.as_deref() != Some(&request.common_name) {
        return Some("requested subject's common name does not match the user");
    }
    (!are(spec, ["digital signature", "server auth"]))
        .then_some("usages did not match [digital signature server auth]")
}

/// What keeps a request from being signed by its signer.
fn fault(request: &CertificateRequest, spec: &CertificateSigningRequestSpec) -> Option<&'static str> {
    match spec.signer_name.as_str() {
        KUBELET_CLIENT => fault_of_kubelet_client(request, spec),
        KUBELET_SERVING => fault_of_kubelet_serving(request, spec),
        CLIENT => {
            let allowed = ["client auth", "digital signature", "key encipherment"];
            let found = usages(spec);
            let fits = found.contains(&"client auth") && found.iter().all(|usage| allowed.contains(usage));
            (!fits).then_some("usages did not match")
        }
        _ => None,
    }
}

fn condition<'a>(
    request: &'a CertificateSigningRequest,
    kind: &str,
) -> Option<&'a CertificateSigningRequestCondition> {
    request.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == kind)
}

fn has_certificate(request: &CertificateSigningRequest) -> bool {
    request.status.as_ref().and_then(|status| status.certificate.as_ref()).is_some_and(|c| !c.0.is_empty())
}

fn new_condition(
    kind: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> CertificateSigningRequestCondition {
    CertificateSigningRequestCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(Time(now)),
        last_update_time: Some(Time(now)),
    }
}

/// How long the certificate lives: as asked for, at least ten minutes, at most `longest`.
fn life(spec: &CertificateSigningRequestSpec, longest: Duration) -> Duration {
    let asked = spec.expiration_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
    asked.map_or(longest, |asked| asked.max(SHORTEST).min(longest))
}

/// When an old request goes, if it does.
fn expiry(request: &CertificateSigningRequest) -> Option<Timestamp> {
    let since = |c: &CertificateSigningRequestCondition| c.last_update_time.as_ref().map(|t| t.0);
    let created = request.metadata.creation_timestamp.as_ref().map(|t| t.0)?;
    let approved = condition(request, "Approved");
    let (from, kept) = match (approved, condition(request, "Denied"), condition(request, "Failed")) {
        (_, Some(denied), _) => (since(denied).unwrap_or(created), ANSWERED),
        (Some(approved), ..) if has_certificate(request) => (since(approved).unwrap_or(created), ANSWERED),
        (_, _, Some(failed)) => (since(failed).unwrap_or(created), ANSWERED),
        _ => (created, PENDING),
    };
    from.checked_add(kept.max(HOUR)).ok()
}

fn is_open(request: &CertificateSigningRequest) -> bool {
    condition(request, "Denied").is_none()
        && condition(request, "Failed").is_none()
        && !has_certificate(request)
}

/// Starts the controller that approves.
pub(crate) fn run_approver(cx: &Context) -> BoxFuture<'static, ()> {
    let requests = cx.informers.get::<CertificateSigningRequest>();
    let client = cx.client(DESCRIPTOR.name);
    let reconciler = Arc::new(Approver {
        requests: requests.clone(),
        api: client.api(),
        client,
        reader: cx.config.signer.clone(),
        clock: cx.clock.clone(),
    });
    Controller::new(DESCRIPTOR).watch_primary(&requests).run(reconciler).boxed()
}

/// Starts the controller that signs.
pub(crate) fn run_signer(cx: &Context) -> BoxFuture<'static, ()> {
    let requests = cx.informers.get::<CertificateSigningRequest>();
    let reconciler = Arc::new(Signer {
        requests: requests.clone(),
        api: cx.client(DESCRIPTOR.name).api(),
        signer: cx.config.signer.clone(),
        longest: cx.config.certificate_life,
        clock: cx.clock.clone(),
    });
    Controller::new(DESCRIPTOR).watch_primary(&requests).run(reconciler).boxed()
}

/// Starts the controller that removes old requests.
pub(crate) fn run_cleaner(cx: &Context) -> BoxFuture<'static, ()> {
    let requests = cx.informers.get::<CertificateSigningRequest>();
    let api = cx.client(DESCRIPTOR.name).api();
    let reconciler = Arc::new(Cleaner { requests: requests.clone(), api, clock: cx.clock.clone() });
    Controller::new(DESCRIPTOR).watch_primary(&requests).run(reconciler).boxed()
}

struct Cleaner {
    requests: Informer<CertificateSigningRequest>,
    api: Api<CertificateSigningRequest>,
    clock: Clock,
}

#[async_trait]
impl Reconciler for Cleaner {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(request) = self.requests.get("", &key.name) else { return Ok(Action::AwaitChange) };
        let Some(at) = expiry(&request) else { return Ok(Action::AwaitChange) };
        let left = Duration::try_from(at.duration_since(self.clock.now())).unwrap_or_default();
        if !left.is_zero() {
            return Ok(Action::RequeueAfter(left));
        }
        let options = DeleteOptions { uid: request.metadata.uid.clone(), ..DeleteOptions::default() };
        ignore_not_found(self.api.delete("", name_of(&*request), options).await)?;
        Ok(Action::AwaitChange)
    }
}

struct Approver {
    requests: Informer<CertificateSigningRequest>,
    api: Api<CertificateSigningRequest>,
    client: Client,
    reader: Option<Arc<dyn CertificateSigner>>,
    clock: Clock,
}

#[async_trait]
impl Reconciler for Approver {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(request) = self.requests.get("", &key.name) else { return Ok(Action::AwaitChange) };
        if is_open(&request) && condition(&request, "Approved").is_none() {
            self.approve(&request).await?;
        }
        Ok(Action::AwaitChange)
    }
}

struct Signer {
    requests: Informer<CertificateSigningRequest>,
    api: Api<CertificateSigningRequest>,
    signer: Option<Arc<dyn CertificateSigner>>,
    longest: Duration,
    clock: Clock,
}

#[async_trait]
impl Reconciler for Signer {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(request) = self.requests.get("", &key.name) else { return Ok(Action::AwaitChange) };
        if is_open(&request) && condition(&request, "Approved").is_some() {
            self.sign(&request).await?;
        }
        Ok(Action::AwaitChange)
    }
}

impl Approver {
    async fn approve(&self, request: &Arc<CertificateSigningRequest>) -> Result<(), Status> {
        let spec = &request.spec;
        let Some(reader) = &self.reader else { return Ok(()) };
        if spec.signer_name != KUBELET_CLIENT {
            return Ok(());
        }
        let asked = reader.read(&spec.request.0).map_err(Status::internal)?;
        if fault_of_kubelet_client(&asked, spec).is_some() {
            return Ok(());
        }
        let own = spec.username.as_deref() == Some(&asked.common_name);
        let ways = [
            (
                own,
                "selfnodeclient",
                "Auto approving self kubelet client certificate after SubjectAccessReview.",
            ),
            (true, "nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."),
        ];
        for (_, subresource, message) in ways.into_iter().filter(|(applies, ..)| *applies) {
            if !self.allowed(spec, subresource).await? {
                continue;
            }
            let mut changed = (**request).clone();
            let new = new_condition("Approved", "AutoApproved", message, self.clock.now());
            changed.status.get_or_insert_default().conditions.get_or_insert_default().push(new);
            self.api.update_subresource("", "approval", changed).await?;
            return Ok(());
        }
        Ok(())
    }

    async fn allowed(&self, spec: &CertificateSigningRequestSpec, subresource: &str) -> Result<bool, Status> {
        let review = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
            "user": spec.username, "uid": spec.uid, "groups": spec.groups, "extra": spec.extra,
            "resourceAttributes": { "group": "certificates.k8s.io", "resource": "certificatesigningrequests",
                "verb": "create", "subresource": subresource, "version": "*" } } });
        let request = ApiRequest {
            resource: ResourceId::of::<SubjectAccessReview>(),
            namespace: String::new(),
            name: String::new(),
            subresource: "",
            verb: Verb::Create(Body::Json(review), self.client.write_options()),
        };
        match self.client.request(request).await? {
            ApiResponse::Object(answer) => {
                Ok(answer.to_value().pointer("/status/allowed") == Some(&serde_json::Value::Bool(true)))
            }
            _ => Ok(false),
        }
    }
}

impl Signer {
    async fn sign(&self, request: &Arc<CertificateSigningRequest>) -> Result<(), Status> {
        let spec = &request.spec;
        let Some(signer) = &self.signer else { return Ok(()) };
        if ![KUBELET_CLIENT, KUBELET_SERVING, CLIENT, LEGACY].contains(&spec.signer_name.as_str()) {
            return Ok(());
        }
        let now = self.clock.now();
        let mut changed = (**request).clone();
        let status = changed.status.get_or_insert_default();
        let asked = signer.read(&spec.request.0).map_err(Status::internal)?;
        if let Some(fault) = fault(&asked, spec) {
            // A signer that refuses says so, except the old one, which never did.
            let new = new_condition("Failed", "SignerValidationFailure", fault, now);
            status.conditions.get_or_insert_default().push(new);
        } else {
            let usages = spec.usages.clone().unwrap_or_default();
            let pem = signer
                .sign(&spec.request.0, &usages, life(spec, self.longest), now)
                .map_err(Status::internal)?;
            status.certificate = Some(ByteString(pem.into_bytes()));
        }
        match self.api.update_status("", changed).await {
            Err(status) if status.reason() != Reason::NotFound => Err(status),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(signer: &str, usages: &[&str]) -> CertificateSigningRequestSpec {
        CertificateSigningRequestSpec {
            signer_name: signer.to_owned(),
            usages: Some(usages.iter().map(|usage| (*usage).to_owned()).collect()),
            username: Some("system:node:n".to_owned()),
            ..CertificateSigningRequestSpec::default()
        }
    }

    fn node() -> CertificateRequest {
        CertificateRequest {
            common_name: "system:node:n".into(),
            organizations: vec!["system:nodes".into()],
            ..CertificateRequest::default()
        }
    }

    #[test]
    fn each_signer_signs_only_what_it_is_for() {
        let client = ["digital signature", "client auth"];
        let server = ["digital signature", "key encipherment", "server auth"];
        assert_eq!(fault(&node(), &spec(KUBELET_CLIENT, &client)), None);
        assert!(fault(&node(), &spec(KUBELET_CLIENT, &server)).is_some());
        let stranger = CertificateRequest { organizations: vec!["system:masters".into()], ..node() };
        assert!(fault(&stranger, &spec(KUBELET_CLIENT, &client)).is_some());
        assert!(fault(&node(), &spec(KUBELET_SERVING, &server)).is_some(), "needs a name");
        let named = CertificateRequest { dns_names: vec!["n".into()], ..node() };
        assert_eq!(fault(&named, &spec(KUBELET_SERVING, &server)), None);
        assert_eq!(fault(&node(), &spec(CLIENT, &["client auth"])), None);
        assert!(fault(&node(), &spec(CLIENT, &["client auth", "cert sign"])).is_some());
    }

    #[test]
    fn answered_requests_go_after_an_hour_and_others_after_a_day() {
        let at = |second| Timestamp::from_second(second).expect("in range");
        let mut request = CertificateSigningRequest::default();
        request.metadata.creation_timestamp = Some(Time(at(0)));
        assert_eq!(expiry(&request), Some(at(24 * 3600)));
        let denied = new_condition("Denied", "No", "", at(600));
        request.status.get_or_insert_default().conditions = Some(vec![denied]);
        assert_eq!(expiry(&request), Some(at(4200)));
    }

    #[test]
    fn certificates_live_between_ten_minutes_and_the_longest_life() {
        let longest = Duration::from_secs(365 * 24 * 3600);
        let asked = |seconds| {
            let spec = CertificateSigningRequestSpec { expiration_seconds: seconds, ..Default::default() };
            life(&spec, longest)
        };
        assert_eq!(asked(None), longest);
        assert_eq!(asked(Some(i32::MAX)), longest);
        assert_eq!(asked(Some(60)).as_secs(), 600);
        assert_eq!(asked(Some(7200)).as_secs(), 7200);
    }
}
