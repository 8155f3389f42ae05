//! The HTTPS port of a program: TLS with client certificates, health, figures, configuration.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use coracle_apiserver::Tls;
use coracle_auth::Credentials;
use coracle_client::{Change, Client, Informers, ListOptions};
use coracle_cri::remote::{Body, answer, text};
use coracle_stdx::{Clock, Tasks};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use parking_lot::RwLock;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::access::Access;
use super::{Component, ComponentArgs, Condition, health};
use crate::apiserver::{read, self_signed};
use crate::error::Failure;
use crate::remote;
use crate::up::bind;

/// Longest handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Where an API server publishes the CA of its client certificates.
const NAMESPACE: &str = "kube-system";
const PUBLISHED: &str = "extension-apiserver-authentication";
const CA_KEY: &str = "client-ca-file";

struct Server {
    component: Component,
    condition: Arc<Condition>,
    access: Access,
    own: Tls,
    /// Changes with the CA of client certificates.
    tls: RwLock<Arc<ServerConfig>>,
    started: Timestamp,
}

/// Starts to serve, if there is a port to serve on.
pub(super) async fn start(
    component: Component,
    args: &ComponentArgs,
    condition: &Arc<Condition>,
    clock: &Clock,
    tasks: &mut Tasks,
) -> Result<(), Failure> {
    let port = args.secure_port.unwrap_or(component.port);
    if port == 0 {
        return Ok(());
    }
    let given = args.client_ca_file.as_deref().map(read).transpose()?;
    let own = match (&args.tls_cert_file, &args.tls_private_key_file) {
        (Some(cert), Some(key)) => Tls { cert_pem: read(cert)?, key_pem: read(key)? },
        _ => self_signed(component.name, &["localhost"], &[[127, 0, 0, 1].into()], clock)?,
    };
    let unusable = |why: String| Failure::new(format!("serving certificate: {why}"), "check the flags");
    let tls = RwLock::new(Arc::new(server_config(&own, given.as_deref()).map_err(unusable)?));
    let access = Access::new(args, clock)?;
    let listener = Arc::new(bind(args.bind_address, port, "secure-port").await?);
    let condition = condition.clone();
    let server = Arc::new(Server { component, condition, access, own, tls, started: clock.now() });
    if let (None, false, Some(file)) =
        (given, args.authentication_skip_lookup, &args.authentication_kubeconfig)
    {
        let client = remote::Server::open(file, server.component.name)?.client("authentication");
        let looking = server.clone();
        tasks.supervise("client-ca", move || follow_client_ca(client.clone(), looking.clone()));
    }
    tasks.supervise("secure-port", move || accept(server.clone(), listener.clone()));
    Ok(())
}

/// Believes the clients whose CA the API server publishes.
async fn follow_client_ca(client: Client, server: Arc<Server>) {
    let options =
        ListOptions { field_selector: format!("metadata.name={PUBLISHED}"), ..ListOptions::default() };
    let informer = Informers::new(client).filtered::<ConfigMap>(NAMESPACE, options);
    let mut changes = informer.subscribe();
    while let Some(change) = changes.next().await {
        let (Change::Added(map) | Change::Modified { new: map, .. }) = &change else { continue };
        let Some(pem) = map.data.as_ref().and_then(|data| data.get(CA_KEY)) else { continue };
        match server_config(&server.own, Some(pem)) {
            Ok(config) => *server.tls.write() = Arc::new(config),
            Err(why) => tracing::warn!(why, "the published CA of client certificates cannot be used"),
        }
    }
}

