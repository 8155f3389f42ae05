//! The controller runtime and the controllers: one file or folder each, and one row in [`ALL`].

mod attach_detach;
mod bootstrap_tokens;
pub mod certificates;
mod claim;
mod cluster_role_aggregation;
mod cronjob;
mod daemonset;
mod deployment;
mod device_taint_eviction;
mod disruption;
mod endpoints;
mod ephemeral_volumes;
mod finalizer;
mod garbage_collector;
mod hashing;
mod job;
mod legacy_tokens;
pub mod load_balancer;
mod mirroring;
mod namespace;
pub mod node_ipam;
mod node_lifecycle;
mod node_ttl;
mod own_writes;
mod pod_gc;
mod podautoscaler;
mod pods;
mod policy_status;
mod prefix;
mod quota;
mod replicaset;
mod resource_claims;
#[cfg(test)]
mod restarts;
mod revisions;
mod rollouts;
mod root_ca;
pub mod runtime;
pub mod served;
mod service_account;
mod service_account_tokens;
mod service_cidr;
mod statefulset;
mod sweep;
#[cfg(test)]
mod testing;
mod ttl_after_finished;
mod volume_binder;
mod volume_class_protection;
mod volume_expander;
mod volume_protection;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use coracle_client::{Informers, ResourceId};
use coracle_stdx::{Clock, Tasks};
use futures::future::BoxFuture;
use jiff::SignedDuration;
use tokio::sync::watch;
use tracing::warn;

use certificates::CertificateSigner;
pub use deployment::is_current;
use node_ipam::NodeCidrs;
pub use node_lifecycle::EvictionRates;
pub use podautoscaler::AutoscalerSettings;
use rollouts::Rollouts;
use runtime::{Context, MakeClient};
use served::{Refresh, Served};
pub use service_account_tokens::TokenSigner;

/// A served resource, as namespace deletion and garbage collection need to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResourceEntry {
    /// Group, version and plural.
    pub id: ResourceId,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Kind in CamelCase.
    pub kind: &'static str,
}

/// Settings of the controllers.
#[derive(Clone)]
pub struct ControllersConfig {
    /// The cluster's CA, published to every namespace as `kube-root-ca.crt`.
    pub root_ca_pem: String,
    /// Every served resource that supports list, watch and delete, one version each, without Events' twins.
    pub resources: Vec<ResourceEntry>,
    /// Which controllers run, by upstream's names: `*` is all, `-name` all but this one.
    pub controllers: Vec<String>,
    /// Signs certificates; without it, requests stay open.
    pub signer: Option<Arc<dyn CertificateSigner>>,
    /// Signs the tokens that Secrets hold; without it, such Secrets stay as they are.
    pub token_signer: Option<Arc<dyn TokenSigner>>,
    /// The custom resources that are served now; changes while the controllers run.
    pub customs: watch::Receiver<Vec<ResourceEntry>>,
    /// Brings `customs` up to date at once, where it tells late: of a server elsewhere.
    pub refresh: Option<Refresh>,
    /// Finished pods kept in the whole cluster.
    pub terminated_pod_threshold: usize,
    /// A node not heard of for this long is not ready.
    pub node_monitor_grace_period: Duration,
    /// The same for a node that never reported.
    pub node_startup_grace_period: Duration,
    /// Longest life of a certificate that is signed.
    pub certificate_life: Duration,
    /// How fast nodes that are not ready lose their pods.
    pub eviction_rates: EvictionRates,
    /// Rollouts that may go on at once in the whole cluster; 0 is no limit.
    pub max_concurrent_rollouts: usize,
    /// TCP ports of the nodes that the cluster itself answers on: no Service gets them.
    pub reserved_ports: Vec<u16>,
    /// Settings of the horizontal pod autoscaler.
    pub autoscaler: AutoscalerSettings,
    /// Ranges of pod addresses that nodes get; without, they get none.
    pub node_cidrs: Option<NodeCidrs>,
    /// For how long nobody must have used a token that was made for an account of old before it goes.
    pub legacy_token_clean_up_period: SignedDuration,
}

impl fmt::Debug for ControllersConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ControllersConfig({:?})", self.controllers)
    }
}

impl ControllersConfig {
    /// Upstream's values for all but what only the cluster knows.
    pub fn new(root_ca_pem: String, resources: Vec<ResourceEntry>) -> Self {
        Self {
            root_ca_pem,
            resources,
            controllers: vec!["*".to_owned()],
            signer: None,
            token_signer: None,
            customs: watch::channel(Vec::new()).1,
            refresh: None,
            terminated_pod_threshold: 12_500,
            node_monitor_grace_period: Duration::from_secs(50),
            node_startup_grace_period: Duration::from_secs(60),
            certificate_life: Duration::from_secs(365 * 24 * 3600),
            eviction_rates: EvictionRates::UPSTREAM,
            max_concurrent_rollouts: 0,
            reserved_ports: Vec::new(),
            autoscaler: AutoscalerSettings::UPSTREAM,
            node_cidrs: None,
            legacy_token_clean_up_period: SignedDuration::from_hours(365 * 24),
        }
    }
}

