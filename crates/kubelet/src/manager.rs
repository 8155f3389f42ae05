//! Keeps one worker per pod of this node, feeds them, and removes what earlier runs left behind.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use coracle_client::{Change, Informer};
use coracle_cri::v1::{ContainerFilter, ContainerState, PodSandboxFilter};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::RwLock;
use tracing::{info, warn};

use crate::context::Context;
use crate::manifests::Source;
use crate::names;
use crate::statics;
use crate::volumes;
use crate::worker::{Handle, Message, Worker};

/// The pods of this node by uid. Clones share them.
#[derive(Clone, Default)]
pub struct Pods {
    workers: Arc<RwLock<HashMap<String, Handle>>>,
}

impl Pods {
    /// A pod by namespace and name; of several (one being replaced) the one that is not being deleted.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Handle> {
        let workers = self.workers.read();
        let mut found: Vec<&Handle> = workers
            .values()
            .filter(|h| names::namespace(&h.pod) == namespace && names::name(&h.pod) == name)
            .collect();
        found.sort_by_key(|h| h.pod.metadata.deletion_timestamp.is_some());
        found.first().map(|h| (*h).clone())
    }
    /// All pods.
    pub fn all(&self) -> Vec<Handle> {
        self.workers.read().values().cloned().collect()
    }

    fn tell(&self, uid: &str, message: Message) {
        if let Some(handle) = self.workers.read().get(uid) {
            // A worker that just ended takes no messages; its pod is gone.
            let _ = handle.sender.send(message);
        }
    }

    fn tell_all(&self) {
        for handle in self.workers.read().values() {
            let _ = handle.sender.send(Message::Runtime);
        }
    }

    /// A pod is there or has changed.
    fn update(&self, cx: &Arc<Context>, pod: Arc<Pod>) {
        let uid = names::uid(&pod).to_owned();
        let mut workers = self.workers.write();
        if let Some(handle) = workers.get_mut(&uid) {
            handle.pod = pod.clone();
            if handle.sender.send(Message::Pod(pod.clone())).is_ok() {
                return;
            }
        }
        let (worker, handle) = Worker::new(cx.clone(), pod);
        workers.insert(uid.clone(), handle);
        drop(workers);
        let (pods, again) = (self.clone(), cx.clone());
        // The worker in a task of its own: a panic must not leave its entry behind.
        let work = tokio::spawn(Box::new(worker).run());
        tokio::spawn(async move {
            if let Err(e) = work.await {
                warn!(uid, error = %e, "pod worker failed; starting again");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                let failed = pods.workers.write().remove(&uid);
                if let Some(failed) = failed {
                    pods.update(&again, failed.pod);
                }
                return;
            }
            pods.workers.write().remove(&uid);
        });
    }

    /// The static pod that bears a mirror's name.
    fn behind(&self, mirror: &Pod) -> Option<Handle> {
        let own = self.find(names::namespace(mirror), names::name(mirror));
        own.filter(|h| names::is_static(&h.pod))
    }

    /// A mirror is there or has changed; one without a static pod goes.
    fn mirrored(&self, cx: &Arc<Context>, mirror: Arc<Pod>) {
        match self.behind(&mirror) {
            // A worker that just ended takes no messages; its mirror goes with the next change.
            Some(handle) => drop(handle.sender.send(Message::Mirror(Some(mirror)))),
            None => drop(tokio::spawn(statics::remove_mirror(cx.clone(), mirror))),
        }
    }

    /// Starts the static pods that are new and ends those that are gone. One that changed is another pod of the same
    /// name: it starts once the old one has ended.
    fn statics(&self, cx: &Arc<Context>, wanted: &[Arc<Pod>], mirrors: &Informer<Pod>) {
        let own = |h: &&Handle| names::is_static(&h.pod);
        let stays = |h: &Handle| wanted.iter().any(|p| names::uid(p) == names::uid(&h.pod));
        for gone in self.workers.read().values().filter(own).filter(|h| !stays(h)) {
            let _ = gone.sender.send(Message::Gone);
        }
        for pod in wanted {
            if self.workers.read().contains_key(names::uid(pod)) {
                continue;
            }
            let (pods, cx, pod, mirrors) = (self.clone(), cx.clone(), pod.clone(), mirrors.clone());
            tokio::spawn(async move {
                while pods.find(names::namespace(&pod), names::name(&pod)).is_some() {
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
                pods.update(&cx, pod.clone());
                if let Some(mirror) = mirrors.get(names::namespace(&pod), names::name(&pod)) {
                    pods.tell(names::uid(&pod), Message::Mirror(Some(mirror)));
                }
            });
        }
    }

    /// Runs workers for the pods of `informer` and of the manifests.
    pub async fn run(&self, cx: Arc<Context>, informer: Informer<Pod>) {
        let mut events = cx.runtime.container_events().await.ok();
        let mut source = Source::new(&cx);
        let statics = source.read(&cx);
        informer.wait_synced().await;
        let known = informer.list().into_iter().chain(statics.iter().cloned());
        let mut known: HashSet<String> = known.map(|p| names::uid(&p).to_owned()).collect();
        if source.fetched().is_none() {
            cx.cpus.retain(&known);
            cx.memory_manager.retain(&known);
        }
        let (orphans, fetched) = (cx.clone(), source.fetched());
        tokio::spawn(async move {
            // Pods of the URL are no orphans while it has not answered.
            if let Some(mut fetched) = fetched {
                let Ok(pods) = fetched.wait_for(Option::is_some).await else { return };
                known.extend(pods.iter().flatten().map(|p| names::uid(p).to_owned()));
                drop(pods);
                orphans.cpus.retain(&known);
                orphans.memory_manager.retain(&known);
            }
            remove_orphans(&orphans, &known).await;
        });
        self.statics(&cx, &statics, &informer);
        let mut changes = informer.subscribe();
        loop {
            tokio::select! {
                change = changes.next() => match change {
                    Some(Change::Added(pod) | Change::Modified { new: pod, .. }) if names::is_mirror(&pod) => {
                        self.mirrored(&cx, pod);
                    }
                    Some(Change::Deleted(pod)) if names::is_mirror(&pod) => {
                        if let Some(handle) = self.behind(&pod) {
                            let _ = handle.sender.send(Message::Mirror(None));
                        }
                    }
                    Some(Change::Added(pod) | Change::Modified { new: pod, .. }) => self.update(&cx, pod),
                    Some(Change::Deleted(pod)) => self.tell(names::uid(&pod), Message::Gone),
                    None => return,
                },
                () = source.changed() => {
                    let statics = source.read(&cx);
                    self.statics(&cx, &statics, &informer);
                }
                event = next(&mut events) => match event {
                    Some(event) => self.tell(&event.pod.uid, Message::Runtime),
                    None => {
                        // Events were lost: subscribe again, then let every worker look.
                        events = cx.runtime.container_events().await.ok();
                        if events.is_none() {
                            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                        }
                        self.tell_all();
                    }
                },
            }
        }
    }
}

