//! Controllers: Deployments rolled out onto fake nodes, what idle ones cost, and a full namespace that goes.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::fake_kubelets::play;
use super::schedule::{follow, keep_ready, make_nodes, zones};
use super::{Namespace, Outcome, resource_version};
use crate::cost::Meter;
use crate::http::{Call, Connection, NUMBER};
use crate::load::all;
use crate::objects::{config_map, deployment, run_id};
use crate::process::total;
use crate::stats::Samples;
use crate::target::{Failure, Target};

/// Without any progress for so long it is given up.
const PATIENCE: Duration = Duration::from_secs(120);
/// How names of Deployments begin.
const PREFIX: &str = "d-";

/// Options of `deployments`.
#[derive(clap::Args, Clone, Debug)]
pub struct RolloutArgs {
    /// Deployments.
    #[arg(long, default_value_t = 1000)]
    pub deployments: u64,
    /// Pods of each.
    #[arg(long, default_value_t = 3)]
    pub replicas: u64,
    /// Fake nodes.
    #[arg(long, default_value_t = 100)]
    pub nodes: u64,
    /// Connections that create.
    #[arg(long, default_value_t = 32)]
    pub connections: usize,
}

/// Options of `idle-deployments`.
#[derive(clap::Args, Clone, Debug)]
pub struct IdleArgs {
    /// Deployments, without pods.
    #[arg(long, default_value_t = 10_000)]
    pub deployments: u64,
    /// Seconds for which they are watched.
    #[arg(long, default_value_t = 30.0)]
    pub idle: f64,
}

/// Number of a Deployment that has come to its end, as `kubectl rollout status` sees it.
fn complete(event: &Value, replicas: u64) -> Option<u64> {
    let (meta, status) = (&event["object"]["metadata"], &event["object"]["status"]);
    let count = |field: &str| status[field].as_u64().unwrap_or(0);
    let observed = count("observedGeneration") >= meta["generation"].as_u64().unwrap_or(1);
    let there =
        ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|field| count(field) == replicas);
    if !observed || !there {
        return None;
    }
    meta["name"].as_str()?.strip_prefix(PREFIX)?.parse().ok()
}

/// Creates Deployments and waits until all are complete; a sample is the time from one's creation to that.
async fn roll_out(
    target: &Arc<Target>,
    namespace: &Namespace,
    run: &str,
    args: &RolloutArgs,
) -> Result<(Samples, Duration), Failure> {
    let path = namespace.apps("deployments");
    let mut version = resource_version(&mut Connection::open(target).await?, &path).await?;
    let mut watch = follow(target, &path, &version).await?;
    let sent: Arc<HashMap<u64, OnceLock<Instant>>> =
        Arc::new((0..args.deployments).map(|i| (i, OnceLock::new())).collect());
    let stamps = sent.clone();
    let stamp = move |i: u64| {
        if let Some(stamp) = stamps.get(&i) {
            let _ = stamp.set(Instant::now());
        }
    };
    let body = deployment(&format!("{PREFIX}{NUMBER}"), args.replicas, run).to_string();
    let call = Call::post(path.clone(), body);
    let (start, mut last, mut samples) = (Instant::now(), Instant::now(), Samples::default());
    let mut creating = Box::pin(all(target, args.connections, args.deployments, &call, stamp));
    let (mut is_created, mut done) = (false, std::collections::HashSet::new());
    while (done.len() as u64) < args.deployments {
        tokio::select! {
            result = &mut creating, if !is_created => {
                result?;
                is_created = true;
            }
            line = tokio::time::timeout(PATIENCE, watch.next()) => {
                let line = line.map_err(|_| format!("only {} of {} are complete", done.len(), args.deployments))?;
                let Some(line) = line else {
                    watch = follow(target, &path, &version).await?;
                    continue;
                };
                let event: Value = serde_json::from_slice(line).map_err(|e| e.to_string())?;
                if let Some(newer) = event["object"]["metadata"]["resourceVersion"].as_str() {
                    newer.clone_into(&mut version);
                }
                let Some(i) = complete(&event, args.replicas) else { continue };
                if done.insert(i) {
                    last = Instant::now();
                    let sent = sent.get(&i).and_then(OnceLock::get).copied().unwrap_or(last);
                    samples.ok(last.duration_since(sent), 0);
                }
            }
        }
    }
    Ok((samples, last.duration_since(start)))
}

async fn revision(target: &Arc<Target>) -> Result<f64, Failure> {
    let version = resource_version(&mut Connection::open(target).await?, "/api/v1/namespaces").await?;
    version.parse().map_err(|_| format!("{version:?} is no number"))
}

