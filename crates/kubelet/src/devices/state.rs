//! The file `kubelet_internal_checkpoint`: who has which devices, in upstream's layout and with its checksum, so that
//! either kubelet goes on with what the other gave.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use coracle_grpc::{Bytes, Message as _};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::book::{Book, Grant};
use super::wire::ContainerAllocateResponse;
use crate::checkpoint::{self, shown_map};

/// What stands in the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    data: Data,
    checksum: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Data {
    pod_device_entries: Option<Vec<Entry>>,
    /// Healthy devices by resource.
    registered_devices: Option<BTreeMap<String, Option<Vec<String>>>>,
}

/// Devices of a resource that a container has.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "PodUID")]
    pod: String,
    container_name: String,
    resource_name: String,
    /// By memory node.
    #[serde(rename = "DeviceIDs")]
    ids: Option<BTreeMap<i64, Option<Vec<String>>>>,
    /// What the plug-in answered, as protocol buffer in base64.
    alloc_resp: Option<String>,
}

impl Data {
    /// As Go shows it, which is what the checksum is of.
    fn shown(&self) -> Result<String, String> {
        let entries = self.pod_device_entries.as_ref().map(|all| {
            let all: Result<Vec<String>, String> = all.iter().map(Entry::shown).collect();
            all.map(|all| format!("[{}]", all.join(" ")))
        });
        let entries = entries.transpose()?.unwrap_or_else(|| NIL.to_owned());
        let registered = self.registered_devices.as_ref();
        let registered = registered.map_or_else(|| NIL.to_owned(), |all| shown_map(all, shown_list));
        Ok(format!(
            "(checkpoint.checkpointData){{PodDeviceEntries:([]checkpoint.PodDevicesEntry){entries} \
             RegisteredDevices:(map[string][]string){registered}}}"
        ))
    }
}

/// What is not there, as Go shows it.
const NIL: &str = "<nil>";

fn shown_list(list: &Option<Vec<String>>) -> String {
    list.as_ref().map_or_else(|| NIL.to_owned(), |list| format!("[{}]", list.join(" ")))
}

impl Entry {
    fn answer(&self) -> Result<Option<Vec<u8>>, String> {
        self.alloc_resp.as_ref().map(|text| STANDARD.decode(text).map_err(|e| e.to_string())).transpose()
    }

    fn shown(&self) -> Result<String, String> {
        let ids = self.ids.as_ref().map_or_else(|| NIL.to_owned(), |ids| shown_map(ids, shown_list));
        let answer = self.answer()?.map_or_else(
            || NIL.to_owned(),
            |bytes| format!("[{}]", bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(" ")),
        );
        let Self { pod, container_name, resource_name, .. } = self;
        Ok(format!(
            "{{PodUID:(string){pod} ContainerName:(string){container_name} ResourceName:(string){resource_name} \
             DeviceIDs:(checkpoint.DevicesPerNUMA){ids} AllocResp:([]uint8){answer}}}"
        ))
    }
}

/// What an earlier kubelet wrote down. A file that cannot be used is as good as none, as upstream; the log says so.
pub fn load(path: &Path) -> Book {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Book::default(),
        Err(error) => {
            warn!(%error, path = %path.display(), "who has which devices cannot be read");
            return Book::default();
        }
    };
    parse(&text).unwrap_or_else(|error| {
        warn!(error, path = %path.display(), "who has which devices is not known any more");
        Book::default()
    })
}

fn parse(text: &[u8]) -> Result<Book, String> {
    let file: File = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    if checkpoint::fnv(&file.data.shown()?) != file.checksum {
        return Err("checkpoint is corrupted".into());
    }
    let mut book = Book::default();
    for resource in file.data.registered_devices.unwrap_or_default().keys() {
        book.know(resource);
    }
    for entry in file.data.pod_device_entries.unwrap_or_default() {
        let answer = Bytes::from(entry.answer()?.unwrap_or_default());
        let needs = match ContainerAllocateResponse::decode(answer) {
            Ok(needs) => needs,
            Err(error) => {
                let (pod, container) = (entry.pod, entry.container_name);
                warn!(pod, container, ?error, "what a container needs for its devices cannot be read");
                continue;
            }
        };
        let places = entry.ids.unwrap_or_default().into_iter();
        let places: BTreeMap<i64, BTreeSet<String>> =
            places.map(|(node, ids)| (node, ids.unwrap_or_default().into_iter().collect())).collect();
        let ids = places.values().flatten().cloned().collect();
        let grant = Grant { ids, places, needs };
        book.keep(&entry.pod, &entry.container_name, &entry.resource_name, grant);
    }
    Ok(book)
}

