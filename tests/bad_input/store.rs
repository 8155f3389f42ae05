//! A store whose files are damaged.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use coracle_testkit::{Census, Machine, run};

use crate::{MAIN, nothing_left, refused, up};

/// Inverts a few bytes.
fn damage(path: &Path, at: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).expect("a file of the store");
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at).expect("long enough");
    file.write_all_at(&bytes.map(|b| !b), at).expect("written");
}

fn copy(from: &Path, to: &Path) {
    run(std::process::Command::new("cp").args(["-a", "--sparse=always", "--"]).arg(from).arg(to)).ok();
}

#[test]
fn damaged_store_is_named_and_neither_served_nor_replaced() {
    let machine = Machine::new("store");
    let before = Census::own(&machine);
    up(&machine);
    for i in 0..10 {
        let name = format!("kept-{i}");
        machine.kubectl(MAIN, &["create", "configmap", &name, "--from-literal=a=b"]).ok();
    }
    machine.coracle(MAIN, &["down"]).ok();
    let stopped = Census::own(&machine);
    let (data, good) = (machine.data(MAIN), machine.dir().join("good"));
    copy(&data, &good);

    let journal = std::fs::read(data.join("store/data/0.jnl")).expect("a journal");
    let used = journal.iter().rposition(|b| *b != 0).expect("something in it") as u64;
    let cut =
        |path: &Path| std::fs::OpenOptions::new().write(true).open(path).expect("a file").set_len(used / 2);
    type Case<'a> = (&'a str, &'a dyn Fn(&Path), &'a [&'a str]);
    let cases: [Case<'_>; 6] = [
        ("middle", &|store| damage(&store.join("data/0.jnl"), used / 2), &["data/0.jnl"]),
        (
            "begin",
            &|store| damage(&store.join("data/0.jnl"), 0),
            &["was acknowledged, but the data end", "data/0.jnl"],
        ),
        (
            "cut",
            &|store| cut(&store.join("data/0.jnl")).expect("cut"),
            &["was acknowledged, but the data end", "data/0.jnl"],
        ),
        (
            "gone",
            &|store| std::fs::remove_file(store.join("data/0.jnl")).expect("removed"),
            &["acknowledged"],
        ),
        ("version", &|store| damage_start(&store.join("data/version")), &["data/version"]),
        (
            "manifest",
            &|store| damage(&store.join("data/keyspaces/1/current"), 0),
            &["data/keyspaces/1/current"],
        ),
    ];
    for (name, spoil, words) in cases {
        spoil(&data.join("store"));
        for _ in 0..2 {
            let words = [&["the store at", "is corrupted", "backup", "coracle down --purge"], words].concat();
            refused(machine.coracle(MAIN, &["up", "--detach"]), 1, &words);
        }
        assert!(machine.coracle(MAIN, &["status"]).fails().contains("stopped"), "{name}");
        std::fs::remove_dir_all(data.join("store")).expect("removed");
        copy(&good.join("store"), &data.join("store"));
    }
    // The machine is as the stopped cluster left it, but for its registration.
    let left: Vec<_> = Census::own(&machine).since(&stopped);
    assert!(left.iter().all(|l| l.starts_with("cluster at ")), "left behind:\n{}", left.join("\n"));
    up(&machine);
    let kept = machine.kubectl(MAIN, &["get", "configmap", "-o", "name"]).ok();
    assert_eq!(kept.matches("configmap/kept-").count(), 10, "a restored backup has everything: {kept}");
    machine.coracle(MAIN, &["down", "--purge"]).ok();
    nothing_left(&machine, &before);
}

fn damage_start(path: &Path) {
    std::fs::write(path, b"XYZ\x03").expect("written");
}
