//! What the tests of several controllers need.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use coracle_client::Informers;
use coracle_client::testing::FakeTransport;
use coracle_stdx::Clock;

use crate::runtime::Context;
use crate::{ControllersConfig, ResourceEntry};

/// A context whose clients all reach `fake`.
pub(crate) fn context(fake: &Arc<FakeTransport>) -> Context {
    context_with(fake, Vec::new())
}

/// The same, with these served resources.
pub(crate) fn context_with(fake: &Arc<FakeTransport>, resources: Vec<ResourceEntry>) -> Context {
    let client = fake.client();
    Context {
        config: Arc::new(ControllersConfig::new("root CA".to_owned(), resources)),
        informers: Informers::new(client.clone()),
        make_client: Arc::new(move |_| client.clone()),
        clock: Clock::system(),
    }
}

/// Waits up to a minute of (paused) time for `holds`.
pub(crate) async fn eventually<F: Future<Output = bool>>(mut holds: impl FnMut() -> F) {
    for _ in 0..6000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("did not come true");
}

/// A clock that follows tokio's (paused) time.
pub(crate) fn test_clock() -> Clock {
    let (start, wall) = (tokio::time::Instant::now(), jiff::Timestamp::UNIX_EPOCH);
    Clock::from_fn(move || wall.checked_add(start.elapsed()).unwrap_or(wall))
}

/// A context at a clock of the test's own.
pub(crate) fn context_at(fake: &Arc<FakeTransport>, clock: Clock) -> Context {
    Context { clock, ..context(fake) }
}
