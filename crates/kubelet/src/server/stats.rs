//! `/pods`, `/runningpods/` and `/stats/summary`.

use coracle_cri::v1::{ContainerState, Usage};
use coracle_meta::Object;
use serde_json::{Value, json};

use super::figures::{self, ContainerFigures, Disk, NodeFigures, PodFigures, Rates};
use crate::context::Context;
use crate::manager::Pods;
use crate::names;

/// The pods of this node as a PodList.
pub fn pods(pods: &Pods) -> Value {
    let items: Vec<Value> = pods.all().iter().map(|h| h.pod.to_value()).collect();
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

/// What runs, as a PodList of names and images.
pub fn running_pods(pods: &Pods) -> Value {
    let one = |h: &crate::worker::Handle| {
        let seen = h.observed.borrow().clone();
        let containers: Vec<Value> = seen
            .running()
            .map(|c| json!({"name": c.metadata.name, "image": c.image_id, "resources": {}}))
            .collect();
        (!containers.is_empty()).then(|| {
            json!({
                "metadata": {"name": names::name(&h.pod), "namespace": names::namespace(&h.pod),
                    "uid": names::uid(&h.pod)},
                "spec": {"containers": containers}, "status": {},
            })
        })
    };
    let items: Vec<Value> = pods.all().iter().filter_map(one).collect();
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

/// Drops what is not known.
fn without_nulls(mut value: Value) -> Value {
    if let Some(map) = value.as_object_mut() {
        map.retain(|_, v| !v.is_null());
    }
    value
}

fn cpu(time: &str, total: u64, rate: Option<u64>) -> Value {
    without_nulls(json!({"time": time, "usageNanoCores": rate, "usageCoreNanoSeconds": total}))
}

fn memory(time: &str, u: &Usage) -> Value {
    without_nulls(json!({
        "time": time, "availableBytes": u.memory_available_bytes, "usageBytes": u.memory_usage_bytes,
        "workingSetBytes": u.memory_working_set_bytes, "rssBytes": u.memory_rss_bytes,
        "pageFaults": u.memory_page_faults, "majorPageFaults": u.memory_major_page_faults,
    }))
}

fn swap(time: &str, used: u64, available: Option<u64>) -> Value {
    without_nulls(json!({"time": time, "swapAvailableBytes": available, "swapUsageBytes": used}))
}

fn file_system(time: &str, disk: &Disk, used: Option<(u64, u64)>) -> Value {
    let (bytes, inodes) = used.unwrap_or((disk.used, disk.inodes.saturating_sub(disk.inodes_free)));
    json!({
        "time": time, "availableBytes": disk.available, "capacityBytes": disk.capacity, "usedBytes": bytes,
        "inodesFree": disk.inodes_free, "inodes": disk.inodes, "inodesUsed": inodes,
    })
}

fn container(time: &str, disk: &Disk, c: &ContainerFigures, logs: (u64, u64)) -> Value {
    let s = &c.stats;
    json!({
        "name": c.status.metadata.name,
        "startTime": crate::pod::whole_seconds(crate::pod::from_nanos(c.status.started_at)).to_string(),
        "cpu": cpu(time, s.usage.cpu_core_nano_seconds, c.rate),
        "memory": memory(time, &s.usage),
        "swap": swap(time, s.usage.swap_bytes, s.usage.swap_available_bytes),
        "rootfs": file_system(time, disk, Some((s.writable_layer_bytes, s.writable_layer_inodes))),
        "logs": file_system(time, disk, Some(logs)),
    })
}

/// Bytes and files of a log directory.
fn log_size(folder: &std::path::Path) -> (u64, u64) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|e| e.metadata().ok()).fold((0, 1), |sum, m| (sum.0 + m.len(), sum.1 + 1))
}

