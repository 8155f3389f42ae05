//! Service `default/kubernetes` and the API servers behind it. On a store of its own a server is alone; on a shared one
//! each renews a Lease, and the endpoints are the servers whose Leases are renewed.
//!
//! Upstream keeps the addresses in keys of etcd that expire; here the Leases of upstream's server identities tell them
//! (<https://kubernetes.io/docs/concepts/architecture/leases/#api-server-identity>). Every server writes the same
//! endpoints from the same Leases, so that they do not write against each other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use coracle_client::{DeleteOptions, WriteOptions};
use coracle_meta::Status;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tracing::warn;

use crate::bootstrap::{covers, ensure, find, unless_raced};
use crate::cache::Filter;
use crate::server::Server;
use crate::verbs::{Input, Part};

const SERVICE: &str = "kubernetes";
const COORDINATION: &str = "coordination.k8s.io";
const SYSTEM: &str = "kube-system";
/// Label of the Leases, as upstream's.
const IDENTITY: &str = "apiserver.kubernetes.io/identity";
/// Annotation of a Lease: where its server is reached.
const ADDRESS: &str = "coracle.dev/address";
/// How often a Lease is renewed.
const RENEW: Duration = Duration::from_secs(5);
/// A server whose Lease was not renewed for so long is gone: upstream's time.
const GONE: Duration = Duration::from_secs(15);

/// When a Lease was last seen to be renewed, by this server's own clock: those of others may be off.
#[derive(Debug)]
struct Seen {
    renewed: String,
    at: Instant,
}

/// The Leases as this server knows them.
#[derive(Debug, Default)]
struct Roll(HashMap<String, Seen>);

impl Roll {
    /// Takes note of the Leases there are. Returns the addresses of the servers that are there, and the names of the
    /// Leases of those that are gone.
    fn call(&mut self, leases: &[Value], now: Instant) -> (BTreeSet<SocketAddr>, Vec<String>) {
        let (mut there, mut gone, mut known) = (BTreeSet::new(), Vec::new(), BTreeSet::new());
        for lease in leases {
            let name = lease["metadata"]["name"].as_str().unwrap_or("").to_owned();
            let renewed = lease["spec"]["renewTime"].as_str().unwrap_or("").to_owned();
            let address =
                lease["metadata"]["annotations"][ADDRESS].as_str().and_then(|text| text.parse().ok());
            let seen =
                self.0.entry(name.clone()).or_insert_with(|| Seen { renewed: renewed.clone(), at: now });
            if seen.renewed != renewed {
                *seen = Seen { renewed, at: now };
            }
            match address {
                Some(address) if now.duration_since(seen.at) < GONE => _ = there.insert(address),
                _ => gone.push(name.clone()),
            }
            known.insert(name);
        }
        self.0.retain(|name, _| known.contains(name));
        (there, gone)
    }
}

/// Keeps the Service and its endpoints as they should be: at once when they are touched.
pub(crate) async fn run(server: Arc<Server>) {
    let mut watches = Vec::new();
    for (group, plural) in [("", "services"), ("", "endpoints"), ("discovery.k8s.io", "endpointslices")] {
        let Ok(resource) = find(&server, group, plural) else { continue };
        let filter = Filter { key: resource.key("default", SERVICE), single: true, ..Filter::default() };
        let applied = server.cache.applied();
        if let Ok(subscription) = resource.cache.subscribe(filter, Some(applied), applied) {
            watches.push(subscription.live);
        }
    }
    let (mut roll, mut next) = (Roll::default(), Instant::now());
    loop {
        let due = server.store.shared() && Instant::now() >= next;
        if due {
            next = Instant::now() + RENEW;
        }
        if let Err(status) = keep_up(&server, &mut roll, due).await {
            warn!(error = %status, "cannot publish the API server's address");
            return;
        }
        if watches.is_empty() && !server.store.shared() {
            return std::future::pending().await;
        }
        let touched = async {
            let events = watches.iter_mut().map(|w| Box::pin(w.recv()));
            if events.len() == 0 {
                std::future::pending().await
            } else {
                futures::future::select_all(events).await.0
            }
        };
        tokio::select! {
            event = touched => if event.is_none() { return },
            () = tokio::time::sleep_until(next), if server.store.shared() => {}
        }
    }
}

