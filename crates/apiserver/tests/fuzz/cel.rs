//! Expressions, out of those whose values upstream recorded: compiled, their costs estimated, and evaluated.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use coracle_cel::{Env, PER_CALL_LIMIT, Type, Value};
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::json;

use crate::drive::{PATIENCE, keep, random, report, seconds};
use crate::mutate::{self, pick};

const SEEDS: &str = include_str!("../../../cel/tests/expressions.txt");
const WORDS: &[&str] = &[
    "object",
    "object.metadata.name",
    "object.data",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ".",
    ",",
    "?",
    ":",
    " && ",
    " || ",
    "!",
    " == ",
    " in ",
    " + ",
    " * ",
    "-",
    "'a'",
    "b'\\xff'",
    "1",
    "1u",
    "1.5",
    "9223372036854775807",
    "null",
    "true",
    ".map(x, x)",
    ".all(x, x == 1)",
    ".exists(x, x)",
    ".filter(x, true)",
    ".matches('(a+)+$')",
    ".replace('a', 'aaaaaaaa')",
    ".split('')",
    ".join(',')",
    "size(",
    "string(",
    "int(",
    "duration('1h')",
    "timestamp('2026-01-01T00:00:00Z')",
    "quantity('1Gi')",
    "url('http://a')",
    "ip('::1')",
    "cidr('10.0.0.0/8')",
    "semver('1.2.3')",
    "format.named('uuid').value()",
    "sets.contains(",
    "optional.of(1)",
    ".orValue(",
    "[?",
    "has(",
    "dyn(",
    "type(",
    "'%s'.format([",
    ".find('a')",
    ".sort()",
    ".slice(0, 1)",
    ".indexOf('a')",
];

fn expression(random: &mut StdRng, seeds: &[&str]) -> String {
    let mut text = pick(random, seeds).as_bytes().to_vec();
    match random.random_range(0..12) {
        0 => {
            let other = pick(random, seeds).as_bytes();
            let at = random.random_range(0..=other.len());
            text.extend_from_slice(&other[at..]);
        }
        1 => {
            let brackets = [
                ("(", ")"),
                ("[", "]"),
                ("-", ""),
                ("!", ""),
                ("{'a':", "}"),
                ("1+", ""),
                ("a.", ""),
                ("true?", ":1"),
            ];
            text = mutate::nested(random, &brackets).into_bytes();
        }
        2 => {
            let lists = "[1,2,3,4,5,6,7,8,9]".to_owned();
            let deep = random.random_range(1..9);
            let open: String = (0..deep).map(|i| format!("{lists}.all(x{i}, ")).collect();
            text = format!("{open}true{}", ")".repeat(deep)).into_bytes();
        }
        _ => {}
    }
    for _ in 0..random.random_range(0..4) {
        mutate::bytes(random, &mut text, WORDS);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Compiles and evaluates; in which step it ended.
fn run(env: &Env, text: &str, object: &Value) -> &'static str {
    let Ok(checked) = env.compile(text) else { return "not compiled" };
    let _ = checked.output_type().to_string();
    let Ok(program) = checked.program() else { return "no program" };
    match program.eval(&[("object", object.clone())], PER_CALL_LIMIT).result {
        Ok(_) => "value",
        Err(fault) => {
            let _ = fault.to_string();
            "fault"
        }
    }
}

/// Runs the target; one expression may take two minutes at the most.
pub fn fuzz() {
    let (tell, told) = mpsc::channel();
    let work = std::thread::Builder::new().stack_size(8 << 20).spawn(move || {
        let seeds: Vec<&str> =
            SEEDS.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split('\t').next()).collect();
        let env = Env::new().with_variable("object", Type::Dyn);
        let object = Value::from_json(
            &json!({ "metadata": { "name": "x" }, "data": { "a": "1" }, "list": [1, 2, 3] }),
        );
        let (mut random, mut outcomes) = (random(), BTreeMap::<String, u64>::new());
        let (mut inputs, mut slowest) = (0, Duration::ZERO);
        let until = Instant::now() + Duration::from_secs(seconds());
        while Instant::now() < until {
            let text = expression(&mut random, &seeds);
            keep("expressions", text.as_bytes());
            let began = Instant::now();
            *outcomes.entry(run(&env, &text, &object).to_owned()).or_default() += 1;
            let took = began.elapsed();
            if took > slowest {
                slowest = took;
                if took > Duration::from_secs(2) {
                    keep(&format!("expressions-slow-{}ms", took.as_millis()), text.as_bytes());
                }
            }
            inputs += 1;
            let _ = tell.send(());
        }
        (inputs, slowest, outcomes)
    });
    let work = work.expect("a thread");
    loop {
        match told.recv_timeout(PATIENCE) {
            Ok(()) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                eprintln!("no end for {PATIENCE:?}; see fuzz-expressions in {}", env!("CARGO_TARGET_TMPDIR"));
                std::process::exit(101);
            }
        }
    }
    let (inputs, slowest, outcomes) = work.join().expect("no panic");
    report("expressions", inputs, slowest, &outcomes);
    assert!(outcomes.contains_key("value") && outcomes.contains_key("not compiled"), "{outcomes:?}");
}
