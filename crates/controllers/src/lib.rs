//! The controller runtime and the controllers: one file or folder each, listed in [`run`].

mod bootstrap_tokens;
pub mod certificates;
mod claim;
mod cluster_role_aggregation;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod ephemeral_volumes;
mod finalizer;
mod garbage_collector;
mod hashing;
mod job;
pub mod load_balancer;
mod mirroring;
mod namespace;
mod node_lifecycle;
mod node_ttl;
mod own_writes;
mod pod_gc;
mod podautoscaler;
mod pods;
mod policy_status;
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
#[cfg(test)]
mod testing;
mod ttl_after_finished;
mod volume_binder;
mod volume_class_protection;
mod volume_protection;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use coracle_client::{Informers, ResourceId};
use coracle_stdx::{Clock, Tasks};
use futures::future::BoxFuture;
use tokio::sync::watch;

use certificates::CertificateSigner;
pub use podautoscaler::AutoscalerSettings;
use rollouts::Rollouts;
use runtime::{Context, MakeClient};
use served::Served;
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
    /// Finished pods kept in the whole cluster.
    pub terminated_pod_threshold: usize,
    /// A node not heard of for this long is not ready.
    pub node_monitor_grace_period: Duration,
    /// The same for a node that never reported.
    pub node_startup_grace_period: Duration,
    /// Rollouts that may go on at once in the whole cluster; 0 is no limit.
    pub max_concurrent_rollouts: usize,
    /// TCP ports of the nodes that the cluster itself answers on: no Service gets them.
    pub reserved_ports: Vec<u16>,
    /// Settings of the horizontal pod autoscaler.
    pub autoscaler: AutoscalerSettings,
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
            terminated_pod_threshold: 12_500,
            node_monitor_grace_period: Duration::from_secs(50),
            node_startup_grace_period: Duration::from_secs(60),
            max_concurrent_rollouts: 0,
            reserved_ports: Vec::new(),
            autoscaler: AutoscalerSettings::UPSTREAM,
        }
    }
}

/// Starts a controller: returns when one of its parts ended, to be started again.
type Start = fn(&Context) -> BoxFuture<'static, ()>;

/// All controllers, by upstream's names. Two rows of one name are two parts of one controller.
const ALL: &[(&str, Start)] = &[
    ("deployment-controller", deployment::run),
    ("replicaset-controller", replicaset::run),
    ("replicationcontroller-controller", replicaset::run_replication),
    ("daemonset-controller", daemonset::run),
    ("statefulset-controller", statefulset::run),
    ("job-controller", job::run),
    ("job-controller", job::run_orphans),
    ("cronjob-controller", cronjob::run),
    ("ttl-after-finished-controller", ttl_after_finished::run),
    ("horizontal-pod-autoscaler-controller", podautoscaler::run),
    ("disruption-controller", disruption::run),
    ("disruption-controller", disruption::run_stale),
    ("endpointslice-controller", endpoints::slices::run),
    ("endpoints-controller", endpoints::run),
    ("namespace-controller", namespace::run),
    ("serviceaccount-token-controller", service_account_tokens::run),
    ("serviceaccount-controller", service_account::run),
    ("service-cidr-controller", service_cidr::run),
    ("service-lb-controller", load_balancer::run),
    ("ttl-controller", node_ttl::run),
    ("root-ca-certificate-publisher-controller", root_ca::run),
    ("node-lifecycle-controller", node_lifecycle::run),
    ("taint-eviction-controller", node_lifecycle::run_eviction),
    ("pod-garbage-collector-controller", pod_gc::run),
    ("garbage-collector-controller", garbage_collector::run),
    ("clusterrole-aggregation-controller", cluster_role_aggregation::run),
    ("resourcequota-controller", quota::run),
    ("validatingadmissionpolicy-status-controller", policy_status::run),
    ("certificatesigningrequest-signing-controller", certificates::run),
    ("bootstrap-signer-controller", bootstrap_tokens::run_signer),
    ("token-cleaner-controller", bootstrap_tokens::run_cleaner),
    ("persistentvolume-binder-controller", volume_binder::run),
    ("persistentvolumeclaim-protection-controller", volume_protection::run_claims),
    ("persistentvolume-protection-controller", volume_protection::run_volumes),
    ("volumeattributesclass-protection-controller", volume_class_protection::run),
    ("ephemeral-volume-controller", ephemeral_volumes::run),
    ("resourceclaim-controller", resource_claims::run_pods),
    ("resourceclaim-controller", resource_claims::run_claims),
    ("endpointslice-mirroring-controller", mirroring::run),
];

/// The names that `--controllers` knows.
pub fn names() -> Vec<&'static str> {
    let mut names: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
    names.dedup();
    names
}

/// Whether a list of names, as of `--controllers`, lets a controller run: the first mention counts, then `*`.
fn is_enabled(list: &[String], name: &str) -> bool {
    for entry in list {
        if entry == name {
            return true;
        }
        if entry.strip_prefix('-') == Some(name) {
            return false;
        }
    }
    list.iter().any(|entry| entry == "*")
}

/// Runs all controllers for as long as it is polled. `make_client` gives a client that acts as the service
/// account `kube-system/<name>`; the shared informers read as `informers`.
///
/// Guarantees: a controller that fails is started again; one failing key never stops the others. Nothing
/// runs while nothing changes.
pub async fn run(config: ControllersConfig, make_client: MakeClient, clock: Clock) {
    let informers = Informers::new(make_client("informers"));
    let served = Served::new(config.resources.clone(), config.customs.clone());
    let rollouts = Rollouts::new(config.max_concurrent_rollouts, clock.clone());
    let cx = Context { config: Arc::new(config), informers, served, rollouts, make_client, clock };
    let mut tasks = Tasks::new();
    for (name, start) in ALL.iter().filter(|(name, _)| is_enabled(&cx.config.controllers, name)) {
        let cx = cx.clone();
        tasks.supervise(name, move || start(&cx));
    }
    tasks.join().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_switched_by_name() {
        let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<String>>();
        assert!(is_enabled(&list("*"), "job-controller"));
        assert!(!is_enabled(&list("*,-job-controller"), "job-controller"));
        assert!(is_enabled(&list("*,-job-controller"), "cronjob-controller"));
        assert!(is_enabled(&list("job-controller"), "job-controller"));
        assert!(!is_enabled(&list("job-controller"), "cronjob-controller"));
        assert!(names().contains(&"daemonset-controller"));
    }
}
