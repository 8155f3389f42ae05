//! Pod links: a routed veth per pod.
//!
//! The pod has its address as /32 and a default route through 169.254.1.1, which is nobody: a permanent
//! neighbour entry sends the frames to the host end. The host routes the address to that link. No bridge,
//! no ARP, no proxy-ARP. What pods send out of their range is masqueraded; host ports are elements of two
//! maps.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use coracle_cri::{NetworkError, PodNetwork, PodNetworkRequest, PortMapping, Protocol};
use parking_lot::Mutex;
use tracing::{info, warn};

use crate::config::NetworkConfig;
use crate::ipam::{Ipam, Record};
use crate::links::{Links, pod_mac};
use crate::nft::{
    Batch, Chain, ChainKind, Data, Element, Expr, Hook, Reg, Rule, SetKind, SetSpec, Socket, Type, Verdict,
};
use crate::{failed, foreign, sysctl};

const R: [Reg; 6] = [Reg::new(0), Reg::new(1), Reg::new(2), Reg::new(3), Reg::new(4), Reg::new(5)];
const SOCKET: &[Type] = &[Type::Ipv4Address, Type::InetService];
/// Host ports on all addresses.
const PORTS: SetSpec =
    SetSpec { name: "hostports", key: &[Type::InetProto, Type::InetService], kind: SetKind::Map(SOCKET) };
/// Host ports on one address.
const PORTS_AT: SetSpec = SetSpec {
    name: "hostports-at",
    key: &[Type::Ipv4Address, Type::InetProto, Type::InetService],
    kind: SetKind::Map(SOCKET),
};
/// Pods that may reach themselves through their host port: source and destination are the same.
const HAIRPIN: SetSpec =
    SetSpec { name: "hairpin", key: &[Type::Ipv4Address, Type::Ipv4Address], kind: SetKind::Set };

/// Connects sandboxes; see the module's description.
///
/// Guarantees: a sandbox keeps its address until [`PodNetwork::teardown`], also when the daemon restarts; a
/// failed setup leaves nothing behind; nothing of another cluster is touched.
#[derive(Debug)]
pub struct PodLinks {
    config: NetworkConfig,
    links: Links,
    nft: Arc<Socket>,
    ipam: Mutex<Ipam>,
    mtu: u32,
    source: Ipv4Addr,
}

impl PodLinks {
    /// Prepares this network namespace and adopts the sandboxes that an earlier daemon connected.
    ///
    /// # Errors
    /// When a range is malformed or the kernel refuses (not root, no nf_tables).
    pub async fn open(config: NetworkConfig) -> Result<Arc<Self>, NetworkError> {
        let range = config.pod_range()?;
        let links = Links::here()?;
        let nft = Arc::new(Socket::open().map_err(failed("use nf_tables"))?);
        sysctl::enable_forwarding(&config)?;
        serve_here(&config, &links).await?;
        let source = config.own_source()?;
        let ipam = Ipam::open(&config.state.join("pods"), range, config.link_prefix())?;
        let batch = table(&config, &ipam)?;
        nft.commit(batch).map_err(failed("make the table of pods"))?;
        foreign::admit(&nft, &config)?;
        let mtu = links.default_mtu().await;
        let pods = Self { config, links, nft, ipam: Mutex::new(ipam), mtu, source };
        pods.remove_strays().await?;
        Ok(Arc::new(pods))
    }

    /// Removes links of ours that belong to no sandbox: a crash came between making the link and keeping
    /// its record.
    async fn remove_strays(&self) -> Result<(), NetworkError> {
        for name in self.links.names(&self.config.link_prefix()).await? {
            let known = self.ipam.lock().records().any(|r| r.link == name);
            if !known {
                warn!(link = name, "removing a link that no pod owns");
                self.links.remove(&name).await?;
            }
        }
        Ok(())
    }

