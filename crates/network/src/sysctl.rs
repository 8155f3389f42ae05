//! Kernel switches of the network namespace that clusters share, put back when the last of them goes.
//!
//! `/run/coracle/sysctl/<netns inode>/` holds the value found at first (`ip_forward`) and one empty file
//! per cluster that needs it (`users/<cluster id>`).

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use coracle_cri::NetworkError;

const RECORDS: &str = "/run/coracle/sysctl";
const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";

fn failed(what: &str, path: &Path, cause: &io::Error) -> NetworkError {
    NetworkError::Kernel { what: format!("{what} {}", path.display()), cause: cause.to_string() }
}

/// Sets a switch of one link; best effort, since old kernels lack some.
pub(crate) fn set_link(family: &str, link: &str, key: &str, value: &str) {
    let path = format!("/proc/sys/net/{family}/conf/{link}/{key}");
    if let Err(e) = std::fs::write(&path, value) {
        tracing::debug!(path, error = %e, "cannot set");
    }
}

fn directory() -> Result<PathBuf, NetworkError> {
    let path = Path::new("/proc/thread-self/ns/net");
    let inode = std::fs::metadata(path).map_err(|e| failed("read", path, &e))?.ino();
    Ok(Path::new(RECORDS).join(inode.to_string()))
}

/// Turns IPv4 forwarding on for a cluster and remembers what it was.
pub(crate) fn enable_forwarding(cluster_id: &str) -> Result<(), NetworkError> {
    let directory = directory()?;
    let users = directory.join("users");
    std::fs::create_dir_all(&users).map_err(|e| failed("create directory", &users, &e))?;
    let before = directory.join("ip_forward");
    let forward = Path::new(FORWARD);
    let value = std::fs::read_to_string(forward).map_err(|e| failed("read", forward, &e))?;
    if !before.exists() {
        std::fs::write(&before, &value).map_err(|e| failed("write", &before, &e))?;
    }
    let user = users.join(cluster_id);
    std::fs::write(&user, "").map_err(|e| failed("write", &user, &e))?;
    if value.trim() != "1" {
        std::fs::write(forward, "1").map_err(|e| failed("write", forward, &e))?;
    }
    Ok(())
}

/// Takes a cluster's need back; the last one restores the value found at first.
pub(crate) fn release_forwarding(cluster_id: &str) -> Result<(), NetworkError> {
    let directory = directory()?;
    let users = directory.join("users");
    let _ = std::fs::remove_file(users.join(cluster_id));
    let in_use = std::fs::read_dir(&users).is_ok_and(|mut entries| entries.next().is_some());
    if in_use {
        return Ok(());
    }
    if let Ok(value) = std::fs::read_to_string(directory.join("ip_forward")) {
        let forward = Path::new(FORWARD);
        std::fs::write(forward, value.trim()).map_err(|e| failed("write", forward, &e))?;
    }
    let _ = std::fs::remove_dir_all(&directory);
    // Gone too when they are empty, so that nothing of ours is left.
    let _ = std::fs::remove_dir(RECORDS);
    let _ = std::fs::remove_dir("/run/coracle");
    Ok(())
}
