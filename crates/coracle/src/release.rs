//! `coracle release`: follows a rollout and names the cause when it fails; goes back, pauses, goes on, aborts.

mod back;
mod cause;
mod progress;

use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_client::{Api, Client, ListOptions};
use coracle_controllers::is_current;
use coracle_meta::{Kind, Status, pod as podutil};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Event, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cli::{Output, ReleaseArgs, ReleaseCommand};
use crate::cluster::Paths;
use crate::control::{Request, ask};
use crate::error::Failure;
use back::Aim;
use cause::{Cause, Evidence, Finding};
use progress::Progress;

/// How often the state is looked at while a person waits.
const LOOK: Duration = Duration::from_millis(500);
/// How long the daemon follows before it says how far the rollout has come.
const STEP: Duration = Duration::from_secs(1);
/// Log lines shown of a container that crashed.
const LINES: usize = 5;

/// What is asked of the daemon.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// `status`, `undo`, `pause`, `resume` or `abort`.
    pub action: String,
    /// `deployment/x`, `statefulset/x` or `daemonset/x`.
    pub target: String,
    /// Namespace.
    pub namespace: String,
    /// Revision to go back to.
    pub to: Option<i64>,
    /// For how long a status is followed, in seconds.
    pub timeout: u64,
}

/// Whole seconds, given as such or as Go writes durations, as kubectl's `--timeout` takes them.
///
/// # Errors
/// Another text.
pub fn seconds(text: &str) -> Result<u64, String> {
    text.parse().or_else(|_| coracle_meta::cron::duration(text).map(|duration| duration.as_secs()))
}

/// Runs the command.
///
/// # Errors
/// Status 1 when the rollout failed, 2 when it was still going on in the end.
pub async fn run(args: ReleaseArgs) -> Result<(), Failure> {
    let paths = Paths::new(&args.data.data_dir)?;
    let order = |action: &str, target: &str, to: Option<i64>, timeout: u64| Order {
        action: action.to_owned(),
        target: target.to_owned(),
        namespace: args.namespace.clone(),
        to,
        timeout,
    };
    let order = match &args.command {
        ReleaseCommand::Status { target, timeout } => order("status", target, None, *timeout),
        ReleaseCommand::Undo { target, to_revision } => order("undo", target, *to_revision, 0),
        ReleaseCommand::Pause { target } => order("pause", target, None, 0),
        ReleaseCommand::Resume { target } => order("resume", target, None, 0),
        ReleaseCommand::Abort { target } => order("abort", target, None, 0),
    };
    let answer = match order.action.as_str() {
        "status" => follow(&paths, order, args.output).await?,
        _ => ask(&paths.socket(), &Request::Release { order }).await?,
    };
    let said = answer["said"].as_str().unwrap_or("").to_owned();
    if args.output == Output::Json {
        println!("{answer}");
    }
    match answer["outcome"].as_str() {
        Some("failed") => {
            Err(Failure::new(said, "go back with `coracle release abort`, or mend it and publish again"))
        }
        Some("late") => Err(Failure::late(said)),
        _ => {
            if args.output == Output::Text {
                println!("{said}");
            }
            Ok(())
        }
    }
}

/// Asks until the rollout has come to an end or the time is over; as text, each step on the way is printed.
async fn follow(paths: &Paths, order: Order, output: Output) -> Result<Value, Failure> {
    let (start, all) = (tokio::time::Instant::now(), Duration::from_secs(order.timeout));
    let mut told = Value::Null;
    loop {
        let left = all.saturating_sub(start.elapsed());
        let order = Order { timeout: left.min(STEP).as_secs(), ..order.clone() };
        let answer = ask(&paths.socket(), &Request::Release { order }).await?;
        if answer["outcome"] != "late" || start.elapsed() >= all {
            return Ok(answer);
        }
        if output == Output::Text && answer["said"] != told {
            println!("{}", answer["said"].as_str().unwrap_or(""));
            told = answer["said"].clone();
        }
    }
}

/// Carries an order out in the daemon.
///
/// # Errors
/// Why it cannot be done, for the user.
pub async fn serve(client: &Client, logs: &Path, order: Order) -> Result<Value, String> {
    let (kind, name) =
        order.target.split_once('/').ok_or("name it as deployment/x, statefulset/x or daemonset/x")?;
    let kind = match kind {
        "deployment" | "deployments" | "deploy" | "deployment.apps" => Workload::Deployment,
        "statefulset" | "statefulsets" | "sts" | "statefulset.apps" => Workload::StatefulSet,
        "daemonset" | "daemonsets" | "ds" | "daemonset.apps" => Workload::DaemonSet,
        other => return Err(format!("{other:?} is not a deployment, statefulset or daemonset")),
    };
    let release = Release { client, logs, kind, name, namespace: &order.namespace };
    let result = match order.action.as_str() {
        "status" => {
            return release.follow(Duration::from_secs(order.timeout)).await.map_err(|e| e.to_string());
        }
        "undo" => release.back(order.to.map_or(Aim::Before, Aim::To)).await,
        "abort" => release.back(Aim::LastReady).await,
        "pause" => release.pause(true).await,
        "resume" => release.pause(false).await,
        other => return Err(format!("unknown action {other:?}")),
    };
    result.map(|said| json!({ "outcome": "done", "said": said })).map_err(|e| e.to_string())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Workload {
    Deployment,
    StatefulSet,
    DaemonSet,
}

struct Release<'a> {
    client: &'a Client,
    logs: &'a Path,
    kind: Workload,
    name: &'a str,
    namespace: &'a str,
}

