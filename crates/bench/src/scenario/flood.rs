//! What others notice of one client's flood: the latency of reads without it, and with it.

use std::sync::Arc;

use serde_json::json;

use super::api::{IMAGE, numbered_pod};
use super::{Namespace, Outcome};
use crate::http::{Call, Connection};
use crate::load::{LoadArgs, all, closed_loop};
use crate::objects::{pod, run_id};
use crate::target::{Failure, Target};

/// Options of the flood.
#[derive(clap::Args, Clone, Debug)]
pub struct FloodArgs {
    /// Token of the user whose reads are measured (not an administrator's: those are exempt).
    #[arg(long)]
    pub other_token: String,
    /// Token of the user who floods.
    #[arg(long)]
    pub flood_token: String,
    /// Connections of the flood, each listing pods again and again.
    #[arg(long, default_value_t = 256)]
    pub flood_connections: usize,
    /// Pods in each list.
    #[arg(long, default_value_t = 500)]
    pub objects: u64,
}

/// Reads one pod as one user, first alone, then while another user floods the server with lists. The figures are those
/// under the flood; `p99-alone-ms` and `p99-ratio` compare.
///
/// Who floods has threads of the lowest priority: it stands for another machine, and must not take the processor from
/// the server or from who measures.
///
/// # Errors
/// The server cannot be reached or refuses to prepare.
pub async fn flood(admin: &Arc<Target>, load: &LoadArgs, args: &FloodArgs) -> Result<Outcome, Failure> {
    let (other, flooder) = (admin.as_user(&args.other_token), admin.as_user(&args.flood_token));
    let run = run_id();
    let namespace = Namespace::make(admin, &run).await?;
    allow(admin, &namespace).await?;
    let create = Call::post(namespace.path("pods"), pod("one", IMAGE, &[]).to_string());
    all(admin, 1, 1, &create, |_| ()).await?;
    all(admin, 64, args.objects, &Call::post(namespace.path("pods"), numbered_pod()), |_| ()).await?;
    let get = Call::get(namespace.path("pods/one"));
    let alone = closed_loop(&other, load, "flood-alone", &get).await?;
    let list = Call::get(namespace.path("pods"));
    let endless = LoadArgs {
        connections: args.flood_connections,
        warmup: 0.0,
        duration: load.warmup + load.duration + 3600.0,
        count: None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_start(|| {
            let _ = rustix::process::setpriority_process(None, 19);
        })
        .build()
        .map_err(|e| format!("threads for the flood: {e}"))?;
    runtime.spawn(async move { closed_loop(&flooder, &endless, "flood", &list).await.map(drop) });
    let flooded = closed_loop(&other, load, "flood", &get).await;
    runtime.shutdown_background();
    let mut summary = flooded?;
    summary.extra.insert("p99-alone-ms".into(), alone.latency_ms.p99);
    summary.extra.insert("p99-ratio".into(), summary.latency_ms.p99 / alone.latency_ms.p99.max(1e-6));
    Ok(namespace.outcome(summary, &["pods"]))
}

/// Lets every user read the pods of the namespace.
async fn allow(admin: &Arc<Target>, namespace: &Namespace) -> Result<(), Failure> {
    let at = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}", namespace.name);
    let group = "rbac.authorization.k8s.io";
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": { "name": "readers" },
        "rules": [{ "verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"] }],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": { "name": "readers" },
        "roleRef": { "apiGroup": group, "kind": "Role", "name": "readers" },
        "subjects": [{ "apiGroup": group, "kind": "Group", "name": "system:authenticated" }],
    });
    let mut connection = Connection::open(admin).await?;
    connection.ensure(Call::post(format!("{at}/roles"), role.to_string())).await?;
    connection.ensure(Call::post(format!("{at}/rolebindings"), binding.to_string())).await
}
