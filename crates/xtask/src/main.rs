//! Repository checks: `cargo xtask tidy`. The same checks run as a test.

mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The checkout; as cargo says now, since a target directory may have served another one before.
fn root() -> PathBuf {
    let own = std::env::var_os("CARGO_MANIFEST_DIR");
    own.map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).to_owned(), PathBuf::from).join("../..")
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
