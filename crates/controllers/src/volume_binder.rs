//! Persistent volume binder: gives claims volumes, and tells what became of volumes whose claim is gone.

use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::{Api, Change, EventRecorder, EventType, Index, Informer};
use coracle_meta::volume::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, best_match, class_of_claim, is_bound, mismatch, refers_to,
    selected_node,
};
use coracle_meta::{Reason, Status, pod as podutil};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{
    Node, ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus, Pod,
};
use k8s_openapi::api::storage::v1::StorageClass;

use crate::runtime::{Action, Context, Controller, Descriptor, ObjectKey, Reconciler, name_of};
use crate::volume_protection::pods_by_claim;

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "persistent-volume-binder", workers: 1 };
const COMPONENT: &str = "persistentvolume-controller";
/// Classes of this provisioner have volumes that an administrator makes.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
const PROVISIONER: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Key of volumes: a namespace that no claim can have.
const VOLUME: &str = "/volume";

/// Starts the controller. Its keys are claims, and volumes in a namespace of their own.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let claims = cx.informers.get::<PersistentVolumeClaim>();
    let (volumes, pods) = (cx.informers.get::<PersistentVolume>(), cx.informers.get::<Pod>());
    let (classes, nodes) = (cx.informers.get::<StorageClass>(), cx.informers.get::<Node>());
    let client = cx.client(DESCRIPTOR.name);
    let reconciler = Arc::new(Binder {
        claims: claims.clone(),
        volumes: volumes.clone(),
        classes: classes.clone(),
        nodes: nodes.clone(),
        by_claim: pods.index("claim", pods_by_claim),
        claim_api: client.api(),
        volume_api: client.api(),
        events: cx.recorder_as(DESCRIPTOR.name, COMPONENT),
    });
    let (waiting, classed) = (claims.clone(), claims.clone());
    Controller::new(DESCRIPTOR)
        .watch(&claims, |change, enqueue| {
            let claim = change.object();
            if !matches!(change, Change::Deleted(_)) {
                enqueue(ObjectKey::of(&claim.metadata));
            }
            let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
            if !volume.is_empty() {
                enqueue(ObjectKey::new(VOLUME, &volume));
            }
        })
        .watch(&volumes, move |change, enqueue| {
            let volume = change.object();
            enqueue(ObjectKey::new(VOLUME, name_of(&**volume)));
            if let Some(claim) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) {
                let part = |text: &Option<String>| text.clone().unwrap_or_default();
                enqueue(ObjectKey::new(&part(&claim.namespace), &part(&claim.name)));
            } else {
                wake_unbound(&waiting, enqueue);
            }
        })
        .watch(&classes, move |_, enqueue| wake_unbound(&classed, enqueue))
        .watch(&nodes, |_, _| {})
        .watch(&pods, |change, enqueue| {
            if matches!(change, Change::Added(_)) {
                let pod = change.object();
                let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
                crate::volume_protection::claims_of(pod)
                    .iter()
                    .for_each(|claim| enqueue(ObjectKey::new(namespace, claim)));
            }
        })
        .run(reconciler)
        .boxed()
}

fn wake_unbound(claims: &Informer<PersistentVolumeClaim>, enqueue: &mut dyn FnMut(ObjectKey)) {
    for claim in claims.list().iter().filter(|claim| !is_bound(claim)) {
        enqueue(ObjectKey::of(&claim.metadata));
    }
}

struct Binder {
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    nodes: Informer<Node>,
    by_claim: Index<Pod>,
    claim_api: Api<PersistentVolumeClaim>,
    volume_api: Api<PersistentVolume>,
    events: EventRecorder,
}

