//! The Node object: registration, status, heartbeats.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_client::{Change, LeaseKeeper, ListOptions};
use coracle_cri::v1::{RuntimeHandler, RuntimeStatus};
use coracle_meta::quantity::Quantity;
use coracle_meta::{Reason, Status};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, NodeSwapStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use tracing::{info, warn};

use crate::admit::NodeView;
use crate::context::Context;
use crate::node_events;
use crate::pod::whole_seconds;

/// How often the status is reported though nothing changed.
const REPORT: Duration = Duration::from_secs(300);
/// How often it is looked whether something changed.
const LOOK: Duration = Duration::from_secs(10);
/// Validity of the heartbeat lease; renewed four times in it.
const LEASE: Duration = Duration::from_secs(40);
/// Images listed in the status.
const MAX_IMAGES: usize = 50;

/// What the runtime says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    not_ready: Vec<String>,
    runtime_version: String,
    images: Vec<ContainerImage>,
    runtime: RuntimeStatus,
}

fn amounts(map: BTreeMap<String, Quantity>) -> BTreeMap<String, ApiQuantity> {
    map.into_iter().map(|(name, amount)| (name, amount.to_api())).collect()
}

/// Features of upstream's that a node declares, of those that this one has.
const DECLARED: [&str; 2] = ["ExtendWebSocketsToKubelet", "InPlacePodLevelResourcesVerticalScaling"];

/// What the machine has, what device plug-ins have, and the resources that somebody else told the API of: the kubelet
/// knows nothing of them, all of them can be given away.
fn with_extended(
    machine: BTreeMap<String, Quantity>,
    devices: impl Iterator<Item = (String, Quantity)>,
    old: &NodeStatus,
) -> BTreeMap<String, ApiQuantity> {
    let told = old.capacity.iter().flatten().filter(|(name, _)| crate::admit::is_extended(name));
    let told = told.map(|(name, amount)| (name.clone(), amount.clone()));
    told.chain(amounts(machine)).chain(amounts(devices.collect())).collect()
}

async fn look(cx: &Context) -> Seen {
    let mut not_ready: Vec<String> = cx.shutdown.status().into_iter().collect();
    let mut runtime = RuntimeStatus::default();
    match cx.runtime.status().await {
        Ok(status) => {
            runtime = status.clone();
            not_ready.extend(status.runtime_not_ready.map(|r| format!("container runtime not ready: {r}")));
            not_ready.extend(status.network_not_ready.map(|r| {
                format!(
                    "container runtime network not ready: NetworkReady=false \
                     reason:NetworkPluginNotReady message:{r}"
                )
            }));
        }
        Err(e) => not_ready.push(format!("container runtime is down: {e}")),
    }
    let runtime_version = match cx.runtime.version().await {
        Ok(v) => format!("{}://{}", v.runtime_name, v.runtime_version),
        Err(_) => String::new(),
    };
    let mut images = cx.image_service.list_images().await.unwrap_or_default();
    images.sort_by_key(|i| std::cmp::Reverse(i.size));
    let images = images.into_iter().take(MAX_IMAGES).map(|i| ContainerImage {
        names: Some(i.repo_digests.into_iter().chain(i.repo_tags).take(5).collect()),
        size_bytes: i64::try_from(i.size).ok(),
    });
    Seen { not_ready, runtime_version, images: images.collect(), runtime }
}

fn condition(
    old: &[NodeCondition],
    kind: &str,
    status: bool,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> NodeCondition {
    let status = if status { "True" } else { "False" };
    let same = old.iter().find(|c| c.type_ == kind && c.status == status);
    NodeCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_heartbeat_time: Some(Time(now)),
        last_transition_time: same.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
    }
}

