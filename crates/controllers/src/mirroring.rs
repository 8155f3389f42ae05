//! EndpointSlice mirroring: Endpoints that users write for Services without a selector become EndpointSlices too.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::{Api, DeleteOptions, EventRecorder, EventType, Informer};
use coracle_meta::owner::controller_ref;
use coracle_meta::{Reason, Status};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::own_writes::OwnWrites;
use crate::pods::LAG;
use crate::runtime::{
    Action, Context, Controller, Descriptor, ObjectKey, Reconciler, ignore_not_found,
    is_namespace_terminating, name_of,
};

pub(crate) const DESCRIPTOR: Descriptor =
    Descriptor { name: "endpointslicemirroring-controller", workers: 5 };

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that slices do not inherit.
const NOT_INHERITED: [&str; 2] =
    ["endpoints.kubernetes.io/last-change-trigger-time", "kubectl.kubernetes.io/last-applied-configuration"];
/// Addresses mirrored of one subset.
const MOST: usize = 1000;

/// Starts the controller. Its keys are Services.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let (endpoints, services) = (cx.informers.get::<Endpoints>(), cx.informers.get::<Service>());
    let slices = cx.informers.get::<EndpointSlice>();
    let reconciler = Arc::new(Mirror {
        endpoints: endpoints.clone(),
        services: services.clone(),
        slices: slices.clone(),
        api: cx.client(DESCRIPTOR.name).api(),
        events: cx.recorder_as(DESCRIPTOR.name, "endpoint-slice-mirroring-controller"),
        own: OwnWrites::default(),
    });
    Controller::new(DESCRIPTOR)
        .watch_primary(&endpoints)
        .watch_primary(&services)
        .watch(&slices, |change, enqueue| {
            let meta = &change.object().metadata;
            let label = |key: &str| meta.labels.as_ref().and_then(|labels| labels.get(key));
            if label(MANAGED_BY).map(String::as_str) == Some(MANAGER)
                && let Some(service) = label(SERVICE_NAME)
            {
                enqueue(ObjectKey::new(meta.namespace.as_deref().unwrap_or(""), service));
            }
        })
        .run(reconciler)
        .boxed()
}

/// Whether Endpoints are to be mirrored, given their Service.
fn is_mirrored(endpoints: &Endpoints, service: Option<&Service>) -> bool {
    let meta = &endpoints.metadata;
    let skipped = meta.labels.as_ref().and_then(|labels| labels.get(SKIP)).is_some_and(|v| v == "true");
    let leads = meta.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(LEADER));
    let own = service.is_some_and(|service| {
        service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).is_none_or(BTreeMap::is_empty)
    });
    !skipped && !leads && own
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

/// Addresses that are not mirrored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Skipped {
    /// No IP addresses.
    invalid: usize,
    /// Those, and what is too many.
    all: usize,
}

impl Skipped {
    /// What is told of them.
    fn happenings(self) -> Vec<(&'static str, String)> {
        let mut told = Vec::new();
        if self.invalid > 0 {
            let number = self.invalid;
            let message = format!("Skipped {number} invalid IP addresses when mirroring to EndpointSlices");
            told.push(("InvalidIPAddress", message));
        }
        if self.all > self.invalid {
            let message = format!(
                "A max of {MOST} addresses can be mirrored to EndpointSlices per Endpoints subset. {} addresses were \
                 skipped",
                self.all
            );
            told.push(("TooManyAddressesToMirror", message));
        }
        told
    }
}

fn family(address: &EndpointAddress) -> Option<&'static str> {
    match address.ip.parse::<IpAddr>().ok()? {
        IpAddr::V4(_) => Some("IPv4"),
        IpAddr::V6(_) => Some("IPv6"),
    }
}

