//! Load balancer addresses without a cloud: a Service of type LoadBalancer gets the addresses of the nodes, whose
//! service proxies answer there on its ports. A port of a node belongs to one Service at a time, the oldest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::{Api, Change, EventRecorder, EventType, Informer, PatchKind};
use coracle_meta::{Status, pod as podutil};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

use crate::runtime::{Action, Context, Controller, Descriptor, ObjectKey, Reconciler, ignore_not_found};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "service-controller", workers: 1 };

/// The class that names this controller; Services without a class are its own too.
pub const CLASS: &str = "coracle.dev/node";
/// Nodes with this label take no part.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Starts the controller. It has one key: who gets a port depends on all Services.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let (services, nodes) = (cx.informers.get::<Service>(), cx.informers.get::<Node>());
    let (pods, slices) = (cx.informers.get::<Pod>(), cx.informers.get::<EndpointSlice>());
    let reconciler = Arc::new(Balance {
        services: services.clone(),
        nodes: nodes.clone(),
        pods: pods.clone(),
        slices: slices.clone(),
        api: cx.client(DESCRIPTOR.name).api(),
        events: cx.recorder(DESCRIPTOR.name),
        reserved: cx.config.reserved_ports.clone(),
    });
    let all = || ObjectKey::new("", "all");
    let known = services.clone();
    Controller::new(DESCRIPTOR)
        .watch(&services, move |change, enqueue| {
            let before = matches!(change, Change::Modified { old, .. } if is_ours(old) || has_address(old));
            if before || is_ours(change.object()) || has_address(change.object()) {
                enqueue(all());
            }
        })
        .watch(&nodes, move |change, enqueue| match change {
            Change::Modified { old, new } if addresses(old) == addresses(new) => {}
            _ => enqueue(all()),
        })
        .watch(&pods, move |change, enqueue| {
            if host_ports(change.object()).next().is_some() {
                enqueue(all());
            }
        })
        .watch(&slices, move |change, enqueue| {
            if service_of(change.object())
                .and_then(|(ns, name)| known.get(ns, name))
                .is_some_and(|s| is_local(&s))
            {
                enqueue(all());
            }
        })
        .run(reconciler)
        .boxed()
}

fn is_ours(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    let class = spec.load_balancer_class.as_deref();
    let leaving = service.metadata.deletion_timestamp.is_some();
    spec.type_.as_deref() == Some("LoadBalancer") && class.is_none_or(|class| class == CLASS) && !leaving
}

fn is_local(service: &Service) -> bool {
    let policy = service.spec.as_ref().and_then(|spec| spec.external_traffic_policy.as_deref());
    is_ours(service) && policy == Some("Local")
}

fn has_address(service: &Service) -> bool {
    ingress(service).is_some_and(|all| !all.is_empty())
}

fn ingress(service: &Service) -> Option<&Vec<LoadBalancerIngress>> {
    service.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()
}

/// Namespace and name of a slice's Service.
fn service_of(slice: &EndpointSlice) -> Option<(&str, &str)> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some((slice.metadata.namespace.as_deref()?, name))
}

/// A port with its protocol, as messages name it.
type Port = (i32, String);

fn ports(service: &Service) -> Vec<Port> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports.map(|p| (p.port, p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()))).collect()
}

/// The ports of its node that a pod has for itself.
fn host_ports(pod: &Pod) -> impl Iterator<Item = Port> {
    let live = !podutil::is_terminal(pod) && podutil::node_name(pod).is_some();
    let containers = pod.spec.iter().filter(move |_| live).flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|c| c.ports.iter().flatten());
    ports.filter_map(|p| {
        Some((p.host_port.filter(|port| *port > 0)?, p.protocol.clone().unwrap_or("TCP".into())))
    })
}

/// A node's addresses towards others: the external ones, else the internal ones; none where it takes no part.
fn addresses(node: &Node) -> Vec<String> {
    if node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(EXCLUDED)) {
        return Vec::new();
    }
    let all = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let of = |kind: &str| -> Vec<String> {
        all.clone().filter(|a| a.type_ == kind).map(|a| a.address.clone()).collect()
    };
    let external = of("ExternalIP");
    if external.is_empty() { of("InternalIP") } else { external }
}

/// What a Service gets.
#[derive(Debug, PartialEq, Eq)]
enum Share {
    Addresses(BTreeSet<String>),
    /// Nothing, and why.
    Refused(String),
}

/// The nodes and their ports.
struct Machines<'a> {
    /// Addresses by node.
    nodes: BTreeMap<String, Vec<String>>,
    /// Ports that pods have, by node.
    taken: BTreeMap<String, BTreeSet<Port>>,
    /// TCP ports that the cluster itself answers on, on every node.
    reserved: &'a [u16],
    /// Nodes with a ready endpoint, for Services that stay local.
    serving: BTreeMap<(String, String), BTreeSet<String>>,
}

