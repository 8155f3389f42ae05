//! `coracle release`: follows a rollout and names the cause when it fails; goes back, pauses, goes on, aborts.

mod diagnose;

use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_client::{Api, Client, DeleteOptions, ListOptions, PatchKind};
use coracle_meta::owner::controller_of;
use coracle_meta::selector::LabelSelector;
use coracle_meta::{Kind, Status, pod as podutil};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector as ApiSelector, ObjectMeta};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cli::{Output, ReleaseArgs, ReleaseCommand};
use crate::cluster::Paths;
use crate::control::{Request, ask};
use crate::error::Failure;
use diagnose::{Cause, Progress};

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
        "undo" => release.back(order.to, false).await,
        "abort" => release.back(None, true).await,
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
    /// Uids of those whose events tell that pods cannot be made.
    owners: Vec<String>,
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

    async fn owned<K: Kind>(&self, owner: &str, selector: &ApiSelector) -> Result<Vec<K>, Status> {
        let selector = LabelSelector::from_api(selector).map_err(Status::bad_request)?;
        let all = self.api::<K>().list(self.namespace, ListOptions::default()).await?;
        let is = |object: &K| {
            let meta = object.metadata();
            selector.matches_option(meta.labels.as_ref())
                && controller_of(meta).is_some_and(|o| o.uid == owner)
        };
        Ok(all.iter().filter(|object| is(object)).map(|object| (**object).clone()).collect())
    }

    async fn look(&self) -> Result<Look, Status> {
        match self.kind {
            Workload::Deployment => {
                let d = self.api::<Deployment>().get(self.namespace, self.name).await?;
                let selector = d.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
                let sets: Vec<ReplicaSet> = self.owned(&uid(&d.metadata), &selector).await?;
                let newest = sets.iter().max_by_key(|set| revision(&set.metadata));
                let (progress, late) = diagnose::deployment(&d);
                let mut owners = vec![uid(&d.metadata)];
                let mut pods = Vec::new();
                if let Some(newest) = newest {
                    owners.push(uid(&newest.metadata));
                    pods = self.owned(&uid(&newest.metadata), &selector).await?;
                }
                Ok(Look { progress, late, pods, owners })
            }
            Workload::StatefulSet => {
                let set = self.api::<StatefulSet>().get(self.namespace, self.name).await?;
                let selector = set.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
                let mut pods: Vec<Pod> = self.owned(&uid(&set.metadata), &selector).await?;
                let newest = set.status.as_ref().and_then(|status| status.update_revision.clone());
                pods.retain(|pod| revision_of(&pod.metadata) == newest);
                let (progress, owners) = (diagnose::stateful_set(&set), vec![uid(&set.metadata)]);
                Ok(Look { progress, late: false, pods, owners })
            }
            Workload::DaemonSet => {
                let set = self.api::<DaemonSet>().get(self.namespace, self.name).await?;
                let selector = set.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
                let mut pods: Vec<Pod> = self.owned(&uid(&set.metadata), &selector).await?;
                let revisions: Vec<ControllerRevision> = self.owned(&uid(&set.metadata), &selector).await?;
                let newest = revisions.iter().max_by_key(|revision| revision.revision);
                let newest = newest.and_then(|revision| revision_of(&revision.metadata));
                pods.retain(|pod| revision_of(&pod.metadata) == newest);
                let (progress, owners) = (diagnose::daemon_set(&set), vec![uid(&set.metadata)]);
                Ok(Look { progress, late: false, pods, owners })
            }
        }
    }

    /// Looks until the rollout is done, has failed, or the time is over.
    async fn follow(&self, timeout: Duration) -> Result<Value, Status> {
        let (start, what) =
            (tokio::time::Instant::now(), format!("{:?}/{}", self.kind, self.name).to_lowercase());
        loop {
            let look = self.look().await?;
            let going = match &look.progress {
                Progress::Done(text) => {
                    return Ok(json!({ "outcome": "done", "said": format!("{what}: {text}") }));
                }
                Progress::Going(text) => text.clone(),
            };
            // Before the change is taken up, what there is to see is of the version before.
            let is_seen = going != diagnose::UNSEEN;
            if let Some(cause) = self.cause(&look).await?.filter(|_| is_seen) {
                let log = self.tail(&look.pods, &cause);
                let mut said = format!("{what} fails: {}", cause.what);
                if !log.is_empty() {
                    said += &format!("; it said last:\n  | {}", log.join("\n  | "));
                }
                return Ok(json!({ "outcome": "failed", "said": said, "cause": cause.what, "log": log }));
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

    async fn cause(&self, look: &Look) -> Result<Option<Cause>, Status> {
        let events = self.api::<Event>().list(self.namespace, ListOptions::default()).await?;
        let mut events: Vec<Event> = events.iter().map(|event| (**event).clone()).collect();
        events.sort_by_key(|event| event.last_timestamp.as_ref().map(|t| t.0));
        // What was refused before the newest pods came is over.
        let newest =
            look.pods.iter().filter_map(|pod| pod.metadata.creation_timestamp.as_ref()).map(|t| t.0).max();
        let is_news = |event: &&Event| {
            let at = event.last_timestamp.as_ref().map(|t| t.0);
            event.involved_object.uid.as_ref().is_some_and(|uid| look.owners.contains(uid)) && at > newest
        };
        let owners: Vec<&Event> = events.iter().filter(is_news).collect();
        Ok(diagnose::cause(&look.pods, &events, &owners))
    }

    /// The last log lines of the container that crashed.
    fn tail(&self, pods: &[Pod], cause: &Cause) -> Vec<String> {
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
        let said: Vec<&str> = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3)).collect();
        said[said.len().saturating_sub(LINES)..].iter().map(|line| (*line).to_owned()).collect()
    }

    async fn pause(&self, paused: bool) -> Result<String, Status> {
        if self.kind != Workload::Deployment {
            return Err(Status::bad_request(
                "only deployments can be paused; set updateStrategy or partition instead",
            ));
        }
        let patch = json!({ "spec": { "paused": paused } });
        self.api::<Deployment>().patch(self.namespace, self.name, PatchKind::Merge, patch).await?;
        Ok(format!("deployment/{} {}", self.name, if paused { "paused" } else { "goes on" }))
    }

    /// Brings an earlier version back: the one before, revision `to`, or (`at_once`) the last that was ready.
    async fn back(&self, to: Option<i64>, at_once: bool) -> Result<String, Status> {
        match self.kind {
            Workload::Deployment => self.back_deployment(to, at_once).await,
            Workload::StatefulSet => {
                let set = self.api::<StatefulSet>().get(self.namespace, self.name).await?;
                let said = self.back_revision::<StatefulSet>(&uid(&set.metadata), to).await?;
                if at_once {
                    let selector = set.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
                    self.drop_unready(&uid(&set.metadata), &selector).await?;
                }
                Ok(said)
            }
            Workload::DaemonSet => {
                let set = self.api::<DaemonSet>().get(self.namespace, self.name).await?;
                self.back_revision::<DaemonSet>(&uid(&set.metadata), to).await
            }
        }
    }

    async fn back_deployment(&self, to: Option<i64>, ready: bool) -> Result<String, Status> {
        let api = self.api::<Deployment>();
        let d = api.get(self.namespace, self.name).await?;
        let selector = d.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
        let sets: Vec<ReplicaSet> = self.owned(&uid(&d.metadata), &selector).await?;
        let Some(old) = diagnose::previous(&sets, to, ready) else {
            return Err(Status::bad_request(format!("deployment/{} has no earlier version", self.name)));
        };
        let mut changed = (*d).clone();
        let spec = changed.spec.get_or_insert_default();
        let mut template = old.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
        if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
            labels.remove("pod-template-hash");
        }
        spec.template = template;
        spec.paused = None;
        api.update(self.namespace, changed).await?;
        Ok(format!("deployment/{} goes back to revision {}", self.name, revision(&old.metadata)))
    }

    async fn back_revision<K: Kind>(&self, owner: &str, to: Option<i64>) -> Result<String, Status> {
        let all = self.api::<ControllerRevision>().list(self.namespace, ListOptions::default()).await?;
        let mut owned: Vec<_> =
            all.into_iter().filter(|r| controller_of(&r.metadata).is_some_and(|o| o.uid == owner)).collect();
        owned.sort_by_key(|r| std::cmp::Reverse(r.revision));
        let found = match to {
            Some(to) => owned.iter().find(|r| r.revision == to),
            None => owned.get(1),
        };
        let what = format!("{}/{}", K::KIND.to_lowercase(), self.name);
        let Some((old, data)) = found.and_then(|r| Some((r, r.data.as_ref()?))) else {
            return Err(Status::bad_request(format!("{what} has no such earlier version")));
        };
        self.api::<K>().patch(self.namespace, self.name, PatchKind::Strategic, data.0.clone()).await?;
        Ok(format!("{what} goes back to revision {}", old.revision))
    }

    /// Pods that are not ready would hold an ordered StatefulSet up for ever.
    async fn drop_unready(&self, owner: &str, selector: &ApiSelector) -> Result<(), Status> {
        let pods: Vec<Pod> = self.owned(owner, selector).await?;
        for pod in pods.iter().filter(|pod| !podutil::is_ready(pod)) {
            let options = DeleteOptions { uid: pod.metadata.uid.clone(), ..DeleteOptions::default() };
            let name = pod.metadata.name.as_deref().unwrap_or("");
            match self.api::<Pod>().delete(self.namespace, name, options).await {
                Err(e) if e.code() != 404 => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}
