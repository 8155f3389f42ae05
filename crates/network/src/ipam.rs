//! Which sandbox has which address: one small file per sandbox, written whole or not at all.
//!
//! The directory is the truth after a restart of the daemon. It need not survive a reboot, which ends all
//! pods; so files are renamed into place but not flushed.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use coracle_cri::{NetworkError, PortMapping};
use serde::{Deserialize, Serialize};

use crate::config::Cidr;

/// A connected (or half connected) sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub sandbox_id: String,
    pub address: Ipv4Addr,
    /// The host end's name.
    pub link: String,
    #[serde(default)]
    pub ports: Vec<PortMapping>,
}

/// The addresses in use, in memory and on disk.
#[derive(Debug)]
pub(crate) struct Ipam {
    directory: PathBuf,
    range: Cidr,
    prefix: String,
    records: HashMap<String, Record>,
    used: HashSet<Ipv4Addr>,
    /// Where the search for a free address goes on, so that an address rests before it is used again.
    cursor: u64,
}

fn disk(what: &str, path: &Path, cause: &io::Error) -> NetworkError {
    NetworkError::Kernel { what: format!("{what} {}", path.display()), cause: cause.to_string() }
}

/// 32-bit FNV-1a.
fn hash(text: &str, salt: u32) -> u32 {
    text.bytes().fold(0x811c_9dc5 ^ salt, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193))
}

/// Sandbox ids become file names: whatever is not a plain character is replaced, with a hash to keep ids
/// apart.
fn file_name(id: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !id.is_empty() && id.len() < 128 && id.chars().all(plain) {
        return format!("{id}.json");
    }
    let name: String = id.chars().take(64).map(|c| if plain(c) { c } else { '_' }).collect();
    format!("{name}.{:08x}.json", hash(id, 0))
}

impl Ipam {
    /// Reads what is in use. A file that cannot be read as a record is removed: it was never finished.
    pub fn open(directory: &Path, range: Cidr, prefix: String) -> Result<Self, NetworkError> {
        std::fs::create_dir_all(directory).map_err(|e| disk("create directory", directory, &e))?;
        let mut records = HashMap::new();
        let entries = std::fs::read_dir(directory).map_err(|e| disk("read directory", directory, &e))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let text = std::fs::read(&path).unwrap_or_default();
            match serde_json::from_slice::<Record>(&text) {
                Ok(record) => drop(records.insert(record.sandbox_id.clone(), record)),
                Err(_) => drop(std::fs::remove_file(&path)),
            }
        }
        let used = records.values().map(|r: &Record| r.address).collect();
        Ok(Self { directory: directory.to_owned(), range, prefix, records, used, cursor: 2 })
    }

    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    pub fn get(&self, id: &str) -> Option<&Record> {
        self.records.get(id)
    }

    /// The sandbox's record; a new one with a free address if it has none.
    pub fn allocate(&mut self, id: &str, ports: &[PortMapping]) -> Result<Record, NetworkError> {
        if let Some(record) = self.records.get(id) {
            return Ok(record.clone());
        }
        let address =
            self.free_address().ok_or_else(|| NetworkError::NoAddress { range: self.range.to_string() })?;
        let link = self.free_link(id);
        let record = Record { sandbox_id: id.to_owned(), address, link, ports: ports.to_vec() };
        let path = self.directory.join(file_name(id));
        let temporary = self.directory.join(format!(".{}", file_name(id)));
        let text = serde_json::to_vec(&record).unwrap_or_default();
        std::fs::write(&temporary, text).map_err(|e| disk("write", &temporary, &e))?;
        std::fs::rename(&temporary, &path).map_err(|e| disk("write", &path, &e))?;
        self.used.insert(address);
        self.records.insert(id.to_owned(), record.clone());
        Ok(record)
    }

    /// The first two addresses and the last stay free.
    fn free_address(&mut self) -> Option<Ipv4Addr> {
        let end = self.range.size().saturating_sub(1);
        let (low, high) = (2..self.cursor.min(end), self.cursor..end);
        for n in high.chain(low) {
            let address = self.range.nth(n)?;
            if !self.used.contains(&address) {
                self.cursor = n + 1;
                return Some(address);
            }
        }
        None
    }

    fn free_link(&self, id: &str) -> String {
        let mut salt = 0;
        loop {
            let name = format!("{}{:08x}", self.prefix, hash(id, salt));
            if self.records.values().all(|r| r.link != name) {
                return name;
            }
            salt += 1;
        }
    }

    /// Frees a sandbox's address.
    pub fn release(&mut self, id: &str) -> Result<(), NetworkError> {
        let path = self.directory.join(file_name(id));
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(disk("remove", &path, &e)),
            _ => {}
        }
        if let Some(record) = self.records.remove(id) {
            self.used.remove(&record.address);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(directory: &Path, range: &str) -> Ipam {
        Ipam::open(directory, Cidr::parse(range).expect("range"), "crabcd".into()).expect("open")
    }

    #[test]
    fn addresses_are_kept_over_a_restart_and_freed_by_release() {
        let directory = tempfile::tempdir().expect("directory");
        let mut ipam = open(directory.path(), "10.244.0.0/29");
        let one = ipam.allocate("one", &[]).expect("address");
        let two = ipam.allocate("two", &[]).expect("address");
        assert_eq!(one.address, Ipv4Addr::new(10, 244, 0, 2));
        assert_ne!(one.address, two.address);
        assert_eq!(ipam.allocate("one", &[]).expect("again"), one);

        let mut again = open(directory.path(), "10.244.0.0/29");
        assert_eq!(again.get("two"), Some(&two));
        again.release("two").expect("release");
        again.release("two").expect("releasing twice is fine");
        assert!(open(directory.path(), "10.244.0.0/29").get("two").is_none());
    }

    #[test]
    fn a_full_range_says_so_and_a_freed_address_is_found_again() {
        let directory = tempfile::tempdir().expect("directory");
        let mut ipam = open(directory.path(), "10.244.0.0/29");
        let ids: Vec<String> = (0..5).map(|n| format!("s{n}")).collect();
        ids.iter().for_each(|id| drop(ipam.allocate(id, &[]).expect("address")));
        let full = ipam.allocate("more", &[]).expect_err("full");
        assert_eq!(full.to_string(), "no free address in pod range 10.244.0.0/29");
        let freed = ipam.get("s3").expect("record").address;
        ipam.release("s3").expect("release");
        assert_eq!(ipam.allocate("more", &[]).expect("address").address, freed);
    }

    #[test]
    fn an_unfinished_file_is_dropped() {
        let directory = tempfile::tempdir().expect("directory");
        std::fs::write(directory.path().join("x.json"), "{\"sandbox").expect("write");
        assert_eq!(open(directory.path(), "10.244.0.0/24").records().count(), 0);
        assert_eq!(std::fs::read_dir(directory.path()).expect("read").count(), 0);
    }

    #[test]
    fn link_names_fit_the_kernel_and_differ() {
        let directory = tempfile::tempdir().expect("directory");
        let mut ipam = open(directory.path(), "10.244.0.0/16");
        let links: HashSet<String> =
            (0..200).map(|n| ipam.allocate(&format!("a/b:{n}"), &[]).expect("address").link).collect();
        assert_eq!(links.len(), 200);
        assert!(links.iter().all(|l| l.len() <= 15), "{links:?}");
    }
}
