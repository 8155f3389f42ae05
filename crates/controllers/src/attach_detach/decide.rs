//! What is to be attached to a node, what detached, and what the node is told. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;

use crate::runtime::name_of;

const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
const KEEPS_TERMINATED: &str = "volumes.kubernetes.io/keep-terminated-pod-volumes";
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// A node that is not well is waited for this long to let a volume go.
const PATIENCE: SignedDuration = SignedDuration::from_mins(6);

/// A volume that pods of a node use.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// The PersistentVolume.
    pub(super) volume: String,
    pub(super) driver: String,
    handle: String,
    /// Whether it may be attached to one node only.
    is_exclusive: bool,
    pub(super) pods: Vec<Arc<Pod>>,
}

impl Wanted {
    /// A volume that a CSI driver attaches.
    pub(super) fn of(volume: &PersistentVolume) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let csi = spec.csi.as_ref()?;
        let modes = spec.access_modes.as_deref().unwrap_or_default();
        let is_shared = modes.iter().any(|mode| mode == "ReadWriteMany" || mode == "ReadOnlyMany");
        Some(Self {
            volume: name_of(volume).to_owned(),
            driver: csi.driver.clone(),
            handle: csi.volume_handle.clone(),
            is_exclusive: !modes.is_empty() && !is_shared,
            pods: Vec::new(),
        })
    }

    /// What nodes call it.
    pub(super) fn unique(&self) -> String {
        format!("kubernetes.io/csi/{}^{}", self.driver, self.handle)
    }
}

/// The name of the VolumeAttachment of a volume at a node.
pub(super) fn attachment_name(wanted: &Wanted, node: &str) -> String {
    let text = format!("{}{}{node}", wanted.handle, wanted.driver);
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    format!("csi-{}", coracle_stdx::hex(digest.as_ref()))
}

/// Whether this controller made it, by its name: what others made is theirs to delete.
fn is_ours(attachment: &VolumeAttachment) -> bool {
    let digest = name_of(attachment).strip_prefix("csi-");
    digest
        .is_some_and(|d| d.len() == 64 && d.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

fn annotation<'a>(node: &'a Node, name: &str) -> Option<&'a str> {
    node.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// Whether the node leaves attaching to the controller.
pub(super) fn is_managed(node: &Node) -> bool {
    annotation(node, MANAGED) == Some("true")
}

/// Whether volumes of pods that have ended stay attached there.
pub(super) fn keeps_terminated(node: &Node) -> bool {
    annotation(node, KEEPS_TERMINATED) == Some("true")
}

/// What the node was told is attached.
pub(super) fn attached_of(node: &Node) -> BTreeSet<String> {
    let volumes = node.status.iter().flat_map(|status| status.volumes_attached.iter().flatten());
    volumes.map(|volume| volume.name.clone()).collect()
}

fn is_in_use(node: &Node, unique: &str) -> bool {
    node.status.iter().flat_map(|s| s.volumes_in_use.iter().flatten()).any(|used| used == unique)
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn is_out_of_service(node: &Node) -> bool {
    node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).any(|taint| taint.key == OUT_OF_SERVICE)
}

/// All that matters for a node.
pub(super) struct View<'a> {
    pub(super) name: &'a str,
    /// The node, unless it is gone.
    pub(super) node: Option<&'a Node>,
    /// By unique name.
    pub(super) wanted: &'a BTreeMap<String, Wanted>,
    /// The attachments of all nodes.
    pub(super) all: &'a [Arc<VolumeAttachment>],
    /// By attachment of this node: since when no pod uses the volume.
    pub(super) unused_since: HashMap<String, Timestamp>,
    pub(super) now: Timestamp,
}

/// What is done for a node, in this order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Volumes to attach, by unique name.
    pub(super) attach: Vec<String>,
    /// Volumes that another node holds alone.
    pub(super) blocked: Vec<String>,
    /// What the node is told is attached, if that is news.
    pub(super) report: Option<BTreeSet<String>>,
    /// Attachments to delete.
    pub(super) detach: Vec<String>,
    /// When to look again.
    pub(super) again: Option<Duration>,
}