/// Each pressure: type, reason and message when there is none, reason and message when there is.
const PRESSURES: [[&str; 5]; 3] = [
    [
        "MemoryPressure",
        "KubeletHasSufficientMemory",
        "kubelet has sufficient memory available",
        "KubeletHasInsufficientMemory",
        "kubelet has insufficient memory available",
    ],
    [
        "DiskPressure",
        "KubeletHasNoDiskPressure",
        "kubelet has no disk pressure",
        "KubeletHasDiskPressure",
        "kubelet has disk pressure",
    ],
    [
        "PIDPressure",
        "KubeletHasSufficientPID",
        "kubelet has sufficient PID available",
        "KubeletHasInsufficientPID",
        "kubelet has insufficient PID available",
    ],
];

fn conditions(old: &[NodeCondition], seen: &Seen, pressures: &[&str], now: Timestamp) -> Vec<NodeCondition> {
    let mut list: Vec<NodeCondition> = PRESSURES
        .iter()
        .map(|[kind, calm, calm_text, bad, bad_text]| match pressures.contains(kind) {
            true => condition(old, kind, true, bad, bad_text, now),
            false => condition(old, kind, false, calm, calm_text, now),
        })
        .collect();
    list.push(if seen.not_ready.is_empty() {
        condition(old, "Ready", true, "KubeletReady", "kubelet is posting ready status", now)
    } else {
        condition(old, "Ready", false, "KubeletNotReady", &seen.not_ready.join(", "), now)
    });
    let ours: Vec<String> = list.iter().map(|c| c.type_.clone()).collect();
    list.extend(old.iter().filter(|c| !ours.contains(&c.type_)).cloned());
    list
}

fn handler(h: &RuntimeHandler) -> NodeRuntimeHandler {
    NodeRuntimeHandler {
        name: Some(h.name.clone()),
        features: Some(NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(h.recursive_read_only_mounts),
            user_namespaces: Some(h.user_namespaces),
        }),
    }
}

fn status(cx: &Context, old: &NodeStatus, seen: &Seen, now: Timestamp) -> NodeStatus {
    let m = &cx.machine;
    let address = |kind: &str, address: String| NodeAddress { type_: kind.to_owned(), address };
    NodeStatus {
        addresses: Some(vec![
            address("InternalIP", cx.config.node_ip.to_string()),
            address("Hostname", cx.config.node_name.clone()),
        ]),
        capacity: Some(with_extended(
            m.capacity(),
            cx.devices.amounts().into_iter().map(|(n, a)| (n, a.0)),
            old,
        )),
        allocatable: Some(with_extended(
            m.allocatable(),
            cx.devices.amounts().into_iter().map(|(n, a)| (n, a.1)),
            old,
        )),
        features: Some(NodeFeatures {
            supplemental_groups_policy: Some(seen.runtime.supplemental_groups_policy),
        }),
        declared_features: Some(DECLARED.map(str::to_owned).to_vec()),
        runtime_handlers: (!seen.runtime.handlers.is_empty())
            .then(|| seen.runtime.handlers.iter().map(handler).collect()),
        conditions: Some(conditions(
            old.conditions.as_deref().unwrap_or_default(),
            seen,
            &cx.pressures.lock().conditions(now),
            now,
        )),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(cx.config.port) }),
        }),
        images: (!seen.images.is_empty()).then(|| seen.images.clone()),
        node_info: Some(NodeSystemInfo {
            architecture: m.architecture.to_owned(),
            boot_id: m.boot_id.clone(),
            container_runtime_version: seen.runtime_version.clone(),
            kernel_version: m.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: cx.config.version.clone(),
            machine_id: m.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: m.os_image.clone(),
            system_uuid: m.system_uuid.clone(),
            swap: (m.swap.capacity > 0).then_some(NodeSwapStatus { capacity: Some(m.swap.capacity) }),
        }),
        ..old.clone()
    }
}

/// The labels that the kubelet answers for.
fn labels(cx: &Context) -> BTreeMap<String, String> {
    let mut labels = cx.config.node_labels.clone();
    labels.extend(cx.machine.labels(&cx.config.node_name));
    labels
}

