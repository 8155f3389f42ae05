//! Signs for controllers: certificate requests with the cluster's CA, tokens with the service accounts' key.

use std::time::Duration;

use coracle_auth::csr;
use coracle_auth::pki::CertificateAuthority;
use coracle_auth::service_account::TokenIssuer;
use coracle_controllers::TokenSigner;
use coracle_controllers::certificates::{CertificateRequest, CertificateSigner};
use jiff::Timestamp;

/// The CA of the cluster's directory.
pub struct ClusterSigner(pub CertificateAuthority);

fn text(pem: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(pem).map_err(|e| e.to_string())
}

impl CertificateSigner for ClusterSigner {
    fn read(&self, request_pem: &[u8]) -> Result<CertificateRequest, String> {
        let asked = csr::read(text(request_pem)?).map_err(|e| e.to_string())?;
        Ok(CertificateRequest {
            common_name: asked.common_name,
            organizations: asked.organizations,
            dns_names: asked.dns_names,
            ip_addresses: asked.ip_addresses.iter().map(ToString::to_string).collect(),
            has_other_names: asked.has_other_names,
        })
    }

    fn sign(
        &self,
        request_pem: &[u8],
        usages: &[String],
        life: Duration,
        now: Timestamp,
    ) -> Result<String, String> {
        csr::sign(&self.0, text(request_pem)?, usages, life, now).map_err(|e| e.to_string())
    }
}

/// The key of the service accounts' tokens.
pub struct TokenKey(pub TokenIssuer);

impl TokenSigner for TokenKey {
    fn sign(&self, namespace: &str, account: &str, uid: &str, secret: &str) -> String {
        self.0.issue_legacy(namespace, account, uid, secret)
    }
}
