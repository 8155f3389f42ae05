//! Imports images from an OCI layout or a docker-archive: a tar file, plain or compressed, or a directory.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::digest::{Digest, Hasher, sha256};
use super::layer::{decompress, not_tar};
use super::reference::Reference;
use super::store::{ImageRecord, ImageStore, parse_config};

/// Longest manifest or configuration.
const LONGEST: u64 = 8 << 20;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    annotations: BTreeMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// An image found in an archive, not stored yet.
struct Found {
    config: Vec<u8>,
    manifest: Option<Vec<u8>>,
    /// File names of the layers.
    layers: Vec<String>,
    size: u64,
    names: Vec<String>,
}

fn digest(text: &str) -> io::Result<Digest> {
    Digest::parse(text).map_err(|e| invalid(format!("{text:?}: {e}")))
}

/// This machine's architecture as images name it.
pub(super) fn machine() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

/// Imports all images of an archive; their names (ids for those without).
///
/// # Errors
/// The archive is damaged or is no image archive; then no image of it is stored.
pub(crate) fn import(store: &ImageStore, path: &Path) -> io::Result<Vec<String>> {
    let result = Source::open(store, path).and_then(|source| {
        let found = source.images()?;
        let mut pins = Vec::new();
        let mut records = Vec::new();
        for image in found {
            let (record, pin) = unpack_image(store, &source, image)?;
            records.push(record);
            pins.push(pin);
        }
        store.sync()?;
        let mut names = Vec::new();
        for record in records {
            if record.tags.is_empty() {
                names.push(record.id.clone());
            }
            names.extend(record.tags.iter().cloned());
            store.commit(record)?;
        }
        Ok(names)
    });
    if result.is_err() {
        store.collect();
    }
    result
}

fn unpack_image(
    store: &ImageStore,
    source: &Source,
    image: Found,
) -> io::Result<(ImageRecord, super::store::Pin)> {
    let (config, diff_ids) = parse_config(&image.config)?;
    if diff_ids.len() != image.layers.len() {
        return Err(invalid(format!(
            "the image has {} layers, its configuration lists {}",
            image.layers.len(),
            diff_ids.len()
        )));
    }
    let blobs: Vec<String> = [Some(&image.config), image.manifest.as_ref()]
        .into_iter()
        .flatten()
        .map(|blob| sha256(blob))
        .collect();
    let pin = store.pin(diff_ids.iter().chain(&blobs).cloned());
    let work: Vec<(&String, &String)> = diff_ids.iter().zip(&image.layers).collect();
    for batch in work.chunks(4) {
        std::thread::scope(|scope| {
            let threads: Vec<_> = batch
                .iter()
                .map(|(diff_id, name)| {
                    scope.spawn(move || {
                        store
                            .add_layer(diff_id, || source.open_blob(name))
                            .map_err(|e| io::Error::new(e.kind(), format!("layer {name}: {e}")))
                    })
                })
                .collect();
            threads
                .into_iter()
                .try_for_each(|t| t.join().unwrap_or_else(|_| Err(io::Error::other("unpacking panicked"))))
        })?;
    }
    for blob in [Some(&image.config), image.manifest.as_ref()].into_iter().flatten() {
        store.put_blob(blob)?;
    }
    let mut record = ImageRecord {
        id: format!("sha256:{}", blobs[0]),
        blobs: blobs.clone(),
        layers: diff_ids,
        size: image.size,
        config,
        ..ImageRecord::default()
    };
    for name in &image.names {
        let reference = Reference::parse(name).map_err(invalid)?;
        record.tags.extend(reference.tagged());
        if let Some(manifest) = blobs.get(1) {
            record.digests.insert(format!("{}@sha256:{manifest}", reference.name()));
        }
    }
    Ok((record, pin))
}

/// The files of an archive.
enum Source {
    Directory(PathBuf),
    Tar { file: Arc<File>, files: HashMap<String, (u64, u64)>, links: HashMap<String, String> },
}

impl Source {
    fn open(store: &ImageStore, path: &Path) -> io::Result<Self> {
        if path.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        let mut file = File::open(path)?;
        let mut magic = [0u8; 4];
        let got = file.read(&mut magic)?;
        file.rewind()?;
        if got >= 4 && (magic[..2] == [0x1f, 0x8b] || magic == [0x28, 0xb5, 0x2f, 0xfd]) {
            // Files of the archive are read in any order: that needs it uncompressed.
            let temporary = store.temporary();
            let mut plain = File::options().read(true).write(true).create_new(true).open(&temporary)?;
            std::fs::remove_file(&temporary)?;
            io::copy(&mut decompress(file)?, &mut plain)
                .map_err(|e| invalid(format!("cannot decompress: {e}")))?;
            plain.rewind()?;
            file = plain;
        }
        let length = file.metadata()?.len();
        let (mut files, mut links) = (HashMap::new(), HashMap::new());
        let mut archive = tar::Archive::new(&file);
        if length == 0 {
            return Err(invalid("the file is empty"));
        }
        for entry in archive.entries_with_seek()? {
            let entry = entry.map_err(|e| not_tar(&e))?;
            let name = normal(&entry.path()?.to_string_lossy());
            if entry.header().entry_type().is_file() {
                let (at, size) = (entry.raw_file_position(), entry.size());
                if at.checked_add(size).is_none_or(|end| end > length) {
                    return Err(invalid(format!("the archive ends in the middle of {name}")));
                }
                files.insert(name, (at, size));
            } else if let Some(target) = entry.link_name()? {
                // Old docker archives link equal layers.
                let target = Path::new(&name).parent().unwrap_or(Path::new("")).join(target);
                links.insert(name, normal(&target.to_string_lossy()));
            }
        }
        Ok(Self::Tar { file: Arc::new(file), files, links })
    }

