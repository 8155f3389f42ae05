//! Wiring: starts every part of a single-machine cluster in this process and ends them together.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use coracle_apiserver::{ApiServer, Config, Encryption, KubeletClient, MakeAuthorizers, RequestLimits, Tls};
use coracle_auth::UserInfo;
use coracle_auth::pki::CertificateAuthority;
use coracle_auth::service_account::TokenIssuer;
use coracle_client::{Client, Informers, PatchKind};
use coracle_controllers::certificates::CertificateSigner;
use coracle_kubelet::{
    CpuPolicy, EvictionConfig, IdRange, ImageGc, Kubelet, KubeletConfig, MemoryPolicy, SwapBehavior,
    TopologyConfig,
};
use coracle_network::{DnsServer, ServiceProxy};
use coracle_stdx::{Clock, Tasks};
use k8s_openapi::api::core::v1::Node as NodeObject;
use serde_json::json;
use tokio::net::TcpListener;

use crate::authn::Authentication;
use crate::cluster::{Cluster, Paths};
use crate::control_plane::{ControlArgs, ControlParts, ControlPlane};
use crate::error::Failure;
use crate::node_args::NodeArgs;
use crate::pki::Pki;
use crate::progress::Progress;
use crate::runtime::Containers;
use crate::signer::{ClusterSigner, TokenKey};
use crate::store::StoreArgs;
use crate::{control, encryption, up};

/// What a node is started from.
#[derive(Debug)]
pub struct Parts {
    /// Where things live.
    pub paths: Paths,
    /// Which cluster.
    pub cluster: Cluster,
    /// Its certificates.
    pub pki: Pki,
    /// The node's address.
    pub node_ip: IpAddr,
    /// The clock of all parts.
    pub clock: Clock,
    /// Options of the controllers.
    pub control: ControlArgs,
    /// Where objects are kept.
    pub store: StoreArgs,
    /// Whether the embedded store's Secrets are encrypted.
    pub secrets_encryption: bool,
    /// Who runs containers and connects pods.
    pub node: NodeArgs,
}

/// A running cluster. Dropping it ends every part at once; pods go on under their shims.
pub struct Node {
    name: String,
    admin: Client,
    control: ControlPlane,
    server: Arc<ApiServer>,
    _tasks: Tasks,
}

/// For how long the end waits for answers that are under way.
const PATIENCE: Duration = Duration::from_secs(5);

fn broken(what: &str, why: impl std::fmt::Display) -> Failure {
    Failure::new(format!("{what}: {why}"), "see the log for more")
}

/// The API server's configuration, shared by `up` and the standalone command.
pub struct ServerParts<'a> {
    /// The store.
    pub store: Arc<dyn coracle_store::Store>,
    /// What of it is encrypted.
    pub encryption: Option<Arc<Encryption>>,
    /// Tells of the files that are followed.
    pub reloads: Arc<coracle_apiserver::Reloads>,
    /// The flags given, for people to look at.
    pub flags: BTreeMap<String, String>,
    /// The clock.
    pub clock: Clock,
    /// Serving certificate.
    pub tls: Tls,
    /// CA of client certificates.
    pub client_ca: Option<String>,
    /// Who is believed beside clients with certificates.
    pub authentication: Authentication,
    /// Who decides what users may do.
    pub authorizers: MakeAuthorizers,
    /// Issues service-account tokens.
    pub issuer: TokenIssuer,
    /// Service range.
    pub service_cidr: &'a str,
    /// Node ports.
    pub node_ports: (u16, u16),
    /// Address told to pods.
    pub advertise: SocketAddr,
    /// Admission plugins, in order.
    pub admission: Vec<Box<dyn coracle_admission::Plugin>>,
    /// Access to kubelets.
    pub kubelet_client: Option<KubeletClient>,
    /// Proxies that say for whom they ask.
    pub front_proxy: Option<coracle_auth::FrontProxy>,
    /// The certificate shown to extension servers.
    pub proxy_client: Option<Tls>,
    /// Objects that must exist.
    pub bootstrap: Vec<Box<dyn coracle_meta::Object>>,
    /// Limits of requests.
    pub limits: RequestLimits,
    /// The audit log, if one is wanted.
    pub audit: Option<coracle_apiserver::AuditConfig>,
}

