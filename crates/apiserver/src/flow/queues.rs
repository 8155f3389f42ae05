//! Fair queueing of one priority level: who runs now, who waits, who is refused, and who is next.
//!
//! Each flow has a hand of queues and waits in the one with the least work. Virtual time is the seat-seconds that
//! each queue with requests was allowed since the beginning; the request that would finish first in it runs next, as
//! in <https://github.com/kubernetes/enhancements/tree/master/keps/sig-api-machinery/1040-priority-and-fairness>.
//! Pure: time comes in, and what waited comes out when it may run.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use super::deal;
use super::shares::Demand;

/// The part of the seats that requests of several seats leave to those of one. Requests that run together also end
/// together, when the processor is what they wait for; without this a read would wait for a whole row of lists.
const RESERVED: u64 = 4;
/// Seconds that a request is taken to run until it has run; what it really took is set right afterwards.
const GUESS: f64 = 0.003;

/// What a request costs: seats while it runs, and seats that it leaves occupied for a while behind it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Work {
    /// Seats while it runs.
    pub(crate) seats: u64,
    /// Seats for `lingers` after it has run.
    pub(crate) last: u64,
    /// How long the events of a write keep the server busy after the answer.
    pub(crate) lingers: Duration,
}

impl Work {
    /// A request of some seats that leaves nothing behind.
    pub(crate) const fn of(seats: u64) -> Self {
        Self { seats, last: 0, lingers: Duration::ZERO }
    }

    /// The most seats that it occupies; reserved from the beginning to the end.
    pub(crate) fn most(&self) -> u64 {
        self.seats.max(self.last)
    }

    /// Seat-seconds, as far as they can be known before.
    fn total(&self) -> f64 {
        seconds(self.seats, GUESS) + seconds(self.last, self.lingers.as_secs_f64())
    }

    /// The same work on no more than `limit` seats at the end.
    fn within(mut self, limit: u64) -> Self {
        if self.last > limit && limit > 0 {
            let area = seconds(self.last, self.lingers.as_secs_f64());
            self.last = limit;
            self.lingers = Duration::from_secs_f64(area / real(limit));
        }
        self
    }
}

#[expect(clippy::cast_precision_loss, reason = "seats are few")]
fn real(seats: u64) -> f64 {
    seats as f64
}

fn seconds(seats: u64, each: f64) -> f64 {
    real(seats) * each
}

/// How a level answers more requests than it has seats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Excess {
    /// It has no limit.
    Exempt,
    /// They are refused.
    Refuse,
    /// They wait.
    Queue {
        /// Number of queues.
        queues: usize,
        /// Queues that a flow may use.
        hand: usize,
        /// Most requests waiting in a queue.
        length: usize,
    },
}

/// Why a request was refused, in upstream's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Refusal {
    /// All seats are taken, and the level has no queues.
    ConcurrencyLimit,
    /// So is the queue.
    QueueFull,
    /// It waited too long.
    TimeOut,
}

impl Refusal {
    /// The `reason` of metrics.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::ConcurrencyLimit => "concurrency-limit",
            Self::QueueFull => "queue-full",
            Self::TimeOut => "time-out",
        }
    }
}

/// A request that runs: to be given back with [`QueueSet::finish`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    pub(super) queue: Option<usize>,
    work: Work,
    started: Duration,
}

impl Running {
    /// The seats it occupies.
    pub(crate) fn seats(&self) -> u64 {
        self.work.most()
    }
}

/// A request that waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    pub(super) queue: usize,
    id: u64,
}

/// What became of a new request.
#[derive(Debug)]
pub(crate) enum Start {
    /// It runs.
    Run(Running),
    /// It waits until its waker comes out of the set.
    Wait(Ticket),
    /// It is refused.
    Refuse(Refusal),
}

/// Requests that may run now, each with its waker.
pub(crate) type Woken<W> = Vec<(W, Running)>;

struct Waiting<W> {
    id: u64,
    work: Work,
    /// Virtual time of its arrival.
    arrived: f64,
    waker: W,
}

struct Queue<W> {
    /// Virtual time at which its first request would be dispatched.
    next: f64,
    waiting: VecDeque<Waiting<W>>,
    /// Seat-seconds that wait.
    work: f64,
    running: usize,
    seats: u64,
}

impl<W> Queue<W> {
    fn new() -> Self {
        Self { next: 0.0, waiting: VecDeque::new(), work: 0.0, running: 0, seats: 0 }
    }

    fn idle(&self) -> bool {
        self.waiting.is_empty() && self.running == 0
    }

    /// A queue that did not use what it was allowed does not save it up: nothing is dispatched, in virtual time,
    /// before it arrived.
    fn bound(&mut self) {
        if let Some(first) = self.waiting.front() {
            self.next = self.next.max(first.arrived);
        }
    }

