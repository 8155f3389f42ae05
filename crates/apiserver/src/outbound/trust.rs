//! Whom a connection trusts and as whom it shows itself, and what is said when a certificate is not believed.

use std::sync::{Arc, OnceLock};

use coracle_stdx::AnyCertificate;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::config::Tls;
use crate::http::tls;

/// Where systems keep the authorities that they trust, first found first used; the list is Go's.
const SYSTEM: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Whom a connection trusts and as whom it shows itself.
#[derive(Clone, Copy, Default)]
pub(crate) struct Trust<'a> {
    /// PEM of the authorities; without, the system's.
    pub(crate) ca: Option<&'a [u8]>,
    /// Whether any certificate will do.
    pub(crate) insecure: bool,
    /// The certificate to show when asked for one.
    pub(crate) identity: Option<&'a Tls>,
    /// Whether HTTP/2 may be spoken.
    pub(crate) http2: bool,
}

impl Trust<'_> {
    /// The TLS side of it.
    ///
    /// # Errors
    /// What cannot be used, in the words of client-go.
    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>, String> {
        let ca = self.ca.filter(|ca| !ca.is_empty());
        if self.insecure && ca.is_some() {
            return Err("specifying a root certificates file with the insecure flag is not allowed".into());
        }
        let builder = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?;
        let verifier: Arc<dyn ServerCertVerifier> = match ca {
            _ if self.insecure => Arc::new(AnyCertificate),
            Some(pem) => Arc::new(Named::new(read(pem)?)?),
            None => system()?,
        };
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let mut config = match self.identity {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let chain = tls::certs(&own.cert_pem, "client certificate").map_err(|e| e.to_string())?;
                let key = tls::key(&own.key_pem, "client key").map_err(|e| e.to_string())?;
                builder.with_client_auth_cert(chain, key).map_err(|e| e.to_string())?
            }
        };
        if self.http2 {
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        }
        Ok(Arc::new(config))
    }
}

fn read(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = String::from_utf8_lossy(pem);
    let certs = tls::certs(&text, "CA bundle");
    certs.map_err(|_| "unable to load root certificates: unable to parse bytes as PEM block".to_owned())
}

/// The verifier with the system's authorities, read once per process.
fn system() -> Result<Arc<dyn ServerCertVerifier>, String> {
    static READ: OnceLock<Result<Arc<Named>, String>> = OnceLock::new();
    let made = READ.get_or_init(|| {
        let text = SYSTEM.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default();
        let certs = read(&text).unwrap_or_default();
        Named::new(certs).map(Arc::new)
    });
    made.clone().map(|verifier| verifier as Arc<dyn ServerCertVerifier>)
}

/// Believes what leads to the given authorities, and a certificate that is itself one of those given: Go takes a
/// self-signed certificate as its own authority also when it is marked as one.
#[derive(Debug)]
struct Named {
    /// None without any authority: nothing is believed then.
    chain: Option<Arc<WebPkiServerVerifier>>,
    roots: Vec<CertificateDer<'static>>,
}

impl Named {
    fn new(certs: Vec<CertificateDer<'static>>) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        let (added, _) = store.add_parsable_certificates(certs.iter().cloned());
        if added == 0 {
            return Ok(Self { chain: None, roots: Vec::new() });
        }
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(store), tls::provider()).build();
        Ok(Self { chain: Some(chain.map_err(|e| e.to_string())?), roots: certs })
    }
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Err(CertificateError::UnknownIssuer.into()) };
        match chain.verify_server_cert(own, others, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_)))
                if self.roots.iter().any(|root| root.as_ref() == own.as_ref()) =>
            {
                let own = ParsedCertificate::try_from(own)?;
                rustls::client::verify_server_name(&own, name)?;
                Ok(ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = &tls::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signature, schemes)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = &tls::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signature, schemes)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A failed handshake as Go tells it.
