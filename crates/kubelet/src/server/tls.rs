//! TLS of the kubelet's server, and who is calling.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::{KubeletConfig, KubeletError};

/// Name of the API server's client certificate.
const API_SERVER: &str = "kube-apiserver-kubelet-client";
/// The group that may do everything.
const MASTERS: &str = "system:masters";

/// Who is calling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The API server or an administrator.
    ApiServer,
    /// Somebody with a certificate of the cluster.
    Other {
        /// Common name.
        name: String,
        /// Organizations.
        groups: Vec<String>,
    },
    /// No certificate.
    Anonymous,
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, KubeletError> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| KubeletError::Certificates(e.to_string()))
}

/// The server side of TLS: our certificate, client certificates asked for and checked, but not required (a
/// caller without gets 401).
///
/// # Errors
/// Certificates that cannot be read.
pub fn acceptor(config: &KubeletConfig) -> Result<TlsAcceptor, KubeletError> {
    let bad = |e: String| KubeletError::Certificates(e);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for cert in certificates(&config.client_ca_pem)? {
        roots.add(cert).map_err(|e| bad(e.to_string()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| bad(e.to_string()))?;
    let key =
        PrivateKeyDer::from_pem_slice(config.server_key_pem.as_bytes()).map_err(|e| bad(e.to_string()))?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad(e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&config.server_cert_pem)?, key)
        .map_err(|e| bad(e.to_string()))?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

/// The caller by its (already verified) certificate.
pub fn caller(certificates: Option<&[CertificateDer<'_>]>) -> Caller {
    let Some(first) = certificates.and_then(<[_]>::first) else { return Caller::Anonymous };
    let Ok((_, cert)) = X509Certificate::from_der(first) else { return Caller::Anonymous };
    let subject = cert.subject();
    let name = subject.iter_common_name().next().and_then(|n| n.as_str().ok()).unwrap_or("");
    let groups: Vec<String> =
        subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    if name == API_SERVER || groups.iter().any(|g| g == MASTERS) {
        return Caller::ApiServer;
    }
    Caller::Other { name: name.to_owned(), groups }
}
