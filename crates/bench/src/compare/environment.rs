//! Where and of what a run was made: machine, date, commit, versions.

use std::path::Path;
use std::process::Command;

use serde::Serialize;

/// What a table is headed by, and the first JSON line of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// The run, by its time.
    pub run: String,
    /// Commit of the working directory.
    pub commit: String,
    /// Model of the processors.
    pub processor: String,
    /// How many.
    pub processors: usize,
    /// Memory in GB.
    pub memory_gb: f64,
    /// Kernel release.
    pub kernel: String,
    /// Load average when the run began: others may use the machine too.
    pub load: String,
    /// Programs and their versions.
    pub versions: Vec<(String, String)>,
    /// The options.
    pub options: String,
}

impl Environment {
    /// Looks around. `programs` are names, paths and the arguments that make them tell their version.
    pub fn find(commit: Option<&str>, programs: &[(&str, &Path, &str)], options: String) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|l| l.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let kib = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let kib: f64 = kib.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
        let version = |path: &Path, argument: &str| {
            first_line(Command::new(path).arg(argument)).unwrap_or_else(|| "unknown".into())
        };
        let describe = || first_line(Command::new("git").args(["describe", "--always", "--dirty"]));
        Self {
            run: format!("{:.0}", jiff::Timestamp::now()),
            commit: commit.map(str::to_owned).or_else(describe).unwrap_or_else(|| "unknown".into()),
            processor: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gb: (kib * 1024.0 / 1e8).round() / 10.0,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
            versions: programs.iter().map(|(n, p, a)| ((*n).to_owned(), version(p, a))).collect(),
            options,
        }
    }
}

/// The first line that a command prints, if it succeeds.
fn first_line(command: &mut Command) -> Option<String> {
    let out = command.output().ok().filter(|o| o.status.success())?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    text.lines().next().map(|l| l.trim().to_owned()).filter(|l| !l.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_and_versions_are_found() {
        let found = Environment::find(Some("abc"), &[("sh", Path::new("/no/such"), "-v")], "x".into());
        assert_eq!((found.commit.as_str(), found.versions[0].1.as_str()), ("abc", "unknown"));
        assert!(found.processors > 0 && found.memory_gb > 0.0 && !found.kernel.is_empty());
        let mut echo = Command::new("echo");
        assert_eq!(first_line(echo.arg("v1\nv2")).as_deref(), Some("v1"));
    }
}