    fn open_file(&self, name: &str) -> io::Result<Box<dyn Read>> {
        let missing = || invalid(format!("{name} is not in the archive"));
        match self {
            Self::Directory(root) => {
                let name = normal(name);
                let file = File::open(root.join(&name)).map_err(|e| match e.kind() {
                    io::ErrorKind::NotFound => missing(),
                    _ => e,
                })?;
                Ok(Box::new(file))
            }
            Self::Tar { file, files, links } => {
                let name = normal(name);
                let target = links.get(&name).unwrap_or(&name);
                let (at, size) = files.get(target).ok_or_else(missing)?;
                Ok(Box::new(Slice { file: file.clone(), at: *at, end: at + size }))
            }
        }
    }

    /// A layer; of those that are named by their digest, reading to the end tells whether they have it.
    fn open_blob(&self, name: &str) -> io::Result<Box<dyn Read>> {
        let file = self.open_file(name)?;
        let wanted = name.strip_prefix("blobs/").map(|name| name.replacen('/', ":", 1));
        Ok(match wanted.and_then(|name| Digest::parse(&name).ok()) {
            Some(wanted) => Box::new(Checked { inner: file, hash: wanted.algorithm.hasher(), wanted }),
            None => file,
        })
    }

    fn size(&self, name: &str) -> u64 {
        match self {
            Self::Directory(root) => root.join(normal(name)).metadata().map_or(0, |m| m.len()),
            Self::Tar { files, .. } => files.get(&normal(name)).map_or(0, |(_, size)| *size),
        }
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open_file(name)?.take(LONGEST + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LONGEST { Err(invalid(format!("{name} is too long"))) } else { Ok(bytes) }
    }

    /// A blob whose content is what its name says.
    fn blob(&self, name: &str) -> io::Result<Vec<u8>> {
        let wanted = digest(name)?;
        let bytes = self.read(&wanted.path())?;
        let found = Digest::of(wanted.algorithm, &bytes);
        if found == wanted { Ok(bytes) } else { Err(invalid(format!("blob {wanted} has digest {found}"))) }
    }

    fn images(&self) -> io::Result<Vec<Found>> {
        let mut found = match self.read("index.json") {
            Ok(bytes) => self.oci_images(&bytes)?,
            Err(_) => Vec::new(),
        };
        if let Ok(bytes) = self.read("manifest.json") {
            for docker in parse::<Vec<DockerImage>>("manifest.json", &bytes)? {
                self.docker_image(docker, &mut found)?;
            }
        }
        if found.is_empty() {
            return Err(invalid(
                "no image in it: neither index.json (OCI) nor manifest.json (docker save) names one",
            ));
        }
        Ok(found)
    }

    fn oci_images(&self, index: &[u8]) -> io::Result<Vec<Found>> {
        let index: Index = parse("index.json", index)?;
        let mut found: Vec<Found> = Vec::new();
        for descriptor in &index.manifests {
            let mut names = Vec::new();
            let annotation = |key: &str| descriptor.annotations.get(key).filter(|v| !v.is_empty()).cloned();
            match (annotation("io.containerd.image.name"), annotation("org.opencontainers.image.ref.name")) {
                (Some(name), _) => names.push(name),
                // A tag alone is no name.
                (None, Some(name)) if name.contains(['/', ':']) => names.push(name),
                _ => {}
            }
            let bytes = self.manifest(descriptor, 0)?;
            let manifest: Manifest = parse(&descriptor.digest, &bytes)?;
            let config = self.blob(&manifest.config.digest)?;
            if let Some(same) = found.iter_mut().find(|f| f.config == config) {
                same.names.extend(names);
                continue;
            }
            let layers =
                manifest.layers.iter().map(|l| Ok(digest(&l.digest)?.path())).collect::<io::Result<_>>()?;
            let size = manifest.layers.iter().map(|l| l.size).sum::<u64>() + config.len() as u64;
            found.push(Found { config, manifest: Some(bytes), layers, size, names });
        }
        Ok(found)
    }

    /// The image manifest of a descriptor; of an index, the one for this machine.
    fn manifest(&self, descriptor: &Descriptor, depth: u8) -> io::Result<Vec<u8>> {
        let bytes = self.blob(&descriptor.digest)?;
        let list = descriptor.media_type.contains("index") || descriptor.media_type.contains("manifest.list");
        if !list {
            return Ok(bytes);
        }
        let index: Index = parse(&descriptor.digest, &bytes)?;
        let machine = machine();
        let fits = |d: &&Descriptor| {
            d.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == machine)
        };
        let chosen = index.manifests.iter().find(fits).or(match &index.manifests[..] {
            [only] => Some(only),
            _ => None,
        });
        match chosen {
            Some(chosen) if depth < 4 => self.manifest(chosen, depth + 1),
            _ => Err(invalid(format!("index {} has no image for linux/{machine}", descriptor.digest))),
        }
    }

