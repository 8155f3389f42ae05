//! The fixed part of the services' table: sets, chains and rules; and the chains that pick a backend.
//!
//! A packet costs two hash lookups however many Services there are: `services` tells which balancer chain
//! to go to (one chain per number of backends and kind, not per Service), which draws an index and looks it
//! up in `endpoints`.

use super::changes::Changes;
use super::guard::Guard;
use crate::config::NetworkConfig;
use crate::nft::{Batch, Chain, ChainKind, Expr, Hook, Reg, Rule, SetKind, SetSpec, Type, Verdict};
use coracle_cri::NetworkError;

const ADDRESS: Type = Type::Ipv4Address;
const PROTOCOL: Type = Type::InetProto;
const PORT: Type = Type::InetService;
const BACKEND: &[Type] = &[ADDRESS, PORT];
/// Clients remembered for session affinity, per map.
const CLIENTS: u32 = 1 << 18;
/// The packet mark's bit that asks for masquerading; kube-proxy's.
const MASQUERADE: u32 = 0x4000;
const R: [Reg; 16] = {
    let mut all = [Reg::new(0); 16];
    let mut n = 0;
    while n < 16 {
        all[n] = Reg::new(n as u32);
        n += 1;
    }
    all
};

const fn set(name: &'static str, key: &'static [Type], kind: SetKind) -> SetSpec {
    SetSpec { name, key, kind }
}

/// Endpoints that may reach themselves through a Service: the address twice.
pub(super) const HAIRPIN: SetSpec = set("hairpin", &[ADDRESS, ADDRESS], SetKind::Set);
/// All cluster IPs.
pub(super) const CLUSTER_IPS: SetSpec = set("cluster-ips", &[ADDRESS], SetKind::Set);

/// The names of the sets for one kind of frontend.
pub(super) struct Sets {
    pub services: &'static str,
    pub endpoints: &'static str,
    pub rejected: &'static str,
    pub sticky: &'static str,
    pub affinity: &'static str,
}

/// The sets for frontends with an address, or for node ports.
pub(super) fn sets(node_port: bool) -> Sets {
    if node_port {
        Sets {
            services: "node-ports",
            endpoints: "node-port-endpoints",
            rejected: "node-port-rejected",
            sticky: "node-port-sticky",
            affinity: "node-port-affinity",
        }
    } else {
        Sets {
            services: "services",
            endpoints: "endpoints",
            rejected: "rejected",
            sticky: "sticky",
            affinity: "affinity",
        }
    }
}

/// Frontends with an address that not everybody reaches: where it is looked who comes.
pub(super) const GUARDED: SetSpec = set("guarded", &[ADDRESS, PROTOCOL, PORT], SetKind::Verdicts);

const SETS: [SetSpec; 13] = [
    GUARDED,
    set("services", &[ADDRESS, PROTOCOL, PORT], SetKind::Verdicts),
    set("endpoints", &[ADDRESS, PROTOCOL, PORT, Type::Mark], SetKind::Map(BACKEND)),
    set("rejected", &[ADDRESS, PROTOCOL, PORT], SetKind::Set),
    set("sticky", &[ADDRESS, PROTOCOL, PORT, Type::Mark], SetKind::Map(BACKEND)),
    set("affinity", &[ADDRESS, ADDRESS, PROTOCOL, PORT], SetKind::DynamicMap(&[Type::Mark], CLIENTS)),
    set("node-ports", &[PROTOCOL, PORT], SetKind::Verdicts),
    set("node-port-endpoints", &[PROTOCOL, PORT, Type::Mark], SetKind::Map(BACKEND)),
    set("node-port-rejected", &[PROTOCOL, PORT], SetKind::Set),
    set("node-port-sticky", &[PROTOCOL, PORT, Type::Mark], SetKind::Map(BACKEND)),
    set("node-port-affinity", &[ADDRESS, PROTOCOL, PORT], SetKind::DynamicMap(&[Type::Mark], CLIENTS)),
    HAIRPIN,
    CLUSTER_IPS,
];

/// A chain that picks a backend: shared by all frontends that need the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Balancer {
    pub node_port: bool,
    pub backends: u32,
    pub masquerade: bool,
    pub affinity: Option<u32>,
}

impl Balancer {
    /// The chain's name, e.g. `lb-2`, `np-3-masq-sticky-10800`.
    pub fn chain(self) -> String {
        let kind = if self.node_port { "np" } else { "lb" };
        let masquerade = if self.masquerade { "-masq" } else { "" };
        let affinity = self.affinity.map(|s| format!("-sticky-{s}")).unwrap_or_default();
        format!("{kind}-{}{masquerade}{affinity}", self.backends)
    }
}

fn mark() -> Vec<Expr> {
    let bit = MASQUERADE.to_ne_bytes();
    let others = (!MASQUERADE).to_ne_bytes();
    vec![Expr::Mark(R[0]), Expr::Bitwise { reg: R[0], mask: others, xor: bit }, Expr::SetMark(R[0])]
}

