//! What the node is short of, how long it has been so, and what must be done about it now. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_meta::quantity::Quantity;
use jiff::Timestamp;

use super::thresholds::{EvictionConfig, Signal, Threshold};

/// What is left of something, and how much there is in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    pub available: u64,
    pub capacity: u64,
}

/// What is left, by signal; a signal that cannot be seen is not there.
pub type Observations = BTreeMap<Signal, Left>;

/// A threshold that is crossed, and has been long enough.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shortage {
    pub signal: Signal,
    /// The least that should be left.
    pub least: Quantity,
    /// What is left.
    pub available: Quantity,
    /// Whether pods are given time to end.
    pub soft: bool,
}

/// What was seen so far.
#[derive(Clone, Debug, Default)]
pub struct Pressures {
    /// Since when each threshold has been crossed.
    since: Vec<(Threshold, Timestamp)>,
    /// Those crossed for long enough when last looked at: more must come free before they are over.
    acted: Vec<Threshold>,
    /// When each condition was last seen, by type.
    seen: BTreeMap<&'static str, Timestamp>,
    transition: Duration,
}

fn is_crossed(threshold: &Threshold, left: Left, with_reclaim: bool) -> bool {
    let mut least = threshold.least.of(left.capacity);
    if let Some(more) = threshold.reclaim.filter(|_| with_reclaim) {
        least += more.of(left.capacity);
    }
    least > Quantity::from(i64::try_from(left.available).unwrap_or(i64::MAX))
}

fn shown(signal: Signal, amount: u64) -> Quantity {
    let amount = i64::try_from(amount).unwrap_or(i64::MAX);
    if signal.in_bytes() { Quantity::from_bytes(amount) } else { Quantity::from(amount) }
}

impl Pressures {
    /// Notes what is left at `now` and tells what pods must go for, memory first.
    pub fn note(&mut self, config: &EvictionConfig, left: &Observations, now: Timestamp) -> Vec<Shortage> {
        let crossed = |t: &Threshold, with_reclaim: bool| {
            left.get(&t.signal).is_some_and(|left| is_crossed(t, *left, with_reclaim))
        };
        let mut met: Vec<Threshold> =
            config.thresholds.iter().filter(|t| crossed(t, false)).copied().collect();
        for earlier in &self.acted {
            if !met.contains(earlier) && crossed(earlier, true) {
                met.push(*earlier);
            }
        }
        let first = |t: &Threshold| self.since.iter().find(|(s, _)| s == t).map_or(now, |(_, at)| *at);
        self.since = met.iter().map(|t| (*t, first(t))).collect();
        self.seen.extend(met.iter().map(|t| (t.signal.condition(), now)));
        self.transition = config.transition;
        let lasted = |(t, at): &&(Threshold, Timestamp)| {
            now.duration_since(*at).unsigned_abs() >= t.grace.unwrap_or_default()
        };
        self.acted = self.since.iter().filter(lasted).map(|(t, _)| *t).collect();
        let mut short: Vec<Shortage> = self.acted.iter().filter_map(|t| shortage(t, left)).collect();
        short.sort_by_key(|s| s.signal.resource() != "memory");
        short
    }

    /// The node conditions that hold at `now`, by type.
    pub fn conditions(&self, now: Timestamp) -> Vec<&'static str> {
        let holds = |seen: Timestamp| now.duration_since(seen).unsigned_abs() < self.transition;
        self.seen.iter().filter(|(_, seen)| holds(**seen)).map(|(name, _)| *name).collect()
    }
}

fn shortage(threshold: &Threshold, left: &Observations) -> Option<Shortage> {
    let signal = threshold.signal;
    let left = left.get(&signal)?;
    let least = threshold.least.of(left.capacity);
    Some(Shortage {
        signal,
        least,
        available: shown(signal, left.available),
        soft: threshold.grace.is_some(),
    })
}

/// Whether enough of what the shortage is about came free, as much as is to be reclaimed included.
pub fn is_over(config: &EvictionConfig, shortage: &Shortage, left: &Observations) -> bool {
    let mut thresholds = config.thresholds.iter().filter(|t| t.signal == shortage.signal);
    !thresholds.any(|t| left.get(&t.signal).is_some_and(|left| is_crossed(t, *left, true)))
}

/// How many bytes more may be used until there is too little memory, by signal: of thresholds that are crossed nobody
/// needs to be told.
pub fn memory_to_use(config: &EvictionConfig, left: &Observations) -> Vec<(Signal, u64)> {
    let until = |t: &Threshold| {
        let left = left.get(&t.signal)?;
        let least = u64::try_from(t.least.of(left.capacity).value()).unwrap_or(0);
        Some((t.signal, left.available.checked_sub(least)? + 1))
    };
    config.thresholds.iter().filter(|t| t.signal.resource() == "memory").filter_map(until).collect()
}

