//! `coracle up`: turns this machine into a cluster, step by step, and keeps it until it is told to end.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use coracle_network::NetworkConfig;
use coracle_runtime::RuntimeConfig;
use coracle_stdx::Clock;
use tokio::net::TcpListener;

use crate::cli::UpArgs;
use crate::cluster::{Cluster, Paths, check_args, make_dir, make_run_dir, node_ip};
use crate::data_dir::{self, Owner};
use crate::down::{context_name, dismantle};
use crate::error::Failure;
use crate::kubeconfig::{self, Access};
use crate::node::{Node, Parts};
use crate::process::{Signals, running};
use crate::progress::Progress;
use crate::{detach, pki, ports};

/// Everything but reading needs root.
///
/// # Errors
/// When this process is not root.
pub fn require_root() -> Result<(), Failure> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::new("this needs root: it makes namespaces, cgroups and nftables rules", "run it with sudo"))
}

/// The runtime's configuration for a cluster.
pub fn runtime_config(paths: &Paths, cluster: &Cluster) -> RuntimeConfig {
    RuntimeConfig {
        registries: paths.file("registries.yaml"),
        root: paths.file("runtime"),
        state: paths.run.clone(),
        cluster_id: cluster.id.clone(),
        cgroup_root: format!("/coracle/{}", cluster.id),
        clock: Clock::system(),
    }
}

/// The network's configuration for a cluster.
pub fn network_config(paths: &Paths, cluster: &Cluster, node_ip: IpAddr) -> NetworkConfig {
    NetworkConfig {
        cluster_id: cluster.id.clone(),
        pod_cidr: cluster.pod_cidr.clone(),
        service_cidr: cluster.service_cidr.clone(),
        node_ip,
        node_name: cluster.node_name.clone(),
        cluster_domain: cluster.cluster_domain.clone(),
        dns_ip: cluster.service_ip(10).into(),
        state: paths.run.join("network"),
    }
}

/// Starts the cluster; in the foreground it returns after SIGTERM or Ctrl-C, with `--detach` when Ready.
///
/// # Errors
/// Anything that keeps the cluster from running, said in one message. A first start that fails or is
/// interrupted leaves nothing; a later one leaves the cluster as it was.
pub async fn up(args: UpArgs) -> Result<(), Failure> {
    let result = start(&args).await;
    if let (true, Err(failure)) = (args.daemon, &result) {
        // The parent says it; here it goes to the log as well.
        let text = serde_json::to_string(failure).unwrap_or_default();
        println!("{}{text}", detach::FAILED);
    }
    result
}

async fn start(args: &UpArgs) -> Result<(), Failure> {
    require_root()?;
    check_args(args)?;
    args.control.check()?;
    let paths = Paths::new(&args.data.data_dir)?;
    if let Some(pid) = running(&paths) {
        println!("already running (pid {pid})");
        println!("kubeconfig: {}", paths.kubeconfig().display());
        return Ok(());
    }
    data_dir::check(&paths.data)?;
    if args.detach && !args.daemon {
        return detach::start(&paths).await;
    }
    let signals = Signals::listen()?;
    if args.daemon {
        // Its own session: a closing terminal does not end the cluster.
        let _ = nix::unistd::setsid();
    }
    foreground(args, &paths, signals).await
}

/// Checks that the kernel has what a node needs.
///
/// # Errors
/// What it lacks.
pub fn preflight() -> Result<(), Failure> {
    let mut missing = coracle_runtime::preflight();
    missing.extend(coracle_network::preflight());
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        format!("this machine lacks what a node needs:\n  - {}", missing.join("\n  - ")),
        "use a Linux kernel of 5.10 or later with overlayfs, namespaces, cgroups and nf_tables",
    ))
}

/// Listens on a port.
///
/// # Errors
/// The port is taken, and by whom; or the address is not this machine's.
pub async fn bind(address: IpAddr, port: u16, option: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(SocketAddr::new(address, port)).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => {
            let by = ports::holder(port).unwrap_or_else(|| "another program".into());
            let hint = format!("choose another with --{option} PORT, or end that program");
            Failure::new(format!("port {port} is in use by {by}"), hint)
        }
        std::io::ErrorKind::AddrNotAvailable => Failure::new(
            format!("{address} is not an address of this machine"),
            "give one that is with --bind-address",
        ),
        _ => Failure::new(format!("cannot listen on {address}:{port}: {e}"), format!("check --{option}")),
    })
}

