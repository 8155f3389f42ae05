//! `coracle up`: turns this machine into a cluster, step by step, and keeps it until it is told to end.

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use coracle_network::NetworkConfig;
use coracle_runtime::RuntimeConfig;
use coracle_stdx::Clock;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::UpArgs;
use crate::cluster::{Cluster, Paths, make_dir, node_ip, write_file};
use crate::down::{context_name, running, start_time};
use crate::error::Failure;
use crate::kubeconfig::{self, Access};
use crate::node::{Node, Parts};
use crate::pki;
use crate::progress::Progress;

/// The last line that a detached daemon's parent waits for.
const READY: &str = "\u{4}ready";

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
/// Anything that keeps the cluster from running, said in one message.
pub async fn up(args: UpArgs) -> Result<(), Failure> {
    require_root()?;
    let paths = Paths::new(&args.data.data_dir)?;
    if let Some(pid) = running(&paths) {
        println!("already running (pid {pid})");
        println!("kubeconfig: {}", paths.kubeconfig().display());
        return Ok(());
    }
    if args.detach && !args.daemon {
        return detach(&paths);
    }
    if args.daemon {
        // Its own session: a closing terminal does not end the cluster.
        let _ = nix::unistd::setsid();
    }
    let progress = Progress::start();
    let result = foreground(&args, &paths, &progress).await;
    if result.is_err() {
        let _ = std::fs::remove_file(paths.pid());
    }
    result
}

/// Starts this program again in the background and relays its progress until it is ready.
fn detach(paths: &Paths) -> Result<(), Failure> {
    make_dir(&paths.data, 0o700)?;
    let log_path = paths.file("coracle.log");
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(|e| Failure::file("open", &log_path, &e))?;
    let mut argv = std::env::args();
    let name = argv.next().unwrap_or_default();
    let mut child = Command::new("/proc/self/exe")
        .arg0(name)
        .args(argv)
        .arg("--daemon")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .current_dir("/")
        .spawn()
        .map_err(|e| Failure::new(format!("cannot start in the background: {e}"), ""))?;
    let lines = child.stdout.take().map(BufReader::new);
    for line in lines.into_iter().flat_map(|l| l.lines()).map_while(Result::ok) {
        if line == READY {
            return Ok(());
        }
        println!("{line}");
    }
    let status = child.wait().ok().and_then(|s| s.code()).unwrap_or(1);
    let said = std::fs::read_to_string(&log_path).unwrap_or_default();
    let said = said.rsplit_once("error: ").map_or("", |(_, last)| last).trim();
    if said.is_empty() {
        let what = format!("the cluster did not start (status {status})");
        return Err(Failure::new(what, format!("see {}", log_path.display())));
    }
    Err(Failure::new(said, ""))
}

fn preflight() -> Result<(), Failure> {
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

async fn bind(address: IpAddr, port: u16, option: &str) -> Result<TcpListener, Failure> {
    TcpListener::bind(SocketAddr::new(address, port)).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => Failure::new(
            format!("port {port} is in use by another program"),
            format!("choose another with --{option} PORT, or end that program"),
        ),
        _ => Failure::new(format!("cannot listen on {address}:{port}: {e}"), format!("check --{option}")),
    })
}

async fn foreground(args: &UpArgs, paths: &Paths, progress: &Progress) -> Result<(), Failure> {
    progress.line(&format!("coracle {} (Kubernetes {})", env!("CARGO_PKG_VERSION"), crate::GIT_VERSION));
    preflight()?;
    let clock = Clock::system();
    let cluster = Cluster::establish(paths, args)?;
    let ip = args.node_ip.or_else(node_ip).ok_or_else(|| {
        Failure::new("this machine has no network address", "give it one, or tell one with --node-ip")
    })?;
    make_dir(&paths.run, 0o700)?;
    progress.step("machine", &format!("{} at {ip}, data in {}", cluster.node_name, paths.data.display()));

    let api = bind(args.bind_address, cluster.api_port, "api-port").await?;
    drop(bind(args.bind_address, cluster.kubelet_port, "kubelet-port").await?);
    let me = std::process::id();
    let started = start_time(me as i32).unwrap_or_default();
    write_file(&paths.pid(), format!("{me} {started}\n").as_bytes(), 0o644)?;

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
    let parts = Parts { paths: paths.clone(), cluster, pki, node_ip: ip, clock };
    let node = Node::start(parts, api, progress).await?;
    access.write(&paths.kubeconfig())?;
    let command = introduce(args, paths, &access, progress);
    node.ready(progress).await?;
    progress.line("");
    progress.line(&format!("kubeconfig: {}", paths.kubeconfig().display()));
    progress.line(&format!("next:       {command}"));
    if args.daemon {
        progress.line(READY);
        release_stdout();
        progress.end();
    }
    wait_for_end(node).await;
    let _ = std::fs::remove_file(paths.pid());
    Ok(())
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

async fn wait_for_end(node: Node) {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        std::future::pending::<()>().await;
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tracing::info!("ending; pods go on and are adopted by the next start");
    drop(node);
}
