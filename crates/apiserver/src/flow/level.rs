//! A priority level at work: taking seats, waiting for them, and giving them back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::HeaderValue;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::counts::Counted;
use super::present::{Present, Request, Texts};
use super::queues::{Excess, QueueSet, Refusal, Running, Start, Ticket, Woken, Work};
use super::retry::Retry;
use super::shares::{History, Seats, Shares};

type Waker = oneshot::Sender<Running>;

/// A priority level. It outlives changes of its configuration, with the requests in it.
pub(super) struct Level {
    pub(super) name: String,
    epoch: Instant,
    pub(super) queues: Mutex<QueueSet<Waker>>,
    pub(super) present: Mutex<Present>,
    /// What happened to requests, by FlowSchema.
    pub(super) counted: Mutex<BTreeMap<String, Arc<Counted>>>,
    pub(super) history: Mutex<History>,
    retry: Mutex<Retry>,
    /// Someone watches over seats that come free by time.
    armed: AtomicBool,
}

/// A level as the configuration has it.
#[derive(Clone)]
pub(super) struct LevelView {
    pub(super) level: Arc<Level>,
    pub(super) uid: HeaderValue,
    pub(super) excess: Excess,
    pub(super) shares: Shares,
    pub(super) seats: Seats,
    /// Most seats that a request is estimated to need.
    pub(super) widest: u64,
    /// It is not configured any more, but has requests.
    pub(super) leaving: bool,
}

impl LevelView {
    /// Whether requests may wait.
    pub(super) fn queued(&self) -> bool {
        matches!(self.excess, Excess::Queue { .. })
    }
}

impl Level {
    pub(super) fn new(name: &str, epoch: Instant, excess: Excess, abreast: usize) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            epoch,
            queues: Mutex::new(QueueSet::new(excess, 0, abreast, epoch.elapsed())),
            present: Mutex::default(),
            counted: Mutex::default(),
            history: Mutex::default(),
            retry: Mutex::default(),
            armed: AtomicBool::new(false),
        })
    }

    pub(super) fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queues.lock().is_idle()
    }

    /// The counts of a schema that leads here.
    pub(super) fn counted(&self, schema: &str) -> Arc<Counted> {
        self.counted.lock().entry(schema.to_owned()).or_default().clone()
    }

    /// Notes a refusal; yields after how many seconds to come again.
    pub(super) fn retry_after(&self) -> u64 {
        self.retry.lock().refused(self.now().as_secs())
    }

    /// Changes the set and lets those run that may run now.
    pub(super) fn change<T>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut QueueSet<Waker>, Duration) -> (T, Woken<Waker>),
    ) -> T {
        let mut queues = self.queues.lock();
        let (result, woken) = change(&mut queues, self.now());
        // Under the lock, so that who stops waiting finds either its place or its seats.
        for (waker, running) in woken {
            let _ = waker.send(running);
        }
        let next = queues.next_release();
        drop(queues);
        if let Some(next) = next {
            self.arm(next);
        }
        result
    }

    /// Sees to it that seats which come free by time are given to those who wait.
    fn arm(self: &Arc<Self>, mut next: Duration) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.armed.swap(true, Ordering::AcqRel) {
            return;
        }
        let level = self.clone();
        runtime.spawn(async move {
            loop {
                tokio::time::sleep_until(level.epoch + next).await;
                let mut queues = level.queues.lock();
                for (waker, running) in queues.tick(level.now()) {
                    let _ = waker.send(running);
                }
                match queues.next_release() {
                    Some(later) => next = later,
                    None => {
                        // Under the lock: who waits from now on arms anew.
                        level.armed.store(false, Ordering::Release);
                        return;
                    }
                }
            }
        });
    }
}

/// A request that comes.
pub(super) struct Comer {
    /// What it is, for people.
    pub(super) texts: Texts,
    /// What it costs.
    pub(super) work: Work,
    /// Hash of its flow.
    pub(super) flow: u64,
}