    async fn connect(&self, record: &Record, request: &PodNetworkRequest) -> Result<(), NetworkError> {
        let (mac, path) = (pod_mac(record.address), request.netns.as_path());
        let netns = File::open(path).map_err(failed(format!("open network namespace {}", path.display())))?;
        self.links.add_pair(&record.link, &netns, mac, self.mtu).await?;
        // Only for DNAT to and from 127.0.0.1 (node ports on localhost); the `guard` chain keeps others out.
        sysctl::set_link("ipv4", &record.link, "route_localnet", "1");
        sysctl::set_link("ipv6", &record.link, "disable_ipv6", "1");
        let index = self.links.index(&record.link).await?;
        let index = index.ok_or_else(|| failed(format!("make link {}", record.link))("it vanished"))?;
        self.links.up(index).await?;
        let inside = Links::inside(&netns, path)?;
        let (pod, host) = tokio::join!(
            inside.configure_pod(record.address),
            self.links.route_to_pod(index, record.address, mac, self.source)
        );
        pod.and(host)?;
        if !record.ports.is_empty() {
            let mut batch = Batch::new(&self.config.pod_table());
            forward_ports(&mut batch, record, true);
            self.nft.commit(batch).map_err(failed(format!("forward host ports to {}", record.address)))?;
        }
        Ok(())
    }

    async fn disconnect(&self, record: &Record) -> Result<(), NetworkError> {
        self.links.remove(&record.link).await?;
        if record.ports.is_empty() {
            return Ok(());
        }
        // Whether all elements are there is unknown after a failed setup: adding first makes the removal
        // succeed, and a port that another pod took over in the meantime stays with it.
        let mut batch = Batch::new(&self.config.pod_table());
        forward_ports(&mut batch, record, true);
        forward_ports(&mut batch, record, false);
        if let Err(e) = self.nft.commit(batch) {
            info!(address = %record.address, error = %e, "host ports were not ours any more");
        }
        Ok(())
    }

    fn netns_has_link(path: &Path) -> bool {
        File::open(path).is_ok()
    }
}

/// Lets services and DNS be reached on this node: the DNS address is here, the service range leads here.
async fn serve_here(config: &NetworkConfig, links: &Links) -> Result<(), NetworkError> {
    if !config.has_services() {
        return Ok(());
    }
    links.add_local(config.dns_address()?).await?;
    let services = config.service_range()?;
    links.route_here(services.network(), services.length(), config.own_source()?).await
}

/// Prepares this network namespace for services where pods are connected by others (CNI plug-ins).
///
/// # Errors
/// When a range is malformed or the kernel refuses.
pub async fn prepare(config: &NetworkConfig) -> Result<(), NetworkError> {
    sysctl::enable_forwarding(config)?;
    serve_here(config, &Links::here()?).await
}

#[async_trait]
impl PodNetwork for PodLinks {
    async fn setup(&self, request: &PodNetworkRequest) -> Result<Vec<IpAddr>, NetworkError> {
        let id = &request.sandbox_id;
        let record = self.ipam.lock().allocate(id, &request.port_mappings)?;
        let connected = self.links.index(&record.link).await?.is_some();
        if connected && Self::netns_has_link(&request.netns) {
            return Ok(vec![record.address.into()]);
        }
        if let Err(e) = self.connect(&record, request).await {
            let undone = self.disconnect(&record).await.and_then(|()| self.ipam.lock().release(id));
            if let Err(undo) = undone {
                warn!(sandbox = id, error = %undo, "cannot undo a failed setup");
            }
            return Err(e);
        }
        Ok(vec![record.address.into()])
    }

    async fn teardown(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        let record = self.ipam.lock().get(sandbox_id).cloned();
        let Some(record) = record else { return Ok(()) };
        self.disconnect(&record).await?;
        self.ipam.lock().release(sandbox_id)
    }

    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}

pub(crate) fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// A port in register layout.
pub(crate) fn port_bytes(port: u16) -> [u8; 4] {
    let [a, b] = port.to_be_bytes();
    [a, b, 0, 0]
}

fn port_element(record: &Record, mapping: &PortMapping) -> (&'static str, Element) {
    let proto = [protocol_number(mapping.protocol), 0, 0, 0];
    let port = port_bytes(mapping.host_port);
    let value = [record.address.octets(), port_bytes(mapping.container_port)].concat();
    let at = match mapping.host_ip {
        Some(IpAddr::V4(ip)) if !ip.is_unspecified() => Some(ip.octets()),
        _ => None,
    };
    let (map, key) = match at {
        Some(ip) => (PORTS_AT.name, [ip, proto, port].concat()),
        None => (PORTS.name, [proto, port].concat()),
    };
    (map, Element { key, data: Data::Bytes(value) })
}

