//! The running server: what all requests share, and how it is started.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use coracle_admission::{Chain, Environment};
use coracle_auth::rbac::RbacAuthorizer;
use coracle_auth::service_account::TokenIssuer;
use coracle_auth::{Attributes, Authenticator, Authorizer, Decision, UserInfo};
use coracle_client::{Transport, WriteOptions};
use coracle_meta::ObjectReader;
use coracle_resources::def::ResourceDef;
use coracle_stdx::{Clock, Tasks};
use coracle_store::Store;
use parking_lot::{Mutex, RwLock};

use crate::aggregation::Aggregation;
use crate::audit::AuditLog;
use crate::authn::TokenCache;
use crate::cache::{Cache, feed};
use crate::config::{Config, RequestLimits, StartError, Tls};
use crate::encryption::Encryption;
use crate::fields::{Fields, Write};
use crate::flow::{FlowControl, InFlight, Protection};
use crate::http::docs::Docs;
use crate::http::drain::Drain;
use crate::http::gather::Crowd;
use crate::http::impersonate::LastModes;
use crate::http::metrics::Metrics;
use crate::http::tls::Serving;
use crate::kubelet::Kubelets;
use crate::registry::{Registry, Resource};
use crate::services::Services;
use crate::transport::InProcess;
use crate::verbs::Caller;
use crate::verbs::admit::AdmissionHost;
use crate::verbs::update::Change;

/// What requests share.
pub(crate) struct Server {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) clock: Clock,
    pub(crate) git_version: String,
    pub(crate) admission: Chain,
    pub(crate) authenticators: Vec<Arc<dyn Authenticator>>,
    pub(crate) anonymous: crate::config::Anonymous,
    pub(crate) authorizers: Vec<Arc<dyn Authorizer>>,
    /// For the escalation checks; which authorizers decide requests is `authorizers`.
    pub(crate) rbac: RbacAuthorizer,
    pub(crate) tokens: TokenCache,
    pub(crate) token_issuer: Option<Arc<TokenIssuer>>,
    pub(crate) services: Services,
    pub(crate) fields: Fields,
    pub(crate) docs: Docs,
    pub(crate) metrics: Metrics,
    pub(crate) audit: Option<AuditLog>,
    pub(crate) protection: Protection,
    pub(crate) limits: RequestLimits,
    /// Components that run in this process.
    pub(crate) components: Vec<&'static str>,
    pub(crate) kubelets: Option<Kubelets>,
    pub(crate) aggregation: Aggregation,
    /// How far its end has come.
    pub(crate) drain: Drain,
    /// The watches that are busy.
    pub(crate) crowd: Crowd,
    pub(crate) front_proxy: Option<coracle_auth::FrontProxy>,
    pub(crate) last_modes: LastModes,
    /// When it was started.
    pub(crate) started: jiff::Timestamp,
    /// How it was started, for people to look at.
    pub(crate) flags: std::collections::BTreeMap<String, String>,
    /// How stored values are encrypted, if they are.
    pub(crate) encryption: Option<Arc<Encryption>>,
    pub(crate) reloads: Arc<crate::Reloads>,
    pub(crate) advertise: SocketAddr,
}

impl Server {
    /// The loopback identity.
    pub(crate) fn loopback() -> Caller {
        let user = UserInfo::authenticated("system:apiserver", &["system:masters"]);
        Caller::new(Arc::new(user), "kube-apiserver".into())
    }

    /// The field manager of a write: named by the request, or its program.
    pub(crate) fn manager(&self, caller: &Caller, opts: &WriteOptions) -> String {
        if opts.field_manager.is_empty() { caller.agent.to_string() } else { opts.field_manager.clone() }
    }

    /// Notes in `metadata.managedFields` which fields `manager` sets with this write.
    pub(crate) fn track(
        &self,
        resource: &Resource,
        new: &mut Change,
        live: Option<&[u8]>,
        manager: &str,
        subresource: &str,
    ) {
        let write = Write { manager, subresource, now: self.clock.now() };
        self.fields.track(resource, &mut *new.obj, &new.empties, live, write);
    }

    /// Whether the request may proceed.
    pub(crate) fn authorize(&self, attributes: &Attributes) -> (Decision, String) {
        coracle_auth::authorize(&self.authorizers, attributes)
    }

