//! The sockets: UDP and TCP on the cluster's DNS address.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coracle_client::{Index, Informer, Informers};
use coracle_cri::NetworkError;
use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::Name;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, error, info};

use super::answer::{self, Decision};
use super::forward::Upstream;
use super::zone::{Cluster, Zone};
use crate::config::NetworkConfig;
use crate::links::Links;
use crate::slices::Slices;
use crate::{again, failed};

/// Queries that wait for other name servers, and open TCP connections, at one time.
const AT_ONCE: usize = 1024;
/// How long a TCP client may be silent.
const IDLE: Duration = Duration::from_secs(10);

/// The cluster's DNS server on this node.
///
/// Answers on `dns_ip:53`, which it puts on `lo`. Only the cluster's own names are answered with authority;
/// the others go to the name servers of `/etc/resolv.conf`, read at the start.
#[derive(Debug)]
pub struct DnsServer {
    config: NetworkConfig,
    informers: Informers,
}

struct Store {
    services: Informer<Service>,
    by_ip: Index<Service>,
    slices: Slices,
    by_endpoint: Index<EndpointSlice>,
}

fn cluster_ips(service: &Service) -> Vec<String> {
    let spec = service.spec.as_ref();
    spec.and_then(|s| s.cluster_ip.clone()).filter(|ip| !ip.is_empty() && ip != "None").into_iter().collect()
}

fn endpoint_ips(slice: &EndpointSlice) -> Vec<String> {
    slice.endpoints.iter().flatten().filter_map(|e| e.addresses.first().cloned()).collect()
}

impl Cluster for Store {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.services.get(namespace, name)
    }
    fn slices(&self, namespace: &str, name: &str) -> Vec<Arc<EndpointSlice>> {
        self.slices.of(namespace, name)
    }
    fn has_services(&self, namespace: &str) -> bool {
        !self.services.list_namespace(namespace).is_empty()
    }
    fn services_at(&self, address: &str) -> Vec<Arc<Service>> {
        self.by_ip.get(address)
    }
    fn slices_at(&self, address: &str) -> Vec<Arc<EndpointSlice>> {
        self.by_endpoint.get(address)
    }
}

struct Shared {
    zone: Zone<Store>,
    upstream: Upstream,
    waiting: Semaphore,
}

impl DnsServer {
    /// A server for the network namespace in which [`DnsServer::run`] is called.
    pub fn new(config: NetworkConfig, informers: Informers) -> Self {
        Self { config, informers }
    }

    /// Answers until it is dropped. Failures (the port is in use) are logged and tried again.
    pub async fn run(self) {
        again("DNS", || self.serve()).await;
    }

    async fn serve(&self) -> Result<(), NetworkError> {
        let dns = self.config.dns_address()?;
        Links::here()?.add_local(dns).await?;
        let address = SocketAddr::new(IpAddr::V4(dns), 53);
        let udp = UdpSocket::bind(address).await.map_err(failed(format!("listen on {address}/udp")))?;
        let tcp = TcpListener::bind(address).await.map_err(failed(format!("listen on {address}/tcp")))?;
        let domain = format!("{}.", self.config.cluster_domain.trim_end_matches('.'));
        let domain = Name::from_ascii(&domain).map_err(failed(format!("use the cluster domain {domain}")))?;
        let services = self.informers.get::<Service>();
        let endpoints = self.informers.get::<EndpointSlice>();
        services.wait_synced().await;
        endpoints.wait_synced().await;
        let store = Store {
            by_ip: services.index("network/cluster-ip", cluster_ips),
            services,
            slices: Slices::new(&endpoints),
            by_endpoint: endpoints.index("network/endpoint-ip", endpoint_ips),
        };
        let upstream = Upstream::of_this_machine(self.config.dns_ip);
        info!(%address, ?upstream, "DNS answers");
        let zone = Zone::new(domain, store);
        let shared = Arc::new(Shared { zone, upstream, waiting: Semaphore::new(AT_ONCE) });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(Arc::new(udp), shared.clone()));
        tasks.spawn(serve_tcp(tcp, shared));
        // Either ends only with its socket broken.
        let ended = tasks.join_next().await;
        debug!(?ended, "DNS loop ended");
        Ok(())
    }
}

fn serial() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs() & 0xffff_ffff).unwrap_or(0)
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut buffer = vec![0; 4096];
    let mut waiting = JoinSet::new();
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An ICMP error for an earlier answer.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => continue,
            Err(e) => {
                error!(error = %e, "DNS cannot receive");
                return;
            }
        };
        while waiting.try_join_next().is_some() {}
        let bytes = &buffer[..length];
        let Some(query) = answer::parse(bytes) else { continue };
        match answer::decide(&shared.zone, &query, serial()) {
            Decision::Answer(message) => {
                if let Some(bytes) = answer::encode(&message, &query, false) {
                    let _ = socket.send_to(&bytes, client).await;
                }
            }
            decision => {
                let (socket, shared, bytes) = (socket.clone(), shared.clone(), bytes.to_vec());
                waiting.spawn(async move {
                    if let Some(bytes) = finish(&shared, decision, &query, &bytes, false).await {
                        let _ = socket.send_to(&bytes, client).await;
                    }
                });
            }
        }
    }
}

/// The answer's bytes for any decision.
async fn finish(
    shared: &Shared,
    decision: Decision,
    query: &Message,
    bytes: &[u8],
    tcp: bool,
) -> Option<Vec<u8>> {
    let _one = match &decision {
        Decision::Answer(_) => None,
        _ => Some(shared.waiting.acquire().await.ok()?),
    };
    match decision {
        Decision::Answer(message) => answer::encode(&message, query, tcp),
        Decision::Forward => match shared.upstream.ask(bytes, tcp).await {
            Some(bytes) => Some(bytes),
            None => answer::encode(&answer::response(query, ResponseCode::ServFail), query, tcp),
        },
        Decision::Follow(mut message, question) => {
            let mut follow = Message::new(query.metadata.id, MessageType::Query, OpCode::Query);
            follow.metadata.recursion_desired = true;
            follow.queries.push(question);
            let theirs = match follow.to_vec() {
                Ok(bytes) => shared.upstream.ask(&bytes, tcp).await,
                Err(_) => None,
            };
            answer::append(&mut message, theirs.as_deref());
            answer::encode(&message, query, tcp)
        }
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept(), if connections.len() < AT_ONCE => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match stream {
            Ok((stream, _)) => drop(connections.spawn(converse(stream, shared.clone()))),
            Err(e) => {
                // Too many open files: wait for some to close.
                debug!(error = %e, "DNS cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn converse(mut stream: TcpStream, shared: Arc<Shared>) {
    while let Ok(Ok(length)) = timeout(IDLE, stream.read_u16()).await {
        let mut bytes = vec![0; usize::from(length)];
        if !matches!(timeout(IDLE, stream.read_exact(&mut bytes)).await, Ok(Ok(_))) {
            return;
        }
        let Some(query) = answer::parse(&bytes) else { return };
        let decision = answer::decide(&shared.zone, &query, serial());
        let Some(reply) = finish(&shared, decision, &query, &bytes, true).await else { return };
        let Ok(length) = u16::try_from(reply.len()) else { return };
        let framed = [&length.to_be_bytes()[..], &reply].concat();
        if !matches!(timeout(IDLE, stream.write_all(&framed)).await, Ok(Ok(()))) {
            return;
        }
    }
}
