//! CertificateSubjectRestriction: no client certificate in the group of the cluster's masters.

use async_trait::async_trait;
use coracle_auth::SYSTEM_MASTERS;
use coracle_meta::Status;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;

use crate::{Environment, Operation, Plugin, Request};

/// The signer of client certificates for people and programs.
const SIGNER: &str = "kubernetes.io/kube-apiserver-client";

/// The plugin.
pub(super) struct CertificateSubjectRestriction;

#[async_trait]
impl Plugin for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.operation == Operation::Create
            && request.is("certificates.k8s.io", "certificatesigningrequests")
    }

    async fn validate(&self, _: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        let Some(csr) = request.object_as::<CertificateSigningRequest>() else { return Ok(()) };
        refused(csr).map_or(Ok(()), |why| Err(request.forbidden(&why)))
    }
}

/// Why the request is refused, if it is.
fn refused(csr: &CertificateSigningRequest) -> Option<String> {
    if csr.spec.signer_name != SIGNER {
        return None;
    }
    match coracle_resources::requested_organizations(&csr.spec.request.0) {
        Err(why) => Some(format!("failed to parse CSR: {why}")),
        Ok(groups) if groups.iter().any(|group| group == SYSTEM_MASTERS) => {
            Some(format!("use of {SIGNER} signer with {SYSTEM_MASTERS} group is not allowed"))
        }
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    /// `openssl req -new -newkey ec -subj /O=system:masters/CN=x`.
    const MASTERS: &str = "\
-----BEGIN CERTIFICATE REQUEST-----
MIHfMIGHAgEAMCUxFzAVBgNVBAoMDnN5c3RlbTptYXN0ZXJzMQowCAYDVQQDDAF4
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEp6t2csk21aA6eAnuQ91AEhJ64njT
YcC5Uc1pz6+2zsX6ljJnrVwuE8HwpR+54e9RFqZRZ7OHLJX9YO1D3rgb86AAMAoG
CCqGSM49BAMCA0cAMEQCIGXG4YhdayWWFtjNEFP4kFQQiLPSShYFyxnjw38OiYaM
AiBmuftOytqyLWiRFktB9rlxZC2pInKTTehRFvlfnE0RjA==
-----END CERTIFICATE REQUEST-----
";

    fn csr(signer: &str, request: &str) -> CertificateSigningRequest {
        let mut csr = CertificateSigningRequest::default();
        csr.spec.signer_name = signer.to_owned();
        csr.spec.request = ByteString(request.as_bytes().to_vec());
        csr
    }

    #[test]
    fn a_client_certificate_of_the_masters_is_refused() {
        let why = refused(&csr(SIGNER, MASTERS)).expect("a refusal");
        assert!(why.ends_with("signer with system:masters group is not allowed"), "{why}");
    }

    #[test]
    fn other_signers_decide_for_themselves() {
        assert_eq!(refused(&csr("example.com/s", MASTERS)), None);
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let why = refused(&csr(SIGNER, "none")).expect("a refusal");
        assert_eq!(why, "failed to parse CSR: PEM block type must be CERTIFICATE REQUEST");
    }
}
