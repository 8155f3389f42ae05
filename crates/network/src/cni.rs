//! Pods connected by CNI plug-ins in place of [`crate::PodLinks`]: the first configuration of a directory is a chain of
//! programs, each told on its standard input what to do. See <https://www.cni.dev/docs/spec/> (0.3.0 to 1.1.0).
//!
//! What a chain was told and what it answered is kept per sandbox, so that DEL undoes exactly what ADD did, though the
//! configuration has changed or the machine was started anew.

mod config;
mod plugin;
mod result;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use coracle_cri::{NetworkError, PodNetwork, PodNetworkRequest};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tracing::{info, warn};

use crate::failed;
use crate::links::Links;
use config::{NetworkList, Version};
use plugin::Command;

/// The pod's interface.
const INTERFACE: &str = "eth0";

/// Where CNI's things are.
#[derive(Clone, Debug)]
pub struct CniConfig {
    /// Configurations: `*.conflist`, `*.conf`, `*.json`; the first by name counts. Read anew for each pod.
    pub conf_dir: PathBuf,
    /// Where plug-ins are looked for, in this order.
    pub bin_dirs: Vec<PathBuf>,
    /// What was told and answered, a file per sandbox; survives reboots, as plug-ins' own records do.
    pub cache: PathBuf,
}

/// A sandbox that a chain has connected, or was about to.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Attachment {
    sandbox_id: String,
    netns: PathBuf,
    args: String,
    capabilities: Map<String, Value>,
    list: NetworkList,
    /// `null` until the chain has answered.
    result: Value,
}

/// Connects sandboxes by CNI plug-ins.
///
/// Guarantees: a failed ADD is followed by DEL; a sandbox that was connected keeps its addresses until
/// [`PodNetwork::teardown`].
#[derive(Debug)]
pub struct CniNetwork {
    config: CniConfig,
}

impl CniNetwork {
    /// Gives back what plug-ins gave to sandboxes that a reboot has ended. The configuration need not be there yet.
    ///
    /// # Errors
    /// The directory of records cannot be made or read.
    pub async fn open(config: CniConfig) -> Result<Arc<Self>, NetworkError> {
        fs::create_dir_all(&config.cache).map_err(failed(format!("make {}", config.cache.display())))?;
        let network = Self { config };
        let (gone, here): (Vec<_>, Vec<_>) =
            network.attachments()?.into_iter().partition(|a| !a.netns.exists());
        for attachment in gone {
            info!(sandbox = attachment.sandbox_id, "giving back what CNI plug-ins gave before a reboot");
            if let Err(error) = network.delete(&attachment).await {
                warn!(sandbox = attachment.sandbox_id, %error, "CNI plug-ins keep what they gave");
            }
        }
        network.collect(&here).await;
        Ok(Arc::new(network))
    }

    fn record(&self, sandbox_id: &str) -> PathBuf {
        self.config.cache.join(format!("{sandbox_id}.json"))
    }

    fn attachment(&self, sandbox_id: &str) -> Option<Attachment> {
        serde_json::from_slice(&fs::read(self.record(sandbox_id)).ok()?).ok()
    }

    fn attachments(&self) -> Result<Vec<Attachment>, NetworkError> {
        let cannot = || failed::<io::Error>(format!("read {}", self.config.cache.display()));
        let entries = fs::read_dir(&self.config.cache).map_err(cannot())?.flatten();
        let ids = entries.filter_map(|e| Some(e.file_name().to_str()?.strip_suffix(".json")?.to_owned()));
        Ok(ids.filter_map(|id| self.attachment(&id)).collect())
    }