/// Shares the nodes' ports out among the Services, oldest first.
fn share(services: &[Arc<Service>], machines: &Machines<'_>) -> Vec<(ObjectKey, Share)> {
    let mut ours: Vec<&Arc<Service>> = services.iter().filter(|s| is_ours(s)).collect();
    ours.sort_by_key(|s| (s.metadata.creation_timestamp.clone().map(|t| t.0), ObjectKey::of(&s.metadata)));
    let mut owners: BTreeMap<Port, ObjectKey> = BTreeMap::new();
    let mut shares = Vec::with_capacity(ours.len());
    for service in ours {
        let key = ObjectKey::of(&service.metadata);
        let ports = ports(service);
        let refusal = ports.iter().find_map(|port| {
            let name = format!("{}/{}", port.0, port.1);
            let own = machines.reserved.iter().any(|r| i32::from(*r) == port.0) && port.1 == "TCP";
            let other = owners.get(port).map(|owner| format!("port {name} is in use by Service {owner}"));
            other.or_else(|| own.then(|| format!("port {name} is in use by the cluster itself")))
        });
        if let Some(why) = refusal {
            shares.push((key, Share::Refused(why)));
            continue;
        }
        ports.iter().for_each(|port| drop(owners.insert(port.clone(), key.clone())));
        let (place, none) = ((key.namespace.clone(), key.name.clone()), BTreeSet::new());
        let serving = is_local(service).then(|| machines.serving.get(&place).unwrap_or(&none));
        let free = |node: &&String| {
            let taken = machines.taken.get(*node);
            !ports.iter().any(|port| taken.is_some_and(|taken| taken.contains(port)))
                && serving.is_none_or(|serving| serving.contains(*node))
        };
        let found: BTreeSet<String> =
            machines.nodes.keys().filter(free).flat_map(|node| machines.nodes[node].clone()).collect();
        shares.push((key, Share::Addresses(found)));
    }
    shares
}

struct Balance {
    services: Informer<Service>,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    slices: Informer<EndpointSlice>,
    api: Api<Service>,
    events: EventRecorder,
    reserved: Vec<u16>,
}

impl Balance {
    fn machines(&self) -> Machines<'_> {
        let name = |node: &Arc<Node>| node.metadata.name.clone().unwrap_or_default();
        let nodes = self.nodes.list().iter().map(|node| (name(node), addresses(node))).collect();
        let mut taken: BTreeMap<String, BTreeSet<Port>> = BTreeMap::new();
        for pod in self.pods.list() {
            for port in host_ports(&pod) {
                taken.entry(podutil::node_name(&pod).unwrap_or("").to_owned()).or_default().insert(port);
            }
        }
        let mut serving: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
        for slice in self.slices.list() {
            let Some((namespace, name)) = service_of(&slice) else { continue };
            let ready =
                slice.endpoints.iter().flatten().filter(|e| {
                    e.conditions.as_ref().is_none_or(|conditions| conditions.ready.unwrap_or(true))
                });
            let entry = serving.entry((namespace.to_owned(), name.to_owned())).or_default();
            entry.extend(ready.filter_map(|e| e.node_name.clone()));
        }
        Machines { nodes, taken, reserved: &self.reserved, serving }
    }

    /// Writes the addresses, where they are others.
    async fn write(&self, service: &Service, addresses: &BTreeSet<String>) -> Result<bool, Status> {
        let now: BTreeSet<String> =
            ingress(service).into_iter().flatten().filter_map(|i| i.ip.clone()).collect();
        let named = ingress(service).into_iter().flatten().any(|i| i.hostname.is_some());
        if now == *addresses && !named {
            return Ok(false);
        }
        let list: Vec<_> = addresses.iter().map(|ip| json!({ "ip": ip, "ipMode": "VIP" })).collect();
        let patch = json!({ "status": { "loadBalancer": { "ingress": if list.is_empty() { None } else { Some(list) } } } });
        let key = ObjectKey::of(&service.metadata);
        ignore_not_found(self.api.patch_status(&key.namespace, &key.name, PatchKind::Merge, patch).await)?;
        Ok(true)
    }
}

#[async_trait]
impl Reconciler for Balance {
    async fn reconcile(&self, _: &ObjectKey) -> Result<Action, Status> {
        let services = self.services.list();
        let none = BTreeSet::new();
        for (key, share) in share(&services, &self.machines()) {
            let Some(service) = self.services.get(&key.namespace, &key.name) else { continue };
            match share {
                Share::Addresses(addresses) => {
                    if self.write(&service, &addresses).await? && !addresses.is_empty() {
                        let message = "Ensured load balancer";
                        self.events.event(&*service, EventType::Normal, "EnsuredLoadBalancer", message);
                    }
                }
                Share::Refused(why) => {
                    self.write(&service, &none).await?;
                    let message =
                        format!("Error syncing load balancer: failed to ensure load balancer: {why}");
                    self.events.event(&*service, EventType::Warning, "SyncLoadBalancerFailed", message);
                }
            }
        }
        // One that was of the type and is no longer has no address. Those of other classes are others' matter.
        let left = |s: &&Arc<Service>| {
            s.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() != Some("LoadBalancer"))
                && has_address(s)
        };
        for service in services.iter().filter(left) {
            self.write(service, &none).await?;
        }
        Ok(Action::AwaitChange)
    }
}

