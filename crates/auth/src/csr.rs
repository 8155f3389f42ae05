//! Certificates on request: reads PKCS#10 requests and signs them.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    CertificateSigningRequestParams, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    SanType, date_time_ymd,
};

use crate::pki::{CertificateAuthority, PkiError};

/// What a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// CN.
    pub common_name: String,
    /// O.
    pub organizations: Vec<String>,
    /// DNS names.
    pub dns_names: Vec<String>,
    /// Addresses.
    pub ip_addresses: Vec<IpAddr>,
    /// Whether it asks for e-mail addresses or URIs.
    pub has_other_names: bool,
}

fn parse(pem: &str) -> Result<CertificateSigningRequestParams, PkiError> {
    CertificateSigningRequestParams::from_pem(pem).map_err(PkiError::from)
}

fn text(value: &DnValue) -> String {
    match value {
        DnValue::Utf8String(text) => text.clone(),
        DnValue::PrintableString(text) => text.as_str().to_owned(),
        DnValue::Ia5String(text) => text.as_str().to_owned(),
        other => format!("{other:?}"),
    }
}

/// What a request (PEM) asks for.
///
/// # Errors
/// Not a request, or its signature is not of its key.
pub fn read(pem: &str) -> Result<Asked, PkiError> {
    let params = parse(pem)?.params;
    let mut asked = Asked::default();
    for (kind, value) in params.distinguished_name.iter() {
        match kind {
            DnType::CommonName => asked.common_name = text(value),
            DnType::OrganizationName => asked.organizations.push(text(value)),
            _ => {}
        }
    }
    for name in &params.subject_alt_names {
        match name {
            SanType::DnsName(name) => asked.dns_names.push(name.as_str().to_owned()),
            SanType::IpAddress(address) => asked.ip_addresses.push(*address),
            _ => asked.has_other_names = true,
        }
    }
    Ok(asked)
}

/// The certificate for a request (PEM), with these usages as the API names them.
///
/// # Errors
/// A request that cannot be read, or an unknown usage.
pub fn sign(
    authority: &CertificateAuthority,
    pem: &str,
    usages: &[String],
    life: Duration,
    now: Timestamp,
) -> Result<String, PkiError> {
    let mut request = parse(pem)?;
    let params = &mut request.params;
    let epoch = date_time_ymd(1970, 1, 1);
    let seconds = now.as_second().max(300).unsigned_abs();
    params.not_before = epoch + Duration::from_secs(seconds - 300);
    params.not_after = epoch + Duration::from_secs(seconds) + life;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages.clear();
    params.extended_key_usages.clear();
    for usage in usages {
        match usage.as_str() {
            "signing" | "digital signature" => params.key_usages.push(KeyUsagePurpose::DigitalSignature),
            "content commitment" => params.key_usages.push(KeyUsagePurpose::ContentCommitment),
            "key encipherment" => params.key_usages.push(KeyUsagePurpose::KeyEncipherment),
            "key agreement" => params.key_usages.push(KeyUsagePurpose::KeyAgreement),
            "data encipherment" => params.key_usages.push(KeyUsagePurpose::DataEncipherment),
            "client auth" => params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth),
            "server auth" => params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth),
            "code signing" => params.extended_key_usages.push(ExtendedKeyUsagePurpose::CodeSigning),
            "email protection" => params.extended_key_usages.push(ExtendedKeyUsagePurpose::EmailProtection),
            "timestamping" => params.extended_key_usages.push(ExtendedKeyUsagePurpose::TimeStamping),
            "any" => params.extended_key_usages.push(ExtendedKeyUsagePurpose::Any),
            other => return Err(PkiError::of(format!("unknown usage {other:?}"))),
        }
    }
    authority.sign(&request)
}

#[cfg(test)]
mod tests {
    use coracle_stdx::Clock;
    use rcgen::{CertificateParams, DistinguishedName, KeyPair};

    use super::*;

    #[test]
    fn a_request_is_read_and_signed_with_the_key_it_came_with() {
        let authority = CertificateAuthority::create("test", &Clock::system()).expect("an authority");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, "system:nodes");
        name.push(DnType::CommonName, "system:node:n");
        params.distinguished_name = name;
        let pem = params.serialize_request(&key).expect("a request").pem().expect("as text");
        let asked = read(&pem).expect("readable");
        assert_eq!(
            (asked.common_name.as_str(), asked.organizations),
            ("system:node:n", vec!["system:nodes".to_owned()])
        );
        let usages = ["digital signature".to_owned(), "client auth".to_owned()];
        let life = Duration::from_secs(3600);
        let cert = sign(&authority, &pem, &usages, life, Timestamp::now()).expect("signed");
        assert!(crate::pki::belong_together(&cert, &key.serialize_pem()));
        let end = crate::pki::not_after(&cert).expect("readable");
        assert!((end.duration_since(Timestamp::now()).as_secs() - 3600).abs() < 60);
        assert!(sign(&authority, &pem, &["fly".to_owned()], life, Timestamp::now()).is_err());
        assert!(read("nonsense").is_err());
    }
}
