//! The end of a server: first it says that it is not ready any more, then it takes no more connections and ends those
//! it has once they are answered. What lasts as long as its client wants (watches, shells) is cut in the end.
//!
//! <https://kubernetes.io/docs/reference/command-line-tools-reference/kube-apiserver/>, `--shutdown-delay-duration`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// How often it is looked whether all is answered.
const LOOK: Duration = Duration::from_millis(5);
/// For what is still to be sent on connections that also carry what lasts.
const REST: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// As before, but no longer ready: load balancers are to look elsewhere.
    Leaving,
    /// No more connections, and no more requests on those there are.
    Draining,
}

/// How far the end has come, and who is still to be answered.
pub(crate) struct Drain {
    phase: watch::Sender<Phase>,
    /// Connections that end by themselves: they carry nothing that lasts.
    ending: Arc<AtomicUsize>,
}

impl Default for Drain {
    fn default() -> Self {
        Self { phase: watch::Sender::new(Phase::Serving), ending: Arc::default() }
    }
}

/// A connection among those that are waited for.
#[derive(Default)]
pub(crate) struct Waited {
    ending: Option<Arc<AtomicUsize>>,
    given_up: AtomicBool,
}

impl Waited {
    /// Notes that something lasts on it: it is not waited for.
    pub(super) fn lasts(&self) {
        if let Some(ending) = &self.ending
            && !self.given_up.load(Ordering::Relaxed)
            && !self.given_up.swap(true, Ordering::Relaxed)
        {
            ending.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Waited {
    fn drop(&mut self) {
        self.lasts();
    }
}

impl Drain {
    /// Whether the server is about to end.
    pub(crate) fn has_begun(&self) -> bool {
        *self.phase.borrow() > Phase::Serving
    }

    /// Says that the server is not ready any more.
    pub(crate) fn begin(&self) {
        self.phase.send_replace(Phase::Leaving);
    }

    /// A connection that is waited for.
    pub(super) fn connection(&self) -> Waited {
        self.ending.fetch_add(1, Ordering::Relaxed);
        Waited { ending: Some(self.ending.clone()), given_up: AtomicBool::new(false) }
    }

    /// Waits until no more connections are taken.
    pub(super) fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut phase = self.phase.subscribe();
        async move {
            // An error means that the server is gone.
            let _ = phase.wait_for(|phase| *phase == Phase::Draining).await;
        }
    }

    /// Goes on for `delay` though not ready, then ends what can end, at most for `limit`. `under_way` counts the
    /// requests that are being answered.
    pub(crate) async fn run(&self, delay: Duration, limit: Duration, under_way: impl Fn() -> usize) {
        self.begin();
        tokio::time::sleep(delay).await;
        self.phase.send_replace(Phase::Draining);
        let until = Instant::now() + limit;
        while (under_way() > 0 || self.ending.load(Ordering::Relaxed) > 0) && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
        tokio::time::sleep(REST.min(limit)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_answers_and_not_for_what_lasts() {
        let drain = Arc::new(Drain::default());
        let (short, lasting, under_way) =
            (drain.connection(), drain.connection(), Arc::new(AtomicUsize::new(1)));
        lasting.lasts();
        lasting.lasts();
        let (ending, counted) = (drain.clone(), under_way.clone());
        let second = Duration::from_secs(1);
        let end = tokio::spawn(async move {
            ending.run(second, 60 * second, || counted.load(Ordering::Relaxed)).await;
        });
        tokio::time::sleep(second / 2).await;
        assert!(drain.has_begun());
        assert!(futures::FutureExt::now_or_never(drain.closed()).is_none(), "it serves for a while");
        drain.closed().await;
        under_way.store(0, Ordering::Relaxed);
        tokio::time::sleep(second).await;
        assert!(!end.is_finished(), "an answer is still being sent");
        drop(short);
        end.await.expect("it ends");
        drop(lasting);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_comes_in_any_case() {
        let drain = Drain::default();
        let _stuck = drain.connection();
        let begin = Instant::now();
        drain.run(Duration::ZERO, Duration::from_secs(60), || 1).await;
        assert_eq!(begin.elapsed().as_secs(), 60);
    }
}
