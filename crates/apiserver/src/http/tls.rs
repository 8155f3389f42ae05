//! TLS of the serving side.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};

use crate::config::{StartError, Tls};

/// Certificate chain of PEM text.
pub(crate) fn certs(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, StartError> {
    let fail = |why: String| StartError::Tls { what, why };
    let certs: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| fail(e.to_string()))?;
    if certs.is_empty() { Err(fail("no certificate found in PEM".into())) } else { Ok(certs) }
}

/// Private key of PEM text.
pub(crate) fn key(pem: &str, what: &'static str) -> Result<PrivateKeyDer<'static>, StartError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| StartError::Tls { what, why: e.to_string() })
}

/// A root store of the CAs in PEM text.
pub(crate) fn roots(pem: &str, what: &'static str) -> Result<RootCertStore, StartError> {
    let mut store = RootCertStore::empty();
    for cert in certs(pem, what)? {
        store.add(cert).map_err(|e| StartError::Tls { what, why: e.to_string() })?;
    }
    Ok(store)
}

/// The rustls provider used throughout.
pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The serving configuration; client certificates are asked for when a CA is given, not required. Whether
/// one is believed is found afterwards with [`ClientCa::accepts`], so that a bad one is answered with 401.
fn server_config(tls: &Tls, client_ca: Option<&ClientCa>) -> Result<ServerConfig, StartError> {
    let fail = |what: &'static str| move |e: rustls::Error| StartError::Tls { what, why: e.to_string() };
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(fail("TLS versions"))?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => builder.with_client_cert_verifier(Arc::new(Deferred(ca.0.clone()))),
    };
    let chain = certs(&tls.cert_pem, "serving certificate")?;
    let key = key(&tls.key_pem, "serving key")?;
    let mut config = builder.with_single_cert(chain, key).map_err(fail("serving certificate"))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The CA of client certificates.
#[derive(Clone, Debug)]
pub(crate) struct ClientCa(Arc<dyn ClientCertVerifier>);

impl ClientCa {
    /// A CA of PEM text.
    ///
    /// # Errors
    /// [`StartError::Tls`] when it is not readable.
    pub(crate) fn new(pem: &str) -> Result<Self, StartError> {
        let roots = Arc::new(roots(pem, "client CA")?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .allow_unauthenticated()
            .build()
            .map_err(|e| StartError::Tls { what: "client CA", why: e.to_string() })?;
        Ok(Self(verifier))
    }

    /// Whether the chain that a client showed leads to this CA and is valid now.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn accepts(&self, chain: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        let Some((own, others)) = chain.split_first() else {
            return Err(rustls::Error::NoCertificatesPresented);
        };
        self.0.verify_client_cert(own, others, UnixTime::now()).map(drop)
    }
}

/// Lets every certificate through the handshake, which still proves that the client has its key.
#[derive(Debug)]
struct Deferred(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Deferred {
    fn client_auth_mandatory(&self) -> bool {
        false
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }
    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, signature)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, signature)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// What new connections are met with.
pub(crate) struct Serving {
    /// Certificate and key.
    pub(crate) config: Arc<ServerConfig>,
    /// Who vouches for clients.
    pub(crate) client_ca: Option<ClientCa>,
    /// Who vouches for proxies.
    pub(crate) proxy_ca: Option<ClientCa>,
}

impl Serving {
    /// Puts them together.
    ///
    /// # Errors
    /// [`StartError::Tls`] when one of them cannot be used.
    pub(crate) fn new(
        tls: &Tls,
        client_ca: Option<&str>,
        proxy_ca: Option<&str>,
    ) -> Result<Self, StartError> {
        let client_ca = client_ca.map(ClientCa::new).transpose()?;
        let proxy_ca = proxy_ca.map(ClientCa::new).transpose()?;
        let config = Arc::new(server_config(tls, client_ca.as_ref().or(proxy_ca.as_ref()))?);
        Ok(Self { config, client_ca, proxy_ca })
    }
}
