//! What an API server is started with. The caller decides everything; there are no defaults.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use coracle_auth::{Authenticator, Authorizer};
use coracle_meta::{Object, ObjectReader};
use coracle_stdx::Clock;
use coracle_store::Store;

use crate::encryption::Encryption;

/// A certificate chain and its private key, PEM.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Certificate chain, leaf first.
    pub cert_pem: String,
    /// Private key.
    pub key_pem: String,
}

/// How the API server reaches kubelets (logs, exec, attach, port-forward, proxy).
#[derive(Clone, Debug)]
pub struct KubeletClient {
    /// Client certificate shown to kubelets.
    pub cert_pem: String,
    /// Its private key.
    pub key_pem: String,
    /// CA that signed the kubelets' serving certificates; without, any certificate will do.
    pub ca_pem: Option<String>,
}

/// Where requests without credentials are let in, as `system:anonymous`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Anonymous {
    /// Everywhere; authorization decides.
    Everywhere,
    /// Nowhere.
    Nowhere,
    /// At these paths.
    At(Vec<String>),
}

impl Anonymous {
    /// Whether they are let in at a path.
    pub(crate) fn admits(&self, path: &str) -> bool {
        match self {
            Self::Everywhere => true,
            Self::Nowhere => false,
            Self::At(paths) => paths.iter().any(|p| p == path),
        }
    }
}

/// How much is asked of the server at a time, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// Requests that read and run at a time; 0 is no limit.
    pub in_flight: usize,
    /// Requests that write and run at a time; 0 is no limit. With `fair`, the sum of both is what priority levels
    /// share.
    pub mutating_in_flight: usize,
    /// Whether priority and fairness decides who runs and who waits; else the two limits refuse.
    pub fair: bool,
    /// How long a request may take that is neither a watch nor a connection.
    pub timeout: Duration,
    /// The chance with which an HTTP/2 client is told to connect anew, so that clients spread over servers behind one
    /// address.
    pub goaway_chance: f64,
}

impl RequestLimits {
    /// What upstream's program has without flags.
    pub const UPSTREAM: Self = Self {
        in_flight: 400,
        mutating_in_flight: 200,
        fair: true,
        timeout: Duration::from_secs(60),
        goaway_chance: 0.0,
    };
}

/// Builds the authenticators, in order, over the server's own objects.
pub type MakeAuthenticators = Box<dyn FnOnce(Arc<dyn ObjectReader>) -> Vec<Arc<dyn Authenticator>> + Send>;
/// Builds the authorizers, in order, over the server's own objects.
pub type MakeAuthorizers = Box<dyn FnOnce(Arc<dyn ObjectReader>) -> Vec<Arc<dyn Authorizer>> + Send>;

/// Configuration of [`crate::ApiServer::start`].
pub struct Config {
    /// The store; the server is its only user.
    pub store: Arc<dyn Store>,
    /// Tells the time.
    pub clock: Clock,
    /// `gitVersion` of `/version`, e.g. `v1.36.2+coracle`.
    pub git_version: String,
    /// The flags it was started with, by name, for `/flagz`. No secrets.
    pub flags: BTreeMap<String, String>,
    /// The encryption that `store` does, if it does; its plugins are part of the server's health.
    pub encryption: Option<Arc<Encryption>>,
    /// Tells of the files that whoever starts the server follows.
    pub reloads: Arc<crate::Reloads>,
    /// Serving certificate.
    pub tls: Tls,
    /// CA of client certificates; without it none are asked for.
    pub client_ca_pem: Option<String>,
    /// Authenticators.
    pub authenticators: MakeAuthenticators,
    /// Where requests without credentials are let in.
    pub anonymous: Anonymous,
    /// Authorizers; `system:masters` is always allowed before they are asked.
    pub authorizers: MakeAuthorizers,
    /// Issues service account tokens (`serviceaccounts/token`, OpenID discovery).
    pub token_issuer: Option<Arc<coracle_auth::service_account::TokenIssuer>>,
    /// Admission plugins in order.
    pub admission: Vec<Box<dyn coracle_admission::Plugin>>,
    /// Range of Service cluster IPs, e.g. `10.96.0.0/16`.
    pub service_cidr: String,
    /// First and last node port.
    pub node_port_range: (u16, u16),
    /// Address published as the endpoint of Service `default/kubernetes`.
    pub advertise: SocketAddr,
    /// Access to kubelets; without it their subresources answer 503.
    pub kubelet_client: Option<KubeletClient>,
    /// Proxies that say for whom they ask.
    pub front_proxy: Option<coracle_auth::FrontProxy>,
    /// The certificate shown to extension servers, so that they believe who it says is asking.
    pub proxy_client: Option<Tls>,
    /// Objects created when absent, and reconciled (`auth::bootstrap::objects()`).
    pub bootstrap: Vec<Box<dyn Object>>,
    /// How often history older than the run before is compacted.
    pub compaction_interval: Duration,
    /// How long Events are kept.
    pub event_ttl: Duration,
    /// Limits of requests.
    pub limits: RequestLimits,
    /// The audit log, if there is one.
    pub audit: Option<crate::AuditConfig>,
    /// Components of the control plane that run in this process: their ComponentStatus needs no question. Others are
    /// asked at the ports that upstream's have by default.
    pub components: Vec<&'static str>,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("advertise", &self.advertise).finish_non_exhaustive()
    }
}

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store failed.
    #[error("cannot read the store: {0}")]
    Store(#[from] coracle_store::StoreError),
    /// Certificate or key cannot be used.
    #[error("cannot use the {what}: {why}")]
    Tls {
        /// Which of them.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The service range is malformed or too small.
    #[error("service CIDR {0:?} is not an IPv4 range of at least 4 addresses")]
    ServiceCidr(String),
    /// An object that must exist could not be created.
    #[error("cannot create bootstrap object {what}: {why}")]
    Bootstrap {
        /// Kind and name.
        what: String,
        /// The refusal.
        why: String,
    },
}
