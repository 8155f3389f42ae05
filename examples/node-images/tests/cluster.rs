//! The program against a real coracle: outside by kubeconfig, and inside as a pod with its own service account.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use coracle_testkit::{Machine, coracle, retry, run};
use serde_json::json;

/// A program that ends with the value, and its lines.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    fn start(command: &mut std::process::Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("a process");
        let out = BufReader::new(child.stdout.take().expect("its output"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// Waits for a line.
    #[track_caller]
    fn says(&self, wanted: &str) {
        let mut heard = Vec::new();
        loop {
            match self.lines.recv_timeout(Duration::from_secs(60)) {
                Ok(line) if line == wanted => return,
                Ok(line) => heard.push(line),
                Err(_) => panic!("did not say {wanted:?}, but {heard:?}"),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const KUBECONFIG: &str = r#"
apiVersion: v1
kind: Config
current-context: test
clusters: [{ name: test, cluster: { server: "https://127.0.0.1:7443", insecure-skip-tls-verify: true } }]
contexts: [{ name: test, context: { cluster: test, user: test } }]
users: [{ name: test, user: { token: admintoken } }]
"#;

/// The API server alone: the test plays the kubelet, and says what images there are.
#[test]
fn outside_the_cluster_it_tells_images_changes_and_sums() {
    let machine = Machine::new("node-images");
    let tokens = machine.file("tokens.csv", "admintoken,admin,admin,\"system:masters\"\n");
    let mut server = machine.lasting(&coracle());
    server.args(["apiserver", "--secure-port", "7443", "--bind-address", "127.0.0.1", "--token-auth-file"]);
    server.arg(tokens).arg("--data-dir").arg(machine.data("api")).stderr(Stdio::null());
    let _server = Running::start(&mut server);
    let config = machine.file("config.yaml", KUBECONFIG);
    let kubectl = |args: &[&str]| {
        let mut command = machine.command(&coracle_testkit::kubectl());
        run(command.arg("--kubeconfig").arg(&config).args(args))
    };
    retry("the API server is ready", 60, || {
        let ready = kubectl(&["get", "--raw", "/readyz"]);
        if ready.status == 0 { Ok(()) } else { Err(ready.stderr) }
    });
    let node = machine.file(
        "node.json",
        &json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "one" } }).to_string(),
    );
    kubectl(&["create", "-f", &node.display().to_string()]).ok();
    let images = |list: serde_json::Value| {
        let patch = json!({ "status": { "images": list } }).to_string();
        kubectl(&["patch", "node", "one", "--subresource=status", "--type=merge", "-p", &patch]).ok();
    };
    let app = |version: &str, bytes: i64| json!({ "names": [format!("example/app:{version}")], "sizeBytes": bytes });
    images(json!([app("1", 1 << 20)]));

    let mut program = machine.lasting(&PathBuf::from(env!("CARGO_BIN_EXE_node-images")));
    let program = Running::start(program.env("KUBECONFIG", &config).env("RESYNC_SECONDS", "3"));
    program.says("one: 1 images, 1.0 MiB");
    images(json!([app("1", 1 << 20), app("2", 3 << 20)]));
    program.says("one: + example/app:2 (3.0 MiB)");
    // Nothing changes any more: this line is the resync's.
    program.says("one: 2 images, 4.0 MiB");
    images(json!([app("2", 3 << 20)]));
    program.says("one: - example/app:1 (1.0 MiB)");
    kubectl(&["delete", "node", "one"]).ok();
    program.says("one: gone");
}

/// A whole cluster: the pod may read nodes and nothing else, and tells of its own image.
#[test]
fn inside_the_cluster_it_runs_as_a_pod_with_the_rights_of_its_manifest() {
    let archive = std::env::var("NODE_IMAGES_ARCHIVE").expect("the image: run this by `make test`");
    let machine = Machine::new("node-images-pod");
    machine.coracle("main", &["up", "--detach", "--node-name", "one"]).ok();
    let kubectl = |args: &str| machine.kubectl("main", &args.split_whitespace().collect::<Vec<_>>());
    machine.coracle("main", &["image", "import", &archive]).ok();
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/manifests/node-images.yaml");
    kubectl(&format!("apply -f {manifest}")).ok();
    kubectl("-n node-images rollout status deploy/node-images --timeout=120s").ok();
    retry("it tells of its node and its own image", 120, || {
        let told = kubectl("-n node-images logs deploy/node-images").ok();
        let sum = told.lines().any(|line| line.starts_with("one: ") && line.contains(" images, "));
        if sum { Ok(()) } else { Err(told) }
    });
    let may = |what: &str| {
        let account = "--as=system:serviceaccount:node-images:node-images";
        kubectl(&format!("auth can-i {what} {account}")).stdout
    };
    assert_eq!(
        (may("watch nodes").trim(), may("get secrets").trim(), may("update nodes").trim()),
        ("yes", "no", "no")
    );
    machine.coracle("main", &["down", "--purge"]).ok();
}
