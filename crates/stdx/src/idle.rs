//! What a thread does before it waits for work: the program says it once, and all threads that wait do it.

use std::sync::OnceLock;

static BEFORE: OnceLock<fn()> = OnceLock::new();

/// Sets it; the first call counts. It must be quick: some threads wait thousands of times a second.
pub fn before(what: fn()) {
    // A second call is of no consequence.
    let _ = BEFORE.set(what);
}

/// To be called by a thread that is about to wait.
pub fn begins() {
    if let Some(what) = BEFORE.get() {
        what();
    }
}