    /// Writes a record whole or not at all.
    fn save(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        let path = self.record(&attachment.sandbox_id);
        let text = serde_json::to_vec(attachment).unwrap_or_default();
        let temporary = path.with_extension("new");
        let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &path));
        written.map_err(failed(format!("write {}", path.display())))
    }

    async fn run(
        &self,
        command: Command,
        attachment: &Attachment,
        plugin: &Map<String, Value>,
        previous: &Value,
    ) -> Result<Value, NetworkError> {
        let input = attachment.list.input(plugin, &attachment.capabilities, previous);
        // A namespace that is gone is told as none: what was in it is gone too.
        let netns = if attachment.netns.exists() { attachment.netns.as_path() } else { Path::new("") };
        let about = plugin::About {
            container: &attachment.sandbox_id,
            netns,
            interface: INTERFACE,
            args: &attachment.args,
        };
        plugin::run(&self.config.bin_dirs, command, plugin::kind(plugin), Some(about), &input).await
    }

    /// ADD along the chain: each plug-in is told what the one before it has answered.
    async fn add(&self, attachment: &Attachment) -> Result<Value, NetworkError> {
        let mut result = Value::Null;
        for plugin in &attachment.list.plugins {
            result = self.run(Command::Add, attachment, plugin, &result).await?;
        }
        Ok(result)
    }

    /// CHECK along the chain, where its version has it and the configuration does not forbid it.
    async fn check(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        if attachment.list.version < Version::CHECK || attachment.list.disable_check {
            return Ok(());
        }
        for plugin in &attachment.list.plugins {
            self.run(Command::Check, attachment, plugin, &attachment.result).await?;
        }
        Ok(())
    }

    /// DEL against the chain, last plug-in first; then the record goes.
    async fn delete(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        let old = attachment.list.version < Version::CHECK;
        let previous = if old { &Value::Null } else { &attachment.result };
        for plugin in attachment.list.plugins.iter().rev() {
            self.run(Command::Del, attachment, plugin, previous).await?;
        }
        let path = self.record(&attachment.sandbox_id);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(failed(format!("remove {}", path.display()))(e))
            }
            _ => Ok(()),
        }
    }

    /// GC: plug-ins are told what is still connected, so that they give the rest back.
    async fn collect(&self, here: &[Attachment]) {
        let Ok(list) = NetworkList::load(&self.config.conf_dir) else { return };
        if list.version < Version::GC || list.disable_gc {
            return;
        }
        let valid = |a: &Attachment| json!({ "containerID": a.sandbox_id, "ifname": INTERFACE });
        let valid: Vec<Value> = here.iter().filter(|a| a.list.name == list.name).map(valid).collect();
        for plugin in &list.plugins {
            let mut input = list.input(plugin, &Map::new(), &Value::Null);
            input["cni.dev/valid-attachments"] = valid.clone().into();
            let kind = plugin::kind(plugin);
            if let Err(error) = plugin::run(&self.config.bin_dirs, Command::Gc, kind, None, &input).await {
                warn!(%error, "a CNI plug-in does not collect what nobody uses");
            }
        }
    }

    async fn loopback_up(netns: &Path) -> Result<(), NetworkError> {
        let file =
            fs::File::open(netns).map_err(failed(format!("open network namespace {}", netns.display())))?;
        let inside = Links::inside(&file, netns)?;
        match inside.index("lo").await? {
            Some(index) => inside.up(index).await,
            None => Ok(()),
        }
    }
}

/// `CNI_ARGS`, as all runtimes of Kubernetes tell them.
fn arguments(request: &PodNetworkRequest) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        request.namespace, request.name, request.sandbox_id, request.uid
    )
}

#[async_trait]
impl PodNetwork for CniNetwork {
    async fn setup(&self, request: &PodNetworkRequest) -> Result<Vec<IpAddr>, NetworkError> {
        if let Some(known) = self.attachment(&request.sandbox_id) {
            let connected = !known.result.is_null() && known.netns == request.netns;
            if connected && self.check(&known).await.is_ok() {
                return result::addresses(&known.result, INTERFACE);
            }
            self.delete(&known).await?;
        }
        let list = NetworkList::load(&self.config.conf_dir).map_err(NetworkError::NotReady)?;
        let mut attachment = Attachment {
            sandbox_id: request.sandbox_id.clone(),
            netns: request.netns.clone(),
            args: arguments(request),
            capabilities: config::capabilities(request),
            list,
            result: Value::Null,
        };
        // First, so that a crash between here and the end leaves word of whom to give things back to.
        self.save(&attachment)?;
        let connect = async {
            Self::loopback_up(&request.netns).await?;
            let result = self.add(&attachment).await?;
            let addresses = result::addresses(&result, INTERFACE)?;
            Ok((result, addresses))
        };
        match connect.await {
            Ok((result, addresses)) => {
                attachment.result = result;
                self.save(&attachment)?;
                Ok(addresses)
            }
            Err(error) => {
                if let Err(undo) = self.delete(&attachment).await {
                    warn!(sandbox = request.sandbox_id, error = %undo, "cannot undo a failed ADD");
                }
                Err(error)
            }
        }
    }

    async fn teardown(&self, sandbox_id: &str) -> Result<(), NetworkError> {
        match self.attachment(sandbox_id) {
            Some(attachment) => self.delete(&attachment).await,
            None => Ok(()),
        }
    }

    async fn ready(&self) -> Result<(), String> {
        let list = NetworkList::load(&self.config.conf_dir)
            .map_err(|e| format!("Network plugin returns error: cni plugin not initialized: {e}"))?;
        if list.version < Version::GC {
            return Ok(());
        }
        for plugin in &list.plugins {
            let input = list.input(plugin, &Map::new(), &Value::Null);
            let asked =
                plugin::run(&self.config.bin_dirs, Command::Status, plugin::kind(plugin), None, &input).await;
            asked.map_err(|e| format!("Network plugin returns error: {e}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