/// Owns the directory, starts the cluster and keeps it until a signal comes. What a first start made is
/// taken back when it fails or is interrupted.
async fn foreground(args: &UpArgs, paths: &Paths, mut signals: Signals) -> Result<(), Failure> {
    let progress = Progress::start();
    progress.line(&format!("coracle {} (Kubernetes {})", env!("CARGO_PKG_VERSION"), crate::GIT_VERSION));
    preflight()?;
    let first = data_dir::is_new(&paths.data);
    let made = !paths.data.exists();
    make_dir(&paths.data, 0o700)?;
    let owner = match Owner::take(paths) {
        Err(e) if made => {
            let _ = std::fs::remove_dir(&paths.data);
            return Err(e);
        }
        other => other?,
    };
    let hint = if first { "nothing of it is left" } else { "the cluster is as it was; pods go on" };
    let started = tokio::select! {
        started = bring_up(args, paths, &progress) => started,
        () = signals.recv() => Err(Failure::interrupted(hint)),
    };
    let node = match started {
        Ok(node) => node,
        Err(failure) if first => return Err(failure.undoing(Undo { paths: paths.clone(), _owner: owner })),
        Err(failure) => return Err(failure),
    };
    if args.daemon {
        progress.line(detach::READY);
        release_stdout();
        progress.end();
    }
    signals.recv().await;
    tracing::info!("ending; pods go on and are adopted by the next start");
    node.end().await;
    drop(owner);
    Ok(())
}

/// A first start to be taken back, once all that it set in motion has ended.
#[derive(Debug)]
pub struct Undo {
    paths: Paths,
    _owner: Owner,
}

impl Undo {
    /// Removes what the start made. What cannot be removed now is left to `down --purge`.
    pub async fn run(self) {
        let Self { paths, _owner } = self;
        let cluster = Cluster::load(&paths).ok().flatten().unwrap_or_else(|| Cluster::nameless(&paths));
        let done = match dismantle(&paths, &cluster, &|_| {}).await {
            Ok(()) => data_dir::remove(&paths.data).map(drop),
            Err(e) => Err(e),
        };
        if let Err(e) = done {
            tracing::warn!("not all was taken back: {e}");
        }
    }
}

/// Starts everything and waits until the node is Ready.
async fn bring_up(args: &UpArgs, paths: &Paths, progress: &Progress) -> Result<Node, Failure> {
    let clock = Clock::system();
    let cluster = Cluster::establish(paths, args)?;
    let ip = args.node_ip.or_else(node_ip).ok_or_else(|| {
        Failure::new("this machine has no network address", "give it one, or tell one with --node-ip")
    })?;
    make_run_dir(paths)?;
    progress.step("machine", &format!("{} at {ip}, data in {}", cluster.node_name, paths.data.display()));

    let api = bind(args.bind_address, cluster.api_port, "api-port").await?;
    drop(bind(args.bind_address, cluster.kubelet_port, "kubelet-port").await?);

    let pki = pki::establish(&paths.file("pki"), &cluster, ip, &clock)?;
    let renewed =
        if pki.renewed.is_empty() { "valid".into() } else { format!("made {}", pki.renewed.join(", ")) };
    progress.step("certificates", &renewed);

    let access = Access {
        name: context_name(&cluster),
        server: format!("https://127.0.0.1:{}", cluster.api_port),
        ca: pki.ca.clone(),
        cert: pki.admin.cert.clone(),
        key: pki.admin.key.clone(),
    };
    let parts = Parts {
        paths: paths.clone(),
        cluster,
        pki,
        node_ip: ip,
        clock,
        control: args.control.clone(),
        store: args.store.clone(),
        secrets_encryption: args.secrets_encryption,
        node: args.node.clone(),
    };
    let node = Node::start(parts, api, progress).await?;
    access.write(&paths.kubeconfig())?;
    let command = introduce(args, paths, &access, progress);
    node.ready(progress).await?;
    progress.line("");
    progress.line(&format!("kubeconfig: {}", paths.kubeconfig().display()));
    progress.line(&format!("next:       {command}"));
    Ok(node)
}

/// Adds the context to the user's kubeconfig; what to type next follows from whether that worked.
fn introduce(args: &UpArgs, paths: &Paths, access: &Access, progress: &Progress) -> String {
    let alone = format!("kubectl --kubeconfig {} get nodes", paths.kubeconfig().display());
    if args.no_user_kubeconfig {
        return alone;
    }
    let Some(user) = kubeconfig::user_path() else { return alone };
    match access.merge_into(&user) {
        Ok(()) => {
            give_to_invoker(&user);
            progress.step("kubeconfig", &format!("context {:?} in {}", access.name, user.display()));
            "kubectl get nodes".into()
        }
        Err(why) => {
            progress.line(&format!("  ! {why}"));
            alone
        }
    }
}

/// Under sudo, a file in the user's home belongs to the user.
fn give_to_invoker(path: &Path) {
    let id = |name: &str| std::env::var(name).ok().and_then(|v| v.parse().ok());
    if let (Some(uid), Some(gid)) = (id("SUDO_UID"), id("SUDO_GID")) {
        let _ = std::os::unix::fs::chown(path, Some(uid), Some(gid));
    }
}

/// The parent that relayed our progress goes: standard output becomes the null device.
fn release_stdout() {
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        use std::os::fd::AsRawFd as _;
        let _ = nix::unistd::dup2(null.as_raw_fd(), 1);
    }
}