    fn take(&mut self, at: usize) -> Option<Waiting<W>> {
        let taken = self.waiting.remove(at)?;
        self.work = if self.waiting.is_empty() { 0.0 } else { self.work - taken.work.total() };
        Some(taken)
    }
}

/// Seats that a finished request still occupies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Lingering {
    until: Duration,
    seats: u64,
    queue: Option<usize>,
}

/// Counts of a level since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Requests that ran or run.
    pub(crate) dispatched: u64,
    /// Requests that were refused.
    pub(crate) refused: u64,
    /// Requests that stopped waiting.
    pub(crate) cancelled: u64,
}

/// One queue, for who looks at it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueView {
    /// Requests that wait.
    pub(crate) waiting: usize,
    /// Requests that run.
    pub(crate) running: usize,
    /// Seats in use.
    pub(crate) seats: u64,
    /// Virtual time of its next dispatch.
    pub(crate) next: f64,
    /// Seats of waiting requests while they run.
    pub(crate) initial_seats: u64,
    /// The most seats of waiting requests.
    pub(crate) most_seats: u64,
    /// Seat-seconds that wait.
    pub(crate) work: f64,
}

/// The requests of one priority level.
pub(crate) struct QueueSet<W> {
    excess: Excess,
    limit: u64,
    /// Most requests that begin with several seats, lists that is, at a time. They keep a processor busy: more of
    /// them than processors end no sooner, and make everyone else wait.
    abreast: usize,
    queues: Vec<Queue<W>>,
    /// Virtual time, and the real time it belongs to.
    virtually: f64,
    now: Duration,
    /// The queue that was dispatched from last.
    last: usize,
    waiting: usize,
    running: usize,
    seats: u64,
    /// Those of them that requests of one seat occupy.
    narrow: u64,
    /// Running requests that began with several seats.
    wide: usize,
    seats_waiting: u64,
    /// Queues with requests.
    active: usize,
    ids: u64,
    lingering: BinaryHeap<Reverse<Lingering>>,
    demand: Demand,
    totals: Totals,
}

impl<W> QueueSet<W> {
    /// An empty set that has `limit` seats, and lets `abreast` lists run at a time.
    pub(crate) fn new(excess: Excess, limit: u64, abreast: usize, now: Duration) -> Self {
        let mut set = Self {
            excess,
            limit,
            abreast,
            queues: Vec::new(),
            virtually: 0.0,
            now,
            last: 0,
            waiting: 0,
            running: 0,
            seats: 0,
            narrow: 0,
            wide: 0,
            seats_waiting: 0,
            active: 0,
            ids: 0,
            lingering: BinaryHeap::new(),
            demand: Demand::default(),
            totals: Totals::default(),
        };
        let woken = set.configure(excess, limit, now);
        debug_assert!(woken.is_empty());
        set
    }

    /// Changes queues and seats. Queues that are too many go when they are empty.
    pub(crate) fn configure(&mut self, excess: Excess, limit: u64, now: Duration) -> Woken<W> {
        self.settle(now);
        (self.excess, self.limit) = (excess, limit);
        let wanted = if let Excess::Queue { queues, .. } = excess { queues } else { 0 };
        while self.queues.len() < wanted {
            self.queues.push(Queue::new());
        }
        self.shrink();
        self.dispatch()
    }

    /// Changes the seats.
    pub(crate) fn resize(&mut self, limit: u64, now: Duration) -> Woken<W> {
        self.configure(self.excess, limit, now)
    }

    /// Begins a request of the flow with the hash `flow`; `waker` is made if it has to wait. Others may run too.
    pub(crate) fn start(
        &mut self,
        now: Duration,
        work: Work,
        flow: u64,
        waker: impl FnOnce() -> W,
    ) -> (Start, Woken<W>) {
        self.settle(now);
        let Excess::Queue { queues, hand, length } = self.excess else {
            if !self.fits(&work) {
                self.totals.refused += 1;
                return (Start::Refuse(Refusal::ConcurrencyLimit), Vec::new());
            }
            return (Start::Run(self.run(None, work)), Vec::new());
        };
        let at = self.choose(flow, queues, hand);
        if self.waiting == 0 && self.seats < self.limit && self.fits(&work) {
            self.begin(at);
            self.last = at;
            return (Start::Run(self.run(Some(at), work)), Vec::new());
        }
        let blocked = self.seats >= self.limit || self.too_wide(&work);
        if blocked && self.queues[at].waiting.len() >= length {
            self.totals.refused += 1;
            return (Start::Refuse(Refusal::QueueFull), Vec::new());
        }
        self.begin(at);
        self.ids += 1;
        let ticket = Ticket { queue: at, id: self.ids };
        let queue = &mut self.queues[at];
        queue.work += work.total();
        queue.waiting.push_back(Waiting { id: ticket.id, work, arrived: self.virtually, waker: waker() });
        queue.bound();
        self.waiting += 1;
        self.seats_waiting += work.most();
        self.note();
        (Start::Wait(ticket), self.dispatch())
    }

