//! What an earlier daemon left: running pods are taken over, half-made things removed.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::CriError;
use coracle_cri::v1::ContainerState;
use tokio::task::JoinSet;

use super::shim_client::{ShimConnection, ask};
use super::{ContainerEntry, ContainerRecord, ContainerStatusNow, Runtime, Sandbox, SandboxRecord, blocking};
use crate::protocol::{Reply, Request};

/// How long a shim may take to tell its state.
const PATIENCE: Duration = Duration::from_secs(5);

/// Fills an empty runtime from the records on disk and the shims that live.
pub(super) async fn adopt(runtime: &Arc<Runtime>) -> Result<(), CriError> {
    let reader = runtime.clone();
    let half_made = blocking(move || read_records(&reader)).await?;
    for sandbox in half_made {
        runtime.dismantle(&sandbox).await;
        blocking(move || crate::files::remove_tree(&sandbox.dir)).await?;
    }
    let sandboxes: Vec<_> = runtime.sandboxes.lock().values().cloned().collect();
    let mut tasks = JoinSet::new();
    for sandbox in sandboxes {
        let runtime = runtime.clone();
        tasks.spawn(async move { adopt_sandbox(&runtime, &sandbox).await });
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Reads what is recorded; sandboxes whose making was interrupted are returned.
fn read_records(runtime: &Runtime) -> io::Result<Vec<Arc<Sandbox>>> {
    let mut half_made = Vec::new();
    for dir in subdirectories(&runtime.config.sandboxes())? {
        let record = crate::files::read_json::<SandboxRecord>(&dir.join("sandbox.json"));
        let id = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match record {
            Ok(record) if record.made => {
                runtime.sandboxes.lock().insert(id, Arc::new(Sandbox::new(dir, record)));
            }
            Ok(record) => half_made.push(Arc::new(Sandbox::new(dir, record))),
            Err(_) => half_made.push(Arc::new(Sandbox::new(dir, SandboxRecord { id, ..Default::default() }))),
        }
    }
    let mut known = HashSet::new();
    for dir in subdirectories(&runtime.config.containers())? {
        let record = crate::files::read_json::<ContainerRecord>(&dir.join("container.json"));
        match record {
            Ok(record) if runtime.sandboxes.lock().contains_key(&record.sandbox_id) => {
                known.insert(record.id.clone());
                let pin = runtime.images.pin(record.all_layers());
                let id = record.id.clone();
                let entry = ContainerEntry::new(record, pin);
                if let Some(exit) = Runtime::recorded_exit(&entry) {
                    runtime.mark_exited(&entry, exit);
                }
                runtime.containers.lock().insert(id, Arc::new(entry));
            }
            Ok(record) => {
                let _ = runtime.clean_up(&record);
            }
            Err(_) => crate::files::remove_tree(&dir)?,
        }
    }
    for dir in subdirectories(&runtime.config.shifted())? {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !known.contains(&name) && !runtime.sandboxes.lock().contains_key(&name) {
            crate::files::remove_mount_points(&dir)?;
        }
    }
    for dir in subdirectories(&runtime.config.root.join("containers"))? {
        if !known.contains(&*dir.file_name().unwrap_or_default().to_string_lossy()) {
            let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
            crate::snapshot::Snapshot::new(&runtime.config.root, &name).remove()?;
        }
    }
    Ok(half_made)
}

fn subdirectories(dir: &PathBuf) -> io::Result<Vec<PathBuf>> {
    Ok(std::fs::read_dir(dir)?.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect())
}

async fn adopt_sandbox(runtime: &Arc<Runtime>, sandbox: &Arc<Sandbox>) {
    if sandbox.state.lock().stopped {
        return;
    }
    let greeting = async {
        // Subscribe first: what happens from here on is pushed; what happened before is in the state.
        let connection = Runtime::subscribe(sandbox).await?;
        let state = ask(&sandbox.dir, Request::State).await?;
        Ok::<(ShimConnection, Reply), io::Error>((connection, state))
    };
    match tokio::time::timeout(PATIENCE, greeting).await {
        Ok(Ok((connection, Reply::State { pause_pid, containers, .. }))) => {
            {
                let mut state = sandbox.state.lock();
                state.pause_pid = pause_pid;
                state.ready = !sandbox.config.namespaces.share_process_namespace
                    || sandbox.config.namespaces.host_pid
                    || pause_pid != 0;
            }
            for (id, seen) in containers {
                let Ok(container) = runtime.container(&id) else { continue };
                match seen.exit {
                    Some(exit) => runtime.mark_exited(&container, exit),
                    None => {
                        *container.now.lock() = ContainerStatusNow {
                            state: ContainerState::Running,
                            pid: seen.pid,
                            started_at: seen.started_at,
                            ..ContainerStatusNow::default()
                        };
                    }
                }
            }
            if let Err(error) = runtime.connect_network(sandbox).await {
                tracing::warn!(sandbox = sandbox.id, %error, "cannot confirm its network");
            }
            runtime.follow(sandbox, connection);
        }
        _ => {
            tracing::warn!(sandbox = sandbox.id, "shim is gone");
            // Containers it had started are found by their processes.
            for container in runtime.containers_of(&sandbox.id) {
                let started = !runtime.hierarchies.processes(&container.record.launch.cgroup).is_empty();
                let library = container.record.launch.library_root.join(&container.record.id);
                let mut now = container.now.lock();
                if now.state == ContainerState::Created && (started || library.exists()) {
                    now.state = ContainerState::Running;
                }
            }
            runtime.abandon(sandbox).await;
        }
    }
}
