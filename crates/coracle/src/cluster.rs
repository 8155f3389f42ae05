//! A cluster's identity on this machine: its data directory, id, slot and the ranges and ports that follow
//! from them, so that several clusters live side by side.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cli::UpArgs;
use crate::error::Failure;

/// Registry of the clusters of this machine: one file per slot.
const SLOTS: &str = "/run/coracle/clusters";
/// The layout of data directories that this program knows.
const FORMAT: u32 = 1;
/// Slots there are: service ranges 10.96 … 10.111.
const MAX_SLOTS: u8 = 16;

/// What is decided once for a cluster and kept in `D/cluster.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Version of the directory's layout.
    #[serde(default = "first_format")]
    pub format: u32,
    /// Eight hex digits derived from the data directory.
    pub id: String,
    /// Index among the clusters of this machine.
    pub slot: u8,
    /// Port of the API server.
    pub api_port: u16,
    /// Port of the kubelet.
    pub kubelet_port: u16,
    /// The node's name.
    pub node_name: String,
    /// Range of pod addresses.
    pub pod_cidr: String,
    /// Range of service addresses.
    pub service_cidr: String,
    /// DNS domain.
    pub cluster_domain: String,
}

/// Paths of a cluster.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The data directory, absolute.
    pub data: PathBuf,
    /// Runtime state: shims, namespaces. On a tmpfs.
    pub run: PathBuf,
}

impl Paths {
    /// Paths of the cluster in `data_dir`, which need not exist yet.
    ///
    /// # Errors
    /// An empty name, or the working directory is gone.
    pub fn new(data_dir: &Path) -> Result<Self, Failure> {
        let data = std::path::absolute(data_dir).map_err(|e| Failure::file("resolve", data_dir, &e))?;
        let data = real(&data);
        let run = Path::new("/run/coracle").join(cluster_id(&data));
        Ok(Self { data, run })
    }
    /// A file or directory below the data directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.data.join(name)
    }
    /// The pid file.
    pub fn pid(&self) -> PathBuf {
        self.file("coracle.pid")
    }
    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.file("kubeconfig")
    }
    /// The daemon's control socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join("control.sock")
    }
}

/// The path without symbolic links, also while its last parts do not exist: the cluster's id follows from it.
fn real(path: &Path) -> PathBuf {
    if let Ok(real) = fs::canonicalize(path) {
        return real;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => real(parent).join(name),
        _ => path.to_owned(),
    }
}

/// First 8 hex digits of the SHA-256 of the path.
pub fn cluster_id(data: &Path) -> String {
    coracle_stdx::hex(&Sha256::digest(data.as_os_str().as_encoded_bytes())[..4])
}

/// Makes a directory (and its parents) with the given mode.
///
/// # Errors
/// The file system's.
pub fn make_dir(path: &Path, mode: u32) -> Result<(), Failure> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|e| Failure::file("create directory", path, &e))
}

/// Makes the directory of what runs. Others may pass through it, to what is theirs: users of pods that are not the
/// host's reach their files there.
///
/// # Errors
/// It cannot be made.
pub fn make_run_dir(paths: &Paths) -> Result<(), Failure> {
    let mode: fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    for dir in paths.run.parent().into_iter().chain([paths.run.as_path()]) {
        make_dir(dir, 0o711)?;
        fs::set_permissions(dir, mode.clone()).map_err(|e| Failure::file("open", dir, &e))?;
    }
    Ok(())
}

/// Writes a file whole or not at all: temporary file, flush, rename.
///
/// # Errors
/// The file system's; the old content stays then.
pub fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<(), Failure> {
    let fail = |e: &std::io::Error| Failure::file("write", path, e);
    let temp = path.with_extension(format!("tmp-{}", std::process::id()));
    let write = || {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temp)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temp, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&temp);
        fail(&e)
    })
}

