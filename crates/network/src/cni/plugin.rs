//! Runs a plug-in: environment and standard input in, JSON out.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use coracle_cri::NetworkError;
use serde_json::{Map, Value};
use tokio::io::AsyncWriteExt;

/// How long a plug-in may take.
const LIMIT: Duration = Duration::from_secs(120);

/// What a plug-in is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Connect.
    Add,
    /// Look whether it is still connected.
    Check,
    /// Disconnect.
    Del,
    /// Give back what nobody uses.
    Gc,
    /// Say whether pods can be connected.
    Status,
}

impl Command {
    fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
            Self::Gc => "GC",
            Self::Status => "STATUS",
        }
    }
    /// As messages say it.
    fn word(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Check => "check",
            Self::Del => "delete",
            Self::Gc => "gc",
            Self::Status => "status",
        }
    }
}

/// What is to be connected.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// `CNI_CONTAINERID`.
    pub container: &'a str,
    /// `CNI_NETNS`.
    pub netns: &'a Path,
    /// `CNI_IFNAME`.
    pub interface: &'a str,
    /// `CNI_ARGS`.
    pub args: &'a str,
}

/// The type of a plug-in, which is its program's name.
pub fn kind(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn find(bin_dirs: &[PathBuf], kind: &str) -> Result<PathBuf, String> {
    let plain = !kind.is_empty() && !kind.contains('/');
    let found = bin_dirs.iter().map(|d| d.join(kind)).find(|p| plain && p.is_file());
    found.ok_or_else(|| {
        let dirs: Vec<_> = bin_dirs.iter().map(|d| d.display().to_string()).collect();
        format!("failed to find plugin {kind:?} in path [{}]", dirs.join(" "))
    })
}

/// What a failed plug-in says, in libcni's words.
fn complaint(stdout: &[u8], stderr: &[u8]) -> String {
    let stderr = String::from_utf8_lossy(stderr);
    if stdout.is_empty() {
        return match stderr.trim() {
            "" => "netplugin failed with no error message".to_owned(),
            text => format!("netplugin failed: {text:?}"),
        };
    }
    match serde_json::from_slice::<Value>(stdout) {
        Ok(said) => {
            let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
            let (message, details) = (text("msg"), text("details"));
            if details.is_empty() { message } else { format!("{message}; {details}") }
        }
        Err(e) => {
            let said = String::from_utf8_lossy(stdout);
            format!("netplugin failed but error parsing its diagnostic message {said:?}: {e}")
        }
    }
}

/// Runs a plug-in to its end; its answer, `null` where it has none to give.
///
/// # Errors
/// It is not there, or failed; the text is what it said.
pub async fn run(
    bin_dirs: &[PathBuf],
    command: Command,
    kind: &str,
    about: Option<About<'_>>,
    input: &Value,
) -> Result<Value, NetworkError> {
    let failed =
        |message: String| NetworkError::Plugin { plugin: kind.to_owned(), command: command.word(), message };
    let program = find(bin_dirs, kind).map_err(failed)?;
    let path = std::env::join_paths(bin_dirs).map_err(|e| failed(e.to_string()))?;
    let mut process = tokio::process::Command::new(&program);
    process.env("CNI_COMMAND", command.name()).env("CNI_PATH", path);
    if let Some(about) = about {
        process
            .env("CNI_CONTAINERID", about.container)
            .env("CNI_NETNS", about.netns)
            .env("CNI_IFNAME", about.interface)
            .env("CNI_ARGS", about.args);
    }
    process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let exchange = async {
        let mut child = process.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read its input says so by its exit.
            let _ = stdin.write_all(input.to_string().as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(LIMIT, exchange).await {
        Ok(output) => output.map_err(|e| failed(format!("{}: {e}", program.display())))?,
        Err(_) => return Err(failed(format!("no answer within {} s", LIMIT.as_secs()))),
    };
    if !output.status.success() {
        return Err(failed(complaint(&output.stdout, &output.stderr)));
    }
    if command != Command::Add {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&output.stdout).map_err(|e| failed(format!("its result is not JSON: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_worded_as_libcni_does() {
        let said = br#"{"code": 11, "msg": "no free address", "details": "range full"}"#;
        assert_eq!(complaint(said, b""), "no free address; range full");
        assert_eq!(complaint(b"", b"boom\n"), "netplugin failed: \"boom\"");
        assert_eq!(complaint(b"", b""), "netplugin failed with no error message");
    }

    #[test]
    fn a_type_is_a_name_of_a_program_and_no_path() {
        assert!(find(&["/bin".into()], "sh").is_ok());
        for wrong in ["", "../bin/sh", "no-such-plugin"] {
            let why = find(&["/bin".into()], wrong).unwrap_err();
            assert_eq!(why, format!("failed to find plugin {wrong:?} in path [/bin]"));
        }
    }
}