/// What of a rollout a look shows.
struct Look {
    progress: Progress,
    late: bool,
    /// Pods of the new version.
    pods: Vec<Pod>,
    /// Pods of versions before, where the new one waits for them.
    before: Vec<Pod>,
    /// Uids of those whose events tell that pods cannot be made.
    owners: Vec<String>,
    /// Whether there are fewer pods than there should be.
    lacks_pods: bool,
    /// When the workload was changed last.
    changed: Option<Timestamp>,
}

fn last_seen(event: &Event) -> Option<Timestamp> {
    event.last_timestamp.as_ref().map(|t| t.0)
}

fn last_lines<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let said: Vec<&str> = lines.collect();
    said[said.len().saturating_sub(LINES)..].iter().map(|line| (*line).to_owned()).collect()
}

/// How many pods are there to stay.
fn living(pods: &[Pod]) -> i32 {
    i32::try_from(pods.iter().filter(|pod| podutil::is_active(pod)).count()).unwrap_or(i32::MAX)
}

fn uid(meta: &ObjectMeta) -> String {
    meta.uid.clone().unwrap_or_default()
}

/// The version that a pod or ControllerRevision is of.
fn revision_of(meta: &ObjectMeta) -> Option<String> {
    meta.labels.as_ref()?.get("controller-revision-hash").cloned()
}

