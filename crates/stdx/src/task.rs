//! Supervised background tasks: what panics or ends early is logged and started again.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tracing::{error, warn};

/// A set of background tasks that ends with its owner: dropping it aborts them all.
#[derive(Debug, Default)]
pub struct Tasks(JoinSet<()>);

impl Tasks {
    /// No tasks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs a future once.
    pub fn spawn(&mut self, future: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(future);
    }

    /// Runs `make()` and, whenever it ends or panics, runs it again after a back-off of 100 ms to 30 s.
    pub fn supervise<F, Fut>(&mut self, name: &'static str, mut make: F)
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.0.spawn(async move {
            let mut wait = Duration::from_millis(100);
            loop {
                let mut one = JoinSet::new();
                one.spawn(make());
                match one.join_next().await {
                    Some(Err(e)) if e.is_panic() => error!(task = name, "panicked; restarting"),
                    _ => warn!(task = name, "ended; restarting"),
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(30));
            }
        });
    }

    /// Waits until all tasks have ended.
    pub async fn join(&mut self) {
        while self.0.join_next().await.is_some() {}
    }
}
