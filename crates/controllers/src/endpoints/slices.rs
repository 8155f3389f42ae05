//! EndpointSlice: the addresses of a Service's pods, a hundred to an object.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_client::{Api, DeleteOptions, EventRecorder, EventType, Informer};
use coracle_meta::owner::controller_ref;
use coracle_meta::selector::LabelSelector;
use coracle_meta::{Status, pod as podutil};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::backends::{self, HEADLESS, Port, has_selector, is_headless, publishes_not_ready, wake_services};
use super::trigger::{TriggerTimes, annotate};
use crate::own_writes::OwnWrites;
use crate::runtime::{
    Action, Context, Controller, Descriptor, ObjectKey, Reconciler, ignore_not_found,
    is_namespace_terminating, name_of,
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "endpointslice-controller", workers: 5 };

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const COMPONENT: &str = "endpoint-slice-controller";

const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const ZONE: &str = "topology.kubernetes.io/zone";
const CAPACITY: usize = 100;
/// How soon to look again for slices of our own that the informer does not show, should no event come.
const LAG: Duration = Duration::from_secs(5);

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let (services, pods) = (cx.informers.get::<Service>(), cx.informers.get::<Pod>());
    let slices = cx.informers.get::<EndpointSlice>();
    let reconciler = Arc::new(Reconcile {
        services: services.clone(),
        pods: pods.clone(),
        nodes: cx.informers.get(),
        slices: slices.clone(),
        api: cx.client(DESCRIPTOR.name).api(),
        events: cx.recorder_as(DESCRIPTOR.name, COMPONENT),
        own_writes: OwnWrites::default(),
        times: TriggerTimes::default(),
    });
    let selecting = services.clone();
    Controller::new(DESCRIPTOR)
        .watch_primary(&services)
        .watch(&pods, move |change, enqueue| wake_services(&selecting, change, enqueue))
        .watch(&slices, |change, enqueue| {
            let meta = &change.object().metadata;
            if let Some(service) = service_of(meta) {
                enqueue(ObjectKey::new(meta.namespace.as_deref().unwrap_or(""), service));
            }
        })
        .run(reconciler)
        .boxed()
}

/// The Service whose slice this is, if it is one of ours.
fn service_of(meta: &ObjectMeta) -> Option<&str> {
    let labels = meta.labels.as_ref()?;
    labels.get(MANAGED_BY).filter(|manager| *manager == MANAGER)?;
    labels.get(SERVICE_NAME).map(String::as_str)
}

struct Reconcile {
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    api: Api<EndpointSlice>,
    events: EventRecorder,
    own_writes: OwnWrites,
    times: TriggerTimes,
}

#[async_trait]
impl Reconciler for Reconcile {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        if !self.own_writes.visible(key, self.slices.revision()) {
            return Ok(Action::RequeueAfter(LAG));
        }
        let Some(service) = self.services.get(&key.namespace, &key.name) else {
            // The garbage collector removes the slices.
            self.times.forget(key);
            return Ok(Action::AwaitChange);
        };
        let leaving = service.metadata.deletion_timestamp.is_some();
        let Some(selector) = has_selector(&service).filter(|_| !leaving) else {
            return Ok(Action::AwaitChange);
        };
        let selector = LabelSelector::from_map(selector);
        let mut pods = self.pods.list_namespace(&key.namespace);
        pods.retain(|pod| selector.matches_option(pod.metadata.labels.as_ref()));
        let mut slices = self.slices.list_namespace(&key.namespace);
        slices.retain(|slice| service_of(&slice.metadata) == Some(&key.name));
        let zone = |node: &str| {
            let node = self.nodes.get("", node)?;
            node.metadata.labels.as_ref()?.get(ZONE).cloned()
        };
        let groups = wanted(&service, &pods, &zone);
        let changed = self.times.last_change(key, &service, &pods);
        for mut write in decide(&service, &slices, groups) {
            if let Write::Create(slice) | Write::Update(slice) = &mut write {
                annotate(&mut slice.metadata, changed);
            }
            if let Err(status) = self.write(key, write).await {
                let message = format!("Error updating Endpoint Slices for Service {key}: {status}");
                self.events.event(&*service, EventType::Warning, "FailedToUpdateEndpointSlices", message);
                return Err(status);
            }
        }
        Ok(Action::AwaitChange)
    }
}

impl Reconcile {
    async fn write(&self, key: &ObjectKey, write: Write) -> Result<(), Status> {
        let written = match write {
            Write::Create(slice) => match self.api.create(&key.namespace, *slice).await {
                Err(status) if is_namespace_terminating(&status) => return Ok(()),
                outcome => outcome?,
            },
            Write::Update(slice) => self.api.update(&key.namespace, *slice).await?,
            Write::Delete(slice) => {
                let options = DeleteOptions { uid: slice.metadata.uid.clone(), ..DeleteOptions::default() };
                return ignore_not_found(self.api.delete(&key.namespace, name_of(&*slice), options).await);
            }
        };
        self.own_writes.note(key, &written.metadata);
        Ok(())
    }
}