/// Writes it down.
///
/// # Errors
/// The file system's.
pub fn save(path: &Path, book: &Book) -> std::io::Result<()> {
    let entries: Vec<Entry> = book
        .all()
        .map(|(pod, container, resource, grant)| {
            let ids = grant.places.iter().map(|(node, ids)| (*node, Some(ids.iter().cloned().collect())));
            Entry {
                pod: pod.clone(),
                container_name: container.clone(),
                resource_name: resource.clone(),
                ids: Some(ids.collect()),
                alloc_resp: Some(STANDARD.encode(grant.needs.encode())),
            }
        })
        .collect();
    let healthy = |resource: &String| {
        let ids = book.devices(resource).filter(|(_, d)| d.healthy).map(|(id, _)| id.clone());
        (resource.clone(), Some(ids.collect()))
    };
    let data = Data {
        pod_device_entries: (!entries.is_empty()).then_some(entries),
        registered_devices: Some(book.resources().map(healthy).collect()),
    };
    let checksum = checkpoint::fnv(&data.shown().map_err(std::io::Error::other)?);
    let text = serde_json::to_vec(&File { data, checksum }).map_err(std::io::Error::other)?;
    checkpoint::write(path, &text)
}

#[cfg(test)]
mod tests {
    use super::super::book::DeviceState;
    use super::super::wire::CdiDevice;
    use super::*;

    /// Written by upstream's own code: devices of two nodes and of none, and entries without an answer.
    const UPSTREAMS: &str = concat!(
        r#"{"Data":{"PodDeviceEntries":[{"PodUID":"p1","ContainerName":"m","ResourceName":"example.com/gpu","#,
        r#""DeviceIDs":{"-1":["d"],"0":["a","b"],"1":["c"]},"AllocResp":"CgYKAUESATESCgoCL2MSAi9oGAEaFAoGL2Rldi9j"#,
        r#"EgYvZGV2L2gaAnJ3IgYKAWsSAXYqBwoFdi9jPTA="},{"PodUID":"p2","ContainerName":"n","ResourceName":"x/y","#,
        r#""DeviceIDs":{},"AllocResp":null},{"PodUID":"p3","ContainerName":"","ResourceName":"","DeviceIDs":null,"#,
        r#""AllocResp":""}],"RegisteredDevices":{"example.com/gpu":["b","a"],"x/y":[]}},"Checksum":557949776}"#
    );

    #[test]
    fn what_upstreams_kubelet_gave_is_still_given() {
        let book = parse(UPSTREAMS.as_bytes()).expect("a book");
        let grant = book.grant("p1", "m", "example.com/gpu").expect("a grant");
        assert_eq!(grant.ids.iter().map(String::as_str).collect::<Vec<_>>(), ["a", "b", "c", "d"]);
        assert_eq!(grant.places.keys().copied().collect::<Vec<_>>(), [-1, 0, 1]);
        let needs = &grant.needs;
        assert_eq!((needs.envs["A"].as_str(), needs.annotations["k"].as_str()), ("1", "v"));
        assert_eq!((needs.mounts[0].host_path.as_str(), needs.mounts[0].read_only), ("/h", true));
        assert_eq!(needs.devices[0].permissions, "rw");
        assert_eq!(needs.cdi_devices, [CdiDevice { name: "v/c=0".into() }]);
        assert!(book.knows("x/y") && book.counts()["example.com/gpu"] == (0, 0), "plug-ins tell anew");
        let other = parse(UPSTREAMS.replace("[\"c\"]", "[\"e\"]").as_bytes()).map(drop);
        assert_eq!(other, Err("checkpoint is corrupted".into()));
    }

    #[test]
    fn what_is_written_is_upstreams_form_and_is_read_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("kubelet_internal_checkpoint");
        save(&path, &Book::default()).expect("saved");
        let none = r#"{"Data":{"PodDeviceEntries":null,"RegisteredDevices":{}},"Checksum":3467439661}"#;
        assert_eq!(std::fs::read_to_string(&path).expect("read"), none, "to the byte");
        let mut book = parse(UPSTREAMS.as_bytes()).expect("a book");
        let device = |nodes: &[i64]| DeviceState { healthy: true, nodes: nodes.to_vec() };
        book.set_devices("x/y", [("z".to_owned(), device(&[1])), ("w".to_owned(), device(&[]))].into());
        let ids: BTreeSet<String> = ["z".to_owned(), "w".to_owned()].into();
        book.give("p4", "m", "x/y", ids, ContainerAllocateResponse::default());
        save(&path, &book).expect("saved");
        let read = load(&path);
        for (pod, container, resource, grant) in book.all() {
            assert_eq!(read.grant(pod, container, resource), Some(grant), "{pod}");
        }
        let places = &read.grant("p4", "m", "x/y").expect("a grant").places;
        assert_eq!(places.keys().copied().collect::<Vec<_>>(), [-1, 1]);
        std::fs::write(&path, "{}").expect("written");
        assert_eq!(load(&path).all().count(), 0, "a file that cannot be used is as good as none");
    }
}
