//! What the server does with definitions of custom resources after they were written: it accepts names, says that
//! they are established, judges schemas and approvals, registers their versions, and cleans up when they go.
//!
//! Upstream has a controller for each of these inside kube-apiserver; here one task does what is due, one
//! definition at a time, whenever a definition or one of their objects changes.

use std::sync::Arc;
use std::time::Duration;

use coracle_client::{DeleteOptions, ListOptions, WriteOptions};
use coracle_meta::{Object, Status};
use coracle_resources::apiextensions::conditions::{self, CLEANUP};
use jiff::Timestamp;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use serde_json::json;
use tokio::sync::mpsc;
use tracing::warn;

use crate::cache::definitions::KIND;
use crate::cache::{Event, EventKind, Filter};
use crate::registry::Resource;
use crate::server::Server;
use crate::verbs::{Input, Part};

/// Label of the APIServices that are made here.
const AUTO_MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// How long to wait for finalizers of instances before looking again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Pause after a failure.
const PAUSE: Duration = Duration::from_millis(200);

/// Does all that is due, for ever.
pub(crate) async fn run(server: Arc<Server>) {
    let Some(mut changes) = watch(&server) else { return std::future::pending().await };
    loop {
        let waiting = match once(&server).await {
            Ok(waiting) => waiting,
            Err(status) => {
                warn!(error = %status, "cannot bring definitions of custom resources up to date");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if waiting {
            // Instances have finalizers of their own: look again when a moment has passed.
            let _ = tokio::time::timeout(LOOK_AGAIN, changes.recv()).await;
        } else if changes.recv().await.is_none() {
            return;
        }
        while changes.try_recv().is_ok() {}
    }
}

fn watch(server: &Server) -> Option<mpsc::Receiver<(EventKind, Arc<Event>)>> {
    let resource = server.cache.registry.find(KIND.0, KIND.1)?;
    let filter = Filter { key: resource.prefix.clone(), ..Filter::default() };
    let applied = server.cache.applied();
    Some(resource.cache.subscribe(filter, Some(applied), applied).ok()?.live)
}

/// Does all that is due now; whether something waits for instances to go.
pub(crate) async fn once(server: &Arc<Server>) -> Result<bool, Status> {
    let Some(resource) = server.cache.registry.find(KIND.0, KIND.1) else { return Ok(false) };
    // Names that one definition gives back may be what another waits for.
    loop {
        let mut changed = false;
        for crd in all(server) {
            changed |= step(server, &resource, &crd).await?;
        }
        if !changed {
            break;
        }
        server.fresh().await?;
    }
    let mut waiting = false;
    for crd in all(server) {
        waiting |= !clean_up(server, &resource, &crd).await?;
    }
    register(server).await?;
    Ok(waiting)
}

fn all(server: &Server) -> Vec<Arc<CustomResourceDefinition>> {
    use coracle_meta::ObjectReader;
    let objects = server.cache.list(KIND.0, KIND.1, "").into_iter();
    objects.filter_map(|obj| obj.into_any_arc().downcast().ok()).collect()
}

/// The first decision about a definition that changes it; whether there was one.
async fn step(
    server: &Arc<Server>,
    resource: &Arc<Resource>,
    crd: &CustomResourceDefinition,
) -> Result<bool, Status> {
    let now = server.clock.now();
    let others = all(server);
    let others: Vec<&CustomResourceDefinition> = others
        .iter()
        .filter(|o| o.spec.group == crd.spec.group && o.metadata.name != crd.metadata.name)
        .map(|o| &**o)
        .collect();
    let decided = decide(crd, &others, now);
    match decided {
        None => Ok(false),
        Some(changed) => {
            write(server, resource, changed).await?;
            server.fresh().await?;
            Ok(true)
        }
    }
}

fn decide(
    crd: &CustomResourceDefinition,
    others: &[&CustomResourceDefinition],
    now: Timestamp,
) -> Option<CustomResourceDefinition> {
    conditions::accept_names(crd, others, now)
        .or_else(|| conditions::establish(crd, now))
        .or_else(|| conditions::judge_schemas(crd, now))
        .or_else(|| conditions::judge_approval(crd, now))
}

/// Writes a status (and, as upstream, finalizers); someone else's change meanwhile leads to another round.
async fn write(
    server: &Arc<Server>,
    resource: &Arc<Resource>,
    crd: CustomResourceDefinition,
) -> Result<Option<Arc<dyn Object>>, Status> {
    let (caller, opts) = (Server::loopback(), WriteOptions::default());
    let name = crd.metadata.name.clone().unwrap_or_default();
    let input = Input::Object(Arc::new(crd));
    match server.update(&caller, resource, "", &name, Part::Status, input, &opts).await {
        Ok(outcome) => outcome.entry.decoded().map(Some),
        Err(status) if matches!(status.code(), 404 | 409) => Ok(None),
        Err(status) => Err(status),
    }
}

/// Deletes the instances of a definition that is being deleted, and lets it go when none is left. Whether
/// nothing is left to be done.
async fn clean_up(
    server: &Arc<Server>,
    resource: &Arc<Resource>,
    crd: &CustomResourceDefinition,
) -> Result<bool, Status> {
    let held = crd.metadata.finalizers.iter().flatten().any(|f| f == CLEANUP);
    if crd.metadata.deletion_timestamp.is_none() || !held {
        return Ok(true);
    }
    let told = "InstanceDeletionInProgress";
    let mut crd = crd.clone();
    let noted = crd.status.iter().flat_map(|s| s.conditions.iter().flatten());
    if !noted.clone().any(|c| c.type_ == "Terminating" && c.reason.as_deref() == Some(told)) {
        let why = "CustomResource deletion is in progress";
        conditions::set(&mut crd, ("Terminating", "True", told, why), server.clock.now());
        let Some(written) = write(server, resource, crd).await? else { return Ok(false) };
        let Some(written) = written.downcast::<CustomResourceDefinition>() else { return Ok(false) };
        crd = written.clone();
        server.fresh().await?;
    }
    let done = if conditions::is_true(&crd, "Established") {
        if !delete_instances(server, &crd).await? {
            return Ok(false);
        }
        ("InstanceDeletionCompleted", "removed all instances")
    } else {
        ("NeverEstablished", "resource was never established")
    };
    conditions::set(&mut crd, ("Terminating", "False", done.0, done.1), server.clock.now());
    crd.metadata.finalizers.get_or_insert_default().retain(|f| f != CLEANUP);
    let name = crd.metadata.name.clone().unwrap_or_default();
    let gone = write(server, resource, crd).await?;
    server.fresh().await?;
    Ok(gone.is_some() || server.present(resource, "", &name).is_err())
}

/// Asks for the deletion of all instances; whether all are gone.
async fn delete_instances(server: &Arc<Server>, crd: &CustomResourceDefinition) -> Result<bool, Status> {
    let names = crd.status.as_ref().and_then(|s| s.accepted_names.as_ref()).unwrap_or(&crd.spec.names);
    let Some(resource) = server.cache.registry.find(&crd.spec.group, &names.plural) else { return Ok(true) };
    if resource.custom().is_none() {
        return Ok(true);
    }
    let caller = Server::loopback();
    let (opts, list) = (DeleteOptions::default(), ListOptions::default());
    server.delete_collection(&caller, &resource, "", &opts, &list).await?;
    server.fresh().await?;
    Ok(resource.cache.len() == 0)
}

/// Keeps one APIService per served version.
async fn register(server: &Arc<Server>) -> Result<(), Status> {
    use coracle_meta::ObjectReader;
    let group = "apiregistration.k8s.io";
    let Some(resource) = server.cache.registry.find(group, "apiservices") else { return Ok(()) };
    let defs = server.cache.registry.defs();
    let wanted: std::collections::BTreeSet<(&str, &str)> = defs
        .iter()
        .filter(|def| def.strategy.custom().is_some())
        .map(|def| (def.group, def.version))
        .collect();
    let caller = Server::loopback();
    let mut present = Vec::new();
    for obj in server.cache.list(group, "apiservices", "") {
        let Some(service) = obj.downcast::<APIService>() else { continue };
        let label = service.metadata.labels.as_ref().and_then(|l| l.get(AUTO_MANAGED));
        let of = service
            .spec
            .as_ref()
            .map(|s| (s.group.clone().unwrap_or_default(), s.version.clone().unwrap_or_default()));
        let of = of.unwrap_or_default();
        if label.map(String::as_str) == Some("true") && !wanted.contains(&(of.0.as_str(), of.1.as_str())) {
            let gone = server.delete(&caller, &resource, "", obj.name(), &DeleteOptions::default()).await;
            gone.map(drop).or_else(|s| if s.code() == 404 { Ok(()) } else { Err(s) })?;
        } else {
            present.push(of);
        }
    }
    for (group, version) in wanted {
        if present.iter().any(|(g, v)| (g.as_str(), v.as_str()) == (group, version)) {
            continue;
        }
        let object = json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": { "name": format!("{version}.{group}"), "labels": { AUTO_MANAGED: "true" } },
            "spec": { "group": group, "version": version, "groupPriorityMinimum": 1000, "versionPriority": 100 },
        });
        let made = server.create(&caller, &resource, "", Input::Json(object), &WriteOptions::default()).await;
        made.map(drop).or_else(|s| if s.code() == 409 { Ok(()) } else { Err(s) })?;
    }
    Ok(())
}
