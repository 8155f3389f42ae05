//! Image archives that are none or are damaged, and images that are nowhere.

use std::path::{Path, PathBuf};

use coracle_testkit::{Machine, Output, retry};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{Background, MAIN, plain, refused};

fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        // By hand: the builder refuses names that lead out.
        header.as_gnu_mut().expect("gnu").name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, &data[..]).expect("in memory");
    }
    builder.into_inner().expect("in memory")
}

/// The parts of an image archive, each of which a case may spoil.
struct Parts {
    layer: Vec<u8>,
    diff_id: String,
    layer_digest: String,
    manifest_digest: Option<String>,
    name: &'static str,
    without: &'static str,
    index: Option<&'static str>,
}

impl Parts {
    /// A good image with one file, different in each case.
    fn of(content: &str) -> Self {
        let layer = tar(&[("etc/case".into(), content.as_bytes().to_vec())]);
        Self::with_layer(layer)
    }

    fn with_layer(layer: Vec<u8>) -> Self {
        let digest = sha(&layer);
        Self {
            layer,
            diff_id: digest.clone(),
            layer_digest: digest,
            manifest_digest: None,
            name: "test.example/bad:1",
            without: "nothing",
            index: None,
        }
    }

    fn archive(&self) -> Vec<u8> {
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", self.diff_id)] },
        });
        let config = config.to_string().into_bytes();
        let about = |kind: &str, digest: &str, size: usize| {
            let media = format!("application/vnd.oci.image.{kind}");
            json!({ "mediaType": media, "digest": format!("sha256:{digest}"), "size": size })
        };
        let manifest = json!({
            "schemaVersion": 2,
            "config": about("config.v1+json", &sha(&config), config.len()),
            "layers": [about("layer.v1.tar", &self.layer_digest, self.layer.len())],
        });
        let manifest = manifest.to_string().into_bytes();
        let digest = sha(&manifest);
        let mut entry =
            about("manifest.v1+json", self.manifest_digest.as_ref().unwrap_or(&digest), manifest.len());
        entry["annotations"] = json!({ "io.containerd.image.name": self.name });
        let index = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
        let index = self.index.map_or(index, str::to_owned);
        let blob = |kind: &str, digest: &str, data: Vec<u8>| {
            (kind.to_owned(), format!("blobs/sha256/{digest}"), data)
        };
        let files = [
            ("index".into(), "index.json".into(), index.into_bytes()),
            blob("config", &sha(&config), config),
            blob("manifest", &digest, manifest),
            blob("layer", &self.layer_digest, self.layer.clone()),
        ];
        let files: Vec<(String, Vec<u8>)> = files
            .into_iter()
            .filter(|f: &(String, String, Vec<u8>)| f.0 != self.without)
            .map(|f| (f.1, f.2))
            .collect();
        tar(&files)
    }
}

fn cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let whole = Parts::of("whole").archive();
    let evil = tar(&[("../../../../../../tmp/coracle-evil".into(), b"x".to_vec())]);
    let garbage = b"this is no tar at all\n".repeat(100);
    vec![
        ("empty", Vec::new(), "the file is empty"),
        ("text", b"hello\n".repeat(1000), "not a tar archive"),
        ("halved", whole[..whole.len() / 2 + 100].to_vec(), "cut off"),
        ("short", whole[..600].to_vec(), "ends in the middle of index.json"),
        ("gzip", b"\x1f\x8b\x08xxxxxxxx".to_vec(), "cannot decompress"),
        ("other", tar(&[("readme".into(), b"x".to_vec())]), "no image in it"),
        ("noindex", Parts { without: "index", ..Parts::of("a") }.archive(), "no image in it"),
        ("badindex", Parts { index: Some("{"), ..Parts::of("b") }.archive(), "index.json is malformed"),
        (
            "emptyindex",
            Parts { index: Some("{\"manifests\":[]}"), ..Parts::of("c") }.archive(),
            "no image in it",
        ),
        ("noconfig", Parts { without: "config", ..Parts::of("d") }.archive(), "is not in the archive"),
        ("nolayer", Parts { without: "layer", ..Parts::of("e") }.archive(), "is not in the archive"),
        (
            "manifestdigest",
            Parts { manifest_digest: Some("2".repeat(64)), ..Parts::of("f") }.archive(),
            "is not in the archive",
        ),
        (
            "diffid",
            Parts { diff_id: "0".repeat(64), ..Parts::of("g") }.archive(),
            "its image says sha256:0000",
        ),
        (
            "blobdigest",
            Parts { layer_digest: "1".repeat(64), ..Parts::of("h") }.archive(),
            "the blob has digest",
        ),
        ("traversal", Parts::with_layer(evil).archive(), "leads out of the layer"),
        ("badlayer", Parts::with_layer(garbage).archive(), "not a tar archive"),
        ("badname", Parts { name: "UPPER/x:1", ..Parts::of("i") }.archive(), "invalid reference format"),
    ]
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        found.push(entry.path());
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            found.extend(files(&entry.path()));
        }
    }
    found.sort();
    found
}

