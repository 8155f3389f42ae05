//! NetworkPolicy: who may talk to the pods it selects, and to whom they may talk.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use crate::address::{self, Block};
use crate::check::{each, label_selector, one_of, port, port_or_name};
use crate::common::{column, or_else, selector_text};
use crate::def::{AGE, Column, NAME, ResourceDef, Strategy, Typed, age};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Pod-Selector",
        "string",
        "",
        "podSelector selects the pods to which this NetworkPolicy object applies. The array of rules \
         is applied to any pods selected by this field. An empty selector matches all pods in the \
         policy's namespace. Multiple network policies can select the same set of pods. In this case, \
         the ingress rules for each are combined additively. This field is optional. If it is not \
         specified, it defaults to an empty selector.",
    ),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::Change,
    short_names: &["netpol"],
    columns: COLUMNS,
    has_generation: true,
    ..ResourceDef::new::<NetworkPolicy>("networkpolicy", &Typed::<NetworkPolicy, _>::new(NetworkPolicies))
};

struct NetworkPolicies;

/// A rule of either direction: its peers (with the name of their field) and ports.
struct Rule<'a> {
    path: Path,
    side: &'static str,
    peers: &'a [NetworkPolicyPeer],
    ports: &'a [NetworkPolicyPort],
}

fn rules(spec: &NetworkPolicySpec) -> Vec<Rule<'_>> {
    let path = Path::new("spec");
    let mut out = Vec::new();
    for (i, rule) in spec.ingress.iter().flatten().enumerate() {
        let (peers, ports) = (rule.from.as_deref(), rule.ports.as_deref());
        let (peers, ports) = (peers.unwrap_or_default(), ports.unwrap_or_default());
        out.push(Rule { path: path.child("ingress").index(i), side: "from", peers, ports });
    }
    for (i, rule) in spec.egress.iter().flatten().enumerate() {
        let (peers, ports) = (rule.to.as_deref(), rule.ports.as_deref());
        let (peers, ports) = (peers.unwrap_or_default(), ports.unwrap_or_default());
        out.push(Rule { path: path.child("egress").index(i), side: "to", peers, ports });
    }
    out
}

/// Every address block with its path.
fn blocks(spec: &NetworkPolicySpec) -> Vec<(Path, &str)> {
    let mut out = Vec::new();
    for rule in rules(spec) {
        for (i, peer) in rule.peers.iter().enumerate() {
            let Some(block) = &peer.ip_block else { continue };
            let path = rule.path.child(rule.side).index(i).child("ipBlock");
            out.push((path.child("cidr"), block.cidr.as_str()));
            let except = block.except.iter().flatten().enumerate();
            out.extend(except.map(|(k, text)| (path.child("except").index(k), text.as_str())));
        }
    }
    out
}

impl Strategy<NetworkPolicy> for NetworkPolicies {
    fn default(&self, obj: &mut NetworkPolicy) {
        let spec = obj.spec.get_or_insert_default();
        spec.pod_selector.get_or_insert_default();
        let ingress = spec.ingress.iter_mut().flatten().flat_map(|rule| rule.ports.iter_mut().flatten());
        let egress = spec.egress.iter_mut().flatten().flat_map(|rule| rule.ports.iter_mut().flatten());
        for port in ingress.chain(egress) {
            port.protocol.get_or_insert_with(|| "TCP".to_owned());
        }
        if spec.policy_types.as_ref().is_none_or(Vec::is_empty) {
            let mut types = vec!["Ingress".to_owned()];
            if spec.egress.as_ref().is_some_and(|e| !e.is_empty()) {
                types.push("Egress".to_owned());
            }
            spec.policy_types = Some(types);
        }
    }

    fn validate(&self, obj: &NetworkPolicy, errs: &mut ErrorList) {
        check(obj, &[], errs);
    }

    fn validate_update(&self, new: &NetworkPolicy, old: &NetworkPolicy, errs: &mut ErrorList) {
        let known: Vec<&str> =
            old.spec.as_ref().map(blocks).unwrap_or_default().into_iter().map(|(_, text)| text).collect();
        check(new, &known, errs);
    }

