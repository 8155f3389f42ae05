//! Recorded answers of upstream, where they lie beside the checkout (`../shared/golden`): a part of them in every run,
//! all of them with `CORACLE_GOLDEN=all`. What differs is listed in `known.txt` with its reason; anything else fails.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use coracle_testkit::{Background, Https, Machine, coracle, retry, run};
use flate2::read::GzDecoder;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// One case in so many is replayed.
const PART: u8 = 4;
const PORT: u16 = 7001;
const KNOWN: &str = include_str!("known.txt");

/// The cases that are known to differ, by their id, and why.
fn known() -> BTreeMap<&'static str, &'static str> {
    let lines = KNOWN.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| line.split_once('\t').unwrap_or_else(|| panic!("no reason: {line}"))).collect()
}

/// Whether a case is in the part: always the same ones, spread over all groups.
fn chosen(id: &str) -> bool {
    std::env::var("CORACLE_GOLDEN").is_ok_and(|part| part == "all")
        || Sha256::digest(id)[0].is_multiple_of(PART)
}

/// The chosen cases of all files, in one file.
fn part(golden: &Path, machine: &Machine) -> (PathBuf, usize) {
    let mut files: Vec<PathBuf> = std::fs::read_dir(golden)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    let mut lines = Vec::new();
    for file in files {
        let mut text = String::new();
        let packed = std::fs::File::open(&file).expect("a file");
        GzDecoder::new(packed).read_to_string(&mut text).expect("compressed text");
        let is_chosen = |line: &&str| {
            let case: Value = serde_json::from_str(line).expect("a case");
            chosen(case["id"].as_str().expect("an id"))
        };
        lines.extend(text.lines().filter(is_chosen).map(str::to_owned));
    }
    (machine.file("part.jsonl", &(lines.join("\n") + "\n")), lines.len())
}

fn start(machine: &Machine) -> Background {
    let tokens = machine.file("tokens.csv", "admintoken,admin,admin,\"system:masters\"\n");
    let mut command = machine.lasting(&coracle());
    command.args(["apiserver", "--secure-port", &PORT.to_string(), "--data-dir"]).arg(machine.data("d"));
    command.arg("--token-auth-file").arg(tokens);
    let server = machine.background("server", &mut command);
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], PORT));
    retry("the server is ready", 60, || {
        let limit = std::time::Duration::from_secs(30);
        let mut client = Https::connect(address, "admintoken", limit).map_err(|e| e.to_string())?;
        let ready = client.request("GET", "/readyz", "", &[]).map_err(|e| e.to_string())?;
        (ready.code == 200).then_some(()).ok_or_else(|| ready.code.to_string())
    });
    server
}

#[test]
fn recorded_answers_of_upstream_are_given_again() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let golden = shared.join("golden");
    if !golden.is_dir() {
        println!("left out: there are no recorded answers at {}", golden.display());
        return;
    }
    let machine = Machine::new("golden");
    machine.enter();
    let (cases, many) = part(&golden, &machine);
    assert!(many > 1000, "{many} cases");
    let _server = start(&machine);
    let result = machine.dir().join("result.json");
    // The replay tool takes its time: longer than other commands of tests may.
    let mut replay = machine.lasting(Path::new("python3"));
    replay.arg(shared.join("golden_replay.py")).arg("check");
    replay.arg(format!("--server=https://127.0.0.1:{PORT}")).args(["--token", "admintoken", "--jobs", "4"]);
    replay.args(["--fail-limit", "0"]).arg("--golden").arg(cases).arg("--json").arg(&result);
    let told = run(&mut replay);
    let text = std::fs::read_to_string(&result).unwrap_or_else(|e| panic!("{e}: {told:?}"));
    let cases: Vec<Value> = serde_json::from_str(&text).expect("results");
    assert_eq!(cases.len(), many, "all were replayed");
    let known = known();
    let (mut fresh, mut mended) = (Vec::new(), BTreeSet::new());
    for case in &cases {
        let id = case["id"].as_str().expect("an id");
        match (case["pass"] == true, known.contains_key(id)) {
            (true, true) => drop(mended.insert(id)),
            (false, false) => fresh.push(format!("{id}: {}", case["diff"])),
            _ => {}
        }
    }
    println!(
        "{many} cases replayed; {} differ as known, {} of those listed do not:",
        many - cases.iter().filter(|c| c["pass"] == true).count() - fresh.len(),
        mended.len()
    );
    mended.iter().for_each(|id| println!("  {id}"));
    assert!(fresh.is_empty(), "{} new differences:\n{}", fresh.len(), fresh.join("\n"));
}
