//! The scheduler and the controllers: their options, by upstream's names, and how they are started; with leader
//! election where several replicas share a store.

use std::num::ParseFloatError;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgAction, Args};
use coracle_apiserver::ApiServer;
use coracle_auth::UserInfo;
use coracle_client::{Client, Election, ElectionTimes, ResourceId};
use coracle_controllers::certificates::CertificateSigner;
use coracle_controllers::{AutoscalerSettings, ControllersConfig, EvictionRates, ResourceEntry, TokenSigner};
use coracle_resources::def::{ResourceDef, Scope, Storage};
use coracle_scheduler::{Scheduler, SchedulerConfig};
use coracle_stdx::{Clock, Tasks, uuid};
use jiff::SignedDuration;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::component::ComponentArgs;
use crate::error::Failure;

/// How long the end waits for leases to be given up.
const GOODBYE: Duration = Duration::from_secs(5);

/// What runs in a cluster unless something else is asked for: new nodes join with bootstrap tokens.
const WITH_TOKENS: &[&str] = &["*", "bootstrap-signer-controller", "token-cleaner-controller"];

/// Options of leader election: upstream's.
#[derive(Args, Clone, Debug)]
pub struct LeaderArgs {
    /// Run scheduler and controllers only while leading, so that of several replicas one acts. Default: whether
    /// --etcd-servers is given.
    #[arg(long, env = "CORACLE_LEADER_ELECT", num_args = 0..=1, default_missing_value = "true", action = ArgAction::Set)]
    pub leader_elect: Option<bool>,
    /// A leader that was not heard of for this long is replaced.
    #[arg(long, env = "CORACLE_LEADER_ELECT_LEASE_DURATION", default_value = "15s", value_parser = duration)]
    pub leader_elect_lease_duration: Duration,
    /// A leader that cannot renew its lease for this long stops acting.
    #[arg(long, env = "CORACLE_LEADER_ELECT_RENEW_DEADLINE", default_value = "10s", value_parser = duration)]
    pub leader_elect_renew_deadline: Duration,
    /// Time between two attempts to take or renew the lease.
    #[arg(long, env = "CORACLE_LEADER_ELECT_RETRY_PERIOD", default_value = "2s", value_parser = duration)]
    pub leader_elect_retry_period: Duration,
    /// Namespace of the leases kube-controller-manager and kube-scheduler.
    #[arg(long, env = "CORACLE_LEADER_ELECT_RESOURCE_NAMESPACE", default_value = "kube-system")]
    pub leader_elect_resource_namespace: String,
}

impl LeaderArgs {
    /// Checks that the times go together.
    ///
    /// # Errors
    /// They do not.
    pub fn check(&self) -> Result<(), Failure> {
        let (lease, deadline) = (self.leader_elect_lease_duration, self.leader_elect_renew_deadline);
        if lease <= deadline {
            let (a, b) = ("--leader-elect-lease-duration", "--leader-elect-renew-deadline");
            return Err(Failure::usage(format!("{a} must be greater than {b}")));
        }
        if deadline <= self.leader_elect_retry_period.mul_f64(1.2) || self.leader_elect_retry_period.is_zero()
        {
            let (a, b) = ("--leader-elect-renew-deadline", "--leader-elect-retry-period");
            return Err(Failure::usage(format!("{a} must be greater than {b} times 1.2, and {b} than 0")));
        }
        Ok(())
    }

    /// As `/configz` shows it, for the program `name`.
    pub(crate) fn shown(&self, name: &str, component: &ComponentArgs) -> Value {
        let go = |time: Duration| format!("{}s", time.as_secs_f64());
        json!({
            "LeaderElect": self.leader_elect.unwrap_or(true),
            "LeaseDuration": go(self.leader_elect_lease_duration),
            "RenewDeadline": go(self.leader_elect_renew_deadline),
            "RetryPeriod": go(self.leader_elect_retry_period),
            "ResourceLock": component.leader_elect_resource_lock,
            "ResourceName": component.leader_elect_resource_name.as_deref().unwrap_or(name),
            "ResourceNamespace": self.leader_elect_resource_namespace,
        })
    }

    fn times(&self) -> ElectionTimes {
        ElectionTimes {
            lease_duration: self.leader_elect_lease_duration,
            renew_deadline: self.leader_elect_renew_deadline,
            retry_period: self.leader_elect_retry_period,
        }
    }
}

