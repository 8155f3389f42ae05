//! Whether this node takes a pod that was bound to it: upstream's last checks, in its order and words. Pure.

use std::collections::BTreeMap;

use coracle_meta::pod::{SAFE_SYSCTLS, containers, requests};
use coracle_meta::quantity::Quantity;
use coracle_meta::selector::{Operator, Requirement};
use k8s_openapi::api::core::v1::{
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration,
};

use crate::pod::{host_network, spec};
use crate::state::Failure;

/// What of the node the checks look at.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `spec.taints`.
    pub taints: Vec<Taint>,
    /// `status.allocatable`.
    pub allocatable: BTreeMap<String, Quantity>,
    /// Whether the kernel has AppArmor.
    pub app_armor: bool,
}

fn refuse(reason: &str, message: String) -> Option<Failure> {
    Some(Failure { reason: reason.to_owned(), message })
}

/// Why the node refuses `pod` beside `others`; the message is without upstream's `Pod was rejected: `.
pub fn refusal(pod: &Pod, others: &[&Pod], node: &NodeView, is_static: bool) -> Option<Failure> {
    sysctls(pod)
        .or_else(|| operating_system(pod))
        .or_else(|| fit(pod, others, node))
        .or_else(|| node_name_and_affinity(pod, node))
        .or_else(|| ports(pod, others))
        .or_else(|| if is_static { None } else { taints(pod, node) })
        .or_else(|| app_armor(pod, node))
}

fn sysctls(pod: &Pod) -> Option<Failure> {
    let s = spec(pod);
    let wanted = s.security_context.as_ref().and_then(|c| c.sysctls.as_ref());
    for sysctl in wanted.into_iter().flatten() {
        let name = normal_name(&sysctl.name);
        let why = if !SAFE_SYSCTLS.contains(&name.as_str()) {
            format!("{name:?} not allowlisted")
        } else if name.starts_with("net.") && host_network(pod) {
            format!("{name:?} not allowed with host Net enabled")
        } else if name.starts_with("kernel.shm") && s.host_ipc == Some(true) {
            format!("{name:?} not allowed with host IPC enabled")
        } else {
            continue;
        };
        return refuse("SysctlForbidden", format!("forbidden sysctl: {why}"));
    }
    None
}

/// `net/ipv4/x` → `net.ipv4.x`; with slashes as separators, dots and slashes trade places.
fn normal_name(name: &str) -> String {
    let first = name.find(['.', '/']).map(|at| &name[at..=at]);
    if first != Some("/") {
        return name.to_owned();
    }
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    name.chars().map(swap).collect()
}

fn operating_system(pod: &Pod) -> Option<Failure> {
    let label = pod.metadata.labels.as_ref().and_then(|l| l.get("kubernetes.io/os"));
    if label.is_some_and(|os| os != "linux") {
        let message = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return refuse("PodOSSelectorNodeLabelDoesNotMatch", message.to_owned());
    }
    if spec(pod).os.as_ref().is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return refuse("PodOSNotSupported", message.to_owned());
    }
    None
}

/// Milli-units of CPU, whole units of all else, as upstream counts.
fn units(name: &str, amount: Quantity) -> i64 {
    if name == "cpu" { i64::try_from(amount.milli()).unwrap_or(i64::MAX) } else { amount.value() }
}

/// Whether a resource is none of Kubernetes' own.
pub fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.split('/').next().is_some_and(|d| d.ends_with("kubernetes.io"))
}

/// Whether the resources are enough.
pub fn fit(pod: &Pod, others: &[&Pod], node: &NodeView) -> Option<Failure> {
    let out_of = |name: &str, requested: i64, used: i64, capacity: i64| {
        refuse(
            &format!("OutOf{name}"),
            format!(
                "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, \
                 capacity: {capacity}"
            ),
        )
    };
    let capacity = |name: &str| node.allocatable.get(name).map_or(0, |q| units(name, *q));
    let count = i64::try_from(others.len()).unwrap_or(i64::MAX);
    if count + 1 > capacity("pods") {
        return out_of("pods", 1, count, capacity("pods"));
    }
    let wanted = requests(pod);
    let taken: Vec<_> = others.iter().map(|p| requests(p)).collect();
    let first = ["cpu", "memory", "ephemeral-storage"];
    let rest = wanted.keys().map(String::as_str).filter(|n| !first.contains(n));
    for name in first.into_iter().chain(rest) {
        let requested = wanted.get(name).map_or(0, |q| units(name, *q));
        if requested == 0 || (is_extended(name) && !node.allocatable.contains_key(name)) {
            continue;
        }
        let used: i64 = taken.iter().filter_map(|t| t.get(name)).map(|q| units(name, *q)).sum();
        if requested > capacity(name) - used {
            return out_of(name, requested, used, capacity(name));
        }
    }
    None
}

