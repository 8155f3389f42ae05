//! Scheduling: N pods onto M fake nodes that this program keeps Ready.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking::Stamps;

use super::{Namespace, Outcome, resource_version};
use crate::cost::Meter;
use crate::http::{Call, Connection, Lines, NUMBER};
use crate::load::all;
use crate::objects::{node, node_status, now, onto_run, pod, run_id};
use crate::stats::{Samples, Summary};
use crate::target::{Failure, Target};
use crate::wire::find;

/// Fake nodes report so often that a node controller (40 s of grace) leaves them alone.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Nodes are spread over so many zones.
const ZONES: u64 = 10;

/// Options of `schedule`.
#[derive(clap::Args, Clone, Debug)]
pub struct ScheduleArgs {
    /// Fake nodes.
    #[arg(long, default_value_t = 1000)]
    pub nodes: u64,
    /// Pods.
    #[arg(long, default_value_t = 3000)]
    pub pods: u64,
    /// Connections that create.
    #[arg(long, default_value_t = 32)]
    pub connections: usize,
    /// No two pods on one node (required anti-affinity); needs as many nodes as pods.
    #[arg(long)]
    pub anti_affinity: bool,
    /// Seconds without any progress after which it is given up.
    #[arg(long, default_value_t = 30.0)]
    pub patience: f64,
}

/// When each pod was sent.
mod parking {
    use std::sync::{Arc, OnceLock};
    use std::time::Instant;

    #[derive(Clone)]
    pub(super) struct Stamps(Arc<Vec<OnceLock<Instant>>>);

    impl Stamps {
        pub(super) fn new(n: u64) -> Self {
            Self(Arc::new((0..n).map(|_| OnceLock::new()).collect()))
        }
        pub(super) fn set(&self, i: u64) {
            if let Some(stamp) = usize::try_from(i).ok().and_then(|i| self.0.get(i)) {
                let _ = stamp.set(Instant::now());
            }
        }
        pub(super) fn get(&self, i: u64) -> Option<Instant> {
            usize::try_from(i).ok().and_then(|i| self.0.get(i)).and_then(OnceLock::get).copied()
        }
    }
}

/// Runs it: from the first creation until the last pod is bound.
///
/// # Errors
/// The server cannot be reached or refuses to prepare.
pub async fn schedule(target: &Arc<Target>, args: &ScheduleArgs) -> Result<Outcome, Failure> {
    if args.anti_affinity && args.nodes < args.pods {
        return Err("required anti-affinity needs at least as many nodes as pods".into());
    }
    let run = run_id();
    let namespace = Namespace::make(target, &run).await?;
    make_nodes(target, args.nodes, &run).await?;
    let heartbeat = tokio::spawn(keep_ready(target.clone(), args.nodes, run.clone()));
    let result = measure(target, args, &run, &namespace).await;
    heartbeat.abort();
    let mut outcome = namespace.outcome(result?, &["pods"]);
    outcome.leftovers.nodes = zones(&run, args.nodes);
    Ok(outcome)
}

/// How the names of a run's nodes in a zone begin.
fn node_prefix(run: &str, zone: u64) -> String {
    format!("bench-{run}-z{zone}-")
}

/// Prefixes and counts of the nodes of each zone.
pub(super) fn zones(run: &str, nodes: u64) -> Vec<(String, u64)> {
    (0..ZONES).map(|z| (node_prefix(run, z), nodes / ZONES + u64::from(z < nodes % ZONES))).collect()
}

/// Makes fake nodes of a run that are Ready.
///
/// # Errors
/// The server refuses.
pub(super) async fn make_nodes(target: &Arc<Target>, nodes: u64, run: &str) -> Result<(), Failure> {
    for (zone, (prefix, n)) in (0..).zip(zones(run, nodes)) {
        let body = node(&format!("{prefix}{NUMBER}"), run, zone).to_string();
        all(target, 16, n, &Call::post("/api/v1/nodes", body), |_| ()).await?;
    }
    report_ready(target, nodes, run).await?;
    // Taints that a server adds to new nodes (not-ready) are not lifted by anything without controllers.
    let untaint = serde_json::json!({ "spec": { "taints": null } });
    for (prefix, n) in zones(run, nodes) {
        let call = Call::patch(format!("/api/v1/nodes/{prefix}{NUMBER}"), &untaint);
        all(target, 16, n, &call, |_| ()).await?;
    }
    Ok(())
}

async fn report_ready(target: &Arc<Target>, nodes: u64, run: &str) -> Result<(), Failure> {
    let status = node_status(&now());
    for (prefix, n) in zones(run, nodes) {
        let call = Call::patch(format!("/api/v1/nodes/{prefix}{NUMBER}/status"), &status);
        all(target, 16, n, &call, |_| ()).await?;
    }
    Ok(())
}

/// Keeps the nodes of a run Ready for as long as it is polled.
pub(super) async fn keep_ready(target: Arc<Target>, nodes: u64, run: String) {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        let _ = report_ready(&target, nodes, &run).await;
    }
}

