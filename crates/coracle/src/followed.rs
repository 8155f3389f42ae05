//! A configuration file that is taken up while the server runs: what is in force stays until the file says something
//! that can be used. Counted as upstream counts it.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_apiserver::Reload;
use coracle_stdx::Clock;

use crate::reload::Files;

/// What may be usable later is tried again after this time, as upstream does.
const AGAIN: Duration = Duration::from_secs(60);

/// Why a file's content is not taken up.
#[derive(Debug, PartialEq)]
pub enum Refused {
    /// It never will be.
    Bad(String),
    /// Something beside it is missing.
    NotYet(String),
}

/// A file, and what it said last.
pub struct Followed {
    file: PathBuf,
    text: String,
    reload: Arc<Reload>,
    clock: Clock,
}

impl Followed {
    /// `text` is in force, and was read from `file`.
    pub fn new(file: PathBuf, text: String, reload: Arc<Reload>, clock: Clock) -> Self {
        reload.begins_with(&text);
        Self { file, text, reload, clock }
    }

    /// Calls `take` with other content whenever there is some; it tells whether that differs in what it means. Never
    /// returns.
    pub async fn run<F>(mut self, mut take: impl FnMut(String) -> F)
    where
        F: Future<Output = Result<bool, Refused>>,
    {
        let mut files = match Files::watch(vec![self.file.clone()]) {
            Ok(files) => files.since(&self.text),
            Err(e) => {
                tracing::warn!(error = %e, "changes of files are not noticed before the next start");
                return std::future::pending().await;
            }
        };
        let mut again = false;
        loop {
            tokio::select! {
                () = files.changed() => {}
                () = tokio::time::sleep(AGAIN), if again => {}
            }
            again = self.look(&mut take).await;
        }
    }

    /// Takes up what the file says; whether to do so again later.
    async fn look<F>(&mut self, take: &mut impl FnMut(String) -> F) -> bool
    where
        F: Future<Output = Result<bool, Refused>>,
    {
        let text = match std::fs::read_to_string(&self.file) {
            Ok(text) if text == self.text => return false,
            Ok(text) => text,
            Err(e) => return self.refused(Refused::NotYet(e.to_string())),
        };
        match take(text.clone()).await {
            Ok(differs) => {
                if differs {
                    tracing::info!(file = %self.file.display(), "configuration taken up");
                    self.reload.succeeded(&text, self.clock.now());
                }
                self.text = text;
                false
            }
            Err(why) => {
                if matches!(why, Refused::Bad(_)) {
                    self.text = text;
                }
                self.refused(why)
            }
        }
    }

    /// Tells of content that cannot be used; whether it may be later.
    fn refused(&self, why: Refused) -> bool {
        let (why, again) = match why {
            Refused::Bad(why) => (why, false),
            Refused::NotYet(why) => (why, true),
        };
        tracing::error!(file = %self.file.display(), why, "configuration not taken up; what is in force stays");
        self.reload.failed(self.clock.now());
        again
    }
}