fn pod_cidrs(cx: &Context, spec: &mut NodeSpec) -> bool {
    let cidr = &cx.config.pod_cidr;
    if cidr.is_empty() || spec.pod_cidr.as_deref().is_some_and(|c| !c.is_empty()) {
        return false;
    }
    spec.pod_cidr = Some(cidr.clone());
    spec.pod_cidrs = Some(vec![cidr.clone()]);
    true
}

/// Creates the Node, Ready at once, or adopts the one that is there.
async fn register(cx: &Context, seen: &Seen) -> Result<Arc<Node>, Status> {
    let api = cx.client.api::<Node>();
    let now = whole_seconds(cx.clock.now());
    let existing = match api.get("", &cx.config.node_name).await {
        Ok(node) => node,
        Err(s) if s.reason() == Reason::NotFound => {
            let mut spec = NodeSpec::default();
            pod_cidrs(cx, &mut spec);
            let node = Node {
                metadata: ObjectMeta {
                    name: Some(cx.config.node_name.clone()),
                    labels: Some(labels(cx)),
                    annotations: Some(BTreeMap::from([(
                        "volumes.kubernetes.io/controller-managed-attach-detach".to_owned(),
                        "true".to_owned(),
                    )])),
                    ..ObjectMeta::default()
                },
                spec: Some(spec),
                status: Some(status(cx, &NodeStatus::default(), seen, now)),
            };
            let node = api.create("", node).await?;
            info!(node = cx.config.node_name, "node registered");
            node_events::tell(
                cx,
                &NodeStatus::default(),
                node.status.as_ref().unwrap_or(&NodeStatus::default()),
            );
            return Ok(node);
        }
        Err(s) => return Err(s),
    };
    let mut node = (*existing).clone();
    let mut own = labels(cx);
    let has = node.metadata.labels.get_or_insert_with(BTreeMap::new);
    own.retain(|k, v| has.get(k) != Some(v));
    let relabel = !own.is_empty();
    has.extend(own);
    let recidr = pod_cidrs(cx, node.spec.get_or_insert_with(NodeSpec::default));
    if relabel || recidr { api.update("", node).await } else { Ok(existing) }
}

/// Whether two statuses differ in more than heartbeats.
fn differs(a: &NodeStatus, b: &NodeStatus) -> bool {
    let quiet = |s: &NodeStatus| {
        let mut s = s.clone();
        for c in s.conditions.iter_mut().flatten() {
            c.last_heartbeat_time = None;
        }
        s
    };
    quiet(a) != quiet(b)
}

/// Reports the status if it changed or the last report is old; the node as it is now.
async fn report(cx: &Context, node: &Arc<Node>, seen: &Seen, force: bool) -> Result<Arc<Node>, Status> {
    let empty = NodeStatus::default();
    let old = node.status.as_ref().unwrap_or(&empty);
    let new = status(cx, old, seen, whole_seconds(cx.clock.now()));
    if !force && !differs(old, &new) {
        return Ok(node.clone());
    }
    let mut next = (**node).clone();
    next.status = Some(new.clone());
    let api = cx.client.api::<Node>();
    let reported = match api.update_status("", next).await {
        Err(s) if s.reason() == Reason::Conflict => {
            let fresh = api.get("", &cx.config.node_name).await?;
            let mut next = (*fresh).clone();
            let old = fresh.status.clone().unwrap_or_default();
            next.status = Some(status(cx, &old, seen, whole_seconds(cx.clock.now())));
            api.update_status("", next).await
        }
        result => result,
    };
    if reported.is_ok() {
        node_events::tell(cx, old, &new);
    }
    reported
}

/// Registers the node, then keeps its status and lease current.
pub async fn run(cx: Arc<Context>) {
    let mut wait = Duration::from_millis(100);
    let mut seen = look(&cx).await;
    let mut node = loop {
        match register(&cx, &seen).await {
            Ok(node) => break node,
            Err(s) => {
                warn!(status = %s, "node not registered; trying again");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(7));
                seen = look(&cx).await;
            }
        }
    };
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: cx.config.node_name.clone(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        ..OwnerReference::default()
    };
    let name = &cx.config.node_name;
    let lease =
        LeaseKeeper::new(&cx.client, cx.clock.clone(), "kube-node-lease", name, name, LEASE).owned_by(owner);
    tokio::join!(lease.run(), keep_status(&cx, &mut node, seen));
}