/// What an attachment of this node that no pod needs waits for.
enum Leave {
    Now,
    /// Until the node lets it go, or this long.
    Waits(Option<Duration>),
}

fn leave(view: &View<'_>, attachment: &str, unique: Option<&str>) -> Leave {
    let Some(node) = view.node.filter(|node| !is_out_of_service(node)) else { return Leave::Now };
    if !unique.is_some_and(|unique| is_in_use(node, unique)) {
        return Leave::Now;
    }
    if is_ready(node) {
        return Leave::Waits(None);
    }
    let since = view.unused_since.get(attachment).copied().unwrap_or(view.now);
    match Duration::try_from(PATIENCE - view.now.duration_since(since)) {
        Ok(left) if !left.is_zero() => Leave::Waits(Some(left)),
        _ => Leave::Now,
    }
}

pub(super) fn decide(view: &View<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut attached = BTreeSet::new();
    let names: HashMap<String, &String> =
        view.wanted.iter().map(|(unique, wanted)| (attachment_name(wanted, view.name), unique)).collect();
    let told = view.node.map(attached_of).unwrap_or_default();
    let mut known = BTreeSet::new();
    for attachment in view.all.iter().filter(|a| a.spec.node_name == view.name && is_ours(a)) {
        let name = name_of(&**attachment);
        let is_attached = attachment.status.as_ref().is_some_and(|status| status.attached);
        if let Some(unique) = names.get(name) {
            known.insert((*unique).clone());
            if is_attached {
                attached.insert((*unique).clone());
            }
            continue;
        }
        // The names that the node was told say which of them this attachment is about.
        let unique = told.iter().find(|unique| {
            let parts = unique.strip_prefix("kubernetes.io/csi/").and_then(|rest| rest.split_once('^'));
            parts.is_some_and(|(driver, handle)| name == digest_name(driver, handle, view.name))
        });
        match leave(view, name, unique.map(String::as_str)) {
            Leave::Now if attachment.metadata.deletion_timestamp.is_some() => {}
            Leave::Now => plan.detach.push(name.to_owned()),
            Leave::Waits(left) => {
                attached.extend(unique.cloned());
                plan.again = [plan.again, left].into_iter().flatten().min();
            }
        }
    }
    for (unique, wanted) in view.wanted.iter().filter(|(unique, _)| !known.contains(*unique)) {
        let is_elsewhere = view.all.iter().any(|a| {
            a.spec.node_name != view.name
                && a.spec.source.persistent_volume_name.as_ref() == Some(&wanted.volume)
        });
        let list = if wanted.is_exclusive && is_elsewhere { &mut plan.blocked } else { &mut plan.attach };
        list.push(unique.clone());
    }
    if view.node.is_some() && attached != told {
        plan.report = Some(attached);
    }
    plan
}

