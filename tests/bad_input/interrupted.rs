//! `up` that is told to stop before it is done.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;

use coracle_testkit::{Census, Machine, coracle};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{MAIN, nothing_left, up};

/// Starts `up`, sends the signal when a line with `at` appears; status and what was said.
fn interrupt(machine: &Machine, args: &[&str], at: &str, signal: Signal) -> (i32, String) {
    let mut command = machine.command(&coracle());
    command
        .arg("up")
        .args(args)
        .args(["--node-name", "node", "--api-port", "6443", "--data-dir"])
        .arg(machine.data(MAIN));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut said = String::new();
    for line in lines.by_ref().map_while(Result::ok) {
        said.push_str(&line);
        if line.contains(at) {
            break;
        }
    }
    // The child is `timeout`, which passes the signal on.
    kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), signal).expect("it runs");
    said.extend(lines.map_while(Result::ok));
    child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
    let status = child.wait().expect("it ends");
    (status.code().unwrap_or(-1), said)
}

#[test]
fn first_start_that_is_interrupted_leaves_nothing() {
    let machine = Machine::new("int");
    let before = Census::own(&machine);
    for (args, at, signal) in [
        (&["--detach"][..], "certificates", Signal::SIGINT),
        (&["--detach"], "API server", Signal::SIGTERM),
        (&[], "machine", Signal::SIGINT),
        (&[], "network", Signal::SIGINT),
    ] {
        let interrupted = (0..5).any(|_| {
            let (status, said) = interrupt(&machine, args, at, signal);
            if said.contains("is Ready") {
                // The start was faster than this test.
                machine.coracle(MAIN, &["down", "--purge"]).ok();
                return false;
            }
            assert_eq!(status, 130, "{args:?} {at}: {said}");
            assert!(said.contains("error: interrupted") && said.contains("nothing of it is left"), "{said}");
            true
        });
        assert!(interrupted, "{args:?} {at}: never in time");
        nothing_left(&machine, &before);
    }
}

#[test]
fn later_start_that_is_interrupted_leaves_the_cluster_as_it_was() {
    let machine = Machine::new("again");
    let before = Census::own(&machine);
    up(&machine);
    machine.kubectl(MAIN, &["create", "configmap", "kept", "--from-literal=a=b"]).ok();
    machine.coracle(MAIN, &["down"]).ok();
    let (status, said) = interrupt(&machine, &["--detach"], "certificates", Signal::SIGINT);
    assert_eq!(status, 130, "{said}");
    assert!(said.contains("the cluster is as it was"), "{said}");
    assert!(machine.coracle(MAIN, &["status"]).fails().contains("stopped"));
    up(&machine);
    machine.kubectl(MAIN, &["get", "configmap", "kept"]).ok();
    machine.coracle(MAIN, &["down", "--purge"]).ok();
    nothing_left(&machine, &before);
}
