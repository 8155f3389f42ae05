//! Looks at the node's resources every ten seconds, as upstream does, and when the kernel says that memory gets short
//! (`kernelMemcgNotification`): evicts pods, and collects images that nobody uses when the disk fills up. What is
//! decided stands in `evict` and `image_gc`.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use coracle_client::EventType;
use coracle_cri::MemoryOf;
use coracle_cri::v1::{ContainerFilter, ContainerState, Image};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use tokio::io::unix::AsyncFd;
use tracing::{info, warn};

use crate::context::Context;
use crate::evict::{self, ContainerUse, Left, Observations, PodUse, Shortage, Signal};
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
/// The kernel's word brings no look sooner than this after the last one.
const LEAST: Duration = Duration::from_secs(1);
/// Looks between two collections of images.
const COLLECT: u32 = 30;
/// How long evicted pods may take together to free what they have before the next one is looked for.
const FREEING: Duration = Duration::from_secs(30);

/// Runs until dropped.
pub async fn run(cx: Arc<Context>, pods: Pods) {
    let rates = Rates::default();
    let mut used: HashMap<String, Timestamp> = HashMap::new();
    let mut round = 0;
    loop {
        rest(&cx, &rates).await;
        note_images(&cx, &mut used).await;
        let seen = observe(&cx, &rates).await;
        let mut short = cx.pressures.lock().note(&cx.config.eviction, &seen.left, cx.clock.now());
        round += 1;
        let disk = short.first().is_some_and(|s| s.signal.is_disk());
        if disk || round % COLLECT == 0 {
            collect_images(&cx, &used, disk).await;
        }
        if let Some(first) = short.first().copied() {
            let text = format!("Attempting to reclaim {}", first.signal.resource());
            cx.node_event(EventType::Warning, "EvictionThresholdMet", text);
            if disk && evict::is_over(&cx.config.eviction, &first, &observe(&cx, &rates).await.left) {
                info!(signal = first.signal.name(), "enough came free without evicting pods");
                short.clear();
            }
        }
        let evicted = enforce(&cx, &pods, short.first(), seen.split).await;
        let all_ended = async {
            for handle in &evicted {
                ended(handle).await;
            }
        };
        // Whoever does not end in time does not keep others from being looked at.
        let _ = tokio::time::timeout(FREEING, all_ended).await;
    }
}

/// Waits until the next look is due.
async fn rest(cx: &Context, rates: &Rates) {
    if !cx.config.eviction.kernel_tells {
        return tokio::time::sleep(LOOK).await;
    }
    tokio::time::sleep(LEAST).await;
    let left = observe(cx, rates).await.left;
    let bells: Vec<_> = evict::memory_to_use(&cx.config.eviction, &left)
        .into_iter()
        .filter_map(|(signal, growth)| bell(cx, signal, growth))
        .collect();
    let mut rung: FuturesUnordered<_> = bells.iter().map(AsyncFd::readable).collect();
    let rung = async {
        match rung.next().await {
            Some(_) => info!("the kernel says that memory gets short"),
            None => std::future::pending().await,
        }
    };
    let _ = tokio::time::timeout(LOOK.saturating_sub(LEAST), rung).await;
}

/// What the kernel rings when so much more memory is used.
fn bell(cx: &Context, signal: Signal, growth: u64) -> Option<AsyncFd<OwnedFd>> {
    let of = if signal == Signal::PodsMemory { MemoryOf::Pods } else { MemoryOf::Machine };
    let event = cx.pods_cgroup.as_ref()?.notify_memory(of, growth);
    #[expect(deprecated, reason = "its successor is unsafe; an OwnedFd stays open as long as it is held")]
    let bell = event.and_then(|event| event.map(AsyncFd::new).transpose());
    bell.unwrap_or_else(|e| {
        warn!(signal = signal.name(), error = %e, "the kernel will not tell when memory gets short");
        None
    })
}

/// What is left of the node.
struct Seen {
    left: Observations,
    /// Whether images are on another disk than volumes and logs.
    split: bool,
}