/// The next event; `None` at once when there is no subscription.
async fn next(
    events: &mut Option<tokio::sync::mpsc::Receiver<coracle_cri::v1::ContainerEventResponse>>,
) -> Option<coracle_cri::v1::ContainerEventResponse> {
    match events {
        Some(receiver) => receiver.recv().await,
        None => None,
    }
}

/// Kills and removes sandboxes, containers and directories of pods that vanished while the kubelet was away.
async fn remove_orphans(cx: &Context, known: &HashSet<String>) {
    let containers = cx.runtime.list_containers(ContainerFilter::default()).await.unwrap_or_default();
    let uid_of = |labels: &BTreeMap<String, String>| labels.get(names::POD_UID).cloned();
    let orphaned =
        |labels: &BTreeMap<String, String>| uid_of(labels).is_some_and(|uid| !known.contains(&uid));
    let stops = containers.iter().filter(|c| orphaned(&c.labels)).map(|c| async move {
        if c.state == ContainerState::Running {
            info!(container = c.id, "killing a container whose pod is gone");
            let grace = c.annotations.get(names::GRACE_PERIOD).and_then(|g| g.parse().ok()).unwrap_or(30);
            if let Err(e) = cx.runtime.stop_container(&c.id, grace).await {
                warn!(container = c.id, error = %e, "orphan not killed");
            }
        }
        if let Err(e) = cx.runtime.remove_container(&c.id).await {
            warn!(container = c.id, error = %e, "orphan not removed");
        }
    });
    futures::future::join_all(stops).await;
    let sandboxes = cx.runtime.list_pod_sandbox(PodSandboxFilter::default()).await.unwrap_or_default();
    for s in sandboxes.iter().filter(|s| orphaned(&s.labels)) {
        let stopped = cx.runtime.stop_pod_sandbox(&s.id).await;
        if let Err(e) = stopped.and(cx.runtime.remove_pod_sandbox(&s.id).await) {
            warn!(sandbox = s.id, error = %e, "orphaned sandbox not removed");
        }
    }
    remove_orphaned_directories(cx, known);
}

/// Directories and logs of pods that are not known and were there before this process.
fn remove_orphaned_directories(cx: &Context, known: &HashSet<String>) {
    let entries = |path: &std::path::Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    let started = cx.runtime_started();
    let older = |e: &std::fs::DirEntry| e.metadata().and_then(|m| m.modified()).is_ok_and(|m| m < started);
    for entry in entries(&cx.config.root.join("pods")) {
        let uid = entry.file_name().to_string_lossy().into_owned();
        if known.contains(&uid) || !older(&entry) {
            continue;
        }
        if let Err(e) = volumes::remove_pod_directory(&entry.path()) {
            warn!(path = %entry.path().display(), error = %e, "orphaned pod directory not removed");
        }
        cx.user_namespaces.release(&uid);
    }
    for entry in entries(&cx.config.log_root) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let uid = name.rsplit('_').next().unwrap_or("");
        if !known.contains(uid) && older(&entry) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
