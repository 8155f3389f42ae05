//! `coracle controller-manager`: the controllers alone, against any API server, with upstream's flags.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use coracle_apiserver::RemoteConfig;
use coracle_auth::pki::CertificateAuthority;
use coracle_auth::service_account::TokenIssuer;
use coracle_client::{
    AccountToken, Catalogue, Client, Credential, Discovered, Informers, RemoteServer, ResourceId, discover,
};
use coracle_controllers::ResourceEntry;
use coracle_controllers::node_ipam::NodeCidrs;
use coracle_controllers::runtime::MakeClient;
use coracle_meta::Status;
use coracle_meta::cron::duration;
use coracle_stdx::{Clock, Tasks};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use serde_json::json;
use tokio::sync::watch;

use crate::apiserver::read;
use crate::component::{self, Component, ComponentArgs};
use crate::control_plane::ControlArgs;
use crate::error::Failure;
use crate::remote;
use crate::signer::{ClusterSigner, TokenKey};

const NAME: &str = "kube-controller-manager";
const PORT: u16 = 10257;
/// What the controllers read with: one copy for all.
const INFORMERS: &str = "informers";
const NAMESPACE: &str = "kube-system";
/// How long the server may take to serve a definition after it changed.
const SETTLE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];
/// Between two tries to learn what an API server serves that does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// Options of `controller-manager`: upstream's names.
#[derive(Args, Clone, Debug)]
pub struct ControllerManagerArgs {
    /// Kubeconfig file that says where the API server is and who asks.
    #[arg(long, env = "KUBECONFIG")]
    pub kubeconfig: PathBuf,
    /// Let each controller act as its own service account of kube-system.
    #[arg(
        long,
        default_value_t = false,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub use_service_account_credentials: bool,
    /// Certificate of the CA that signs certificate requests; without, requests stay open.
    #[arg(long, requires = "cluster_signing_key_file")]
    pub cluster_signing_cert_file: Option<PathBuf>,
    /// Its key.
    #[arg(long, requires = "cluster_signing_cert_file")]
    pub cluster_signing_key_file: Option<PathBuf>,
    /// CA that is published to every namespace; default that of the kubeconfig.
    #[arg(long)]
    pub root_ca_file: Option<PathBuf>,
    /// Key (PEM) that signs the tokens which Secrets hold; without, such Secrets stay as they are.
    #[arg(long)]
    pub service_account_private_key_file: Option<PathBuf>,
    /// Whether nodes get ranges of pod addresses of their own out of --cluster-cidr.
    #[arg(
        long,
        default_value_t = false,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub allocate_node_cidrs: bool,
    /// Ranges of pod addresses, at most one of each family.
    #[arg(long, value_delimiter = ',')]
    pub cluster_cidr: Vec<String>,
    /// Ranges of service addresses, of which nodes get nothing.
    #[arg(long, value_delimiter = ',')]
    pub service_cluster_ip_range: Vec<String>,
    /// Leading bits of a node's range, in clusters of one family. Default 24 for IPv4 and 64 for IPv6.
    #[arg(long, conflicts_with_all = ["node_cidr_mask_size_ipv4", "node_cidr_mask_size_ipv6"])]
    pub node_cidr_mask_size: Option<u32>,
    /// Leading bits of a node's IPv4 range.
    #[arg(long, default_value_t = 24)]
    pub node_cidr_mask_size_ipv4: u32,
    /// Leading bits of a node's IPv6 range.
    #[arg(long, default_value_t = 64)]
    pub node_cidr_mask_size_ipv6: u32,
    /// Longest life of a certificate that is signed.
    #[arg(long, default_value = "8760h0m0s", value_parser = duration)]
    pub cluster_signing_duration: Duration,
    /// The controllers.
    #[command(flatten)]
    pub control: ControlArgs,
    /// Its port, and who may read there.
    #[command(flatten)]
    pub component: ComponentArgs,
}

impl ControllerManagerArgs {
    fn node_cidrs(&self) -> Result<Option<NodeCidrs>, Failure> {
        if !self.allocate_node_cidrs {
            return Ok(None);
        }
        let both = (self.node_cidr_mask_size_ipv4, self.node_cidr_mask_size_ipv6);
        let masks = self.node_cidr_mask_size.map_or(both, |bits| (bits, bits));
        NodeCidrs::new(&self.cluster_cidr, masks, &self.service_cluster_ip_range)
            .map(Some)
            .map_err(Failure::usage)
    }

