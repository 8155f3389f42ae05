//! Running programs, with what they printed in the failure message.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a program did.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit status; 128 + signal when killed.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output of a success.
    ///
    /// # Panics
    /// When the program failed; the message holds all it printed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.status, 0, "failed\nstdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout
    }
    /// Both outputs of a failure.
    ///
    /// # Panics
    /// When the program succeeded.
    #[track_caller]
    pub fn fails(self) -> String {
        assert_ne!(self.status, 0, "succeeded unexpectedly\nstdout: {}", self.stdout);
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started.
pub fn run(command: &mut Command) -> Output {
    use std::os::unix::process::ExitStatusExt as _;
    let out = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("cannot run {:?}: {e}", command.get_program()));
    Output {
        status: out.status.code().unwrap_or_else(|| 128 + out.status.signal().unwrap_or(0)),
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    }
}

/// Tries until it returns `Some`, at most `seconds`; then panics with what `last` told.
///
/// # Panics
/// When the time is up.
#[track_caller]
pub fn retry<T>(what: &str, seconds: u64, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let until = Instant::now() + Duration::from_secs(seconds);
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(last) if Instant::now() > until => panic!("{what}: not within {seconds} s; last: {last}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The coracle program under test: `$CORACLE_BIN`, else the one built beside this test.
///
/// # Panics
/// When there is none: build it with `make build`.
pub fn coracle() -> PathBuf {
    if let Some(path) = std::env::var_os("CORACLE_BIN") {
        return path.into();
    }
    let me = std::env::current_exe().expect("a test has a path");
    let beside = me.ancestors().nth(2).map(|dir| dir.join("coracle"));
    let target = me.ancestors().nth(3).map(|dir| dir.join("release/coracle"));
    [beside, target]
        .into_iter()
        .flatten()
        .find(|p| p.exists())
        .unwrap_or_else(|| panic!("no coracle binary beside {}: run `make build` first", me.display()))
}

/// A tool that `make tools` installs: `$CORACLE_TOOLS`, else `target/tools`.
///
/// # Panics
/// When it is not there.
pub fn tool(name: &str) -> PathBuf {
    let dir =
        std::env::var_os("CORACLE_TOOLS").map_or_else(|| workspace().join("target/tools"), PathBuf::from);
    let path = dir.join(name);
    assert!(path.exists(), "{} is missing: run `make tools` first", path.display());
    path
}

/// The real kubectl.
///
/// # Panics
/// When `make tools` has not run.
pub fn kubectl() -> PathBuf {
    tool("kubectl")
}
