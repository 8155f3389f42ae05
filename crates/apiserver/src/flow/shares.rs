//! How the server's seats are divided among priority levels: by their shares, then by what they demand.

use std::time::Duration;

/// How often seats are divided anew.
pub(crate) const PERIOD: Duration = Duration::from_secs(10);
/// What is left of the smoothed demand after a period: half after five minutes.
const SMOOTHING: f64 = 0.977;
/// A level that demands nothing is still there.
const LEAST: f64 = 0.001;

/// The seats that the configuration gives a level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seats {
    /// Its part by shares.
    pub(crate) nominal: u64,
    /// What is left when it has lent all it may.
    pub(crate) lower: u64,
    /// What it has when it has borrowed all it may.
    pub(crate) upper: u64,
}

/// What a level's object says about seats.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shares {
    /// `nominalConcurrencyShares`.
    pub(crate) nominal: i32,
    /// `lendablePercent`.
    pub(crate) lendable: i32,
    /// `borrowingLimitPercent`; none means no limit.
    pub(crate) borrowing: Option<i32>,
}

/// `percent` of `of`, rounded.
fn percent(of: u64, percent: i32) -> u64 {
    (of * u64::try_from(percent).unwrap_or(0) + 50) / 100
}

/// Divides `total` seats by shares of `sum`; rounded up, so that every level with a share has a seat.
pub(crate) fn seats(total: u64, shares: Shares, sum: i64) -> Seats {
    let (share, sum) = (u64::try_from(shares.nominal).unwrap_or(0), u64::try_from(sum).unwrap_or(0));
    let nominal = (total * share).div_ceil(sum.max(1));
    let lent = percent(nominal, shares.lendable);
    let borrowed = shares.borrowing.map_or(total, |p| percent(nominal, p));
    Seats { nominal, lower: nominal - lent.min(nominal), upper: nominal + borrowed }
}

impl Seats {
    /// Seats of a level that is new: half of what it may lend is lent.
    pub(crate) fn first(self) -> u64 {
        self.nominal - (self.nominal - self.lower) / 2
    }

    /// The most seats that a request of a level with queues is estimated to need.
    pub(crate) fn widest(self, hand: u64) -> u64 {
        let part = (self.nominal * 15).div_ceil(100);
        part.min(self.nominal / hand.max(1)).max(1)
    }
}

/// Seats demanded over a time: sums of value and square, weighted with time, and the most.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Demand {
    passed: f64,
    sum: f64,
    squares: f64,
    most: u64,
}

impl Demand {
    /// The demand was `seats` for so many seconds.
    pub(crate) fn pass(&mut self, seats: f64, seconds: f64) {
        self.passed += seconds;
        self.sum += seats * seconds;
        self.squares += seats * seats * seconds;
    }

    /// The demand is `seats` now.
    pub(crate) fn reach(&mut self, seats: u64) {
        self.most = self.most.max(seats);
    }

    /// What was gathered; begins anew.
    pub(crate) fn take(&mut self) -> Self {
        std::mem::take(self)
    }
}

/// A level's demand, smoothed over periods.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct History {
    /// The most of the last period.
    pub(crate) most: u64,
    /// Its mean.
    pub(crate) average: f64,
    /// Its standard deviation.
    pub(crate) deviation: f64,
    /// Mean and deviation, rising at once and falling slowly.
    pub(crate) smoothed: f64,
}

impl History {
    /// Adds what was demanded in the last `periods`.
    pub(crate) fn update(&mut self, demand: Demand, periods: i32) {
        self.most = demand.most;
        (self.average, self.deviation) = if demand.passed > 0.0 {
            let mean = demand.sum / demand.passed;
            (mean, (demand.squares / demand.passed - mean * mean).max(0.0).sqrt())
        } else {
            (0.0, 0.0)
        };
        let envelope = self.average + self.deviation;
        let kept = SMOOTHING.powi(periods.max(1));
        self.smoothed = envelope.max(kept * self.smoothed + (1.0 - kept) * envelope);
    }
}

/// A level, as far as lending and borrowing ask.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Borrower {
    /// Whether it has no limit.
    pub(crate) exempt: bool,
    /// What the configuration gives it.
    pub(crate) seats: Seats,
    /// What it demanded.
    pub(crate) demand: History,
}

impl Borrower {
    /// It is not left with less than it lately used of its own.
    fn floor(&self) -> u64 {
        let used = if self.exempt { self.demand.most } else { self.demand.most.min(self.seats.nominal) };
        self.seats.lower.max(used)
    }

    fn wish(&self) -> f64 {
        real(self.floor()).max(self.demand.smoothed).max(LEAST)
    }
}

