//! Processes under measurement: started, watched through /proc, ended by their id.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::target::Failure;

/// Ticks of /proc/PID/stat per second: USER_HZ is 100 on every Linux.
const TICKS: f64 = 100.0;
/// How long a process may take to end on SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// A program that this one started. Ended when dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// Memory and CPU of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Resident memory in MB (10^6 bytes).
    pub rss_mb: f64,
    /// CPU seconds used so far.
    pub cpu_seconds: f64,
}

impl Process {
    /// Starts a program; its output goes to `<dir>/<name>.log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(name: &str, program: &Path, args: &[String], dir: &Path) -> Result<Self, Failure> {
        let log = dir.join(format!("{name}.log"));
        let failed = |e: std::io::Error| format!("cannot start {}: {e}", program.display());
        let out = File::create(&log).map_err(failed)?;
        let err = out.try_clone().map_err(failed)?;
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(failed)?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// It has ended: the end of its log.
    pub fn check(&mut self) -> Result<(), Failure> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(format!("{} ended ({status}):\n{}", self.name, self.log_tail())),
            Err(e) => Err(format!("{}: {e}", self.name)),
        }
    }

    /// The last lines of its output.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Ends it: SIGTERM, and SIGKILL after a while.
    pub fn stop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // `kill` of coreutils: this crate has no unsafe code and needs no more than this.
        let _ = Command::new("kill").arg(self.pid().to_string()).status();
        let start = Instant::now();
        while start.elapsed() < GRACE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Memory and CPU of a process now; zero when it is gone.
pub fn usage(pid: u32) -> Usage {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    Usage { rss_mb: rss_mb(&status).unwrap_or(0.0), cpu_seconds: cpu_seconds(&stat).unwrap_or(0.0) }
}

/// Sum over several processes.
pub fn total(pids: &[u32]) -> Usage {
    pids.iter().map(|pid| usage(*pid)).fold(Usage::default(), |a, b| Usage {
        rss_mb: a.rss_mb + b.rss_mb,
        cpu_seconds: a.cpu_seconds + b.cpu_seconds,
    })
}

/// Seconds for which the processors of this machine have worked since it started.
pub fn machine_busy() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    busy_seconds(&stat).unwrap_or(0.0)
}

fn busy_seconds(stat: &str) -> Option<f64> {
    // user nice system idle iowait irq softirq; steal is other machines' time.
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<f64> = line.split_whitespace().take(7).map_while(|f| f.parse().ok()).collect();
    Some(ticks.iter().enumerate().filter(|(i, _)| !matches!(i, 3 | 4)).map(|(_, t)| t).sum::<f64>() / TICKS)
}

/// Memory of a process that nobody shares, plus its part of what is shared, in MB.
pub fn proportional_mb(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    kib_field(&text, "Pss:").unwrap_or(0.0)
}

/// Memory of a process that no file stands behind, in MB: what it has for itself, not pages of its program.
pub fn own_mb(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    kib_field(&text, "Anonymous:").unwrap_or(0.0)
}

/// Processes whose command line has `argument` as its second word (the shims of a cluster, say).
pub fn with_argument(argument: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|b| *b == 0).nth(1) == Some(argument.as_bytes())
    })
    .collect()
}

fn rss_mb(status: &str) -> Option<f64> {
    kib_field(status, "VmRSS:")
}

/// A field in kB, in MB.
fn kib_field(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find(|l| l.starts_with(name))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    // The name in parentheses may hold spaces; fields are counted from its end.
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some(ticks / TICKS)
}

/// A TCP port of the loopback interface that is free now.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16, Failure> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(|e| format!("no free port: {e}"))?;
    listener.local_addr().map(|a| a.port()).map_err(|e| format!("no free port: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read() {
        assert_eq!(rss_mb("Name:\tx\nVmRSS:\t   10000 kB\n"), Some(10.24));
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 1 0 100 0 0";
        assert_eq!(cpu_seconds(stat), Some(2.0));
        assert!(usage(std::process::id()).rss_mb > 1.0);
        assert!(proportional_mb(std::process::id()) > 0.5);
        assert_eq!(busy_seconds("cpu  100 20 30 9999 77 5 5 3 0 0\ncpu0 1\n"), Some(1.6));
        assert!(machine_busy() > 0.0);
        assert_eq!(usage(u32::MAX), Usage::default());
    }

    #[test]
    fn early_end_is_reported_with_the_log() {
        let dir = tempfile::tempdir().expect("a directory");
        let args = ["-c".to_owned(), "echo went wrong; exit 3".to_owned()];
        let mut process = Process::start("sh", Path::new("/bin/sh"), &args, dir.path()).expect("starts");
        process.child.wait().expect("ends");
        let error = process.check().expect_err("ended");
        assert!(error.contains("went wrong") && error.contains('3'), "{error}");
    }
}
