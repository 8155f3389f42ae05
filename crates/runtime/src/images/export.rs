//! Writes an image into an OCI archive. Layers are kept as directories, so their tars are made anew: the image means
//! the same, but has another id than the one it came with.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::digest::{Algorithm, Hasher, sha256};
use super::store::{ImageRecord, ImageStore};

const OCI: &str = "application/vnd.oci.image";

/// Passes on what is written, and hashes it.
struct Hashed<W> {
    inner: W,
    hash: Hasher,
    count: u64,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Algorithm::Sha256.hasher(), count: 0 }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.count += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes an image to a new file.
///
/// # Errors
/// There is no such image, or the file cannot be written; nothing is left of it then.
pub(crate) fn export(store: &ImageStore, name: &str, to: &Path) -> io::Result<()> {
    let absent = || io::Error::new(io::ErrorKind::NotFound, format!("image {name:?} is not present"));
    let image = store.find(name).ok_or_else(absent)?;
    let _pin = store.pin(image.layers.iter().chain(&image.blobs).cloned());
    let work = store.temporary();
    fs::create_dir(&work)?;
    let written = write(store, &image, name, &work, to);
    crate::files::remove_tree(&work)?;
    if written.is_err() {
        crate::files::remove_file(to)?;
    }
    written
}

fn write(store: &ImageStore, image: &ImageRecord, name: &str, work: &Path, to: &Path) -> io::Result<()> {
    let mut archive = Builder::new(BufWriter::new(File::create(to)?));
    let id = image.id.trim_start_matches("sha256:");
    let mut config: Value = serde_json::from_slice(&store.blob(id)?)?;
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for layer in &image.layers {
        let packed = work.join(layer);
        let (diff_id, digest, size) = pack(&store.layer_dir(layer), &packed)?;
        archive.append_file(format!("blobs/sha256/{digest}"), &mut File::open(&packed)?)?;
        fs::remove_file(&packed)?;
        let digest = format!("sha256:{digest}");
        layers.push(json!({"mediaType": format!("{OCI}.layer.v1.tar+gzip"), "digest": digest, "size": size}));
        diff_ids.push(format!("sha256:{diff_id}"));
    }
    config["rootfs"]["diff_ids"] = json!(diff_ids);
    let config = blob(&mut archive, &config)?;
    let kind = |kind: &str, (digest, size): &(String, usize)| json!({"mediaType": format!("{OCI}.{kind}.v1+json"), "digest": format!("sha256:{digest}"), "size": size});
    let manifest = json!({"schemaVersion": 2, "mediaType": format!("{OCI}.manifest.v1+json"),
        "config": kind("config", &config), "layers": layers});
    let manifest = blob(&mut archive, &manifest)?;
    // By an id all names, by a name that one.
    let wanted = super::reference::Reference::parse(name).ok().and_then(|r| r.tagged());
    let one = wanted.filter(|tag| image.tags.contains(tag)).map(|tag| vec![tag]);
    let names = one.unwrap_or_else(|| image.tags.iter().cloned().collect());
    let mut manifests: Vec<Value> = Vec::new();
    for name in &names {
        let mut entry = kind("manifest", &manifest);
        entry["annotations"] =
            json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name});
        manifests.push(entry);
    }
    if manifests.is_empty() {
        manifests.push(kind("manifest", &manifest));
    }
    let index =
        json!({"schemaVersion": 2, "mediaType": format!("{OCI}.index.v1+json"), "manifests": manifests});
    plain(&mut archive, "index.json", &serde_json::to_vec(&index)?)?;
    plain(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    archive.into_inner()?.into_inner().map_err(|e| e.into_error())?.sync_all()
}

/// Adds a JSON blob; its digest and size.
fn blob<W: Write>(archive: &mut Builder<W>, value: &Value) -> io::Result<(String, usize)> {
    let bytes = serde_json::to_vec(value)?;
    let digest = sha256(&bytes);
    plain(archive, &format!("blobs/sha256/{digest}"), &bytes)?;
    Ok((digest, bytes.len()))
}

fn plain<W: Write>(archive: &mut Builder<W>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(bytes.len() as u64);
    archive.append_data(&mut header, name, bytes)
}

/// Makes the compressed tar of a layer; the digests of the tar and of what was written, and the latter's size.
fn pack(dir: &Path, to: &Path) -> io::Result<(String, String, u64)> {
    let gzip = GzEncoder::new(Hashed::new(BufWriter::new(File::create(to)?)), Compression::fast());
    let mut layer = Layer { tar: Builder::new(Hashed::new(gzip)), links: HashMap::new() };
    layer.directory(dir, Path::new(""))?;
    let plain = layer.tar.into_inner()?;
    let diff_id = plain.hash.finish().hex;
    let mut packed = plain.inner.finish()?;
    packed.flush()?;
    Ok((diff_id, packed.hash.finish().hex, packed.count))
}

