//! Static pods that a server describes: the kubelet asks it, and does what it says.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use coracle_testkit::{Machine, retry};
use serde_json::{Value, json};

use crate::{IMAGE, Lab, MAIN, archive};

/// Where the server is, on the test's machine.
const ADDRESS: &str = "127.0.0.1:18099";

/// Answers every request with the text as it is now, until the test ends; no answer is good without the header.
fn serve(machine: &Machine, text: &Arc<Mutex<String>>) {
    let (ready, is_ready) = std::sync::mpsc::channel();
    let text = text.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            machine.enter();
            ready.send(TcpListener::bind(ADDRESS).expect("an address")).expect("the test waits");
        });
    });
    let listener = is_ready.recv().expect("a listener");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                head.push(byte[0]);
            }
            let known = String::from_utf8_lossy(&head).contains("x-token: secret");
            let (code, body) = match known {
                true => ("200 OK", text.lock().expect("a text").clone()),
                false => ("403 Forbidden", String::new()),
            };
            let length = body.len();
            let _ = write!(
                stream,
                "HTTP/1.1 {code}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            );
        }
    });
}

fn pod(name: &str, says: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
        "name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", format!("echo {says}; sleep 1000")]}]}})
}

#[test]
fn pods_that_a_url_describes_run_change_and_go_with_it() {
    let machine = Machine::new("static-url");
    let archive = archive(&machine).display().to_string();
    let text = Arc::new(Mutex::new(String::new()));
    let say = |pods: &[Value]| {
        let list = json!({"kind": "PodList", "apiVersion": "v1", "items": pods});
        *text.lock().expect("a text") = list.to_string();
    };
    say(&[pod("one", "first")]);
    serve(&machine, &text);
    let config = format!(
        "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\nfileCheckFrequency: 1s\n\
         staticPodURL: http://{ADDRESS}/pods\nstaticPodURLHeader: {{X-Token: [secret]}}\nhttpCheckFrequency: 1s\n"
    );
    let config = machine.file("kubelet.yaml", &config).display().to_string();
    let lab = Lab::up(machine, &["--kubelet-config", &config]);
    lab.machine.coracle(MAIN, &["image", "import", &archive]).ok();
    let mirror = lab.running("one-n1");
    let annotations = &mirror["metadata"]["annotations"];
    assert_eq!(annotations["kubernetes.io/config.source"], "http");
    assert_eq!(annotations["kubernetes.io/config.mirror"], annotations["kubernetes.io/config.hash"]);
    assert_eq!(mirror["metadata"]["ownerReferences"][0]["kind"], "Node");
    assert_eq!(lab.kubectl(&["logs", "one-n1"]), "first\n");

    let two = pod("two", "another");
    say(&[pod("one", "second"), two.clone()]);
    lab.running("two-n1");
    retry("the changed pod runs", 90, || {
        let said = lab.machine.kubectl(MAIN, &["logs", "one-n1"]).stdout;
        if said == "second\n" { Ok(()) } else { Err(said) }
    });
    let changed = lab.running("one-n1");
    assert_ne!(
        changed["metadata"]["annotations"]["kubernetes.io/config.hash"],
        annotations["kubernetes.io/config.hash"]
    );

    // Who deletes the mirror deletes a picture.
    let uid = |name: &str| lab.kubectl(&["get", "pod", name, "-o", "jsonpath={.metadata.uid}"]);
    let before = uid("two-n1");
    lab.kubectl(&["delete", "pod", "two-n1", "--wait=false"]);
    retry("another mirror", 90, || {
        let now = lab.machine.kubectl(MAIN, &["get", "pod", "two-n1", "-o", "jsonpath={.metadata.uid}"]);
        if now.status == 0 && now.stdout != before { Ok(()) } else { Err(format!("{now:?}")) }
    });

    say(&[two]);
    let pods = || lab.kubectl(&["get", "pods", "-o", "jsonpath={.items[*].metadata.name}"]);
    retry("the first is gone", 90, || if pods() == "two-n1" { Ok(()) } else { Err(pods()) });
    lab.running("two-n1");
    say(&[]);
    retry("nothing is left", 90, || if pods().is_empty() { Ok(()) } else { Err(pods()) });
    lab.down();
}
