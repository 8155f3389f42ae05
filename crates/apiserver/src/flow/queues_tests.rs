//! Tests of fair queueing: time is a number, wakers are names.

use super::*;

const QUEUED: Excess = Excess::Queue { queues: 16, hand: 1, length: 50 };

/// A set of which the test holds what runs.
struct Bench {
    set: QueueSet<&'static str>,
    now: Duration,
    running: Vec<(&'static str, Running)>,
    tickets: Vec<(&'static str, Ticket)>,
    order: Vec<&'static str>,
}

impl Bench {
    fn new(excess: Excess, limit: u64) -> Self {
        let set = QueueSet::new(excess, limit, usize::MAX, Duration::ZERO);
        Self { set, now: Duration::ZERO, running: Vec::new(), tickets: Vec::new(), order: Vec::new() }
    }

    fn woke(&mut self, woken: Woken<&'static str>) {
        let more = !woken.is_empty() && self.set.excess != Excess::Exempt;
        for (name, running) in woken {
            self.order.push(name);
            self.running.push((name, running));
        }
        assert!(
            !more || self.set.running <= 1 || self.set.seats <= self.set.limit,
            "more seats than there are"
        );
    }

    fn ask_work(&mut self, name: &'static str, flow: u64, work: Work) -> Result<(), Refusal> {
        let (start, woken) = self.set.start(self.now, work, flow, || name);
        match start {
            Start::Run(running) => self.woke(vec![(name, running)]),
            Start::Wait(ticket) => self.tickets.push((name, ticket)),
            Start::Refuse(why) => return Err(why),
        }
        self.woke(woken);
        Ok(())
    }

    fn ask(&mut self, name: &'static str, flow: u64) -> Result<(), Refusal> {
        self.ask_work(name, flow, Work::of(1))
    }

    /// The request that runs longest ends after another millisecond.
    fn end_one(&mut self) {
        self.now += Duration::from_millis(1);
        let (_, running) = self.running.remove(0);
        let woken = self.set.finish(self.now, running);
        self.woke(woken);
    }
}

#[test]
fn a_flood_of_one_flow_does_not_delay_another() {
    let mut bench = Bench::new(QUEUED, 2);
    for _ in 0..50 {
        bench.ask("flood", 1).unwrap();
    }
    bench.ask("other", 2).unwrap();
    bench.ask("other", 2).unwrap();
    assert_eq!(bench.order, ["flood", "flood"], "the seats are taken");
    for _ in 0..4 {
        bench.end_one();
    }
    let others = bench.order.iter().filter(|name| **name == "other").count();
    assert_eq!(others, 2, "forty-eight waited before: {:?}", bench.order);
}

#[test]
fn flows_that_want_more_than_their_part_are_served_in_turn() {
    let mut bench = Bench::new(QUEUED, 1);
    for _ in 0..20 {
        for (name, flow) in [("a", 1), ("b", 2), ("c", 3)] {
            bench.ask(name, flow).unwrap();
        }
    }
    for _ in 0..30 {
        bench.end_one();
    }
    for name in ["a", "b", "c"] {
        let served = bench.order.iter().filter(|n| **n == name).count();
        assert!((9..=12).contains(&served), "{name}: {served} of {:?}", bench.order);
    }
}

#[test]
fn a_flow_of_wide_requests_gets_as_many_seats_as_one_of_narrow_requests() {
    let mut bench = Bench::new(QUEUED, 4);
    for _ in 0..48 {
        bench.ask_work("wide", 1, Work::of(4)).unwrap();
        bench.ask("narrow", 2).unwrap();
    }
    while bench.order.len() < 40 {
        bench.end_one();
    }
    let wide = bench.order.iter().filter(|n| **n == "wide").count();
    assert!((6..=11).contains(&wide), "one to four: {wide} of {:?}", bench.order);
}

#[test]
fn lists_of_a_flood_leave_seats_for_the_reads_of_others() {
    let mut bench = Bench::new(QUEUED, 16);
    for _ in 0..40 {
        bench.ask_work("list", 1, Work::of(4)).unwrap();
    }
    assert_eq!(bench.order.len(), 3, "twelve seats of sixteen");
    for _ in 0..4 {
        bench.ask("read", 2).unwrap();
    }
    let reads = |bench: &Bench| bench.order.iter().filter(|n| **n == "read").count();
    assert_eq!(reads(&bench), 4, "at once, though no list has ended");
    for _ in 0..20 {
        bench.ask("read", 2).unwrap();
    }
    assert_eq!(reads(&bench), 4, "the rest in turn");
    let lists = bench.order.len() - reads(&bench);
    for _ in 0..12 {
        bench.end_one();
    }
    assert!(bench.order.len() - reads(&bench) > lists, "reads do not starve lists either");
}

#[test]
fn a_full_queue_refuses_and_an_empty_one_of_another_flow_does_not() {
    let mut bench = Bench::new(Excess::Queue { queues: 8, hand: 1, length: 3 }, 1);
    for _ in 0..4 {
        bench.ask("flood", 1).unwrap();
    }
    assert_eq!(bench.ask("flood", 1), Err(Refusal::QueueFull));
    assert_eq!(bench.ask("other", 2), Ok(()));
    assert_eq!(bench.set.totals(), Totals { dispatched: 1, refused: 1, cancelled: 0 });
}

#[test]
fn a_level_without_queues_refuses_what_has_no_seat() {
    let mut bench = Bench::new(Excess::Refuse, 2);
    bench.ask("a", 1).unwrap();
    assert_eq!(bench.ask_work("wide", 1, Work::of(2)), Err(Refusal::ConcurrencyLimit));
    bench.ask("b", 1).unwrap();
    assert_eq!(bench.ask("c", 2), Err(Refusal::ConcurrencyLimit));
    bench.end_one();
    bench.ask("c", 2).unwrap();
}

#[test]
fn exempt_requests_always_run() {
    let mut bench = Bench::new(Excess::Exempt, 0);
    for _ in 0..1000 {
        bench.ask("admin", 0).unwrap();
    }
    assert_eq!((bench.order.len(), bench.set.seats), (1000, 1000));
}

#[test]
fn a_request_wider_than_the_level_runs_alone() {
    let mut bench = Bench::new(QUEUED, 2);
    bench.ask("a", 1).unwrap();
    bench.ask_work("wide", 2, Work::of(10)).unwrap();
    assert_eq!(bench.order, ["a"]);
    bench.end_one();
    assert_eq!(bench.order, ["a", "wide"]);
    bench.ask("b", 3).unwrap();
    assert_eq!(bench.order, ["a", "wide"], "all seats are taken");
    bench.end_one();
    assert_eq!(bench.order, ["a", "wide", "b"]);
}

#[test]
fn a_write_that_many_watch_holds_seats_after_its_answer() {
    let mut bench = Bench::new(QUEUED, 1);
    let work = Work { seats: 1, last: 5, lingers: Duration::from_millis(10) };
    bench.ask_work("write", 1, work).unwrap();
    bench.ask("next", 2).unwrap();
    bench.end_one();
    assert_eq!(bench.order, ["write"], "the seat is still taken");
    // Five seats for 10 ms are one seat for 50 ms.
    let until = bench.set.next_release().unwrap();
    assert_eq!(until, bench.now + Duration::from_millis(50));
    let woken = bench.set.tick(until - Duration::from_micros(1));
    assert!(woken.is_empty());
    let woken = bench.set.tick(until);
    assert_eq!(woken.len(), 1);
    assert_eq!(bench.set.next_release(), None, "nobody waits");
}

#[test]
fn who_stops_waiting_leaves_no_trace() {
    let mut bench = Bench::new(QUEUED, 1);
    for (name, flow) in [("a", 1), ("b", 1), ("c", 1)] {
        bench.ask(name, flow).unwrap();
    }
    let (gone, woken) = bench.set.cancel(bench.now, bench.tickets[0].1);
    assert!(gone && woken.is_empty());
    bench.end_one();
    assert_eq!(bench.order, ["a", "c"]);
    let (gone, _) = bench.set.cancel(bench.now, bench.tickets[1].1);
    assert!(!gone, "it runs");
    bench.end_one();
    assert!(bench.set.is_idle());
    assert_eq!((bench.set.seats, bench.set.active, bench.set.seats_waiting), (0, 0, 0));
}

#[test]
fn more_seats_let_more_run_and_fewer_wait_for_the_end_of_some() {
    let mut bench = Bench::new(QUEUED, 1);
    for _ in 0..5 {
        bench.ask("a", 1).unwrap();
    }
    let woken = bench.set.resize(3, bench.now);
    assert_eq!(woken.len(), 2);
    bench.woke(woken);
    bench.set.limit = 1;
    bench.end_one();
    bench.end_one();
    assert_eq!(bench.order.len(), 3);
    bench.end_one();
    assert_eq!(bench.order.len(), 4);
}

#[test]
fn queues_that_are_too_many_serve_what_waits_in_them_and_go() {
    let mut bench = Bench::new(QUEUED, 1);
    for flow in 0..16 {
        bench.ask("a", flow).unwrap();
    }
    let excess = Excess::Queue { queues: 1, hand: 1, length: 50 };
    let woken = bench.set.configure(excess, 1, bench.now);
    bench.woke(woken);
    bench.ask("b", 9).unwrap();
    for _ in 0..17 {
        bench.end_one();
    }
    assert_eq!(bench.order.len(), 17);
    assert_eq!(bench.set.queues.len(), 1);
}

#[test]
fn demand_counts_seats_in_use_and_seats_waited_for() {
    let mut bench = Bench::new(QUEUED, 1);
    for flow in 0..3 {
        bench.ask("a", flow).unwrap();
    }
    bench.now += Duration::from_secs(1);
    let mut expected = Demand::default();
    expected.reach(3);
    expected.pass(3.0, 1.0);
    assert_eq!(bench.set.take_demand(bench.now), expected);
}

#[test]
fn accounts_are_even_after_a_long_random_run() {
    let mut bench = Bench::new(Excess::Queue { queues: 8, hand: 3, length: 4 }, 5);
    let mut seed = 7u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for _ in 0..20_000 {
        bench.now += Duration::from_micros(random(3000));
        match random(5) {
            0 if !bench.running.is_empty() => bench.end_one(),
            1 if !bench.running.is_empty() => bench.end_one(),
            2 if !bench.tickets.is_empty() => {
                let at = usize::try_from(random(bench.tickets.len() as u64)).unwrap();
                let (_, ticket) = bench.tickets.swap_remove(at);
                let (_, woken) = bench.set.cancel(bench.now, ticket);
                bench.woke(woken);
            }
            _ => {
                let work = match random(4) {
                    0 => Work { seats: 1, last: 1 + random(8), lingers: Duration::from_millis(random(9)) },
                    _ => Work::of(1 + random(7)),
                };
                let _ = bench.ask_work("r", random(20), work);
            }
        }
    }
    while !bench.running.is_empty() || bench.set.waiting > 0 {
        if bench.running.is_empty() {
            bench.now = bench.set.next_release().expect("seats linger, or someone runs");
            let woken = bench.set.tick(bench.now);
            bench.woke(woken);
        } else {
            bench.end_one();
        }
    }
    bench.now += Duration::from_secs(1);
    bench.set.tick(bench.now);
    let set = &bench.set;
    assert_eq!((set.seats, set.seats_waiting, set.active, set.running), (0, 0, 0, 0));
    assert!(set.queues.iter().all(|q| q.idle() && q.seats == 0 && q.work == 0.0));
    assert!(set.totals.refused > 0 && set.totals.cancelled > 0, "the run met all cases");
}

#[test]
fn no_more_lists_run_than_processors_and_what_is_no_list_goes_by() {
    let mut bench = Bench::new(QUEUED, 100);
    bench.set = QueueSet::new(QUEUED, 100, 2, Duration::ZERO);
    let list = Work::of(8);
    for name in ["list 1", "list 2", "list 3", "list 4"] {
        bench.ask_work(name, 1, list).unwrap();
    }
    assert_eq!(bench.set.present(), (2, 2), "two lists wait though there are seats");
    bench.ask("read", 2).unwrap();
    let write = Work { seats: 1, last: 5, lingers: Duration::from_millis(2) };
    bench.ask_work("write", 3, write).unwrap();
    assert_eq!(bench.order, ["list 1", "list 2", "read", "write"]);
    bench.end_one();
    assert_eq!(bench.order.last(), Some(&"list 3"));
}

#[test]
fn lists_that_wait_for_lists_fill_their_queue() {
    let mut bench = Bench::new(Excess::Queue { queues: 1, hand: 1, length: 2 }, 100);
    bench.set = QueueSet::new(bench.set.excess, 100, 1, Duration::ZERO);
    for name in ["runs", "waits", "waits too"] {
        bench.ask_work(name, 1, Work::of(2)).unwrap();
    }
    assert_eq!(bench.ask_work("too many", 1, Work::of(2)), Err(Refusal::QueueFull));
}
