//! The container configuration: everything that was decided about one container, in the runtime's terms.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use coracle_cri::v1::{ContainerConfig, ContainerMetadata, Device, Image, KeyValue, Mount};
use k8s_openapi::api::core::v1::{Container, Pod};

use super::expand::expand;
use super::{resources, sandbox, security};
use crate::names;
use crate::pod::image_spec;
use crate::volumes::{MountedVolumes, sub_path};

/// Where containers find the pod's hosts file.
const HOSTS: &str = "/etc/hosts";
/// Default place of termination messages.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// What a container configuration is made of.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container.
    pub container: &'a Container,
    /// How often it was restarted before.
    pub attempt: u32,
    /// Its image.
    pub image: &'a Image,
    /// Its environment.
    pub env: &'a [KeyValue],
    /// The pod's volumes.
    pub volumes: &'a MountedVolumes,
    /// Ids of the images that are mounted as volumes, by volume.
    pub image_volumes: &'a BTreeMap<String, String>,
    /// The kubelet's directory.
    pub root: &'a Path,
    /// The pod's directory.
    pub directory: &'a Path,
    /// Memory of the machine in bytes.
    pub memory_capacity: i64,
    /// Id of the container whose process namespace it shares; empty for none.
    pub target: &'a str,
}

/// Builds the configuration; creates the termination message file and subpath directories.
///
/// # Errors
/// Upstream's text for `CreateContainerConfigError`.
pub fn build(i: Inputs<'_>) -> Result<ContainerConfig, String> {
    let c = i.container;
    let lookup: HashMap<&str, &str> = i.env.iter().map(|kv| (kv.key.as_str(), kv.value.as_str())).collect();
    let expanded = |list: Option<&Vec<String>>| -> Vec<String> {
        let one = |text: &String| expand(text, |n| lookup.get(n).map(|v| (*v).to_owned()));
        list.into_iter().flatten().map(one).collect()
    };
    let mut mounts = volume_mounts(i, &lookup)?;
    if !mounts.iter().any(|m| m.container_path == HOSTS) {
        mounts.push(bind(&i.directory.join("etc-hosts"), HOSTS, false));
    }
    let message_path = c.termination_message_path.as_deref().filter(|p| !p.is_empty());
    let message_path = message_path.unwrap_or(TERMINATION_LOG);
    let message_file = termination_file(i.directory, &c.name).map_err(|e| e.to_string())?;
    mounts.push(bind(&message_file, message_path, false));
    let mut labels = sandbox::labels(i.pod);
    labels.insert(names::CONTAINER_NAME.to_owned(), c.name.clone());
    let mut annotations = std::collections::BTreeMap::new();
    let policy = c.termination_message_policy.clone().unwrap_or_else(|| "File".to_owned());
    annotations.insert(names::RESTART_COUNT.to_owned(), i.attempt.to_string());
    annotations.insert(names::HASH.to_owned(), names::container_hash(c));
    annotations.insert(names::MEMORY_REQUEST.to_owned(), crate::resize::memory_request(c));
    annotations.insert(names::MESSAGE_PATH.to_owned(), message_path.to_owned());
    annotations.insert(names::MESSAGE_POLICY.to_owned(), policy);
    annotations.insert(names::GRACE_PERIOD.to_owned(), crate::pod::grace_period(i.pod).to_string());
    let mut security = security::context(i.pod, c, i.image, i.root, i.volumes)?;
    i.target.clone_into(&mut security.pid_target);
    Ok(ContainerConfig {
        metadata: ContainerMetadata { name: c.name.clone(), attempt: i.attempt },
        image: image_spec(c.image.as_deref().unwrap_or("")),
        command: expanded(c.command.as_ref()),
        args: expanded(c.args.as_ref()),
        working_dir: c.working_dir.clone().unwrap_or_default(),
        envs: i.env.to_vec(),
        mounts,
        devices: block_devices(i)?,
        labels,
        annotations,
        log_path: format!("{}/{}.log", c.name, i.attempt),
        stdin: c.stdin == Some(true),
        stdin_once: c.stdin_once == Some(true),
        tty: c.tty == Some(true),
        resources: resources::of_container(i.pod, c, i.memory_capacity),
        security,
        ..ContainerConfig::default()
    })
}

