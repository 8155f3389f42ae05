//! Repository checks: `cargo xtask tidy`. The same checks run as a test.

mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn main() -> ExitCode {
    let command = std::env::args().nth(1).unwrap_or_default();
    if command != "tidy" {
        eprintln!("usage: cargo xtask tidy");
        return ExitCode::from(2);
    }
    match tidy::check(&root()) {
        Err(why) => {
            eprintln!("tidy: {why}");
            ExitCode::FAILURE
        }
        Ok(found) if found.is_empty() => {
            println!("tidy: clean");
            ExitCode::SUCCESS
        }
        Ok(found) => {
            for line in &found {
                eprintln!("{line}");
            }
            eprintln!("tidy: {} findings", found.len());
            ExitCode::FAILURE
        }
    }
}
