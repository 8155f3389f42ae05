//! The image index and the life of layers and blobs.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_cri::v1::Image;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::digest::{Algorithm, Digest, sha256};
use super::layer::unpack;
use super::reference::Reference;

/// What an image says about the containers made from it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    /// As in the image: `name`, `uid`, `name:group`…
    pub user: String,
    /// `SIGTERM`, `15`; empty for the default.
    pub stop_signal: String,
}

/// A stored image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ImageRecord {
    /// `sha256:…` of the configuration.
    pub id: String,
    /// Blobs that belong to it, in hex.
    pub blobs: Vec<String>,
    /// Layers, lowest first, by the digest of their uncompressed tar in hex, of the algorithm that has so many digits.
    pub layers: Vec<String>,
    pub size: u64,
    pub tags: BTreeSet<String>,
    pub digests: BTreeSet<String>,
    pub config: ImageConfig,
    /// Where an image made from a local file came from, to see whether it changed.
    pub stamp: String,
}

#[derive(Default)]
struct Index {
    images: BTreeMap<String, Arc<ImageRecord>>,
}

/// What `images.json` says.
#[derive(Deserialize)]
struct Stored {
    images: Vec<ImageRecord>,
}

impl Index {
    fn load(root: &Path) -> io::Result<Self> {
        let stored: Stored = match crate::files::read_json(&root.join("images.json")) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other?,
        };
        Ok(Self { images: stored.images.into_iter().map(|i| (i.id.clone(), Arc::new(i))).collect() })
    }
    fn save(&self, root: &Path) -> io::Result<()> {
        let images: Vec<&ImageRecord> = self.images.values().map(|i| &**i).collect();
        crate::files::write_json(
            &root.join("images.json"),
            &serde_json::json!({ "version": 1, "images": images }),
        )
    }
}

type Pins = Arc<Mutex<HashMap<String, usize>>>;

/// Keeps layers and blobs from being collected while it lives.
#[derive(Debug)]
pub(crate) struct Pin {
    pins: Pins,
    names: Vec<String>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.lock();
        for name in &self.names {
            if let Some(count) = pins.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(name);
                }
            }
        }
    }
}

/// All images of a runtime.
pub(crate) struct ImageStore {
    root: PathBuf,
    index: Mutex<Index>,
    pins: Pins,
}

impl ImageStore {
    /// Opens the store below `root`, dropping what an interrupted import left.
    pub fn open(root: &Path) -> io::Result<Self> {
        for dir in ["blobs/sha256", "layers", "tmp"] {
            fs::create_dir_all(root.join(dir))?;
        }
        for entry in fs::read_dir(root.join("tmp"))?.flatten() {
            let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
        }
        let index = Index::load(root)?;
        Ok(Self { root: root.to_owned(), index: Mutex::new(index), pins: Pins::default() })
    }