#[cfg(test)]
mod tests {
    use super::super::thresholds::{Amount, EvictionTexts};
    use super::*;
    use crate::pod::after;

    const MI: u64 = 1 << 20;

    fn memory(available: u64) -> Observations {
        Observations::from([(Signal::Memory, Left { available: available * MI, capacity: 1000 * MI })])
    }

    fn soft() -> EvictionConfig {
        let texts = |text: &str| BTreeMap::from([("memory.available".to_owned(), text.to_owned())]);
        let (hard, soft, grace, reclaim) = (texts("50Mi"), texts("200Mi"), texts("30s"), texts("100Mi"));
        let mut config = EvictionConfig::standard();
        let texts =
            EvictionTexts { hard: &hard, soft: &soft, grace: &grace, reclaim: &reclaim, merge: false };
        config.configure(texts).expect("thresholds");
        config
    }

    #[test]
    fn a_hard_threshold_acts_at_once_and_its_condition_lasts() {
        let config = EvictionConfig::standard();
        let (mut pressures, now) = (Pressures::default(), Timestamp::UNIX_EPOCH);
        let short = pressures.note(&config, &memory(60), now);
        assert_eq!((short.len(), short[0].signal, short[0].soft), (1, Signal::Memory, false));
        assert_eq!(
            (short[0].least.to_api().0, short[0].available.to_api().0),
            ("100Mi".into(), "60Mi".into())
        );
        assert!(pressures.note(&config, &memory(600), after(now, 10)).is_empty());
        assert_eq!(pressures.conditions(after(now, 299)), ["MemoryPressure"]);
        assert!(pressures.conditions(after(now, 310)).is_empty());
    }

    #[test]
    fn a_soft_threshold_acts_after_its_grace_and_until_enough_was_reclaimed() {
        let config = soft();
        let (mut pressures, now) = (Pressures::default(), Timestamp::UNIX_EPOCH);
        assert!(pressures.note(&config, &memory(150), now).is_empty(), "it has only begun");
        assert_eq!(pressures.conditions(now), ["MemoryPressure"], "but it is shown");
        assert!(pressures.note(&config, &memory(150), after(now, 29)).is_empty());
        let short = pressures.note(&config, &memory(150), after(now, 30));
        assert!(short.len() == 1 && short[0].soft, "{short:?}");
        assert_eq!(
            pressures.note(&config, &memory(250), after(now, 40)).len(),
            1,
            "100 Mi more must come free"
        );
        assert!(!is_over(&config, &short[0], &memory(250)) && is_over(&config, &short[0], &memory(300)));
        assert!(pressures.note(&config, &memory(300), after(now, 50)).is_empty());
        assert!(pressures.note(&config, &memory(150), after(now, 60)).is_empty(), "the time begins anew");
    }

    #[test]
    fn until_a_threshold_of_memory_as_much_may_be_used_as_is_left_above_it() {
        let mut left = memory(150);
        left.insert(Signal::NodeDisk, Left { available: 1 << 40, capacity: 1 << 40 });
        // 50 Mi at once, 200 Mi with grace: the latter is crossed already.
        assert_eq!(memory_to_use(&soft(), &left), [(Signal::Memory, 100 * MI + 1)]);
        left.insert(Signal::PodsMemory, Left { available: 300 * MI, capacity: 900 * MI });
        let standard = memory_to_use(&EvictionConfig::standard(), &left);
        assert_eq!(standard, [(Signal::Memory, 50 * MI + 1), (Signal::PodsMemory, 200 * MI + 1)]);
        assert!(memory_to_use(&soft(), &memory(10)).is_empty());
    }

    #[test]
    fn memory_comes_before_disks_and_unseen_signals_are_never_short() {
        let config = EvictionConfig::standard();
        let mut left = memory(50);
        left.insert(Signal::NodeInodes, Left { available: 1, capacity: 1000 });
        left.insert(Signal::ImageDisk, Left { available: 5000, capacity: 1 << 20 });
        let short = Pressures::default().note(&config, &left, Timestamp::UNIX_EPOCH);
        let signals: Vec<_> = short.iter().map(|s| s.signal).collect();
        assert_eq!(signals, [Signal::Memory, Signal::NodeInodes, Signal::ImageDisk]);
        assert_eq!(Amount::Share(0.05).of(1000).value(), 50);
    }
}