    fn signer(&self) -> Result<Option<ClusterSigner>, Failure> {
        let Some((cert, key)) =
            self.cluster_signing_cert_file.as_ref().zip(self.cluster_signing_key_file.as_ref())
        else {
            return Ok(None);
        };
        let ca = CertificateAuthority::load(&read(cert)?, &read(key)?);
        ca.map(|ca| Some(ClusterSigner(ca))).map_err(|e| {
            Failure::new(
                format!("{}: {e}", cert.display()),
                "give the certificate of a CA and its key, as PEM",
            )
        })
    }

    fn token_signer(&self) -> Result<Option<TokenKey>, Failure> {
        let Some(path) = &self.service_account_private_key_file else { return Ok(None) };
        let issuer = TokenIssuer::new(&read(path)?, "kubernetes/serviceaccount", Vec::new());
        issuer
            .map(|issuer| Some(TokenKey(issuer)))
            .map_err(|e| Failure::new(format!("{}: {e}", path.display()), "give a PEM private key"))
    }
}

/// Clients of one server, by the name of who asks.
struct Clients {
    own: remote::Server,
    /// Connections that show no certificate, for those who show a token; only where each has its own identity.
    bare: Option<Arc<RemoteServer>>,
    made: Mutex<HashMap<String, Client>>,
}

impl Clients {
    fn open(path: &Path, with_accounts: bool) -> Result<(Self, RemoteConfig), Failure> {
        let (url, config) = remote::config(path)?;
        let dial = |config: &RemoteConfig| config.dial(&url).map_err(|why| remote::failed(path, &why));
        let bare = RemoteConfig { identity: None, bearer: None, ..config.clone() };
        let bare = with_accounts.then(|| dial(&bare)).transpose()?.map(|dial| RemoteServer::new(&url, dial));
        let own = remote::Server::new(path, &url, &config, NAME)?;
        Ok((Self { own, bare, made: Mutex::default() }, config))
    }

    /// The client of a controller.
    fn of(&self, name: &str) -> Client {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || match &self.bare {
            Some(bare) if name != INFORMERS => {
                let token = AccountToken::new(self.own.client("tokens"), NAMESPACE, name);
                let agent = self.own.agent(&format!("system:serviceaccount:{NAMESPACE}:{name}"));
                Client::new(bare.transport(&agent, Credential::Account(token)))
            }
            _ => self.own.client(name),
        };
        made.entry(name.to_owned()).or_insert_with(make).clone()
    }
}

/// Runs until SIGTERM or Ctrl-C.
///
/// # Errors
/// A flag or file that cannot be used.
pub async fn run(args: ControllerManagerArgs) -> Result<(), Failure> {
    args.control.check()?;
    let clock = Clock::system();
    let (clients, remote) = Clients::open(&args.kubeconfig, args.use_service_account_credentials)?;
    let (clients, own) = {
        let clients = Arc::new(clients);
        (clients.clone(), clients)
    };
    let root_ca = args.root_ca_file.as_deref().map(read).transpose()?;
    let root_ca = root_ca.or(remote.ca_pem).unwrap_or_default();
    let mut config = args.control.config(root_ca, Vec::new(), &["*"]);
    config.certificate_life = args.cluster_signing_duration;
    config.node_cidrs = args.node_cidrs()?;
    config.signer = args.signer()?.map(|signer| Arc::new(signer) as _);
    config.token_signer = args.token_signer()?.map(|signer| Arc::new(signer) as _);
    let (told, customs) = watch::channel(Vec::new());
    config.customs = customs;
    let mut beside = Tasks::new();
    let discovery =
        Arc::new(Discovery { client: clients.own.client(INFORMERS), told, names: Mutex::default() });
    let asked = discovery.clone();
    config.refresh = Some(Arc::new(move || {
        let asked = asked.clone();
        Box::pin(async move { asked.refresh().await?.complete() })
    }));
    beside.supervise("discovery", move || discovery.clone().follow());
    let work = {
        let (clients, clock) = (clients.clone(), clock.clone());
        move || {
            let clients = clients.clone();
            let make: MakeClient = Arc::new(move |name| clients.of(name));
            let (config, clock) = (config.clone(), clock.clone());
            async move {
                // Who deletes a namespace must know what may be in it.
                let _ = config.customs.clone().wait_for(|served| !served.is_empty()).await;
                coracle_controllers::run(config, make, clock).await;
            }
        }
    };
    let config = json!({ "kubecontrollermanager.config.k8s.io": { "Generic": {
        "Port": args.component.secure_port.unwrap_or(PORT), "Address": args.component.bind_address,
        "Controllers": args.control.controllers,
        "LeaderElection": args.control.leader.shown(NAME, &args.component),
    } } });
    let component =
        Component { name: NAME, port: PORT, checks: &[("/healthz", &["leaderElection"])], config };
    let client = |purpose: &str| own.own.client(purpose);
    component::run(component, (&args.component, &args.control.leader), clock, client, work).await
}

