//! Fake kubelets: what is bound to a node runs and is ready at once, and what is deleted goes.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use super::schedule::follow;
use crate::http::{Call, Connection};
use crate::objects::now;
use crate::target::{Failure, Target};

/// Connections over which pods are reported.
const CONNECTIONS: usize = 16;

/// What a kubelet does about a pod.
#[derive(Debug, PartialEq, Eq)]
enum Deed {
    Report,
    Remove,
}

/// What is to be done about the pod of an event, with its name.
fn deed(event: &Value) -> Option<(String, Deed)> {
    let pod = &event["object"];
    let name = pod["metadata"]["name"].as_str()?.to_owned();
    if event["type"] == "DELETED" || pod["spec"]["nodeName"].as_str().is_none_or(str::is_empty) {
        return None;
    }
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        return Some((name, Deed::Remove));
    }
    (pod["status"]["phase"] != "Running").then_some((name, Deed::Report))
}

/// The status of a pod that runs and is ready.
fn running(number: usize) -> Value {
    let (now, address) = (now(), format!("10.{}.{}.{}", number >> 16 & 255, number >> 8 & 255, number & 255));
    let condition = |kind: &str| json!({ "type": kind, "status": "True", "lastTransitionTime": now });
    let kinds = ["PodScheduled", "PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"];
    let conditions = kinds.map(condition);
    json!({ "status": {
        "phase": "Running", "startTime": now, "podIP": address, "podIPs": [{ "ip": address }],
        "conditions": conditions,
        "containerStatuses": [{
            "name": "main", "image": "registry.k8s.io/pause:3.10", "imageID": "", "ready": true, "started": true,
            "restartCount": 0, "state": { "running": { "startedAt": now } },
        }],
    } })
}

/// Plays the kubelets of all pods at `path` for as long as it is polled.
///
/// # Errors
/// The server cannot be reached or refuses.
pub async fn play(target: Arc<Target>, path: String, version: String) -> Result<(), Failure> {
    let (sender, receiver) = mpsc::unbounded_channel::<(usize, String, Deed)>();
    let receiver = Arc::new(Mutex::new(receiver));
    let mut workers = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (receiver, target, path) = (receiver.clone(), target.clone(), path.clone());
        workers.spawn(async move {
            let mut connection = Connection::open(&target).await?;
            loop {
                let next = receiver.lock().await.recv().await;
                let Some((number, name, deed)) = next else { return Ok::<(), Failure>(()) };
                let call = match deed {
                    Deed::Report => Call::patch(format!("{path}/{name}/status"), &running(number)),
                    Deed::Remove => Call::delete(format!("{path}/{name}")),
                };
                // A pod that is gone by now needs neither.
                connection.send(&call, false).await?;
            }
        });
    }
    let watching = watch(target, path, version, sender);
    tokio::select! {
        ended = watching => ended,
        ended = workers.join_next() => match ended {
            Some(Ok(Err(e))) => Err(e),
            _ => Err("a fake kubelet ended".into()),
        },
    }
}

async fn watch(
    target: Arc<Target>,
    path: String,
    version: String,
    sender: mpsc::UnboundedSender<(usize, String, Deed)>,
) -> Result<(), Failure> {
    let (mut version, mut reported, mut number) = (version, HashSet::new(), 0);
    loop {
        let mut events = follow(&target, &path, &version).await?;
        while let Some(line) = events.next().await {
            let event: Value = serde_json::from_slice(line).map_err(|e| e.to_string())?;
            if let Some(newer) = event["object"]["metadata"]["resourceVersion"].as_str() {
                newer.clone_into(&mut version);
            }
            let Some((name, deed)) = deed(&event) else { continue };
            if deed == Deed::Report && !reported.insert(name.clone()) {
                continue;
            }
            number += 1;
            let _ = sender.send((number, name, deed));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_pods_are_reported_until_they_run_and_removed_when_deleted() {
        let event = |pod: Value| json!({ "type": "MODIFIED", "object": pod });
        let pod = |node: &str, phase: &str, deleted: Option<&str>| {
            event(json!({ "metadata": { "name": "p", "deletionTimestamp": deleted },
                "spec": { "nodeName": node }, "status": { "phase": phase } }))
        };
        assert_eq!(deed(&pod("", "Pending", None)), None);
        assert_eq!(deed(&pod("n", "Pending", None)), Some(("p".into(), Deed::Report)));
        assert_eq!(deed(&pod("n", "Running", None)), None);
        assert_eq!(deed(&pod("n", "Running", Some("now"))), Some(("p".into(), Deed::Remove)));
    }
}