/// Puts a configuration together.
pub fn server_config(parts: ServerParts<'_>) -> Config {
    let issuer = Arc::new(parts.issuer);
    let (issuer2, clock2, with_certs) = (issuer.clone(), parts.clock.clone(), parts.client_ca.is_some());
    let Authentication { tokens, bootstrap_tokens, further, anonymous } = parts.authentication;
    Config {
        store: parts.store,
        clock: parts.clock,
        git_version: crate::GIT_VERSION.into(),
        flags: parts.flags,
        encryption: parts.encryption,
        reloads: parts.reloads,
        tls: parts.tls,
        client_ca_pem: parts.client_ca,
        authenticators: Box::new(move |reader| {
            let mut all: Vec<Arc<dyn coracle_auth::Authenticator>> = Vec::new();
            if with_certs {
                all.push(Arc::new(coracle_auth::x509::X509Authenticator::new(clock2.clone())));
            }
            all.extend(tokens);
            let accounts = coracle_auth::service_account::ServiceAccountAuthenticator::new;
            all.push(Arc::new(accounts(issuer2, reader.clone(), clock2.clone())));
            if bootstrap_tokens {
                all.push(Arc::new(coracle_auth::bootstrap_token::BootstrapTokens::new(reader, clock2)));
            }
            all.extend(further);
            all
        }),
        anonymous,
        authorizers: parts.authorizers,
        token_issuer: Some(issuer),
        admission: parts.admission,
        service_cidr: parts.service_cidr.into(),
        node_port_range: parts.node_ports,
        advertise: parts.advertise,
        kubelet_client: parts.kubelet_client,
        front_proxy: parts.front_proxy,
        proxy_client: parts.proxy_client,
        bootstrap: parts.bootstrap,
        compaction_interval: Duration::from_secs(300),
        event_ttl: Duration::from_secs(3600),
        limits: parts.limits,
        audit: parts.audit,
        components: Vec::new(),
    }
}

