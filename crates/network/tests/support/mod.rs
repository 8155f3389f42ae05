//! A node's network namespace and pods' namespaces for tests, without touching the machine's own.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs::File;
use std::future::Future;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_cri::{PodNetworkRequest, PortMapping};
use coracle_network::NetworkConfig;
use nix::sched::{CloneFlags, setns, unshare};

/// Runs `test` on a thread that has a network namespace of its own, with `lo` only.
pub fn on_a_node<F, Fut>(test: F)
where
    F: FnOnce(PathBuf) -> Fut + Send + 'static,
    Fut: Future<Output = ()>,
{
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("unshare");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let directory = tempfile::tempdir().expect("directory");
        runtime.block_on(test(directory.path().to_owned()));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A configuration whose id is the test's own.
pub fn config(id: &str, state: &Path) -> NetworkConfig {
    NetworkConfig {
        cluster_id: id.into(),
        pod_cidr: "10.244.0.0/16".into(),
        service_cidr: "10.96.0.0/16".into(),
        node_ip: [192, 0, 2, 77].into(),
        node_name: "node".into(),
        cluster_domain: "cluster.local".into(),
        dns_ip: [10, 96, 0, 10].into(),
        state: state.join("network"),
    }
}

/// A network namespace bind-mounted to a file, as a sandbox has; removed when dropped.
pub struct Netns(pub PathBuf);

impl Netns {
    pub fn new(path: PathBuf) -> Self {
        File::create(&path).expect("file");
        let target = path.clone();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare");
            rustix::mount::mount_bind("/proc/thread-self/ns/net", &target).expect("bind");
        })
        .join()
        .expect("thread");
        Self(path)
    }

    /// Runs `f` in this namespace.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let netns = File::open(&self.0).expect("open");
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).expect("setns");
                f()
            });
            inside.join().expect("thread")
        })
    }

    /// A TCP and UDP server that answers every connection and packet with `answer`, until the test ends.
    pub fn serve(&self, port: u16, answer: &'static str) {
        let (tcp, udp) = self.run(|| {
            let address = (Ipv4Addr::UNSPECIFIED, port);
            (TcpListener::bind(address).expect("tcp"), UdpSocket::bind(address).expect("udp"))
        });
        std::thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let from = stream.peer_addr().map(|a| a.ip().to_string()).unwrap_or_default();
                let _ = stream.write_all(format!("{answer} {from}").as_bytes());
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((_, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(format!("{answer} {}", from.ip()).as_bytes(), from);
            }
        });
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        let _ = std::fs::remove_file(&self.0);
    }
}

pub fn request(id: &str, netns: &Netns, ports: Vec<PortMapping>) -> PodNetworkRequest {
    PodNetworkRequest {
        uid: String::new(),
        annotations: std::collections::BTreeMap::new(),
        sandbox_id: id.into(),
        namespace: "default".into(),
        name: id.into(),
        netns: netns.0.clone(),
        port_mappings: ports,
    }
}

/// What a TCP server says, or the error.
pub fn ask(address: impl Into<IpAddr>, port: u16) -> std::io::Result<String> {
    let address = SocketAddr::new(address.into(), port);
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// What a UDP server says, or the error.
pub fn ask_udp(address: impl Into<IpAddr>, port: u16) -> std::io::Result<String> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(SocketAddr::new(address.into(), port))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.send(b"?")?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Gives this namespace an uplink: a veth with `192.0.2.77/24`, a client namespace with `192.0.2.1` at its
/// other end, and a default route through it.
pub fn uplink(client: &Netns) {
    let ip = |args: &str| {
        let done = std::process::Command::new("ip").args(args.split(' ')).output().expect("ip");
        assert!(done.status.success(), "ip {args}: {}", String::from_utf8_lossy(&done.stderr));
    };
    ip("link set lo up");
    ip("link add up0 type veth peer name out0");
    let nsenter = |args: &str| {
        let netns = format!("--net={}", client.0.display());
        let done =
            std::process::Command::new("nsenter").arg(netns).args(args.split(' ')).output().expect("nsenter");
        assert!(done.status.success(), "{args}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let keeper = std::process::Command::new("nsenter")
        .arg(format!("--net={}", client.0.display()))
        .args(["sleep", "60"])
        .spawn();
    let mut keeper = keeper.expect("nsenter");
    std::thread::sleep(Duration::from_millis(50));
    ip(&format!("link set out0 netns {}", keeper.id()));
    let _ = keeper.kill();
    let _ = keeper.wait();
    ip("addr add 192.0.2.77/24 dev up0");
    ip("link set up0 mtu 1400 up");
    ip("route add default via 192.0.2.1");
    nsenter("ip addr add 192.0.2.1/24 dev out0");
    nsenter("ip link set out0 up");
    nsenter("ip link set lo up");
}

/// The text of a command run in this namespace.
pub fn output(program: &str, args: &str) -> String {
    let done = std::process::Command::new(program).args(args.split(' ')).output().expect("command");
    String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr)
}
