//! Certificates: a CA, what it issues, and when a certificate expires. ECDSA P-256, PEM.

use std::net::IpAddr;
use std::time::Duration;

use coracle_stdx::Clock;
use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};

use crate::private_key::pkcs8;

/// Days a CA is valid, as kubeadm's.
const CA_DAYS: i64 = 3650;
/// Certificates are valid from a little earlier on, for clocks that lag behind.
const BACKDATE: i64 = 300;

/// Why a certificate could not be made or read.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct PkiError(String);

impl From<rcgen::Error> for PkiError {
    fn from(error: rcgen::Error) -> Self {
        Self(format!("certificate: {error}"))
    }
}

impl PkiError {
    pub(crate) fn of(why: String) -> Self {
        Self(why)
    }
}

/// A certificate and its private key, PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pem {
    /// The certificate.
    pub cert: String,
    /// The private key, PKCS#8.
    pub key: String,
}

/// What to issue.
#[derive(Clone, Debug, Default)]
pub struct Issue {
    /// CN: the user name of a client.
    pub common_name: String,
    /// O: the groups of a client; at most two.
    pub organizations: Vec<String>,
    /// Names a server is reached by.
    pub dns_names: Vec<String>,
    /// Addresses a server is reached by.
    pub ip_addresses: Vec<IpAddr>,
    /// For a server.
    pub server: bool,
    /// For a client.
    pub client: bool,
    /// Days of validity.
    pub days: i64,
}

/// A certificate authority: its certificate and key.
pub struct CertificateAuthority {
    cert_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CertificateAuthority")
    }
}

impl CertificateAuthority {
    /// Makes a new authority named `cn`, valid for ten years.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn create(cn: &str, clock: &Clock) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = params(cn, &[], CA_DAYS, clock);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::KeyCertSign,
        ];
        let cert_pem = params.self_signed(&key)?.pem();
        let key_pem = key.serialize_pem();
        Ok(Self { issuer: Issuer::new(params, key), cert_pem, key_pem })
    }

    /// Reads an authority from PEM.
    ///
    /// # Errors
    /// When either is not readable, or they do not belong together.
    pub fn load(cert_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let key_pem = pkcs8(key_pem).map_err(|e| PkiError(format!("CA key: {e}")))?;
        let key = KeyPair::from_pem(&key_pem).map_err(|e| PkiError(format!("CA key: {e}")))?;
        let der = first_der(cert_pem)?;
        let (_, cert) = x509_parser::parse_x509_certificate(&der)
            .map_err(|e| PkiError(format!("CA certificate: {e}")))?;
        if cert.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(PkiError("the CA key does not belong to the CA certificate".into()));
        }
        if !cert.is_ca() {
            return Err(PkiError("the certificate is not one of a CA".into()));
        }
        let issuer = Issuer::from_ca_cert_pem(cert_pem, key)?;
        Ok(Self { issuer, cert_pem: cert_pem.into(), key_pem })
    }

    /// The authority's certificate.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The authority's private key.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Signs a request as it stands; the certificate, PEM.
    pub(crate) fn sign(&self, request: &rcgen::CertificateSigningRequestParams) -> Result<String, PkiError> {
        Ok(request.signed_by(&self.issuer)?.pem())
    }

    /// Issues a certificate with a new key.
    ///
    /// # Errors
    /// When a DNS name is not ASCII, or the system gives no randomness.
    pub fn issue(&self, issue: Issue, clock: &Clock) -> Result<Pem, PkiError> {
        if issue.organizations.len() > 2 {
            return Err(PkiError("a certificate names at most two organizations".into()));
        }
        let key = KeyPair::generate()?;
        let mut params = params(&issue.common_name, &issue.organizations, issue.days, clock);
        for name in issue.dns_names {
            let name =
                name.clone().try_into().map_err(|_| PkiError(format!("DNS name {name:?} is not ASCII")))?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params.subject_alt_names.extend(issue.ip_addresses.into_iter().map(SanType::IpAddress));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        if issue.server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if issue.client {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Pem { cert: cert.pem(), key: key.serialize_pem() })
    }
}

fn params(cn: &str, organizations: &[String], days: i64, clock: &Clock) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    // rcgen keeps one value per attribute type; `issue` refuses more than these two.
    let types = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
    for (organization, ty) in organizations.iter().zip(types) {
        name.push(ty, organization.as_str());
    }
    name.push(DnType::CommonName, cn);
    params.distinguished_name = name;
    let epoch = date_time_ymd(1970, 1, 1);
    let after = |seconds: i64| Duration::from_secs(seconds.max(0).unsigned_abs());
    let now = clock.now().as_second();
    params.not_before = epoch + after(now - BACKDATE);
    params.not_after = epoch + after(now + days * 86_400);
    params
}

/// A new private key (ECDSA P-256, PKCS#8 PEM), e.g. to sign service account tokens.
///
/// # Errors
/// When the system gives no randomness.
pub fn generate_key() -> Result<String, PkiError> {
    Ok(KeyPair::generate()?.serialize_pem())
}

/// Whether both are readable and the key is that of the (first) certificate.
pub fn belong_together(cert_pem: &str, key_pem: &str) -> bool {
    let key = pkcs8(key_pem).map(|key_pem| KeyPair::from_pem(&key_pem));
    let (Ok(Ok(key)), Ok(der)) = (key, first_der(cert_pem)) else { return false };
    x509_parser::parse_x509_certificate(&der)
        .is_ok_and(|(_, c)| c.public_key().subject_public_key.data.as_ref() == key.public_key_raw())
}

/// When the first certificate of a PEM text expires.
///
/// # Errors
/// When it is not a certificate.
pub fn not_after(cert_pem: &str) -> Result<Timestamp, PkiError> {
    let der = first_der(cert_pem)?;
    let (_, cert) =
        x509_parser::parse_x509_certificate(&der).map_err(|e| PkiError(format!("certificate: {e}")))?;
    Timestamp::from_second(cert.validity().not_after.timestamp()).map_err(|e| PkiError(e.to_string()))
}

/// The first certificate of a PEM text, DER.
///
/// # Errors
/// When there is none.
pub fn first_der(cert_pem: &str) -> Result<Vec<u8>, PkiError> {
    for pem in x509_parser::pem::Pem::iter_from_buffer(cert_pem.as_bytes()) {
        let pem = pem.map_err(|e| PkiError(format!("certificate: {e}")))?;
        if pem.label == "CERTIFICATE" {
            return Ok(pem.contents);
        }
    }
    Err(PkiError("no CERTIFICATE block in the PEM text".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issued_certificate_expires_after_its_days_and_loads_with_its_authority() {
        let start = Timestamp::from_second(1_700_000_000).expect("a time");
        let clock = Clock::from_fn(move || start);
        let ca = CertificateAuthority::create("kubernetes", &clock).expect("a CA");
        let again = CertificateAuthority::load(ca.cert_pem(), ca.key_pem()).expect("loads");
        let issue = Issue { common_name: "x".into(), days: 2, client: true, ..Issue::default() };
        let pem = again.issue(issue, &clock).expect("issues");
        assert_eq!(not_after(&pem.cert).expect("expiry").as_second(), 1_700_000_000 + 2 * 86_400);
        let other = CertificateAuthority::create("other", &clock).expect("a CA");
        assert!(CertificateAuthority::load(ca.cert_pem(), other.key_pem()).is_err());
        assert!(CertificateAuthority::load(&pem.cert, &pem.key).is_err(), "not a CA");
        assert!(not_after("nonsense").is_err());
    }
}