/// The server side of TLS; client certificates are asked for where somebody vouches for them, not required.
fn server_config(own: &Tls, client_ca: Option<&str>) -> Result<ServerConfig, String> {
    let certificates = |pem: &str| {
        CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| e.to_string())
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for cert in certificates(pem)? {
                roots.add(cert).map_err(|e| e.to_string())?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()
                .map_err(|e| e.to_string())?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes()).map_err(|e| e.to_string())?;
    let mut config =
        builder.with_single_cert(certificates(&own.cert_pem)?, key).map_err(|e| e.to_string())?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

async fn accept(server: Arc<Server>, listener: Arc<TcpListener>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(connection(server.clone(), stream))),
            // Out of descriptors, mostly: give others time to close theirs.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn connection(server: Arc<Server>, stream: TcpStream) {
    let tls = TlsAcceptor::from(server.tls.read().clone());
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await else { return };
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).map(|cert| cert.to_vec());
    let service = service_fn(move |request| {
        let (server, shown) = (server.clone(), shown.clone());
        async move { Ok::<_, Infallible>(server.handle(&request, shown).await) }
    });
    let http = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    if let Err(e) = http.await {
        tracing::debug!(error = %e, "connection ended");
    }
}

impl Server {
    async fn handle(&self, request: &Request<Incoming>, client_cert: Option<Vec<u8>>) -> Response<Body> {
        let header = request.headers().get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let bearer =
            header.and_then(|value| value.strip_prefix("Bearer ")).map(|token| token.trim().to_owned());
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or(""));
        let credentials = Credentials { client_cert, bearer };
        if let Err(status) = self.access.check(request.method().as_str(), path, &credentials).await {
            let code = StatusCode::from_u16(status.code()).unwrap_or(StatusCode::FORBIDDEN);
            let body = serde_json::to_string_pretty(&status.to_value()).unwrap_or_default();
            return answer(code, "application/json", Bytes::from(body));
        }
        match path {
            "/metrics" => {
                let mime = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
                answer(StatusCode::OK, mime, Bytes::from(self.metrics()))
            }
            "/configz" => {
                let body = Bytes::from(self.component.config.to_string());
                answer(StatusCode::OK, "application/json", body)
            }
            _ => match health::answer(self.component.checks, path, query, |check| self.holds(check)) {
                Some((code, body)) => text(code, body),
                None => text(StatusCode::NOT_FOUND, "404 page not found\n"),
            },
        }
    }

    /// How a check does: a replica that does not lead is well, one that never reached the API server is not ready.
    fn holds(&self, check: &str) -> bool {
        check != "sched-handler-sync" || self.condition.reached.load(Ordering::Relaxed)
    }

    fn metrics(&self) -> String {
        let (mut out, name) = (String::new(), self.component.name);
        let mut gauge = |metric: &str, help: &str, labels: String, value: String| {
            let _ = writeln!(out, "# HELP {metric} {help}\n# TYPE {metric} gauge\n{metric}{labels} {value}");
        };
        let version = crate::GIT_VERSION;
        let labels = format!(
            "{{compiler=\"rustc\",git_version=\"{version}\",major=\"1\",minor=\"36\",platform=\"linux/amd64\"}}"
        );
        let help = "[ALPHA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git \
                    tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on \
                    which it is running.";
        gauge("kubernetes_build_info", help, labels, "1".to_owned());
        let leads = u8::from(self.condition.leads.load(Ordering::Relaxed));
        let help = "[ALPHA] Gauge of if the reporting system is master of the relevant lease, 0 indicates backup, 1 \
                    indicates master. 'name' is the string used to identify the lease. Please make sure to group by \
                    name.";
        gauge("leader_election_master_status", help, format!("{{name=\"{name}\"}}"), leads.to_string());
        let help = "[ALPHA] Start time of the process since unix epoch in seconds.";
        gauge("process_start_time_seconds", help, String::new(), self.started.as_second().to_string());
        for check in self.component.checks.iter().filter(|(path, _)| *path == "/healthz") {
            for one in check.1 {
                let labels = format!("{{name=\"{one}\",type=\"healthz\"}}");
                let well = u8::from(self.holds(one)).to_string();
                let help = "[STABLE] This metric records the result of a single healthcheck.";
                gauge("kubernetes_healthcheck", help, labels, well);
            }
        }
        out
    }
}
