//! When what is remembered of owners is looked through for those that are gone: so seldom that the end of
//! many at once costs little more than one look.

use std::sync::atomic::{AtomicUsize, Ordering};

/// So many may be remembered without a look.
const FEW: usize = 64;

/// Counts what is left after each look.
#[derive(Debug)]
pub(crate) struct Sweep(AtomicUsize);

impl Default for Sweep {
    fn default() -> Self {
        Self(AtomicUsize::new(FEW))
    }
}

impl Sweep {
    /// Whether twice as many are remembered as after the last look.
    pub(crate) fn is_due(&self, remembered: usize) -> bool {
        remembered > self.0.load(Ordering::Relaxed)
    }

    /// A look has left so many.
    pub(crate) fn done(&self, left: usize) {
        self.0.store(FEW.max(left.saturating_mul(2)), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_as_rare_as_what_is_remembered_is_much() {
        let (sweep, mut remembered, mut looks) = (Sweep::default(), 10_000_usize, 0);
        while remembered > 0 {
            if sweep.is_due(remembered) {
                looks += 1;
                sweep.done(remembered);
            }
            remembered -= 1;
        }
        assert_eq!(looks, 1);
        assert!(!sweep.is_due(FEW));
    }
}