/// Adds or removes a pod's host ports.
fn forward_ports(batch: &mut Batch, record: &Record, add: bool) {
    for mapping in record.ports.iter().filter(|m| m.host_port != 0) {
        let (map, element) = port_element(record, mapping);
        if add { batch.add_elements(map, &[element]) } else { batch.delete_elements(map, &[element]) }
    }
    let address = record.address.octets();
    let itself = Element { key: [address, address].concat(), data: Data::None };
    if add {
        batch.add_elements(HAIRPIN.name, &[itself])
    } else {
        batch.delete_elements(HAIRPIN.name, &[itself])
    }
}

/// The whole table of pods, replacing what is there.
fn table(config: &NetworkConfig, ipam: &Ipam) -> Result<Batch, NetworkError> {
    let range = config.pod_range()?;
    let (network, mask) = (range.network().octets(), range.mask().octets());
    let mut batch = Batch::new(&config.pod_table());
    batch.replace_table();
    [PORTS, PORTS_AT, HAIRPIN].iter().for_each(|set| batch.add_set(set));
    batch.add_chain(&Chain::regular("ports"));
    batch.add_chain(&Chain::base("guard", ChainKind::Filter, Hook::Prerouting, -300));
    batch.add_chain(&Chain::base("incoming", ChainKind::Nat, Hook::Prerouting, -105));
    batch.add_chain(&Chain::base("own", ChainKind::Nat, Hook::Output, -105));
    batch.add_chain(&Chain::base("outgoing", ChainKind::Nat, Hook::Postrouting, 110));
    let none = [0; 4];
    batch.add_rule(
        "guard",
        &Rule::new(vec![
            Expr::InputInterfacePrefix(config.link_prefix()),
            Expr::DestinationAddress(R[0]),
            Expr::Bitwise { reg: R[0], mask: [255, 0, 0, 0], xor: none },
            Expr::Equal(R[0], vec![127, 0, 0, 0]),
            Expr::Verdict(Verdict::Drop),
        ]),
    );
    for chain in ["incoming", "own"] {
        batch.add_rule(
            chain,
            &Rule::new(vec![
                Expr::DestinationType(R[0]),
                Expr::Equal(R[0], 2u32.to_ne_bytes().to_vec()),
                Expr::Verdict(Verdict::Jump("ports".into())),
            ]),
        );
    }
    let key = |expr: Vec<Expr>, map: SetSpec| {
        let look_up = Expr::Map { key: R[0], map: map.name.into(), value: R[3] };
        Rule::new([expr, vec![look_up, Expr::Dnat(R[3], R[4])]].concat())
    };
    let at = vec![Expr::DestinationAddress(R[0]), Expr::Protocol(R[1]), Expr::DestinationPort(R[2])];
    batch.add_rule("ports", &key(at, PORTS_AT));
    batch.add_rule("ports", &key(vec![Expr::Protocol(R[0]), Expr::DestinationPort(R[1])], PORTS));
    let dnat = 0x20u32.to_ne_bytes();
    let translated = [
        Expr::ConntrackStatus(R[0]),
        Expr::Bitwise { reg: R[0], mask: dnat, xor: none },
        Expr::NotEqual(R[0], none.to_vec()),
    ];
    let hairpin =
        [Expr::SourceAddress(R[0]), Expr::DestinationAddress(R[1]), Expr::InSet(R[0], HAIRPIN.name.into())];
    let masquerade = [Expr::Masquerade];
    batch.add_rule("outgoing", &Rule::new([&translated[..], &hairpin[..], &masquerade[..]].concat()));
    let from_localhost = [
        Expr::SourceAddress(R[0]),
        Expr::Bitwise { reg: R[0], mask: [255, 0, 0, 0], xor: none },
        Expr::Equal(R[0], vec![127, 0, 0, 0]),
    ];
    batch.add_rule("outgoing", &Rule::new([&translated[..], &from_localhost[..], &masquerade[..]].concat()));
    batch.add_rule(
        "outgoing",
        &Rule::new(vec![
            Expr::SourceAddress(R[0]),
            Expr::Bitwise { reg: R[0], mask, xor: none },
            Expr::Equal(R[0], network.to_vec()),
            Expr::DestinationAddress(R[0]),
            Expr::Bitwise { reg: R[0], mask, xor: none },
            Expr::NotEqual(R[0], network.to_vec()),
            Expr::Masquerade,
        ]),
    );
    for record in ipam.records().filter(|r| !r.ports.is_empty()) {
        forward_ports(&mut batch, record, true);
    }
    Ok(batch)
}