/// A write to a slice.
#[derive(Debug)]
enum Write {
    Create(Box<EndpointSlice>),
    Update(Box<EndpointSlice>),
    Delete(Arc<EndpointSlice>),
}

type Groups = BTreeMap<Vec<Port>, Vec<Endpoint>>;

/// The endpoints that should be there, by the ports they offer.
fn wanted(service: &Service, pods: &[Arc<Pod>], zone: &dyn Fn(&str) -> Option<String>) -> Groups {
    let publish = publishes_not_ready(service);
    let mut groups = Groups::new();
    for pod in pods.iter().filter(|pod| backends::belongs(pod, true)) {
        let ports = backends::ports(service, pod);
        let Some(ip) = backends::address(pod) else { continue };
        if ports.is_empty() && !backends::is_portless(service) {
            continue;
        }
        let terminating = pod.metadata.deletion_timestamp.is_some();
        let serving = podutil::is_ready(pod);
        let node = podutil::node_name(pod);
        groups.entry(ports).or_default().push(Endpoint {
            addresses: vec![ip],
            conditions: Some(EndpointConditions {
                ready: Some(publish || (serving && !terminating)),
                serving: Some(serving),
                terminating: Some(terminating),
            }),
            hostname: backends::hostname(service, pod),
            node_name: node.map(str::to_owned),
            target_ref: Some(backends::target(pod)),
            zone: node.and_then(zone),
            ..Endpoint::default()
        });
    }
    groups
}

fn slice_ports(ports: &[Port]) -> Option<Vec<EndpointPort>> {
    let port = |port: &Port| EndpointPort {
        name: Some(port.name.clone()),
        port: Some(port.number),
        protocol: Some(port.protocol.clone()),
        app_protocol: port.app_protocol.clone(),
    };
    (!ports.is_empty()).then(|| ports.iter().map(port).collect())
}

fn port_key(slice: &EndpointSlice) -> Vec<Port> {
    let port = |port: &EndpointPort| Port {
        name: port.name.clone().unwrap_or_default(),
        number: port.port.unwrap_or(0),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        app_protocol: port.app_protocol.clone(),
    };
    slice.ports.iter().flatten().map(port).collect()
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    let name = service.metadata.name.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name);
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

fn new_slice(service: &Service, ports: &[Port], endpoints: Vec<Endpoint>) -> EndpointSlice {
    let name = service.metadata.name.as_deref().unwrap_or("");
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels(service)),
            owner_references: Some(vec![controller_ref(service)]),
            ..ObjectMeta::default()
        },
        address_type: "IPv4".to_owned(),
        endpoints: Some(endpoints),
        ports: slice_ports(ports),
    }
}

/// What an endpoint is known by.
fn identity(endpoint: &Endpoint) -> (Option<String>, Vec<String>) {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone());
    (uid, endpoint.addresses.clone())
}

/// The writes that make the slices hold exactly the wanted endpoints. Slices keep what they have; new
/// endpoints go where there is room.
fn decide(service: &Service, slices: &[Arc<EndpointSlice>], groups: Groups) -> Vec<Write> {
    let mut spare: Vec<Arc<EndpointSlice>> = Vec::new();
    let mut by_ports: HashMap<Vec<Port>, Vec<Arc<EndpointSlice>>> = HashMap::new();
    for slice in slices {
        let ports = port_key(slice);
        if slice.address_type == "IPv4" && groups.contains_key(&ports) {
            by_ports.entry(ports).or_default().push(slice.clone());
        } else {
            spare.push(slice.clone());
        }
    }
    let (mut creates, mut writes) = (Vec::new(), Vec::new());
    for (ports, endpoints) in groups {
        let existing = by_ports.remove(&ports).unwrap_or_default();
        let rest = fill(service, existing, endpoints, &mut spare, &mut writes);
        let chunks = rest.chunks(CAPACITY).map(<[Endpoint]>::to_vec);
        creates.extend(chunks.map(|chunk| new_slice(service, &ports, chunk)));
    }
    let kept = slices.len() - spare.len();
    if kept == 0 && creates.is_empty() {
        // There is always one slice, if need be without endpoints.
        creates.push(new_slice(service, &[], Vec::new()));
    }
    for new in creates {
        match spare.pop() {
            Some(old) => {
                let metadata = ObjectMeta { labels: new.metadata.labels.clone(), ..old.metadata.clone() };
                let reused = EndpointSlice { metadata, ..new };
                if reused != *old {
                    writes.push(Write::Update(Box::new(reused)));
                }
            }
            None => writes.push(Write::Create(Box::new(new))),
        }
    }
    writes.extend(spare.into_iter().map(Write::Delete));
    writes
}

