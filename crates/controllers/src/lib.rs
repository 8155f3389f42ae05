//! The controller runtime and the controllers: one file or folder each, listed in [`run`].

mod claim;
mod cluster_role_aggregation;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod garbage_collector;
mod hashing;
mod job;
mod namespace;
mod node_lifecycle;
mod own_writes;
mod pod_gc;
mod pods;
mod replicaset;
mod revisions;
mod root_ca;
pub mod runtime;
mod service_account;
mod statefulset;
#[cfg(test)]
mod testing;
mod ttl_after_finished;

use std::sync::Arc;
use std::time::Duration;

use coracle_client::{Informers, ResourceId};
use coracle_stdx::{Clock, Tasks};
use futures::future::BoxFuture;
use tokio::sync::watch;

use runtime::{Context, MakeClient};

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
#[derive(Clone, Debug)]
pub struct ControllersConfig {
    /// The cluster's CA, published to every namespace as `kube-root-ca.crt`.
    pub root_ca_pem: String,
    /// Every served resource that supports list, watch and delete, one version each, without Events' twins.
    pub resources: Vec<ResourceEntry>,
    /// The custom resources that are served now; changes while the controllers run.
    pub customs: watch::Receiver<Vec<ResourceEntry>>,
    /// Finished pods kept in the whole cluster.
    pub terminated_pod_threshold: usize,
    /// A node not heard of for this long is not ready.
    pub node_monitor_grace_period: Duration,
    /// The same for a node that never reported.
    pub node_startup_grace_period: Duration,
}

impl ControllersConfig {
    /// Upstream's values for all but what only the cluster knows.
    pub fn new(root_ca_pem: String, resources: Vec<ResourceEntry>) -> Self {
        Self {
            root_ca_pem,
            resources,
            customs: watch::channel(Vec::new()).1,
            terminated_pod_threshold: 12_500,
            node_monitor_grace_period: Duration::from_secs(50),
            node_startup_grace_period: Duration::from_secs(60),
        }
    }
}

/// Starts a controller: returns when one of its parts ended, to be started again.
type Start = fn(&Context) -> BoxFuture<'static, ()>;

/// All controllers, by the name of their service account.
const ALL: &[(&str, Start)] = &[
    (deployment::DESCRIPTOR.name, deployment::run),
    (replicaset::DESCRIPTOR.name, replicaset::run),
    (replicaset::REPLICATION.name, replicaset::run_replication),
    (daemonset::DESCRIPTOR.name, daemonset::run),
    (statefulset::DESCRIPTOR.name, statefulset::run),
    (job::DESCRIPTOR.name, job::run),
    ("job-controller-orphans", job::run_orphans),
    (cronjob::DESCRIPTOR.name, cronjob::run),
    (disruption::DESCRIPTOR.name, disruption::run),
    ("disruption-controller-stale", disruption::run_stale),
    (ttl_after_finished::DESCRIPTOR.name, ttl_after_finished::run),
    (endpoints::slices::DESCRIPTOR.name, endpoints::slices::run),
    (endpoints::DESCRIPTOR.name, endpoints::run),
    (namespace::DESCRIPTOR.name, namespace::run),
    (service_account::DESCRIPTOR.name, service_account::run),
    (root_ca::DESCRIPTOR.name, root_ca::run),
    (node_lifecycle::DESCRIPTOR.name, node_lifecycle::run),
    ("taint-eviction", node_lifecycle::run_eviction),
    (pod_gc::DESCRIPTOR.name, pod_gc::run),
    (garbage_collector::DESCRIPTOR.name, garbage_collector::run),
    (cluster_role_aggregation::DESCRIPTOR.name, cluster_role_aggregation::run),
];

/// Runs all controllers for as long as it is polled. `make_client` gives a client that acts as the service
/// account `kube-system/<name>`; the shared informers read as `informers`.
///
/// Guarantees: a controller that fails is started again; one failing key never stops the others. Nothing
/// runs while nothing changes.
pub async fn run(config: ControllersConfig, make_client: MakeClient, clock: Clock) {
    let informers = Informers::new(make_client("informers"));
    let cx = Context { config: Arc::new(config), informers, make_client, clock };
    let mut tasks = Tasks::new();
    for (name, start) in ALL {
        let cx = cx.clone();
        tasks.supervise(name, move || start(&cx));
    }
    tasks.join().await;
}