/// Options of the controllers and of leader election: upstream's.
#[derive(Args, Clone, Debug)]
pub struct ControlArgs {
    /// Controllers that run, by upstream's names: `*` is all that run by default, `name` also this one, `-name` not
    /// this one. Default: `*` and those for bootstrap tokens.
    #[arg(long, env = "CORACLE_CONTROLLERS", value_delimiter = ',')]
    pub controllers: Vec<String>,
    /// Of several replicas, one acts.
    #[command(flatten)]
    pub leader: LeaderArgs,
    /// Rollouts of Deployments, StatefulSets and DaemonSets that may go on at once in the whole cluster, first come
    /// first served; 0 is no limit.
    #[arg(long, env = "CORACLE_MAX_CONCURRENT_ROLLOUTS", default_value_t = 0)]
    pub max_concurrent_rollouts: usize,
    /// Finished pods that are kept; 0 keeps all.
    #[arg(long, env = "CORACLE_TERMINATED_POD_GC_THRESHOLD", default_value_t = 12_500)]
    pub terminated_pod_gc_threshold: usize,
    /// A node not heard of for this long is not ready.
    #[arg(long, env = "CORACLE_NODE_MONITOR_GRACE_PERIOD", default_value = "50s", value_parser = duration)]
    pub node_monitor_grace_period: Duration,
    /// Nodes of a zone that are tainted a second so that their pods go, while most of the zone is ready.
    #[arg(long, env = "CORACLE_NODE_EVICTION_RATE", default_value_t = 0.1, value_parser = rate)]
    pub node_eviction_rate: f64,
    /// The same while much of a large zone is not ready.
    #[arg(long, env = "CORACLE_SECONDARY_NODE_EVICTION_RATE", default_value_t = 0.01, value_parser = rate)]
    pub secondary_node_eviction_rate: f64,
    /// Zones of more nodes are large; smaller ones keep their pods while much of them is not ready.
    #[arg(long, env = "CORACLE_LARGE_CLUSTER_SIZE_THRESHOLD", default_value_t = 50)]
    pub large_cluster_size_threshold: usize,
    /// How much is much, as a share of a zone's nodes (at least three).
    #[arg(long, env = "CORACLE_UNHEALTHY_ZONE_THRESHOLD", default_value_t = 0.55, value_parser = share)]
    pub unhealthy_zone_threshold: f64,
    /// A node that never reported is not ready after this long.
    #[arg(long, env = "CORACLE_NODE_STARTUP_GRACE_PERIOD", default_value = "1m0s", value_parser = duration)]
    pub node_startup_grace_period: Duration,
    /// For how long nobody must have used a token in a Secret of an account of old before it goes.
    #[arg(
        long,
        env = "CORACLE_LEGACY_SERVICE_ACCOUNT_TOKEN_CLEAN_UP_PERIOD",
        default_value = "8760h0m0s",
        value_parser = duration
    )]
    pub legacy_service_account_token_clean_up_period: Duration,
    /// Time between two looks at a horizontal pod autoscaler.
    #[arg(long, env = "CORACLE_HORIZONTAL_POD_AUTOSCALER_SYNC_PERIOD", default_value = "15s", value_parser = duration)]
    pub horizontal_pod_autoscaler_sync_period: Duration,
    /// An autoscaler does not go below any recommendation of this time.
    #[arg(
        long,
        env = "CORACLE_HORIZONTAL_POD_AUTOSCALER_DOWNSCALE_STABILIZATION",
        default_value = "5m0s",
        value_parser = duration
    )]
    pub horizontal_pod_autoscaler_downscale_stabilization: Duration,
    /// How far usage may be off the target before an autoscaler acts, as a share of it.
    #[arg(
        long,
        env = "CORACLE_HORIZONTAL_POD_AUTOSCALER_TOLERANCE",
        default_value = "0.1",
        value_parser = share
    )]
    pub horizontal_pod_autoscaler_tolerance: f64,
    /// After a pod's start, its CPU figures may be left out for this long.
    #[arg(
        long,
        env = "CORACLE_HORIZONTAL_POD_AUTOSCALER_CPU_INITIALIZATION_PERIOD",
        default_value = "5m0s",
        value_parser = duration
    )]
    pub horizontal_pod_autoscaler_cpu_initialization_period: Duration,
    /// After a pod's start, changes of its readiness count as the first for this long.
    #[arg(
        long,
        env = "CORACLE_HORIZONTAL_POD_AUTOSCALER_INITIAL_READINESS_DELAY",
        default_value = "30s",
        value_parser = duration
    )]
    pub horizontal_pod_autoscaler_initial_readiness_delay: Duration,
}

/// A duration as Go writes them, e.g. `1m30s`.
fn duration(text: &str) -> Result<Duration, String> {
    coracle_meta::cron::duration(text)
}