/// Starts a part of a controller: returns when it ended, to be started again.
type Start = fn(&Context) -> BoxFuture<'static, ()>;

/// A controller as `--controllers` knows it.
struct Row {
    name: &'static str,
    /// What upstream called it before; empty if it never had another name.
    alias: &'static str,
    /// Whether `*` means it too.
    by_default: bool,
    parts: &'static [Start],
    /// What it would need to have anything to do, where that is missing.
    needs: &'static str,
}

const fn on(name: &'static str, alias: &'static str, parts: &'static [Start]) -> Row {
    Row { name, alias, by_default: true, parts, needs: "" }
}

/// A controller that runs only where it is named.
const fn asked(name: &'static str, alias: &'static str, parts: &'static [Start]) -> Row {
    Row { by_default: false, ..on(name, alias, parts) }
}

/// A name that upstream knows, of a controller that has nothing to do here.
const fn absent(name: &'static str, alias: &'static str, needs: &'static str) -> Row {
    Row { needs, ..on(name, alias, &[]) }
}

/// All controllers, by upstream's names.
const ALL: &[Row] = &[
    on("serviceaccount-token-controller", "serviceaccount-token", &[service_account_tokens::run]),
    on("endpoints-controller", "endpoint", &[endpoints::run]),
    on("endpointslice-controller", "endpointslice", &[endpoints::slices::run]),
    on("endpointslice-mirroring-controller", "endpointslicemirroring", &[mirroring::run]),
    on("replicationcontroller-controller", "replicationcontroller", &[replicaset::run_replication]),
    on("pod-garbage-collector-controller", "podgc", &[pod_gc::run]),
    on("resourcequota-controller", "resourcequota", &[quota::run]),
    on("namespace-controller", "namespace", &[namespace::run]),
    on("serviceaccount-controller", "serviceaccount", &[service_account::run]),
    on("garbage-collector-controller", "garbagecollector", &[garbage_collector::run]),
    on("daemonset-controller", "daemonset", &[daemonset::run]),
    on("job-controller", "job", &[job::run, job::run_orphans]),
    on("deployment-controller", "deployment", &[deployment::run]),
    on("replicaset-controller", "replicaset", &[replicaset::run]),
    on("horizontal-pod-autoscaler-controller", "horizontalpodautoscaling", &[podautoscaler::run]),
    on("disruption-controller", "disruption", &[disruption::run, disruption::run_stale]),
    on("statefulset-controller", "statefulset", &[statefulset::run]),
    on("cronjob-controller", "cronjob", &[cronjob::run]),
    on("certificatesigningrequest-signing-controller", "csrsigning", &[certificates::run_signer]),
    on("certificatesigningrequest-approving-controller", "csrapproving", &[certificates::run_approver]),
    on("certificatesigningrequest-cleaner-controller", "csrcleaner", &[certificates::run_cleaner]),
    absent(
        "podcertificaterequest-cleaner-controller",
        "",
        "PodCertificateRequests, which the API serves only on request",
    ),
    on("ttl-controller", "ttl", &[node_ttl::run]),
    asked("bootstrap-signer-controller", "bootstrapsigner", &[bootstrap_tokens::run_signer]),
    asked("token-cleaner-controller", "tokencleaner", &[bootstrap_tokens::run_cleaner]),
    on("node-ipam-controller", "nodeipam", &[node_ipam::run]),
    on("node-lifecycle-controller", "nodelifecycle", &[node_lifecycle::run]),
    on("taint-eviction-controller", "", &[node_lifecycle::run_eviction]),
    on("device-taint-eviction-controller", "", &[device_taint_eviction::run]),
    on("service-lb-controller", "service", &[load_balancer::run]),
    absent("node-route-controller", "route", "a cloud provider"),
    absent("cloud-node-lifecycle-controller", "cloud-node-lifecycle", "a cloud provider"),
    on("persistentvolume-binder-controller", "persistentvolume-binder", &[volume_binder::run]),
    on("persistentvolume-attach-detach-controller", "attachdetach", &[attach_detach::run]),
    on("persistentvolume-expander-controller", "persistentvolume-expander", &[volume_expander::run]),
    on("clusterrole-aggregation-controller", "clusterrole-aggregation", &[cluster_role_aggregation::run]),
    on("persistentvolumeclaim-protection-controller", "pvc-protection", &[volume_protection::run_claims]),
    on("persistentvolume-protection-controller", "pv-protection", &[volume_protection::run_volumes]),
    absent("podgroup-protection-controller", "", "PodGroups, which the API serves only on request"),
    on("ttl-after-finished-controller", "ttl-after-finished", &[ttl_after_finished::run]),
    on("root-ca-certificate-publisher-controller", "root-ca-cert-publisher", &[root_ca::run]),
    absent(
        "kube-apiserver-serving-clustertrustbundle-publisher-controller",
        "",
        "ClusterTrustBundles, which the API serves only on request",
    ),
    on("ephemeral-volume-controller", "ephemeral-volume", &[ephemeral_volumes::run]),
    absent(
        "storageversion-garbage-collector-controller",
        "storage-version-gc",
        "StorageVersions, which the API serves only on request",
    ),
    on(
        "resourceclaim-controller",
        "resource-claim-controller",
        &[resource_claims::run_pods, resource_claims::run_claims],
    ),
    absent(
        "resourcepoolstatusrequest-controller",
        "",
        "ResourcePoolStatusRequests, which the API serves only on request",
    ),
    on(
        "legacy-serviceaccount-token-cleaner-controller",
        "legacy-service-account-token-cleaner",
        &[legacy_tokens::run],
    ),
    on("validatingadmissionpolicy-status-controller", "", &[policy_status::run]),
    on("volumeattributesclass-protection-controller", "", &[volume_class_protection::run]),
    on("service-cidr-controller", "", &[service_cidr::run]),
    absent(
        "storage-version-migrator-controller",
        "svm",
        "StorageVersionMigrations, which the API serves only on request",
    ),
    absent("selinux-warning-controller", "", "SELinux"),
];