/// What the server serves, and who is told.
struct Discovery {
    client: Client,
    told: watch::Sender<Vec<ResourceEntry>>,
    names: Mutex<BTreeSet<&'static str>>,
}

impl Discovery {
    /// Asks anew, and tells of it. What was served before and cannot be asked about now is still served.
    async fn refresh(&self) -> Result<Catalogue, Status> {
        let catalogue = discover(&self.client).await?;
        let mut entries: Vec<ResourceEntry> = {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            catalogue.found.iter().filter_map(|found| entry(found, &mut names)).collect()
        };
        self.told.send_if_modified(|known| {
            let kept = kept(known, &entries, &catalogue);
            entries.extend(kept);
            let is_news = *known != entries;
            *known = entries;
            is_news
        });
        Ok(catalogue)
    }

    /// Tells of it now and whenever a definition or a server behind it comes or goes.
    async fn follow(self: Arc<Self>) {
        let informers = Informers::new(self.client.clone());
        let mut definitions = informers.get::<CustomResourceDefinition>().subscribe();
        let mut services = informers.get::<APIService>().subscribe();
        loop {
            if let Err(status) = self.refresh().await {
                tracing::warn!(%status, "the API server does not tell what it serves; asking again");
                tokio::time::sleep(RETRY).await;
                continue;
            }
            tokio::select! {
                change = definitions.next() => if change.is_none() { return },
                change = services.next() => if change.is_none() { return },
            }
            for wait in SETTLE {
                tokio::time::sleep(wait).await;
                while definitions.try_next().is_some() || services.try_next().is_some() {}
                let _ = self.refresh().await;
            }
        }
    }
}

/// What of the known resources belongs to groups that did not answer this time.
fn kept(known: &[ResourceEntry], now: &[ResourceEntry], catalogue: &Catalogue) -> Vec<ResourceEntry> {
    let is_told = |entry: &ResourceEntry| {
        now.iter().any(|new| new.id.group == entry.id.group && new.id.resource == entry.id.resource)
    };
    known.iter().filter(|entry| catalogue.is_incomplete(entry.id.group) && !is_told(entry)).copied().collect()
}

/// A resource whose objects controllers can follow and delete. Events are found in their first group only.
fn entry(found: &Discovered, names: &mut BTreeSet<&'static str>) -> Option<ResourceEntry> {
    let can = |verb: &str| found.verbs.iter().any(|known| known == verb);
    if !can("list") || !can("watch") || !can("delete") || found.group == "events.k8s.io" {
        return None;
    }
    // There are only so many names: each is kept once, for good.
    let mut kept = |text: &str| match names.get(text) {
        Some(known) => *known,
        None => {
            let new: &'static str = text.to_owned().leak();
            names.insert(new);
            new
        }
    };
    let id = ResourceId {
        group: kept(&found.group),
        version: kept(&found.version),
        resource: kept(&found.resource),
    };
    Some(ResourceEntry { id, namespaced: found.namespaced, kind: kept(&found.kind) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_asked_about_now_is_still_served() {
        let entry = |group: &'static str| {
            let id = ResourceId { group, version: "v1", resource: "things" };
            ResourceEntry { id, namespaced: true, kind: "Thing" }
        };
        let mut catalogue = Catalogue::default();
        catalogue.failed.insert("slow.example.com/v1".to_owned(), Status::unavailable("not now"));
        let known = [entry("slow.example.com"), entry("gone.example.com")];
        assert_eq!(kept(&known, &[], &catalogue), [entry("slow.example.com")]);
        assert_eq!(kept(&known, &[entry("slow.example.com")], &catalogue), []);
        let why = catalogue.complete().unwrap_err().to_string();
        assert!(
            why.contains("Discovery failed for some groups, 1 failing")
                && why.contains("slow.example.com/v1: ")
        );
    }

    #[test]
    fn only_what_can_be_followed_and_deleted_is_told_and_names_are_kept_once() {
        let found = |group: &str, verbs: &[&str]| Discovered {
            group: group.to_owned(),
            version: "v1".to_owned(),
            resource: "events".to_owned(),
            kind: "Event".to_owned(),
            namespaced: true,
            verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(),
        };
        let mut names = BTreeSet::new();
        let all = ["list", "watch", "delete"];
        let first = entry(&found("", &all), &mut names).expect("followed");
        assert_eq!((first.id.group, first.kind), ("", "Event"));
        assert!(entry(&found("events.k8s.io", &all), &mut names).is_none(), "a twin");
        assert!(entry(&found("metrics.k8s.io", &["get", "list"]), &mut names).is_none());
        let again = entry(&found("", &all), &mut names).expect("followed");
        assert!(std::ptr::eq(first.kind, again.kind));
        assert_eq!(names.len(), 4);
    }
}