    /// Where a layer's files are.
    pub fn layer_dir(&self, layer: &str) -> PathBuf {
        self.root.join("layers").join(layer).join("fs")
    }
    /// A stored blob by its digest in hex.
    pub fn blob(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.root.join("blobs/sha256").join(name))
    }
    /// A fresh path for temporary things, on the same file system.
    pub fn temporary(&self) -> PathBuf {
        self.root.join("tmp").join(coracle_stdx::random_hex(8))
    }
    /// Keeps these layers and blobs.
    pub fn pin(&self, names: impl IntoIterator<Item = String>) -> Pin {
        let names: Vec<String> = names.into_iter().collect();
        let mut pins = self.pins.lock();
        for name in &names {
            *pins.entry(name.clone()).or_default() += 1;
        }
        drop(pins);
        Pin { pins: self.pins.clone(), names }
    }

    /// Unpacks a layer unless it is there; pin it first.
    ///
    /// # Errors
    /// The stream is not the layer it should be. Nothing is left behind then.
    pub fn add_layer(&self, layer: &str, open: impl FnOnce() -> io::Result<Box<dyn Read>>) -> io::Result<()> {
        self.place_layer(layer, |dir| {
            let wanted = Digest { algorithm: Algorithm::of_hex(layer), hex: layer.to_owned() };
            let found = unpack(open()?, dir, wanted.algorithm)?;
            if found == wanted {
                return Ok(());
            }
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("layer has digest {found}, its image says {wanted}"),
            ))
        })
    }

    /// Makes a layer by filling an empty directory, unless it is there.
    pub fn place_layer(&self, layer: &str, fill: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        let place = self.root.join("layers").join(layer);
        if place.exists() {
            return Ok(());
        }
        let temporary = self.temporary();
        // Not `create_dir_all`: a store that was removed meanwhile must not come back.
        let made = fs::create_dir(&temporary)
            .and_then(|()| fs::create_dir(temporary.join("fs")))
            .and_then(|()| fill(&temporary.join("fs")))
            .and_then(|()| match fs::rename(&temporary, &place) {
                // Someone else was faster; theirs is as good.
                Err(_) if place.exists() => Ok(()),
                other => other,
            });
        crate::files::remove_tree(&temporary)?;
        made
    }

    /// Stores a blob; its digest in hex.
    pub fn put_blob(&self, content: &[u8]) -> io::Result<String> {
        let name = sha256(content);
        let path = self.root.join("blobs/sha256").join(&name);
        if !path.exists() {
            let temporary = self.temporary();
            let written = fs::write(&temporary, content)
                .and_then(|()| fs::File::open(&temporary)?.sync_data())
                .and_then(|()| fs::rename(&temporary, path));
            if written.is_err() {
                crate::files::remove_file(&temporary)?;
            }
            written?;
        }
        Ok(name)
    }

    /// Flushes unpacked layers to disk, before an index that names them.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(fs::File::open(&self.root)?)?)
    }

    /// Adds an image, or adds names to one. A tag moves here from the image that had it.
    pub fn commit(&self, record: ImageRecord) -> io::Result<()> {
        let mut index = self.index.lock();
        let mut images = index.images.clone();
        for (id, other) in &mut images {
            if *id != record.id && !other.tags.is_disjoint(&record.tags) {
                Arc::make_mut(other).tags.retain(|t| !record.tags.contains(t));
            }
        }
        images.retain(|id, i| {
            *id == record.id || !(i.tags.is_empty() && i.digests.is_empty()) || named(&index, id)
        });
        let mut record = record;
        if let Some(old) = images.get(&record.id) {
            record.tags.extend(old.tags.iter().cloned());
            record.digests.extend(old.digests.iter().cloned());
        }
        images.insert(record.id.clone(), Arc::new(record));
        let new = Index { images };
        new.save(&self.root)?;
        *index = new;
        Ok(())
    }

    /// An image by id (also without `sha256:`), tag, or digest reference.
    pub fn find(&self, name: &str) -> Option<Arc<ImageRecord>> {
        let index = self.index.lock();
        let id = if name.len() == 64 { format!("sha256:{name}") } else { name.to_owned() };
        if let Some(image) = index.images.get(&id) {
            return Some(image.clone());
        }
        let reference = Reference::parse(name).ok()?;
        let (digested, tagged) = (reference.digested(), reference.tagged());
        index
            .images
            .values()
            .find(|i| match &digested {
                Some(d) => i.digests.contains(d),
                None => tagged.as_ref().is_some_and(|t| i.tags.contains(t)),
            })
            .cloned()
    }
    /// All images.
    pub fn list(&self) -> Vec<Arc<ImageRecord>> {
        self.index.lock().images.values().cloned().collect()
    }

    /// Removes a name; by id, the whole image. Absence is success.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        let Some(image) = self.find(name) else { return Ok(()) };
        {
            let mut index = self.index.lock();
            let mut images = index.images.clone();
            let by_id = image.id == name || image.id.strip_prefix("sha256:") == Some(name);
            let mut left = ImageRecord::clone(&image);
            if let (false, Ok(reference)) = (by_id, Reference::parse(name)) {
                match reference.digested() {
                    Some(d) => left.digests.retain(|x| *x != d),
                    None => left.tags.retain(|t| Some(t) != reference.tagged().as_ref()),
                }
            }
            if by_id || left.tags.is_empty() {
                images.remove(&image.id);
            } else {
                images.insert(image.id.clone(), Arc::new(left));
            }
            let new = Index { images };
            new.save(&self.root)?;
            *index = new;
        }
        self.collect();
        Ok(())
    }

    /// Deletes layers and blobs that no image has and nothing pins.
    pub fn collect(&self) {
        let mut doomed = Vec::new();
        {
            let index = self.index.lock();
            let pins = self.pins.lock();
            let used: HashSet<&String> =
                index.images.values().flat_map(|i| i.layers.iter().chain(&i.blobs)).collect();
            for dir in ["layers", "blobs/sha256"] {
                for entry in fs::read_dir(self.root.join(dir)).into_iter().flatten().flatten() {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    if used.contains(&name) || pins.contains_key(&name) {
                        continue;
                    }
                    let away = self.temporary();
                    if fs::rename(entry.path(), &away).is_ok() {
                        doomed.push(away);
                    }
                }
            }
        }
        for path in doomed {
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
    }
}