/// What admission needs to know of the node.
fn view(cx: &Context, node: &Node) -> NodeView {
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
    let mut view = cx.machine.view(&cx.config.node_name);
    view.labels.extend(node.metadata.labels.iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
    view.taints = node.spec.as_ref().and_then(|s| s.taints.clone()).unwrap_or_default();
    view.allocatable
        .extend(allocatable.into_iter().flatten().map(|(k, v)| (k.clone(), Quantity::from_api(v))));
    view
}

async fn keep_status(cx: &Context, node: &mut Arc<Node>, mut seen: Seen) {
    let own = format!("metadata.name={}", cx.config.node_name);
    let options = ListOptions { field_selector: own, ..ListOptions::default() };
    let informer = cx.informers.filtered::<Node>("", options);
    let mut changes = informer.subscribe();
    let mut devices = cx.devices.changes();
    let mut shutdown = cx.shutdown.changes();
    let mut reported = tokio::time::Instant::now();
    let mut force = true;
    loop {
        match report(cx, node, &seen, force).await {
            Ok(new) => {
                if force || !Arc::ptr_eq(&new, node) {
                    reported = tokio::time::Instant::now();
                }
                *node = new;
            }
            Err(s) if s.reason() == Reason::NotFound => match register(cx, &seen).await {
                Ok(new) => *node = new,
                Err(s) => warn!(status = %s, "node not registered again"),
            },
            Err(s) => warn!(status = %s, "node status not reported"),
        }
        cx.allocations.set_node(view(cx, node));
        // While the node is not ready every moment counts.
        let pause = if seen.not_ready.is_empty() { LOOK } else { Duration::from_millis(200) };
        let until = tokio::time::Instant::now() + pause;
        loop {
            let change = tokio::select! {
                change = changes.next() => change,
                // At once: pods may wait for it.
                _ = devices.changed() => break,
                _ = shutdown.changed() => break,
                () = tokio::time::sleep_until(until) => break,
            };
            match change {
                Some(Change::Added(new) | Change::Modified { new, .. }) if newer(&new, node) => {
                    *node = new;
                    cx.allocations.set_node(view(cx, node));
                }
                Some(_) => {}
                None => tokio::time::sleep_until(until).await,
            }
        }
        seen = look(cx).await;
        force = reported.elapsed() >= REPORT;
    }
}

/// Whether `new` is a later state than `old`.
fn newer(new: &Node, old: &Node) -> bool {
    let version = |n: &Node| n.metadata.resource_version.as_deref().and_then(|v| v.parse::<u64>().ok());
    version(new) > version(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_is_not_ready_makes_the_node_not_ready_and_says_why() {
        let now = Timestamp::UNIX_EPOCH;
        let ready = |seen: &Seen| conditions(&[], seen, &[], now).into_iter().find(|c| c.type_ == "Ready");
        let good = ready(&Seen::default()).expect("condition");
        assert_eq!((good.status.as_str(), good.reason.as_deref()), ("True", Some("KubeletReady")));
        let bad = ready(&Seen { not_ready: vec!["x".into()], ..Seen::default() }).expect("condition");
        assert_eq!((bad.status.as_str(), bad.message.as_deref()), ("False", Some("x")));
    }

    #[test]
    fn heartbeats_alone_are_no_difference() {
        let at = |s: i64| Timestamp::from_second(s).expect("time");
        let status = |t: i64| NodeStatus {
            conditions: Some(vec![NodeCondition {
                last_heartbeat_time: Some(Time(at(t))),
                ..Default::default()
            }]),
            ..NodeStatus::default()
        };
        assert!(!differs(&status(1), &status(2)));
        assert!(differs(&status(1), &NodeStatus::default()));
    }
}
