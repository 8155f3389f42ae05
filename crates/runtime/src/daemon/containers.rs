//! Containers: create, start, stop, remove.

use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use coracle_cri::CriError;
use coracle_cri::v1::{ContainerConfig, ContainerEventType, ContainerState, PodSandboxConfig};
use nix::sys::signal::Signal;

use super::shim_client::{self, unexpected};
use super::{ContainerEntry, ContainerRecord, ContainerStatusNow, Runtime, Sandbox, blocking};
use crate::capabilities;
use crate::images::{ImageConfig, ImageRecord};
use crate::protocol::{Exit, LaunchSpec, Reply, Request};
use crate::rootfs::{Identity, RootFs};
use crate::snapshot::{Shifted, Snapshot};
use crate::spec::{SpecInput, build, working_dir};

/// Exit code of a container that could not be started, as containerd's.
const START_FAILED: i32 = 128;

impl Runtime {
    pub(super) async fn make_container(
        self: &Arc<Self>,
        sandbox_id: &str,
        config: ContainerConfig,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String, CriError> {
        let sandbox = self.sandbox(sandbox_id)?;
        if !sandbox.state.lock().ready {
            return Err(CriError::FailedPrecondition(format!(
                "sandbox container {sandbox_id:?} is not running"
            )));
        }
        consistent(&config, &sandbox).map_err(CriError::InvalidArgument)?;
        if let Some(device) = config.cdi_devices.first() {
            let text = format!("failed to inject CDI devices: {device:?}: there is no CDI registry");
            return Err(CriError::InvalidArgument(text));
        }
        let image = self.images.find(&config.image.image).ok_or_else(|| {
            CriError::NotFound(format!("failed to resolve image {:?}: not found", config.image.image))
        })?;
        let volumes = self.volume_images(&config)?;
        let volume_layers: Vec<String> = volumes.iter().flat_map(|v| v.layers.clone()).collect();
        let pin = self.images.pin(image.layers.iter().cloned().chain(volume_layers.iter().cloned()));
        let seccomp_profile = seccomp_profile(&config)?;
        let pid_target = self.pid_target(&config)?;
        let id = coracle_stdx::random_hex(32);
        let log_path = match (config.log_path.is_empty(), sandbox_config.log_directory.is_empty()) {
            (true, _) => PathBuf::new(),
            (false, _) => PathBuf::from(&sandbox_config.log_directory).join(&config.log_path),
        };
        let record = ContainerRecord {
            sandbox_id: sandbox_id.to_owned(),
            image_ref: image.digests.iter().next().unwrap_or(&image.id).clone(),
            image_id: image.id.clone(),
            layers: image.layers.clone(),
            volume_layers,
            groups: Vec::new(),
            created_at: self.now_nanos(),
            stop_signal: match config.stop_signal.is_empty() {
                true => stop_signal(&image.config.stop_signal),
                false => stop_signal(&config.stop_signal),
            },
            launch: LaunchSpec {
                id: id.clone(),
                bundle: self.config.containers().join(&id),
                library_root: self.config.library(),
                cgroup: format!("{}/{id}", self.pod_cgroup(sandbox_id, &sandbox.config)),
                log_path,
                tty: config.tty,
                stdin: config.stdin,
                stdin_once: config.stdin_once,
                seccomp: !config.security.seccomp_unconfined && !config.security.privileged,
                seccomp_profile,
                no_new_privs: config.security.no_new_privs,
                host_root: sandbox.config.namespaces.user_namespace.as_ref().map_or(0, |m| m.host_id),
                ..LaunchSpec::default()
            },
            config,
            id: id.clone(),
        };
        let (runtime, owner, image_config) = (self.clone(), sandbox.clone(), image.config.clone());
        let prepared = tokio::task::spawn_blocking(move || {
            let parts = Extras { volumes, pid_target };
            let result = runtime.prepare(&owner, &image_config, record.clone(), &parts);
            if result.is_err() {
                let _ = runtime.clean_up(&record);
            }
            result
        })
        .await
        .map_err(|e| CriError::Internal(e.to_string()))??;
        self.containers.lock().insert(id.clone(), Arc::new(ContainerEntry::new(prepared, pin)));
        self.emit(ContainerEventType::Created, &id, &sandbox);
        Ok(id)
    }

    /// Makes all files, mounts and cgroups a container needs to start.
    fn prepare(
        &self,
        sandbox: &Sandbox,
        image: &ImageConfig,
        mut record: ContainerRecord,
        extras: &Extras,
    ) -> Result<ContainerRecord, CriError> {
        let failed = |e: io::Error| CriError::Internal(format!("failed to create container: {e}"));
        std::fs::create_dir_all(&record.launch.bundle).map_err(failed)?;
        let snapshot = self.snapshot(&record);
        let layers: Vec<PathBuf> = record.layers.iter().map(|l| self.images.layer_dir(l)).collect();
        snapshot.mount(&layers).map_err(failed)?;
        self.mount_images(&snapshot, &mut record.config, &extras.volumes)?;
        let root = RootFs::open(&snapshot.merged()).map_err(failed)?;
        let identity = identity(&root, &record.config, image).map_err(CriError::InvalidArgument)?;
        mapped(&identity, sandbox).map_err(CriError::InvalidArgument)?;
        let directory = working_dir(&record.config, image);
        match record.launch.host_root {
            0 => root.make_dir(directory.as_ref()),
            user => root.make_dir_as(directory.as_ref(), user),
        }
        .map_err(failed)?;
        let capabilities =
            capabilities::wanted(&record.config.security).map_err(CriError::InvalidArgument)?;
        record.launch.capabilities = capabilities::names(&capabilities);
        record.launch.uid = identity.uid;
        record.launch.gid = identity.gid;
        record.groups.clone_from(&identity.groups);
        self.hierarchies.create(&record.launch.cgroup).map_err(failed)?;
        let namespaces = self.namespaces(&sandbox.id);
        let options = &sandbox.config.namespaces;
        let pause_pid = sandbox.state.lock().pause_pid;
        let private = record.config.security.pid_private;
        let shared = (pause_pid != 0 && !options.host_pid && !private).then_some(pause_pid);
        let pid = extras.pid_target.or(shared).map(|pid| format!("/proc/{pid}/ns/pid").into());
        let config = with_shifted_volumes(&snapshot, &record.config).map_err(failed)?;
        let spec = build(&SpecInput {
            config: &config,
            sandbox: &sandbox.config,
            image,
            rootfs: &snapshot.merged(),
            identity: &identity,
            capabilities: &record.launch.capabilities,
            seccomp: record.launch.seccomp,
            cgroup: &record.launch.cgroup,
            hierarchies: &self.hierarchies,
            network: (!options.host_network).then(|| namespaces.network()),
            ipc: (!options.host_ipc).then(|| namespaces.ipc()),
            uts: (!options.host_network).then(|| namespaces.uts()),
            users: options.user_namespace.as_ref().map(|_| namespaces.user()),
            pid,
            sandbox_dir: &self.sandbox_files(sandbox),
        })
        .map_err(CriError::InvalidArgument)?;
        let bundle = &record.launch.bundle;
        crate::files::write_record(&bundle.join("config.json"), &spec).map_err(failed)?;
        crate::files::write_record(&bundle.join("create.json"), &record.launch).map_err(failed)?;
        crate::files::write_record(&bundle.join("container.json"), &record).map_err(failed)?;
        Ok(record)
    }

    /// The files of a container.
    pub(super) fn snapshot(&self, record: &ContainerRecord) -> Snapshot {
        let shifted = (record.launch.host_root != 0).then(|| Shifted {
            root: self.config.root.clone(),
            place: self.config.shifted().join(&record.id),
            users: self.namespaces(&record.sandbox_id).user(),
            host_root: record.launch.host_root,
        });
        Snapshot::new(&self.config.root, &record.id).shifted(shifted)
    }

    /// Takes away what [`Self::prepare`] made.
    pub(super) fn clean_up(&self, record: &ContainerRecord) -> io::Result<()> {
        self.hierarchies.kill(&record.launch.cgroup);
        self.snapshot(record).remove()?;
        self.hierarchies.remove(&record.launch.cgroup);
        crate::files::remove_tree(&record.launch.library_root.join(&record.id))?;
        crate::files::remove_tree(&record.launch.bundle)
    }

    pub(super) async fn launch(self: &Arc<Self>, container: &Arc<ContainerEntry>) -> Result<(), CriError> {
        let _busy = container.busy.lock().await;
        let id = &container.record.id;
        let state = container.now.lock().state;
        if state != ContainerState::Created {
            return Err(CriError::FailedPrecondition(format!("container {id:?} is in {state:?} state")));
        }
        let sandbox = self.sandbox(&container.record.sandbox_id)?;
        let reply = shim_client::ask(&sandbox.dir, Request::Start(container.record.launch.clone())).await;
        match reply {
            Ok(Reply::Started { pid, started_at }) => {
                {
                    let mut now = container.now.lock();
                    // Unless it has ended already.
                    if now.state == ContainerState::Created {
                        *now = ContainerStatusNow {
                            state: ContainerState::Running,
                            pid,
                            started_at,
                            ..ContainerStatusNow::default()
                        };
                    }
                }
                self.emit(ContainerEventType::Started, id, &sandbox);
                Ok(())
            }
            Ok(Reply::Failed { message }) => {
                let message = format!(
                    "failed to create task: OCI runtime create failed: unable to start container process: \
                     {message}: unknown"
                );
                let exit = Exit {
                    code: START_FAILED,
                    finished_at: self.now_nanos(),
                    reason: "StartError".into(),
                    message: message.clone(),
                    ..Exit::default()
                };
                let (path, written) = (container.record.launch.bundle.join("exit.json"), exit.clone());
                blocking(move || crate::files::write_json(&path, &written)).await?;
                self.mark_exited(container, exit);
                Err(CriError::Internal(message))
            }
            other => Err(unexpected("failed to start container", other)),
        }
    }

    pub(super) async fn end_container(
        self: &Arc<Self>,
        container: &Arc<ContainerEntry>,
        timeout: i64,
    ) -> Result<(), CriError> {
        if container.now.lock().state != ContainerState::Running {
            return Ok(());
        }
        let sandbox = self.sandbox(&container.record.sandbox_id)?;
        let request = Request::Stop {
            id: container.record.id.clone(),
            signal: container.record.stop_signal,
            grace_ms: u64::try_from(timeout).unwrap_or(0).saturating_mul(1000),
        };
        match shim_client::ask(&sandbox.dir, request).await {
            Ok(Reply::Done | Reply::Unknown) => {}
            // The one who follows the shim sorts it out.
            Err(_) if container.now.lock().state != ContainerState::Running => {}
            Err(_) => self.abandon(&sandbox).await,
            other => return Err(unexpected("failed to stop container", other)),
        }
        if let Some(exit) = Self::recorded_exit(container) {
            self.mark_exited(container, exit);
        }
        Ok(())
    }

    pub(super) async fn delete_container(
        self: &Arc<Self>,
        container: &Arc<ContainerEntry>,
    ) -> Result<(), CriError> {
        self.end_container(container, 0).await?;
        let _busy = container.busy.lock().await;
        let id = container.record.id.clone();
        if !self.containers.lock().contains_key(&id) {
            return Ok(());
        }
        let sandbox = self.sandbox(&container.record.sandbox_id)?;
        if !sandbox.state.lock().stopped {
            // A shim that is gone has nothing to forget.
            let _ = shim_client::ask(&sandbox.dir, Request::Forget { id: id.clone() }).await;
        }
        let (runtime, owned) = (self.clone(), container.clone());
        blocking(move || runtime.clean_up(&owned.record)).await?;
        self.containers.lock().remove(&id);
        self.emit(ContainerEventType::Deleted, &id, &sandbox);
        Ok(())
    }
}

/// Refuses what contradicts itself.
fn consistent(config: &ContainerConfig, sandbox: &Sandbox) -> Result<(), String> {
    let security = &config.security;
    if let Some(group) = security.run_as_group
        && security.run_as_user.is_none()
        && security.run_as_username.is_empty()
    {
        return Err(format!(
            "failed to generate user string: user group \"{group}\" is specified without user"
        ));
    }
    for mount in &config.mounts {
        let path = &mount.container_path;
        if mount.recursive_read_only && !mount.readonly {
            return Err(format!("mount {path:?}: recursive read-only needs a read-only mount"));
        }
        if mount.recursive_read_only && mount.propagation != 0 {
            return Err(format!("mount {path:?}: recursive read-only needs private propagation"));
        }
        if !mount.image.is_empty() && !mount.readonly {
            return Err(format!("mount {path:?}: an image can only be mounted read-only"));
        }
        if mount.id_mapping.is_some() && mount.id_mapping != sandbox.config.namespaces.user_namespace {
            return Err(format!("mount {path:?}: its users are mapped in another way than those of the pod"));
        }
    }
    Ok(())
}

/// Refuses users and groups that the pod's user namespace does not have.
fn mapped(identity: &Identity, sandbox: &Sandbox) -> Result<(), String> {
    let Some(mapping) = &sandbox.config.namespaces.user_namespace else { return Ok(()) };
    let all = [identity.uid, identity.gid].into_iter().chain(identity.groups.iter().copied());
    match all.max().filter(|id| *id >= mapping.length) {
        Some(id) => Err(format!("id {id} is not mapped in the pod's user namespace")),
        None => Ok(()),
    }
}

/// The configuration with the volumes where the container's users see them.
fn with_shifted_volumes(snapshot: &Snapshot, config: &ContainerConfig) -> io::Result<ContainerConfig> {
    let mut config = config.clone();
    for (number, mount) in config.mounts.iter_mut().enumerate() {
        if mount.id_mapping.is_none() || !mount.image.is_empty() {
            continue;
        }
        crate::spec::make_source(mount).map_err(io::Error::other)?;
        if let Some(place) = snapshot.volume(number, mount.host_path.as_ref())? {
            mount.host_path = place.to_string_lossy().into_owned();
        }
    }
    Ok(config)
}

/// Who the container runs as.
fn identity(root: &RootFs, config: &ContainerConfig, image: &ImageConfig) -> Result<Identity, String> {
    let security = &config.security;
    let number = |v: i64| u32::try_from(v).map_err(|_| format!("id {v} is out of range"));
    let group = security.run_as_group.map(number).transpose()?;
    let extra = security.supplemental_groups.iter().map(|g| number(*g)).collect::<Result<Vec<_>, _>>()?;
    let user = match security.run_as_user {
        Some(uid) => number(uid)?.to_string(),
        None if !security.run_as_username.is_empty() => security.run_as_username.clone(),
        None => image.user.clone(),
    };
    root.identity(&user, group, &extra, security.supplemental_groups_strict)
}

/// What a container is made of beyond its own image.
struct Extras {
    /// Images mounted as volumes, in the order of the mounts that name them.
    volumes: Vec<Arc<ImageRecord>>,
    /// The process whose namespace it joins.
    pid_target: Option<i32>,
}

/// The text of the profile that a container asks for.
fn seccomp_profile(config: &ContainerConfig) -> Result<String, CriError> {
    let path = &config.security.seccomp_localhost;
    if path.is_empty() || config.security.privileged {
        return Ok(String::new());
    }
    let text = std::fs::read_to_string(path).map_err(|e| {
        let why = if e.kind() == io::ErrorKind::NotFound {
            "no such file or directory".into()
        } else {
            e.to_string()
        };
        CriError::Internal(format!(
            "failed to generate seccomp spec opts: cannot load seccomp profile {path:?}: open {path}: {why}"
        ))
    })?;
    crate::seccomp_profile::filters(&text, &Default::default())
        .map_err(|e| CriError::Internal(format!("failed to generate seccomp spec opts: {e}")))?;
    Ok(text)
}

impl Runtime {
    /// The images that a container's volumes name.
    fn volume_images(&self, config: &ContainerConfig) -> Result<Vec<Arc<ImageRecord>>, CriError> {
        let named = config.mounts.iter().filter(|m| !m.image.is_empty());
        named
            .map(|m| {
                self.images.find(&m.image).ok_or_else(|| {
                    CriError::NotFound(format!(
                        "failed to resolve image {:?} of a volume: not found",
                        m.image
                    ))
                })
            })
            .collect()
    }

