//! What the programs beside the API server have in common when they run alone, as upstream's: an HTTPS port with
//! health, figures and configuration, who may read them, and the lead among replicas.

mod access;
mod health;
mod serving;

use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{ArgAction, Args};
use coracle_client::Client;
use coracle_meta::cron::duration;
use coracle_stdx::{Clock, Tasks};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::cluster::host_name;
use crate::control_plane::{Candidate, LeaderArgs, lead};
use crate::error::Failure;

/// How long the end waits for the lead to be given up.
const GOODBYE: Duration = Duration::from_secs(5);
/// Between two tries to reach an API server.
const RETRY: Duration = Duration::from_secs(1);

/// Options that all these programs have: upstream's.
#[derive(Args, Clone, Debug)]
pub struct ComponentArgs {
    /// Port of health, figures and configuration (HTTPS); 0 serves none. Default: upstream's of the program.
    #[arg(long)]
    pub secure_port: Option<u16>,
    /// Address to listen on.
    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// Serving certificate; without, one is made in memory.
    #[arg(long, requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// Its key.
    #[arg(long, requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,
    /// CA of client certificates. Without, it is read from the API server that --authentication-kubeconfig names.
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    /// Kubeconfig of the API server that is asked about tokens; without, no token is believed.
    #[arg(long)]
    pub authentication_kubeconfig: Option<PathBuf>,
    /// Do not read the CA of client certificates from the API server.
    #[arg(long, default_value_t = false, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          action = ArgAction::Set)]
    pub authentication_skip_lookup: bool,
    /// How long an answer about a token is believed.
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub authentication_token_webhook_cache_ttl: Duration,
    /// Kubeconfig of the API server that is asked who may read what; without, system:masters alone.
    #[arg(long)]
    pub authorization_kubeconfig: Option<PathBuf>,
    /// Paths that everybody may read; `/x/*` is all below.
    #[arg(long, value_delimiter = ',', default_value = "/healthz,/readyz,/livez")]
    pub authorization_always_allow_paths: Vec<String>,
    /// How long a yes is believed.
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub authorization_webhook_cache_authorized_ttl: Duration,
    /// How long a no is believed.
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub authorization_webhook_cache_unauthorized_ttl: Duration,
    /// Name of the lease; default that of the program.
    #[arg(long)]
    pub leader_elect_resource_name: Option<String>,
    /// What leads are kept in; there is but one way.
    #[arg(long, default_value = "leases", value_parser = ["leases"])]
    pub leader_elect_resource_lock: String,
}

/// A program as it shows itself.
pub struct Component {
    /// Upstream's name.
    pub name: &'static str,
    /// Upstream's port.
    pub port: u16,
    /// Its health checks: path and names.
    pub checks: &'static [(&'static str, &'static [&'static str])],
    /// What `/configz` answers.
    pub config: Value,
}

/// How a program does, for its port to tell.
#[derive(Debug, Default)]
pub struct Condition {
    leads: AtomicBool,
    reached: AtomicBool,
}

/// Says that the lead is lost when the work ends, however it ends.
struct Leading(Arc<Condition>);

impl Leading {
    fn new(condition: Arc<Condition>) -> Self {
        condition.leads.store(true, Ordering::Relaxed);
        Self(condition)
    }
}

impl Drop for Leading {
    fn drop(&mut self) {
        self.0.leads.store(false, Ordering::Relaxed);
    }
}

/// Notes when the API server was first reached.
async fn reach(client: Client, condition: Arc<Condition>) {
    while client.read("/version", "").await.is_err() {
        tokio::time::sleep(RETRY).await;
    }
    condition.reached.store(true, Ordering::Relaxed);
    std::future::pending().await
}

/// Serves the program's port and runs `work`, where `leader` says so only while leading, until SIGTERM or Ctrl-C.
/// `client` makes clients for one purpose each.
///
/// # Errors
/// A flag, file or port that cannot be used.
pub async fn run<F, Fut>(
    component: Component,
    (args, leader): (&ComponentArgs, &LeaderArgs),
    clock: Clock,
    client: impl Fn(&str) -> Client,
    work: F,
) -> Result<(), Failure>
where
    F: Fn() -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (stop, stopped) = watch::channel(false);
    let (mut tasks, mut beside) = (Tasks::new(), Tasks::new());
    let condition = Arc::new(Condition::default());
    let name = component.name;
    serving::start(component, args, &condition, &clock, &mut beside).await?;
    let asking = (client("health"), condition.clone());
    beside.supervise("reach", move || reach(asking.0.clone(), asking.1.clone()));
    let noted = move || {
        let (leading, work) = (Leading::new(condition.clone()), work.clone());
        async move {
            work().await;
            drop(leading);
        }
    };
    if leader.leader_elect.unwrap_or(true) {
        let lease = args.leader_elect_resource_name.as_deref();
        let client = client("leader-election");
        let candidate = Candidate { client, args: leader, lease, host: &host_name(), clock };
        lead(&candidate, &mut tasks, &stopped, name, noted);
    } else {
        beside.supervise(name, noted);
    }
    let mut term = signal(SignalKind::terminate()).map_err(|e| Failure::new(e, ""))?;
    tokio::select! {
        _ = term.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    stop.send_replace(true);
    let _ = tokio::time::timeout(GOODBYE, tasks.join()).await;
    Ok(())
}
