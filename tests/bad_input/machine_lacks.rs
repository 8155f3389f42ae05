//! A machine without what a node needs.

use std::path::Path;
use std::process::Command;

use coracle_testkit::{Census, Machine, coracle, run};

use crate::{MAIN, nothing_left, refused};

fn up_under(machine: &Machine, mut command: Command) -> coracle_testkit::Output {
    run(command.arg(coracle()).args(["up", "--detach", "--data-dir"]).arg(machine.data(MAIN)))
}

#[test]
fn kernel_without_overlayfs_is_named() {
    let machine = Machine::new("overlay");
    let before = Census::own(&machine);
    let known = std::fs::read_to_string("/proc/filesystems").expect("procfs");
    let others: Vec<&str> = known.lines().filter(|l| !l.ends_with("\toverlay")).collect();
    let fake = machine.file("filesystems", &others.join("\n"));
    // In a mount namespace of its own the kernel seems to have neither overlayfs nor modules to load.
    let script = "mount --bind \"$1\" /proc/filesystems
        for dir in /sys/module /lib/modules; do [ ! -d $dir ] || mount -t tmpfs none $dir; done
        shift; exec \"$@\"";
    let mut command = machine.command(Path::new("unshare"));
    command.args(["--mount", "--", "sh", "-ec", script, "sh"]).arg(fake);
    let words = ["lacks what a node needs", "overlayfs", "CONFIG_OVERLAY_FS", "kernel"];
    refused(up_under(&machine, command), 1, &words);
    nothing_left(&machine, &before);
}

#[test]
fn root_without_the_rights_for_a_network_is_named() {
    let machine = Machine::new("admin");
    let before = Census::own(&machine);
    let mut command = machine.command(Path::new("setpriv"));
    command.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"]);
    refused(up_under(&machine, command), 1, &["lacks what a node needs", "CAP_NET_ADMIN", "container"]);
    nothing_left(&machine, &before);
}

#[test]
fn machine_without_an_address_is_named() {
    let machine = Machine::new("noip");
    run(machine.command(Path::new("ip")).args(["link", "del", "uplink0"])).ok();
    let before = Census::own(&machine);
    let said = machine.coracle(MAIN, &["up", "--detach"]);
    refused(said, 1, &["no network address", "--node-ip"]);
    nothing_left(&machine, &before);
}
