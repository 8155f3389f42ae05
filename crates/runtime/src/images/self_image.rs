//! An image made of a local static program, so that a first pod needs no registry.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use serde_json::json;

use super::digest::sha256;
use super::reference::Reference;
use super::store::{ImageRecord, ImageStore, parse_config};

const PROGRAM: &str = "coracle";
/// Free bytes that a copy of the program must leave.
const SPARE: u64 = 128 << 20;

/// Makes sure that `name` is an image whose entrypoint is `/coracle`, the program at `exe`. Cheap if
/// unchanged.
pub(crate) fn ensure(store: &ImageStore, name: &str, exe: &Path) -> io::Result<()> {
    let meta = fs::metadata(exe)?;
    let stamp =
        format!("{}:{}:{}:{}.{}", meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec());
    let invalid = |text| io::Error::new(io::ErrorKind::InvalidInput, text);
    let reference = Reference::parse(name).map_err(invalid)?;
    let tag = reference.tagged().ok_or_else(|| invalid("the image needs a tag".into()))?;
    if let Some(image) = store.find(&tag)
        && image.stamp == stamp
        && image.layers.iter().all(|l| store.layer_dir(l).exists())
    {
        return Ok(());
    }
    // Not the digest of a tar, which nobody will ever see, but as unique on this machine; and nothing to read.
    let layer = sha256(format!("coracle self image 1 {stamp}").as_bytes());
    let config = serde_json::to_vec(&json!({
        "architecture": super::archive::machine(),
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/"],
            "Entrypoint": [format!("/{PROGRAM}")],
            "WorkingDir": "/",
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer}")] },
    }))?;
    let blob = sha256(&config);
    let _pin = store.pin([layer.clone(), blob.clone()]);
    store.place_layer(&layer, |dir| fill(dir, exe))?;
    store.put_blob(&config)?;
    let record = ImageRecord {
        id: format!("sha256:{blob}"),
        blobs: vec![blob.clone()],
        layers: vec![layer],
        size: meta.len(),
        tags: [tag].into(),
        digests: [format!("{}@sha256:{blob}", reference.name())].into(),
        config: parse_config(&config)?.0,
        stamp,
    };
    let stale = store.find(name).filter(|old| old.id != record.id);
    store.commit(record)?;
    if let Some(old) = stale {
        store.remove(&old.id)?;
    }
    Ok(())
}

fn fill(dir: &Path, exe: &Path) -> io::Result<()> {
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    let program = dir.join(PROGRAM);
    if fs::hard_link(exe, &program).is_err() {
        // A convenience must not take the last of the disk away from the store.
        let disk = rustix::fs::statvfs(dir)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < fs::metadata(exe)?.len() + SPARE {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "not enough free space for a copy"));
        }
        fs::copy(exe, &program)?;
        mode(&program, 0o755)?;
    }
    for (name, permissions) in
        [("tmp", 0o1777), ("etc", 0o755), ("root", 0o700), ("var", 0o755), ("run", 0o755)]
    {
        let path = dir.join(name);
        fs::create_dir(&path)?;
        mode(&path, permissions)?;
    }
    mode(dir, 0o755)?;
    fs::write(
        dir.join("etc/passwd"),
        "root:x:0:0:root:/root:/coracle\nnobody:x:65534:65534:nobody:/:/coracle\n",
    )?;
    fs::write(dir.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_is_made_once_per_content_and_replaced_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&dir.path().join("root")).unwrap();
        let exe = dir.path().join("exe");
        fs::write(&exe, "one").unwrap();
        ensure(&store, "coracle.local/self", &exe).unwrap();
        let first = store.find("coracle.local/self:latest").unwrap();
        ensure(&store, "coracle.local/self", &exe).unwrap();
        assert_eq!(store.find("coracle.local/self").unwrap(), first);
        assert_eq!(first.config.entrypoint, ["/coracle"]);
        fs::remove_file(&exe).unwrap();
        fs::write(&exe, "two").unwrap();
        ensure(&store, "coracle.local/self", &exe).unwrap();
        let second = store.find("coracle.local/self").unwrap();
        assert_ne!(second.id, first.id);
        assert_eq!(fs::read(store.layer_dir(&second.layers[0]).join("coracle")).unwrap(), b"two");
        assert_eq!(store.list().len(), 1);
    }
}
