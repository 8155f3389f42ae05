//! Endpoints: the addresses of a Service's pods, as the older API gives them.

mod backends;
pub(crate) mod slices;
mod trigger;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::{Api, Change, DeleteOptions, EventRecorder, EventType, Informer};
use coracle_meta::selector::LabelSelector;
use coracle_meta::{Reason, Status};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::runtime::{Action, Context, Controller, Descriptor, ObjectKey, Reconciler, ignore_not_found};
use backends::{HEADLESS, Port, has_selector, is_headless, publishes_not_ready, wake_services};
use trigger::TriggerTimes;

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "endpoint-controller", workers: 5 };

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const CAPACITY: usize = 1000;

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let (services, pods) = (cx.informers.get::<Service>(), cx.informers.get::<Pod>());
    let endpoints = cx.informers.get::<Endpoints>();
    let reconciler = Arc::new(Reconcile {
        services: services.clone(),
        pods: pods.clone(),
        endpoints: endpoints.clone(),
        api: cx.client(DESCRIPTOR.name).api(),
        events: cx.recorder(DESCRIPTOR.name),
        times: TriggerTimes::default(),
    });
    let selecting = services.clone();
    Controller::new(DESCRIPTOR)
        .watch_primary(&services)
        .watch(&pods, move |change, enqueue| wake_services(&selecting, change, enqueue))
        .watch(&endpoints, |change, enqueue| {
            if matches!(change, Change::Deleted(_)) {
                enqueue(ObjectKey::of(&change.object().metadata));
            }
        })
        .run(reconciler)
        .boxed()
}

struct Reconcile {
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
    api: Api<Endpoints>,
    events: EventRecorder,
    times: TriggerTimes,
}

#[async_trait]
impl Reconciler for Reconcile {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let current = self.endpoints.get(&key.namespace, &key.name);
        let Some(service) = self.services.get(&key.namespace, &key.name) else {
            self.times.forget(key);
            if current.is_some() {
                let options = DeleteOptions::default();
                ignore_not_found(self.api.delete(&key.namespace, &key.name, options).await)?;
            }
            return Ok(Action::AwaitChange);
        };
        let leaving = service.metadata.deletion_timestamp.is_some();
        let Some(selector) = has_selector(&service).filter(|_| !leaving) else {
            return Ok(Action::AwaitChange);
        };
        let selector = LabelSelector::from_map(selector);
        let mut pods = self.pods.list_namespace(&key.namespace);
        pods.retain(|pod| selector.matches_option(pod.metadata.labels.as_ref()));
        let changed = self.times.last_change(key, &service, &pods);
        let wanted = decide(&service, &pods, current.as_deref()).map(|mut wanted| {
            trigger::annotate(&mut wanted.metadata, changed);
            wanted
        });
        match (wanted, current) {
            (None, _) => {}
            (Some(wanted), Some(current)) => {
                if let Err(status) = self.api.update(&key.namespace, wanted).await {
                    let message = format!("Failed to update endpoint {key}: {status}");
                    self.events.event(&*current, EventType::Warning, "FailedToUpdateEndpoint", message);
                    return Err(status);
                }
            }
            (Some(wanted), None) => match self.api.create(&key.namespace, wanted.clone()).await {
                // The informer does not show it yet; its event leads back here.
                Err(status) if status.reason() == Reason::AlreadyExists => {}
                Err(status) if crate::runtime::is_namespace_terminating(&status) => {}
                Err(status) => {
                    let message = format!("Failed to create endpoint for service {key}: {status}");
                    self.events.event(&wanted, EventType::Warning, "FailedToCreateEndpoint", message);
                    return Err(status);
                }
                Ok(_) => {}
            },
        }
        Ok(Action::AwaitChange)
    }
}

/// The Endpoints to write, unless the present ones are right.
fn decide(service: &Service, pods: &[Arc<Pod>], current: Option<&Endpoints>) -> Option<Endpoints> {
    let mut found = subsets(service, pods);
    let truncated = truncate(&mut found);
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY.to_owned(), "endpoint-controller".to_owned());
    let mut wanted = current.cloned().unwrap_or_else(|| Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
        subsets: None,
    });
    wanted.metadata.labels = Some(labels);
    wanted.subsets = (!found.is_empty()).then_some(found);
    if truncated {
        let annotations = wanted.metadata.annotations.get_or_insert_default();
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    } else if let Some(annotations) = &mut wanted.metadata.annotations {
        annotations.remove(OVER_CAPACITY);
    }
    (Some(&wanted) != current).then_some(wanted)
}

/// Cuts the addresses down to what an object holds; whether some were cut.
fn truncate(subsets: &mut [EndpointSubset]) -> bool {
    let mut room = CAPACITY;
    let mut cut = false;
    for ready in [true, false] {
        for subset in subsets.iter_mut() {
            let list = if ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
            let Some(list) = list else { continue };
            cut |= list.len() > room;
            list.truncate(room);
            room -= list.len();
        }
    }
    cut
}

/// The pods' addresses by the ports they offer.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let publish = publishes_not_ready(service);
    let mut groups: BTreeMap<Vec<Port>, EndpointSubset> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| backends::belongs(pod, publish)) {
        let Some(ip) = backends::address(pod) else { continue };
        let ports = backends::ports(service, pod);
        if ports.is_empty() && !backends::is_portless(service) {
            continue;
        }
        let address = EndpointAddress {
            ip,
            hostname: backends::hostname(service, pod),
            node_name: coracle_meta::pod::node_name(pod).map(str::to_owned),
            target_ref: Some(backends::target(pod)),
        };
        let subset = groups.entry(ports).or_default();
        let ready = publish || coracle_meta::pod::is_ready(pod);
        let list = if ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(address);
    }
    let order = |address: &EndpointAddress| (address.ip.parse::<IpAddr>().ok(), address.ip.clone());
    let finish = |(ports, mut subset): (Vec<Port>, EndpointSubset)| {
        for list in [&mut subset.addresses, &mut subset.not_ready_addresses].into_iter().flatten() {
            list.sort_by_key(order);
        }
        let ports: Vec<EndpointPort> = ports.into_iter().map(endpoint_port).collect();
        EndpointSubset { ports: (!ports.is_empty()).then_some(ports), ..subset }
    };
    groups.into_iter().map(finish).collect()
}

fn endpoint_port(port: Port) -> EndpointPort {
    EndpointPort {
        name: Some(port.name).filter(|name| !name.is_empty()),
        port: port.number,
        protocol: Some(port.protocol),
        app_protocol: port.app_protocol,
    }
}

#[cfg(test)]
mod tests;
