//! Which API server to drive: a kubeconfig, or an address with a token.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use coracle_stdx::AnyCertificate;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;

/// What went wrong, in one sentence.
pub type Failure = String;

/// How to reach a server.
#[derive(Clone, Debug)]
pub struct Target {
    /// Host as in the URL.
    pub host: String,
    /// Port.
    pub port: u16,
    /// TLS; absent for plain HTTP.
    pub tls: Option<Arc<ClientConfig>>,
    /// Header lines that every request has.
    headers: String,
    /// The server's processes on this machine, as far as they are known: what it costs is read from them.
    pub pids: Vec<u32>,
}

/// Options that name a server.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct TargetArgs {
    /// Kubeconfig whose current context is used.
    #[arg(long, env = "KUBECONFIG", conflicts_with = "server")]
    pub kubeconfig: Option<PathBuf>,
    /// Address, e.g. https://127.0.0.1:6443.
    #[arg(long)]
    pub server: Option<String>,
    /// Bearer token.
    #[arg(long, requires = "server")]
    pub token: Option<String>,
    /// CA of the server's certificate (PEM).
    #[arg(long, requires = "server")]
    pub ca: Option<PathBuf>,
    /// Do not check the server's certificate.
    #[arg(long, requires = "server")]
    pub insecure: bool,
    /// Process of the server on this machine: its processor time is reported. May be repeated.
    #[arg(long)]
    pub server_pid: Vec<u32>,
}

/// Certificates and trust, before they become a TLS configuration.
#[derive(Default)]
struct Trust {
    ca: Option<Vec<u8>>,
    insecure: bool,
    client: Option<(Vec<u8>, Vec<u8>)>,
}

impl Target {
    /// The server that the options name.
    ///
    /// # Errors
    /// Files that cannot be read or understood; neither a kubeconfig nor a server given.
    pub fn from_args(args: &TargetArgs) -> Result<Arc<Self>, Failure> {
        let target = match (&args.server, &args.kubeconfig) {
            (Some(server), _) => {
                let ca = args.ca.as_deref().map(read).transpose()?;
                let trust = Trust { ca, insecure: args.insecure, client: None };
                Self::new(server, args.token.as_deref(), &trust)?
            }
            (None, Some(path)) => Self::from_kubeconfig(path)?,
            (None, None) => {
                return Err("name a server: --kubeconfig FILE, or --server URL --token TOKEN".into());
            }
        };
        Ok(target.with_processes(args.server_pid.clone()))
    }

    /// The same server, whose processes are these.
    pub fn with_processes(&self, pids: Vec<u32>) -> Arc<Self> {
        Arc::new(Self { pids, ..self.clone() })
    }

    /// A server with a self-made certificate on this machine.
    ///
    /// # Errors
    /// A malformed URL.
    pub fn insecure(server: &str, token: &str, pids: &[u32]) -> Result<Arc<Self>, Failure> {
        let trust = Trust { insecure: true, ..Trust::default() };
        Ok(Self::new(server, Some(token), &trust)?.with_processes(pids.to_vec()))
    }

    /// The same server, as the user with another token.
    pub fn as_user(&self, token: &str) -> Arc<Self> {
        let others = self.headers.lines().filter(|line| !line.starts_with("Authorization:"));
        let mut headers: String = others.map(|line| format!("{line}\r\n")).collect();
        headers += &format!("Authorization: Bearer {token}\r\n");
        Arc::new(Self { headers, ..self.clone() })
    }

    /// Header lines that every request has.
    pub fn headers(&self) -> &str {
        &self.headers
    }

    fn new(server: &str, token: Option<&str>, trust: &Trust) -> Result<Self, Failure> {
        let uri: http::Uri = server.parse().map_err(|e| format!("server {server:?}: {e}"))?;
        let host = uri.host().ok_or_else(|| format!("server {server:?} names no host"))?.to_owned();
        let secure = uri.scheme_str() != Some("http");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let tls = if secure { Some(Arc::new(trust.config()?)) } else { None };
        let mut headers =
            format!("Host: {host}:{port}\r\nAccept: application/json\r\nUser-Agent: coracle-bench\r\n");
        if let Some(token) = token {
            headers += &format!("Authorization: Bearer {token}\r\n");
        }
        Ok(Self { host, port, tls, headers, pids: Vec::new() })
    }