/// What a claim needs.
#[derive(Debug)]
enum Need {
    /// To be bound to this volume.
    Bind(Arc<PersistentVolume>),
    /// Nothing but a status: its volume is gone.
    Lost(&'static str, &'static str),
    /// Somebody else makes a volume: for this provisioner.
    Provision(String),
    /// To wait, and to say why.
    Wait(EventType, &'static str, String),
}

fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

impl Binder {
    fn need(&self, claim: &PersistentVolumeClaim) -> Need {
        let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or("");
        if is_bound(claim) {
            let lost = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
            return match self.volumes.get("", named) {
                None => Need::Lost("ClaimLost", lost),
                Some(volume) if claim_ref(&volume).is_none_or(|r| refers_to(r, claim)) => Need::Bind(volume),
                Some(_) => Need::Lost(
                    "ClaimMisbound",
                    "Two claims are bound to the same volume, this one is bound incorrectly",
                ),
            };
        }
        if !named.is_empty() {
            return match self.volumes.get("", named) {
                None => {
                    Need::Wait(EventType::Warning, "FailedBinding", format!("volume {named:?} not found"))
                }
                Some(volume) if claim_ref(&volume).is_some_and(|r| !refers_to(r, claim)) => Need::Wait(
                    EventType::Warning,
                    "FailedBinding",
                    format!("volume {named:?} already bound to a different claim."),
                ),
                Some(volume) => match mismatch(&volume, claim) {
                    None => Need::Bind(volume),
                    Some(why) => {
                        let message = format!("Cannot bind to requested volume {named:?}: {why}");
                        Need::Wait(EventType::Warning, "VolumeMismatch", message)
                    }
                },
            };
        }
        self.need_of_unnamed(claim)
    }

    fn need_of_unnamed(&self, claim: &PersistentVolumeClaim) -> Need {
        let class_name = class_of_claim(claim);
        let class = self.classes.get("", class_name);
        let waits =
            class.as_ref().is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
        let node = selected_node(claim);
        let node = node.and_then(|name| self.nodes.get("", name));
        let place = node
            .as_ref()
            .map(|node| (name_of(&**node).to_owned(), node.metadata.labels.clone().unwrap_or_default()));
        let place = place.as_ref().map(|(name, labels)| (name.as_str(), labels));
        let delayed = waits && selected_node(claim).is_none();
        let found = best_match(&self.volumes.list(), claim, place);
        // Before its first pod has a node, a claim takes only a volume that is kept for it.
        let kept = |volume: &Arc<PersistentVolume>| claim_ref(volume).is_some_and(|r| refers_to(r, claim));
        if let Some(volume) = found.filter(|volume| !delayed || kept(volume)) {
            return Need::Bind(volume);
        }
        if delayed {
            return self.delay(claim);
        }
        if class_name.is_empty() {
            let message = "no persistent volumes available for this claim and no storage class is set";
            return Need::Wait(EventType::Normal, "FailedBinding", message.to_owned());
        }
        match class {
            None => {
                let message = format!("storageclass.storage.k8s.io {class_name:?} not found");
                Need::Wait(EventType::Warning, "ProvisioningFailed", message)
            }
            Some(class) if class.provisioner == NO_PROVISIONER => {
                let message = "no persistent volumes available for this claim and no storage class is set";
                Need::Wait(EventType::Normal, "FailedBinding", message.to_owned())
            }
            Some(class) => Need::Provision(class.provisioner.clone()),
        }
    }

    fn delay(&self, claim: &PersistentVolumeClaim) -> Need {
        let key = format!("{}/{}", claim.metadata.namespace.as_deref().unwrap_or(""), name_of(claim));
        let pods = self.by_claim.get(&key);
        let waiting = pods.iter().find(|pod| podutil::is_active(pod) && podutil::node_name(pod).is_none());
        match waiting {
            Some(pod) => {
                let message = format!("waiting for pod {} to be scheduled", name_of(&**pod));
                Need::Wait(EventType::Normal, "WaitForPodScheduled", message)
            }
            None => {
                let message = "waiting for first consumer to be created before binding";
                Need::Wait(EventType::Normal, "WaitForFirstConsumer", message.to_owned())
            }
        }
    }