    /// A request has run.
    pub(crate) fn finish(&mut self, now: Duration, request: Running) -> Woken<W> {
        self.settle(now);
        let Running { queue, work, started } = request;
        self.running -= 1;
        self.wide -= usize::from(work.seats > 1);
        if let Some(at) = queue {
            let took = now.saturating_sub(started).as_secs_f64();
            let queue = &mut self.queues[at];
            queue.running -= 1;
            queue.next -= seconds(work.seats, GUESS - took);
            queue.bound();
            self.active -= usize::from(queue.idle());
        }
        let kept = Lingering { until: now + work.lingers, seats: work.most(), queue };
        if work.lingers.is_zero() {
            self.release(kept);
        } else {
            self.lingering.push(Reverse(kept));
        }
        self.dispatch()
    }

    /// A request does not wait any more; false when it runs already (and its waker came out).
    pub(crate) fn cancel(&mut self, now: Duration, ticket: Ticket) -> (bool, Woken<W>) {
        self.settle(now);
        let queue = &mut self.queues[ticket.queue];
        let Some(at) = queue.waiting.iter().position(|w| w.id == ticket.id) else {
            return (false, Vec::new());
        };
        let Some(gone) = queue.take(at) else { return (false, Vec::new()) };
        queue.bound();
        self.active -= usize::from(queue.idle());
        self.waiting -= 1;
        self.seats_waiting -= gone.work.most();
        self.totals.refused += 1;
        self.totals.cancelled += 1;
        self.shrink();
        (true, self.dispatch())
    }

    /// Gives back the seats whose time is over.
    pub(crate) fn tick(&mut self, now: Duration) -> Woken<W> {
        self.settle(now);
        self.dispatch()
    }

    /// When seats come free that someone waits for, if no request finishes before.
    pub(crate) fn next_release(&self) -> Option<Duration> {
        let next = self.lingering.peek()?;
        (self.waiting > 0).then_some(next.0.until)
    }

    /// What was demanded since this was asked last.
    pub(crate) fn take_demand(&mut self, now: Duration) -> Demand {
        self.settle(now);
        let demand = self.demand.take();
        self.note();
        demand
    }

