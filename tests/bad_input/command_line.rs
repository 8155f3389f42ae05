//! Arguments, configuration files, rights, and commands at the wrong time.

use std::path::Path;

use coracle_testkit::{Census, Machine, coracle, run};

use crate::{Background, MAIN, UP, nothing_left, plain, refused, up};

#[test]
fn wrong_arguments_are_named_with_status_2_and_help_is_everywhere() {
    let machine = Machine::new("args");
    let before = Census::own(&machine);
    for (args, words) in [
        (&["upp"][..], &["unrecognized subcommand 'upp'", "similar", "'up'"][..]),
        (&["up", "--detatch"], &["unexpected argument '--detatch'", "--detach"]),
        (&["up", "now"], &["unexpected argument 'now'"]),
        (&["up", "--api-port", "99999"], &["'99999'", "--api-port"]),
        (&["up", "--api-port", "0"], &["'0'", "--api-port"]),
        (&["up", "--node-ip", "here"], &["'here'", "--node-ip", "invalid IP address"]),
        (&["up", "--data-dir"], &["a value is required for '--data-dir"]),
        (&["image", "import"], &["<PATHS>..."]),
        (&["image", "rm"], &["<IMAGE>"]),
        (&["apiserver", "--tls-cert-file", "x"], &["--tls-private-key-file"]),
    ] {
        refused(plain(&machine, args), 2, words);
    }
    for (args, words) in [
        (&["--node-ip", "::1"][..], &["--node-ip", "IPv4"][..]),
        (&["--node-name", "Big_Node"], &["--node-name \"Big_Node\"", "DNS name"]),
        (&["--cluster-cidr", "10.1.2.3"], &["--cluster-cidr \"10.1.2.3\"", "range such as"]),
        (
            &["--cluster-cidr", "10.96.3.0/24", "--service-cluster-ip-range", "10.96.0.0/16"],
            &["overlap", "10.96.0.0/16"],
        ),
        (&["--api-port", "6443", "--kubelet-port", "6443"], &["--api-port and --kubelet-port are both 6443"]),
        (&["--log", "a=b=c"], &["--log \"a=b=c\""]),
    ] {
        refused(machine.coracle(MAIN, &[&["up", "--detach"], args].concat()), 2, words);
        nothing_left(&machine, &before);
    }
    for args in
        ["", "up ", "down ", "status ", "image ", "image import ", "image pull ", "image ls ", "image rm "]
            .into_iter()
            .chain(["apiserver ", "demo ", "demo serve ", "demo get ", "demo tick "])
    {
        let line = format!("{args}--help");
        let help = plain(&machine, &line.split(' ').collect::<Vec<_>>()).ok();
        assert!(help.contains("Usage: ") && !help.contains("The binary"), "{line}: {help}");
    }
    assert!(plain(&machine, &["help", "up"]).ok().contains("--api-port"));
    assert!(plain(&machine, &["--version"]).ok().contains("Kubernetes v1.36"));
    let bare = plain(&machine, &[]);
    assert!(bare.status == 2 && bare.stderr.contains("Usage: "), "{bare:?}");
}

#[test]
fn configuration_file_that_cannot_be_used_is_named() {
    let machine = Machine::new("config");
    let before = Census::own(&machine);
    let absent = machine.dir().join("absent.yaml").display().to_string();
    let up = |config: &str| machine.coracle(MAIN, &["up", "--detach", "--config", config]);
    refused(up(&absent), 1, &["absent.yaml", "No such file", "--config"]);
    for (text, words) in [
        ("api-prot: 7000\n", &["c.yaml", "\"api-prot\" is not an option of `coracle up`"][..]),
        ("api-port: [\n", &["c.yaml"]),
        ("just text\n", &["c.yaml"]),
    ] {
        let path = machine.file("c.yaml", text).display().to_string();
        refused(up(&path), 1, words);
    }
    nothing_left(&machine, &before);
}

#[test]
fn commands_without_a_cluster_say_so_and_what_makes_one() {
    let machine = Machine::new("none");
    let before = Census::own(&machine);
    refused(machine.coracle(MAIN, &["status"]), 1, &["no cluster in", "coracle up"]);
    refused(machine.coracle(MAIN, &["image", "ls"]), 1, &["not running", "coracle up"]);
    refused(machine.coracle(MAIN, &["image", "pull", "x"]), 1, &["not running", "coracle up"]);
    let archive = machine.file("a.tar", "").display().to_string();
    refused(machine.coracle(MAIN, &["image", "import", &archive]), 1, &["not running"]);
    for args in [&["down"][..], &["down", "--purge"]] {
        assert!(machine.coracle(MAIN, args).ok().contains("no cluster in"), "nothing to do is no error");
    }
    let said = plain(&machine, &["demo", "get", "http://127.0.0.1:9/"]).fails();
    assert!(said.contains("http://127.0.0.1:9/: Connection refused"), "{said}");
    nothing_left(&machine, &before);
}

#[test]
fn without_root_nothing_is_begun() {
    let machine = Machine::new("notroot");
    let before = Census::own(&machine);
    for args in [&["up"][..], &["up", "--detach"], &["down"], &["down", "--purge"]] {
        // A user namespace without mappings: the effective user is not root.
        let mut command = machine.command(Path::new("unshare"));
        command.arg("--user").arg("--").arg(coracle()).args(args);
        refused(run(command.arg("--data-dir").arg(machine.data(MAIN))), 1, &["needs root", "sudo"]);
    }
    nothing_left(&machine, &before);
}

