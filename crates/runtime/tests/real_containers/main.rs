//! Runs real containers: needs root and Debian's busybox-static. The test program is its own shim, so it
//! has no test harness: it calls `reexec` first, then runs each claim in turn.

mod confinement;
mod images;
mod lifecycle;
mod socket;
mod streams;

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use confinement::*;
use coracle_cri::v1::{
    ContainerConfig, ContainerEventType, ContainerFilter, ContainerMetadata, ContainerState, ContainerStatus,
    ImageSpec, LinuxResources, Mount, NamespaceOptions, PodSandboxConfig, PodSandboxMetadata,
};
use coracle_cri::{
    CriError, ExecRequest, ImageService, NetworkError, PodNetwork, PodNetworkRequest, RuntimeService,
    Streaming, TerminalSize,
};
use coracle_runtime::{Runtime, RuntimeConfig};
use coracle_stdx::Clock;
use images::*;
use lifecycle::*;
use socket::*;
use streams::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const IMAGE: &str = "registry.example/busybox:1";

struct NoNetwork;

#[async_trait]
impl PodNetwork for NoNetwork {
    async fn setup(&self, _: &PodNetworkRequest) -> Result<Vec<IpAddr>, NetworkError> {
        Ok(vec![[10, 9, 8, 7].into()])
    }
    async fn teardown(&self, _: &str) -> Result<(), NetworkError> {
        Ok(())
    }
    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}

/// A machine's worth of state that containers could leave behind.
#[derive(Debug, PartialEq)]
struct Traces {
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<PathBuf>,
}

impl Traces {
    fn take() -> Self {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounts = text.lines().map(|l| l.split(' ').nth(4).unwrap().to_owned());
        let mounts = mounts.filter(|m| m.contains("crt-test")).collect();
        let mut cgroups = BTreeSet::new();
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let own = hierarchy.path().join("crt-test");
            if own.exists() {
                cgroups.insert(own);
            }
        }
        Self { mounts, cgroups }
    }
}

struct Lab {
    dir: PathBuf,
    config: RuntimeConfig,
    runtime: Arc<Runtime>,
}

impl Lab {
    async fn open(dir: &Path) -> Self {
        let config = config(dir);
        let runtime = Runtime::open(config.clone(), Arc::new(NoNetwork)).await.unwrap();
        Self { dir: dir.to_owned(), config, runtime }
    }
    fn sandbox_config(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: PodSandboxMetadata {
                name: name.into(),
                uid: name.into(),
                namespace: "default".into(),
                attempt: 0,
            },
            hostname: name.into(),
            log_directory: self.dir.join("logs").join(name).to_string_lossy().into_owned(),
            cgroup_parent: format!("burstable/pod{name}"),
            ..Default::default()
        }
    }
    async fn sandbox(&self, name: &str) -> (String, PodSandboxConfig) {
        let config = self.sandbox_config(name);
        (self.runtime.run_pod_sandbox(config.clone()).await.unwrap(), config)
    }
    async fn create(&self, pod: &(String, PodSandboxConfig), config: ContainerConfig) -> String {
        self.runtime.create_container(&pod.0, config, pod.1.clone()).await.unwrap()
    }
    async fn run(&self, pod: &(String, PodSandboxConfig), config: ContainerConfig) -> String {
        let id = self.create(pod, config).await;
        self.runtime.start_container(&id).await.unwrap();
        id
    }
    async fn exited(&self, id: &str) -> ContainerStatus {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.runtime.container_status(id).await.unwrap();
            if status.state == ContainerState::Exited {
                return status;
            }
            assert!(Instant::now() < end, "container {id} does not exit: {status:?}");
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }
    async fn output(&self, id: &str, command: &str) -> String {
        let args = ["sh", "-c", command].map(str::to_owned).to_vec();
        let done = self.runtime.exec_sync(id, args, 20).await.unwrap();
        format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr))
            .trim()
            .to_owned()
    }
    async fn remove(&self, pod: &(String, PodSandboxConfig)) {
        self.runtime.stop_pod_sandbox(&pod.0).await.unwrap();
        self.runtime.remove_pod_sandbox(&pod.0).await.unwrap();
    }
    fn log(&self, status: &ContainerStatus) -> Vec<String> {
        let text = fs::read_to_string(&status.log_path).unwrap();
        text.lines().map(|l| l.split_once(' ').unwrap().1.to_owned()).collect()
    }
}