/// The slices that mirror the Endpoints: one for each subset and family of addresses.
fn wanted(endpoints: &Endpoints) -> (Vec<EndpointSlice>, Skipped) {
    let (mut slices, mut skipped) = (Vec::new(), Skipped::default());
    let name = name_of(endpoints);
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name.to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !NOT_INHERITED.contains(&key.as_str()));
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
            .collect();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        let mut families: BTreeMap<&str, Vec<Endpoint>> = BTreeMap::new();
        let mut room = MOST;
        for (address, is_ready) in ready.chain(unready) {
            skipped.all += 1;
            if room == 0 {
                continue;
            }
            match family(address) {
                Some(family) => {
                    families.entry(family).or_default().push(endpoint(address, is_ready));
                    room -= 1;
                    skipped.all -= 1;
                }
                None => skipped.invalid += 1,
            }
        }
        for (family, endpoints_of_family) in families {
            slices.push(EndpointSlice {
                metadata: ObjectMeta {
                    generate_name: Some(format!("{name}-")),
                    namespace: endpoints.metadata.namespace.clone(),
                    labels: Some(labels.clone()),
                    annotations: (!annotations.is_empty()).then(|| annotations.clone()),
                    owner_references: Some(vec![controller_ref(endpoints)]),
                    ..ObjectMeta::default()
                },
                address_type: family.to_owned(),
                endpoints: Some(endpoints_of_family),
                ports: (!ports.is_empty()).then(|| ports.clone()),
            });
        }
    }
    (slices, skipped)
}

/// What must be written.
#[derive(Debug, Default)]
struct Plan {
    create: Vec<EndpointSlice>,
    update: Vec<EndpointSlice>,
    delete: Vec<Arc<EndpointSlice>>,
}

fn plan(wanted: Vec<EndpointSlice>, mut known: Vec<Arc<EndpointSlice>>) -> Plan {
    let mut plan = Plan::default();
    for slice in wanted {
        let alike =
            |old: &Arc<EndpointSlice>| old.address_type == slice.address_type && old.ports == slice.ports;
        let any = |old: &Arc<EndpointSlice>| old.address_type == slice.address_type;
        let found = known.iter().position(alike).or_else(|| known.iter().position(any));
        let Some(found) = found else {
            plan.create.push(slice);
            continue;
        };
        let old = known.remove(found);
        let same = old.endpoints == slice.endpoints
            && old.ports == slice.ports
            && old.metadata.labels == slice.metadata.labels
            && old.metadata.annotations == slice.metadata.annotations;
        if !same {
            let mut changed = (*old).clone();
            changed.endpoints = slice.endpoints;
            changed.ports = slice.ports;
            changed.metadata.labels = slice.metadata.labels;
            changed.metadata.annotations = slice.metadata.annotations;
            plan.update.push(changed);
        }
    }
    plan.delete = known;
    plan
}

struct Mirror {
    endpoints: Informer<Endpoints>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    api: Api<EndpointSlice>,
    events: EventRecorder,
    own: OwnWrites,
}

#[async_trait]
impl Reconciler for Mirror {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        if !self.own.visible(key, self.slices.revision()) {
            return Ok(Action::RequeueAfter(LAG));
        }
        let endpoints = self.endpoints.get(&key.namespace, &key.name);
        let service = self.services.get(&key.namespace, &key.name);
        let mut known = self.slices.list_namespace(&key.namespace);
        known.retain(|slice| {
            let labels = slice.metadata.labels.as_ref();
            let is = |label: &str, value: &str| labels.and_then(|l| l.get(label)).is_some_and(|v| v == value);
            is(MANAGED_BY, MANAGER) && is(SERVICE_NAME, &key.name)
        });
        let mirrored = endpoints.filter(|endpoints| is_mirrored(endpoints, service.as_deref()));
        let (slices, skipped) = mirrored.as_ref().map(|endpoints| wanted(endpoints)).unwrap_or_default();
        for (reason, message) in skipped.happenings() {
            if let Some(endpoints) = &mirrored {
                self.events.event(&**endpoints, EventType::Warning, reason, message);
            }
        }
        let plan = plan(slices, known);
        for slice in plan.delete {
            let options = DeleteOptions { uid: slice.metadata.uid.clone(), ..DeleteOptions::default() };
            ignore_not_found(self.api.delete(&key.namespace, name_of(&*slice), options).await)?;
        }
        for slice in plan.update {
            match self.api.update(&key.namespace, slice).await {
                Ok(written) => self.own.note(key, &written.metadata),
                Err(status) if status.reason() == Reason::NotFound => {}
                Err(status) => return Err(status),
            }
        }
        for slice in plan.create {
            match self.api.create(&key.namespace, slice).await {
                Ok(written) => self.own.note(key, &written.metadata),
                Err(status) if is_namespace_terminating(&status) => {}
                Err(status) => return Err(status),
            }
        }
        Ok(Action::AwaitChange)
    }
}

