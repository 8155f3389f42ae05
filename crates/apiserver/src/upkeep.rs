//! What the server keeps up to date while it runs: priority and fairness, whether a FlowSchema's priority level
//! exists, which addresses Services hold, and when tokens in Secrets were used.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_client::{DeleteOptions, PatchKind, WriteOptions};
use coracle_meta::{ObjectReader, Status};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::flowcontrol::v1::FlowSchema;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::warn;

use crate::cache::{Event, EventKind, Filter};
use crate::flow::{Given, Protection};
use crate::server::Server;
use crate::verbs::patch::Patch;
use crate::verbs::{Input, Part};

const FLOWCONTROL: &str = "flowcontrol.apiserver.k8s.io";
const NETWORKING: &str = "networking.k8s.io";
const DEFAULT_CIDR: &str = "kubernetes";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const ALLOCATOR: &str = "ipallocator.k8s.io";

/// Brings both up to date once.
pub(crate) async fn once(server: &Arc<Server>) -> Result<(), Status> {
    flow_schemas_once(server).await?;
    service_cidr(server).await?;
    addresses_once(server).await
}

/// Keeps the FlowSchemas in force, and the `Dangling` condition of each.
pub(crate) async fn flow_schemas(server: Arc<Server>) {
    let Some(mut changes) =
        changes(&server, &[(FLOWCONTROL, "flowschemas"), (FLOWCONTROL, "prioritylevelconfigurations")])
    else {
        return std::future::pending().await;
    };
    loop {
        if let Err(status) = flow_schemas_once(&server).await {
            warn!(error = %status, "cannot note which FlowSchemas dangle");
            return;
        }
        if !changed(&mut changes).await {
            return;
        }
    }
}

/// Keeps one IPAddress for every cluster IP.
pub(crate) async fn addresses(server: Arc<Server>) {
    let Some(mut changes) = changes(&server, &[("", "services"), (NETWORKING, "ipaddresses")]) else {
        return std::future::pending().await;
    };
    loop {
        if let Err(status) = addresses_once(&server).await {
            warn!(error = %status, "cannot note the addresses of Services");
            return;
        }
        if !changed(&mut changes).await {
            return;
        }
    }
}

/// Labels Secrets whose tokens are used with the day, so that those that nobody uses can be found.
pub(crate) async fn legacy_tokens(server: Arc<Server>) {
    let (Some(issuer), Some(secrets)) = (&server.token_issuer, server.cache.registry.find("", "secrets"))
    else {
        return std::future::pending().await;
    };
    let (caller, opts) = (Server::loopback(), WriteOptions::default());
    loop {
        for used in issuer.legacy_uses().next().await {
            let body = used.patch();
            let patch = Patch { kind: PatchKind::Merge, body: &body, twice: &[] };
            let (namespace, name) = (&used.namespace, &used.name);
            let done = server.patch(&caller, &secrets, namespace, name, Part::Main, patch, &opts).await;
            if let Err(status) = done {
                warn!(error = %status, namespace, name, "cannot note that the token of a Secret is used");
            }
        }
    }
}

type Changes = Vec<mpsc::Receiver<(EventKind, Arc<Event>)>>;

/// Watches these resources; `None` when one is not served.
fn changes(server: &Server, resources: &[(&str, &str)]) -> Option<Changes> {
    let watch = |(group, plural): &(&str, &str)| {
        let resource = server.cache.registry.find(group, plural)?;
        let filter = Filter { key: resource.prefix.clone(), ..Filter::default() };
        let applied = server.cache.applied();
        Some(resource.cache.subscribe(filter, Some(applied), applied).ok()?.live)
    };
    resources.iter().map(watch).collect()
}

/// Waits for a change and takes all that there are; false when a watch has ended.
async fn changed(watches: &mut Changes) -> bool {
    let events = watches.iter_mut().map(|w| Box::pin(w.recv()));
    let (event, ..) = futures::future::select_all(events).await;
    for watch in watches {
        while watch.try_recv().is_ok() {}
    }
    event.is_some()
}