impl Cluster {
    /// Reads `D/cluster.json`; `None` when there is no cluster in this directory.
    ///
    /// # Errors
    /// A file that is there but cannot be understood, or was written by a later version.
    pub fn load(paths: &Paths) -> Result<Option<Self>, Failure> {
        #[derive(Deserialize)]
        struct Format {
            #[serde(default = "first_format")]
            format: u32,
        }
        let path = paths.file("cluster.json");
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Failure::file("read", &path, &e)),
            Ok(bytes) => bytes,
        };
        let damaged = |e: serde_json::Error| {
            Failure::new(
                format!("{} is damaged: {e}", path.display()),
                "restore it from a backup, or remove the cluster with `coracle down --purge`",
            )
        };
        let Format { format } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if format > FORMAT {
            let dir = paths.data.display();
            return Err(Failure::new(
                format!("{dir} has format {format}; this version of coracle knows up to format {FORMAT}"),
                "use the later version of coracle that made it, or another --data-dir",
            ));
        }
        let mut cluster: Self = serde_json::from_slice(&bytes).map_err(damaged)?;
        // A directory that was moved or copied is a cluster of its own.
        cluster.id = cluster_id(&paths.data);
        Ok(Some(cluster))
    }

    /// The cluster of this directory: loaded, or made in the first free slot. Options given now override
    /// what was kept, except the service range, which objects in the store depend on.
    ///
    /// # Errors
    /// No free slot, a damaged file, or an attempt to change the service range.
    pub fn establish(paths: &Paths, args: &UpArgs) -> Result<Self, Failure> {
        let old = Self::load(paths)?;
        let _slots = lock_slots()?;
        let slot = take_slot(paths, old.as_ref().map(|c| c.slot))?;
        let mut new = old.clone().unwrap_or_else(|| Self::for_slot(&paths.data, slot, &args.cluster_domain));
        if let (Some(old), Some(asked)) = (&old, &args.service_cluster_ip_range)
            && &old.service_cidr != asked
        {
            return Err(Failure::new(
                format!("this cluster's service range is {}, not {asked}", old.service_cidr),
                "services keep their addresses: make a new cluster in another --data-dir instead",
            ));
        }
        new.slot = slot;
        new.api_port = args.api_port.unwrap_or(new.api_port);
        new.kubelet_port = args.kubelet_port.unwrap_or(new.kubelet_port);
        if let Some(cidr) = &args.service_cluster_ip_range {
            new.service_cidr = cidr.clone();
        }
        if let Some(cidr) = &args.cluster_cidr {
            new.pod_cidr = cidr.clone();
        }
        if let Some(name) = &args.node_name {
            new.node_name = name.clone();
        }
        new.check()?;
        if old.as_ref() != Some(&new) {
            let text = serde_json::to_vec_pretty(&new).unwrap_or_default();
            write_file(&paths.file("cluster.json"), &text, 0o600)?;
        }
        Ok(new)
    }

    fn for_slot(data: &Path, slot: u8, domain: &str) -> Self {
        Self {
            format: FORMAT,
            id: cluster_id(data),
            slot,
            api_port: 6443 + u16::from(slot),
            kubelet_port: 10250 - 100 * u16::from(slot),
            node_name: host_name(),
            pod_cidr: format!("10.{}.0.0/24", 244 - slot),
            service_cidr: format!("10.{}.0.0/16", 96 + slot),
            cluster_domain: domain.to_owned(),
        }
    }

    /// A stand-in for a cluster whose file is damaged: what its removal needs.
    pub fn nameless(paths: &Paths) -> Self {
        Self::for_slot(&paths.data, 0, "cluster.local")
    }

    /// The n-th address of the service range: 1 is the API server, 10 is DNS.
    pub fn service_ip(&self, n: u32) -> Ipv4Addr {
        let base = self.service_cidr.split('/').next().and_then(|a| a.parse::<Ipv4Addr>().ok());
        Ipv4Addr::from(u32::from(base.unwrap_or(Ipv4Addr::UNSPECIFIED)) + n)
    }
}

fn first_format() -> u32 {
    1
}