pub(super) fn words(e: &std::io::Error, name: &ServerName<'_>) -> String {
    let Some(error) = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) else {
        return match e.kind() {
            std::io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
            std::io::ErrorKind::ConnectionReset => "read: connection reset by peer".to_owned(),
            _ => e.to_string(),
        };
    };
    match error {
        rustls::Error::InvalidCertificate(why) => {
            format!("tls: failed to verify certificate: x509: {}", disbelief(why, name))
        }
        rustls::Error::InvalidMessage(_) => "http: server gave HTTP response to HTTPS client".to_owned(),
        rustls::Error::AlertReceived(alert) => {
            let alert = format!("{alert:?}");
            let mut words = String::new();
            for c in alert.chars() {
                if c.is_ascii_uppercase() && !words.is_empty() {
                    words.push(' ');
                }
                words.push(c.to_ascii_lowercase());
            }
            format!("remote error: tls: {words}")
        }
        other => format!("tls: {other}"),
    }
}

fn disbelief(why: &CertificateError, name: &ServerName<'_>) -> String {
    let name = match name {
        ServerName::DnsName(name) => name.as_ref().to_owned(),
        ServerName::IpAddress(ip) => std::net::IpAddr::from(*ip).to_string(),
        other => format!("{other:?}"),
    };
    let expired = "certificate has expired or is not yet valid: current time";
    let time = |t: &UnixTime| {
        let second = i64::try_from(t.as_secs()).unwrap_or(i64::MAX);
        jiff::Timestamp::from_second(second).unwrap_or_default()
    };
    match why {
        CertificateError::NotValidForNameContext { presented, .. } => mismatch(presented, &name),
        CertificateError::ExpiredContext { time: now, not_after } => {
            format!("{expired} {} is after {}", time(now), time(not_after))
        }
        CertificateError::NotValidYetContext { time: now, not_before } => {
            format!("{expired} {} is before {}", time(now), time(not_before))
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature | CertificateError::Other(_) => {
            "certificate signed by unknown authority".to_owned()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "certificate specifies an incompatible key usage".to_owned()
        }
        other => format!("{other:?}"),
    }
}

/// `presented`: names as rustls shows them, e.g. `DnsName("a.b")` or `IpAddress(10.0.0.1)`.
fn mismatch(presented: &[String], name: &str) -> String {
    let is_ip = name.parse::<std::net::IpAddr>().is_ok();
    let of_kind = if is_ip { "IpAddress(" } else { "DnsName(" };
    let names: Vec<&str> = presented
        .iter()
        .filter_map(|p| Some(p.strip_prefix(of_kind)?.strip_suffix(')')?.trim_matches('"')))
        .collect();
    match (names.is_empty(), is_ip) {
        (false, _) => format!("certificate is valid for {}, not {name}", names.join(", ")),
        (true, true) => {
            format!("cannot validate certificate for {name} because it doesn't contain any IP SANs")
        }
        (true, false) => format!("certificate is not valid for any names, but wanted to match {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_that_is_none_and_contradictory_trust_are_refused_in_upstreams_words() {
        let error = Trust { ca: Some(b"junk"), ..Trust::default() }.config().expect_err("no PEM");
        assert_eq!(error, "unable to load root certificates: unable to parse bytes as PEM block");
        let both = Trust { ca: Some(b"x"), insecure: true, ..Trust::default() };
        assert!(both.config().expect_err("contradictory").starts_with("specifying a root certificates"));
    }

    #[test]
    fn a_certificate_for_other_names_is_refused_by_listing_them() {
        let names = ["DnsName(\"a.svc\")".to_owned(), "IpAddress(10.0.0.1)".to_owned()];
        assert_eq!(mismatch(&names, "b.svc"), "certificate is valid for a.svc, not b.svc");
        assert_eq!(mismatch(&names, "10.0.0.2"), "certificate is valid for 10.0.0.1, not 10.0.0.2");
        let none = "certificate is not valid for any names, but wanted to match b.svc";
        assert_eq!(mismatch(&[], "b.svc"), none);
    }
}