fn predicate(name: &str, why: &str) -> Option<Failure> {
    refuse(name, format!("Predicate {name} failed: {why}"))
}

fn node_name_and_affinity(pod: &Pod, node: &NodeView) -> Option<Failure> {
    let s = spec(pod);
    let labels = &node.labels;
    let selected = s.node_selector.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    let required = s
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let wanted = required.is_none_or(|r| selects_node(r, &node.labels, &node.name));
    if selected && wanted {
        return None;
    }
    predicate("NodeAffinity", "node(s) didn't match Pod's node affinity/selector")
}

/// Whether one of the terms fits a node with these labels and this name.
pub fn selects_node(selector: &NodeSelector, labels: &BTreeMap<String, String>, name: &str) -> bool {
    selector.node_selector_terms.iter().any(|t| term(t, labels, name))
}

fn term(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let (expressions, fields) = (term.match_expressions.as_deref(), term.match_fields.as_deref());
    let (expressions, fields) = (expressions.unwrap_or_default(), fields.unwrap_or_default());
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let name = BTreeMap::from([("metadata.name".to_owned(), name.to_owned())]);
    expressions.iter().all(|e| holds(e, labels)) && fields.iter().all(|e| holds(e, &name))
}

fn holds(e: &NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let operator = match e.operator.as_str() {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::GreaterThan,
        "Lt" => Operator::LessThan,
        _ => return false,
    };
    let requirement = Requirement::new(&e.key, operator, e.values.clone().unwrap_or_default());
    requirement.is_ok_and(|r| r.matches(labels))
}

/// Host ports of a pod: address, protocol and port.
fn host_ports(pod: &Pod) -> Vec<(String, String, i32)> {
    let all = spec(pod).containers.iter().chain(
        spec(pod).init_containers.iter().flatten().filter(|c| coracle_meta::pod::is_restartable_init(c)),
    );
    let ports = all.flat_map(|c| c.ports.iter().flatten());
    let wanted = ports.filter(|p| p.host_port.is_some_and(|n| n > 0));
    wanted
        .map(|p| {
            let ip = p.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
            let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".into());
            (ip, protocol, p.host_port.unwrap_or_default())
        })
        .collect()
}

fn ports(pod: &Pod, others: &[&Pod]) -> Option<Failure> {
    let mine = host_ports(pod);
    if mine.is_empty() {
        return None;
    }
    let any = |ip: &str| ip == "0.0.0.0" || ip == "::";
    let clash = |a: &(String, String, i32), b: &(String, String, i32)| {
        a.1 == b.1 && a.2 == b.2 && (a.0 == b.0 || any(&a.0) || any(&b.0))
    };
    let taken: Vec<_> = others.iter().flat_map(|p| host_ports(p)).collect();
    if mine.iter().any(|m| taken.iter().any(|t| clash(m, t))) {
        return predicate("NodePorts", "node(s) didn't have free ports for the requested pod ports");
    }
    None
}

fn tolerates(t: &Toleration, taint: &Taint) -> bool {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (effect, key) = (text(&t.effect), text(&t.key));
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match t.operator.as_deref().unwrap_or("") {
        "Exists" => true,
        "" | "Equal" => !key.is_empty() && text(&t.value) == text(&taint.value),
        _ => false,
    }
}

fn taints(pod: &Pod, node: &NodeView) -> Option<Failure> {
    let tolerations = spec(pod).tolerations.as_deref().unwrap_or_default();
    let mut hard = node.taints.iter().filter(|t| t.effect == "NoExecute");
    if hard.all(|taint| tolerations.iter().any(|t| tolerates(t, taint))) {
        return None;
    }
    predicate("TaintToleration", "node(s) had taints that the pod didn't tolerate")
}