    /// The first process of the container whose namespace is wanted.
    fn pid_target(&self, config: &ContainerConfig) -> Result<Option<i32>, CriError> {
        let target = &config.security.pid_target;
        if target.is_empty() {
            return Ok(None);
        }
        let pid = self.container(target).map(|c| c.now.lock().pid).unwrap_or(0);
        if pid != 0 {
            return Ok(Some(pid));
        }
        Err(CriError::FailedPrecondition(format!(
            "invalid target container: container {target:?} is not running"
        )))
    }

    /// Mounts the images of volumes and lets the mounts point at them.
    fn mount_images(
        &self,
        snapshot: &Snapshot,
        config: &mut ContainerConfig,
        images: &[Arc<ImageRecord>],
    ) -> Result<(), CriError> {
        let failed = |e: io::Error| CriError::Internal(format!("failed to mount image volume: {e}"));
        let wanted = config.mounts.iter_mut().filter(|m| !m.image.is_empty());
        for (number, (mount, image)) in wanted.zip(images).enumerate() {
            let layers: Vec<PathBuf> = image.layers.iter().map(|l| self.images.layer_dir(l)).collect();
            let view = snapshot.view(number, &layers).map_err(failed)?;
            let place = crate::rootfs::inside(&view, &mount.image_sub_path).map_err(|_| {
                CriError::Internal(format!(
                    "failed to mount image volume: sub path {:?} does not exist in the image",
                    mount.image_sub_path
                ))
            })?;
            mount.host_path = place.to_string_lossy().into_owned();
            mount.image_ref = image.id.clone();
        }
        Ok(())
    }
}

/// An image's stop signal: a name with or without `SIG`, or a number.
fn stop_signal(text: &str) -> i32 {
    let name = text.trim().to_ascii_uppercase();
    let short = name.strip_prefix("SIG").unwrap_or(&name);
    let known = || Signal::from_str(&format!("SIG{short}")).ok().map(|s| s as i32);
    name.parse().ok().or_else(|| real_time(short)).or_else(known).unwrap_or(libc::SIGTERM)
}

/// A real-time signal by name: `RTMIN`, `RTMIN+3`, `RTMAX-1`, `RTMAX`.
fn real_time(name: &str) -> Option<i32> {
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => libc::SIGRTMIN(),
        (Some(rest), _) => libc::SIGRTMIN() + rest.strip_prefix('+')?.parse::<u8>().map(i32::from).ok()?,
        (_, Some("")) => libc::SIGRTMAX(),
        (_, Some(rest)) => libc::SIGRTMAX() - rest.strip_prefix('-')?.parse::<u8>().map(i32::from).ok()?,
        (None, None) => return None,
    };
    (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signal_is_read_by_name_or_number() {
        assert_eq!(stop_signal("SIGQUIT"), libc::SIGQUIT);
        assert_eq!(stop_signal("int"), libc::SIGINT);
        assert_eq!(stop_signal("SIGRTMIN+3"), 37);
        assert_eq!(stop_signal("RTMAX-1"), 63);
        assert_eq!(stop_signal("SIGRTMIN+99"), libc::SIGTERM);
        assert_eq!(stop_signal("9"), libc::SIGKILL);
        assert_eq!(stop_signal(""), libc::SIGTERM);
    }
}
