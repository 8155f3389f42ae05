//! The kernel's word when memory gets short. Cgroup v1 gives it; v2 has nothing of the kind.
//! Source: <https://docs.kernel.org/admin-guide/cgroup-v1/memory.html#memory-thresholds>.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use super::Hierarchies;

impl Hierarchies {
    /// Something that becomes readable when the memory that the cgroup uses has grown by so many bytes; `None` where
    /// the kernel does not tell. Ends when it is closed.
    ///
    /// # Errors
    /// The kernel's; there is no such cgroup.
    pub fn notify_memory(&self, path: &str, growth: u64) -> io::Result<Option<OwnedFd>> {
        let Some(dir) = self.v1_dir("memory", path) else { return Ok(None) };
        let usage = dir.join("memory.usage_in_bytes");
        let now: u64 = fs::read_to_string(&usage)?.trim().parse().map_err(io::Error::other)?;
        let (usage, event) =
            (File::open(usage)?, eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let wanted = format!("{} {} {}", event.as_raw_fd(), usage.as_raw_fd(), now.saturating_add(growth));
        File::options().write(true).open(dir.join("cgroup.event_control"))?.write_all(wanted.as_bytes())?;
        Ok(Some(event))
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    /// Needs cgroup v1, and does nothing elsewhere.
    #[test]
    fn the_kernel_tells_when_a_cgroup_uses_more() {
        let all = Hierarchies::detect();
        let path = format!("coracle-notify-{}", std::process::id());
        let Some(dir) = all.v1_dir("memory", &path).filter(|dir| fs::create_dir(dir).is_ok()) else { return };
        let event = all.notify_memory(&path, 8 << 20).expect("asked for").expect("cgroup v1");
        let told = |seconds: i64| {
            let mut fds = [PollFd::new(&event, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })).expect("polled") > 0
        };
        let early = told(0);
        let file = tempfile::NamedTempFile::new().expect("a file");
        let script = format!(
            "echo $$ > {}/cgroup.procs; head -c 20000000 /dev/zero > {}",
            dir.display(),
            file.path().display()
        );
        let ran = std::process::Command::new("sh").args(["-c", &script]).status().expect("run").success();
        let late = told(5);
        drop(file);
        for attempt in 0..50 {
            if fs::remove_dir(&dir).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(attempt));
        }
        assert!(ran && !early && late, "ran {ran}, told before {early}, after {late}");
    }
}
