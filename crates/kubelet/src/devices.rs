//! Devices of plug-ins (device plugin API v1beta1): plug-ins register on a socket, tell which
//! devices there are and how they
//! do, and say what a container that gets some of them needs. Their resources are the node's extended resources.
//! See <https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/>.

mod book;
mod plugin;
mod registry;
mod resources;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_cri::v1::{ContainerConfig, Device, KeyValue, Mount};
use coracle_meta::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::warn;

pub use registry::run;
pub use resources::serve as serve_pod_resources;

use crate::names;
use crate::pod::Role;
use crate::state::Failure;
use book::{Book, Grant};
use plugin::Plugin;

/// File in which it is kept who has which devices.
const CHECKPOINT: &str = "kubelet_internal_checkpoint";

/// Which devices there are, and who has them.
pub struct Devices {
    dir: PathBuf,
    book: Mutex<Book>,
    plugins: Mutex<BTreeMap<String, Arc<Plugin>>>,
    /// Counts changes of what there is.
    changed: watch::Sender<u64>,
    /// Devices are chosen for one pod at a time.
    choosing: tokio::sync::Mutex<()>,
}

/// Requests for extended resources of a container, in whole devices.
fn wanted(container: &Container) -> BTreeMap<String, usize> {
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    let extended = limits.into_iter().flatten().filter(|(name, _)| crate::admit::is_extended(name));
    let count = |(name, amount): (&String, _)| {
        let count = usize::try_from(Quantity::from_api(amount).value()).ok().filter(|n| *n > 0)?;
        Some((name.clone(), count))
    };
    extended.filter_map(count).collect()
}

impl Devices {
    /// What an earlier kubelet wrote down in `dir`; its plug-ins have to register again.
    pub fn open(dir: &Path) -> Self {
        let text = std::fs::read(dir.join(CHECKPOINT)).unwrap_or_default();
        Self {
            dir: dir.to_owned(),
            book: Mutex::new(serde_json::from_slice(&text).unwrap_or_default()),
            plugins: Mutex::default(),
            changed: watch::Sender::new(0),
            choosing: tokio::sync::Mutex::default(),
        }
    }

    /// Completes when there are other devices than before.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Devices by resource: how many there are, and how many of them are healthy.
    pub fn amounts(&self) -> BTreeMap<String, (Quantity, Quantity)> {
        let amount = |n: usize| Quantity::from(i64::try_from(n).unwrap_or(i64::MAX));
        let counts = self.book.lock().counts();
        counts.into_iter().map(|(name, (all, healthy))| (name, (amount(all), amount(healthy)))).collect()
    }

    fn save(&self) -> std::io::Result<()> {
        let text = serde_json::to_vec(&*self.book.lock()).map_err(std::io::Error::other)?;
        std::fs::create_dir_all(&self.dir)?;
        let temporary = self.dir.join(format!("{CHECKPOINT}.tmp"));
        std::fs::write(&temporary, text)?;
        std::fs::rename(temporary, self.dir.join(CHECKPOINT))
    }

    /// Gives a pod its devices, once; a pod that has them already keeps them.
    ///
    /// # Errors
    /// Upstream's refusal of a pod for which there are not enough healthy devices, or whose plug-in refused.
    pub async fn allocate(&self, pod: &Pod) -> Result<(), Failure> {
        if !crate::pod::containers(pod).any(|(c, _)| self.book.lock().knows_any(wanted(c).keys())) {
            return Ok(());
        }
        let _choosing = self.choosing.lock().await;
        let given = self.allocate_all(pod).await;
        if given.is_err() {
            self.book.lock().forget(names::uid(pod));
        }
        if let Err(error) = self.save() {
            warn!(%error, "who has which devices is not written down");
        }
        given.map_err(|why| Failure {
            reason: "UnexpectedAdmissionError".to_owned(),
            message: format!("Allocate failed due to {why}, which is unexpected"),
        })
    }

    async fn allocate_all(&self, pod: &Pod) -> Result<(), String> {
        let uid = names::uid(pod);
        // What init containers had is free again for the containers after them.
        let mut reusable: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (container, role) in crate::pod::containers(pod).filter(|(_, role)| *role != Role::Ephemeral) {
            for (resource, count) in wanted(container) {
                if !self.book.lock().knows_any([&resource]) {
                    continue;
                }
                let again = reusable.entry(resource.clone()).or_default();
                let ids = self.choose(uid, &container.name, &resource, count, again).await?;
                match role {
                    Role::Init => again.extend(ids),
                    _ => again.retain(|id| !ids.contains(id)),
                }
            }
        }
        Ok(())
    }

    /// Chooses devices for one container and asks the plug-in what it needs with them; their ids.
    async fn choose(
        &self,
        uid: &str,
        container: &str,
        resource: &str,
        count: usize,
        reusable: &BTreeSet<String>,
    ) -> Result<BTreeSet<String>, String> {
        let candidates = {
            let book = self.book.lock();
            if let Some(grant) = book.grant(uid, container, resource) {
                return Ok(grant.ids.clone());
            }
            book.candidates(resource, count, reusable)?
        };
        let plugin = self.plugins.lock().get(resource).cloned();
        let plugin = plugin
            .ok_or_else(|| format!("endpoint not found in cache for a registered resource: {resource}"))?;
        let preferred = plugin.prefers(&candidates, count).await?;
        let ids = candidates.pick(count, &preferred);
        let needs = plugin.allocate(&ids).await?;
        let grant = Grant { ids: ids.clone(), needs };
        self.book.lock().give(uid, container, resource, grant);
        Ok(ids)
    }

    /// Adds to a container's configuration what its devices need.
    pub fn equip(&self, uid: &str, config: &mut ContainerConfig) {
        let book = self.book.lock();
        let mut envs = Vec::new();
        for grant in book.grants(uid, &config.metadata.name) {
            let needs = &grant.needs;
            let env = |(key, value): (&String, &String)| KeyValue { key: key.clone(), value: value.clone() };
            envs.extend(needs.envs.iter().map(env));
            config.mounts.extend(needs.mounts.iter().map(|m| Mount {
                container_path: m.container_path.clone(),
                host_path: m.host_path.clone(),
                readonly: m.read_only,
                ..Mount::default()
            }));
            config.devices.extend(needs.devices.iter().map(|d| Device {
                container_path: d.container_path.clone(),
                host_path: d.host_path.clone(),
                permissions: d.permissions.clone(),
            }));
            config.annotations.extend(needs.annotations.clone());
            config.cdi_devices.extend(needs.cdi_devices.clone());
        }
        // What the pod says itself comes after, and so counts.
        envs.append(&mut config.envs);
        config.envs = envs;
    }

    /// Tells the plug-ins that want to know it that a container is about to start.
    ///
    /// # Errors
    /// A plug-in's refusal.
    pub async fn before_start(&self, uid: &str, container: &str) -> Result<(), String> {
        let given = self.book.lock().given(uid, container);
        for (resource, ids) in given {
            let plugin = self.plugins.lock().get(&resource).cloned();
            if let Some(plugin) = plugin {
                plugin.before_start(&ids).await?;
            }
        }
        Ok(())
    }

    /// A pod needs its devices no more.
    pub fn forget(&self, uid: &str) {
        if self.book.lock().forget(uid)
            && let Err(error) = self.save()
        {
            warn!(%error, "who has which devices is not written down");
        }
    }

    fn told(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}