#[expect(clippy::cast_precision_loss, reason = "seats are few")]
fn real(seats: u64) -> f64 {
    seats as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rounded, and seats are few")]
fn whole(seats: f64) -> u64 {
    seats.max(0.0).round() as u64
}

/// The seats of each level for the next period, and the fair part of its wish that each level without bounds got.
/// Together they are the sum of the nominal seats, as far as the bounds allow.
pub(crate) fn divide(levels: &[Borrower]) -> (Vec<u64>, f64) {
    let total: u64 = levels.iter().map(|l| l.seats.nominal).sum();
    let exempt: u64 = levels.iter().filter(|l| l.exempt).map(Borrower::floor).sum();
    let limited = || levels.iter().filter(|l| !l.exempt);
    let left = total.saturating_sub(exempt);
    let lowest: u64 = limited().map(|l| l.seats.lower).sum();
    let floors: u64 = limited().map(Borrower::floor).sum();
    let each = |seats: &dyn Fn(&Borrower) -> u64| {
        levels.iter().map(|l| if l.exempt { l.floor() } else { seats(l) }).collect()
    };
    if left <= lowest {
        return (each(&|l| l.seats.lower), 0.0);
    }
    if left <= floors {
        let part = real(left - lowest) / real(floors - lowest);
        return (each(&|l| l.seats.lower + whole(real(l.floor() - l.seats.lower) * part)), 0.0);
    }
    let bounds: Vec<(f64, f64, f64)> =
        limited().map(|l| (l.wish(), real(l.floor()), real(l.seats.upper.max(l.floor())))).collect();
    let fair = proportion(&bounds, real(total));
    (each(&|l| whole((fair * l.wish()).clamp(real(l.floor()), real(l.seats.upper.max(l.floor()))))), fair)
}

/// The one factor that, applied to all wishes and cut to their bounds, gives `total` (or comes nearest to it).
/// The sum rises with the factor, straight between the points at which some wish meets a bound.
fn proportion(bounds: &[(f64, f64, f64)], total: f64) -> f64 {
    let sum = |p: f64| bounds.iter().map(|(wish, low, high)| (p * wish).clamp(*low, *high)).sum::<f64>();
    let mut points: Vec<f64> =
        bounds.iter().flat_map(|(wish, low, high)| [low / wish, high / wish]).collect();
    points.sort_by(f64::total_cmp);
    let above = points.partition_point(|p| sum(*p) < total);
    match (above.checked_sub(1).map(|i| points[i]), points.get(above).copied()) {
        (Some(a), Some(b)) => a + (b - a) * (total - sum(a)) / (sum(b) - sum(a)),
        (None, Some(b)) => b,
        (Some(a), None) => a,
        (None, None) => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_follow_shares_and_are_rounded_up() {
        // Upstream's defaults: 600 seats, shares of 245 in all.
        let of = |nominal, lendable| seats(600, Shares { nominal, lendable, borrowing: None }, 245);
        assert_eq!(of(30, 33), Seats { nominal: 74, lower: 50, upper: 674 }, "system");
        assert_eq!(of(100, 90), Seats { nominal: 245, lower: 24, upper: 845 }, "workload-low");
        assert_eq!(of(5, 0), Seats { nominal: 13, lower: 13, upper: 613 }, "catch-all");
        let limited = seats(600, Shares { nominal: 40, lendable: 50, borrowing: Some(100) }, 245);
        assert_eq!(limited, Seats { nominal: 98, lower: 49, upper: 196 });
        assert_eq!(seats(600, Shares { nominal: 0, lendable: 0, borrowing: None }, 245).nominal, 0);
    }

    #[test]
    fn one_request_takes_no_more_than_a_part_of_its_level() {
        let wide = |nominal, hand| Seats { nominal, lower: 0, upper: 0 }.widest(hand);
        assert_eq!((wide(245, 6), wide(98, 6), wide(10, 6), wide(0, 8)), (37, 15, 1, 1));
    }

    fn level(nominal: u64, lower: u64, upper: u64, most: u64, smoothed: f64) -> Borrower {
        let demand = History { most, smoothed, ..History::default() };
        Borrower { exempt: false, seats: Seats { nominal, lower, upper }, demand }
    }

    #[test]
    fn seats_nobody_wants_go_to_who_wants_more() {
        let idle = level(100, 10, 200, 0, 0.0);
        let busy = level(100, 50, 300, 150, 90.0);
        let (seats, _) = divide(&[idle, busy]);
        assert_eq!(seats, [18, 182], "ten to a hundred");
    }

    #[test]
    fn a_level_that_uses_its_own_seats_is_not_made_to_lend_them() {
        let (seats, _) = divide(&[level(100, 10, 200, 100, 90.0), level(100, 50, 300, 400, 400.0)]);
        assert_eq!(seats, [100, 100]);
    }

    #[test]
    fn nobody_borrows_beyond_the_upper_bound() {
        let (seats, _) = divide(&[level(100, 10, 150, 0, 1.0), level(100, 50, 120, 400, 400.0)]);
        assert_eq!(seats, [80, 120]);
    }

    #[test]
    fn what_exempt_requests_occupy_is_taken_from_the_others_down_to_their_lower_bounds() {
        let exempt = |most| Borrower {
            exempt: true,
            seats: Seats::default(),
            demand: History { most, ..History::default() },
        };
        let levels = |most| [exempt(most), level(100, 40, 200, 100, 100.0), level(100, 60, 200, 100, 100.0)];
        assert_eq!(divide(&levels(50)).0, [50, 70, 80]);
        assert_eq!(divide(&levels(500)).0, [500, 40, 60]);
    }

    #[test]
    fn demand_rises_at_once_and_falls_slowly() {
        let mut history = History::default();
        let steady = |seats: f64| {
            let mut demand = Demand::default();
            demand.pass(seats, 10.0);
            demand
        };
        history.update(steady(40.0), 1);
        assert!((history.smoothed - 40.0).abs() < 1e-9);
        history.update(steady(0.0), 1);
        assert!((history.smoothed - 40.0 * SMOOTHING).abs() < 1e-9);
        history.update(steady(0.0), 29);
        assert!((history.smoothed / 40.0 - 0.5).abs() < 0.01, "half-life of five minutes");
    }
}