    /// As [`Server::authorize`], without blocking on authorizers that ask elsewhere.
    pub(crate) async fn decide(&self, attributes: &Attributes) -> (Decision, String) {
        coracle_auth::ask(&self.authorizers, attributes).await
    }

    /// The audience of tokens that name none.
    pub(crate) fn default_audience(&self) -> String {
        self.token_issuer
            .as_ref()
            .and_then(|issuer| issuer.api_audiences().first().cloned())
            .unwrap_or_else(|| "https://kubernetes.default.svc".to_owned())
    }
}

/// An API server. Dropping the last reference ends its background tasks.
pub struct ApiServer {
    pub(crate) server: Arc<Server>,
    /// What new connections are met with.
    pub(crate) serving: RwLock<Arc<Serving>>,
    /// What that was made of.
    certificates: Mutex<(Tls, Option<String>)>,
    /// Keeps the server reachable for admission plugins.
    _host: Arc<dyn coracle_admission::Host>,
    _tasks: Mutex<Tasks>,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer").field("advertise", &self.server.advertise).finish_non_exhaustive()
    }
}

impl ApiServer {
    /// Reads the store into memory, creates what must exist, and is then ready for requests: in-process by
    /// [`ApiServer::transport`], over TLS by [`ApiServer::serve`].
    ///
    /// # Errors
    /// [`StartError`] says which part failed.
    pub async fn start(config: Config) -> Result<Arc<Self>, StartError> {
        let services = Services::new(&config.service_cidr, config.node_port_range)
            .ok_or_else(|| StartError::ServiceCidr(config.service_cidr.clone()))?;
        let proxies = config.front_proxy.as_ref().map(|p| p.ca_pem.as_str());
        let serving = Serving::new(&config.tls, config.client_ca_pem.as_deref(), proxies)?;
        let kubelets = config.kubelet_client.as_ref().map(Kubelets::new).transpose()?;
        let cache = Arc::new(Cache::new(Registry::new(coracle_resources::all())));
        let watch = cache.load(&*config.store).await?;
        adopt_services(&cache, &services);
        let reader: Arc<dyn ObjectReader> = cache.clone();
        let environment = Environment::new(reader.clone(), config.clock.clone());
        let host = environment.host.clone();
        let mut tasks = Tasks::new();
        tasks.spawn(feed::run(cache.clone(), watch));
        let started = config.clock.now();
        let protection = protection(config.limits, config.store.shared());
        let server = Arc::new(Server {
            store: config.store,
            cache,
            clock: config.clock,
            git_version: config.git_version,
            admission: Chain::new(config.admission, environment),
            authenticators: (config.authenticators)(reader.clone()),
            anonymous: config.anonymous,
            authorizers: (config.authorizers)(reader.clone()),
            rbac: RbacAuthorizer::new(reader),
            tokens: TokenCache::default(),
            token_issuer: config.token_issuer,
            services,
            fields: Fields::new(),
            docs: Docs::default(),
            metrics: Metrics::default(),
            audit: config.audit.map(AuditLog::new),
            protection,
            limits: config.limits,
            components: config.components,
            kubelets,
            front_proxy: config.front_proxy,
            last_modes: LastModes::default(),
            started,
            flags: config.flags,
            encryption: config.encryption,
            reloads: config.reloads,
            aggregation: Aggregation::new(config.proxy_client),
            drain: Drain::default(),
            crowd: Crowd::new(std::thread::available_parallelism().map_or(1, usize::from)),
            advertise: config.advertise,
        });
        let around: Arc<dyn coracle_admission::Host> = Arc::new(AdmissionHost(server.clone()));
        let _ = host.set(Arc::downgrade(&around));
        crate::bootstrap::run(&server, config.bootstrap).await?;
        let (keep, ttl) = (config.compaction_interval, config.event_ttl);
        let housekeeper = server.clone();
        tasks.supervise("housekeeping", move || {
            crate::bootstrap::housekeeping(housekeeper.clone(), keep, ttl)
        });
        let resting = server.clone();
        let packing = server.clone();
        tasks.supervise("pack", move || crate::bootstrap::pack(packing.clone()));
        tasks.supervise("rest", move || crate::bootstrap::rest(resting.clone()));
        let publisher = server.clone();
        tasks.supervise("kubernetes-service", move || crate::masters::run(publisher.clone()));
        let keeper = server.clone();
        tasks.supervise("flow-schemas", move || crate::upkeep::flow_schemas(keeper.clone()));
        let keeper = server.clone();
        tasks.supervise("service-addresses", move || crate::upkeep::addresses(keeper.clone()));
        let keeper = server.clone();
        tasks.supervise("definitions", move || crate::definitions::run(keeper.clone()));
        let keeper = server.clone();
        tasks.supervise("aggregation", move || crate::aggregation::run(keeper.clone()));
        let keeper = server.clone();
        tasks.supervise("legacy-tokens", move || crate::upkeep::legacy_tokens(keeper.clone()));
        let (keeper, believed) = (server.clone(), config.client_ca_pem.clone());
        tasks.supervise("trust", move || crate::trust_map::run(keeper.clone(), believed.clone()));
        Ok(Arc::new(Self {
            server,
            serving: RwLock::new(Arc::new(serving)),
            certificates: Mutex::new((config.tls, config.client_ca_pem)),
            _host: around,
            _tasks: Mutex::new(tasks),
        }))
    }