/// First and last address of an IPv4 range.
fn range(option: &str, cidr: &str) -> Result<(u32, u32), Failure> {
    let parsed = cidr.split_once('/').and_then(|(a, n)| {
        let address = u32::from(a.parse::<Ipv4Addr>().ok()?);
        let length = n.parse::<u32>().ok().filter(|n| (8..=24).contains(n))?;
        let mask = u32::MAX << (32 - length);
        Some((address & mask, address | !mask))
    });
    parsed.ok_or_else(|| {
        Failure::usage(format!("--{option} {cidr:?} is not an IPv4 range such as 10.96.0.0/16 (/8 to /24)"))
    })
}

/// Whether a text is a DNS name of one or more labels, as Kubernetes wants names of nodes.
fn is_dns_name(name: &str) -> bool {
    let label = |l: &str| {
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        l.len() <= 63
            && edge(l.as_bytes().first())
            && edge(l.as_bytes().last())
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// Checks the options that need nothing but themselves, before anything is made.
///
/// # Errors
/// The first option that makes no sense.
pub fn check_args(args: &UpArgs) -> Result<(), Failure> {
    let name = |option: &str, name: Option<&str>| match name {
        Some(name) if !is_dns_name(name) => Err(Failure::usage(format!(
            "--{option} {name:?} is not a DNS name: lower-case letters, digits, '-' and '.', at most 253"
        ))),
        _ => Ok(()),
    };
    name("node-name", args.node_name.as_deref())?;
    name("cluster-domain", Some(&args.cluster_domain))?;
    for (option, cidr) in
        [("cluster-cidr", &args.cluster_cidr), ("service-cluster-ip-range", &args.service_cluster_ip_range)]
    {
        if let Some(cidr) = cidr {
            range(option, cidr)?;
        }
    }
    if args.node_ip.is_some_and(|ip| ip.is_ipv6() || ip.is_unspecified() || ip.is_loopback()) {
        return Err(Failure::usage("--node-ip must be an IPv4 address of this machine, not of its loopback"));
    }
    Ok(())
}

impl Cluster {
    /// Whether the parts go together.
    fn check(&self) -> Result<(), Failure> {
        let pods = range("cluster-cidr", &self.pod_cidr)?;
        let services = range("service-cluster-ip-range", &self.service_cidr)?;
        if pods.0 <= services.1 && services.0 <= pods.1 {
            return Err(Failure::usage(format!(
                "the ranges of pods ({}) and of services ({}) overlap",
                self.pod_cidr, self.service_cidr
            )));
        }
        if self.api_port == self.kubelet_port {
            let port = self.api_port;
            return Err(Failure::usage(format!("--api-port and --kubelet-port are both {port}")));
        }
        Ok(())
    }
}

/// Whether an open file or directory is (still) the one at a path.
pub fn is_at(file: &fs::File, path: &Path) -> bool {
    let inode = |m: fs::Metadata| (m.dev(), m.ino());
    let now = fs::metadata(path).map(inode);
    file.metadata().is_ok_and(|m| now.is_ok_and(|now| now == inode(m)))
}

/// Makes the registry of slots if need be, and keeps others out of it until the value is dropped.
fn lock_slots() -> Result<fs::File, Failure> {
    let dir = Path::new(SLOTS);
    loop {
        make_dir(dir, 0o755)?;
        let locked = fs::File::open(dir).and_then(|file| file.lock().map(|()| file));
        match locked {
            // The last cluster may have removed the directory before we had the lock.
            Ok(file) if !is_at(&file, dir) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Ok(file) => return Ok(file),
            Err(e) => return Err(Failure::file("lock", dir, &e)),
        }
    }
}

/// Takes the cluster's old slot if it is free (or ours), else the first free one.
fn take_slot(paths: &Paths, old: Option<u8>) -> Result<u8, Failure> {
    let mine = paths.data.to_string_lossy().into_owned();
    let taken = |slot: u8| {
        let owner = fs::read_to_string(Path::new(SLOTS).join(slot.to_string())).ok()?;
        // A directory that is gone (an unclean removal) frees its slot.
        Path::new(&owner).join("cluster.json").exists().then_some(owner)
    };
    let ours = (0..MAX_SLOTS).find(|s| taken(*s).is_some_and(|o| o == mine));
    let old = old.filter(|s| taken(*s).is_none());
    let slot = ours.or(old).or_else(|| (0..MAX_SLOTS).find(|s| taken(*s).is_none()));
    let Some(slot) = slot else {
        return Err(Failure::new(
            format!("{MAX_SLOTS} clusters are set up on this machine already"),
            "remove one with `coracle down --purge --data-dir …`",
        ));
    };
    write_file(&Path::new(SLOTS).join(slot.to_string()), mine.as_bytes(), 0o644)?;
    Ok(slot)
}

/// Gives the slot of a cluster back.
pub fn release_slot(paths: &Paths) {
    let Ok(_slots) = lock_slots() else { return };
    let mine = paths.data.to_string_lossy().into_owned();
    for slot in 0..MAX_SLOTS {
        let path = Path::new(SLOTS).join(slot.to_string());
        if fs::read_to_string(&path).is_ok_and(|owner| owner == mine) {
            let _ = fs::remove_file(path);
        }
    }
    // Empty directories go too; others' clusters keep them.
    let _ = fs::remove_dir(SLOTS);
    if let Some(parent) = Path::new(SLOTS).parent() {
        let _ = fs::remove_dir(parent);
    }
}

/// The machine's host name, made fit for a node name.
pub fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_default();
    let name: String = name
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '-' })
        .collect();
    let name = name.trim_matches(|c| c == '-' || c == '.').to_owned();
    if name.is_empty() || name == "(none)" { "node".into() } else { name }
}