struct Layer<W: Write> {
    tar: Builder<W>,
    /// Files with several names, by inode: the name written first.
    links: HashMap<u64, PathBuf>,
}

impl<W: Write> Layer<W> {
    fn directory(&mut self, at: &Path, name: &Path) -> io::Result<()> {
        let opaque = rustix::fs::lgetxattr(at, "trusted.overlay.opaque", &mut [0u8; 8]);
        if opaque.is_ok_and(|n| n > 0) {
            plain(&mut self.tar, &name.join(".wh..wh..opq").to_string_lossy(), b"")?;
        }
        let mut entries: Vec<_> = fs::read_dir(at)?.collect::<Result<_, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            self.entry(&entry.path(), &name.join(entry.file_name()))?;
        }
        Ok(())
    }

    fn entry(&mut self, at: &Path, name: &Path) -> io::Result<()> {
        let meta = fs::symlink_metadata(at)?;
        let kind = meta.file_type();
        if kind.is_char_device() && meta.rdev() == 0 {
            let own = name.file_name().unwrap_or_default();
            let hidden = [&b".wh."[..], own.as_bytes()].concat();
            let hidden = name.with_file_name(OsStr::from_bytes(&hidden));
            return plain(&mut self.tar, &hidden.to_string_lossy(), b"");
        }
        let mut header = Header::new_gnu();
        header.set_mode(meta.mode() & 0o7777);
        header.set_uid(meta.uid().into());
        header.set_gid(meta.gid().into());
        header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
        header.set_size(0);
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            self.tar.append_data(&mut header, name, io::empty())?;
            return self.directory(at, name);
        }
        if meta.nlink() > 1 {
            if let Some(first) = self.links.get(&meta.ino()) {
                header.set_entry_type(EntryType::Link);
                return self.tar.append_link(&mut header, name, first);
            }
            self.links.insert(meta.ino(), name.to_owned());
        }
        if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            return self.tar.append_link(&mut header, name, fs::read_link(at)?);
        }
        if kind.is_file() {
            self.capabilities(at)?;
            header.set_size(meta.len());
            return self.tar.append_data(&mut header, name, File::open(at)?);
        }
        let special = if kind.is_fifo() {
            EntryType::Fifo
        } else if kind.is_char_device() {
            EntryType::Char
        } else if kind.is_block_device() {
            EntryType::Block
        } else {
            // Sockets are nothing without who listens on them.
            return Ok(());
        };
        header.set_entry_type(special);
        header.set_device_major(rustix::fs::major(meta.rdev()))?;
        header.set_device_minor(rustix::fs::minor(meta.rdev()))?;
        self.tar.append_data(&mut header, name, io::empty())
    }

    /// Rights that a program has by its file.
    fn capabilities(&mut self, at: &Path) -> io::Result<()> {
        let mut value = [0u8; 64];
        let Ok(n) = rustix::fs::lgetxattr(at, "security.capability", &mut value) else { return Ok(()) };
        self.tar.append_pax_extensions([("SCHILY.xattr.security.capability", &value[..n])])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exported_image_is_imported_with_its_files_links_and_names() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&dir.path().join("one")).unwrap();
        let exe = dir.path().join("exe");
        fs::write(&exe, "program").unwrap();
        super::super::ensure_self_image(&store, "test.example/self:1", &exe).unwrap();
        let first = store.find("test.example/self:1").unwrap();
        let layer = store.layer_dir(&first.layers[0]);
        fs::hard_link(layer.join("etc/passwd"), layer.join("etc/twin")).unwrap();
        std::os::unix::fs::symlink("passwd", layer.join("etc/link")).unwrap();
        let path = dir.path().join("out.tar");
        export(&store, "test.example/self:1", &path).unwrap();
        let other = ImageStore::open(&dir.path().join("two")).unwrap();
        assert_eq!(super::super::import(&other, &path).unwrap(), ["test.example/self:1"]);
        let second = other.find("test.example/self:1").unwrap();
        assert_eq!(second.config, first.config);
        let files = other.layer_dir(&second.layers[0]);
        assert_eq!(fs::read(files.join("coracle")).unwrap(), b"program");
        assert_eq!(fs::read_link(files.join("etc/link")).unwrap(), Path::new("passwd"));
        let inode = |name: &str| fs::metadata(files.join(name)).unwrap().ino();
        assert_eq!(inode("etc/passwd"), inode("etc/twin"));
        assert_eq!(fs::metadata(files.join("tmp")).unwrap().mode() & 0o7777, 0o1777);
        assert!(export(&store, "absent", &dir.path().join("none")).is_err());
        assert!(!dir.path().join("none").exists());
    }
}
