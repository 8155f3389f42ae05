//! Pod links: how long the built-in network takes to connect a pod, in a network namespace of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use coracle_cri::{PodNetwork as _, PodNetworkRequest};
use coracle_network::{NetworkConfig, PodLinks, purge};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::cost::Meter;
use crate::stats::{Samples, Summary};
use crate::target::Failure;

/// Options of `pod-links`.
#[derive(clap::Args, Clone, Debug)]
pub struct LinksArgs {
    /// Pods to connect, one after another; all stay connected until the end.
    #[arg(long, default_value_t = 100)]
    pub count: usize,
}

/// Runs it; needs root.
///
/// # Errors
/// Not root, or the kernel refuses.
pub fn pod_links(args: &LinksArgs) -> Result<Summary, Failure> {
    let count = args.count;
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| format!("a network namespace: {e}; are you root?"))?;
        let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|e| e.to_string())?.block_on(measure(directory.path(), count))
    });
    thread.join().map_err(|_| "the measurement panicked".to_owned())?
}

async fn measure(directory: &Path, count: usize) -> Result<Summary, Failure> {
    let config = NetworkConfig {
        cluster_id: "beac4000".into(),
        pod_cidr: "10.244.0.0/16".into(),
        service_cidr: "10.96.0.0/16".into(),
        node_ip: [192, 0, 2, 77].into(),
        node_name: "bench".into(),
        cluster_domain: "cluster.local".into(),
        dns_ip: [10, 96, 0, 10].into(),
        state: directory.join("network"),
    };
    let pods = PodLinks::open(config.clone()).await.map_err(|e| e.to_string())?;
    let (mut samples, mut namespaces) = (Samples::default(), Vec::new());
    let (start, meter) = (Instant::now(), Meter::start(&[]));
    for n in 0..count {
        let netns = Netns::new(directory.join(format!("netns-{n}")))?;
        let request = PodNetworkRequest {
            sandbox_id: n.to_string(),
            namespace: "bench".into(),
            name: format!("pod-{n}"),
            netns: netns.0.clone(),
            uid: String::new(),
            annotations: std::collections::BTreeMap::new(),
            port_mappings: Vec::new(),
        };
        namespaces.push(netns);
        let start = Instant::now();
        match pods.setup(&request).await {
            Ok(_) => samples.ok(start.elapsed(), 0),
            Err(e) => samples.error(e.to_string()),
        }
    }
    let summary = samples.summary("pod-links", start.elapsed(), meter.stop());
    purge(&config).await.map_err(|e| e.to_string())?;
    Ok(summary)
}

/// A network namespace bind-mounted to a file, as a sandbox has; removed when dropped.
struct Netns(PathBuf);

impl Netns {
    fn new(path: PathBuf) -> Result<Self, Failure> {
        File::create(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let target = path.clone();
        let made = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|e| e.to_string())?;
            mount_bind("/proc/thread-self/ns/net", &target).map_err(|e| e.to_string())
        });
        let made = made.join().map_err(|_| "a thread panicked".to_owned()).flatten();
        made.map_err(|e| format!("a pod's network namespace: {e}"))?;
        Ok(Self(path))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
        let _ = std::fs::remove_file(&self.0);
    }
}
