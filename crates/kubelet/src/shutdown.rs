//! Graceful shutdown of the node: when the machine is about to go down, logind lets the kubelet end its pods first,
//! those that matter least before the others. What is decided stands in [`periods`] and [`group`].

mod bus;
mod logind;

use std::sync::Arc;
use std::time::Duration;

use coracle_client::EventType;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::context::Context;
use crate::manager::Pods;
use crate::names;
use crate::state::Failure;
use crate::worker::{Handle, Message};
use logind::Logind;

/// Pods from this priority on are critical.
const CRITICAL: i32 = 2_000_000_000;
/// Pause before logind is asked again after it was lost.
const AGAIN: Duration = Duration::from_secs(1);

/// How long the pods of a priority, and of higher ones up to the next entry, may take to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShutdownPeriod {
    /// The least priority that it is for.
    pub priority: i32,
    /// The time in seconds.
    pub seconds: i64,
}

/// What `shutdownGracePeriod` and `shutdownGracePeriodCriticalPods` mean, in seconds: most pods get what the critical
/// ones leave. Nothing if the second is longer than the first.
#[must_use]
pub fn periods(all: i64, critical: i64) -> Vec<ShutdownPeriod> {
    if all <= 0 || critical < 0 || critical > all {
        return Vec::new();
    }
    vec![
        ShutdownPeriod { priority: 0, seconds: all - critical },
        ShutdownPeriod { priority: CRITICAL, seconds: critical },
    ]
}

/// Sorts pods into the periods, lowest priority first: each into the last one that is not above it, and those below all
/// into the first.
fn group<T>(periods: &[ShutdownPeriod], pods: Vec<(i32, T)>) -> Vec<(ShutdownPeriod, Vec<T>)> {
    let mut sorted = periods.to_vec();
    sorted.sort_by_key(|p| p.priority);
    let mut groups: Vec<(ShutdownPeriod, Vec<T>)> = sorted.into_iter().map(|p| (p, Vec::new())).collect();
    for (priority, pod) in pods {
        let index = groups.iter().rposition(|(p, _)| p.priority <= priority).unwrap_or(0);
        if let Some((_, members)) = groups.get_mut(index) {
            members.push(pod);
        }
    }
    groups
}

/// Whether the node is going down.
#[derive(Debug)]
pub struct Shutdown(watch::Sender<bool>);

impl Default for Shutdown {
    fn default() -> Self {
        Self(watch::channel(false).0)
    }
}

impl Shutdown {
    /// Why the node is not ready, if it is going down.
    pub fn status(&self) -> Option<String> {
        self.0.borrow().then(|| "node is shutting down".to_owned())
    }
    /// Why a pod is not taken, if the node is going down.
    pub fn keeps_out(&self) -> Option<Failure> {
        self.0.borrow().then(|| Failure {
            reason: "NodeShutdown".to_owned(),
            message: "Pod was rejected as the node is shutting down.".to_owned(),
        })
    }
    /// Tells of changes.
    pub fn changes(&self) -> watch::Receiver<bool> {
        self.0.subscribe()
    }
}

/// Holds shutdowns up until the pods have ended; runs until dropped.
pub async fn run(cx: Arc<Context>, pods: Pods) {
    if cx.config.shutdown_periods.is_empty() {
        return std::future::pending().await;
    }
    loop {
        if let Err(error) = follow(&cx, &pods).await {
            warn!(error = %error, "shutdowns of the machine are not seen");
        }
        tokio::time::sleep(AGAIN).await;
        if !cx.config.system_bus.exists() {
            // A machine without logind gets none while it runs.
            return std::future::pending().await;
        }
    }
}

async fn follow(cx: &Context, pods: &Pods) -> std::io::Result<()> {
    let wanted = cx.config.shutdown_periods.iter().map(|p| p.seconds.max(0)).sum::<i64>().unsigned_abs();
    let mut logind = Logind::connect(&cx.config.system_bus).await?;
    logind.allow_delay(Duration::from_secs(wanted)).await?;
    let mut lock = Some(logind.inhibit().await?);
    logind.watch().await?;
    loop {
        let going_down = logind.next().await?;
        let text = if going_down { "event" } else { "cancellation" };
        let text = format!("Shutdown manager detected shutdown {text}");
        info!("{text}");
        cx.events.event(&reference(cx), EventType::Normal, "Shutdown", text);
        cx.shutdown.0.send_replace(going_down);
        if going_down {
            end_pods(cx, pods).await;
            // The machine goes down when nobody holds it up any more.
            lock = None;
        } else if lock.is_none() {
            lock = Some(logind.inhibit().await?);
        }
    }
}

/// The node as events name it.
fn reference(cx: &Context) -> Node {
    let name = Some(cx.config.node_name.clone());
    Node { metadata: ObjectMeta { uid: name.clone(), name, ..ObjectMeta::default() }, ..Node::default() }
}

/// Ends all pods, group after group.
async fn end_pods(cx: &Context, pods: &Pods) {
    let all = pods.all().into_iter().map(|h| (priority(&h.pod), h)).collect();
    for (period, members) in group(&cx.config.shutdown_periods, all) {
        if members.is_empty() {
            continue;
        }
        info!(priority = period.priority, pods = members.len(), "ending pods, as the node is going down");
        let (holds, mut ended) = mpsc::channel::<()>(1);
        for handle in members {
            end(&handle, period.seconds, holds.clone());
        }
        drop(holds);
        let limit = Duration::from_secs(period.seconds.max(0).unsigned_abs());
        if tokio::time::timeout(limit, ended.recv()).await.is_err() {
            warn!(priority = period.priority, "pods have not ended in time");
        }
    }
}

fn priority(pod: &Pod) -> i32 {
    crate::pod::spec(pod).priority.unwrap_or(0)
}

/// Ends a pod; `holds` is dropped when its containers have ended and its volumes are released.
fn end(handle: &Handle, seconds: i64, holds: mpsc::Sender<()>) {
    let own = crate::pod::spec(&handle.pod).termination_grace_period_seconds;
    let grace = own.map_or(seconds, |own| own.min(seconds));
    info!(pod = names::full_name(&handle.pod), grace, "ending a pod");
    let failure = Failure {
        reason: "Terminated".to_owned(),
        message: "Pod was terminated in response to imminent node shutdown.".to_owned(),
    };
    // A worker that has just ended has nothing to end.
    let _ = handle.sender.send(Message::ShutDown { failure, grace, holds });
}

#[cfg(test)]
mod tests;