fn bind(host: &Path, container: &str, readonly: bool) -> Mount {
    Mount {
        container_path: container.to_owned(),
        host_path: host.to_string_lossy().into_owned(),
        readonly,
        ..Mount::default()
    }
}

/// A fresh file for a container's last words.
fn termination_file(directory: &Path, container: &str) -> std::io::Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let folder = directory.join("containers").join(container);
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(coracle_stdx::random_hex(4));
    std::fs::write(&path, b"")?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
    Ok(path)
}

/// Persistent volumes that the container uses as devices.
fn block_devices(i: Inputs<'_>) -> Result<Vec<Device>, String> {
    let one = |device: &k8s_openapi::api::core::v1::VolumeDevice| {
        let volume = i.volumes.get(&device.name).ok_or_else(|| {
            format!("cannot find volume {:?} to pass into container {:?}", device.name, i.container.name)
        })?;
        Ok(Device {
            container_path: device.device_path.clone(),
            host_path: volume.path.to_string_lossy().into_owned(),
            permissions: if volume.read_only { "r".to_owned() } else { "mrw".to_owned() },
        })
    };
    i.container.volume_devices.iter().flatten().map(one).collect()
}

fn volume_mounts(i: Inputs<'_>, env: &HashMap<&str, &str>) -> Result<Vec<Mount>, String> {
    let mut mounts = Vec::new();
    for mount in i.container.volume_mounts.iter().flatten() {
        let Some(volume) = i.volumes.get(&mount.name) else {
            return Err(format!(
                "cannot find volume {:?} to mount into container {:?}",
                mount.name, i.container.name
            ));
        };
        let inner = match mount.sub_path_expr.as_deref().filter(|e| !e.is_empty()) {
            Some(expr) => Some(expand_sub_path(expr, env)?),
            None => mount.sub_path.clone().filter(|p| !p.is_empty()),
        };
        let image = i.image_volumes.get(&mount.name).cloned().unwrap_or_default();
        let image_sub_path = inner.clone().filter(|_| !image.is_empty()).unwrap_or_default();
        let host_path = match inner.filter(|_| image.is_empty()) {
            Some(inner) => sub_path::resolve(&volume.path, &inner).map_err(|e| {
                format!(
                    "failed to prepare subPath for volumeMount {:?} of container {:?}: {e}",
                    mount.name, i.container.name
                )
            })?,
            None => volume.path.clone(),
        };
        let path = if mount.mount_path.starts_with('/') {
            mount.mount_path.clone()
        } else {
            format!("/{}", mount.mount_path)
        };
        let read_only = mount.read_only == Some(true) || volume.read_only || !image.is_empty();
        let recursive = matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"));
        mounts.push(Mount {
            image,
            image_sub_path,
            recursive_read_only: mount.read_only == Some(true) && recursive,
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => 1,
                Some("Bidirectional") => 2,
                _ => 0,
            },
            ..bind(&host_path, &path, read_only)
        });
    }
    Ok(mounts)
}

/// `subPathExpr`: every reference must lead somewhere.
fn expand_sub_path(expr: &str, env: &HashMap<&str, &str>) -> Result<String, String> {
    let missing = std::cell::RefCell::new(None);
    let text = expand(expr, |name| {
        let value = env.get(name).map(|v| (*v).to_owned());
        if value.is_none() {
            missing.replace(Some(name.to_owned()));
        }
        value
    });
    match missing.into_inner() {
        Some(name) => Err(format!("missing value for {name:?}")),
        None => Ok(text),
    }
}