/// Whether an image had no name before either: images known only by id stay.
fn named(index: &Index, id: &str) -> bool {
    index.images.get(id).is_some_and(|i| i.tags.is_empty() && i.digests.is_empty())
}

impl ImageRecord {
    /// As CRI shows it.
    pub fn to_cri(&self) -> Image {
        let user = self.config.user.split(':').next().unwrap_or("");
        let uid = if user.is_empty() { None } else { user.parse().ok() };
        Image {
            id: self.id.clone(),
            repo_tags: self.tags.iter().cloned().collect(),
            repo_digests: self.digests.iter().cloned().collect(),
            size: self.size,
            uid,
            username: if uid.is_none() { user.to_owned() } else { String::new() },
            pinned: false,
        }
    }
}

/// The parts of an image's configuration blob that matter here.
///
/// # Errors
/// It is no image configuration.
pub(super) fn parse_config(bytes: &[u8]) -> io::Result<(ImageConfig, Vec<String>)> {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "PascalCase")]
    struct Inner {
        user: Option<String>,
        env: Option<Vec<String>>,
        entrypoint: Option<Vec<String>>,
        cmd: Option<Vec<String>>,
        working_dir: Option<String>,
        stop_signal: Option<String>,
    }
    #[derive(Deserialize)]
    struct RootFs {
        diff_ids: Vec<String>,
    }
    #[derive(Deserialize)]
    struct Outer {
        #[serde(default)]
        config: Option<Inner>,
        rootfs: RootFs,
    }
    let bad = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let outer: Outer =
        serde_json::from_slice(bytes).map_err(|e| bad(format!("image configuration is malformed: {e}")))?;
    let inner = outer.config.unwrap_or_default();
    let layers = outer
        .rootfs
        .diff_ids
        .iter()
        .map(|d| Digest::parse(d).map(|d| d.hex).map_err(|e| bad(format!("{d:?}: {e}"))))
        .collect::<io::Result<_>>()?;
    let config = ImageConfig {
        entrypoint: inner.entrypoint.unwrap_or_default(),
        cmd: inner.cmd.unwrap_or_default(),
        env: inner.env.unwrap_or_default(),
        working_dir: inner.working_dir.unwrap_or_default(),
        user: inner.user.unwrap_or_default(),
        stop_signal: inner.stop_signal.unwrap_or_default(),
    };
    Ok((config, layers))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(store: &ImageStore, id: &str, layer: &str, tag: &str) {
        store.place_layer(layer, |_| Ok(())).unwrap();
        let record = ImageRecord {
            id: format!("sha256:{}", id.repeat(64)),
            layers: vec![layer.into()],
            tags: [Reference::parse(tag).unwrap().tagged().unwrap()].into(),
            ..Default::default()
        };
        store.commit(record).unwrap();
    }

    #[test]
    fn removal_collects_only_layers_nobody_has() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        image(&store, "a", "one", "a");
        image(&store, "b", "two", "b");
        let pin = store.pin(["two".to_owned()]);
        store.remove("a").unwrap();
        store.remove(&"b".repeat(64)).unwrap();
        assert!(!store.layer_dir("one").exists() && store.layer_dir("two").exists());
        drop(pin);
        store.collect();
        assert!(!store.layer_dir("two").exists());
    }

    #[test]
    fn tag_moves_and_index_survives_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        image(&store, "a", "one", "busybox");
        image(&store, "b", "two", "docker.io/library/busybox:latest");
        drop(store);
        let store = ImageStore::open(dir.path()).unwrap();
        assert_eq!(store.find("busybox").unwrap().layers, ["two"]);
        assert_eq!(store.list().len(), 1);
    }
}