fn pod(cx: &Context, time: &str, disk: &Disk, p: &PodFigures) -> Value {
    let start = p.handle.pod.status.as_ref().and_then(|s| s.start_time.as_ref());
    let s = &p.stats;
    let folder = crate::start::log_directory(cx, &p.handle.pod);
    let mut ephemeral = (0, 0);
    let containers: Vec<Value> = p
        .containers
        .iter()
        .map(|c| {
            let logs = log_size(&folder.join(&c.status.metadata.name));
            ephemeral.0 += c.stats.writable_layer_bytes + logs.0;
            ephemeral.1 += c.stats.writable_layer_inodes + logs.1;
            container(time, disk, c, logs)
        })
        .collect();
    let volumes = crate::usage::volumes(&cx.directory(names::uid(&p.handle.pod)), &p.handle.pod);
    let mut listed = Vec::new();
    for volume in &volumes {
        if volume.local {
            ephemeral.0 += volume.bytes;
            ephemeral.1 += volume.inodes;
        }
        let mut one = file_system(time, &volume.disk, Some((volume.bytes, volume.inodes)));
        one["name"] = volume.name.clone().into();
        listed.push(one);
    }
    without_nulls(json!({
        "podRef": {
            "name": names::name(&p.handle.pod),
            "namespace": names::namespace(&p.handle.pod),
            "uid": names::uid(&p.handle.pod),
        },
        "startTime": start.map(|t| t.0.to_string()),
        "containers": containers,
        "cpu": cpu(time, s.usage.cpu_core_nano_seconds, p.rate),
        "memory": memory(time, &s.usage),
        "swap": swap(time, s.usage.swap_bytes, s.usage.swap_available_bytes),
        "network": (!crate::pod::host_network(&p.handle.pod)).then(|| {
            let interface = json!({
                "name": "eth0", "rxBytes": s.rx_bytes, "rxErrors": s.rx_errors, "txBytes": s.tx_bytes,
                "txErrors": s.tx_errors,
            });
            let mut all = interface.clone();
            all["time"] = time.into();
            all["interfaces"] = json!([interface]);
            all
        }),
        "volume": (!listed.is_empty()).then_some(listed),
        "ephemeral-storage": file_system(time, disk, Some(ephemeral)),
        "process_stats": {"process_count": s.usage.process_count},
    }))
}

/// CPU, memory, network and disk of the node and its pods, in the form of upstream's summary API.
pub async fn summary(cx: &Context, pods: &Pods, rates: &Rates, cpu_and_memory: bool) -> Value {
    let mut node = figures::node(cx, rates);
    let mut list = figures::pods(cx, pods, rates).await;
    let fresh = |list: &[PodFigures], node: &NodeFigures| {
        node.rate.is_none()
            || list.iter().any(|p| p.rate.is_none() || p.containers.iter().any(|c| c.rate.is_none()))
    };
    if fresh(&list, &node) {
        // Rates need a second look.
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        node = figures::node(cx, rates);
        list = figures::pods(cx, pods, rates).await;
    }
    let time = crate::pod::whole_seconds(cx.clock.now()).to_string();
    let images = cx.image_service.image_fs_info().await.unwrap_or_default();
    let image_disk = Disk::of(std::path::Path::new(&images.mountpoint));
    let mut answer = json!({
        "node": {
            "nodeName": cx.config.node_name,
            "startTime": crate::pod::whole_seconds(cx.started).to_string(),
            "cpu": cpu(&time, node.cpu, node.rate),
            "memory": {
                "time": time, "availableBytes": node.memory_available, "usageBytes": node.memory_usage,
                "workingSetBytes": node.memory_working_set, "rssBytes": node.memory_rss,
                "pageFaults": 0, "majorPageFaults": 0,
            },
            "swap": swap(&time, node.swap.0, Some(node.swap.1)),
            "fs": file_system(&time, &node.disk, None),
            "runtime": {
                "imageFs": file_system(&time, &image_disk, Some((images.used_bytes, images.inodes_used))),
            },
            "rlimit": {"time": time, "maxpid": node.processes.1, "curproc": node.processes.0},
        },
        "pods": list.iter().map(|p| pod(cx, &time, &node.disk, p)).collect::<Vec<_>>(),
    });
    if cpu_and_memory {
        only_cpu_and_memory(&mut answer);
    }
    answer
}

fn only_cpu_and_memory(answer: &mut Value) {
    let keep = ["nodeName", "startTime", "cpu", "memory", "swap", "podRef", "containers", "name"];
    let strip = |value: &mut Value| {
        if let Some(map) = value.as_object_mut() {
            map.retain(|key, _| keep.contains(&key.as_str()));
        }
    };
    strip(&mut answer["node"]);
    for pod in answer["pods"].as_array_mut().into_iter().flatten() {
        strip(pod);
        pod["containers"].as_array_mut().into_iter().flatten().for_each(strip);
    }
}

/// Running containers and pods, for metrics.
pub fn counts(pods: &Pods) -> (usize, usize) {
    let seen: Vec<_> = pods.all().iter().map(|h| h.observed.borrow().clone()).collect();
    let running = seen.iter().flat_map(|s| &s.containers).filter(|c| c.state == ContainerState::Running);
    let alive = seen.iter().filter(|s| s.sandboxes.iter().any(|b| b.ready));
    (alive.count(), running.count())
}