/// Takes seats, waiting up to `patience`.
pub(super) async fn take(
    level: &Arc<Level>,
    counted: &Arc<Counted>,
    comer: Comer,
    patience: Duration,
) -> Result<Seat, Refusal> {
    let Comer { texts, work, flow } = comer;
    let mut receiver = None;
    let waker = || {
        let (sender, mine) = oneshot::channel();
        receiver = Some(mine);
        sender
    };
    let began = Instant::now();
    let start = level.change(|queues, now| queues.start(now, work, flow, waker));
    let refused = match (start, receiver) {
        (Start::Run(running), _) => {
            let now = level.now();
            let (queue, started) = (running.queue, Some(now));
            let shown = level.present.lock().add(Request { texts, work, queue, arrived: now, started });
            return Ok(Seat::new(level, counted, running, shown, (began, Duration::ZERO)));
        }
        (Start::Wait(ticket), Some(receiver)) => {
            counted.waits(work);
            let (queue, arrived) = (Some(ticket.queue), level.now());
            let request = Request { texts, work, queue, arrived, started: None };
            let shown = Some(level.present.lock().add(request));
            let mut waiting = Waiting { level, ticket, receiver, counted, work, shown };
            match tokio::time::timeout(patience, &mut waiting.receiver).await {
                Ok(Ok(running)) => return Ok(waiting.seated(running, began)),
                _ => match waiting.leave() {
                    // It was given its seats at the last moment.
                    Some(running) => return Ok(waiting.seated(running, began)),
                    None => Refusal::TimeOut,
                },
            }
        }
        (Start::Wait(_), None) => Refusal::TimeOut,
        (Start::Refuse(why), _) => why,
    };
    counted.refused(refused, began.elapsed());
    Err(refused)
}

/// A place in a queue, left when dropped.
struct Waiting<'a> {
    level: &'a Arc<Level>,
    ticket: Ticket,
    receiver: oneshot::Receiver<Running>,
    counted: &'a Arc<Counted>,
    work: Work,
    /// Its number among those who are present; none once it has its seats.
    shown: Option<u64>,
}

impl Waiting<'_> {
    /// Leaves the queue; yields the seats if they were given meanwhile. Without effect the second time.
    fn leave(&mut self) -> Option<Running> {
        self.level.change(|queues, now| {
            let (_, woken) = queues.cancel(now, self.ticket);
            ((), woken)
        });
        self.receiver.try_recv().ok()
    }

    fn seated(mut self, running: Running, began: Instant) -> Seat {
        let shown = self.shown.take().unwrap_or_default();
        if let Some(request) = self.level.present.lock().requests.get_mut(&shown) {
            request.started = Some(self.level.now());
        }
        Seat::new(self.level, self.counted, running, shown, (began, began.elapsed()))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.counted.waited(self.work);
        if let Some(shown) = self.shown {
            self.level.present.lock().requests.remove(&shown);
        }
        if let Some(running) = self.leave() {
            self.level.change(|queues, now| ((), queues.finish(now, running)));
        }
    }
}

/// The seats of a request. They are free again when they are released, at the latest with the last clone.
#[derive(Clone)]
pub(crate) struct Seat(Arc<Held>);

struct Held {
    level: Arc<Level>,
    counted: Arc<Counted>,
    /// None when the seats are given back.
    running: Mutex<Option<Running>>,
    /// Its number among those who are present.
    shown: u64,
    began: Instant,
    watch: AtomicBool,
}

impl Seat {
    fn new(
        level: &Arc<Level>,
        counted: &Arc<Counted>,
        running: Running,
        shown: u64,
        (began, waited): (Instant, Duration),
    ) -> Self {
        counted.runs(running.seats(), waited);
        let (level, counted) = (level.clone(), counted.clone());
        let (began, running) = (began + waited, Mutex::new(Some(running)));
        Self(Arc::new(Held { level, counted, running, shown, began, watch: AtomicBool::new(false) }))
    }

    /// Says whether it is a watch's, which holds them until it has begun.
    pub(super) fn of(self, watch: bool) -> Self {
        self.0.watch.store(watch, Ordering::Relaxed);
        self
    }

    /// The seats until they are dropped, or `limit` is over.
    pub(crate) fn for_at_most(self, limit: Duration) -> Leash {
        let theirs = self.clone();
        let end = tokio::spawn(async move {
            tokio::time::sleep(limit).await;
            theirs.0.release();
        });
        Leash { seat: self, end }
    }
}

/// Seats that are given back when this is dropped, and at the latest after a time.
pub(crate) struct Leash {
    seat: Seat,
    end: JoinHandle<()>,
}

impl Drop for Leash {
    fn drop(&mut self) {
        self.end.abort();
        self.seat.0.release();
    }
}

impl Held {
    fn release(&self) {
        let Some(running) = self.running.lock().take() else { return };
        self.level.present.lock().requests.remove(&self.shown);
        let took = self.began.elapsed();
        self.counted.ran(running.seats(), took, self.watch.load(Ordering::Relaxed));
        self.level.change(|queues, now| ((), queues.finish(now, running)));
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release();
    }
}
