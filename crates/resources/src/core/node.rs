//! Node: a machine that runs pods.

use std::collections::BTreeSet;

use coracle_meta::field::{ErrorKind, ErrorList, Path};
use coracle_meta::names;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeConfigSource, NodeSpec, Taint};
use serde_json::Value;

use crate::address::legacy_cidr;
use crate::check::{about_struct, named, one_of};
use crate::common::{column, or_else, text, wide_column};
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Scope, Strategy, Subresource, Typed, age};
use crate::podspec::defaults::canonical_list;
use crate::podspec::requirements;
use crate::podspec::scheduling::TAINT_EFFECTS;

/// What tables say of both columns of addresses.
const ADDRESSES: &str = "List of addresses reachable to the node. Queried from cloud provider, if available. More info: \
     https://kubernetes.io/docs/reference/node/node-status/#addresses Note: This field is declared \
     as mergeable, but the merge key is not sufficiently unique, which can cause data corruption \
     when it is merged. Callers should instead use a full-replacement patch. See \
     https://pr.k8s.io/79391 for an example. Consumers should assume that addresses can change \
     during the lifetime of a Node. However, there are some exceptions where this may not be \
     possible, such as Pods that inherit a Node's address in its own status or consumers of the \
     downward API (status.hostIP).";

const COLUMNS: &[Column] = &[
    NAME,
    column("Status", "string", "", "The status of the node"),
    column("Roles", "string", "", "The roles of the node"),
    AGE,
    column("Version", "string", "", "Kubelet Version reported by the node."),
    wide_column("Internal-IP", "string", "", ADDRESSES),
    wide_column("External-IP", "string", "", ADDRESSES),
    wide_column(
        "OS-Image",
        "string",
        "",
        "OS Image reported by the node from /etc/os-release (e.g. Debian GNU/Linux 7 (wheezy)).",
    ),
    wide_column(
        "Kernel-Version",
        "string",
        "",
        "Kernel Version reported by the node from 'uname -r' (e.g. 3.16.0-0.bpo.4-amd64).",
    ),
    wide_column(
        "Container-Runtime",
        "string",
        "",
        "ContainerRuntime Version reported by the node through runtime remote API (e.g. \
         containerd://1.4.2).",
    ),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    short_names: &["no"],
    scope: Scope::Cluster,
    subresources: &[Subresource::Proxy, Subresource::Status],
    columns: COLUMNS,
    ..ResourceDef::new::<Node>("node", &Typed::<Node, _>::new(Nodes))
};

struct Nodes;

impl Strategy<Node> for Nodes {
    fn default(&self, obj: &mut Node) {
        let spec = obj.spec.get_or_insert_default();
        let cidr = text(spec.pod_cidr.as_ref()).to_owned();
        match spec.pod_cidrs.as_ref().and_then(|cidrs| cidrs.first()) {
            Some(first) if cidr.is_empty() => spec.pod_cidr = Some(first.clone()),
            Some(first) if *first == cidr => {}
            None if cidr.is_empty() => {}
            _ => spec.pod_cidrs = Some(vec![cidr]),
        }
        let status = obj.status.get_or_insert_default();
        status.node_info.get_or_insert_default();
        status.daemon_endpoints.get_or_insert_default().kubelet_endpoint.get_or_insert_default();
        canonical_list(&mut status.capacity);
        canonical_list(&mut status.allocatable);
        if status.allocatable.is_none() {
            status.allocatable.clone_from(&status.capacity);
        }
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut Node) {
        obj.spec.get_or_insert_default().config_source = None;
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut Node, old: &Node) {
        new.status.clone_from(&old.status);
        if let Some(spec) = new.spec.as_mut().filter(|_| config_source(old).is_none()) {
            spec.config_source = None;
        }
    }

