//! Test images without an engine: an OCI layout in a tar file, from Debian's static busybox.

use std::io::Write as _;
use std::path::Path;

use flate2::{Compression, GzBuilder};
use serde_json::json;
use sha2::{Digest, Sha256};

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn entry(tar: &mut tar::Builder<Vec<u8>>, path: &str, kind: tar::EntryType, mode: u32, data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(data.len() as u64);
    tar.append_data(&mut header, path, data).expect("writing to memory");
}

fn layer() -> Vec<u8> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| Path::new(p).exists());
    let busybox = busybox.expect("busybox is missing: apt-get install busybox-static");
    let program = std::fs::read(busybox).expect("busybox is readable");
    let applets = std::process::Command::new(busybox).arg("--list").output().expect("busybox runs");
    let applets = String::from_utf8_lossy(&applets.stdout).into_owned();
    let mut tar = tar::Builder::new(Vec::new());
    for dir in ["bin", "dev", "etc", "home", "proc", "root", "sys", "usr", "var"] {
        entry(&mut tar, dir, tar::EntryType::Directory, 0o755, &[]);
    }
    entry(&mut tar, "tmp", tar::EntryType::Directory, 0o1777, &[]);
    entry(&mut tar, "bin/busybox", tar::EntryType::Regular, 0o755, &program);
    for applet in applets.lines().filter(|a| *a != "busybox") {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox").expect("writing to memory");
    }
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n";
    entry(&mut tar, "etc/passwd", tar::EntryType::Regular, 0o644, passwd);
    entry(&mut tar, "etc/group", tar::EntryType::Regular, 0o644, b"root:x:0:\nnogroup:x:65534:\n");
    tar.into_inner().expect("writing to memory")
}

/// Writes an OCI archive of busybox under the given names (with tags), which runs `cmd` unless told otherwise.
///
/// # Panics
/// Without busybox-static, or when the file cannot be written.
pub fn busybox_archive(path: &Path, names: &[&str], cmd: &[&str]) {
    let raw = layer();
    let mut gz = GzBuilder::new().mtime(0).write(Vec::new(), Compression::fast());
    gz.write_all(&raw).expect("writing to memory");
    let packed = gz.finish().expect("writing to memory");
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "created": "1970-01-01T00:00:00Z", "architecture": arch, "os": "linux",
        "config": { "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": cmd, "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", digest(&raw))] },
    });
    let config = config.to_string().into_bytes();
    let descriptor = |kind: &str, bytes: &[u8]| {
        let media = format!("application/vnd.oci.image.{kind}");
        json!({ "mediaType": media, "digest": format!("sha256:{}", digest(bytes)), "size": bytes.len() })
    };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config),
        "layers": [descriptor("layer.v1.tar+gzip", &packed)],
    });
    let manifest = manifest.to_string().into_bytes();
    let manifests: Vec<_> = names
        .iter()
        .map(|name| {
            let mut d = descriptor("manifest.v1+json", &manifest);
            d["annotations"] = json!({ "io.containerd.image.name": name });
            d
        })
        .collect();
    let index = json!({ "schemaVersion": 2, "manifests": manifests }).to_string().into_bytes();
    let mut tar = tar::Builder::new(Vec::new());
    let mut file = |path: &str, data: &[u8]| entry(&mut tar, path, tar::EntryType::Regular, 0o644, data);
    file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    file("index.json", &index);
    for blob in [&packed, &config, &manifest] {
        file(&format!("blobs/sha256/{}", digest(blob)), blob);
    }
    let bytes = tar.into_inner().expect("writing to memory");
    std::fs::write(path, bytes).expect("the archive can be written");
}