async fn observe(cx: &Context, rates: &Rates) -> Seen {
    let node = figures::node(cx, rates);
    let images = cx.image_service.image_fs_info().await.ok().map(|place| place.mountpoint);
    let images = images.filter(|path| !path.is_empty()).map(std::path::PathBuf::from);
    let split = images.as_deref().is_some_and(|path| device(path) != device(&cx.config.root));
    let image_disk = images.as_deref().map_or(node.disk, Disk::of);
    let memory = node.memory_available + node.memory_working_set;
    let pids = node.processes.1;
    let mut left = Observations::new();
    let mut see = |signal: Signal, available: u64, capacity: u64| {
        if capacity > 0 {
            left.insert(signal, Left { available, capacity });
        }
    };
    see(Signal::Memory, node.memory_available, memory);
    see(Signal::NodeDisk, node.disk.available, node.disk.capacity);
    see(Signal::NodeInodes, node.disk.inodes_free, node.disk.inodes);
    see(Signal::ImageDisk, image_disk.available, image_disk.capacity);
    see(Signal::ImageInodes, image_disk.inodes_free, image_disk.inodes);
    see(Signal::Pids, pids.saturating_sub(node.processes.0), pids);
    let pods = cx.pods_cgroup.as_ref().map(|cgroup| cgroup.memory()).unwrap_or_default();
    see(Signal::PodsMemory, pods.limit.saturating_sub(pods.working_set), pods.limit);
    Seen { left, split }
}

fn device(path: &std::path::Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|meta| meta.dev())
}

/// Returns when nothing of the pod runs.
async fn ended(handle: &Handle) {
    let mut observed = handle.observed.clone();
    // Whose worker is gone has ended.
    let _ = observed
        .wait_for(|seen| {
            !seen.sandboxes.iter().any(|s| s.ready)
                && !seen.containers.iter().any(|c| c.state == ContainerState::Running)
        })
        .await;
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
    let mut layer_inodes = 0;
    let mut containers = Vec::new();
    for c in seen.containers.iter().filter(|c| c.state == ContainerState::Running) {
        let Ok(stats) = cx.runtime.container_stats(&c.id).await else { continue };
        let logs = usage::logs(&folder.join(&c.metadata.name));
        layer_inodes += stats.writable_layer_inodes;
        containers.push(ContainerUse {
            name: c.metadata.name.clone(),
            memory: stats.usage.memory_working_set_bytes,
            layer: stats.writable_layer_bytes,
            logs,
        });
    }
    let (directory, described) = (cx.directory(names::uid(&pod)), pod.clone());
    let volumes = tokio::task::spawn_blocking(move || usage::volumes(&directory, &described)).await.ok()?;
    let local = volumes.iter().filter(|v| v.local);
    let local = local.fold((0, 0), |(bytes, inodes), v| (bytes + v.bytes, inodes + v.inodes));
    Some(PodUse {
        memory: whole.usage.memory_working_set_bytes,
        local,
        layer_inodes,
        processes: whole.usage.process_count,
        containers,
        volumes: volumes.into_iter().map(|v| (v.name, v.bytes, v.limit)).collect(),
        pod,
    })
}

/// Evicts pods over their own limits; else, when the node is short, one pod. Returns whom it evicted.
async fn enforce(cx: &Context, pods: &Pods, short: Option<&Shortage>, split: bool) -> Vec<Handle> {
    let (mut all, mut evicted) = (Vec::new(), Vec::new());
    for handle in pods.all() {
        if short.is_none() && !limits_disk(&handle) {
            continue;
        }
        let Some(used) = use_of(cx, &handle).await else { continue };
        if evict::is_critical(&used.pod) {
            continue;
        }
        if let Some(message) = evict::over_own_limit(&used) {
            order(cx, &handle, message, None, evict::AT_ONCE);
            evicted.push(handle);
            continue;
        }
        all.push((handle, used));
    }
    let Some(short) = short.filter(|_| evicted.is_empty()) else { return evicted };
    let mut uses: Vec<PodUse> = all.iter().map(|(_, u)| u.clone()).collect();
    evict::rank(&mut uses, short.signal, split);
    let Some(first) = uses.first() else { return evicted };
    let found = all.into_iter().find(|(_, u)| names::uid(&u.pod) == names::uid(&first.pod));
    if let Some((handle, _)) = found {
        let grace = evict::grace(&first.pod, short, &cx.config.eviction);
        let (message, annotations) = evict::explain(first, short);
        order(cx, &handle, message, Some(annotations), grace);
        evicted.push(handle);
    }
    evicted
}

/// Tells a pod's worker that it must go; `annotations` tell of what the node had too little, if that is why.
fn order(
    cx: &Context,
    handle: &Handle,
    message: String,
    annotations: Option<BTreeMap<String, String>>,
    grace: i64,
) {
    info!(pod = names::full_name(&handle.pod), message, grace, "evicting a pod");
    let node = annotations.is_some();
    let (pod, kind) = (&*handle.pod, EventType::Warning);
    cx.events.annotated_event(pod, annotations.unwrap_or_default(), kind, "Evicted", message.clone());
    let failure = Failure { reason: "Evicted".to_owned(), message };
    // A worker that has just ended has nothing to evict.
    let _ = handle.sender.send(Message::Evict { failure, node, grace });
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