fn rate(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|e: ParseFloatError| e.to_string())?;
    if number >= 0.0 { Ok(number) } else { Err("must not be negative".to_owned()) }
}

fn share(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|e: ParseFloatError| e.to_string())?;
    if (0.0..=1.0).contains(&number) { Ok(number) } else { Err("not between 0 and 1".to_owned()) }
}

impl ControlArgs {
    /// Checks what clap cannot.
    ///
    /// # Errors
    /// A controller that does not exist, or times that do not go together.
    pub fn check(&self) -> Result<(), Failure> {
        let known = coracle_controllers::names();
        let stray = |name: &&String| {
            let name = name.strip_prefix('-').unwrap_or(name);
            name != "*" && !known.contains(&name)
        };
        if let Some(name) = self.controllers.iter().find(stray) {
            let all = known.join(", ");
            return Err(Failure::usage(format!("{name:?} is not in the list of known controllers: {all}")));
        }
        self.leader.check()?;
        if self.horizontal_pod_autoscaler_sync_period.is_zero() {
            return Err(Failure::usage("--horizontal-pod-autoscaler-sync-period must be greater than 0"));
        }
        Ok(())
    }

    /// What controllers run, where the command itself lets `default` run.
    fn enabled(&self, default: &[&str]) -> Vec<String> {
        match self.controllers.as_slice() {
            [] => default.iter().map(|name| (*name).to_owned()).collect(),
            given => given.to_vec(),
        }
    }

    /// Settings of the controllers, where the command itself lets `default` run.
    pub(crate) fn config(
        &self,
        root_ca_pem: String,
        resources: Vec<ResourceEntry>,
        default: &[&str],
    ) -> ControllersConfig {
        let mut config = ControllersConfig::new(root_ca_pem, resources);
        config.controllers = self.enabled(default);
        config.terminated_pod_threshold = self.terminated_pod_gc_threshold;
        config.node_monitor_grace_period = self.node_monitor_grace_period;
        config.node_startup_grace_period = self.node_startup_grace_period;
        config.legacy_token_clean_up_period =
            SignedDuration::try_from(self.legacy_service_account_token_clean_up_period)
                .unwrap_or(SignedDuration::MAX);
        config.eviction_rates = EvictionRates {
            normal: self.node_eviction_rate,
            secondary: self.secondary_node_eviction_rate,
            large_cluster: self.large_cluster_size_threshold,
            unhealthy_zone: self.unhealthy_zone_threshold,
        };
        config.max_concurrent_rollouts = self.max_concurrent_rollouts;
        config.autoscaler = self.autoscaler();
        config
    }

    fn autoscaler(&self) -> AutoscalerSettings {
        let signed = |d: Duration| SignedDuration::try_from(d).unwrap_or(SignedDuration::MAX);
        AutoscalerSettings {
            sync_period: self.horizontal_pod_autoscaler_sync_period,
            downscale_stabilization: signed(self.horizontal_pod_autoscaler_downscale_stabilization),
            tolerance: self.horizontal_pod_autoscaler_tolerance,
            cpu_initialization_period: signed(self.horizontal_pod_autoscaler_cpu_initialization_period),
            initial_readiness_delay: signed(self.horizontal_pod_autoscaler_initial_readiness_delay),
        }
    }
}

/// What the control plane is started from.
pub struct ControlParts<'a> {
    /// The options.
    pub args: &'a ControlArgs,
    /// The API server it works on.
    pub server: &'a Arc<ApiServer>,
    /// The cluster's CA, published to every namespace.
    pub root_ca_pem: String,
    /// Signs certificates.
    pub signer: Option<Arc<dyn CertificateSigner>>,
    /// Signs tokens that Secrets hold.
    pub token_signer: Arc<dyn TokenSigner>,
    /// TCP ports that the cluster itself answers on.
    pub reserved_ports: Vec<u16>,
    /// The clock.
    pub clock: Clock,
    /// This machine among the candidates.
    pub host: &'a str,
    /// Whether other replicas may work on the same store.
    pub is_shared: bool,
}

/// A running control plane. Dropping it ends it at once; [`ControlPlane::end`] also gives up the lead.
pub struct ControlPlane {
    stop: watch::Sender<bool>,
    tasks: Tasks,
    _beside: Tasks,
}