/// One look: renews the Lease where it is `due`, and publishes who is there.
async fn keep_up(server: &Arc<Server>, roll: &mut Roll, due: bool) -> Result<(), Status> {
    if server.drain.has_begun() {
        return Ok(());
    }
    if !server.store.shared() {
        return publish(server, &BTreeSet::from([server.advertise])).await;
    }
    if due {
        renew(server).await?;
    }
    let (mut there, gone) = roll.call(&leases(server)?, Instant::now());
    for name in gone {
        remove(server, &name).await?;
    }
    there.insert(server.advertise);
    publish(server, &there).await
}

/// Publishes this server beside those that are known, before it serves.
pub(crate) async fn enter(server: &Arc<Server>) -> Result<(), Status> {
    keep_up(server, &mut Roll::default(), server.store.shared()).await
}

/// Takes this server out of the endpoints, where others are there to serve.
pub(crate) async fn leave(server: &Arc<Server>) -> Result<(), Status> {
    if !server.store.shared() {
        return Ok(());
    }
    remove(server, &lease_name(server.advertise)).await?;
    let (mut there, _) = Roll::default().call(&leases(server)?, Instant::now());
    there.remove(&server.advertise);
    if there.is_empty() { Ok(()) } else { publish(server, &there).await }
}

/// The Lease of the server at an address.
fn lease_name(address: SocketAddr) -> String {
    format!("apiserver-{}", coracle_stdx::hex(&Sha256::digest(address.to_string())[..13]))
}

/// The Leases of API servers.
fn leases(server: &Server) -> Result<Vec<Value>, Status> {
    let resource = find(server, COORDINATION, "leases")?;
    let prefix = resource.key_prefix(SYSTEM);
    let filter = Filter { key: prefix, ..Filter::default() };
    let all = resource.cache.range(&filter, 0).entries;
    let values = all.iter().filter_map(|entry| serde_json::from_slice::<Value>(&entry.encoded()).ok());
    Ok(values.filter(|lease| lease["metadata"]["labels"].get(IDENTITY).is_some()).collect())
}

async fn renew(server: &Arc<Server>) -> Result<(), Status> {
    let (name, address) = (lease_name(server.advertise), server.advertise.to_string());
    let now = server.clock.now();
    let mut lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {
            "name": name, "namespace": SYSTEM,
            "labels": { IDENTITY: "kube-apiserver" }, "annotations": { ADDRESS: address },
        },
        "spec": {
            "holderIdentity": format!("{name}_{address}"), "leaseDurationSeconds": GONE.as_secs(),
            "renewTime": format!("{now:.6}"),
        },
    });
    ensure(server, COORDINATION, "leases", SYSTEM, &name, lease.clone()).await?;
    let resource = find(server, COORDINATION, "leases")?;
    // Leases are never replaced blindly.
    let entry = server.get(&resource, SYSTEM, &name).await?;
    let have: Value = serde_json::from_slice(&entry.encoded()).map_err(Status::internal)?;
    lease["metadata"]["resourceVersion"] = have["metadata"]["resourceVersion"].clone();
    let (caller, opts) = (Server::loopback(), WriteOptions::default());
    unless_raced(
        server.update(&caller, &resource, SYSTEM, &name, Part::Main, Input::Json(lease), &opts).await,
    )
}

async fn remove(server: &Arc<Server>, lease: &str) -> Result<(), Status> {
    let resource = find(server, COORDINATION, "leases")?;
    match server.delete(&Server::loopback(), &resource, SYSTEM, lease, &DeleteOptions::default()).await {
        Err(status) if !matches!(status.code(), 404 | 409) => Err(status),
        _ => Ok(()),
    }
}

async fn publish(server: &Arc<Server>, servers: &BTreeSet<SocketAddr>) -> Result<(), Status> {
    let labels = json!({ "component": "apiserver", "provider": "kubernetes" });
    let service_ip = server.services.address(1).to_string();
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": SERVICE, "namespace": "default", "labels": labels },
        "spec": {
            "type": "ClusterIP", "clusterIP": service_ip, "sessionAffinity": "None",
            "ipFamilyPolicy": "SingleStack",
            "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": server.advertise.port() }],
        },
    });
    ensure(server, "", "services", "default", SERVICE, service).await?;
    // Nothing in a pod could reach a loopback address; the API refuses such endpoints.
    let ports = by_port(servers.iter().copied().filter(|address| !address.ip().is_loopback()));
    if ports.is_empty() {
        return Ok(());
    }
    keep(server, "", "endpoints", endpoints(&ports), "/subsets").await?;
    keep(server, "discovery.k8s.io", "endpointslices", slice(&ports), "/endpoints").await
}