impl Node {
    /// Starts all parts; returns when the API answers and the rest is on its way.
    ///
    /// # Errors
    /// The first part that cannot start.
    pub async fn start(parts: Parts, api: TcpListener, progress: &Progress) -> Result<Self, Failure> {
        let mut tasks = Tasks::new();
        let server = start_server(&parts, &mut tasks, progress).await?;
        let serving = server.clone();
        tasks.spawn(async move { serving.serve(api).await });
        let Parts { paths, cluster, pki, node_ip, clock, control, store, node, .. } = parts;
        progress.step("API server", &format!("https://127.0.0.1:{}", cluster.api_port));

        let client = |user: &str, groups: &[&str]| {
            Client::new(server.transport(UserInfo::authenticated(user, groups)))
        };
        let admin = client("system:apiserver", &["system:masters"]);
        publish_dns(&admin, &cluster).await?;
        let ca_key = std::fs::read_to_string(paths.file("pki/ca.key"));
        let signer = ca_key.ok().and_then(|key| CertificateAuthority::load(&pki.ca, &key).ok());
        let signer = signer.map(|ca| Arc::new(ClusterSigner(ca)) as Arc<dyn CertificateSigner>);
        let control = ControlPlane::start(ControlParts {
            args: &control,
            server: &server,
            root_ca_pem: pki.ca.clone(),
            signer,
            token_signer: Arc::new(TokenKey(token_issuer(&cluster, &pki)?)),
            reserved_ports: vec![cluster.api_port, cluster.kubelet_port],
            clock: clock.clone(),
            host: &cluster.node_name,
            is_shared: !store.etcd_servers.is_empty(),
        });
        progress.step("controllers", "scheduler and controllers run");

        let network = up::network_config(&paths, &cluster, node_ip);
        let proxy_client = client("system:kube-proxy", &[]);
        let proxy = Informers::new(proxy_client);
        let (config, informers) = (network.clone(), proxy.clone());
        tasks.supervise("service proxy", move || {
            let proxy = ServiceProxy::new(config.clone(), informers.clone());
            async move { proxy.run().await }
        });
        let dns = Informers::new(client("system:coredns", &[]));
        let config = network.clone();
        tasks.supervise("dns", move || {
            let server = DnsServer::new(config.clone(), dns.clone());
            async move { server.run().await }
        });
        progress.step("network", &format!("pods {}, services {}", cluster.pod_cidr, cluster.service_cidr));

        let containers = Containers::open(&node, &paths, &cluster, network, &clock, &mut tasks).await?;
        progress.step("runtime", &containers.said);
        let about = json!({
            "pid": std::process::id(), "version": crate::GIT_VERSION, "node_ip": node_ip,
            "server": format!("https://127.0.0.1:{}", cluster.api_port),
        });
        let parts = control::Parts {
            containers: containers.clone(),
            admin: admin.clone(),
            logs: paths.file("logs/pods"),
            about,
        };
        tasks.spawn(control::serve(control::listen(&paths.socket())?, parts));

        let node_client = client(&format!("system:node:{}", cluster.node_name), &["system:nodes"]);
        let informers = Informers::new(node_client.clone());
        let mut config = kubelet_config(&paths, &cluster, &pki, node_ip);
        if let Some(ids) = subordinate_ids()? {
            config.user_ids = ids;
        }
        crate::kubelet_config::read(&node, &mut config)?;
        crate::kubelet_config::read_credential_providers(&node, &mut config)?;
        tasks.supervise("kubelet", move || {
            let (containers, config) = (containers.clone(), config.clone());
            let (client, informers, clock) = (node_client.clone(), informers.clone(), clock.clone());
            async move {
                let Containers { own, runtime, images, streams, .. } = containers;
                let kubelet = Kubelet::new(config, client, informers, runtime, images, streams, clock)
                    .with_pods_cgroup(own.map(|own| own as _));
                if let Err(e) = kubelet.run().await {
                    tracing::error!("kubelet: {e}");
                }
            }
        });
        Ok(Self { name: cluster.node_name, admin, control, server, _tasks: tasks })
    }

    /// Ends every part: answers what clients asked, gives up what others would wait for.
    pub async fn end(self) {
        self.server.end(Duration::ZERO, PATIENCE).await;
        self.control.end().await;
    }

