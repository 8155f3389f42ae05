//! A second cluster on the same machine, beside the first.

use std::path::Path;

use crate::{IMAGE, MAIN, Story};

pub fn run(story: &Story) {
    let machine = &story.machine;
    let said = machine.coracle("other", &["up", "--detach", "--node-name", "other"]).ok();
    assert!(said.contains("Ready"), "{said}");
    let archive = machine.dir().join("busybox.tar").display().to_string();
    coracle_testkit::run(
        machine
            .command(&coracle_testkit::coracle())
            .args(["image", "import", &archive, "--data-dir"])
            .arg(machine.data("other")),
    )
    .ok();
    let kubectl = |args: &str| machine.kubectl("other", &args.split_whitespace().collect::<Vec<_>>()).ok();
    assert!(kubectl("get nodes").contains("other"));
    let script = "echo second > /tmp/index.html; exec httpd -f -p 8080 -h /tmp";
    let args = ["run", "web", "--image", IMAGE, "--port=8080", "--expose", "--", "sh", "-c", script];
    machine.kubectl("other", &args).ok();
    kubectl("wait pod/web --for=condition=Ready --timeout=30s");
    let ip = kubectl("get svc web -o jsonpath={.spec.clusterIP}");
    let get = |url: String| {
        coracle_testkit::run(
            machine.command(Path::new("busybox")).args(["timeout", "5", "busybox", "wget", "-qO-", &url]),
        )
        .ok()
    };
    assert_eq!(get(format!("http://{ip}:8080/")), "second\n");
    let first = story.kubectl("get svc web -n shop -o jsonpath={.spec.clusterIP}");
    assert!(get(format!("http://{first}/")).starts_with("web-"), "the first cluster is undisturbed");

    machine.coracle("other", &["down", "--purge"]).ok();
    assert!(!machine.data("other").exists());
    assert!(get(format!("http://{first}/")).starts_with("web-"), "and stays so when the second one goes");
    assert_eq!(story.sh("deploy/web", "echo alive"), "alive\n");
    assert!(machine.coracle(MAIN, &["status"]).ok().contains("running"));
}
