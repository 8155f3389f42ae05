//! User namespaces of pods (`hostUsers: false`): each pod has a range of the host's users and groups to itself,
//! recorded in its directory in upstream's form.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use coracle_cri::v1::{IdMapping, RuntimeHandler};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::names;

/// Name of the record in a pod's directory.
const RECORD: &str = "userns";
/// Lengths and beginnings of ranges are multiples of this.
const UNIT: u32 = 65536;

/// Which ids of the host pods may be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first one.
    pub first: u32,
    /// How many.
    pub length: u32,
}

impl IdRange {
    /// All but those that users of the host itself have.
    #[must_use]
    pub fn all(ids_per_pod: u32) -> Self {
        Self { first: ids_per_pod, length: u32::MAX - ids_per_pod + 1 }
    }

    /// What `/etc/subuid` or `/etc/subgid` gives the user `kubelet`; `None` if it is not named there.
    ///
    /// # Errors
    /// It is named more than once, or with something that is no range.
    pub fn subordinate(text: &str) -> Result<Option<Self>, String> {
        let mut lines = text.lines().filter_map(|l| l.strip_prefix("kubelet:"));
        let Some(line) = lines.next() else { return Ok(None) };
        if lines.next().is_some() {
            return Err(format!("error parsing line {text:?}: it must contain only one line"));
        }
        let numbers = line.split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.trim().parse().ok()?)));
        let (first, length) = numbers.ok_or_else(|| format!("invalid line {line:?}"))?;
        Ok(Some(Self { first, length }))
    }

    /// Upstream's rules.
    ///
    /// # Errors
    /// Upstream's text.
    pub fn check(self, ids_per_pod: u32, max_pods: u32) -> Result<(), String> {
        let Self { first, length } = self;
        if ids_per_pod == 0 || !ids_per_pod.is_multiple_of(UNIT) {
            return Err(format!("kubelet user namespace length {ids_per_pod} is not a multiple of {UNIT}"));
        }
        if !first.is_multiple_of(ids_per_pod) {
            return Err(format!("kubelet user assigned ID {first} is not a multiple of {ids_per_pod}"));
        }
        if first < ids_per_pod {
            return Err(format!(
                "kubelet user assigned ID {first} must be greater or equal to {ids_per_pod}"
            ));
        }
        if !length.is_multiple_of(ids_per_pod) {
            return Err(format!(
                "kubelet user assigned IDs length {length} is not a multiple of {ids_per_pod}"
            ));
        }
        if length / ids_per_pod < max_pods {
            return Err(format!("kubelet user assigned IDs are not enough to support {max_pods} pods"));
        }
        Ok(())
    }
}

/// The ranges in use, by pod.
#[derive(Debug)]
pub struct UserNamespaces {
    range: IdRange,
    ids_per_pod: u32,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    by_pod: BTreeMap<String, u32>,
    /// The block given last; the next search begins behind it, so that ids rest before they are given again.
    last: Option<u32>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    uid_mappings: Vec<RecordedMapping>,
    gid_mappings: Vec<RecordedMapping>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RecordedMapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

impl UserNamespaces {
    /// With what pods of earlier runs have.
    pub fn open(range: IdRange, ids_per_pod: u32, root: &Path) -> Self {
        let mut used = Used::default();
        for entry in std::fs::read_dir(root.join("pods")).into_iter().flatten().flatten() {
            if let Ok(Some(first)) = read(&entry.path(), ids_per_pod) {
                used.by_pod.insert(entry.file_name().to_string_lossy().into_owned(), first);
            }
        }
        Self { range, ids_per_pod, used: used.into() }
    }

    /// The ids of a pod that wants its own; the same ones each time. `directory` is the pod's.
    ///
    /// # Errors
    /// Upstream's texts.
    pub fn of(&self, pod: &Pod, directory: &Path) -> Result<Option<IdMapping>, String> {
        if !wanted(pod) {
            return Ok(None);
        }
        let recorded = read(directory, self.ids_per_pod).map_err(|e| format!("user namespace: {e}"))?;
        let first = match recorded {
            Some(first) => {
                self.used.lock().by_pod.insert(names::uid(pod).to_owned(), first);
                first
            }
            None => {
                let first = self.allocate(names::uid(pod))?;
                write(directory, first, self.ids_per_pod).map_err(|e| {
                    self.release(names::uid(pod));
                    format!("create user namespace: {e}")
                })?;
                first
            }
        };
        Ok(Some(IdMapping { host_id: first, length: self.ids_per_pod }))
    }

    /// The pod's directory is gone.
    pub fn release(&self, uid: &str) {
        self.used.lock().by_pod.remove(uid);
    }

    fn allocate(&self, uid: &str) -> Result<u32, String> {
        let mut used = self.used.lock();
        if let Some(first) = used.by_pod.get(uid) {
            return Ok(*first);
        }
        let count = self.range.length / self.ids_per_pod;
        let taken: std::collections::BTreeSet<u32> = used.by_pod.values().copied().collect();
        let from = used.last.map_or(0, |last| (last + 1) % count);
        let block = (0..count)
            .map(|n| (from + n) % count)
            .find(|block| !taken.contains(&self.first_of(*block)))
            .ok_or("could not find an empty slot to allocate a user namespace")?;
        used.last = Some(block);
        let first = self.first_of(block);
        used.by_pod.insert(uid.to_owned(), first);
        Ok(first)
    }

