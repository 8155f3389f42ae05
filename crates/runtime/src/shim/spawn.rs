//! How the shim starts its helpers: libcontainer's callers, which report through a pipe, and the pause
//! process.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::pipe::{PipeFlags, pipe_with};

use super::launch::REPORT_FD;

/// Keeps descriptor 3 occupied, so that it is free for the report pipe in every child.
pub(crate) struct ReportFd(#[expect(dead_code, reason = "held open")] OwnedFd);

impl ReportFd {
    pub fn reserve() -> io::Result<Self> {
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        // SAFETY: dup3 onto our own descriptors; 0 was the listening socket, which has been duplicated, and
        // 3 is ours to keep from here on.
        unsafe {
            libc::dup3(null.as_raw_fd(), REPORT_FD, libc::O_CLOEXEC);
            libc::dup2(null.as_raw_fd(), 0);
            if null.as_raw_fd() == REPORT_FD {
                std::mem::forget(null);
            }
            Ok(Self(OwnedFd::from_raw_fd(REPORT_FD)))
        }
    }
}

/// A helper at work.
pub(crate) struct Launch {
    /// Read end of its report.
    pub report: OwnedFd,
    /// The report so far.
    pub text: Vec<u8>,
    /// The container concerned.
    pub container: String,
    /// Who asked.
    pub connection: u64,
    /// An exec, not a start.
    pub exec: bool,
    /// Where libcontainer sends the terminal.
    pub console: Option<Console>,
}

/// A listening socket for a terminal's descriptor.
pub(crate) struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    pub fn listen(dir: &Path, name: &str) -> io::Result<Self> {
        let path = dir.join(name);
        crate::files::remove_file(&path)?;
        let at = std::fs::File::open(dir)?;
        let listener = UnixListener::bind(crate::files::short_path(&at, name))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path })
    }
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// The terminal, once the container's process runs.
    pub fn take(self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept()?;
        let mut inbox = crate::protocol::Inbox::default();
        inbox.receive(stream.as_raw_fd())?;
        inbox.fds.pop().ok_or_else(|| io::Error::other("no terminal received"))
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = crate::files::remove_file(&self.path);
    }
}

/// Reads a complete report.
pub(crate) fn outcome(text: &[u8]) -> Result<i32, String> {
    let text = String::from_utf8_lossy(text);
    let line =
        |kind: &str| text.lines().find_map(|l| l.strip_prefix(kind)?.strip_prefix(' ')).map(str::to_owned);
    if let Some(refused) = line("refused") {
        return Err(refused);
    }
    if let Some(pid) = line("pid").and_then(|p| p.parse().ok()) {
        return Ok(pid);
    }
    let failed = line("failed").unwrap_or_else(|| "the container helper died".into());
    Err(match line("detail") {
        Some(detail) => format!("{failed}: {detail}"),
        None => failed,
    })
}

/// Starts this program again with a hidden subcommand; the read end of its report. The child is reaped like
/// any other.
pub(crate) fn helper(args: &[&str], stdio: [Stdio; 3]) -> io::Result<OwnedFd> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    let [stdin, stdout, stderr] = stdio;
    let raw = write.as_raw_fd();
    let mut command = Command::new("/proc/self/exe");
    command.args(args).env_clear().stdin(stdin).stdout(stdout).stderr(stderr);
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(move || {
            reset_signals();
            if libc::dup2(raw, REPORT_FD) < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    command.spawn()?;
    Ok(read)
}

/// Starts the pause process as process 1 of a new process namespace, which the user namespace at `users` owns.
pub(crate) fn pause(root: &Path, users: Option<&Path>) -> io::Result<i32> {
    let root = std::ffi::CString::new(root.as_os_str().as_encoded_bytes())?;
    let args = [c"/proc/self/exe".as_ptr(), c"__pause".as_ptr(), root.as_ptr(), std::ptr::null()];
    let env: [*const libc::c_char; 1] = [std::ptr::null()];
    let users = users.map(std::fs::File::open).transpose()?;
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let mut pid = [0; 4];
    // SAFETY: clone without a stack behaves as fork; this process has one thread, and its children only make system
    // calls: the first one enters the user namespace, where the new process namespace must be made, and makes the
    // pause process, our child too (CLONE_PARENT).
    unsafe {
        let entering = libc::syscall(libc::SYS_clone, libc::SIGCHLD as libc::c_ulong, 0, 0, 0, 0);
        if entering == 0 {
            if users.is_some_and(|users| !enter(&users)) || libc::unshare(libc::CLONE_NEWPID) != 0 {
                libc::_exit(126);
            }
            let flags = (libc::CLONE_PARENT | libc::SIGCHLD) as libc::c_ulong;
            let pid = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) as i32;
            if pid == 0 {
                reset_signals();
                libc::execve(args[0], args.as_ptr(), env.as_ptr());
                libc::_exit(127);
            }
            libc::write(write.as_raw_fd(), (&raw const pid).cast(), size_of::<i32>());
            libc::_exit(0);
        }
        if entering < 0 {
            return Err(io::Error::last_os_error());
        }
        drop(write);
        libc::waitpid(entering as i32, std::ptr::null_mut(), 0);
    }
    match rustix::io::read(&read, &mut pid)? {
        4 if i32::from_ne_bytes(pid) > 0 => Ok(i32::from_ne_bytes(pid)),
        _ => Err(io::Error::other("cannot make the pod's process namespace")),
    }
}

/// Becomes root of a user namespace.
///
/// # Safety
/// None; the calls are async-signal-safe. `unsafe` only wraps them.
unsafe fn enter(users: &std::fs::File) -> bool {
    // SAFETY: plain numbers, and an empty list of groups.
    unsafe {
        libc::setns(users.as_raw_fd(), libc::CLONE_NEWUSER) == 0
            && libc::setgroups(0, std::ptr::null()) == 0
            && libc::setresgid(0, 0, 0) == 0
            && libc::setresuid(0, 0, 0) == 0
    }
}

/// What the shim blocks its children must not inherit.
///
/// # Safety
/// None; the calls are async-signal-safe. `unsafe` only wraps them.
unsafe fn reset_signals() {
    // SAFETY: an initialised set on our own stack.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// Turns SIGCHLD into a readable descriptor and ignores what would end the shim: it lives as long as its pod.
pub(crate) fn block_signals() -> io::Result<OwnedFd> {
    // SAFETY: initialised sets on our own stack; signalfd makes a descriptor that nothing else owns.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE] {
            libc::sigaddset(&mut set, signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        let mut child: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut child);
        libc::sigaddset(&mut child, libc::SIGCHLD);
        let fd: RawFd = libc::signalfd(-1, &child, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_in_our_words_beats_what_the_library_says() {
        let text = b"detail failed to x\nrefused exec: \"foo\": gone\nfailed build failed\n";
        assert_eq!(outcome(text).unwrap_err(), "exec: \"foo\": gone");
        assert_eq!(outcome(b"detail why\nfailed what\n").unwrap_err(), "what: why");
        assert_eq!(outcome(b"pid 12\n"), Ok(12));
        assert!(outcome(b"").is_err());
    }
}
