//! Bad input, with the real binary and the real kubectl: each case gives one clear message that says what is
//! wrong and what to do, a status that is not zero, and leaves nothing half-done.

mod certificates;
mod command_line;
mod full_disk;
mod images;
mod interrupted;
mod machine_lacks;
mod manifests;
mod store;

use std::process::{Child, Command, Stdio};

use coracle_testkit::{Census, Machine, Output, coracle, run};

/// The cluster's name in a test's directory.
const MAIN: &str = "main";

/// Runs coracle on the machine with these arguments and nothing added.
fn plain(machine: &Machine, args: &[&str]) -> Output {
    run(machine.command(&coracle()).args(args))
}

/// Starts a cluster in the background. Ports are given: the default ones depend on what else runs.
const UP: &[&str] =
    &["up", "--detach", "--node-name", "node", "--api-port", "6443", "--kubelet-port", "10250"];

/// Starts the machine's cluster in the background.
#[track_caller]
fn up(machine: &Machine) -> String {
    machine.coracle(MAIN, UP).ok()
}

/// Checks that a command failed with one error message: with all the words, and a line that says what to do.
#[track_caller]
fn refused(output: Output, status: i32, words: &[&str]) -> String {
    let Output { status: found, stderr, stdout } = output;
    assert_eq!(found, status, "stdout: {stdout}\nstderr: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is not in: {stderr}");
    }
    let messages = stderr.lines().filter(|l| l.starts_with("error: ")).count();
    assert_eq!(messages, 1, "one message: {stderr}");
    assert!(stderr.contains("\n  → ") || stderr.contains("try '--help'"), "says what to do: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

/// Checks that a first start that failed left neither a directory nor anything else.
#[track_caller]
fn nothing_left(machine: &Machine, before: &Census) {
    assert!(!machine.data(MAIN).exists(), "the data directory is left");
    let left = Census::own(machine).since(before);
    assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
}

/// Ends a process with the value.
struct Background(Child);

impl Background {
    fn start(command: &mut Command) -> Self {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(quiet.spawn().expect("it starts"))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // The child is `timeout`, which passes SIGTERM on to the program.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).expect("a pid"));
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// What needs a running cluster shares one.
#[test]
fn a_running_cluster_refuses_bad_input_and_goes_on() {
    let machine = Machine::new("badrun");
    let before = Census::own(&machine);
    let said = up(&machine);
    assert!(said.contains("Ready"), "{said}");
    command_line::while_it_runs(&machine);
    certificates::of_clients(&machine);
    manifests::with_unknown_fields(&machine);
    images::malformed(&machine);
    images::not_found(&machine);
    let ready = machine.kubectl(MAIN, &["get", "nodes"]).ok();
    assert!(ready.contains(" Ready "), "still well: {ready}");
    machine.coracle(MAIN, &["down", "--purge"]).ok();
    nothing_left(&machine, &before);
}