    /// A transport without a socket and without encoding, for components in this process. Requests pass
    /// authorization and admission as `user`.
    pub fn transport(&self, user: UserInfo) -> Arc<dyn Transport> {
        Arc::new(InProcess::new(self.server.clone(), user))
    }

    /// The custom resources that are served, one version each, as they come and go.
    pub fn custom_resources(&self) -> tokio::sync::watch::Receiver<Vec<&'static ResourceDef>> {
        self.server.cache.registry.customs()
    }

    /// Read access to the current objects.
    pub fn reader(&self) -> Arc<dyn ObjectReader> {
        self.server.cache.clone()
    }

    /// Serves connections that are made from now on with these certificates; what is `None` stays as it is.
    ///
    /// # Errors
    /// [`StartError::Tls`] when one cannot be used; then all stay as they are.
    pub fn renew(&self, tls: Option<Tls>, client_ca_pem: Option<String>) -> Result<(), StartError> {
        let mut known = self.certificates.lock();
        let tls = tls.unwrap_or_else(|| known.0.clone());
        let client_ca = client_ca_pem.or_else(|| known.1.clone());
        let proxies = self.server.front_proxy.as_ref().map(|p| p.ca_pem.as_str());
        *self.serving.write() = Arc::new(Serving::new(&tls, client_ca.as_deref(), proxies)?);
        *known = (tls, client_ca);
        Ok(())
    }

    /// Says for `delay` that it is not ready, then takes no more connections and waits until what is under way is
    /// answered, `limit` at most. What lasts (watches, shells) goes on until [`ApiServer::serve`] is dropped.
    pub async fn end(&self, delay: Duration, limit: Duration) {
        let server = &self.server;
        server.drain.begin();
        // What cannot be told to the others they find out by themselves.
        let _ = tokio::time::timeout(LEAVE, crate::masters::leave(server)).await;
        server.drain.run(delay, limit, || server.metrics.under_way()).await;
    }

    /// Serves HTTPS on `listener` until the process ends or the returned future is dropped.
    pub async fn serve(self: Arc<Self>, listener: tokio::net::TcpListener) {
        crate::http::serve::run(self, listener).await;
    }

    /// Address published for clients inside the cluster.
    pub fn advertised(&self) -> (IpAddr, u16) {
        (self.server.advertise.ip(), self.server.advertise.port())
    }
}

/// Who decides which requests run.
fn protection(limits: RequestLimits, shared: bool) -> Protection {
    if limits.fair {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        // A list of a shared store first asks that store how far it is, and keeps no processor busy meanwhile.
        let abreast = if shared { usize::MAX } else { processors };
        let seats = (limits.in_flight + limits.mutating_in_flight) as u64;
        return Protection::Fair(FlowControl::new(seats, abreast));
    }
    Protection::Plain(InFlight::new(limits.in_flight, limits.mutating_in_flight))
}

/// Reserves what stored Services hold.
fn adopt_services(cache: &Cache, services: &Services) {
    for service in cache.list("", "services", "") {
        services.adopt(&*service);
    }
}

/// The longest time between two cleanings of the store.
pub(crate) const CLEAN_EVERY: Duration = Duration::from_secs(300);
/// For how long the end tries to tell the other servers.
const LEAVE: Duration = Duration::from_secs(2);
/// Between two looks at what can be given back.
pub(crate) const REST_EVERY: Duration = Duration::from_secs(10);
