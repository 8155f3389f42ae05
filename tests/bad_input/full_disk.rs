//! A disk that fills up under a running cluster.

use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_testkit::{Census, Machine, retry, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{MAIN, nothing_left, refused, up};

/// A small file system as the cluster's data directory.
struct SmallDisk<'a> {
    machine: &'a Machine,
    at: PathBuf,
}

impl<'a> SmallDisk<'a> {
    fn mount(machine: &'a Machine) -> Self {
        let at = machine.data(MAIN);
        std::fs::create_dir(&at).expect("a directory");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=160m,mode=700", "none"]).arg(&at)).ok();
        Self { machine, at }
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        // The cluster must go before the disk that tells which it is.
        let _ = self.machine.coracle(MAIN, &["down", "--purge"]);
        let _ = run(Command::new("umount").arg(&self.at));
        let _ = std::fs::remove_dir(&self.at);
    }
}

/// Takes all the space that is left.
fn fill(path: &Path) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path).expect("a file");
    let block = vec![1u8; 64 << 10];
    while file.write_all(&block).is_ok() {}
}

fn create(machine: &Machine, name: &str) -> coracle_testkit::Output {
    machine.kubectl(MAIN, &["create", "configmap", name, "--from-literal=a=b"])
}

#[test]
fn full_disk_refuses_writes_loses_nothing_and_goes_on_when_there_is_room() {
    let machine = Machine::new("full");
    let before = Census::own(&machine);
    let disk = SmallDisk::mount(&machine);
    up(&machine);
    let mut kept: Vec<String> = Vec::new();
    let mut keep = |name: String| {
        create(&machine, &name).ok();
        kept.push(name);
    };
    for i in 0..5 {
        keep(format!("before-{i}"));
    }
    let filler = disk.at.join("filler");
    fill(&filler);
    for i in 0..3 {
        let said = create(&machine, &format!("refused-{i}")).fails();
        assert!(
            said.contains("no space left for the store at") && said.contains("free some disk space"),
            "{said}"
        );
    }
    let archive = machine.dir().join("busybox.tar");
    coracle_testkit::busybox_archive(&archive, &["test.example/busybox:1"], &["sh"]);
    let import = machine.coracle(MAIN, &["image", "import", &archive.display().to_string()]);
    refused(import, 1, &["busybox.tar", "no space left", "free some disk space"]);
    // Reading goes on meanwhile.
    assert!(machine.kubectl(MAIN, &["get", "configmap", "before-0"]).ok().contains("before-0"));
    std::fs::remove_file(&filler).expect("removed");
    keep("after".to_owned());

    // The same through the death of the daemon on the full disk.
    fill(&filler);
    let pid = std::fs::read_to_string(disk.at.join("coracle.pid")).expect("a pid file");
    let pid: i32 = pid.split_whitespace().next().and_then(|p| p.parse().ok()).expect("a pid");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
    retry("the daemon is gone", 10, || {
        let said = machine.coracle(MAIN, &["status"]);
        if said.stdout.contains("stopped") { Ok(()) } else { Err(said.stdout) }
    });
    refused(machine.coracle(MAIN, &["up", "--detach"]), 1, &["the disk of", "is full", "free some space"]);
    std::fs::remove_file(&filler).expect("removed");
    up(&machine);
    let found = machine.kubectl(MAIN, &["get", "configmap", "-o", "name"]).ok();
    for name in &kept {
        assert!(found.contains(&format!("configmap/{name}\n")), "{name} is lost: {found}");
    }
    assert!(!found.contains("refused"), "{found}");
    let ready =
        || machine.kubectl(MAIN, &["wait", "node", "--all", "--for=condition=Ready", "--timeout=20s"]);
    ready().ok();
    machine.coracle(MAIN, &["down", "--purge"]).ok();
    drop(disk);
    nothing_left(&machine, &before);
}
