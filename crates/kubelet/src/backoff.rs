//! Crash-loop and image back-off: 10 s, doubling to 5 min, forgotten after 10 min without an event.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::pod::elapsed;

/// First wait.
const BASE: Duration = Duration::from_secs(10);
/// Longest wait.
const MAX: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug)]
struct Entry {
    wait: Duration,
    updated: Timestamp,
}

/// Waits per key. The first failure may be retried at once; each further one waits twice as long.
#[derive(Clone, Debug, Default)]
pub struct CrashBackoff(HashMap<String, Entry>);

impl CrashBackoff {
    fn live(&self, key: &str, now: Timestamp) -> Option<&Entry> {
        self.0.get(key).filter(|e| elapsed(e.updated, now) <= 2 * MAX)
    }
    /// How long `key` waits after `failed` if it must still wait at `now`, and until when.
    pub fn waiting(&self, key: &str, failed: Timestamp, now: Timestamp) -> Option<(Duration, Timestamp)> {
        let entry = self.live(key, now)?;
        let wait = entry.wait.as_secs().try_into().unwrap_or(i64::MAX);
        let until = crate::pod::after(failed, wait);
        (until > now).then_some((entry.wait, until))
    }
    /// A new try starts now: the next failure will wait longer.
    pub fn next(&mut self, key: &str, now: Timestamp) {
        let wait = self.live(key, now).map_or(BASE, |e| (e.wait * 2).min(MAX));
        self.0.insert(key.to_owned(), Entry { wait, updated: now });
    }
    /// Forgets `key`.
    pub fn reset(&mut self, key: &str) {
        self.0.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::after;

    #[test]
    fn waits_double_and_start_over_after_ten_quiet_minutes() {
        let mut b = CrashBackoff::default();
        let t = Timestamp::UNIX_EPOCH;
        assert!(b.waiting("a", t, t).is_none());
        b.next("a", t);
        assert_eq!(b.waiting("a", t, t).map(|w| w.0.as_secs()), Some(10));
        assert!(b.waiting("a", t, after(t, 10)).is_none());
        b.next("a", after(t, 10));
        assert_eq!(b.waiting("a", after(t, 11), after(t, 12)).map(|w| w.0.as_secs()), Some(20));
        for _ in 0..10 {
            b.next("a", after(t, 20));
        }
        assert_eq!(b.waiting("a", after(t, 20), after(t, 21)).map(|w| w.0.as_secs()), Some(300));
        assert!(b.waiting("a", after(t, 700), after(t, 701)).is_none());
    }
}