/// The names that `--controllers` knows, those of before included.
pub fn names() -> Vec<&'static str> {
    ALL.iter().flat_map(|row| [row.name, row.alias]).filter(|name| !name.is_empty()).collect()
}

/// Whether a list of names, as of `--controllers`, lets a controller run: the first mention counts, then `*`.
fn is_enabled(list: &[String], row: &Row) -> bool {
    let is_it = |name: &str| name == row.name || (!row.alias.is_empty() && name == row.alias);
    for entry in list {
        if is_it(entry) {
            return true;
        }
        if entry.strip_prefix('-').is_some_and(is_it) {
            return false;
        }
    }
    row.by_default && list.iter().any(|entry| entry == "*")
}

/// Runs all controllers for as long as it is polled. `make_client` gives a client that acts as the service
/// account `kube-system/<name>`; the shared informers read as `informers`.
///
/// Guarantees: a controller that fails is started again; one failing key never stops the others. Nothing
/// runs while nothing changes.
pub async fn run(config: ControllersConfig, make_client: MakeClient, clock: Clock) {
    let informers = Informers::new(make_client("informers"));
    let served = Served::new(config.resources.clone(), config.customs.clone());
    let served = served.with_refresh(config.refresh.clone());
    let rollouts = Rollouts::new(config.max_concurrent_rollouts, clock.clone());
    let cx = Context { config: Arc::new(config), informers, served, rollouts, make_client, clock };
    let mut tasks = Tasks::new();
    for row in ALL.iter().filter(|row| is_enabled(&cx.config.controllers, row)) {
        if row.parts.is_empty() && cx.config.controllers.iter().any(|entry| entry == row.name) {
            warn!(controller = row.name, "has nothing to do: it needs {}", row.needs);
        }
        for start in row.parts {
            let cx = cx.clone();
            tasks.supervise(row.name, move || start(&cx));
        }
    }
    tasks.join().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_switched_by_name_and_by_the_names_they_had() {
        let runs = |text: &str, name: &str| {
            let list: Vec<String> = text.split(',').map(str::to_owned).collect();
            is_enabled(&list, ALL.iter().find(|row| row.name == name).expect("a controller"))
        };
        assert!(runs("*", "job-controller"));
        assert!(!runs("*,-job-controller", "job-controller"));
        assert!(!runs("*,-job", "job-controller"));
        assert!(runs("*,-job-controller", "cronjob-controller"));
        assert!(runs("job-controller", "job-controller") && runs("job", "job-controller"));
        assert!(!runs("job-controller", "cronjob-controller"));
        assert!(!runs("*", "bootstrap-signer-controller"), "only where it is named");
        assert!(runs("*,bootstrapsigner", "bootstrap-signer-controller"));
    }

    #[test]
    fn no_two_controllers_share_a_name_and_each_runs_or_says_what_it_needs() {
        let mut all = names();
        let known = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), known);
        assert!(ALL.iter().all(|row| row.parts.is_empty() != row.needs.is_empty()));
    }
}
