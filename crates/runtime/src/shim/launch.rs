//! `__create` and `__exec`: single-threaded children of the shim that call libcontainer and end. What they
//! and the container's first process have to say goes, line by line, into a pipe at descriptor 3; its end
//! means that the container's program is running.

use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;

use super::executor::{ContainerExecutor, prepare};
use crate::cgroup::Hierarchies;
use crate::protocol::LaunchSpec;

/// Descriptor of the report pipe.
pub(crate) const REPORT_FD: i32 = 3;

/// Writes a report line: `pid N`, `refused TEXT` (our own words for people), `failed TEXT`, `detail TEXT`
/// (what libcontainer logged).
pub(crate) fn report(kind: &str, text: &str) {
    let line = format!("{kind} {}\n", text.replace('\n', "; "));
    // SAFETY: the shim opened this descriptor for us and nothing closes it before exec.
    let fd = unsafe { BorrowedFd::borrow_raw(REPORT_FD) };
    let _ = rustix::io::write(fd, line.as_bytes());
}

/// `__create DIR [CONSOLE]`: makes and starts the container described in `DIR/create.json`.
pub(crate) fn create(args: &[String]) -> i32 {
    finish((|| {
        let dir = PathBuf::from(args.first().ok_or("missing directory")?);
        let launch = begin(&dir)?;
        let console = args.get(1).map(PathBuf::from);
        fs::create_dir_all(&launch.library_root).map_err(|e| e.to_string())?;
        let mut container = ContainerBuilder::new(launch.id.clone(), SyscallType::default())
            .with_executor(ContainerExecutor)
            .with_root_path(&launch.library_root)
            .map_err(describe)?
            .with_console_socket(console)
            .as_init(&launch.bundle)
            .with_systemd(false)
            .with_detach(true)
            .as_sibling(true)
            .build()
            .map_err(describe)?;
        let pid = container.pid().ok_or("the container has no process")?;
        container.start().map_err(describe)?;
        Ok(pid.as_raw())
    })())
}

/// `__exec DIR CONSOLE|- PROGRAM ARG…`: runs a command in the container of that directory.
pub(crate) fn exec(args: &[String]) -> i32 {
    finish((|| {
        let [dir, console, command @ ..] = args else { return Err("missing arguments".into()) };
        let launch = begin(Path::new(dir))?;
        let console = (console != "-").then(|| PathBuf::from(console));
        let process = process_file(&launch, command, console.is_some())?;
        let pid = ContainerBuilder::new(launch.id.clone(), SyscallType::default())
            .with_executor(ContainerExecutor)
            .with_root_path(&launch.library_root)
            .map_err(describe)?
            .with_console_socket(console)
            .as_tenant()
            .with_detach(true)
            .as_sibling(true)
            .with_process(Some(format!("/proc/self/fd/{}", process.as_raw_fd())))
            .build()
            .map_err(describe)?;
        Ok(pid.as_raw())
    })())
}

fn begin(dir: &Path) -> Result<LaunchSpec, String> {
    // SAFETY: fcntl on a descriptor that the shim opened for us. The container must not inherit it.
    unsafe { libc::fcntl(REPORT_FD, libc::F_SETFD, libc::FD_CLOEXEC) };
    let writer = || ReportWriter;
    let _ = tracing_subscriber::fmt()
        .with_writer(writer)
        .with_max_level(tracing::Level::ERROR)
        .without_time()
        .with_level(false)
        .with_target(false)
        .with_ansi(false)
        .try_init();
    let launch: LaunchSpec = crate::files::read_json(&dir.join("create.json")).map_err(|e| e.to_string())?;
    // So that a process without privileges can open /dev/stdout and its like.
    if !launch.tty {
        for fd in 0..3 {
            // SAFETY: fchown on our own standard streams.
            unsafe { libc::fchown(fd, launch.host_root + launch.uid, launch.host_root + launch.gid) };
        }
    }
    Hierarchies::detect().join_unified(&launch.cgroup).map_err(|e| format!("cannot join cgroup: {e}"))?;
    prepare(&launch)?;
    Ok(launch)
}

fn finish(result: Result<i32, String>) -> i32 {
    match result {
        Ok(pid) => {
            report("pid", &pid.to_string());
            0
        }
        Err(message) => {
            report("failed", &message);
            1
        }
    }
}

/// The container's process description with another command, in a memory file.
fn process_file(launch: &LaunchSpec, command: &[String], tty: bool) -> Result<fs::File, String> {
    let mut config: serde_json::Value =
        crate::files::read_json(&launch.bundle.join("config.json")).map_err(|e| e.to_string())?;
    let mut process = config["process"].take();
    process["args"] = serde_json::json!(command);
    process["terminal"] = tty.into();
    if tty
        && let Some(env) = process["env"].as_array_mut()
        && !env.iter().any(|e| e.as_str().is_some_and(|e| e.starts_with("TERM=")))
    {
        env.push("TERM=xterm".into());
    }
    let fd =
        rustix::fs::memfd_create("process", rustix::fs::MemfdFlags::CLOEXEC).map_err(|e| e.to_string())?;
    let mut file = fs::File::from(fd);
    file.write_all(process.to_string().as_bytes()).map_err(|e| e.to_string())?;
    Ok(file)
}

/// An error with its causes.
fn describe(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Sends libcontainer's log into the report pipe.
struct ReportWriter;

impl Write for ReportWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for line in String::from_utf8_lossy(bytes).lines() {
            report("detail", line.trim());
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