    /// Both sides name each other, the volume first; then both say that they are bound.
    async fn bind(
        &self,
        claim: &Arc<PersistentVolumeClaim>,
        volume: &Arc<PersistentVolume>,
    ) -> Result<(), Status> {
        let mut volume = volume.clone();
        let bound = claim_ref(&volume).is_some_and(|r| refers_to(r, claim) && r.uid == claim.metadata.uid);
        if !bound {
            let mut changed = (*volume).clone();
            if claim_ref(&changed).is_none() {
                let annotations = changed.metadata.annotations.get_or_insert_default();
                annotations.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
            }
            changed.spec.get_or_insert_default().claim_ref = Some(coracle_client::event::reference(&**claim));
            volume = self.volume_api.update("", changed).await?;
        }
        volume = self.set_phase(&volume, "Bound", None).await?;
        let namespace = claim.metadata.namespace.as_deref().unwrap_or("");
        let mut claim = claim.clone();
        if !is_bound(&claim) {
            let mut changed = (*claim).clone();
            let spec = changed.spec.get_or_insert_default();
            let annotations = changed.metadata.annotations.get_or_insert_default();
            if spec.volume_name.as_deref().unwrap_or("").is_empty() {
                spec.volume_name.clone_from(&volume.metadata.name);
                annotations.insert(BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
            }
            annotations.insert(BIND_COMPLETED.to_owned(), "yes".to_owned());
            claim = self.claim_api.update(namespace, changed).await?;
        }
        let spec = volume.spec.clone().unwrap_or_default();
        let old = claim.status.clone().unwrap_or_default();
        // Once bound, the size is the resizer's matter.
        let capacity =
            old.capacity.clone().filter(|_| old.phase.as_deref() == Some("Bound")).or(spec.capacity);
        let status = PersistentVolumeClaimStatus {
            phase: Some("Bound".to_owned()),
            access_modes: spec.access_modes,
            capacity,
            ..old
        };
        self.set_status(&claim, status).await
    }

    async fn set_status(
        &self,
        claim: &Arc<PersistentVolumeClaim>,
        status: PersistentVolumeClaimStatus,
    ) -> Result<(), Status> {
        if claim.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let changed = PersistentVolumeClaim { status: Some(status), ..(**claim).clone() };
        let namespace = claim.metadata.namespace.as_deref().unwrap_or("");
        match self.claim_api.update_status(namespace, changed).await {
            Err(status) if status.reason() != Reason::NotFound => Err(status),
            _ => Ok(()),
        }
    }

    async fn set_phase(
        &self,
        volume: &Arc<PersistentVolume>,
        phase: &str,
        message: Option<&str>,
    ) -> Result<Arc<PersistentVolume>, Status> {
        let old = volume.status.clone().unwrap_or_default();
        if old.phase.as_deref() == Some(phase) && old.message.as_deref() == message {
            return Ok(volume.clone());
        }
        let mut changed = (**volume).clone();
        let status = changed.status.get_or_insert_default();
        status.phase = Some(phase.to_owned());
        status.message = message.map(str::to_owned);
        match self.volume_api.update_status("", changed).await {
            Err(status) if status.reason() == Reason::NotFound => Ok(volume.clone()),
            outcome => outcome,
        }
    }

    async fn sync_claim(&self, claim: &Arc<PersistentVolumeClaim>) -> Result<(), Status> {
        let old = claim.status.clone().unwrap_or_default();
        let pending = || PersistentVolumeClaimStatus { phase: Some("Pending".to_owned()), ..old.clone() };
        match self.need(claim) {
            Need::Bind(volume) => self.bind(claim, &volume).await,
            Need::Lost(reason, message) => {
                if old.phase.as_deref() != Some("Lost") {
                    self.events.event(&**claim, EventType::Warning, reason, message);
                }
                let lost = PersistentVolumeClaimStatus {
                    phase: Some("Lost".to_owned()),
                    access_modes: None,
                    capacity: None,
                    ..old
                };
                self.set_status(claim, lost).await
            }
            Need::Wait(kind, reason, message) => {
                self.events.event(&**claim, kind, reason, message);
                self.set_status(claim, pending()).await
            }
            Need::Provision(provisioner) => self.ask_provisioner(claim, &provisioner, pending()).await,
        }
    }

    async fn ask_provisioner(
        &self,
        claim: &Arc<PersistentVolumeClaim>,
        provisioner: &str,
        status: PersistentVolumeClaimStatus,
    ) -> Result<(), Status> {
        let namespace = claim.metadata.namespace.as_deref().unwrap_or("");
        let mut claim = claim.clone();
        let annotations = claim.metadata.annotations.clone().unwrap_or_default();
        if PROVISIONER.iter().any(|key| annotations.get(*key).map(String::as_str) != Some(provisioner)) {
            let mut changed = (*claim).clone();
            let annotations = changed.metadata.annotations.get_or_insert_default();
            for key in PROVISIONER {
                annotations.insert(key.to_owned(), provisioner.to_owned());
            }
            claim = self.claim_api.update(namespace, changed).await?;
        }
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually \
             by the system administrator. If volume creation is delayed, please verify that the provisioner is \
             running and correctly registered."
        );
        self.events.event(&*claim, EventType::Normal, "ExternalProvisioning", message);
        self.set_status(&claim, status).await
    }