/// Puts the stored FlowSchemas and priority levels in force.
fn configure_flow(server: &Server) {
    let Protection::Fair(flow) = &server.protection else { return };
    let (schemas, levels) = ("flowschemas", "prioritylevelconfigurations");
    let list = |plural| server.cache.list(FLOWCONTROL, plural, "");
    flow.configure(Given {
        schemas: list(schemas).iter().filter_map(|obj| obj.downcast().cloned()).collect(),
        levels: list(levels).iter().filter_map(|obj| obj.downcast().cloned()).collect(),
    });
}

async fn flow_schemas_once(server: &Arc<Server>) -> Result<(), Status> {
    configure_flow(server);
    for obj in server.cache.list(FLOWCONTROL, "flowschemas", "") {
        let Some(condition) = obj.downcast::<FlowSchema>().and_then(|s| dangling(server, s)) else {
            continue;
        };
        let at = ("FlowSchema", FLOWCONTROL, "flowschemas", obj.name());
        apply_condition(server, at, condition, "api-priority-and-fairness-config-consumer-v1").await?;
    }
    Ok(())
}

/// The `Dangling` condition that a FlowSchema should have, unless it has it.
fn dangling(server: &Server, schema: &FlowSchema) -> Option<Value> {
    let level = &schema.spec.as_ref()?.priority_level_configuration.name;
    let exists = server.cache.get(FLOWCONTROL, "prioritylevelconfigurations", "", level).is_some();
    let (status, reason, end) = match exists {
        true => ("False", "Found", "and it exists"),
        false => ("True", "NotFound", "but there is no such object"),
    };
    let message =
        format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?} {end}");
    let mut noted = schema.status.iter().filter_map(|s| s.conditions.as_ref()).flatten();
    let same = |have: &Option<String>, want: &str| have.as_deref() == Some(want);
    let current = noted.any(|c| {
        same(&c.type_, "Dangling")
            && same(&c.status, status)
            && same(&c.reason, reason)
            && same(&c.message, &message)
    });
    let now = server.clock.now().strftime("%FT%TZ").to_string();
    (!current).then(|| {
        json!({
            "type": "Dangling", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": now,
        })
    })
}

/// Applies one status condition; an object that went away needs none.
async fn apply_condition(
    server: &Arc<Server>,
    (kind, group, plural, name): (&str, &str, &str, &str),
    condition: Value,
    manager: &str,
) -> Result<(), Status> {
    let resource = server.cache.registry.find(group, plural).ok_or_else(Status::no_such_path)?;
    let body = json!({
        "apiVersion": format!("{group}/v1"), "kind": kind,
        "metadata": { "name": name }, "status": { "conditions": [condition] },
    });
    let opts = WriteOptions { field_manager: manager.into(), force: true, ..WriteOptions::default() };
    let patch = Patch { kind: PatchKind::Apply, body: &body, twice: &[] };
    let caller = Server::loopback();
    match server.patch(&caller, &resource, "", name, Part::Status, patch, &opts).await {
        Err(status) if status.code() != 404 => Err(status),
        _ => Ok(()),
    }
}

