//! What tidy holds: imports between crates follow `layers.toml`; every source file opens with a `//!` line
//! and stays within the budgets; `unsafe` stands only where allowed; documents stay few.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Rules {
    crates: BTreeMap<String, Vec<String>>,
    r#unsafe: Unsafe,
    budgets: Budgets,
}

#[derive(Deserialize)]
struct Unsafe {
    allowed: Vec<String>,
}

#[derive(Deserialize)]
struct Budgets {
    file_lines: usize,
    line_columns: usize,
}

/// Findings, one line each; empty when all is well.
///
/// # Errors
/// When the repository cannot be read.
pub fn check(root: &Path) -> Result<Vec<String>, String> {
    let text = fs::read_to_string(root.join("layers.toml")).map_err(|e| format!("layers.toml: {e}"))?;
    let rules: Rules = toml::from_str(&text).map_err(|e| format!("layers.toml: {e}"))?;
    let mut found = edges(&metadata(root)?, &rules.crates);
    for name in rules.crates.keys() {
        let lenient = rules.r#unsafe.allowed.contains(name);
        for file in sources(&root.join("crates").join(name)) {
            let text = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
            let shown = file.strip_prefix(root).unwrap_or(&file).display().to_string();
            found.extend(source(&shown, &text, &rules.budgets, lenient));
        }
    }
    for entry in fs::read_dir(root).map_err(|e| e.to_string())?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let known = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"];
        if name.ends_with(".md") && !known.contains(&name.as_str()) {
            found.push(format!("{name}: the root holds only {}", known.join(", ")));
        }
    }
    Ok(found)
}

fn metadata(root: &Path) -> Result<Value, String> {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .map_err(|e| format!("cargo metadata: {e}"))?;
    serde_json::from_slice(&out.stdout)
        .map_err(|_| format!("cargo metadata: {}", String::from_utf8_lossy(&out.stderr)))
}

/// The name of the folder below `crates/` from a package name.
fn short(package: &str) -> &str {
    package.strip_prefix("coracle-").unwrap_or(package)
}

fn edges(metadata: &Value, allowed: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut found = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = short(package["name"].as_str().unwrap_or(""));
        let Some(rights) = allowed.get(name) else {
            found.push(format!("layers.toml: crate {name} has no row"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let ours = dependency["path"].is_string();
            // Tests may use any crate; the layers are about what ships.
            if !ours || dependency["kind"] == "dev" {
                continue;
            }
            let target = short(dependency["name"].as_str().unwrap_or(""));
            if !rights.iter().any(|r| r == target || r == "*") {
                found.push(format!("crates/{name}/Cargo.toml: may not import {target} (see layers.toml)"));
            }
        }
    }
    found
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut open = vec![dir.join("src"), dir.join("tests"), dir.join("examples")];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push(path);
            }
        }
    }
    out.sort();
    out
}

fn source(path: &str, text: &str, budgets: &Budgets, lenient: bool) -> Vec<String> {
    let mut found = Vec::new();
    if !text.starts_with("//!") {
        found.push(format!("{path}:1: opens without a `//!` line"));
    }
    let production = text.lines().take_while(|l| !l.starts_with("#[cfg(test)]")).count();
    if production > budgets.file_lines {
        found.push(format!("{path}: {production} lines, budget {}", budgets.file_lines));
    }
    for (i, line) in text.lines().enumerate() {
        let columns = line.chars().count();
        // rustfmt keeps code to 110; what it cannot break (long texts) may stand, prose may not.
        if columns > budgets.line_columns && !line.contains('"') {
            found.push(format!("{path}:{}: {columns} columns, budget {}", i + 1, budgets.line_columns));
        }
        let code = line.trim_start();
        let is_unsafe = ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|u| code.contains(u));
        if is_unsafe && !code.starts_with("//") && !code.contains('"') && !lenient {
            found.push(format!("{path}:{}: unsafe outside the crates that may (layers.toml)", i + 1));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_tidy() {
        let found = check(&crate::root()).unwrap();
        assert!(found.is_empty(), "\n{}", found.join("\n"));
    }

    #[test]
    fn an_upward_edge_is_found() {
        let metadata = serde_json::json!({ "packages": [{ "name": "coracle-kubelet", "dependencies": [
            { "name": "coracle-store", "path": "/x", "kind": null },
            { "name": "coracle-client", "path": "/x", "kind": null },
            { "name": "coracle-testkit", "path": "/x", "kind": "dev" } ] }] });
        let allowed = BTreeMap::from([("kubelet".to_owned(), vec!["client".to_owned()])]);
        let found = edges(&metadata, &allowed);
        assert_eq!(found, ["crates/kubelet/Cargo.toml: may not import store (see layers.toml)"]);
    }

    #[test]
    fn budgets_and_unsafe_are_found() {
        let budgets = Budgets { file_lines: 2, line_columns: 20 };
        let marker = ["un", "safe { x }"].concat();
        let text = format!("use a;\n{marker}\nlet a_long_line = 123456789;\n");
        assert_eq!(source("f.rs", &text, &budgets, false).len(), 4);
        assert_eq!(source("f.rs", &text, &budgets, true).len(), 3);
    }
}