    fn prepare_status_update(&self, _: Context<'_>, new: &mut Node, old: &Node) {
        new.spec.clone_from(&old.spec);
        let configured = old.status.as_ref().is_some_and(|status| status.config.is_some());
        if let Some(status) = new.status.as_mut().filter(|_| !configured) {
            status.config = None;
        }
    }

    fn validate(&self, obj: &Node, errs: &mut ErrorList) {
        if let Some(spec) = &obj.spec {
            taints(spec.taints.as_deref().unwrap_or_default(), errs);
            pod_cidrs(spec.pod_cidrs.as_deref().unwrap_or_default(), errs);
        }
        resources(obj, errs);
    }

    fn validate_update(&self, new: &Node, old: &Node, errs: &mut ErrorList) {
        update(new.spec.as_ref(), old.spec.as_ref(), errs);
        self.validate(new, errs);
        // Upstream looks at taints twice on the way, and clients see both causes.
        taints(new.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default(), errs);
    }

    fn warnings(&self, new: &Node, _: Option<&Node>) -> Vec<String> {
        let mut out = Vec::new();
        let Some(spec) = &new.spec else { return out };
        if spec.config_source.is_some() {
            out.push("spec.configSource: the feature is no longer supported and will not be used".to_owned());
        }
        if !text(spec.external_id.as_ref()).is_empty() {
            out.push("spec.externalID: this field is deprecated, and is unused by Kubernetes".to_owned());
        }
        out
    }

    fn validate_status_update(&self, new: &Node, _: &Node, errs: &mut ErrorList) {
        let status = new.status.as_ref();
        let mut seen = BTreeSet::new();
        for (i, address) in status.iter().flat_map(|s| s.addresses.iter().flatten()).enumerate() {
            if !seen.insert((&address.type_, &address.address)) {
                let shown =
                    [("Type", address.type_.clone().into()), ("Address", address.address.clone().into())];
                let path = Path::new("status").child("addresses").index(i);
                about_struct(errs, ErrorKind::Duplicate, &path, &shown, "");
            }
        }
        resources(new, errs);
    }

    fn row(&self, obj: &Node, now: Timestamp) -> Vec<Value> {
        let info = obj.status.as_ref().and_then(|s| s.node_info.as_ref());
        let kernel = info.map_or(String::new(), |i| {
            if i.kernel_version.is_empty() || i.architecture.is_empty() {
                i.kernel_version.clone()
            } else {
                format!("{} ({})", i.kernel_version, i.architecture)
            }
        });
        vec![
            obj.metadata.name.clone().into(),
            conditions(obj).into(),
            or_else(&roles(obj), "<none>"),
            age(obj.metadata.creation_timestamp.as_ref(), now),
            info.map_or("", |i| &i.kubelet_version).into(),
            address(obj, "InternalIP"),
            address(obj, "ExternalIP"),
            or_else(info.map_or("", |i| &i.os_image), "<unknown>"),
            or_else(&kernel, "<unknown>"),
            or_else(info.map_or("", |i| &i.container_runtime_version), "<unknown>"),
        ]
    }

    fn selectable(&self, obj: &Node) -> Vec<(&'static str, String)> {
        vec![("spec.unschedulable", unschedulable(obj).to_string())]
    }
}

/// What older nodes took their configuration from; new ones cannot.
fn config_source(node: &Node) -> Option<&NodeConfigSource> {
    node.spec.as_ref()?.config_source.as_ref()
}

fn unschedulable(obj: &Node) -> bool {
    obj.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false)
}

fn conditions(obj: &Node) -> String {
    let ready = obj.status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_ == "Ready");
    let ready = match ready {
        Some(c) if c.status == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    if unschedulable(obj) { format!("{ready},SchedulingDisabled") } else { ready.to_owned() }
}

fn roles(obj: &Node) -> String {
    let mut roles = BTreeSet::new();
    for (key, value) in obj.metadata.labels.iter().flatten() {
        match key.strip_prefix("node-role.kubernetes.io/") {
            Some("") => {}
            Some(role) => {
                roles.insert(role);
            }
            None if key == "kubernetes.io/role" && !value.is_empty() => {
                roles.insert(value.as_str());
            }
            None => {}
        }
    }
    roles.into_iter().collect::<Vec<_>>().join(",")
}