/// Creates the ServiceCIDR of the range that the server was started with, and says that it is ready.
async fn service_cidr(server: &Arc<Server>) -> Result<(), Status> {
    let Some(resource) = server.cache.registry.find(NETWORKING, "servicecidrs") else {
        return Ok(());
    };
    let cidr = server.services.cidr();
    if let Some(found) = server.cache.get(NETWORKING, "servicecidrs", "", DEFAULT_CIDR) {
        if !found.downcast::<ServiceCIDR>().is_some_and(|found| unnoted(found, cidr)) {
            return Ok(());
        }
    } else {
        let object = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": { "name": DEFAULT_CIDR }, "spec": { "cidrs": [cidr] },
        });
        let (caller, opts) = (Server::loopback(), WriteOptions::default());
        match server.create(&caller, &resource, "", Input::Json(object), &opts).await {
            // Another API server on the same store was faster.
            Err(status) if status.code() != 409 => return Err(status),
            _ => {}
        }
    }
    let condition = json!({
        "type": "Ready", "status": "True", "reason": "",
        "message": "Kubernetes default Service CIDR is ready",
        "lastTransitionTime": server.clock.now().strftime("%FT%TZ").to_string(),
    });
    let at = ("ServiceCIDR", NETWORKING, "servicecidrs", DEFAULT_CIDR);
    apply_condition(server, at, condition, "kubernetes-service-cidr-controller").await
}

/// Whether it is of this range, and nobody has said whether it is ready.
fn unnoted(found: &ServiceCIDR, cidr: &str) -> bool {
    let have = found.spec.as_ref().and_then(|s| s.cidrs.as_deref()).unwrap_or_default();
    let mut noted = found.status.iter().filter_map(|s| s.conditions.as_ref()).flatten();
    have == [cidr] && !noted.any(|c| c.type_ == "Ready" && c.status != "Unknown")
}

/// Creates the IPAddresses that are missing and deletes those whose Service is gone.
async fn addresses_once(server: &Arc<Server>) -> Result<(), Status> {
    let Some(resource) = server.cache.registry.find(NETWORKING, "ipaddresses") else {
        return Ok(());
    };
    if server.store.shared() {
        server.fresh().await?;
        let services = server.cache.list("", "services", "");
        server.services.resync(services.iter().filter_map(|s| s.downcast::<Service>()?.spec.as_ref()));
    }
    let (missing, orphans) = compare_addresses(server);
    let caller = Server::loopback();
    for ip in orphans {
        let gone = server.delete(&caller, &resource, "", &ip, &DeleteOptions::default()).await;
        gone.map(drop).or_else(|s| if s.code() == 404 { Ok(()) } else { Err(s) })?;
    }
    for (ip, (namespace, name)) in missing {
        let family = if ip.contains(':') { "IPv6" } else { "IPv4" };
        let parent = json!({ "group": "", "resource": "services", "namespace": namespace, "name": name });
        let object = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
            "metadata": { "name": ip, "labels": { FAMILY: family, MANAGED_BY: ALLOCATOR } },
            "spec": { "parentRef": parent },
        });
        let made = server.create(&caller, &resource, "", Input::Json(object), &WriteOptions::default()).await;
        made.map(drop).or_else(|s| if s.code() == 409 { Ok(()) } else { Err(s) })?;
    }
    Ok(())
}

/// Addresses that lack an IPAddress, with the Service that has them, and IPAddresses whose Service is gone.
fn compare_addresses(server: &Server) -> (BTreeMap<String, (String, String)>, Vec<String>) {
    let (mut missing, mut orphans) = (BTreeMap::new(), Vec::new());
    for obj in server.cache.list("", "services", "") {
        let spec = obj.downcast::<Service>().and_then(|s| s.spec.as_ref());
        for ip in spec.and_then(|s| s.cluster_ips.as_ref()).into_iter().flatten().filter(|ip| *ip != "None") {
            missing.insert(ip.clone(), (obj.namespace().to_owned(), obj.name().to_owned()));
        }
    }
    for obj in server.cache.list(NETWORKING, "ipaddresses", "") {
        let held = missing.remove(obj.name()).is_some();
        let labels = obj.meta().labels.as_ref();
        let ours = labels.and_then(|l| l.get(MANAGED_BY)).is_some_and(|by| by == ALLOCATOR);
        let parent = obj.downcast::<IPAddress>().map(|a| a.spec.parent_ref.resource.as_str());
        if !held && ours && parent == Some("services") {
            orphans.push(obj.name().to_owned());
        }
    }
    (missing, orphans)
}