impl ControlPlane {
    /// Starts scheduler and controllers, or their candidates.
    pub fn start(parts: ControlParts<'_>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (mut tasks, mut beside) = (Tasks::new(), Tasks::new());
        let controllers = controllers(&parts, &mut beside);
        let scheduler = {
            let (server, clock) = (parts.server.clone(), parts.clock.clone());
            move || {
                let user = UserInfo::authenticated("system:kube-scheduler", &[]);
                let scheduler = Scheduler::new(
                    Client::new(server.transport(user)),
                    clock.clone(),
                    SchedulerConfig::default(),
                );
                async move { scheduler.run().await }
            }
        };
        if parts.args.leader.leader_elect.unwrap_or(parts.is_shared) {
            let candidate = |name: &str| Candidate {
                client: Client::new(
                    parts.server.transport(UserInfo::authenticated(&format!("system:{name}"), &[])),
                ),
                args: &parts.args.leader,
                lease: None,
                host: parts.host,
                clock: parts.clock.clone(),
            };
            let manager = candidate("kube-controller-manager");
            lead(&manager, &mut tasks, &stopped, "kube-controller-manager", controllers);
            lead(&candidate("kube-scheduler"), &mut tasks, &stopped, "kube-scheduler", scheduler);
        } else {
            beside.supervise("controllers", controllers);
            beside.supervise("scheduler", scheduler);
        }
        Self { stop, tasks, _beside: beside }
    }

    /// Ends it, and gives up the lead so that another replica need not wait for it.
    pub async fn end(mut self) {
        self.stop.send_replace(true);
        if tokio::time::timeout(GOODBYE, self.tasks.join()).await.is_err() {
            tracing::warn!("the lead was not given up in time");
        }
    }
}

/// Who stands for an election, and how.
pub(crate) struct Candidate<'a> {
    pub(crate) client: Client,
    pub(crate) args: &'a LeaderArgs,
    /// Name of the lease; default that of the program.
    pub(crate) lease: Option<&'a str>,
    pub(crate) host: &'a str,
    pub(crate) clock: Clock,
}

/// Runs `work` under supervision while leading under `name`.
pub(crate) fn lead<F, Fut>(
    candidate: &Candidate<'_>,
    tasks: &mut Tasks,
    stopped: &watch::Receiver<bool>,
    name: &'static str,
    work: F,
) where
    F: Fn() -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let Candidate { client, args, lease, host, clock } = candidate;
    let identity = format!("{host}_{}", uuid());
    let namespace = &args.leader_elect_resource_namespace;
    let lease = lease.unwrap_or(name);
    let election = Election::new(client, clock.clone(), namespace, lease, &identity, args.times());
    let stopped = stopped.clone();
    tasks.spawn(async move {
        let supervised = || {
            let work = work.clone();
            async move {
                let mut tasks = Tasks::new();
                tasks.supervise(name, work);
                tasks.join().await;
            }
        };
        election.lead(stopped, supervised).await;
    });
}

fn entry_of(def: &ResourceDef) -> ResourceEntry {
    ResourceEntry {
        id: ResourceId { group: def.group, version: def.version, resource: def.plural },
        namespaced: def.scope == Scope::Namespaced,
        kind: def.kind,
    }
}

/// The controllers' work; what custom resources there are is told to them from a task of its own.
fn controllers(
    parts: &ControlParts<'_>,
    tasks: &mut Tasks,
) -> impl Fn() -> futures::future::BoxFuture<'static, ()> + Clone + Send + Sync + use<> {
    let resources = coracle_resources::all()
        .iter()
        .filter(|def| def.storage == Storage::Stored)
        .map(|def| entry_of(def))
        .collect();
    let mut config = parts.args.config(parts.root_ca_pem.clone(), resources, WITH_TOKENS);
    config.signer.clone_from(&parts.signer);
    config.reserved_ports.clone_from(&parts.reserved_ports);
    config.token_signer = Some(parts.token_signer.clone());
    let (told, customs) = watch::channel(Vec::new());
    config.customs = customs;
    let defined = parts.server.custom_resources();
    tasks.supervise("custom-resources", move || {
        let (told, mut defined) = (told.clone(), defined.clone());
        async move {
            loop {
                let now = defined.borrow_and_update().iter().map(|def| entry_of(def)).collect();
                told.send_replace(now);
                if defined.changed().await.is_err() {
                    return;
                }
            }
        }
    });
    let accounts = parts.server.clone();
    let make_client: Arc<dyn Fn(&str) -> Client + Send + Sync> = Arc::new(move |name| {
        let user = if name == "informers" {
            UserInfo::authenticated("system:kube-controller-manager", &[])
        } else {
            let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system"];
            UserInfo::authenticated(&format!("system:serviceaccount:kube-system:{name}"), &groups)
        };
        Client::new(accounts.transport(user))
    });
    let clock = parts.clock.clone();
    move || Box::pin(coracle_controllers::run(config.clone(), make_client.clone(), clock.clone()))
}