    fn from_kubeconfig(path: &Path) -> Result<Self, Failure> {
        let text = String::from_utf8_lossy(&read(path)?).into_owned();
        let (server, token, trust) = parse_kubeconfig(&text, path.parent().unwrap_or(Path::new(".")))
            .map_err(|e| format!("kubeconfig {}: {e}", path.display()))?;
        Self::new(&server, token.as_deref(), &trust)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

impl Trust {
    fn config(&self) -> Result<ClientConfig, Failure> {
        let mut provider = rustls::crypto::ring::default_provider();
        // The cheapest cipher first, so that every server answers with the same one.
        provider.cipher_suites.sort_by_key(|s| s.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        let provider = Arc::new(provider);
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?;
        let builder = if self.insecure {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate))
        } else {
            let mut roots = RootCertStore::empty();
            for cert in CertificateDer::pem_slice_iter(self.ca.as_deref().unwrap_or_default()) {
                let cert = cert.map_err(|e| format!("CA certificate: {e}"))?;
                roots.add(cert).map_err(|e| format!("CA certificate: {e}"))?;
            }
            if roots.is_empty() {
                return Err("no CA certificate to check the server with; give --ca FILE or --insecure".into());
            }
            builder.with_root_certificates(roots)
        };
        let Some((cert, key)) = &self.client else { return Ok(builder.with_no_client_auth()) };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert).collect();
        let chain = chain.map_err(|e| format!("client certificate: {e}"))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| format!("client key: {e}"))?;
        builder.with_client_auth_cert(chain, key).map_err(|e| format!("client certificate: {e}"))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    contexts: Vec<Named<Context>>,
    #[serde(default)]
    clusters: Vec<Named<Cluster>>,
    #[serde(default)]
    users: Vec<Named<User>>,
}

#[derive(Deserialize)]
struct Named<T> {
    name: String,
    #[serde(alias = "context", alias = "cluster", alias = "user")]
    value: T,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    token: Option<String>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
}

fn find<'a, T>(list: &'a [Named<T>], name: &str, what: &str) -> Result<&'a T, Failure> {
    list.iter().find(|n| n.name == name).map(|n| &n.value).ok_or_else(|| format!("no {what} named {name:?}"))
}

/// Inline data, or the file, relative to the kubeconfig.
fn material(data: Option<&String>, file: Option<&PathBuf>, base: &Path) -> Result<Option<Vec<u8>>, Failure> {
    match (data, file) {
        (Some(data), _) => {
            let decoded = base64::engine::general_purpose::STANDARD.decode(data.trim());
            decoded.map(Some).map_err(|e| format!("base64 data: {e}"))
        }
        (None, Some(file)) => read(&base.join(file)).map(Some),
        (None, None) => Ok(None),
    }
}

fn parse_kubeconfig(text: &str, base: &Path) -> Result<(String, Option<String>, Trust), Failure> {
    let config: Kubeconfig = serde_yaml_ng::from_str(text).map_err(|e| e.to_string())?;
    let context = find(&config.contexts, &config.current_context, "context")?;
    let cluster = find(&config.clusters, &context.cluster, "cluster")?;
    let user = find(&config.users, &context.user, "user")?;
    let cert = material(user.client_certificate_data.as_ref(), user.client_certificate.as_ref(), base)?;
    let key = material(user.client_key_data.as_ref(), user.client_key.as_ref(), base)?;
    let ca_file = cluster.certificate_authority.as_ref();
    let trust = Trust {
        ca: material(cluster.certificate_authority_data.as_ref(), ca_file, base)?,
        insecure: cluster.insecure_skip_tls_verify,
        client: cert.zip(key),
    };
    Ok((cluster.server.clone(), user.token.clone(), trust))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubeconfig_gives_server_token_and_certificates() {
        let text = "
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: b, context: {cluster: x, user: x}}, {name: c, context: {cluster: k, user: u}}]
clusters: [{name: k, cluster: {server: 'https://127.0.0.1:6443', certificate-authority-data: Y2E=}}]
users: [{name: u, user: {token: t, client-certificate-data: Y2VydA==, client-key-data: a2V5}}]
";
        let (server, token, trust) = parse_kubeconfig(text, Path::new(".")).expect("parses");
        assert_eq!((server.as_str(), token.as_deref()), ("https://127.0.0.1:6443", Some("t")));
        assert_eq!(trust.ca.as_deref(), Some(&b"ca"[..]));
        assert_eq!(trust.client, Some((b"cert".to_vec(), b"key".to_vec())));
        assert!(!trust.insecure);
        let broken = text.replace("current-context: c", "current-context: d");
        assert_eq!(
            parse_kubeconfig(&broken, Path::new(".")).err().as_deref(),
            Some("no context named \"d\"")
        );
    }

    #[test]
    fn address_without_trust_is_refused() {
        let args = TargetArgs { server: Some("https://h:1".into()), ..TargetArgs::default() };
        assert!(Target::from_args(&args).expect_err("no CA").contains("--insecure"));
        let plain = TargetArgs { server: Some("http://h:8080".into()), ..TargetArgs::default() };
        let target = Target::from_args(&plain).expect("plain");
        assert_eq!((target.host.as_str(), target.port, target.tls.is_none()), ("h", 8080, true));
        assert!(Target::from_args(&TargetArgs::default()).is_err());
    }
}
