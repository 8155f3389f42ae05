//! Kernel switches of the network namespace that clusters share, put back when the last of them goes.
//!
//! `/run/coracle/sysctl/<netns inode>/` holds the value found at first (`ip_forward`) and one file per cluster
//! that needs it (`users/<cluster id>`, the path of its network state). A cluster whose state is gone, removed
//! by hand or with a namespace whose inode is used again, needs nothing.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use coracle_cri::NetworkError;

use crate::NetworkConfig;

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

/// Turns IPv4 forwarding on for a cluster and remembers what it was.
pub(crate) fn enable_forwarding(config: &NetworkConfig) -> Result<(), NetworkError> {
    Shared::here()?.enable(&config.cluster_id, &config.state)
}

/// Takes a cluster's need back; the last one restores the value found at first.
pub(crate) fn release_forwarding(config: &NetworkConfig) -> Result<(), NetworkError> {
    Shared::here()?.release(&config.cluster_id)?;
    // Gone too when it is empty, so that nothing of ours is left.
    let _ = std::fs::remove_dir(Path::new(RECORDS).parent().unwrap_or(Path::new(RECORDS)));
    Ok(())
}

/// A switch with its record.
struct Shared {
    records: PathBuf,
    directory: PathBuf,
    switch: PathBuf,
}

impl Shared {
    fn here() -> Result<Self, NetworkError> {
        let path = Path::new("/proc/thread-self/ns/net");
        let inode = std::fs::metadata(path).map_err(|e| failed("read", path, &e))?.ino();
        Ok(Self::at(Path::new(RECORDS), &inode.to_string(), Path::new(FORWARD)))
    }

    fn at(records: &Path, namespace: &str, switch: &Path) -> Self {
        Self { records: records.into(), directory: records.join(namespace), switch: switch.into() }
    }

    /// Held while records are read and changed: clusters start and end beside each other.
    fn lock(&self) -> Result<std::fs::File, NetworkError> {
        let fail = |e| failed("lock", &self.records, &e);
        loop {
            std::fs::create_dir_all(&self.records).map_err(fail)?;
            let file = match std::fs::File::open(&self.records) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                file => file.map_err(fail)?,
            };
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
                .map_err(|e| fail(e.into()))?;
            // Whoever had it may have removed it.
            if file.metadata().is_ok_and(|m| m.nlink() > 0) {
                return Ok(file);
            }
        }
    }

    /// Forgets clusters whose state is gone, and says whether one is left.
    fn in_use(&self) -> bool {
        let users = std::fs::read_dir(self.directory.join("users")).into_iter().flatten().flatten();
        users.fold(false, |used, user| {
            let alive =
                std::fs::read(user.path()).is_ok_and(|state| Path::new(OsStr::from_bytes(&state)).exists());
            if !alive {
                let _ = std::fs::remove_file(user.path());
            }
            used || alive
        })
    }

    fn enable(&self, cluster: &str, state: &Path) -> Result<(), NetworkError> {
        let _lock = self.lock()?;
        let (before, users) = (self.directory.join("ip_forward"), self.directory.join("users"));
        for directory in [&users, &state.to_path_buf()] {
            std::fs::create_dir_all(directory).map_err(|e| failed("create directory", directory, &e))?;
        }
        let value = std::fs::read_to_string(&self.switch).map_err(|e| failed("read", &self.switch, &e))?;
        if !self.in_use() || !before.exists() {
            std::fs::write(&before, &value).map_err(|e| failed("write", &before, &e))?;
        }
        let user = users.join(cluster);
        std::fs::write(&user, state.as_os_str().as_bytes()).map_err(|e| failed("write", &user, &e))?;
        if value.trim() != "1" {
            std::fs::write(&self.switch, "1").map_err(|e| failed("write", &self.switch, &e))?;
        }
        Ok(())
    }

    fn release(&self, cluster: &str) -> Result<(), NetworkError> {
        let _lock = self.lock()?;
        let _ = std::fs::remove_file(self.directory.join("users").join(cluster));
        if self.in_use() {
            return Ok(());
        }
        if let Ok(value) = std::fs::read_to_string(self.directory.join("ip_forward")) {
            std::fs::write(&self.switch, value.trim()).map_err(|e| failed("write", &self.switch, &e))?;
        }
        let _ = std::fs::remove_dir_all(&self.directory);
        let _ = std::fs::remove_dir(&self.records);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).expect("it is there").trim().to_owned()
    }

    #[test]
    fn last_cluster_puts_back_what_the_first_one_found() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (records, switch) = (dir.path().join("records"), dir.path().join("switch"));
        std::fs::write(&switch, "0\n").expect("write");
        let shared = Shared::at(&records, "1", &switch);
        shared.enable("a", &dir.path().join("a")).expect("enable");
        shared.enable("b", &dir.path().join("b")).expect("enable");
        shared.enable("a", &dir.path().join("a")).expect("a restart");
        shared.release("a").expect("release");
        assert_eq!(read(&switch), "1", "b needs it");
        shared.release("b").expect("release");
        assert_eq!(read(&switch), "0");
        assert!(!records.exists(), "nothing is left");
        shared.release("b").expect("nothing to do");
    }

    /// A namespace's inode is used again when it is gone, and a data directory may be removed by hand.
    #[test]
    fn cluster_whose_state_is_gone_neither_holds_the_switch_nor_tells_its_value() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (records, switch) = (dir.path().join("records"), dir.path().join("switch"));
        std::fs::write(&switch, "1\n").expect("write");
        let shared = Shared::at(&records, "1", &switch);
        shared.enable("gone", &dir.path().join("gone")).expect("enable");
        std::fs::remove_dir(dir.path().join("gone")).expect("remove");
        std::fs::write(&switch, "0\n").expect("another namespace");
        shared.enable("a", &dir.path().join("a")).expect("enable");
        assert_eq!(read(&switch), "1");
        shared.release("a").expect("release");
        assert_eq!(read(&switch), "0");
    }
}