/// The address of this machine towards others: that of the default route, else of any interface that is up.
pub fn node_ip() -> Option<IpAddr> {
    // Connecting a datagram socket sends nothing; it only asks the routing table.
    let routed = std::net::UdpSocket::bind("0.0.0.0:0")
        .and_then(|s| s.connect("192.0.2.1:9").and_then(|()| s.local_addr()))
        .map(|a| a.ip())
        .ok()
        .filter(|ip| !ip.is_loopback() && !ip.is_unspecified());
    routed.or_else(|| {
        let up = nix::ifaddrs::getifaddrs().ok()?;
        up.filter_map(|i| Some(IpAddr::V4(i.address?.as_sockaddr_in()?.ip()))).find(|ip| !ip.is_loopback())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_give_disjoint_ranges_and_ports() {
        let all: Vec<Cluster> =
            (0..MAX_SLOTS).map(|s| Cluster::for_slot(Path::new("/x"), s, "cluster.local")).collect();
        for (i, a) in all.iter().enumerate() {
            for b in &all[i + 1..] {
                assert_ne!(a.pod_cidr, b.pod_cidr);
                assert_ne!(a.service_cidr, b.service_cidr);
                assert_ne!(a.api_port, b.api_port);
                assert_ne!(a.kubelet_port, b.kubelet_port);
            }
        }
        assert_eq!(all[0].service_ip(10), Ipv4Addr::new(10, 96, 0, 10));
    }

    #[test]
    fn damaged_cluster_file_is_reported_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path()).unwrap();
        std::fs::write(paths.file("cluster.json"), "{").unwrap();
        assert!(Cluster::load(&paths).unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn later_format_is_refused_whatever_else_the_file_holds() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path()).unwrap();
        std::fs::write(paths.file("cluster.json"), r#"{"format": 2, "nodes": []}"#).unwrap();
        assert!(Cluster::load(&paths).unwrap_err().to_string().contains("has format 2"));
    }

    #[test]
    fn ranges_that_overlap_and_equal_ports_are_refused() {
        let good = Cluster::for_slot(Path::new("/x"), 0, "cluster.local");
        good.check().unwrap();
        let overlapping = Cluster { service_cidr: "10.244.0.128/24".into(), ..good.clone() };
        assert!(overlapping.check().unwrap_err().to_string().contains("overlap"));
        let same = Cluster { kubelet_port: good.api_port, ..good };
        assert!(same.check().is_err());
    }

    #[test]
    fn id_is_the_same_before_and_after_the_directory_exists() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        let before = Paths::new(&link.join("a/b")).unwrap().run;
        std::fs::create_dir_all(link.join("a/b")).unwrap();
        assert_eq!(Paths::new(&link.join("a/b")).unwrap().run, before);
    }
}