/// Rolls Deployments out: from the first creation until the last one is complete. `writes_per_deployment` counts
/// every write of the server meanwhile.
///
/// # Errors
/// The server cannot be reached or refuses, or nothing moves on.
pub async fn rollouts(target: &Arc<Target>, args: &RolloutArgs) -> Result<Outcome, Failure> {
    let run = run_id();
    let namespace = Namespace::make(target, &run).await?;
    make_nodes(target, args.nodes, &run).await?;
    let heartbeat = tokio::spawn(keep_ready(target.clone(), args.nodes, run.clone()));
    let pods = namespace.path("pods");
    let version = resource_version(&mut Connection::open(target).await?, &pods).await?;
    let before = revision(target).await?;
    let meter = Meter::start(&target.pids);
    let result = tokio::select! {
        result = roll_out(target, &namespace, &run, args) => result,
        ended = play(target.clone(), pods, version) => Err(ended.err().unwrap_or_default()),
    };
    heartbeat.abort();
    let (samples, elapsed) = result?;
    let mut summary = samples.summary("deployments", elapsed, meter.stop());
    let writes = revision(target).await? - before;
    summary.extra.insert("writes_per_deployment".into(), writes / args.deployments as f64);
    summary.extra.insert("all_complete_seconds".into(), elapsed.as_secs_f64());
    let mut outcome = namespace.outcome(summary, &["pods"]);
    outcome.leftovers.nodes = zones(&run, args.nodes);
    Ok(outcome)
}

/// What Deployments cost when nothing happens: processor time and memory of the server, and how much of it came with
/// them.
///
/// # Errors
/// As [`rollouts`].
pub async fn idle_deployments(target: &Arc<Target>, args: &IdleArgs) -> Result<Outcome, Failure> {
    if target.pids.is_empty() {
        return Err("name the server's processes (--server-pid): their memory is what is measured".into());
    }
    let run = run_id();
    let namespace = Namespace::make(target, &run).await?;
    let before = total(&target.pids);
    let rollout = RolloutArgs { deployments: args.deployments, replicas: 0, nodes: 0, connections: 32 };
    let (samples, elapsed) = roll_out(target, &namespace, &run, &rollout).await?;
    // What came last is still being written down.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (idle, start, meter) = (total(&target.pids), Instant::now(), Meter::start(&target.pids));
    tokio::time::sleep(Duration::from_secs_f64(args.idle)).await;
    let (after, seconds) = (total(&target.pids), start.elapsed().as_secs_f64());
    let mut summary = samples.summary("idle-deployments", elapsed, meter.stop());
    let cpu = (after.cpu_seconds - idle.cpu_seconds) / seconds * 100.0;
    for (name, value) in
        [("cpu_percent", cpu), ("rss_mb", after.rss_mb), ("rss_grown_mb", after.rss_mb - before.rss_mb)]
    {
        summary.extra.insert(name.into(), value);
    }
    Ok(namespace.outcome(summary, &[]))
}

/// Fills a namespace and deletes it: from the request until it is gone.
///
/// # Errors
/// As [`rollouts`].
pub async fn delete_namespace(target: &Arc<Target>, objects: u64) -> Result<Outcome, Failure> {
    let namespace = Namespace::make(target, &run_id()).await?;
    let call = Call::post(namespace.path("configmaps"), config_map(&format!("c-{NUMBER}"), 256).to_string());
    all(target, 32, objects, &call, |_| ()).await?;
    let path = format!("/api/v1/namespaces/{}", namespace.name);
    let mut connection = Connection::open(target).await?;
    let (start, meter) = (Instant::now(), Meter::start(&target.pids));
    connection.json(Call::delete(path.clone())).await?;
    while connection.send(&Call::get(path.clone()), false).await?.status != 404 {
        if start.elapsed() > PATIENCE * 10 {
            return Err("the namespace does not go".into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut samples = Samples::default();
    samples.ok(start.elapsed(), 0);
    let mut summary = samples.summary("delete-namespace", start.elapsed(), meter.stop());
    summary.extra.insert("objects".into(), objects as f64);
    summary.extra.insert("gone_seconds".into(), start.elapsed().as_secs_f64());
    Ok(namespace.outcome(summary, &[]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_deployment_is_complete_when_all_its_pods_are_new_and_available() {
        let event = |generation: u64, updated: u64, all: u64| {
            json!({ "object": { "metadata": { "name": "d-00000007", "generation": 2 }, "status": {
                "observedGeneration": generation, "replicas": all, "updatedReplicas": updated,
                "availableReplicas": updated } } })
        };
        assert_eq!(complete(&event(2, 3, 3), 3), Some(7));
        assert_eq!(complete(&event(1, 3, 3), 3), None, "the change is not seen yet");
        assert_eq!(complete(&event(2, 2, 3), 3), None);
        assert_eq!(complete(&event(2, 3, 4), 3), None, "an old pod is left");
        let idle = json!({ "object": { "metadata": { "name": "d-00000001", "generation": 1 },
            "status": { "observedGeneration": 1 } } });
        assert_eq!(complete(&idle, 0), Some(1));
    }
}
