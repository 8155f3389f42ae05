//! Carries out probes: one task per probe of a running container, woken by timers only.

use std::sync::Arc;
use std::time::Duration;

use coracle_cri::CriError;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::context::Context;
use crate::http_get::{self, address, dial};
use crate::probe::{Kind, Series};
use crate::worker::Message;

/// A verdict that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The container.
    pub container_id: String,
    /// Its name.
    pub container: String,
    /// Which probe.
    pub kind: Kind,
    /// The new verdict.
    pub success: bool,
    /// The probe's own grace period.
    pub grace: Option<i64>,
}

/// What a probe task works on.
#[derive(Clone)]
pub struct Target {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Container specification.
    pub container: Container,
    /// Container id.
    pub id: String,
    /// Address of the pod.
    pub ip: String,
    /// When the container started.
    pub started: Timestamp,
    /// Which probe.
    pub kind: Kind,
}

/// What is counted of probes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProbeKey {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    pub container: String,
    pub kind: &'static str,
    pub result: &'static str,
}

fn count(cx: &Context, t: &Target, result: &'static str) {
    let key = ProbeKey {
        namespace: crate::names::namespace(&t.pod).to_owned(),
        pod: crate::names::name(&t.pod).to_owned(),
        uid: crate::names::uid(&t.pod).to_owned(),
        container: t.container.name.clone(),
        kind: t.kind.as_str(),
        result,
    };
    *cx.probe_counts.lock().entry(key).or_default() += 1;
}

/// How one attempt went.
enum Outcome {
    Success,
    Failure(String),
    Errored(String),
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default))
}

/// Probes until the container's fate is decided or the task is aborted; reports every change of verdict.
pub async fn run(cx: Arc<Context>, target: Target, reports: mpsc::UnboundedSender<Message>) {
    let Some(probe) = target.kind.of(&target.container).cloned() else { return };
    let delay = i64::from(probe.initial_delay_seconds.unwrap_or(0));
    let begin = crate::pod::after(target.started, delay);
    tokio::time::sleep(crate::pod::elapsed(cx.clock.now(), begin)).await;
    let period = seconds(probe.period_seconds, 10);
    let mut next = Instant::now();
    let mut series = Series::default();
    loop {
        let success = attempt(&cx, &target, &probe).await;
        if let Some(verdict) = series.record(success, &probe) {
            let report = Report {
                container_id: target.id.clone(),
                container: target.container.name.clone(),
                kind: target.kind,
                success: verdict,
                grace: probe.termination_grace_period_seconds,
            };
            if reports.send(Message::Probe(report)).is_err() {
                return;
            }
            match (target.kind, verdict) {
                (Kind::Startup, _) | (Kind::Liveness, false) => return,
                _ => {}
            }
        }
        next = (next + period).max(Instant::now());
        tokio::time::sleep_until(next).await;
    }
}

/// One attempt; failures are recorded as events. An attempt that failed with an error is repeated at once, up
/// to three times in all, as upstream does.
async fn attempt(cx: &Context, t: &Target, probe: &Probe) -> bool {
    let mut outcome = once(cx, t, probe).await;
    for _ in 0..2 {
        if !matches!(outcome, Outcome::Errored(_)) {
            break;
        }
        outcome = once(cx, t, probe).await;
    }
    let kind = t.kind.as_str();
    count(
        cx,
        t,
        match outcome {
            Outcome::Success => "successful",
            Outcome::Failure(_) => "failed",
            Outcome::Errored(_) => "unknown",
        },
    );
    let message = match outcome {
        Outcome::Success => return true,
        Outcome::Failure(output) => format!("{kind} probe failed: {output}"),
        Outcome::Errored(e) => format!("{kind} probe errored and resulted in unknown state: {e}"),
    };
    cx.container_warning(&t.pod, &t.container.name, "Unhealthy", message);
    false
}

async fn once(cx: &Context, t: &Target, probe: &Probe) -> Outcome {
    let limit = seconds(probe.timeout_seconds, 1);
    if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        return exec_probe(cx, &t.id, command, limit).await;
    }
    if let Some(action) = &probe.http_get {
        return match http_get::get(&t.container, action, &t.ip, "kube-probe/1.36", limit).await {
            Ok(answer) if (200..400).contains(&answer.code) => Outcome::Success,
            Ok(answer) => Outcome::Failure(format!("HTTP probe failed with statuscode: {}", answer.code)),
            Err(e) => Outcome::Failure(e),
        };
    }
    if let Some(action) = &probe.tcp_socket {
        let port = match http_get::port(&t.container, &action.port) {
            Ok(port) => port,
            Err(e) => return Outcome::Errored(e),
        };
        let host = action.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(&t.ip);
        return match dial(&address(host, port), limit).await {
            Ok(_) => Outcome::Success,
            Err(e) => Outcome::Failure(e),
        };
    }
    if let Some(action) = &probe.grpc {
        let Ok(port) = u16::try_from(action.port) else {
            return Outcome::Errored(format!("invalid port number: {}", action.port));
        };
        let service = action.service.as_deref().unwrap_or("");
        return match crate::grpc_health::check(&address(&t.ip, port), service, limit).await {
            Ok(()) => Outcome::Success,
            Err(e) => Outcome::Failure(e),
        };
    }
    Outcome::Errored(format!("missing probe handler for {}", t.container.name))
}

async fn exec_probe(cx: &Context, id: &str, command: Vec<String>, limit: Duration) -> Outcome {
    let timeout = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
    let shown = format!("{command:?}");
    match cx.runtime.exec_sync(id, command, timeout).await {
        Ok(r) if r.exit_code == 0 => Outcome::Success,
        Ok(r) => {
            let mut output = r.stdout;
            output.extend(r.stderr);
            Outcome::Failure(String::from_utf8_lossy(&output).into_owned())
        }
        Err(CriError::DeadlineExceeded(_)) => {
            Outcome::Failure(format!("command timed out: {shown} timed out after {}s", limit.as_secs()))
        }
        Err(e) => Outcome::Errored(e.to_string()),
    }
}