    /// Waits until the node is Ready.
    ///
    /// # Errors
    /// When that takes longer than a minute.
    pub async fn ready(&self, progress: &Progress) -> Result<(), Failure> {
        let nodes = Informers::new(self.admin.clone()).get::<NodeObject>();
        let mut changes = nodes.subscribe();
        let wait = async {
            loop {
                if nodes.get("", &self.name).is_some_and(|n| is_ready(&n)) || changes.next().await.is_none() {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait)
            .await
            .map_err(|_| broken("the node", "not Ready within a minute"))?;
        // A kubelet may not give itself a role: the administrator does.
        let role = json!({ "metadata": { "labels": { "node-role.kubernetes.io/control-plane": "" } } });
        let labelled = self.admin.api::<NodeObject>().patch("", &self.name, PatchKind::Merge, role).await;
        labelled.map_err(|e| broken("the node's role", e))?;
        progress.step("node", &format!("{} is Ready", self.name));
        Ok(())
    }
}

fn is_ready(node: &NodeObject) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or(&[]);
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn token_issuer(cluster: &Cluster, pki: &Pki) -> Result<TokenIssuer, Failure> {
    let url = format!("https://kubernetes.default.svc.{}", cluster.cluster_domain);
    let issuer = TokenIssuer::new(&pki.service_account_key, &url, vec![url.clone()]);
    issuer.map_err(|e| broken("service-account key", e))
}

async fn start_server(
    parts: &Parts,
    tasks: &mut Tasks,
    progress: &Progress,
) -> Result<Arc<ApiServer>, Failure> {
    let Parts { paths, cluster, pki, node_ip, clock, store, .. } = parts;
    // etcd may be shared: who shares it must agree on the keys, and says so by the flag.
    let own = parts.store.etcd_servers.is_empty();
    let own = match own {
        true => encryption::own(&paths.file("pki/encryption-config.yaml"), parts.secrets_encryption)?,
        false => None,
    };
    let opened = store.open(paths.file("store"), own).await?;
    let reloads = Arc::new(coracle_apiserver::Reloads::default());
    opened.serve(tasks, &reloads.encryption, clock);
    let (store, encryption) = (opened.store, opened.encryption);
    progress.step("store", &format!("revision {}", store.revision()));
    let issuer = token_issuer(cluster, pki)?;
    let mut bootstrap = coracle_auth::bootstrap::objects();
    bootstrap.extend(coracle_auth::bootstrap::cluster_objects());
    let mut config = server_config(ServerParts {
        store,
        encryption,
        reloads,
        flags: BTreeMap::new(),
        clock: clock.clone(),
        tls: Tls { cert_pem: pki.apiserver.cert.clone(), key_pem: pki.apiserver.key.clone() },
        client_ca: Some(pki.ca.clone()),
        authentication: Authentication::default(),
        authorizers: crate::authz::usual(),
        issuer,
        service_cidr: &cluster.service_cidr,
        node_ports: (30000, 32767),
        advertise: SocketAddr::new(*node_ip, cluster.api_port),
        admission: coracle_admission::plugins(),
        kubelet_client: Some(KubeletClient {
            cert_pem: pki.apiserver_kubelet.cert.clone(),
            key_pem: pki.apiserver_kubelet.key.clone(),
            ca_pem: Some(pki.ca.clone()),
        }),
        front_proxy: Some(front_proxy(&pki.front_proxy_ca)),
        proxy_client: Some(Tls {
            cert_pem: pki.front_proxy_client.cert.clone(),
            key_pem: pki.front_proxy_client.key.clone(),
        }),
        bootstrap,
        limits: RequestLimits::UPSTREAM,
        audit: None,
    });
    config.components = vec!["controller-manager", "scheduler"];
    ApiServer::start(config).await.map_err(|e| broken("API server", e))
}

/// The proxy that extension servers shall believe is this server alone; headers are those of kubeadm's clusters.
fn front_proxy(ca_pem: &str) -> coracle_auth::FrontProxy {
    let list = |name: &str| vec![name.to_owned()];
    coracle_auth::FrontProxy {
        ca_pem: ca_pem.to_owned(),
        allowed_names: list("front-proxy-client"),
        username_headers: list("X-Remote-User"),
        uid_headers: list("X-Remote-Uid"),
        group_headers: list("X-Remote-Group"),
        extra_prefixes: list("X-Remote-Extra-"),
    }
}

/// DNS answers on its service address on every node; the Service and its endpoint tell clients so.
async fn publish_dns(admin: &Client, cluster: &Cluster) -> Result<(), Failure> {
    use k8s_openapi::api::core::v1::Service;
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    let ip = cluster.service_ip(10).to_string();
    let ports = |target: bool| {
        let port = |name: &str, protocol: &str| {
            let mut p = json!({ "name": name, "port": 53, "protocol": protocol });
            if target {
                p["targetPort"] = 53.into();
            }
            p
        };
        json!([port("dns", "UDP"), port("dns-tcp", "TCP")])
    };
    let labels = json!({ "k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS" });
    let service = json!({
        "metadata": { "name": "kube-dns", "namespace": "kube-system", "labels": labels },
        "spec": { "clusterIP": ip, "clusterIPs": [ip], "ports": ports(true) },
    });
    let slice = json!({
        "metadata": { "name": "kube-dns", "namespace": "kube-system", "labels": {
            "kubernetes.io/service-name": "kube-dns", "endpointslice.kubernetes.io/managed-by": "coracle.dev" } },
        "addressType": "IPv4", "ports": ports(false),
        "endpoints": [{ "addresses": [ip], "conditions": { "ready": true } }],
    });
    let parse = |e: serde_json::Error| broken("DNS service", e);
    let service: Service = serde_json::from_value(service).map_err(parse)?;
    let slice: EndpointSlice = serde_json::from_value(slice).map_err(parse)?;
    let failed = |e: coracle_meta::Status| broken("DNS service", e);
    let absent = |e: &coracle_meta::Status| e.reason() == coracle_meta::Reason::NotFound;
    if admin.api::<Service>().get("kube-system", "kube-dns").await.is_err_and(|e| absent(&e)) {
        admin.api::<Service>().create("kube-system", service).await.map_err(failed)?;
    }
    if admin.api::<EndpointSlice>().get("kube-system", "kube-dns").await.is_err_and(|e| absent(&e)) {
        admin.api::<EndpointSlice>().create("kube-system", slice).await.map_err(failed)?;
    }
    Ok(())
}

/// What `/etc/subuid` and `/etc/subgid` give the user `kubelet`, for pods with users of their own.
fn subordinate_ids() -> Result<Option<IdRange>, Failure> {
    let of = |path: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        IdRange::subordinate(&text).map_err(|e| broken(path, e))
    };
    let (users, groups) = (of("/etc/subuid")?, of("/etc/subgid")?);
    if users != groups {
        return Err(broken("/etc/subgid", "mismatched subuids and subgids for user \"kubelet\""));
    }
    Ok(users)
}

/// A configuration for tests.
#[cfg(test)]
pub fn testing_config() -> KubeletConfig {
    let paths = Paths::new(std::path::Path::new("/nonexistent")).expect("paths");
    let cluster = Cluster {
        pod_cidr: "10.244.0.0/24".into(),
        service_cidr: "10.96.0.0/16".into(),
        ..Cluster::nameless(&paths)
    };
    kubelet_config(&paths, &cluster, &Pki::default(), IpAddr::from([10, 0, 0, 1]))
}

fn kubelet_config(paths: &Paths, cluster: &Cluster, pki: &Pki, node_ip: IpAddr) -> KubeletConfig {
    KubeletConfig {
        node_name: cluster.node_name.clone(),
        node_ip,
        node_labels: BTreeMap::new(),
        pod_cidr: cluster.pod_cidr.clone(),
        version: crate::GIT_VERSION.into(),
        port: cluster.kubelet_port,
        server_cert_pem: pki.kubelet.cert.clone(),
        server_key_pem: pki.kubelet.key.clone(),
        client_ca_pem: pki.ca.clone(),
        root: paths.file("kubelet"),
        own_log: Some(paths.file("coracle.log")),
        device_plugins: paths.file("kubelet/device-plugins"),
        static_pods: paths.file("manifests"),
        static_pods_check: Duration::from_secs(20),
        static_pod_url: None,
        log_root: paths.file("logs/pods"),
        cgroup_root: format!("/coracle/{}/pods", cluster.id),
        cluster_dns: vec![cluster.service_ip(10).into()],
        cluster_domain: cluster.cluster_domain.clone(),
        resolv_conf: "/etc/resolv.conf".into(),
        max_pods: 110,
        pod_pids_limit: -1,
        user_ids: IdRange::all(65536),
        ids_per_pod: 65536,
        credential_providers: Vec::new(),
        credential_provider_dir: "/usr/libexec/kubernetes/credential-providers".into(),
        cpu_policy: CpuPolicy::None,
        reserved_cpus: None,
        memory_policy: MemoryPolicy::None,
        swap: SwapBehavior::NoSwap,
        fail_swap_on: false,
        reserved_memory: Vec::new(),
        topology: TopologyConfig::NONE,
        reserved: BTreeMap::new(),
        image_gc: ImageGc::UPSTREAM,
        image_pulls: Some(1),
        eviction: EvictionConfig::standard(),
        enforce_allocatable: true,
        shutdown_periods: Vec::new(),
        system_bus: "/run/dbus/system_bus_socket".into(),
        log_max_size: 10 << 20,
        log_max_files: 5,
    }
}