#[cfg(test)]
mod tests {
    use coracle_client::testing::FakeTransport;
    use coracle_client::{ListOptions, PatchKind};
    use coracle_stdx::Clock;
    use serde_json::json;

    use super::*;
    use crate::testing::{context, eventually};

    #[test]
    fn addresses_that_are_none_and_those_beyond_a_thousand_are_left_out_and_told() {
        let ips = |from: usize, number: usize| -> Vec<serde_json::Value> {
            (from..from + number).map(|n| json!({ "ip": format!("10.0.{}.{}", n / 250, n % 250) })).collect()
        };
        let check = |ready: Vec<serde_json::Value>, unready: Vec<serde_json::Value>| {
            let endpoints = json!({ "metadata": { "name": "db" }, "subsets": [{ "addresses": ready,
                "notReadyAddresses": unready, "ports": [{ "port": 80 }] }] });
            let (slices, skipped) = wanted(&serde_json::from_value(endpoints).expect("valid"));
            let kept: usize = slices.iter().map(|slice| slice.endpoints.as_ref().map_or(0, Vec::len)).sum();
            (kept, skipped.happenings())
        };
        assert_eq!(check(ips(0, 1000), Vec::new()), (1000, Vec::new()));
        let odd = [vec![json!({ "ip": "here" })], ips(0, 1000)].concat();
        let (kept, told) = check(odd, ips(2000, 3));
        assert_eq!(kept, 1000, "what is no address takes no room");
        let too_many = "A max of 1000 addresses can be mirrored to EndpointSlices per Endpoints subset. 4 addresses \
                        were skipped";
        assert_eq!(
            told,
            [
                (
                    "InvalidIPAddress",
                    "Skipped 1 invalid IP addresses when mirroring to EndpointSlices".to_owned()
                ),
                ("TooManyAddressesToMirror", too_many.to_owned()),
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn endpoints_of_a_service_without_selector_are_mirrored_changed_and_removed() {
        let fake = FakeTransport::new(Clock::system());
        let client = fake.client();
        let task = tokio::spawn(run(&context(&fake)));
        let service = json!({ "metadata": { "name": "db" }, "spec": { "ports": [{ "port": 80 }] } });
        client
            .api::<Service>()
            .create("ns", serde_json::from_value(service).expect("valid"))
            .await
            .expect("created");
        let endpoints = json!({ "metadata": { "name": "db" }, "subsets": [{
            "addresses": [{ "ip": "10.1.2.3" }, { "ip": "fd00::1" }], "ports": [{ "name": "sql", "port": 5432 }] }] });
        let api = client.api::<Endpoints>();
        api.create("ns", serde_json::from_value(endpoints).expect("valid")).await.expect("created");
        let slices = || async {
            client.api::<EndpointSlice>().list("ns", ListOptions::default()).await.expect("listed")
        };
        eventually(|| async { slices().await.len() == 2 }).await;
        let v4 = slices().await.into_iter().find(|slice| slice.address_type == "IPv4").expect("one");
        assert_eq!(v4.endpoints.as_ref().expect("some")[0].addresses, ["10.1.2.3"]);
        assert_eq!(v4.metadata.labels.as_ref().expect("labels")[SERVICE_NAME], "db");
        let fewer =
            json!({ "subsets": [{ "addresses": [{ "ip": "10.1.2.4" }], "ports": [{ "port": 5432 }] }] });
        api.patch("ns", "db", PatchKind::Merge, fewer).await.expect("patched");
        eventually(|| async {
            let all = slices().await;
            all.len() == 1 && all[0].endpoints.as_ref().is_some_and(|e| e[0].addresses == ["10.1.2.4"])
        })
        .await;
        api.delete("ns", "db", DeleteOptions::default()).await.expect("deleted");
        eventually(|| async { slices().await.is_empty() }).await;
        task.abort();
    }
}