fn import(machine: &Machine, path: &Path) -> Output {
    machine.coracle(MAIN, &["image", "import", &path.display().to_string()])
}

/// Archives of all kinds of damage: refused in one message, and nothing of them stays.
pub fn malformed(machine: &Machine) {
    retry("the image of this very program", 60, || {
        let listed = machine.coracle(MAIN, &["image", "ls"]).ok();
        if listed.contains("coracle.local/self") { Ok(()) } else { Err(listed) }
    });
    let stored = machine.data(MAIN).join("runtime");
    let before = files(&stored);
    for (name, archive, words) in cases() {
        let path = machine.dir().join(format!("{name}.tar"));
        std::fs::write(&path, archive).expect("written");
        let said = refused(import(machine, &path), 1, &["cannot import", &format!("{name}.tar"), words]);
        assert_eq!(said.lines().count(), 2, "what and what to do: {said}");
        assert_eq!(files(&stored), before, "{name} left something");
    }
    assert!(!Path::new("/tmp/coracle-evil").exists());
    let absent = machine.dir().join("absent.tar");
    refused(import(machine, &absent), 1, &["absent.tar", "No such file"]);
    refused(
        machine.coracle(MAIN, &["image", "rm", "test.example/bad:1"]),
        1,
        &["is not present", "image ls"],
    );
    let good = machine.dir().join("good.tar");
    std::fs::write(&good, Parts::of("good").archive()).expect("written");
    assert!(import(machine, &good).ok().contains("imported test.example/bad:1"));
}

fn waiting(machine: &Machine, pod: &str) -> (String, String) {
    let pod = machine.kubectl(MAIN, &["get", "pod", pod, "-o", "json"]).ok();
    let pod: Value = serde_json::from_str(&pod).expect("JSON");
    let state = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    let text = |key: &str| state[key].as_str().unwrap_or("").to_owned();
    (text("reason"), text("message"))
}

/// Pods with images that are nowhere, and the pull command.
pub fn not_found(machine: &Machine) {
    let empty = machine.dir().join("empty");
    std::fs::create_dir(&empty).expect("a directory");
    // A registry that has nothing: 404 for everything.
    let mut registry = machine.command(Path::new("busybox"));
    let _registry = Background::start(
        registry.args(["busybox", "httpd", "-f", "-p", "5000", "-h"][1..].iter()).arg(&empty),
    );
    let create = |name: &str, image: &str, policy: &str| {
        let policy = format!("--image-pull-policy={policy}");
        machine.kubectl(MAIN, &["run", name, "--image", image, "--restart=Never", &policy]).ok();
    };
    retry("the registry answers", 10, || {
        let got = plain(machine, &["demo", "get", "http://127.0.0.1:5000/"]);
        if got.stderr.contains("status 404") { Ok(()) } else { Err(got.stderr) }
    });
    create("missing", "127.0.0.1:5000/none:1", "IfNotPresent");
    create("silent", "127.0.0.1:5/none:1", "IfNotPresent");
    create("never", "test.example/never:1", "Never");
    create("misnamed", "UPPER/x", "IfNotPresent");
    let shows = |pod: &str, reasons: &[&str], words: &str| {
        retry(pod, 20, || {
            let (reason, message) = waiting(machine, pod);
            let good = reasons.contains(&reason.as_str()) && message.contains(words);
            if good { Ok(()) } else { Err(format!("{reason}: {message}")) }
        });
    };
    let pull = ["ErrImagePull", "ImagePullBackOff"];
    shows("missing", &pull, "127.0.0.1:5000/none:1: not found");
    shows("silent", &pull, "Connection refused");
    shows("missing", &["ImagePullBackOff"], "Back-off pulling image");
    shows("never", &["ErrImageNeverPull"], "is not present with pull policy of Never");
    shows(
        "misnamed",
        &["InvalidImageName"],
        "couldn't parse image name \"UPPER/x\": invalid reference format",
    );
    let told = machine.kubectl(MAIN, &["describe", "pod", "missing"]).ok();
    for words in
        ["Failed to pull image \"127.0.0.1:5000/none:1\"", "Error: ErrImagePull", "Back-off pulling image"]
    {
        assert!(told.contains(words), "{words:?} is not in: {told}");
    }
    let pull = |image: &str| machine.coracle(MAIN, &["image", "pull", image]);
    refused(pull("127.0.0.1:5000/none:1"), 1, &["127.0.0.1:5000/none:1", "not found", "image import"]);
    refused(pull("127.0.0.1:5/none:1"), 1, &["127.0.0.1:5/none:1", "Connection refused"]);
    refused(pull("UPPER:::x"), 1, &["couldn't parse image name \"UPPER:::x\""]);
    let pods = ["missing", "silent", "never", "misnamed"];
    machine.kubectl(MAIN, &[&["delete", "pod", "--grace-period=0", "--force"], &pods[..]].concat()).ok();
}
