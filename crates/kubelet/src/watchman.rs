//! Looks at the node's resources every ten seconds, as upstream does: evicts pods, and collects images that nobody
//! uses when the disk fills up. What is decided stands in `evict` and `image_gc`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::v1::{ContainerFilter, ContainerState, Image};
use jiff::Timestamp;
use tracing::{info, warn};

use crate::context::Context;
use crate::evict::{self, ContainerUse, Left, PodUse, Short};
use crate::image_gc;
use crate::manager::Pods;
use crate::names;
use crate::pod::image_spec;
use crate::server::figures::{self, Disk, Rates};
use crate::state::Failure;
use crate::usage;
use crate::worker::{Handle, Message};

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(10);
/// Looks between two collections of images.
const COLLECT: u32 = 30;

/// Runs until dropped.
pub async fn run(cx: Arc<Context>, pods: Pods) {
    let rates = Rates::default();
    let mut used: HashMap<String, Timestamp> = HashMap::new();
    let mut round = 0;
    loop {
        tokio::time::sleep(LOOK).await;
        note_images(&cx, &mut used).await;
        let node = figures::node(&cx, &rates);
        let left = Left {
            memory: node.memory_available,
            disk: node.disk.available,
            disk_capacity: node.disk.capacity,
            inodes: node.disk.inodes_free,
            inodes_capacity: node.disk.inodes,
            pids: node.processes.1.saturating_sub(node.processes.0),
            pids_capacity: node.processes.1,
        };
        let short = evict::shortages(&left, &cx.config.eviction);
        cx.pressures.lock().note(&short, cx.clock.now());
        round += 1;
        let disk = short.iter().any(|(what, ..)| matches!(what, Short::Disk | Short::Inodes));
        if disk || round % COLLECT == 0 {
            collect_images(&cx, &used, disk).await;
        }
        enforce(&cx, &pods, &short).await;
    }
}

/// Whether anything of the pod limits its disk.
fn limits_disk(handle: &Handle) -> bool {
    let pod = &handle.pod;
    let volumes = crate::pod::spec(pod).volumes.iter().flatten();
    coracle_meta::pod::limits(pod).contains_key("ephemeral-storage")
        || volumes.into_iter().any(|v| v.empty_dir.as_ref().is_some_and(|e| e.size_limit.is_some()))
}

async fn use_of(cx: &Context, handle: &Handle) -> Option<PodUse> {
    let pod = handle.pod.clone();
    let seen = handle.observed.borrow().clone();
    let sandbox = seen.sandboxes.first().filter(|s| s.ready)?;
    let whole = cx.runtime.pod_sandbox_stats(&sandbox.id).await.ok()?;
    let folder = crate::start::log_directory(cx, &pod);
    let mut inodes = 0;
    let mut containers = Vec::new();
    for c in seen.containers.iter().filter(|c| c.state == ContainerState::Running) {
        let Ok(stats) = cx.runtime.container_stats(&c.id).await else { continue };
        let logs = usage::logs(&folder.join(&c.metadata.name));
        inodes += stats.writable_layer_inodes;
        containers.push(ContainerUse {
            name: c.metadata.name.clone(),
            memory: stats.usage.memory_working_set_bytes,
            disk: stats.writable_layer_bytes + logs,
        });
    }
    let (directory, described) = (cx.directory(names::uid(&pod)), pod.clone());
    let volumes = tokio::task::spawn_blocking(move || usage::volumes(&directory, &described)).await.ok()?;
    let local: u64 = volumes.iter().filter(|v| v.local).map(|v| v.bytes).sum();
    inodes += volumes.iter().filter(|v| v.local).map(|v| v.inodes).sum::<u64>();
    Some(PodUse {
        memory: whole.usage.memory_working_set_bytes,
        disk: containers.iter().map(|c| c.disk).sum::<u64>() + local,
        inodes,
        processes: whole.usage.process_count,
        containers,
        volumes: volumes.into_iter().map(|v| (v.name, v.bytes, v.limit)).collect(),
        pod,
    })
}

/// Evicts pods over their own limits; else, when the node is short, one pod.
async fn enforce(cx: &Context, pods: &Pods, short: &[(Short, u64, u64)]) {
    let mut all = Vec::new();
    let mut evicted = false;
    for handle in pods.all() {
        if short.is_empty() && !limits_disk(&handle) {
            continue;
        }
        let Some(used) = use_of(cx, &handle).await else { continue };
        if evict::is_critical(&used.pod) {
            continue;
        }
        if let Some(message) = evict::over_own_limit(&used) {
            order(cx, &handle, message, false);
            evicted = true;
            continue;
        }
        all.push((handle, used));
    }
    let Some((what, threshold, left)) = short.first().copied().filter(|_| !evicted) else { return };
    let mut uses: Vec<PodUse> = all.iter().map(|(_, u)| u.clone()).collect();
    evict::rank(&mut uses, what);
    let Some(first) = uses.first() else { return };
    let handle = all.iter().find(|(_, u)| names::uid(&u.pod) == names::uid(&first.pod)).map(|(h, _)| h);
    if let Some(handle) = handle {
        order(cx, handle, evict::message(first, what, threshold, left), true);
    }
}

fn order(cx: &Context, handle: &Handle, message: String, node: bool) {
    info!(pod = names::full_name(&handle.pod), message, "evicting a pod");
    cx.pod_warning(&handle.pod, "Evicted", message.clone());
    let failure = Failure { reason: "Evicted".to_owned(), message };
    // A worker that has just ended has nothing to evict.
    let _ = handle.sender.send(Message::Evict(failure, node));
}

/// Images that containers stand on are in use now.
async fn note_images(cx: &Context, used: &mut HashMap<String, Timestamp>) {
    let now = cx.clock.now();
    let images = cx.image_service.list_images().await.unwrap_or_default();
    let containers = cx.runtime.list_containers(ContainerFilter::default()).await.unwrap_or_default();
    used.retain(|id, _| images.iter().any(|i| i.id == *id));
    for image in &images {
        let in_use = containers.iter().any(|c| image_gc::stands_on(&c.image_ref, &c.image.image, image));
        if in_use || !used.contains_key(&image.id) {
            used.insert(image.id.clone(), now);
        }
    }
}

/// Removes images that nobody uses: all of them under disk pressure, else the oldest until the disk is emptier.
async fn collect_images(cx: &Context, used: &HashMap<String, Timestamp>, pressure: bool) {
    let Ok(place) = cx.image_service.image_fs_info().await else { return };
    let disk = Disk::of(std::path::Path::new(&place.mountpoint));
    let images: Vec<Image> = cx.image_service.list_images().await.unwrap_or_default();
    let now = cx.clock.now();
    let doomed =
        image_gc::choose(&images, used, (disk.capacity, disk.available), pressure, now, cx.config.image_gc);
    for id in doomed {
        info!(image = id, "removing an image that nobody uses");
        if let Err(e) = cx.image_service.remove_image(&image_spec(&id)).await {
            warn!(image = id, error = %e, "image not removed");
        }
    }
}
