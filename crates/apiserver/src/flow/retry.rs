//! When refused clients are told to come again: the longer, the more are refused.

use std::collections::VecDeque;

/// Most seconds.
const MOST: u64 = 32;

/// Refusals of one priority level, by second.
#[derive(Debug)]
pub(super) struct Retry {
    /// Seconds that are over, with their refusals.
    past: VecDeque<(u64, u64)>,
    now: (u64, u64),
    after: u64,
    raised: u64,
}

impl Default for Retry {
    fn default() -> Self {
        Self { past: VecDeque::new(), now: (0, 0), after: 1, raised: 0 }
    }
}

impl Retry {
    /// Notes a refusal in the second `now`; yields the seconds to wait.
    pub(super) fn refused(&mut self, now: u64) -> u64 {
        if self.now.0 == now {
            self.now.1 += 1;
            return self.after;
        }
        self.past.push_back(self.now);
        let keep = (2 * self.after).min(MOST);
        while self.past.front().is_some_and(|(second, _)| second + keep < now) {
            self.past.pop_front();
        }
        self.now = (now, 1);
        self.adapt(now);
        self.after
    }

    /// Three refusals a second double the time, at most once within it; less than one a second shortens it.
    fn adapt(&mut self, now: u64) {
        let within = self.past.iter().filter(|(second, _)| second + self.after >= now);
        let refused: u64 = within.map(|(_, count)| count).sum();
        if refused >= 3 * self.after && now.saturating_sub(self.raised) >= self.after {
            self.after = (2 * self.after).min(MOST);
            self.raised = now;
        } else if refused < self.after && self.after > 1 {
            self.after -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_raise_the_time_and_calm_lowers_it() {
        let mut retry = Retry::default();
        let mut seen = Vec::new();
        for second in 100..120 {
            for _ in 0..50 {
                seen.push(retry.refused(second));
            }
        }
        seen.dedup();
        assert_eq!(seen, [1, 2, 4, 8, 16]);
        assert_eq!(retry.refused(1000), 15, "a refusal after a long calm");
        assert_eq!(retry.refused(2000), 14);
        for second in 3000..4000 {
            for _ in 0..1000 {
                retry.refused(second);
            }
        }
        assert_eq!(retry.refused(4000), MOST);
    }
}
