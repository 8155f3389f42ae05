//! Devices of plug-ins (device plugin API v1beta1): plug-ins register on a socket, tell which devices there are and how
//! they do, and say what a container that gets some of them needs. Their resources are the node's extended resources.
//! See <https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/device-plugins/>.

mod book;
mod plugin;
mod registry;
mod resources;
mod state;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use coracle_cri::v1::{ContainerConfig, Device, KeyValue, Mount};
use coracle_meta::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::warn;

pub use registry::{Watched, run};
pub use resources::serve as serve_pod_resources;

use crate::names;
use crate::pod::{Role, containers};
use crate::state::Failure;
use crate::topology_manager::{Hint, HintProvider, Hints, NodeSet};
use book::Book;
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
    /// Memory nodes of the machine.
    nodes: NodeSet,
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
    pub fn open(dir: &Path, nodes: NodeSet) -> Self {
        Self {
            dir: dir.to_owned(),
            book: Mutex::new(state::load(&dir.join(CHECKPOINT))),
            plugins: Mutex::default(),
            changed: watch::Sender::new(0),
            nodes,
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
        std::fs::create_dir_all(&self.dir)?;
        state::save(&self.dir.join(CHECKPOINT), &self.book.lock())
    }

    /// What init containers before `container` have of a resource, and no other container of the pod.
    fn reusable(&self, pod: &Pod, container: &Container, resource: &str) -> BTreeSet<String> {
        let book = self.book.lock();
        let mut again = BTreeSet::new();
        for (c, role) in containers(pod).take_while(|(c, _)| c.name != container.name) {
            let Some(grant) = book.grant(names::uid(pod), &c.name, resource) else { continue };
            match role {
                Role::Init => again.extend(grant.ids.iter().cloned()),
                _ => again.retain(|id| !grant.ids.contains(id)),
            }
        }
        again
    }

    /// Chooses devices for one container and asks the plug-in what it needs with them.
    async fn choose(
        &self,
        pod: &Pod,
        container: &Container,
        (resource, count): (&str, usize),
        near: Option<NodeSet>,
    ) -> Result<(), String> {
        let uid = names::uid(pod);
        let reusable = self.reusable(pod, container, resource);
        let candidates = {
            let book = self.book.lock();
            if book.grant(uid, &container.name, resource).is_some() {
                return Ok(());
            }
            book.candidates(resource, count, &reusable, near)?
        };
        let plugin = self.plugins.lock().get(resource).cloned();
        let plugin = plugin
            .ok_or_else(|| format!("endpoint not found in cache for a registered resource: {resource}"))?;
        let preferred = plugin.prefers(&candidates, count).await?;
        let ids = candidates.pick(count, &preferred);
        let needs = plugin.allocate(&ids).await?;
        self.book.lock().give(uid, &container.name, resource, ids, needs);
        if let Err(error) = self.save() {
            warn!(%error, "who has which devices is not written down");
        }
        Ok(())
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
            config.cdi_devices.extend(needs.cdi_devices.iter().map(|device| device.name.clone()));
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

    fn told(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

#[async_trait]
impl HintProvider for Devices {
    fn hints(&self, pod: &Pod, container: &Container) -> Hints {
        let of = |(resource, count): (String, usize)| {
            let again = self.reusable(pod, container, &resource);
            let book = self.book.lock();
            let own = book.grant(names::uid(pod), &container.name, &resource).map(|g| g.ids.clone());
            let hints = book.hints(&resource, count, own.as_ref(), &again, self.nodes)?;
            Some((resource, hints))
        };
        wanted(container).into_iter().filter_map(of).collect()
    }

    fn pod_hints(&self, pod: &Pod) -> Hints {
        let book = self.book.lock();
        let of = |(resource, amount): (String, Quantity)| {
            let count = usize::try_from(amount.value()).ok().filter(|n| *n > 0)?;
            let given = containers(pod).filter_map(|(c, _)| book.grant(names::uid(pod), &c.name, &resource));
            let own: BTreeSet<String> = given.flat_map(|g| g.ids.clone()).collect();
            let own = Some(&own).filter(|own| !own.is_empty());
            let hints = book.hints(&resource, count, own, &BTreeSet::new(), self.nodes)?;
            Some((resource, hints))
        };
        coracle_meta::pod::limits(pod).into_iter().filter_map(of).collect()
    }

    async fn allocate(&self, pod: &Pod, container: &Container, near: Hint) -> Result<(), Failure> {
        for (resource, count) in wanted(container) {
            if self.book.lock().knows(&resource) {
                let wanted = (resource.as_str(), count);
                self.choose(pod, container, wanted, near.nodes).await.map_err(Failure::unexpected)?;
            }
        }
        Ok(())
    }

    fn forget(&self, uid: &str) {
        if self.book.lock().forget(uid)
            && let Err(error) = self.save()
        {
            warn!(%error, "who has which devices is not written down");
        }
    }
}