    async fn sync_volume(&self, volume: &Arc<PersistentVolume>) -> Result<(), Status> {
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("");
        let Some(reference) = claim_ref(volume) else {
            return self.set_phase(volume, "Available", None).await.map(drop);
        };
        if reference.uid.as_deref().unwrap_or("").is_empty() {
            return self.set_phase(volume, "Available", None).await.map(drop);
        }
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        let (namespace, name) = (part(&reference.namespace), part(&reference.name));
        let same = |claim: &Arc<PersistentVolumeClaim>| refers_to(reference, claim);
        if self.claims.get(&namespace, &name).filter(same).is_some() {
            return Ok(());
        }
        // The claim may be newer than what the informer shows.
        match self.claim_api.get(&namespace, &name).await {
            Ok(claim) if refers_to(reference, &claim) => return Ok(()),
            Err(status) if status.reason() != Reason::NotFound => return Err(status),
            _ => {}
        }
        let mut volume = volume.clone();
        if !matches!(phase, "Released" | "Failed") {
            volume = self.set_phase(&volume, "Released", None).await?;
        }
        self.reclaim(&volume).await
    }

    /// What is to become of a volume whose claim is gone. Volumes that a provisioner made are its matter.
    async fn reclaim(&self, volume: &Arc<PersistentVolume>) -> Result<(), Status> {
        let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
        let annotations = volume.metadata.annotations.as_ref();
        let provisioned = annotations.is_some_and(|annotations| annotations.contains_key(PROVISIONED_BY));
        let csi = volume.spec.as_ref().is_some_and(|spec| spec.csi.is_some());
        let (reason, message) = match policy {
            Some("Delete") if !provisioned && !csi => (
                "VolumeFailedDelete",
                format!(
                    "error getting deleter volume plugin for volume {:?}: no deletable volume plugin matched",
                    name_of(&**volume)
                ),
            ),
            Some("Recycle") => ("VolumeFailedRecycle", "No recycler plugin found for the volume!".to_owned()),
            _ => return Ok(()),
        };
        let failed = volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Failed");
        if !failed {
            self.events.event(&**volume, EventType::Warning, reason, message.clone());
        }
        self.set_phase(volume, "Failed", Some(&message)).await.map(drop)
    }
}

#[async_trait]
impl Reconciler for Binder {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        if key.namespace == VOLUME {
            if let Some(volume) = self.volumes.get("", &key.name) {
                self.sync_volume(&volume).await?;
            }
        } else if let Some(claim) = self.claims.get(&key.namespace, &key.name) {
            self.sync_claim(&claim).await?;
        }
        Ok(Action::AwaitChange)
    }
}