    /// Nobody runs or waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting == 0 && self.running == 0
    }

    /// Seats there are now.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Requests that wait and that run.
    pub(crate) fn present(&self) -> (usize, usize) {
        (self.waiting, self.running)
    }

    /// Counts since the beginning.
    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    /// All queues, and the virtual time.
    pub(crate) fn view(&self) -> (f64, Vec<QueueView>) {
        let view = |q: &Queue<W>| QueueView {
            waiting: q.waiting.len(),
            running: q.running,
            seats: q.seats,
            next: q.next,
            initial_seats: q.waiting.iter().map(|w| w.work.seats).sum(),
            most_seats: q.waiting.iter().map(|w| w.work.most()).sum(),
            work: q.work,
        };
        (self.virtually, self.queues.iter().map(view).collect())
    }

    /// The queue of the flow's hand with the least work; which is asked first goes round.
    fn choose(&mut self, flow: u64, queues: usize, size: usize) -> usize {
        let mut hand = [0; deal::MOST];
        let hand = &mut hand[..size.clamp(1, deal::MOST)];
        deal::deal(flow, queues, hand);
        let offset = usize::try_from(self.ids + self.totals.dispatched).unwrap_or(0) % hand.len();
        let (before, after) = hand.split_at(offset);
        let mut best = (f64::INFINITY, hand[offset]);
        for at in after.iter().chain(before) {
            let work = self.queues[*at].work;
            if work < best.0 {
                best = (work, *at);
            }
        }
        best.1
    }

    /// A request comes to a queue.
    fn begin(&mut self, at: usize) {
        let queue = &mut self.queues[at];
        if queue.idle() {
            queue.next = self.virtually;
            self.active += 1;
        }
    }

    /// A request takes its seats.
    fn run(&mut self, queue: Option<usize>, work: Work) -> Running {
        let work = if self.excess == Excess::Exempt { work } else { work.within(self.limit) };
        self.running += 1;
        self.wide += usize::from(work.seats > 1);
        self.seats += work.most();
        self.narrow += u64::from(work.most() == 1);
        self.totals.dispatched += 1;
        if let Some(at) = queue {
            let queue = &mut self.queues[at];
            queue.running += 1;
            queue.seats += work.most();
            queue.next += work.total();
            queue.bound();
        }
        self.note();
        Running { queue, work, started: self.now }
    }

    /// Runs what may run.
    fn dispatch(&mut self) -> Woken<W> {
        let mut woken = Vec::new();
        while self.waiting > 0 && self.seats < self.limit {
            let Some(at) = self.next() else { break };
            let Some(next) = self.queues[at].take(0) else { break };
            self.waiting -= 1;
            self.seats_waiting -= next.work.most();
            self.last = at;
            woken.push((next.waker, self.run(Some(at), next.work)));
        }
        woken
    }

    /// The queue of what runs next: whose turn it is; while that is a list which waits for others to end, what is
    /// none; while it has to wait for several seats, what needs a single one, as long as such do not occupy more than
    /// is reserved for them.
    fn next(&self) -> Option<usize> {
        let (mut at, mut work) = self.first(|_| true)?;
        if self.too_wide(work) {
            (at, work) = self.first(|work| work.seats <= 1)?;
        }
        if self.fits(work) {
            return Some(at);
        }
        // One that needs even the reserved seats would never get them if others went by.
        let may_wait = work.most() > 1 && work.most() + self.reserve() <= self.limit;
        if !may_wait || self.narrow >= self.reserve() {
            return None;
        }
        self.first(|work| work.most() <= 1).filter(|(_, work)| self.fits(work)).map(|(at, _)| at)
    }

    fn reserve(&self) -> u64 {
        self.limit / RESERVED
    }

    /// The queue whose first request, of those that may be, would finish first; of equal ones the next after the
    /// last. And its work.
    fn first(&self, may: impl Fn(&Work) -> bool) -> Option<(usize, &Work)> {
        let count = self.queues.len();
        let mut best: Option<(f64, (usize, &Work))> = None;
        for step in 1..=count {
            let at = (self.last + step) % count;
            let queue = &self.queues[at];
            let Some(oldest) = queue.waiting.front().filter(|w| may(&w.work)) else { continue };
            let finish = queue.next + oldest.work.total();
            if best.is_none_or(|(least, _)| finish < least) {
                best = Some((finish, (at, &oldest.work)));
            }
        }
        best.map(|(_, found)| found)
    }

    /// Whether a request can have its seats. One that asks for more than there are runs alone; one that asks for
    /// several leaves what is reserved for those that ask for one.
    fn fits(&self, work: &Work) -> bool {
        let seats = work.most();
        match self.excess {
            Excess::Exempt => true,
            _ if self.too_wide(work) => false,
            _ if seats > self.limit => self.running == 0,
            Excess::Queue { .. } if seats > 1 && self.running > 0 => {
                self.seats + seats + self.reserve().saturating_sub(self.narrow) <= self.limit
            }
            _ => self.seats + seats <= self.limit,
        }
    }

    /// Whether a request is a list, and as many of them run as may.
    fn too_wide(&self, work: &Work) -> bool {
        work.seats > 1 && self.wide >= self.abreast
    }

    fn release(&mut self, kept: Lingering) {
        self.seats -= kept.seats;
        self.narrow -= u64::from(kept.seats == 1);
        if let Some(at) = kept.queue {
            self.queues[at].seats -= kept.seats;
        }
        self.shrink();
    }

    /// Drops queues at the end that are too many and empty.
    fn shrink(&mut self) {
        let wanted = if let Excess::Queue { queues, .. } = self.excess { queues } else { 0 };
        while self.queues.len() > wanted && self.queues.last().is_some_and(|q| q.idle() && q.seats == 0) {
            self.queues.pop();
        }
    }

    /// Brings seats and virtual time to `now`.
    fn settle(&mut self, now: Duration) {
        while let Some(Reverse(next)) = self.lingering.peek().copied().filter(|next| next.0.until <= now) {
            self.lingering.pop();
            self.advance(next.until);
            self.release(next);
        }
        self.advance(now);
        if self.active == 0 {
            self.virtually = 0.0;
        }
    }

    fn advance(&mut self, now: Duration) {
        let Some(passed) = now.checked_sub(self.now) else { return };
        self.now = now;
        let passed = passed.as_secs_f64();
        self.demand.pass(real(self.seats + self.seats_waiting), passed);
        if self.active > 0 {
            let rate = real((self.seats + self.seats_waiting).min(self.limit)) / real(self.active as u64);
            self.virtually += rate * passed;
        }
    }

    fn note(&mut self) {
        self.demand.reach(self.seats + self.seats_waiting);
    }
}

#[cfg(test)]
#[path = "queues_tests.rs"]
mod tests;