/// Loads the frontend's key from register `first` on; returns the register after it.
fn load_key(node_port: bool, first: usize) -> (Vec<Expr>, usize) {
    let mut exprs = Vec::new();
    let mut at = first;
    if !node_port {
        exprs.push(Expr::DestinationAddress(R[at]));
        at += 1;
    }
    exprs.push(Expr::Protocol(R[at]));
    exprs.push(Expr::DestinationPort(R[at + 1]));
    (exprs, at + 2)
}

/// A chain that stands once for all that need it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum SharedChain {
    Balancer(Balancer),
    Guard(Guard),
}

/// Makes a shared chain.
pub(super) fn add_shared(batch: &mut Batch, chain: &SharedChain) {
    match chain {
        SharedChain::Balancer(balancer) => add_balancer(batch, *balancer),
        SharedChain::Guard(guard) => add_guard(batch, guard),
    }
}

/// Who comes from one of the ranges goes on; others are dropped.
fn add_guard(batch: &mut Batch, guard: &Guard) {
    let name = guard.chain();
    batch.add_chain(&Chain::regular(&name));
    for range in guard.ranges() {
        let (network, mask) = (range.network().octets(), range.mask().octets());
        let from = is_in(network, mask, Expr::SourceAddress(R[0]), true);
        batch.add_rule(&name, &Rule::new([from, vec![Expr::Verdict(Verdict::Return)]].concat()));
    }
    batch.add_rule(&name, &Rule::new(vec![Expr::Verdict(Verdict::Drop)]));
}

/// Makes a balancer's chain.
fn add_balancer(batch: &mut Batch, balancer: Balancer) {
    let name = balancer.chain();
    let sets = sets(balancer.node_port);
    batch.add_chain(&Chain::regular(&name));
    if balancer.masquerade {
        batch.add_rule(&name, &Rule::new(mark()));
    }
    let pick = |first: usize| {
        let (mut exprs, at) = load_key(balancer.node_port, first);
        exprs.push(Expr::Random(R[at], balancer.backends));
        exprs.push(Expr::Map { key: R[first], map: sets.endpoints.into(), value: R[at + 1] });
        (exprs, at + 1)
    };
    let Some(seconds) = balancer.affinity else {
        let (mut exprs, at) = pick(0);
        exprs.push(Expr::Dnat(R[at], R[at + 1]));
        batch.add_rule(&name, &Rule::new(exprs));
        return;
    };
    // The chosen backend's address travels in the connection's mark: `nft` cannot print a key that has
    // another lookup's result in it. A client's remembered backend counts only while it is in `sticky`.
    let (key, at) = load_key(balancer.node_port, 1);
    let recall = Expr::Map { key: R[0], map: sets.affinity.into(), value: R[at] };
    let recalled = [vec![Expr::SourceAddress(R[0])], key, vec![recall, Expr::SetConntrackMark(R[at])]];
    let (mut picked, at) = pick(0);
    picked.push(Expr::SetConntrackMark(R[at]));
    for choice in [recalled.concat(), picked] {
        batch.add_rule(&name, &Rule::new(choice));
        batch.add_rule(&name, &Rule::new(send_sticky(balancer.node_port, &sets, seconds)));
    }
}

/// Sends the connection to the backend in its mark, if that is one of the frontend's, and remembers it.
fn send_sticky(node_port: bool, sets: &Sets, seconds: u32) -> Vec<Expr> {
    let (mut exprs, at) = load_key(node_port, 0);
    exprs.push(Expr::ConntrackMark(R[at]));
    exprs.push(Expr::Map { key: R[0], map: sets.sticky.into(), value: R[4] });
    exprs.push(Expr::SourceAddress(R[8]));
    let (key, at) = load_key(node_port, 9);
    exprs.extend(key);
    exprs.push(Expr::ConntrackMark(R[at]));
    let timeout_ms = u64::from(seconds) * 1000;
    exprs.push(Expr::Update { key: R[8], value: R[at], map: sets.affinity.into(), timeout_ms });
    exprs.push(Expr::Dnat(R[4], R[5]));
    exprs
}

fn is_in(network: [u8; 4], mask: [u8; 4], load: Expr, wanted: bool) -> Vec<Expr> {
    let test =
        if wanted { Expr::Equal(R[0], network.to_vec()) } else { Expr::NotEqual(R[0], network.to_vec()) };
    vec![load, Expr::Bitwise { reg: R[0], mask, xor: [0; 4] }, test]
}

fn is_local() -> Vec<Expr> {
    vec![Expr::DestinationType(R[0]), Expr::Equal(R[0], 2u32.to_ne_bytes().to_vec())]
}

fn bits_set(load: Expr, bits: u32) -> Vec<Expr> {
    let none = [0; 4];
    vec![
        load,
        Expr::Bitwise { reg: R[0], mask: bits.to_ne_bytes(), xor: none },
        Expr::NotEqual(R[0], none.to_vec()),
    ]
}