    fn first_of(&self, block: u32) -> u32 {
        self.range.first + block * self.ids_per_pod
    }
}

/// Whether a pod wants users of its own.
pub fn wanted(pod: &Pod) -> bool {
    crate::pod::spec(pod).host_users == Some(false)
}

/// Whether the runtime can give a pod its users, in upstream's words if not.
///
/// # Errors
/// It cannot.
pub fn check_handler(pod: &Pod, handler: &str, handlers: &[RuntimeHandler]) -> Result<(), String> {
    if !wanted(pod) || handlers.iter().any(|h| h.name == handler && h.user_namespaces) {
        return Ok(());
    }
    Err(match handler {
        "" => "can't set `spec.hostUsers: false`, runtime does not support user namespaces".to_owned(),
        name => format!(
            "can't set `spec.hostUsers: false`, RuntimeClass handler {name:?} does not support user namespaces"
        ),
    })
}

/// What a pod's directory says of its range.
fn read(directory: &Path, ids_per_pod: u32) -> Result<Option<u32>, String> {
    let text = match std::fs::read(directory.join(RECORD)) {
        Ok(text) if !text.is_empty() => text,
        Ok(_) => return Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    let record: Record =
        serde_json::from_slice(&text).map_err(|e| format!("invalid user namespace mappings file: {e}"))?;
    match (&record.uid_mappings[..], &record.gid_mappings[..]) {
        ([users], [groups]) if users == groups && users.container_id == 0 => {
            if users.length != ids_per_pod {
                return Err(format!("wrong user namespace length {}", users.length));
            }
            Ok(Some(users.host_id))
        }
        ([_], [_]) => {
            Err("invalid user namespace configuration: GID and UID mapping should be identical".into())
        }
        _ => Err("invalid user namespace configuration: no more than one mapping allowed.".into()),
    }
}

fn write(directory: &Path, first: u32, length: u32) -> io::Result<()> {
    let one = vec![RecordedMapping { host_id: first, container_id: 0, length }];
    let record = Record { uid_mappings: one.clone(), gid_mappings: one };
    std::fs::create_dir_all(directory)?;
    let temp = directory.join(".userns");
    std::fs::write(&temp, serde_json::to_vec(&record)?)?;
    std::fs::File::open(&temp)?.sync_all()?;
    std::fs::rename(&temp, directory.join(RECORD))?;
    std::fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, host_users: Option<bool>) -> Pod {
        let mut pod = crate::pod::tests::pod(json!({"containers": []}));
        pod.metadata.uid = Some(uid.into());
        if let Some(spec) = &mut pod.spec {
            spec.host_users = host_users;
        }
        pod
    }

    #[test]
    fn a_pod_keeps_its_ids_and_no_other_pod_has_them() {
        let root = tempfile::tempdir().unwrap();
        let open = || UserNamespaces::open(IdRange::all(UNIT), UNIT, root.path());
        let directory = |uid: &str| root.path().join("pods").join(uid);
        let all = open();
        let of = |all: &UserNamespaces, uid: &str| all.of(&pod(uid, Some(false)), &directory(uid)).unwrap();
        let first = of(&all, "a").unwrap();
        assert_eq!(first, IdMapping { host_id: 65536, length: 65536 });
        assert_eq!(of(&all, "b").unwrap().host_id, 2 * 65536);
        assert_eq!(of(&all, "a"), Some(first.clone()));
        let again = open();
        assert_eq!(of(&again, "c").unwrap().host_id, 3 * 65536, "ids of earlier runs are taken");
        assert_eq!(of(&again, "a"), Some(first));
        assert_eq!(all.of(&pod("d", None), &directory("d")), Ok(None));
        assert_eq!(all.of(&pod("d", Some(true)), &directory("d")), Ok(None));
    }

    #[test]
    fn ids_are_given_again_when_all_others_were_given() {
        let root = tempfile::tempdir().unwrap();
        let range = IdRange { first: UNIT, length: 2 * UNIT };
        let all = UserNamespaces::open(range, UNIT, root.path());
        assert_eq!(all.allocate("a"), Ok(UNIT));
        all.release("a");
        assert_eq!(all.allocate("b"), Ok(2 * UNIT), "what was given back rests");
        assert_eq!(all.allocate("c"), Ok(UNIT));
        let full = all.allocate("d").unwrap_err();
        assert_eq!(full, "could not find an empty slot to allocate a user namespace");
    }

    #[test]
    fn a_range_is_checked_as_upstream_checks_it() {
        assert_eq!(IdRange::all(UNIT).check(UNIT, 110), Ok(()));
        let text = "root:1:2\nkubelet:65536:7208960\n";
        let given = IdRange::subordinate(text).unwrap().unwrap();
        assert_eq!(given, IdRange { first: 65536, length: 7_208_960 });
        assert_eq!(given.check(UNIT, 110), Ok(()));
        let few = "kubelet user assigned IDs are not enough to support 111 pods";
        assert_eq!(given.check(UNIT, 111).unwrap_err(), few);
        let odd = IdRange { first: 100_000, ..given }.check(UNIT, 1).unwrap_err();
        assert_eq!(odd, "kubelet user assigned ID 100000 is not a multiple of 65536");
        assert_eq!(IdRange::subordinate("other:1:2\n"), Ok(None));
        assert!(IdRange::subordinate("kubelet:1:2\nkubelet:3:4\n").is_err());
    }

    #[test]
    fn a_runtime_without_them_is_named_in_upstreams_words() {
        let handlers = [RuntimeHandler { name: "x".into(), ..Default::default() }];
        let p = pod("a", Some(false));
        assert_eq!(
            check_handler(&p, "", &handlers).unwrap_err(),
            "can't set `spec.hostUsers: false`, runtime does not support user namespaces"
        );
        assert_eq!(
            check_handler(&p, "x", &handlers).unwrap_err(),
            "can't set `spec.hostUsers: false`, RuntimeClass handler \"x\" does not support user namespaces"
        );
        assert_eq!(check_handler(&pod("a", None), "", &handlers), Ok(()));
    }
}