fn app_armor(pod: &Pod, node: &NodeView) -> Option<Failure> {
    if node.app_armor {
        return None;
    }
    let shared = spec(pod).security_context.as_ref().and_then(|c| c.app_armor_profile.as_ref());
    let own = containers(spec(pod))
        .filter_map(|c| c.security_context.as_ref()?.app_armor_profile.as_ref())
        .chain(shared);
    let enforced = own.into_iter().any(|p| p.type_ != "Unconfined");
    if !enforced {
        return None;
    }
    refuse("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::tests::pod;

    fn node() -> NodeView {
        let amounts = [("cpu", "2"), ("memory", "1Gi"), ("pods", "3"), ("ephemeral-storage", "10Gi")];
        NodeView {
            name: "n1".into(),
            labels: BTreeMap::from([("zone".into(), "a".into())]),
            allocatable: amounts.map(|(k, v)| (k.to_owned(), Quantity::parse(v).expect("quantity"))).into(),
            ..NodeView::default()
        }
    }

    #[track_caller]
    fn check(spec: Value, others: &[Value], reason: &str, message: &str) {
        let others: Vec<Pod> = others.iter().map(|s| pod(s.clone())).collect();
        let refs: Vec<&Pod> = others.iter().collect();
        let got = refusal(&pod(spec), &refs, &node(), false);
        let got = got.map(|f| (f.reason, f.message)).unwrap_or_default();
        assert_eq!((got.0.as_str(), got.1.as_str()), (reason, message));
    }

    fn cpu(amount: &str) -> Value {
        json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": amount}}}]})
    }

    #[test]
    fn a_pod_beyond_what_is_left_is_refused_with_the_figures() {
        check(cpu("1500m"), &[], "", "");
        let text = "Node didn't have enough resource: cpu, requested: 1500, used: 600, capacity: 2000";
        check(cpu("1500m"), &[cpu("600m")], "OutOfcpu", text);
        let none = json!({"containers": []});
        let text = "Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3";
        check(none.clone(), &[none.clone(), none.clone(), none], "OutOfpods", text);
        // Resources that the node does not know are somebody else's business.
        check(
            json!({"containers": [{"name": "a", "resources": {"requests": {"x.io/y": "1"}}}]}),
            &[],
            "",
            "",
        );
    }

    #[test]
    fn selectors_ports_and_systems_must_match() {
        let text = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
        check(json!({"containers": [], "nodeSelector": {"zone": "b"}}), &[], "NodeAffinity", text);
        check(json!({"containers": [], "nodeSelector": {"zone": "a"}}), &[], "", "");
        let port = json!({"containers": [{"name": "a", "ports": [{"containerPort": 1, "hostPort": 80}]}]});
        let text = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        check(port.clone(), &[port], "NodePorts", text);
        let text = "Failed to admit pod as the OS field doesn't match node OS";
        check(json!({"containers": [], "os": {"name": "windows"}}), &[], "PodOSNotSupported", text);
    }

    #[test]
    fn unsafe_sysctls_are_forbidden() {
        let with = |name: &str, host: bool| {
            json!({"containers": [], "hostNetwork": host,
                "securityContext": {"sysctls": [{"name": name, "value": "1"}]}})
        };
        check(with("kernel.shm_rmid_forced", false), &[], "", "");
        let text = "forbidden sysctl: \"kernel.msgmax\" not allowlisted";
        check(with("kernel/msgmax", false), &[], "SysctlForbidden", text);
        let text = "forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host Net enabled";
        check(with("net.ipv4.tcp_syncookies", true), &[], "SysctlForbidden", text);
    }

    #[test]
    fn only_no_execute_taints_keep_a_bound_pod_out() {
        let mut tainted = node();
        let taint = |effect: &str| Taint { key: "k".into(), effect: effect.into(), ..Taint::default() };
        tainted.taints = vec![taint("NoSchedule")];
        assert!(refusal(&pod(json!({"containers": []})), &[], &tainted, false).is_none());
        tainted.taints = vec![taint("NoExecute")];
        let got = refusal(&pod(json!({"containers": []})), &[], &tainted, false).expect("refused");
        assert_eq!(got.reason, "TaintToleration");
        assert!(refusal(&pod(json!({"containers": []})), &[], &tainted, true).is_none());
    }
}