fn refuse(batch: &mut Batch, chain: &str, condition: &[Expr]) {
    let tcp = [Expr::Protocol(R[0]), Expr::Equal(R[0], vec![6]), Expr::RejectTcp];
    batch.add_rule(chain, &Rule::new([condition, &tcp].concat()));
    batch.add_rule(chain, &Rule::new([condition, &[Expr::RejectIcmp]].concat()));
}

fn add_chains(batch: &mut Batch) {
    for name in ["dispatch", "refuse"] {
        batch.add_chain(&Chain::regular(name));
    }
    let bases = [
        ("incoming", ChainKind::Nat, Hook::Prerouting, -100),
        ("own", ChainKind::Nat, Hook::Output, -100),
        ("outgoing", ChainKind::Nat, Hook::Postrouting, 100),
        ("filter-input", ChainKind::Filter, Hook::Input, 0),
        ("filter-forward", ChainKind::Filter, Hook::Forward, 0),
        ("filter-output", ChainKind::Filter, Hook::Output, 0),
    ];
    for (name, kind, hook, priority) in bases {
        batch.add_chain(&Chain::base(name, kind, hook, priority));
    }
}

fn add_translation(batch: &mut Batch, config: &NetworkConfig) -> Result<(), NetworkError> {
    let (pods, services) = (config.pod_range()?, config.service_range()?);
    let octets = |range: crate::Cidr| (range.network().octets(), range.mask().octets());
    let ((pod_net, pod_mask), (service_net, service_mask)) = (octets(pods), octets(services));
    // Who comes from outside to a cluster IP must get the answer through this node.
    let outside = is_in(pod_net, pod_mask, Expr::SourceAddress(R[0]), false);
    let to_service = is_in(service_net, service_mask, Expr::DestinationAddress(R[0]), true);
    batch.add_rule("incoming", &Rule::new([outside, to_service, mark()].concat()));
    for chain in ["incoming", "own"] {
        batch.add_rule(chain, &Rule::new(vec![Expr::Verdict(Verdict::Jump("dispatch".into()))]));
    }
    // The first packet of a connection is looked at here, as translations are made for it alone.
    for map in [GUARDED.name, "services"] {
        let (key, _) = load_key(false, 0);
        batch.add_rule("dispatch", &Rule::new([key, vec![Expr::VerdictMap(R[0], map.into())]].concat()));
    }
    let (key, _) = load_key(true, 0);
    let node_port = vec![Expr::VerdictMap(R[0], "node-ports".into())];
    batch.add_rule("dispatch", &Rule::new([is_local(), key, node_port].concat()));

    let masquerade = || vec![Expr::Masquerade];
    let translated = || bits_set(Expr::ConntrackStatus(R[0]), 0x20);
    let marked = bits_set(Expr::Mark(R[0]), MASQUERADE);
    batch.add_rule("outgoing", &Rule::new([marked, masquerade()].concat()));
    let itself = vec![
        Expr::SourceAddress(R[0]),
        Expr::DestinationAddress(R[1]),
        Expr::InSet(R[0], HAIRPIN.name.into()),
    ];
    batch.add_rule("outgoing", &Rule::new([translated(), itself, masquerade()].concat()));
    let localhost = is_in([127, 0, 0, 0], [255, 0, 0, 0], Expr::SourceAddress(R[0]), true);
    batch.add_rule("outgoing", &Rule::new([translated(), localhost, masquerade()].concat()));
    Ok(())
}

fn add_refusal(batch: &mut Batch, config: &NetworkConfig) -> Result<(), NetworkError> {
    for chain in ["filter-input", "filter-forward", "filter-output"] {
        batch.add_rule(chain, &Rule::new(vec![Expr::Verdict(Verdict::Jump("refuse".into()))]));
    }
    // DNS is served under its address itself, not through a translation.
    let dns = config.dns_address()?.octets().to_vec();
    let return_ = Expr::Verdict(Verdict::Return);
    batch.add_rule(
        "refuse",
        &Rule::new(vec![Expr::DestinationAddress(R[0]), Expr::Equal(R[0], dns), return_]),
    );
    refuse(batch, "refuse", &[Expr::DestinationAddress(R[0]), Expr::InSet(R[0], CLUSTER_IPS.name.into())]);
    let (key, _) = load_key(false, 0);
    refuse(batch, "refuse", &[key, vec![Expr::InSet(R[0], "rejected".into())]].concat());
    let (key, _) = load_key(true, 0);
    let node_port = vec![Expr::InSet(R[0], "node-port-rejected".into())];
    refuse(batch, "refuse", &[is_local(), key, node_port].concat());
    Ok(())
}

/// The whole table with these elements, replacing what is there.
pub(super) fn table(
    config: &NetworkConfig,
    changes: &Changes,
    known: &mut std::collections::HashSet<SharedChain>,
) -> Result<Batch, NetworkError> {
    let mut batch = Batch::new(&config.service_table());
    batch.replace_table();
    SETS.iter().for_each(|spec| batch.add_set(spec));
    add_chains(&mut batch);
    add_translation(&mut batch, config)?;
    add_refusal(&mut batch, config)?;
    known.clear();
    changes.encode(&mut batch, known);
    Ok(batch)
}