/// Puts endpoints into the slices of their ports; those for which there is no room. Emptied slices become
/// spare.
fn fill(
    service: &Service,
    existing: Vec<Arc<EndpointSlice>>,
    endpoints: Vec<Endpoint>,
    spare: &mut Vec<Arc<EndpointSlice>>,
    writes: &mut Vec<Write>,
) -> Vec<Endpoint> {
    let order: Vec<_> = endpoints.iter().map(identity).collect();
    let mut left: HashMap<_, Endpoint> = order.iter().cloned().zip(endpoints).collect();
    let mut kept: Vec<(Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
    for slice in existing {
        let present = slice.endpoints.iter().flatten();
        let stay: Vec<Endpoint> = present.filter_map(|endpoint| left.remove(&identity(endpoint))).collect();
        kept.push((slice, stay));
    }
    let mut rest: Vec<Endpoint> = order.iter().filter_map(|id| left.remove(id)).collect();
    rest.reverse();
    for (slice, mut stay) in kept {
        while stay.len() < CAPACITY
            && let Some(endpoint) = rest.pop()
        {
            stay.push(endpoint);
        }
        if stay.is_empty() {
            spare.push(slice);
            continue;
        }
        let wanted_labels = Some(labels(service));
        if slice.endpoints.as_ref() != Some(&stay) || slice.metadata.labels != wanted_labels {
            let mut changed = (*slice).clone();
            changed.endpoints = Some(stay);
            changed.metadata.labels = wanted_labels;
            writes.push(Write::Update(Box::new(changed)));
        }
    }
    rest.reverse();
    rest
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service() -> Service {
        serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": "ns", "uid": "s" },
            "spec": { "selector": { "app": "web" }, "clusterIP": "10.96.0.9",
                "ports": [{ "name": "http", "port": 80, "targetPort": "web", "protocol": "TCP" }] },
        }))
        .expect("a service")
    }

    fn pod(number: usize, ready: bool) -> Arc<Pod> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": { "name": format!("p{number}"), "namespace": "ns", "uid": format!("u{number}") },
                "spec": { "nodeName": "n1", "containers": [
                    { "name": "c", "ports": [{ "name": "web", "containerPort": 8080 }] }] },
                "status": { "phase": "Running", "podIP": format!("10.0.{}.{}", number / 250, number % 250),
                    "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }] },
            }))
            .expect("a pod"),
        )
    }

    fn stored(write: &Write) -> Arc<EndpointSlice> {
        let (Write::Create(slice) | Write::Update(slice)) = write else { panic!("not stored: {write:?}") };
        Arc::new((**slice).clone())
    }

    fn none(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn a_pod_becomes_ready_in_the_slice_that_holds_it() {
        let first = decide(&service(), &[], wanted(&service(), &[pod(1, false)], &none));
        let slice = stored(&first[0]);
        assert_eq!(slice.ports.as_ref().and_then(|p| p[0].port), Some(8080));
        let endpoint = &slice.endpoints.as_ref().expect("endpoints")[0];
        assert_eq!(endpoint.conditions.as_ref().and_then(|c| c.ready), Some(false));
        let groups = wanted(&service(), &[pod(1, true)], &none);
        let second = decide(&service(), std::slice::from_ref(&slice), groups);
        assert!(matches!(second.as_slice(), [Write::Update(_)]), "{second:?}");
        let groups = wanted(&service(), &[pod(1, true)], &none);
        assert!(decide(&service(), &[stored(&second[0])], groups).is_empty());
    }

    #[test]
    fn slices_hold_a_hundred_and_without_pods_one_empty_slice_stays() {
        let pods: Vec<_> = (0..250).map(|number| pod(number, true)).collect();
        let writes = decide(&service(), &[], wanted(&service(), &pods, &none));
        let slices: Vec<_> = writes.iter().map(stored).collect();
        let sizes: Vec<usize> = slices.iter().map(|s| s.endpoints.as_ref().map_or(0, Vec::len)).collect();
        assert_eq!(sizes, [100, 100, 50]);
        let writes = decide(&service(), &slices, Groups::new());
        assert!(matches!(writes.as_slice(), [Write::Update(empty), Write::Delete(_), Write::Delete(_)]
            if empty.endpoints.as_ref().is_some_and(Vec::is_empty) && empty.ports.is_none()));
        let empty = stored(&writes[0]);
        assert!(decide(&service(), &[empty], Groups::new()).is_empty());
        assert!(matches!(decide(&service(), &[], Groups::new()).as_slice(), [Write::Create(_)]));
    }
}
