//! Exponential back-off per key.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

/// Remembers failures per key and tells how long to wait: `base`, then twice as long each time, up to `max`.
#[derive(Debug)]
pub struct Backoff<K> {
    base: Duration,
    max: Duration,
    failures: HashMap<K, u32>,
}

impl<K: Hash + Eq> Backoff<K> {
    /// No failures yet.
    pub fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, failures: HashMap::new() }
    }
    /// Counts a failure; how long to wait before the next try.
    pub fn next(&mut self, key: K) -> Duration {
        let n = self.failures.entry(key).or_insert(0);
        let wait = self.base.saturating_mul(2u32.saturating_pow((*n).min(31))).min(self.max);
        *n += 1;
        wait
    }
    /// Forgets a key's failures.
    pub fn reset(&mut self, key: &K) {
        self.failures.remove(key);
    }
    /// Failures counted for a key.
    pub fn failures(&self, key: &K) -> u32 {
        self.failures.get(key).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_doubles_until_the_limit_and_starts_over_after_reset() {
        let mut b = Backoff::new(Duration::from_secs(1), Duration::from_secs(3));
        let waits: Vec<u64> = (0..4).map(|_| b.next("a").as_secs()).collect();
        assert_eq!(waits, [1, 2, 3, 3]);
        b.reset(&"a");
        assert_eq!(b.next("a").as_secs(), 1);
    }
}
