//! A machine of the test's own: a network namespace with an address and a default route, and a directory.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::background::{Background, keep_failures, show_if_failed};
use crate::program::{Output, coracle, kubectl, run};

/// Seconds that any one command may take: a hang fails the test instead of stalling the run.
const PATIENCE: &str = "180";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network namespace and a directory; both end with the value, and so does every cluster left in it.
#[derive(Debug)]
pub struct Machine {
    netns: String,
    dir: tempfile::TempDir,
}

impl Machine {
    /// Makes the namespace: `lo` up, one link with the address 192.168.77.1/24 and a default route that leads
    /// nowhere, as on a machine without the internet.
    ///
    /// # Panics
    /// Without root or iproute2.
    pub fn new(name: &str) -> Self {
        keep_failures();
        let netns = format!("ct-{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let ip = |args: &str| {
            run(Command::new("ip").args(args.split(' '))).ok();
        };
        ip(&format!("netns add {netns}"));
        ip(&format!("-n {netns} link set lo up"));
        ip(&format!("-n {netns} link add uplink0 type veth peer name uplink1"));
        ip(&format!("-n {netns} addr add 192.168.77.1/24 dev uplink0"));
        ip(&format!("-n {netns} link set uplink0 up"));
        ip(&format!("-n {netns} link set uplink1 up"));
        ip(&format!("-n {netns} route add default via 192.168.77.254 dev uplink0"));
        let dir = tempfile::Builder::new().prefix("coracle-test-").tempdir().expect("a temporary directory");
        Self { netns, dir }
    }

    /// The test's directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The namespace's name below /run/netns.
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// Puts the calling thread on this machine: sockets that it opens from now on are the machine's.
    ///
    /// # Panics
    /// Without root.
    pub fn enter(&self) {
        let netns =
            std::fs::File::open(format!("/run/netns/{}", self.netns)).expect("the machine's namespace");
        nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).expect("root enters a namespace");
    }

    /// A command that runs on this machine, with `$KUBECONFIG` and `$HOME` of its own.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.netns))
            .args(["--", "timeout", "--foreground", "-k", "5", PATIENCE])
            .arg(program)
            .env("HOME", self.dir.path())
            .env("KUBECONFIG", self.dir.path().join("user-kubeconfig"))
            .env_remove("SUDO_UID");
        command
    }

    /// A command that runs on this machine for as long as its caller wants: a server.
    pub fn lasting(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.netns)).arg("--").arg(program);
        command
    }

    /// Data directory of a cluster of this machine.
    pub fn data(&self, cluster: &str) -> PathBuf {
        self.dir.path().join(cluster)
    }

    /// Runs `coracle COMMAND… --data-dir <cluster>`.
    pub fn coracle(&self, cluster: &str, args: &[&str]) -> Output {
        run(self.command(&coracle()).args(args).arg("--data-dir").arg(self.data(cluster)))
    }

    /// Runs kubectl with the cluster's administrator kubeconfig.
    pub fn kubectl(&self, cluster: &str, args: &[&str]) -> Output {
        run(&mut self.kubectl_command(cluster, args))
    }

    /// The kubectl command itself, for tests that talk to it while it runs.
    pub fn kubectl_command(&self, cluster: &str, args: &[&str]) -> Command {
        let mut command = self.command(&kubectl());
        command.env("KUBECONFIG", self.data(cluster).join("kubeconfig")).args(args);
        command
    }

    /// Starts a program (a command of [`Machine::lasting`]) beside the test, with `<name>.log` in the test's directory.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn background(&self, name: &str, command: &mut Command) -> Background {
        Background::start(command, &self.dir.path().join(format!("{name}.log")))
    }

    /// Writes a file into the test's directory.
    ///
    /// # Panics
    /// When the disk is full.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).expect("a file in the test's directory");
        path
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A failed test leaves its clusters running: end them, then the namespace.
        for entry in std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
            if entry.path().join("cluster.json").exists() {
                let cluster = entry.file_name().to_string_lossy().into_owned();
                show_if_failed(&entry.path().join("coracle.log"));
                let _ = self.coracle(&cluster, &["down", "--purge"]);
            }
        }
        let _ = run(Command::new("ip").args(["netns", "del", &self.netns]));
    }
}
