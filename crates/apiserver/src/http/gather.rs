//! How long a watch under a storm of events gathers them before it writes: one write (a TLS record, an HTTP/2 frame, a
//! system call and a wake-up at both ends) then carries several. A lone event always leaves at once.
//!
//! The more watches are busy, the longer: what the writes cost together stays about the same, whether ten watches
//! follow the storm or ten thousand.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// A watch gathers at least this long.
const LEAST: Duration = Duration::from_millis(5);
/// And at most so long: nobody notices that an event came a tenth of a second late.
const MOST: Duration = Duration::from_millis(100);
/// Busy watches are counted in turns of this length; longer than [`MOST`], so that each is counted in every turn.
const TURN: Duration = Duration::from_millis(128);
/// What each busy watch adds, on one processor; a write costs both ends some ten microseconds.
const SHARE: Duration = Duration::from_micros(100);

/// The watches that wrote in this turn and in the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    /// Number of the turn, counted from the start; wraps.
    turn: u16,
    before: u32,
    now: u32,
}

/// Counts of a tally end here.
const FULL: u32 = (1 << 24) - 1;

impl Tally {
    fn unpack(bits: u64) -> Self {
        let part = |shift: u32| u32::try_from(bits >> shift & u64::from(FULL)).unwrap_or(FULL);
        Self { turn: u16::try_from(bits >> 48).unwrap_or_default(), before: part(24), now: part(0) }
    }

    fn pack(self) -> u64 {
        u64::from(self.turn) << 48 | u64::from(self.before.min(FULL)) << 24 | u64::from(self.now.min(FULL))
    }

    /// The tally at the beginning of `turn`, or within it.
    fn at(self, turn: u16) -> Self {
        match turn.wrapping_sub(self.turn) {
            0 => self,
            1 => Self { turn, before: self.now, now: 0 },
            // Who looked at the clock before another did: its turn is over.
            u16::MAX => self,
            _ => Self { turn, before: 0, now: 0 },
        }
    }

    fn busy(self) -> u32 {
        self.before.max(self.now)
    }
}

/// All watches of a server, as far as they are busy.
#[derive(Debug)]
pub(crate) struct Crowd {
    start: Instant,
    tally: AtomicU64,
    /// What each busy watch adds to the time that all gather.
    share: Duration,
}

/// What a watch knows of its own writes.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    last: Option<Instant>,
    counted: Option<u16>,
    hurries: bool,
}

impl Crowd {
    /// A crowd on so many processors.
    pub(crate) fn new(processors: usize) -> Self {
        let share = SHARE / u32::try_from(processors.max(1)).unwrap_or(1);
        Self { start: Instant::now(), tally: AtomicU64::new(0), share }
    }

    fn turn(&self, now: Instant) -> u16 {
        let turns = now.duration_since(self.start).as_millis() / TURN.as_millis();
        u16::try_from(turns & u128::from(u16::MAX)).unwrap_or_default()
    }

    /// How long a busy watch gathers now.
    fn span(&self, now: Instant) -> Duration {
        let tally = Tally::unpack(self.tally.load(Ordering::Relaxed)).at(self.turn(now));
        (self.share * tally.busy()).clamp(LEAST, MOST)
    }

    /// Until when a watch with an event in hand gathers others; `None` when it writes at once.
    pub(crate) fn until(&self, writes: &Writes) -> Option<Instant> {
        let last = writes.last.filter(|_| !writes.hurries)?;
        let now = Instant::now();
        // Most watches rest: nothing is worked out for them.
        if now.duration_since(last) >= MOST {
            return None;
        }
        let until = last + self.span(now);
        (until > now).then_some(until)
    }

    /// Notes that a watch writes.
    pub(crate) fn note(&self, writes: &mut Writes) {
        let now = Instant::now();
        writes.hurries = false;
        let busy = writes.last.replace(now).is_some_and(|last| now.duration_since(last) < TURN);
        let turn = self.turn(now);
        if !busy || writes.counted.replace(turn) == Some(turn) {
            return;
        }
        let count = |bits| {
            let tally = Tally::unpack(bits).at(turn);
            Some(Tally { now: tally.now.saturating_add(1), ..tally }.pack())
        };
        // The closure never declines.
        let _ = self.tally.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count);
    }
}

impl Writes {
    /// The next events leave at once: they were too many for this write.
    pub(crate) fn hurry(&mut self) {
        self.hurries = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advance(ms: u64) -> impl Future<Output = ()> {
        tokio::time::advance(Duration::from_millis(ms))
    }

    /// So many watches write for `turns`; how long one of them gathers then.
    async fn storm(crowd: &Crowd, watches: usize, turns: u32) -> Option<Duration> {
        let mut all: Vec<Writes> = (0..watches).map(|_| Writes::default()).collect();
        for _ in 0..turns * 4 {
            all.iter_mut().for_each(|writes| crowd.note(writes));
            advance(32).await;
        }
        all.iter_mut().for_each(|writes| crowd.note(writes));
        crowd.until(&all[0]).map(|until| until.duration_since(Instant::now()))
    }

    #[tokio::test(start_paused = true)]
    async fn the_more_watches_are_busy_the_longer_they_gather() {
        let ms = |n| Some(Duration::from_millis(n));
        assert_eq!(storm(&Crowd::new(2), 3, 3).await, ms(5), "a few: five milliseconds");
        assert_eq!(storm(&Crowd::new(2), 1000, 3).await, ms(50));
        assert_eq!(
            storm(&Crowd::new(8), 1000, 3).await,
            Some(Duration::from_micros(12_500)),
            "faster machine"
        );
        assert_eq!(storm(&Crowd::new(1), 100_000, 3).await, ms(100), "never longer");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lone_event_leaves_at_once_and_after_a_storm_all_is_as_before() {
        let crowd = Crowd::new(2);
        let mut rare = Writes::default();
        assert_eq!(crowd.until(&rare), None, "the first");
        storm(&crowd, 1000, 3).await;
        crowd.note(&mut rare);
        advance(120).await;
        assert_eq!(crowd.until(&rare), None, "one that writes seldom does not wait for the crowd");
        advance(300).await;
        crowd.note(&mut rare);
        let until = crowd.until(&rare).expect("two events together");
        assert_eq!(until.duration_since(Instant::now()), LEAST, "the storm is over");
        rare.hurry();
        assert_eq!(crowd.until(&rare), None);
    }

    #[test]
    fn tallies_survive_packing_and_move_on_by_turns() {
        let tally = Tally { turn: 65_535, before: 7, now: FULL };
        assert_eq!(Tally::unpack(tally.pack()), tally);
        assert_eq!(tally.at(65_535), tally);
        assert_eq!(tally.at(0), Tally { turn: 0, before: FULL, now: 0 }, "the number wraps");
        assert_eq!(tally.at(1), Tally { turn: 1, before: 0, now: 0 }, "a turn without any");
        assert_eq!(tally.at(65_534), tally, "late by one");
    }
}
