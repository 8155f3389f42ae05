//! An API server on its own, for trials: `standalone PORT DIR [STORE_DIR]`. Writes `DIR/kubeconfig`; the static
//! token `admintoken` is `admin` in `system:masters`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coracle_apiserver::{Anonymous, ApiServer, Config, Tls};
use coracle_auth::node::NodeAuthorizer;
use coracle_auth::pki::{CertificateAuthority, Issue};
use coracle_auth::rbac::RbacAuthorizer;
use coracle_auth::service_account::{ServiceAccountAuthenticator, TokenIssuer};
use coracle_auth::static_token::StaticTokens;
use coracle_auth::x509::X509Authenticator;
use coracle_auth::{Authenticator, Authorizer};
use coracle_stdx::Clock;
use coracle_store::{EmbeddedConfig, EmbeddedStore, MemoryStore, Store};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    tracing_subscriber::fmt().with_env_filter("info").with_writer(std::io::stderr).init();
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().collect();
    let port: u16 = args.get(1).map_or(Ok(6443), |p| p.parse())?;
    let dir = args.get(2).cloned().unwrap_or_else(|| ".".into());
    let store: Arc<dyn Store> = match args.get(3) {
        Some(path) => EmbeddedStore::open(EmbeddedConfig { dir: path.into() })?,
        None => MemoryStore::new(),
    };
    let clock = Clock::system();
    let advertise: SocketAddr = format!("127.0.0.1:{port}").parse()?;
    let config = config(store, clock, advertise, Path::new(&dir))?;
    let listener = tokio::net::TcpListener::bind(advertise).await?;
    let server = ApiServer::start(config).await?;
    eprintln!("serving on {advertise}");
    server.serve(listener).await;
    Ok(())
}

fn config(store: Arc<dyn Store>, clock: Clock, advertise: SocketAddr, dir: &Path) -> Result<Config, Failure> {
    let ca = CertificateAuthority::create("standalone-ca", &clock)?;
    let serving = Issue {
        common_name: "kube-apiserver".into(),
        dns_names: vec!["localhost".into(), "kubernetes.default.svc".into()],
        ip_addresses: vec![advertise.ip()],
        server: true,
        days: 30,
        ..Issue::default()
    };
    let serving = ca.issue(serving, &clock)?;
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: c\n  cluster:\n    server: https://{advertise}\n    \
         insecure-skip-tls-verify: true\nusers:\n- name: u\n  user:\n    token: admintoken\ncontexts:\n- name: x\n  \
         context: {{cluster: c, user: u}}\ncurrent-context: x\n"
    );
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("kubeconfig"), kubeconfig)?;
    let tokens = StaticTokens::parse("admintoken,admin,admin,\"system:masters\"\n")?;
    let key = coracle_auth::pki::generate_key()?;
    let url = "https://kubernetes.default.svc";
    let issuer = Arc::new(TokenIssuer::new(&key, url, vec![url.to_owned()])?);
    let (accounts, times) = (issuer.clone(), clock.clone());
    Ok(Config {
        store,
        clock,
        git_version: "v1.36.2+coracle".into(),
        flags: BTreeMap::new(),
        encryption: None,
        reloads: Default::default(),
        tls: Tls { cert_pem: serving.cert, key_pem: serving.key },
        client_ca_pem: Some(ca.cert_pem().to_owned()),
        authenticators: Box::new(move |reader| {
            let all: Vec<Arc<dyn Authenticator>> = vec![
                Arc::new(X509Authenticator::new(times.clone())),
                Arc::new(tokens),
                Arc::new(ServiceAccountAuthenticator::new(accounts, reader, times)),
            ];
            all
        }),
        anonymous: Anonymous::Everywhere,
        authorizers: Box::new(|reader| {
            let all: Vec<Arc<dyn Authorizer>> =
                vec![Arc::new(NodeAuthorizer::new(reader.clone())), Arc::new(RbacAuthorizer::new(reader))];
            all
        }),
        token_issuer: Some(issuer),
        admission: coracle_admission::plugins(),
        service_cidr: "10.96.0.0/16".into(),
        node_port_range: (30000, 32767),
        advertise,
        kubelet_client: None,
        proxy_client: None,
        front_proxy: None,
        components: Vec::new(),
        bootstrap: coracle_auth::bootstrap::objects(),
        compaction_interval: Duration::from_secs(300),
        event_ttl: Duration::from_secs(3600),
        limits: coracle_apiserver::RequestLimits::UPSTREAM,
        audit: None,
    })
}