fn revision(meta: &ObjectMeta) -> i64 {
    let annotations = meta.annotations.as_ref();
    let text = annotations.and_then(|a| a.get("deployment.kubernetes.io/revision"));
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

impl Release<'_> {
    fn api<K: Kind>(&self) -> Api<K> {
        self.client.api()
    }

    async fn look(&self) -> Result<Look, Status> {
        match self.kind {
            Workload::Deployment => self.look_at_deployment().await,
            Workload::StatefulSet => self.look_at_stateful_set().await,
            Workload::DaemonSet => self.look_at_daemon_set().await,
        }
    }

    async fn look_at_deployment(&self) -> Result<Look, Status> {
        let d = self.api::<Deployment>().get(self.namespace, self.name).await?;
        let selector = d.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
        let sets: Vec<ReplicaSet> = self.owned(&uid(&d.metadata), &selector).await?;
        // While one that stops everything first still stops, none is there; what fails of the one before is over.
        let newest = sets.iter().find(|set| is_current(&d, set));
        let (progress, late) = progress::deployment(&d);
        let mut owners = vec![uid(&d.metadata)];
        let (mut pods, mut lacks_pods) = (Vec::new(), true);
        if let Some(newest) = newest {
            owners.push(uid(&newest.metadata));
            pods = self.owned(&uid(&newest.metadata), &selector).await?;
            let wanted = newest.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
            lacks_pods = living(&pods) < wanted;
        }
        let changed = progress::changed_at(&d.metadata);
        Ok(Look { progress, late, pods, before: Vec::new(), owners, lacks_pods, changed })
    }

    async fn look_at_stateful_set(&self) -> Result<Look, Status> {
        let set = self.api::<StatefulSet>().get(self.namespace, self.name).await?;
        let selector = set.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
        let all: Vec<Pod> = self.owned(&uid(&set.metadata), &selector).await?;
        let newest = set.status.as_ref().and_then(|status| status.update_revision.clone());
        let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let lacks_pods = living(&all) < wanted;
        // An ordered one goes no further while any of its pods is not ready.
        let (pods, before) = all.into_iter().partition(|pod| revision_of(&pod.metadata) == newest);
        let (progress, owners) = (progress::stateful_set(&set), vec![uid(&set.metadata)]);
        let changed = progress::changed_at(&set.metadata);
        Ok(Look { progress, late: false, pods, before, owners, lacks_pods, changed })
    }

    async fn look_at_daemon_set(&self) -> Result<Look, Status> {
        let set = self.api::<DaemonSet>().get(self.namespace, self.name).await?;
        let selector = set.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
        let mut pods: Vec<Pod> = self.owned(&uid(&set.metadata), &selector).await?;
        let wanted = set.status.as_ref().map_or(0, |status| status.desired_number_scheduled);
        let lacks_pods = living(&pods) < wanted;
        let revisions: Vec<ControllerRevision> = self.owned(&uid(&set.metadata), &selector).await?;
        let newest = revisions.iter().max_by_key(|revision| revision.revision);
        let newest = newest.and_then(|revision| revision_of(&revision.metadata));
        pods.retain(|pod| revision_of(&pod.metadata) == newest);
        let (progress, owners) = (progress::daemon_set(&set), vec![uid(&set.metadata)]);
        let changed = progress::changed_at(&set.metadata);
        Ok(Look { progress, late: false, pods, before: Vec::new(), owners, lacks_pods, changed })
    }

    /// Looks until the rollout is done, has failed, or the time is over.
    async fn follow(&self, timeout: Duration) -> Result<Value, Status> {
        let start = tokio::time::Instant::now();
        let what = format!("{:?}/{}", self.kind, self.name).to_lowercase();
        loop {
            let look = self.look().await?;
            let mut going = match &look.progress {
                Progress::Done(text) => {
                    return Ok(json!({ "outcome": "done", "said": format!("{what}: {text}") }));
                }
                Progress::Going(text) => text.clone(),
            };
            // Before the change is taken up, what there is to see is of the version before.
            let is_seen = going != progress::UNSEEN;
            match self.find(&look).await?.filter(|_| is_seen) {
                Some(Finding::Fails(cause)) => return Ok(self.failed(&what, &look, &cause)),
                Some(Finding::Hints(hint)) => going = format!("{going}; {hint}"),
                None => {}
            }
            if look.late {
                let said = format!("{what} fails: no progress within its deadline; {going}");
                let cause = "no progress within its deadline";
                return Ok(json!({ "outcome": "failed", "said": said, "cause": cause, "log": [] }));
            }
            if start.elapsed() >= timeout {
                return Ok(
                    json!({ "outcome": "late", "said": format!("{what} is still going on: {going}") }),
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn failed(&self, what: &str, look: &Look, cause: &Cause) -> Value {
        let pods: Vec<&Pod> = look.pods.iter().chain(&look.before).collect();
        let mut log = self.tail(&pods, cause);
        if log.is_empty() {
            log = last_lines(cause.last_words.lines());
        }
        let mut said = format!("{what} fails: {}", cause.what);
        if !log.is_empty() {
            said += &format!("; it said last:\n  | {}", log.join("\n  | "));
        }
        json!({ "outcome": "failed", "said": said, "cause": cause.what, "log": log })
    }

    async fn find(&self, look: &Look) -> Result<Option<Finding>, Status> {
        let events = self.api::<Event>().list(self.namespace, ListOptions::default()).await?;
        let mut events: Vec<Event> = events.iter().map(|event| (**event).clone()).collect();
        events.sort_by_key(last_seen);
        // What was refused before the change, or before the newest pods came, is over.
        let newest =
            look.pods.iter().filter_map(|pod| pod.metadata.creation_timestamp.as_ref()).map(|t| t.0).max();
        let is_news = |event: &&Event| {
            let at = last_seen(event);
            let is_ours = event.involved_object.uid.as_ref().is_some_and(|uid| look.owners.contains(uid));
            is_ours && at > look.changed && at >= newest
        };
        let owners: Vec<&Event> = events.iter().filter(is_news).collect();
        let unplaced =
            |pod: &Pod| podutil::condition(pod, "PodScheduled").is_some_and(|c| c.status == "False");
        let mut claims = Vec::new();
        if look.pods.iter().any(unplaced) {
            let all =
                self.api::<PersistentVolumeClaim>().list(self.namespace, ListOptions::default()).await?;
            claims = all.iter().map(|claim| (**claim).clone()).collect();
        }
        let (pods, before, lacks_pods) = (&look.pods, &look.before, look.lacks_pods);
        let evidence =
            Evidence { pods, before, claims: &claims, events: &events, owners: &owners, lacks_pods };
        Ok(cause::find(&evidence))
    }

    /// The last log lines of the container that crashed.
    fn tail(&self, pods: &[&Pod], cause: &Cause) -> Vec<String> {
        let Some((pod, container)) = &cause.logs else { return Vec::new() };
        let found = pods.iter().find(|p| p.metadata.name.as_ref() == Some(pod));
        let Some(uid) = found.map(|pod| uid(&pod.metadata)) else { return Vec::new() };
        let dir = self.logs.join(format!("{}_{pod}_{uid}", self.namespace)).join(container);
        let newest = |dir: PathBuf| -> Option<String> {
            let files = std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
            let number = |path: &PathBuf| path.file_stem()?.to_str()?.parse::<u32>().ok();
            let mut logs: Vec<PathBuf> = files.filter(|path| number(path).is_some()).collect();
            logs.sort_by_key(|path| std::cmp::Reverse(number(path)));
            // The newest may be of a run that has not said anything yet.
            let mut texts = logs.iter().take(2).filter_map(|path| std::fs::read_to_string(path).ok());
            texts.find(|text| !text.trim().is_empty())
        };
        let Some(text) = newest(dir) else { return Vec::new() };
        last_lines(text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)))
    }
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn a_time_limit_is_a_number_of_seconds_or_a_duration() {
        assert_eq!((seconds("90"), seconds("90s"), seconds("1h5m")), (Ok(90), Ok(90), Ok(3900)));
        assert!(seconds("soon").is_err() && seconds("-1").is_err());
    }
}