#[test]
fn taken_port_is_named_with_the_program_that_has_it() {
    let machine = Machine::new("port");
    for (port, option) in [("6443", "--api-port"), ("10250", "--kubelet-port")] {
        let holder = Background::start(machine.command(&coracle()).args(["demo", "serve", "--port", port]));
        coracle_testkit::retry("the other program listens", 10, || {
            let url = format!("http://127.0.0.1:{port}/");
            let got = plain(&machine, &["demo", "get", &url]);
            if got.status == 0 { Ok(()) } else { Err(got.stderr) }
        });
        let before = Census::own(&machine);
        let in_use = format!("port {port} is in use by ");
        let said = refused(machine.coracle(MAIN, UP), 1, &[&in_use, "(pid ", option]);
        let pid = said.split("(pid ").nth(1).and_then(|t| t.split(')').next()).expect("a pid");
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("it lives");
        assert!(line.contains("serve"), "{line:?}");
        nothing_left(&machine, &before);
        drop(holder);
    }
}

#[test]
fn directory_that_is_not_for_a_cluster_is_left_alone() {
    let machine = Machine::new("dir");
    let before = Census::own(&machine);
    let file = machine.file("letters", "dear");
    let up = |dir: &Path| run(machine.command(&coracle()).args(["up", "--detach", "--data-dir"]).arg(dir));
    refused(up(&file), 1, &["letters is not a directory", "--data-dir"]);
    refused(up(machine.dir()), 1, &["holds other files", "\"letters\"", "--data-dir"]);
    refused(up(&machine.dir().join("letters/below")), 1, &["letters"]);
    assert_eq!(std::fs::read_to_string(&file).expect("still there"), "dear");
    let later = machine.data(MAIN);
    std::fs::create_dir(&later).expect("a directory");
    std::fs::write(later.join("cluster.json"), r#"{"format": 7, "members": []}"#).expect("a file");
    refused(machine.coracle(MAIN, &["up", "--detach"]), 1, &["format 7", "later version"]);
    refused(machine.coracle(MAIN, &["status"]), 1, &["format 7"]);
    std::fs::write(later.join("cluster.json"), "{").expect("a file");
    refused(machine.coracle(MAIN, &["up", "--detach"]), 1, &["cluster.json is damaged", "--purge"]);
    std::fs::write(later.join("note.txt"), "mine").expect("a file");
    let said = machine.coracle(MAIN, &["down", "--purge"]).ok();
    assert!(said.contains("note.txt"), "{said}");
    assert!(later.join("note.txt").exists() && !later.join("cluster.json").exists());
    std::fs::remove_dir_all(&later).expect("it goes");
    nothing_left(&machine, &before);
}

/// Commands at a cluster that runs already.
pub fn while_it_runs(machine: &Machine) {
    let pid = machine.data(MAIN).join("coracle.pid");
    let before = std::fs::read_to_string(&pid).expect("a pid file");
    for args in [&["up"][..], &["up", "--detach"]] {
        assert!(machine.coracle(MAIN, args).ok().contains("already running (pid "), "again is no harm");
    }
    assert_eq!(std::fs::read_to_string(&pid).expect("a pid file"), before);
    // A daemon that lost its pid file is still the only one.
    std::fs::write(&pid, "").expect("the pid file");
    refused(
        machine.coracle(MAIN, &["up", "--detach"]),
        1,
        &["another coracle", "at work on", "coracle down"],
    );
    std::fs::write(&pid, before).expect("the pid file");
    assert!(machine.coracle(MAIN, &["status"]).ok().contains("running"));
    let api = plain(machine, &["apiserver", "--data-dir", &machine.dir().join("own").display().to_string()]);
    refused(api, 1, &["port 6443 is in use by", "--secure-port"]);
    let store = machine.data(MAIN).display().to_string();
    let same = ["apiserver", "--secure-port", "7443", "--data-dir", &store];
    refused(plain(machine, &same), 1, &["is in use by process"]);
}

#[test]
fn two_starts_at_the_same_moment_make_one_cluster() {
    let machine = Machine::new("twice");
    let before = Census::own(&machine);
    let start = || machine.coracle(MAIN, UP);
    let (one, two) = std::thread::scope(|scope| {
        let one = scope.spawn(start);
        (start(), one.join().expect("no panic"))
    });
    let ready = |o: &coracle_testkit::Output| o.status == 0 && o.stdout.contains("is Ready");
    assert!(ready(&one) != ready(&two), "{one:?}\n{two:?}");
    let other = if ready(&one) { two } else { one };
    let said = format!("{}{}", other.stdout, other.stderr);
    assert!(said.contains("already running") || said.contains("another coracle"), "{said}");
    assert!(machine.coracle(MAIN, &["status"]).ok().contains("running"));
    // A user's kubeconfig that is none is left as it is, and `up` says how to do without.
    machine.coracle(MAIN, &["down"]).ok();
    let user = machine.file("user-kubeconfig", "clusters: 5\n");
    let said = up(&machine);
    assert!(said.contains("is not a kubeconfig") && said.contains("kubectl --kubeconfig"), "{said}");
    assert_eq!(std::fs::read_to_string(&user).expect("still there"), "clusters: 5\n");
    machine.coracle(MAIN, &["down", "--purge"]).ok();
    nothing_left(&machine, &before);
}