    fn docker_image(&self, docker: DockerImage, found: &mut Vec<Found>) -> io::Result<()> {
        let config = self.read(&docker.config)?;
        let names = docker.repo_tags.unwrap_or_default();
        if let Some(same) = found.iter_mut().find(|f| f.config == config) {
            same.names.extend(names.into_iter().filter(|n| !same.names.contains(n)).collect::<Vec<_>>());
            return Ok(());
        }
        let size = docker.layers.iter().map(|l| self.size(l)).sum::<u64>() + config.len() as u64;
        found.push(Found { config, manifest: None, layers: docker.layers, size, names });
        Ok(())
    }
}

fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> io::Result<T> {
    serde_json::from_slice(bytes).map_err(|e| invalid(format!("{name} is malformed: {e}")))
}

/// A path without `.` and `..`, so that it cannot leave its root.
fn normal(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A part of a file, with its own position.
struct Slice {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// Reads a blob and compares its digest at the end.
struct Checked {
    inner: Box<dyn Read>,
    hash: Hasher,
    wanted: Digest,
}

impl Read for Checked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        if n > 0 || buffer.is_empty() {
            self.hash.update(&buffer[..n]);
            return Ok(n);
        }
        let found = self.hash.clone().finish();
        if found == self.wanted { Ok(0) } else { Err(invalid(format!("the blob has digest {found}"))) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::digest::Algorithm;
    use super::*;

    #[test]
    fn normal_path_cannot_leave_its_root() {
        assert_eq!(normal("./a//b/../../../c"), "c");
    }

    #[test]
    fn blob_with_other_content_than_its_name_says_is_refused_at_its_end() {
        let blob = |wanted: Digest| {
            let hash = wanted.algorithm.hasher();
            io::read_to_string(Checked { inner: Box::new(&b"abc"[..]), hash, wanted })
        };
        for (algorithm, start) in
            [(Algorithm::Sha256, "sha256:ba7816bf"), (Algorithm::Sha512, "sha512:ddaf35a1")]
        {
            let right = Digest::of(algorithm, b"abc");
            assert_eq!(blob(right.clone()).unwrap(), "abc");
            let error = blob(Digest { hex: "0".repeat(right.hex.len()), ..right }).unwrap_err().to_string();
            assert!(error.contains(&format!("has digest {start}")), "{error}");
        }
    }

    #[test]
    fn layouts_may_have_blobs_by_sha512() {
        let dir = tempfile::tempdir().unwrap();
        let put = |bytes: &[u8]| {
            let digest = Digest::of(Algorithm::Sha512, bytes);
            let path = dir.path().join(digest.path());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
            digest.to_string()
        };
        let json = |value: serde_json::Value| put(value.to_string().as_bytes());
        let layer = put(&tar::Builder::new(Vec::new()).into_inner().unwrap());
        let config = json(serde_json::json!({"rootfs": {"type": "layers", "diff_ids": [layer]}}));
        let manifest = json(serde_json::json!({"config": {"digest": config}, "layers": [{"digest": layer}]}));
        let name = "test.example/long:1";
        let index = serde_json::json!({"manifests": [
            {"digest": manifest, "annotations": {"io.containerd.image.name": name}}]});
        std::fs::write(dir.path().join("index.json"), index.to_string()).unwrap();
        let store = ImageStore::open(&dir.path().join("store")).unwrap();
        assert_eq!(import(&store, dir.path()).unwrap(), [name]);
        let layer = Digest::parse(&layer).unwrap();
        assert!(store.layer_dir(&layer.hex).exists());
        store.remove(name).unwrap();
        std::fs::write(dir.path().join(layer.path()), "something else").unwrap();
        assert!(import(&store, dir.path()).is_err() && !store.layer_dir(&layer.hex).exists());
    }

    #[test]
    fn damaged_archives_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&dir.path().join("root")).unwrap();
        for (name, content) in
            [("garbage", &b"this is no tar"[..]), ("empty", b""), ("gzip", b"\x1f\x8bxxxx")]
        {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            assert!(import(&store, &path).is_err(), "{name}");
        }
        assert!(store.list().is_empty());
        assert_eq!(std::fs::read_dir(dir.path().join("root/tmp")).unwrap().count(), 0);
    }
}
