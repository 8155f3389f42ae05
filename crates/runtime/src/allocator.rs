//! The allocator: jemalloc for what serves, controls and runs nodes, the C library's for what there is one of per pod
//! (ADR 21).

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::{CStr, c_char};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{Mode, OFlags};
use tikv_jemallocator::Jemalloc;

/// The global allocator. Which one it is the program's first argument decides, once, at the first allocation.
#[derive(Clone, Copy, Debug)]
pub struct Allocator;

const UNDECIDED: u8 = 0;
const SMALL: u8 = 1;
const LARGE: u8 = 2;

static CHOICE: AtomicU8 = AtomicU8::new(UNDECIDED);

/// Two arenas, as many as there are usually cores to fill them; what is free goes back after a second; no huge pages,
/// of which a little use costs two megabytes. Threads cache few objects, and only small ones: what they cache is used
/// again before the gaps in pages that are in use anyway.
const OPTIONS: &CStr = c"narenas:2,dirty_decay_ms:1000,muzzy_decay_ms:0,thp:never,metadata_thp:disabled,\
    tcache_nslots_small_min:4,tcache_nslots_small_max:16,tcache_max:2048";

// SAFETY: jemalloc reads a C string from this name, if it is there; the string lives for ever.
#[unsafe(export_name = "_rjem_malloc_conf")]
static CONF: Option<&'static c_char> = Some(unsafe { &*OPTIONS.as_ptr() });

/// Whether a program with this command line, each argument ended by a NUL, is one of many: a shim, the set-up of a
/// container, the small server of test pods.
fn is_small(command_line: &[u8]) -> bool {
    let first = command_line.split(|byte| *byte == 0).nth(1).unwrap_or_default();
    first.starts_with(b"__") || first == b"demo"
}

#[cold]
fn decide() -> u8 {
    let mut line = [0; 1024];
    let file = rustix::fs::open(c"/proc/self/cmdline", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let read = file.and_then(|file| rustix::io::read(&file, &mut line));
    let small = read.map_or(true, |length| is_small(line.get(..length).unwrap_or_default()));
    let choice = if small { SMALL } else { LARGE };
    CHOICE.store(choice, Ordering::Relaxed);
    choice
}

fn is_large() -> bool {
    let choice = CHOICE.load(Ordering::Relaxed);
    let choice = if choice == UNDECIDED { decide() } else { choice };
    choice == LARGE
}

// SAFETY: passes everything on to one of two allocators, which keep the promises; always to the same one, as the choice
// is made before the first allocation and never again.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { if is_large() { Jemalloc.alloc(layout) } else { System.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { if is_large() { Jemalloc.alloc_zeroed(layout) } else { System.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { if is_large() { Jemalloc.dealloc(at, layout) } else { System.dealloc(at, layout) } }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe {
            if is_large() { Jemalloc.realloc(at, layout, size) } else { System.realloc(at, layout, size) }
        }
    }
}

/// Has a thread give free memory back in time, also while nothing is allocated.
pub(crate) fn tend() {
    if CHOICE.load(Ordering::Relaxed) == LARGE {
        let mut on = true;
        // SAFETY: the option is one byte, which is read before the call returns. Not in `OPTIONS`: shims must have
        // one thread only.
        unsafe {
            tikv_jemalloc_sys::mallctl(
                c"background_thread".as_ptr(),
                null_mut(),
                null_mut(),
                (&raw mut on).cast(),
                size_of::<bool>(),
            )
        };
    }
}

/// Gives all free memory back to the kernel.
pub(crate) fn give_back() {
    if CHOICE.load(Ordering::Relaxed) == LARGE {
        // SAFETY: takes no value and gives none. 4096 stands for all arenas.
        unsafe {
            tikv_jemalloc_sys::mallctl(c"arena.4096.purge".as_ptr(), null_mut(), null_mut(), null_mut(), 0)
        };
    }
    // SAFETY: takes no pointer, and locks what it touches.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_one_of_per_pod_is_small() {
        for small in
            [&b"/proc/self/exe\0__shim\0/run/x\0"[..], b"coracle\0__pause\0", b"coracle\0demo\0serve\0"]
        {
            assert!(is_small(small), "{small:?}");
        }
        for large in [
            &b"coracle\0up\0"[..],
            b"kube-apiserver\0--secure-port=1\0",
            b"coracle\0--log\0__x\0",
            b"coracle\0",
            b"",
        ] {
            assert!(!is_small(large), "{large:?}");
        }
    }

    #[test]
    fn the_same_choice_is_made_again() {
        let (first, second) = (decide(), decide());
        assert_eq!((first, is_large()), (second, first == LARGE));
    }
}