#[cfg(test)]
mod tests {
    use coracle_client::DeleteOptions;
    use coracle_client::testing::FakeTransport;
    use coracle_stdx::Clock;
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{context, eventually};

    #[tokio::test(start_paused = true)]
    async fn a_claim_gets_a_volume_and_the_volume_outlives_it() {
        let fake = FakeTransport::new(Clock::system());
        let client = fake.client();
        let task = tokio::spawn(run(&context(&fake)));
        let (claims, volumes) = (client.api::<PersistentVolumeClaim>(), client.api::<PersistentVolume>());
        let spec = |size: &str| {
            json!({ "capacity": { "storage": size }, "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": { "path": "/tmp/x" } })
        };
        for (name, size) in [("large", "9Gi"), ("fits", "3Gi")] {
            let volume = json!({ "metadata": { "name": name }, "spec": spec(size) });
            volumes.create("", serde_json::from_value(volume).expect("valid")).await.expect("created");
        }
        let claim = json!({ "metadata": { "name": "c" }, "spec": { "accessModes": ["ReadWriteOnce"],
            "resources": { "requests": { "storage": "2Gi" } } } });
        claims.create("ns", serde_json::from_value(claim).expect("valid")).await.expect("created");
        let phase = |name: &'static str| {
            let volumes = volumes.clone();
            async move {
                let volume = volumes.get("", name).await.expect("there");
                volume.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default()
            }
        };
        eventually(|| async {
            let claim = claims.get("ns", "c").await.expect("there");
            let status = claim.status.clone().unwrap_or_default();
            is_bound(&claim) && status.phase.as_deref() == Some("Bound") && status.capacity.is_some()
        })
        .await;
        let volume =
            claims.get("ns", "c").await.expect("there").spec.clone().and_then(|spec| spec.volume_name);
        assert_eq!(volume.as_deref(), Some("fits"));
        eventually(|| async { phase("fits").await == "Bound" && phase("large").await == "Available" }).await;
        claims.delete("ns", "c", DeleteOptions::default()).await.expect("deleted");
        eventually(|| async { phase("fits").await == "Released" }).await;
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_waits_for_its_first_pod_and_for_its_provisioner() {
        let fake = FakeTransport::new(Clock::system());
        let client = fake.client();
        let task = tokio::spawn(run(&context(&fake)));
        let class = json!({ "metadata": { "name": "local-path" }, "provisioner": "rancher.io/local-path",
            "volumeBindingMode": "WaitForFirstConsumer" });
        client
            .api::<StorageClass>()
            .create("", serde_json::from_value(class).expect("valid"))
            .await
            .expect("created");
        let claims = client.api::<PersistentVolumeClaim>();
        let claim = json!({ "metadata": { "name": "c" }, "spec": { "storageClassName": "local-path",
            "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "2Gi" } } } });
        claims.create("ns", serde_json::from_value(claim).expect("valid")).await.expect("created");
        let annotation = || async {
            let claim = claims.get("ns", "c").await.expect("there");
            claim.metadata.annotations.as_ref().and_then(|a| a.get(PROVISIONER[0]).cloned())
        };
        tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        assert_eq!(annotation().await, None, "nobody uses it yet");
        let chosen: Value =
            json!({ "metadata": { "annotations": { "volume.kubernetes.io/selected-node": "n" } } });
        claims.patch("ns", "c", coracle_client::PatchKind::Merge, chosen).await.expect("patched");
        eventually(|| async { annotation().await.as_deref() == Some("rancher.io/local-path") }).await;
        task.abort();
    }
}
