//! Pod start: from the create request until the watch shows the pod Running (or Ready).
//!
//! The pods stay until the end, so that no deletion competes with the start that is measured.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinSet;

use super::{Namespace, Outcome, resource_version};
use crate::cost::Meter;
use crate::http::{Call, Connection};
use crate::objects::{pod, run_id};
use crate::stats::Samples;
use crate::target::{Failure, Target};

/// Options of `pod-start`.
#[derive(clap::Args, Clone, Debug)]
pub struct PodStartArgs {
    /// Pods to start, one after another on each connection.
    #[arg(long, default_value_t = 20)]
    pub count: usize,
    /// Pods to start before measuring.
    #[arg(long, default_value_t = 2)]
    pub warmup: usize,
    /// Pods that start at the same time.
    #[arg(long, default_value_t = 1)]
    pub connections: usize,
    /// Image; must be present on the nodes.
    #[arg(long, default_value = "coracle.local/self")]
    pub image: String,
    /// Arguments of the container.
    #[arg(long, num_args = 0.., default_values_t = ["demo".to_owned(), "serve".to_owned()])]
    pub args: Vec<String>,
    /// Wait for the condition Ready instead of the phase Running.
    #[arg(long)]
    pub ready: bool,
    /// Seconds after which a pod counts as failed.
    #[arg(long, default_value_t = 30.0)]
    pub timeout: f64,
}

/// Runs it.
///
/// # Errors
/// The server cannot be reached or refuses to prepare.
pub async fn pod_start(target: &Arc<Target>, args: &PodStartArgs) -> Result<Outcome, Failure> {
    let namespace = Namespace::make(target, &run_id()).await?;
    let connections = args.connections.max(1);
    for i in 0..args.warmup {
        let _ = one(target, &namespace.path("pods"), &format!("warm-{i}"), args).await?;
    }
    let (start, meter) = (Instant::now(), Meter::start(&target.pids));
    let mut workers = JoinSet::new();
    for worker in 0..connections {
        let (target, path, args) = (target.clone(), namespace.path("pods"), args.clone());
        workers.spawn(async move {
            let mut samples = Samples::default();
            for i in (worker..args.count).step_by(connections) {
                match one(&target, &path, &format!("s-{i}"), &args).await? {
                    Ok(took) => samples.ok(took, 0),
                    Err(state) => samples.error(state),
                }
            }
            Ok::<Samples, Failure>(samples)
        });
    }
    let mut samples = Samples::default();
    while let Some(done) = workers.join_next().await {
        samples.merge(done.map_err(|e| format!("a worker failed: {e}"))??);
    }
    let summary = samples.summary("pod-start", start.elapsed(), meter.stop());
    Ok(namespace.outcome(summary, &["pods"]))
}

/// Starts one pod and waits. The inner error tells in which state it stuck.
async fn one(
    target: &Arc<Target>,
    path: &str,
    name: &str,
    args: &PodStartArgs,
) -> Result<Result<Duration, String>, Failure> {
    let mut connection = Connection::open(target).await?;
    let version = resource_version(&mut connection, path).await?;
    let query = format!("watch=true&resourceVersion={version}&fieldSelector=metadata.name%3D{name}");
    let mut watch = Connection::open(target).await?.watch(&format!("{path}?{query}")).await?;
    let body = pod(name, &args.image, &args.args).to_string();
    let start = Instant::now();
    connection.json(Call::post(path, body)).await?;
    let mut state = "not seen".to_owned();
    let wait = async {
        while let Some(line) = watch.next().await {
            let event: Value = serde_json::from_slice(line).unwrap_or_default();
            let (done, now) = progress(&event["object"], args.ready);
            state = now;
            if done {
                return true;
            }
        }
        false
    };
    let done = tokio::time::timeout(Duration::from_secs_f64(args.timeout), wait).await;
    let took = start.elapsed();
    Ok(if done == Ok(true) { Ok(took) } else { Err(format!("pod stuck: {state}")) })
}

/// Whether the pod is there, and a word about its state.
fn progress(pod: &Value, ready: bool) -> (bool, String) {
    let status = &pod["status"];
    let phase = status["phase"].as_str().unwrap_or("unknown");
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
    let reason = status["containerStatuses"][0]["state"]["waiting"]["reason"].as_str();
    let state = reason.map_or_else(|| phase.to_owned(), |r| format!("{phase}, {r}"));
    (if ready { is_ready } else { phase == "Running" }, state)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn running_and_ready_are_told_apart() {
        let waiting = json!({ "status": { "phase": "Pending", "containerStatuses": [
            { "state": { "waiting": { "reason": "ImagePullBackOff" } } }] } });
        assert_eq!(progress(&waiting, false), (false, "Pending, ImagePullBackOff".into()));
        let running = json!({ "status": { "phase": "Running" } });
        assert_eq!(progress(&running, false), (true, "Running".into()));
        assert!(!progress(&running, true).0);
        let conditions = json!([{ "type": "Ready", "status": "True" }]);
        let ready = json!({ "status": { "phase": "Running", "conditions": conditions } });
        assert!(progress(&ready, true).0);
    }
}
