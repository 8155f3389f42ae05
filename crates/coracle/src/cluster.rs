//! A cluster's identity on this machine: its data directory, id, slot and the ranges and ports that follow
//! from them, so that several clusters live side by side.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cli::UpArgs;
use crate::error::Failure;

/// Registry of the clusters of this machine: one file per slot.
const SLOTS: &str = "/run/coracle/clusters";
/// Slots there are: service ranges 10.96 … 10.111.
const MAX_SLOTS: u8 = 16;

/// What is decided once for a cluster and kept in `D/cluster.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
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
    /// When the working directory is gone.
    pub fn new(data_dir: &Path) -> Result<Self, Failure> {
        let data = std::path::absolute(data_dir).map_err(|e| Failure::file("resolve", data_dir, &e))?;
        let data = fs::canonicalize(&data).unwrap_or(data);
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

/// First 8 hex digits of the SHA-256 of the path.
pub fn cluster_id(data: &Path) -> String {
    let digest = Sha256::digest(data.as_os_str().as_encoded_bytes());
    digest.iter().take(4).map(|b| format!("{b:02x}")).collect()
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
    /// A file that is there but cannot be understood.
    pub fn load(paths: &Paths) -> Result<Option<Self>, Failure> {
        let path = paths.file("cluster.json");
        match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Failure::file("read", &path, &e)),
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| {
                Failure::new(
                    format!("{} is damaged: {e}", path.display()),
                    "restore it, or remove the cluster with `coracle down --purge`",
                )
            }),
        }
    }

    /// The cluster of this directory: loaded, or made in the first free slot. Options given now override
    /// what was kept, except the service range, which objects in the store depend on.
    ///
    /// # Errors
    /// No free slot, a damaged file, or an attempt to change the service range.
    pub fn establish(paths: &Paths, args: &UpArgs) -> Result<Self, Failure> {
        make_dir(&paths.data, 0o700)?;
        make_dir(Path::new(SLOTS), 0o755)?;
        let old = Self::load(paths)?;
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
        check_cidr("cluster-cidr", &new.pod_cidr)?;
        check_cidr("service-cluster-ip-range", &new.service_cidr)?;
        if old.as_ref() != Some(&new) {
            let text = serde_json::to_vec_pretty(&new).unwrap_or_default();
            write_file(&paths.file("cluster.json"), &text, 0o600)?;
        }
        Ok(new)
    }

    fn for_slot(data: &Path, slot: u8, domain: &str) -> Self {
        Self {
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

fn check_cidr(option: &str, cidr: &str) -> Result<(), Failure> {
    let good = cidr.split_once('/').is_some_and(|(a, n)| {
        a.parse::<Ipv4Addr>().is_ok() && n.parse::<u8>().is_ok_and(|n| (8..=24).contains(&n))
    });
    if good {
        return Ok(());
    }
    Err(Failure::usage(format!("--{option} {cidr:?} is not an IPv4 range such as 10.96.0.0/16 (/8 to /24)")))
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
    let mine = paths.data.to_string_lossy().into_owned();
    for slot in 0..MAX_SLOTS {
        let path = Path::new(SLOTS).join(slot.to_string());
        if fs::read_to_string(&path).is_ok_and(|owner| owner == mine) {
            let _ = fs::remove_file(path);
        }
    }
    // Empty directories go too; others' clusters keep them.
    let _ = fs::remove_dir(SLOTS);
    let _ = fs::remove_dir("/run/coracle");
}

/// The machine's host name, made fit for a node name.
fn host_name() -> String {
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
}