fn address(obj: &Node, kind: &str) -> Value {
    let found = obj.status.iter().flat_map(|s| s.addresses.iter().flatten()).find(|a| a.type_ == kind);
    or_else(text(found.map(|a| &a.address)), "<none>")
}

fn taints(taints: &[Taint], errs: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, taint) in taints.iter().enumerate() {
        // Upstream reports taints under metadata.
        let path = Path::new("metadata").child("taints").index(i);
        named(errs, &path.child("key"), &taint.key, names::qualified_name);
        named(errs, &path.child("value"), text(taint.value.as_ref()), names::label_value);
        if taint.effect.is_empty() {
            errs.required(path.child("effect"), "");
        } else {
            one_of(errs, &path.child("effect"), &taint.effect, TAINT_EFFECTS);
        }
        if !seen.insert((&taint.key, &taint.effect)) {
            let shown = [
                ("Key", taint.key.clone().into()),
                ("Value", text(taint.value.as_ref()).into()),
                ("Effect", taint.effect.clone().into()),
                ("TimeAdded", serde_json::to_value(&taint.time_added).unwrap_or_default()),
            ];
            let why = "taints must be unique by key and effect pair";
            about_struct(errs, ErrorKind::Duplicate, &path, &shown, why);
        }
    }
}

fn pod_cidrs(cidrs: &[String], errs: &mut ErrorList) {
    let path = Path::new("spec").child("podCIDRs");
    for (i, cidr) in cidrs.iter().enumerate() {
        named(errs, &path.index(i), cidr, legacy_cidr);
    }
    if cidrs.len() < 2 {
        return;
    }
    for (i, cidr) in cidrs.iter().enumerate() {
        if !names::cidr(cidr).is_empty() {
            let why = format!(
                "invalid PodCIDRs. failed to check with dual stack with error:invalid CIDR[{i}]: <nil> \
                 (invalid CIDR address: {cidr})"
            );
            errs.internal(&path, why);
            break;
        }
    }
    let sixes = cidrs.iter().filter(|cidr| cidr.contains(':')).count();
    if cidrs.len() > 2 || sixes != 1 {
        errs.invalid(path, cidrs.to_vec(), "may specify no more than one CIDR for each IP family");
    }
}

fn resources(obj: &Node, errs: &mut ErrorList) {
    let Some(status) = &obj.status else { return };
    for (field, list) in [("capacity", &status.capacity), ("allocatable", &status.allocatable)] {
        for (name, amount) in list.iter().flatten() {
            let path = Path::new("status").child(field).child(name);
            requirements::quantity(name, amount, &path, errs);
        }
    }
}

fn update(new: Option<&NodeSpec>, old: Option<&NodeSpec>, errs: &mut ErrorList) {
    let (Some(new), Some(old)) = (new, old) else { return };
    let path = Path::new("spec");
    let before = old.pod_cidrs.as_deref().unwrap_or_default();
    let now = new.pod_cidrs.as_deref().unwrap_or_default();
    let changed = match before.len() {
        0 => 0,
        same if same == now.len() => before.iter().zip(now).filter(|(before, now)| before != now).count(),
        _ => 1,
    };
    for _ in 0..changed {
        let why = "node updates may not change podCIDR except from \"\" to valid";
        errs.forbidden(path.child("podCIDRs"), why);
    }
    let before = text(old.provider_id.as_ref());
    if !before.is_empty() && text(new.provider_id.as_ref()) != before {
        let why = "node updates may not change providerID except from \"\" to valid";
        errs.forbidden(path.child("providerID"), why);
    }
    if text(new.external_id.as_ref()) != text(old.external_id.as_ref()) {
        errs.forbidden(path.child("externalID"), "may not be updated");
    }
}
