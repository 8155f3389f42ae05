//! Two plain limits on the requests that run at a time, where priority and fairness is switched off.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The limits, and how much of them is used.
#[derive(Debug)]
pub(crate) struct InFlight {
    reading: (usize, AtomicUsize),
    writing: (usize, AtomicUsize),
}

/// A place below a limit, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place<'a>(Option<&'a AtomicUsize>);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(used) = self.0 {
            used.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl InFlight {
    /// So many requests that read, and so many that write; 0 is no limit.
    pub(crate) fn new(reading: usize, writing: usize) -> Self {
        Self { reading: (reading, AtomicUsize::new(0)), writing: (writing, AtomicUsize::new(0)) }
    }

    /// A place for a request, unless all are taken. Who is `privileged` is never refused.
    pub(crate) fn enter(&self, verb: &str, privileged: bool) -> Option<Place<'_>> {
        let reads = matches!(verb, "get" | "list" | "watch");
        let (limit, used) = if reads { &self.reading } else { &self.writing };
        if *limit == 0 {
            return Some(Place(None));
        }
        if used.fetch_add(1, Ordering::Relaxed) < *limit {
            return Some(Place(Some(used)));
        }
        used.fetch_sub(1, Ordering::Relaxed);
        privileged.then_some(Place(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_have_limits_of_their_own_and_administrators_none() {
        let limits = InFlight::new(1, 1);
        let read = limits.enter("get", false).unwrap();
        assert!(limits.enter("list", false).is_none());
        let _write = limits.enter("create", false).unwrap();
        assert!(limits.enter("patch", false).is_none());
        assert!(limits.enter("patch", true).is_some());
        drop(read);
        assert!(limits.enter("list", false).is_some());
        assert!(InFlight::new(0, 1).enter("get", false).is_some());
    }
}
