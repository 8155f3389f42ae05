//! Changes of files: one inotify instance wakes all who follow some. Nobody polls.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tracing::warn;

#[derive(Default)]
struct Watches {
    /// Who waits, by watch descriptor.
    waiting: HashMap<i32, Vec<Arc<Notify>>>,
}

/// Watches directories and files. Clones share the instance.
#[derive(Clone)]
pub struct Watcher {
    shared: Arc<Shared>,
}

struct Shared {
    fd: Arc<AsyncFd<OwnedFd>>,
    watches: Mutex<Watches>,
}

/// A subscription; dropping it ends it.
pub struct Watch {
    notify: Arc<Notify>,
    descriptor: i32,
    shared: Arc<Shared>,
}

impl Watcher {
    /// Starts the instance. Call within a tokio runtime.
    ///
    /// # Errors
    /// No instance is left (`fs.inotify.max_user_instances`).
    pub fn new() -> std::io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        #[expect(deprecated, reason = "its successor is unsafe; an OwnedFd stays open as long as it is held")]
        let fd = Arc::new(AsyncFd::new(fd)?);
        let shared = Arc::new(Shared { fd: fd.clone(), watches: Mutex::default() });
        let weak = Arc::downgrade(&shared);
        tokio::spawn(async move {
            loop {
                let Ok(mut ready) = fd.readable().await else { return };
                let Some(shared) = weak.upgrade() else { return };
                shared.dispatch();
                ready.clear_ready();
            }
        });
        Ok(Self { shared })
    }

    fn add(&self, path: &Path, flags: WatchFlags) -> std::io::Result<Watch> {
        let notify = Arc::new(Notify::new());
        let mut watches = self.shared.watches.lock();
        let descriptor = inotify::add_watch(self.shared.fd.get_ref(), path, flags)?;
        watches.waiting.entry(descriptor).or_default().push(notify.clone());
        drop(watches);
        Ok(Watch { notify, descriptor, shared: self.shared.clone() })
    }

    /// Wakes on writes to files of a directory and on files that appear in it.
    ///
    /// # Errors
    /// The kernel's, e.g. when the directory does not exist.
    pub fn directory(&self, path: &Path) -> std::io::Result<Watch> {
        self.add(path, WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO)
    }

    /// Wakes on files that are written, appear in or vanish from a directory.
    ///
    /// # Errors
    /// The kernel's, e.g. when the directory does not exist.
    pub fn folder(&self, path: &Path) -> std::io::Result<Watch> {
        let gone = WatchFlags::DELETE | WatchFlags::MOVED_FROM;
        self.add(path, WatchFlags::CLOSE_WRITE | WatchFlags::CREATE | WatchFlags::MOVED_TO | gone)
    }

    /// Wakes once, on the next write to a file.
    ///
    /// # Errors
    /// The kernel's, e.g. when the file does not exist.
    pub fn next_write(&self, path: &Path) -> std::io::Result<Watch> {
        self.add(path, WatchFlags::MODIFY | WatchFlags::ONESHOT)
    }
}

impl Shared {
    fn dispatch(&self) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(self.fd.get_ref(), &mut buffer);
        let mut watches = self.watches.lock();
        loop {
            match reader.next() {
                Ok(event) => {
                    let waiting = watches.waiting.get(&event.wd());
                    waiting.into_iter().flatten().for_each(|n| n.notify_one());
                    if event.events().contains(ReadFlags::IGNORED) {
                        watches.waiting.remove(&event.wd());
                    }
                }
                Err(rustix::io::Errno::AGAIN) => return,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => {
                    warn!(error = %e, "inotify cannot be read");
                    return;
                }
            }
        }
    }
}

impl Watch {
    /// Waits for the next change since the last call.
    pub async fn changed(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watches = self.shared.watches.lock();
        let Some(waiting) = watches.waiting.get_mut(&self.descriptor) else { return };
        waiting.retain(|n| !Arc::ptr_eq(n, &self.notify));
        if waiting.is_empty() {
            watches.waiting.remove(&self.descriptor);
            // Fails only when the watch ended by itself.
            let _ = inotify::remove_watch(self.shared.fd.get_ref(), self.descriptor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_write_wakes_the_follower() {
        let dir = tempfile::tempdir().expect("directory");
        let watcher = Watcher::new().expect("inotify");
        let watch = watcher.directory(dir.path()).expect("watch");
        std::fs::write(dir.path().join("x"), "1").expect("write");
        tokio::time::timeout(std::time::Duration::from_secs(5), watch.changed()).await.expect("woken");
    }
}