/// Addresses by the port that they are reached at.
fn by_port(servers: impl Iterator<Item = SocketAddr>) -> BTreeMap<u16, Vec<String>> {
    let mut ports: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for server in servers {
        ports.entry(server.port()).or_default().push(server.ip().to_string());
    }
    ports
}

fn endpoints(ports: &BTreeMap<u16, Vec<String>>) -> Value {
    let subset = |(port, addresses): (&u16, &Vec<String>)| {
        let addresses: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        json!({ "addresses": addresses, "ports": [{ "name": "https", "port": port, "protocol": "TCP" }] })
    };
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": SERVICE, "namespace": "default",
            "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" },
        },
        "subsets": ports.iter().map(subset).collect::<Vec<Value>>(),
    })
}

/// A slice has its ports for all of its endpoints: those of most servers.
fn slice(ports: &BTreeMap<u16, Vec<String>>) -> Value {
    let (port, addresses) = ports.iter().rev().max_by_key(|(_, addresses)| addresses.len()).unzip();
    let addresses = addresses.map(Vec::as_slice).unwrap_or_default();
    let is_v4 = addresses.first().is_some_and(|ip| !ip.contains(':'));
    let endpoint = |ip: &String| json!({ "addresses": [ip], "conditions": { "ready": true } });
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": SERVICE, "namespace": "default", "labels": { "kubernetes.io/service-name": SERVICE },
        },
        "addressType": if is_v4 { "IPv4" } else { "IPv6" },
        "endpoints": addresses.iter().map(endpoint).collect::<Vec<Value>>(),
        "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
    })
}

/// Creates an object, or replaces it when the part at `at` or its ports are not as wanted.
async fn keep(server: &Arc<Server>, group: &str, plural: &str, want: Value, at: &str) -> Result<(), Status> {
    let resource = match find(server, group, plural) {
        Ok(resource) => resource,
        // A kind that is not served needs no keeping.
        Err(_) => return Ok(()),
    };
    ensure(server, group, plural, "default", SERVICE, want.clone()).await?;
    let entry = server.get(&resource, "default", SERVICE).await?;
    let have: Value = serde_json::from_slice(&entry.encoded()).map_err(Status::internal)?;
    if covers(have.pointer(at), want.pointer(at)) && covers(have.get("ports"), want.get("ports")) {
        return Ok(());
    }
    let (caller, opts) = (Server::loopback(), WriteOptions::default());
    let input = Input::Json(want);
    unless_raced(server.update(&caller, &resource, "default", SERVICE, Part::Main, input, &opts).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn lease(at: &str, renewed: &str) -> Value {
        json!({ "metadata": { "name": lease_name(address(at)), "annotations": { ADDRESS: at } },
            "spec": { "renewTime": renewed } })
    }

    #[test]
    fn who_does_not_renew_is_gone() {
        let (a, b) = ("10.0.0.1:6443", "10.0.0.2:6443");
        let (mut roll, start) = (Roll::default(), Instant::now());
        let both = BTreeSet::from([address(a), address(b)]);
        assert_eq!(roll.call(&[lease(a, "1"), lease(b, "1")], start), (both.clone(), vec![]));
        let later = start + GONE - RENEW;
        assert_eq!(roll.call(&[lease(a, "2"), lease(b, "1")], later).0, both);
        let (there, gone) = roll.call(&[lease(a, "3"), lease(b, "1")], start + GONE);
        assert_eq!((there, gone), (BTreeSet::from([address(a)]), vec![lease_name(address(b))]));
        // One that comes back is there again.
        assert_eq!(roll.call(&[lease(a, "3"), lease(b, "2")], start + GONE).0, both);
        assert_eq!(roll.call(&[], start).0.len() + roll.0.len(), 0);
    }

    #[test]
    fn endpoints_are_one_list_whoever_writes_them() {
        let servers = ["10.0.0.2:6443", "10.0.0.1:6443", "10.0.0.3:7443"].map(address);
        let ports = by_port(BTreeSet::from(servers).into_iter());
        let subsets = &endpoints(&ports)["subsets"];
        assert_eq!(subsets[0]["addresses"], json!([{ "ip": "10.0.0.1" }, { "ip": "10.0.0.2" }]));
        assert_eq!(subsets[1]["ports"][0]["port"], 7443);
        let slice = slice(&ports);
        assert_eq!((&slice["ports"][0]["port"], &slice["addressType"]), (&json!(6443), &json!("IPv4")));
        assert_eq!(slice["endpoints"][1]["addresses"], json!(["10.0.0.2"]));
    }
}