#[cfg(test)]
mod tests {
    use coracle_client::testing::FakeTransport;
    use coracle_stdx::Clock;
    use serde_json::Value;

    use super::*;
    use crate::testing::{context, eventually};

    fn service(name: &str, age: i64, spec: &Value) -> Arc<Service> {
        let mut value = json!({
            "metadata": { "name": name, "namespace": "ns", "creationTimestamp": format!("2026-01-01T00:00:{age:02}Z") },
            "spec": { "type": "LoadBalancer", "ports": [{ "port": 80 }] },
        });
        for (key, part) in spec.as_object().into_iter().flatten() {
            value["spec"][key] = part.clone();
        }
        Arc::new(serde_json::from_value(value).expect("a Service"))
    }

    fn machines() -> Machines<'static> {
        let nodes = [("a", "192.0.2.1"), ("b", "192.0.2.2")];
        Machines {
            nodes: nodes.map(|(name, ip)| (name.to_owned(), vec![ip.to_owned()])).into(),
            taken: [("b".to_owned(), [(443, "TCP".to_owned())].into())].into(),
            reserved: &[6443],
            serving: [(("ns".to_owned(), "local".to_owned()), ["b".to_owned()].into())].into(),
        }
    }

    /// The addresses' last digits, or why there are none.
    fn shares(services: &[Arc<Service>]) -> Vec<(String, String)> {
        let text = |share: Share| match share {
            Share::Addresses(all) => all.iter().filter_map(|ip| ip.chars().last()).collect(),
            Share::Refused(why) => why,
        };
        share(services, &machines()).into_iter().map(|(key, share)| (key.name, text(share))).collect()
    }

    #[test]
    fn a_port_belongs_to_the_oldest_service_and_never_to_two() {
        let (young, old) = (service("young", 9, &json!({})), service("old", 1, &json!({})));
        let udp = service("udp", 5, &json!({ "ports": [{ "port": 80, "protocol": "UDP" }] }));
        let got = shares(&[young, udp, old]);
        let want = [("old", "12"), ("udp", "12"), ("young", "port 80/TCP is in use by Service ns/old")];
        assert_eq!(got, want.map(|(name, share)| (name.to_owned(), share.to_owned())));
    }

    #[test]
    fn taken_and_reserved_ports_and_local_traffic_limit_the_nodes() {
        let one = |spec: Value, name: &str| shares(&[service(name, 1, &spec)]).remove(0).1;
        assert_eq!(one(json!({ "ports": [{ "port": 443 }] }), "web"), "1", "a pod has the port on b");
        assert_eq!(
            one(json!({ "ports": [{ "port": 6443 }] }), "web"),
            "port 6443/TCP is in use by the cluster itself"
        );
        assert_eq!(one(json!({ "externalTrafficPolicy": "Local" }), "local"), "2", "only b has an endpoint");
        assert_eq!(one(json!({ "externalTrafficPolicy": "Local" }), "idle"), "");
        assert_eq!(
            one(json!({ "loadBalancerSourceRanges": ["10.0.0.0/8"] }), "web"),
            "12",
            "the proxy's matter"
        );
        assert_eq!(one(json!({ "loadBalancerClass": CLASS }), "web"), "12");
        let other = service("web", 1, &json!({ "loadBalancerClass": "example.com/metal" }));
        assert!(shares(&[other]).is_empty(), "another's");
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_gets_the_nodes_address_and_loses_it_with_its_type() {
        let fake = FakeTransport::new(Clock::system());
        let client = fake.client();
        let node = json!({ "metadata": { "name": "n" }, "status": { "addresses": [
            { "type": "InternalIP", "address": "192.0.2.7" }, { "type": "Hostname", "address": "n" }] } });
        let node: Node = serde_json::from_value(node).expect("a node");
        client.api::<Node>().create("", node).await.expect("created");
        let task = tokio::spawn(run(&context(&fake)));
        let services = client.api::<Service>();
        services.create("ns", (*service("web", 1, &json!({}))).clone()).await.expect("created");
        let address = || async {
            let found = services.get("ns", "web").await.expect("there");
            ingress(&found).and_then(|all| all.first()?.ip.clone())
        };
        eventually(|| async { address().await.as_deref() == Some("192.0.2.7") }).await;
        let patch = json!({ "spec": { "type": "ClusterIP" } });
        services.patch("ns", "web", PatchKind::Merge, patch).await.expect("changed");
        eventually(|| async { address().await.is_none() }).await;
        task.abort();
    }
}