fn shell(name: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        metadata: ContainerMetadata { name: name.into(), attempt: 0 },
        image: ImageSpec { image: IMAGE.into(), ..Default::default() },
        command: vec!["sh".into(), "-c".into(), script.into()],
        log_path: format!("{name}/0.log"),
        ..Default::default()
    }
}

fn config(dir: &Path) -> RuntimeConfig {
    RuntimeConfig {
        registries: dir.join("registries.yaml"),
        root: dir.join("root"),
        // As in real life on a memory file system.
        state: Path::new("/run").join(dir.file_name().unwrap()),
        cluster_id: "0badcafe".into(),
        cgroup_root: format!("/crt-test/{}", std::process::id()),
        clock: Clock::system(),
    }
}

fn build_image(dir: &Path) -> PathBuf {
    let out = dir.join("busybox.tar");
    let made = Command::new("python3")
        .args(["/work/shared/mkimage.py", "--busybox", "/usr/bin/busybox", "--cmd", "sh", "--name", IMAGE])
        .arg("--out")
        .arg(&out)
        .status();
    assert!(made.is_ok_and(|s| s.success()), "cannot build the test image");
    out
}

/// Arguments select claims by part of their names, as with the usual harness.
fn wanted(claim: &str) -> bool {
    let mut filters = std::env::args().skip(1).filter(|a| !a.starts_with('-')).peekable();
    filters.peek().is_none() || filters.any(|f| claim.contains(&f))
}

fn main() {
    if let Some(code) = coracle_runtime::reexec() {
        std::process::exit(code);
    }
    if std::env::args().any(|a| a == "--list") {
        return;
    }
    let problems = coracle_runtime::preflight();
    if !problems.is_empty() {
        eprintln!("real_containers skipped: {}", problems.join("; "));
        return;
    }
    let before = Traces::take();
    let dir = tempfile::Builder::new().prefix("crt-test").tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let path = dir.path().to_owned();
    let claims = std::panic::AssertUnwindSafe(|| {
        runtime.block_on(async {
            let lab = Lab::open(&path).await;
            let archive = build_image(&path);
            let names = lab.runtime.import_image(&archive).await.unwrap();
            assert_eq!(names, [IMAGE]);
            macro_rules! claims { ($($claim:ident),* $(,)?) => {$(
            if wanted(stringify!($claim)) {
                let start = Instant::now();
                $claim(&lab).await;
                println!("ok {} ({:?})", stringify!($claim), start.elapsed());
            }
        )*} }
            claims![
                images_are_found_by_every_name,
                start_is_quick,
                output_is_logged_and_exit_code_kept,
                failed_start_says_why_as_containerd,
                containers_are_confined,
                what_contradicts_itself_is_refused,
                pod_shares_network_ipc_and_hostname,
                exec_streams_both_ways,
                exec_terminal_resizes,
                attach_follows_output_and_feeds_stdin,
                stop_is_graceful_then_forced,
                limits_hold_and_oom_is_told,
                shared_process_namespace_has_pause,
                volumes_are_mounted,
                mounts_propagate_when_asked,
                host_namespaces_are_the_hosts,
                privileged_sees_devices_and_may_mount,
                image_is_pulled_from_a_local_registry,
                archives_of_other_shapes_are_imported,
                port_forward_reaches_loopback,
                events_are_pushed,
                clients_of_the_socket_have_all_of_it,
                streams_over_the_socket_are_had_at_a_url,
                many_pods_start_together,
            ];
            let lab =
                if wanted("running_pods_are_adopted") { running_pods_are_adopted(lab).await } else { lab };
            let lab = if wanted("lost_shim_is_reported") { lost_shim_is_reported(lab).await } else { lab };
            leave_everything_running(&lab).await;
        })
    });
    let failure = std::panic::catch_unwind(claims).err();
    let config = config(&path);
    // As after kill -9: nothing was stopped.
    runtime.shutdown_timeout(Duration::from_secs(1));
    let start = Instant::now();
    coracle_runtime::purge(&config).unwrap();
    println!("ok purge ({:?})", start.elapsed());
    if let Some(failure) = failure {
        std::panic::resume_unwind(failure);
    }
    assert_eq!(Traces::take(), before);
    assert!(!config.state.exists() && !config.root.join("containers").exists());
    let own = fs::read_dir("/proc").unwrap().flatten().filter(|p| {
        let text = fs::read_to_string(p.path().join("cmdline")).unwrap_or_default();
        text.contains("__shim") && text.contains(&*config.state.to_string_lossy())
    });
    assert_eq!(own.count(), 0);
}