async fn measure(
    target: &Arc<Target>,
    args: &ScheduleArgs,
    run: &str,
    namespace: &Namespace,
) -> Result<Summary, Failure> {
    let path = namespace.path("pods");
    let mut version = resource_version(&mut Connection::open(target).await?, &path).await?;
    let mut watch = follow(target, &path, &version).await?;
    let mut watch_restarts = 0;
    let stamps = Stamps::new(args.pods);
    let mut body = pod(&format!("p-{NUMBER}"), "registry.k8s.io/pause:3.10", &[]);
    onto_run(&mut body, run, args.anti_affinity);
    let call = Call::post(path.clone(), body.to_string());
    let sending = stamps.clone();
    let (start, meter) = (Instant::now(), Meter::start(&target.pids));
    let creating = all(target, args.connections, args.pods, &call, move |i| sending.set(i));
    let mut creating = Box::pin(creating);
    let mut created: Option<Duration> = None;
    let mut samples = Samples::default();
    let mut bound: HashMap<u64, String> = HashMap::new();
    let mut last = start;
    let patience = Duration::from_secs_f64(args.patience.max(1.0));
    while (bound.len() as u64) < args.pods {
        tokio::select! {
            result = &mut creating, if created.is_none() => {
                result?;
                created = Some(start.elapsed());
            }
            line = tokio::time::timeout(patience, watch.next()) => {
                let Ok(line) = line else { break };
                let Some(line) = line else {
                    // Upstream cuts off a watcher that does not get the processor for a moment.
                    watch = follow(target, &path, &version).await?;
                    watch_restarts += 1;
                    continue;
                };
                if let Some(newer) = text_after(line, b"\"resourceVersion\":\"") {
                    newer.clone_into(&mut version);
                }
                let Some((i, node)) = binding(line) else { continue };
                if bound.insert(i, node).is_none() {
                    last = Instant::now();
                    samples.ok(last.duration_since(stamps.get(i).unwrap_or(last)), 0);
                }
            }
        }
    }
    if (bound.len() as u64) < args.pods {
        return Err(format!("only {} of {} pods were scheduled", bound.len(), args.pods));
    }
    let elapsed = last.duration_since(start);
    let name = if args.anti_affinity { "schedule-anti-affinity" } else { "schedule" };
    let mut summary = samples.summary(name, elapsed, meter.stop());
    let mut per_node: HashMap<&str, u64> = HashMap::new();
    for node in bound.values() {
        *per_node.entry(node).or_default() += 1;
    }
    let most = per_node.values().max().copied().unwrap_or(0);
    if args.anti_affinity && most > 1 {
        // A rate of wrong decisions is no rate.
        return Err(format!("required anti-affinity is not honoured: {most} such pods are on one node"));
    }
    summary.extra.insert("watch_restarts".into(), f64::from(watch_restarts));
    summary.extra.insert("nodes".into(), args.nodes as f64);
    summary.extra.insert("nodes_used".into(), per_node.len() as f64);
    summary.extra.insert("most_pods_on_a_node".into(), most as f64);
    if let Some(created) = created {
        summary.extra.insert("create_seconds".into(), (created.as_secs_f64() * 1000.0).round() / 1000.0);
    }
    Ok(summary)
}

/// Watches the collection at `path` from a version on.
///
/// # Errors
/// The server refuses.
pub(super) async fn follow(target: &Arc<Target>, path: &str, version: &str) -> Result<Lines, Failure> {
    let connection = Connection::open(target).await?;
    connection.watch(&format!("{path}?watch=true&resourceVersion={version}")).await
}

/// The text between a mark and the next quotation mark, found without decoding the event.
fn text_after<'a>(line: &'a [u8], mark: &[u8]) -> Option<&'a str> {
    let from = &line[find(line, mark)? + mark.len()..];
    std::str::from_utf8(&from[..from.iter().position(|b| *b == b'"')?]).ok()
}

/// Pod number and node of an event that shows a bound pod.
fn binding(line: &[u8]) -> Option<(u64, String)> {
    let node = text_after(line, b"\"nodeName\":\"").filter(|n| !n.is_empty())?;
    Some((text_after(line, b"\"name\":\"p-")?.parse().ok()?, node.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binding_is_seen_only_with_a_node() {
        let line = |spec: serde_json::Value| {
            let pod = serde_json::json!({ "metadata": { "name": "p-00000005" }, "spec": spec });
            serde_json::json!({ "type": "MODIFIED", "object": pod }).to_string()
        };
        let bound = line(serde_json::json!({ "nodeName": "n" }));
        assert_eq!(binding(bound.as_bytes()), Some((5, "n".into())));
        assert_eq!(binding(line(serde_json::json!({ "nodeName": "" })).as_bytes()), None);
        assert_eq!(binding(line(serde_json::json!({})).as_bytes()), None);
    }
}