    fn warnings(&self, new: &NetworkPolicy, _: Option<&NetworkPolicy>) -> Vec<String> {
        let found = new.spec.as_ref().map(blocks).unwrap_or_default();
        found.iter().flat_map(|(path, text)| address::cidr_warnings(path, text)).collect()
    }

    fn row(&self, obj: &NetworkPolicy, now: Timestamp) -> Vec<Value> {
        let selector = obj.spec.as_ref().and_then(|s| s.pod_selector.as_ref());
        vec![
            obj.metadata.name.clone().into(),
            or_else(&selector.map(selector_text).unwrap_or_default(), "<none>"),
            age(obj.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}

/// Checks the spec; `known` blocks were there before, and stay allowed.
fn check(obj: &NetworkPolicy, known: &[&str], errs: &mut ErrorList) {
    let Some(spec) = &obj.spec else { return };
    let path = Path::new("spec");
    label_selector(spec.pod_selector.as_ref(), &path.child("podSelector"), errs);
    for rule in rules(spec) {
        for (i, one) in rule.ports.iter().enumerate() {
            policy_port(one, &rule.path.child("ports").index(i), errs);
        }
        for (i, one) in rule.peers.iter().enumerate() {
            peer(one, known, &rule.path.child(rule.side).index(i), errs);
        }
    }
    let types = spec.policy_types.as_deref().unwrap_or_default();
    let at = path.child("policyTypes");
    if types.len() > 2 {
        return errs.invalid(at, types.to_vec(), "may not specify more than two policyTypes");
    }
    for (i, one) in types.iter().enumerate() {
        one_of(errs, &at.index(i), one, &["Ingress", "Egress"]);
    }
}

fn policy_port(one: &NetworkPolicyPort, path: &Path, errs: &mut ErrorList) {
    if let Some(protocol) = &one.protocol {
        one_of(errs, &path.child("protocol"), protocol, &["TCP", "UDP", "SCTP"]);
    }
    let at = path.child("endPort");
    if let Some(value) = &one.port {
        port_or_name(errs, &path.child("port"), value);
    }
    match (&one.port, one.end_port) {
        (_, None) => {}
        (Some(IntOrString::Int(first)), Some(last)) => {
            if last < *first {
                errs.invalid(&at, *first, "must be greater than or equal to `port`");
            }
            port(errs, &at, last);
        }
        (Some(IntOrString::String(_)), Some(last)) => {
            errs.invalid(at, last, "may not be specified when `port` is non-numeric");
        }
        (None, Some(last)) => errs.invalid(at, last, "may not be specified when `port` is not specified"),
    }
}

fn peer(one: &NetworkPolicyPeer, known: &[&str], path: &Path, errs: &mut ErrorList) {
    label_selector(one.pod_selector.as_ref(), &path.child("podSelector"), errs);
    label_selector(one.namespace_selector.as_ref(), &path.child("namespaceSelector"), errs);
    let selects = one.pod_selector.is_some() || one.namespace_selector.is_some();
    match &one.ip_block {
        Some(block) => {
            ip_block(block, known, &path.child("ipBlock"), errs);
            if selects {
                errs.forbidden(path, "may not specify both ipBlock and another peer");
            }
        }
        None if !selects => errs.required(path, "must specify a peer"),
        None => {}
    }
}

fn ip_block(block: &IPBlock, known: &[&str], path: &Path, errs: &mut ErrorList) {
    let legal = |text: &str, path: &Path, errs: &mut ErrorList| {
        if !known.contains(&text) {
            each(errs, path, text, address::legacy_cidr(text));
        }
        Block::parse(text)
    };
    let at = path.child("cidr");
    if block.cidr.is_empty() {
        return errs.required(at, "");
    }
    let Some(whole) = legal(&block.cidr, &at, errs) else { return };
    for (i, text) in block.except.iter().flatten().enumerate() {
        let at = path.child("except").index(i);
        let Some(part) = legal(text, &at, errs) else { continue };
        if !whole.strictly_contains(&part) {
            errs.invalid(at, text.as_str(), "must be a strict subset of `cidr`");
        }
    }
}
