//! `coracle apiserver` with encrypted Secrets and certificates from files, which change; its snapshot, taken while it
//! is written to, and a second server on what was restored of it. With the real kubectl.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use coracle_testkit::{Background, Machine, Output, coracle, kubectl, retry, run};
use serde_json::Value;

const WORD: &str = "correct-horse-battery-staple";
const KEYS: &str = "apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - aesgcm: {keys: [{name: key1, secret: c2VjcmV0IGlzIHNlY3VyZSwgSSB0aGluaywgb3Igbm8=}]}
";

/// A running server; ends with the value.
struct Server<'a> {
    machine: &'a Machine,
    port: u16,
    _server: Background,
}

impl<'a> Server<'a> {
    fn start(machine: &'a Machine, data: &Path, port: u16) -> Self {
        let mut command = machine.lasting(&coracle());
        command.args(["apiserver", "--secure-port", &port.to_string(), "--data-dir"]).arg(data);
        for (flag, file) in [
            ("--token-auth-file", "tokens.csv"),
            ("--tls-cert-file", "tls.crt"),
            ("--tls-private-key-file", "tls.key"),
            ("--encryption-provider-config", "keys.yaml"),
        ] {
            command.arg(flag).arg(machine.dir().join(file));
        }
        let server = machine.background(&format!("server-{port}"), &mut command);
        let this = Self { machine, port, _server: server };
        retry("the API server is ready", 60, || {
            let ready = this.kubectl(&["get", "--raw", "/readyz"]);
            (ready.status == 0).then_some(()).ok_or(ready.stderr)
        });
        this
    }

    fn command(&self) -> Command {
        let mut command = self.machine.command(&kubectl());
        command.args(["--token", "admintoken"]).arg(format!("--server=https://127.0.0.1:{}", self.port));
        command
    }

    fn kubectl(&self, args: &[&str]) -> Output {
        run(self.command().arg("--insecure-skip-tls-verify").args(args))
    }

    /// Whether the certificate that is served is the one in this file.
    fn serves(&self, certificate: &Path) -> bool {
        let mut command = self.command();
        command.arg("--certificate-authority").arg(certificate).args(["get", "--raw", "/readyz"]);
        run(&mut command).status == 0
    }

    fn version_of(&self, what: &[&str]) -> u64 {
        let text = self.kubectl(&[&["get", "-o", "json"], what].concat()).ok();
        let value: Value = serde_json::from_str(&text).expect("JSON");
        value["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).expect("a version")
    }
}

/// A self-signed certificate of its own for the loopback address.
fn certificate(machine: &Machine, name: &str) -> (PathBuf, String) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
    (machine.file(&format!("{name}.pem"), &made.cert.pem()), made.signing_key.serialize_pem())
}

fn put(machine: &Machine, certificate: &(PathBuf, String)) {
    std::fs::copy(&certificate.0, machine.dir().join("tls.new")).expect("copied");
    std::fs::rename(machine.dir().join("tls.new"), machine.dir().join("tls.crt")).expect("renamed");
    machine.file("tls.key", &certificate.1);
}

/// Whether any file below a directory has these bytes in it.
fn found(dir: &Path, bytes: &[u8]) -> bool {
    std::fs::read_dir(dir).expect("a directory").any(|entry| {
        let entry = entry.expect("an entry");
        let kind = entry.file_type().expect("a type");
        kind.is_dir() && found(&entry.path(), bytes)
            || kind.is_file()
                && std::fs::read(entry.path()).expect("read").windows(bytes.len()).any(|w| w == bytes)
    })
}

fn saved_while_written_to(machine: &Machine, server: &Server<'_>, data: &Path, file: &Path) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut written = 0;
            while !done.load(Ordering::Relaxed) {
                written += 1;
                server.kubectl(&["create", "configmap", &format!("later-{written}")]).ok();
            }
        });
        let save =
            run(machine.command(&coracle()).args(["snapshot", "save"]).arg(file).arg("--data-dir").arg(data));
        done.store(true, Ordering::Relaxed);
        writer.join().expect("the writer goes on meanwhile");
        assert!(save.ok().contains("saved"), "the server runs, and is asked");
    });
}

#[test]
fn a_snapshot_taken_while_running_is_a_cluster_again_and_tells_no_secret() {
    let machine = Machine::new("snapshot");
    machine.file("tokens.csv", "admintoken,admin,admin,\"system:masters\"\n");
    machine.file("keys.yaml", KEYS);
    let (first, second) = (certificate(&machine, "first"), certificate(&machine, "second"));
    put(&machine, &first);
    let (data, other, file) = (machine.data("a"), machine.data("b"), machine.dir().join("monday"));

    let server = Server::start(&machine, &data, 7001);
    assert!(server.serves(&first.0) && !server.serves(&second.0));
    put(&machine, &second);
    retry("the new certificate is served", 60, || {
        server.serves(&second.0).then_some(()).ok_or_else(|| "still the old one".into())
    });
    server.kubectl(&["create", "secret", "generic", "s", &format!("--from-literal=password={WORD}")]).ok();
    server.kubectl(&["create", "configmap", "m", "--from-literal=k=plain-to-see"]).ok();
    let version = server.version_of(&["secret", "s"]);
    saved_while_written_to(&machine, &server, &data, &file);
    drop(server);
    assert!(found(&data, b"plain-to-see"), "else the next line proves nothing");
    for word in [WORD.as_bytes(), b"Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5"] {
        assert!(!found(&data, word), "the secret is on the disk");
    }

    let coracle_with = |args: &[&str], data: &Path| {
        run(machine.command(&coracle()).arg("snapshot").args(args).arg(&file).arg("--data-dir").arg(data))
    };
    assert!(coracle_with(&["status"], &other).ok().contains("whole"));
    assert!(coracle_with(&["restore"], &data).fails().contains("not empty"));
    coracle_with(&["restore"], &other).ok();
    let server = Server::start(&machine, &other, 7002);
    let secret = server.kubectl(&["get", "secret", "s", "-o", "jsonpath={.data.password}"]).ok();
    assert_eq!(secret, "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5LXN0YXBsZQ==");
    assert_eq!(server.version_of(&["secret", "s"]), version, "objects keep their versions");
    server.kubectl(&["create", "configmap", "new"]).ok();
    assert!(server.version_of(&["configmap", "new"]) > 1_000_000, "and new ones are later than any known");
    let again =
        server.kubectl(&["get", "--raw", &format!("/api/v1/secrets?watch=1&resourceVersion={version}")]);
    assert!(format!("{}{}", again.stdout, again.stderr).contains("too old resource version"));
    drop(server);

    let mut bytes = std::fs::read(&file).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).expect("written");
    assert!(coracle_with(&["status"], &other).fails().contains("checksum"));
}
