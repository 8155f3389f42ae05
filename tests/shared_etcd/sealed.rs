//! Secrets encrypted in etcd, with keys that are exchanged; snapshots out of etcd into the embedded store and back into
//! etcd.

use std::path::{Path, PathBuf};

use coracle_testkit::{Background, Machine, Output, coracle, kubectl, retry, run};
use serde_json::Value;

use crate::{ETCD, start_etcd};

const PORT: &str = "7001";
const WORD: &str = "correct-horse-battery-staple";

/// A configuration with these keys, by their numbers, the first to write with.
fn keys(machine: &Machine, numbers: &[u8]) -> PathBuf {
    let key = |n: &u8| {
        // 32 bytes in base64, all of them the number's letter.
        let secret =
            ["QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=", "QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkI="];
        format!("{{name: key{n}, secret: {}}}", secret[usize::from(*n) % 2])
    };
    let keys: Vec<String> = numbers.iter().map(key).collect();
    let config = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  \
         providers:\n  - aesgcm: {{keys: [{}]}}\n",
        keys.join(", ")
    );
    machine.file("keys.yaml", &config)
}

/// Whether any file below a directory has these bytes in it.
fn found(dir: &Path, bytes: &[u8]) -> bool {
    std::fs::read_dir(dir).expect("a directory").any(|entry| {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found(&path, bytes)
        } else {
            std::fs::read(&path).is_ok_and(|text| text.windows(bytes.len()).any(|w| w == bytes))
        }
    })
}

struct Place {
    machine: Machine,
    tokens: PathBuf,
}

impl Place {
    /// A server on what these flags name, once it is ready.
    fn server(&self, data: &str, store: &[&str]) -> Background {
        let mut command = self.machine.lasting(&coracle());
        command
            .args(["apiserver", "--secure-port", PORT, "--data-dir"])
            .arg(self.machine.data(data))
            .args(store);
        command.arg("--token-auth-file").arg(&self.tokens);
        command.arg("--encryption-provider-config").arg(self.machine.dir().join("keys.yaml"));
        let server = self.machine.background("server", &mut command);
        retry("the API server is ready", 60, || {
            let ready = self.kubectl(&["get", "--raw", "/readyz"]);
            (ready.status == 0).then_some(()).ok_or(ready.stderr)
        });
        server
    }

    fn kubectl(&self, args: &[&str]) -> Output {
        let mut command = self.machine.command(&kubectl());
        command.args(["--insecure-skip-tls-verify", "--token", "admintoken"]);
        run(command.arg(format!("--server=https://127.0.0.1:{PORT}")).args(args))
    }

    fn secret(&self) -> String {
        self.kubectl(&["get", "secret", "s", "-o", "jsonpath={.data.password}"]).ok()
    }

    fn version(&self, object: &str) -> u64 {
        let text = self.kubectl(&["get", object, "-o", "json"]).ok();
        let value: Value = serde_json::from_str(&text).expect("JSON");
        value["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).expect("a version")
    }

    fn snapshot(&self, what: &str, data: &str, store: &[&str]) -> Output {
        let mut command = self.machine.command(&coracle());
        command.arg("snapshot").args(store).arg(what).arg(self.machine.dir().join("snapshot"));
        run(command.arg("--data-dir").arg(self.machine.data(data)))
    }
}

#[test]
fn secrets_in_etcd_are_encrypted_and_go_through_snapshots_into_both_stores() {
    let machine = Machine::new("sealed");
    let etcd = start_etcd(&machine);
    let tokens = machine.file("tokens.csv", "admintoken,admin,admin,\"system:masters\"\n");
    let files = machine.dir().join("etcd");
    let place = Place { machine, tokens };
    let on_etcd = ["--etcd-servers", ETCD];
    const SEALED: &str = "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5LXN0YXBsZQ==";

    keys(&place.machine, &[1]);
    let server = place.server("a", &on_etcd);
    place.kubectl(&["create", "secret", "generic", "s", &format!("--from-literal=password={WORD}")]).ok();
    place.kubectl(&["create", "configmap", "m", "--from-literal=k=plain-to-see"]).ok();
    assert_eq!(place.secret(), SEALED);
    drop(server);
    assert!(found(&files, b"plain-to-see"), "else the next lines prove nothing");
    assert!(found(&files, b"k8s:enc:aesgcm:v1:key1:"), "written with the first key");
    for word in [WORD.as_bytes(), &SEALED.as_bytes()[..32]] {
        assert!(!found(&files, word), "the secret is in etcd's files");
    }

    // A second key before the first: written anew, the secret needs the first no more.
    keys(&place.machine, &[2, 1]);
    let server = place.server("a", &on_etcd);
    assert_eq!(place.secret(), SEALED, "the older key still opens");
    place.kubectl(&["annotate", "secret", "s", "written=anew"]).ok();
    drop(server);
    keys(&place.machine, &[2]);
    let server = place.server("a", &on_etcd);
    assert_eq!(place.secret(), SEALED);

    // Out of etcd, while it runs, into the embedded store.
    assert!(place.snapshot("save", "a", &on_etcd).ok().contains("saved"));
    let version = place.version("secret/s");
    drop(server);
    assert!(!found(place.machine.dir(), WORD.as_bytes()), "nor is it in the snapshot");
    place.snapshot("restore", "b", &[]).ok();
    let server = place.server("b", &[]);
    assert_eq!((place.secret().as_str(), place.version("secret/s")), (SEALED, version));
    place.kubectl(&["create", "configmap", "later"]).ok();
    let later = place.version("configmap/later");
    assert!(later > version, "{later} after {version}");

    // And into etcd again, under another prefix: the first is not empty.
    assert!(place.snapshot("save", "b", &[]).ok().contains("saved"));
    drop(server);
    assert!(place.snapshot("restore", "c", &on_etcd).fails().contains("not empty"));
    let other = ["--etcd-servers", ETCD, "--etcd-prefix", "/other"];
    place.snapshot("restore", "c", &other).ok();
    let server = place.server("c", &other);
    assert_eq!(place.secret(), SEALED);
    place.kubectl(&["get", "configmap", "later"]).ok();
    place.kubectl(&["create", "configmap", "last"]).ok();
    let old = place.kubectl(&[
        "get",
        "--raw",
        &format!("/api/v1/secrets?watch=1&timeoutSeconds=1&resourceVersion={later}"),
    ]);
    let told = format!("{}{}", old.stdout, old.stderr);
    assert!(told.contains("too old resource version"), "a watcher of before must list again: {told}");
    drop(server);
    drop(etcd);
}
