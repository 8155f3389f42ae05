//! TLS of the serving side.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

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

/// The serving configuration; client certificates are asked for when a CA is given, not required.
pub(crate) fn server_config(tls: &Tls, client_ca: Option<&str>) -> Result<ServerConfig, StartError> {
    let fail = |what: &'static str| move |e: rustls::Error| StartError::Tls { what, why: e.to_string() };
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(fail("TLS versions"))?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let roots = Arc::new(roots(pem, "client CA")?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                .allow_unauthenticated()
                .build()
                .map_err(|e| StartError::Tls { what: "client CA", why: e.to_string() })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let chain = certs(&tls.cert_pem, "serving certificate")?;
    let key = key(&tls.key_pem, "serving key")?;
    let mut config = builder.with_single_cert(chain, key).map_err(fail("serving certificate"))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Checks that certificates and keys can be used, before anything else is started.
///
/// # Errors
/// [`StartError::Tls`].
pub(crate) fn check(tls: &Tls, client_ca: Option<&str>) -> Result<(), StartError> {
    server_config(tls, client_ca).map(drop)
}