fn digest_name(driver: &str, handle: &str, node: &str) -> String {
    let wanted = Wanted {
        volume: String::new(),
        driver: driver.to_owned(),
        handle: handle.to_owned(),
        is_exclusive: false,
        pods: Vec::new(),
    };
    attachment_name(&wanted, node)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const UNIQUE: &str = "kubernetes.io/csi/d^h";

    fn wanted(modes: &Value) -> Wanted {
        let volume = json!({ "metadata": { "name": "pv" },
            "spec": { "accessModes": modes, "csi": { "driver": "d", "volumeHandle": "h" } } });
        Wanted::of(&serde_json::from_value(volume).expect("a volume")).expect("of a driver")
    }

    fn node(status: &Value, taint: &str, ready: &str) -> Node {
        let mut node = json!({ "metadata": { "name": "n" }, "spec": {}, "status": status });
        node["status"]["conditions"] = json!([{ "type": "Ready", "status": ready }]);
        if !taint.is_empty() {
            node["spec"]["taints"] = json!([{ "key": taint, "effect": "NoExecute" }]);
        }
        serde_json::from_value(node).expect("a node")
    }

    fn attachment(node: &str, attached: bool) -> Arc<VolumeAttachment> {
        let name = attachment_name(&wanted(&json!([])), node);
        let attachment = json!({ "metadata": { "name": name }, "status": { "attached": attached },
            "spec": { "attacher": "d", "nodeName": node, "source": { "persistentVolumeName": "pv" } } });
        Arc::new(serde_json::from_value(attachment).expect("an attachment"))
    }

    fn plan(
        node: Option<&Node>,
        wanted: Option<Wanted>,
        all: &[Arc<VolumeAttachment>],
        minutes: i64,
    ) -> Plan {
        let wanted = wanted.into_iter().map(|w| (w.unique(), w)).collect();
        let now = Timestamp::from_second(minutes * 60).expect("in range");
        let unused_since = all.iter().map(|a| (name_of(&**a).to_owned(), Timestamp::UNIX_EPOCH)).collect();
        decide(&View { name: "n", node, wanted: &wanted, all, unused_since, now })
    }

    #[test]
    fn a_volume_of_one_node_waits_until_the_other_has_let_it_go() {
        let (free, held) = (node(&json!({}), "", "True"), [attachment("other", true)]);
        let alone = || Some(wanted(&json!(["ReadWriteOnce"])));
        assert_eq!(plan(Some(&free), alone(), &held, 0).blocked, [UNIQUE]);
        assert_eq!(plan(Some(&free), alone(), &[], 0).attach, [UNIQUE]);
        assert_eq!(plan(Some(&free), Some(wanted(&json!(["ReadWriteMany"]))), &held, 0).attach, [UNIQUE]);
    }

    #[test]
    fn a_node_is_told_what_is_attached_once() {
        let report = |node: &Node, attached| {
            plan(Some(node), Some(wanted(&json!([]))), &[attachment("n", attached)], 0)
        };
        let fresh = node(&json!({}), "", "True");
        assert_eq!(report(&fresh, false), Plan::default(), "not yet attached");
        assert_eq!(report(&fresh, true).report, Some(BTreeSet::from([UNIQUE.to_owned()])));
        let told = node(&json!({ "volumesAttached": [{ "name": UNIQUE, "devicePath": "" }] }), "", "True");
        assert_eq!(report(&told, true), Plan::default());
    }

    #[test]
    fn what_others_attached_stays() {
        let mut others = VolumeAttachment::clone(&attachment("n", true));
        others.metadata.name = Some("made-by-hand".into());
        assert_eq!(plan(Some(&node(&json!({}), "", "True")), None, &[Arc::new(others)], 0), Plan::default());
    }

    #[test]
    fn what_a_node_uses_is_detached_only_when_the_node_is_lost() {
        let status =
            json!({ "volumesAttached": [{ "name": UNIQUE, "devicePath": "" }], "volumesInUse": [UNIQUE] });
        let all = [attachment("n", true)];
        let name = name_of(&*all[0]).to_owned();
        assert_eq!(plan(Some(&node(&status, "", "True")), None, &all, 60), Plan::default(), "it is well");
        let waits = plan(Some(&node(&status, "", "False")), None, &all, 2);
        assert_eq!((waits.detach.len(), waits.again), (0, Some(Duration::from_secs(240))));
        assert_eq!(plan(Some(&node(&status, "", "Unknown")), None, &all, 7).detach, [name.as_str()]);
        assert_eq!(plan(Some(&node(&status, OUT_OF_SERVICE, "True")), None, &all, 0).detach, [name.as_str()]);
        assert_eq!(plan(None, None, &all, 0).detach, [name.as_str()], "it is gone");
        let free = node(&json!({ "volumesAttached": [{ "name": UNIQUE, "devicePath": "" }] }), "", "True");
        let leaves = plan(Some(&free), None, &all, 0);
        assert_eq!((leaves.detach.len(), leaves.report), (1, Some(BTreeSet::new())));
    }
}
