//! Leader election by Lease: of several candidates one at a time leads.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use coracle_meta::{Reason, Status};
use coracle_stdx::Clock;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::api::{Api, Client};
use crate::event::{EventRecorder, EventType};

/// How long each step of an election takes. Upstream's flags `--leader-elect-…` have the same names and defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElectionTimes {
    /// A lease that did not change for this long is free for others.
    pub lease_duration: Duration,
    /// A leader that could not renew for this long stops. Shorter than the lease's duration.
    pub renew_deadline: Duration,
    /// Between two attempts to take or renew the lease.
    pub retry_period: Duration,
}

impl Default for ElectionTimes {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { lease_duration: seconds(15), renew_deadline: seconds(10), retry_period: seconds(2) }
    }
}

/// A candidate for the Lease `namespace/name`.
///
/// Guarantees: while [`Election::lead`] runs its work, no other candidate of the same lease does, as long as the
/// machines' clocks run at the same speed: a leader drops its work `renew_deadline` after its last renewal, and others
/// wait `lease_duration` after they saw it. What clocks show does not matter.
pub struct Election {
    api: Api<Lease>,
    events: EventRecorder,
    clock: Clock,
    namespace: String,
    name: String,
    identity: String,
    times: ElectionTimes,
}

impl fmt::Debug for Election {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Election({}/{} as {})", self.namespace, self.name, self.identity)
    }
}

/// The lease as a candidate knows it.
struct Seen {
    lease: Lease,
    /// When it was first seen like this.
    since: Instant,
}

/// The outcome of an attempt.
enum Attempt {
    Holds(Seen),
    /// Another holds it.
    Waits(Seen),
}

impl Election {
    /// A candidate called `identity`, which no other may share. Events are recorded under the lease's name.
    pub fn new(
        client: &Client,
        clock: Clock,
        namespace: &str,
        name: &str,
        identity: &str,
        times: ElectionTimes,
    ) -> Self {
        Self {
            api: client.api(),
            events: EventRecorder::new(client.clone(), name, clock.clone()),
            clock,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            times,
        }
    }

    /// Waits until it leads, then runs `work` until it ends or the lead is lost; and again, until `stop` becomes true:
    /// then the lease is given up, so that another candidate need not wait.
    pub async fn lead<F, Fut>(&self, mut stop: watch::Receiver<bool>, mut work: F)
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = ()>,
    {
        loop {
            let held = tokio::select! {
                held = self.acquire() => held,
                _ = stop.wait_for(|stop| *stop) => return,
            };
            info!(lease = self.name, identity = self.identity, "became leader");
            self.record(&held.lease, "became leader");
            let lease = held.lease.clone();
            let stopping = tokio::select! {
                () = work() => false,
                () = self.renew(held) => false,
                _ = stop.wait_for(|stop| *stop) => true,
            };
            // The work has been dropped: from here on nothing acts.
            warn!(lease = self.name, identity = self.identity, "stopped leading");
            self.record(&lease, "stopped leading");
            self.release().await;
            if stopping {
                return;
            }
            tokio::time::sleep(self.times.retry_period).await;
        }
    }

    fn record(&self, lease: &Lease, what: &str) {
        self.events.event(lease, EventType::Normal, "LeaderElection", format!("{} {what}", self.identity));
    }

    async fn acquire(&self) -> Seen {
        let mut seen = None;
        loop {
            match self.attempt(seen.take()).await {
                Ok(Attempt::Holds(held)) => return held,
                Ok(Attempt::Waits(other)) => seen = Some(other),
                Err(status) => debug!(lease = self.name, %status, "lease not taken"),
            }
            // Spread, so that candidates do not go on meeting.
            let spread = self.times.retry_period.mul_f64(rand::random::<f64>() * 1.2);
            tokio::time::sleep(self.times.retry_period + spread).await;
        }
    }

    /// Returns when the lease was not renewed in time, or is another's.
    async fn renew(&self, held: Seen) {
        let mut held = held;
        loop {
            let (renewed, lease) = (held.since, held.lease.clone());
            let left = || self.times.renew_deadline.saturating_sub(renewed.elapsed());
            tokio::time::sleep(self.times.retry_period.min(left())).await;
            let left = left();
            if left.is_zero() {
                return warn!(lease = self.name, "lease not renewed in time");
            }
            match tokio::time::timeout(left, self.attempt(Some(held))).await {
                Ok(Ok(Attempt::Holds(now))) => held = now,
                Ok(Ok(Attempt::Waits(_))) => return warn!(lease = self.name, "another leads"),
                Ok(Err(status)) => {
                    warn!(lease = self.name, %status, "lease not renewed");
                    held = Seen { lease, since: renewed };
                }
                Err(_) => return warn!(lease = self.name, "lease not renewed in time"),
            }
        }
    }

    /// Takes or renews the lease, if it is free or ours.
    async fn attempt(&self, seen: Option<Seen>) -> Result<Attempt, Status> {
        let began = Instant::now();
        let holds = |lease: Lease| Ok(Attempt::Holds(Seen { lease, since: began }));
        // A leader writes without reading; if that fails it looks.
        if let Some(mine) = seen.as_ref().filter(|seen| self.is_mine(&seen.lease))
            && let Ok(lease) = self.write(mine.lease.clone()).await
        {
            return holds(lease);
        }
        let found = match self.api.get(&self.namespace, &self.name).await {
            Ok(found) => (*found).clone(),
            Err(status) if status.reason() == Reason::NotFound => {
                let fresh = self.taken(Lease::default());
                let made = self.api.create(&self.namespace, fresh).await?;
                return holds((*made).clone());
            }
            Err(status) => return Err(status),
        };
        let now = match seen {
            Some(seen) if seen.lease.metadata.resource_version == found.metadata.resource_version => seen,
            _ => Seen { lease: found, since: Instant::now() },
        };
        let holder = holder(&now.lease);
        let lasts = now.lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds).unwrap_or(0);
        let lasts = Duration::from_secs(u64::try_from(lasts).unwrap_or(0));
        if !holder.is_empty() && holder != self.identity && now.since.elapsed() < lasts {
            return Ok(Attempt::Waits(now));
        }
        holds(self.write(now.lease).await?)
    }

    fn is_mine(&self, lease: &Lease) -> bool {
        holder(lease) == self.identity
    }

    async fn write(&self, lease: Lease) -> Result<Lease, Status> {
        Ok((*self.api.update(&self.namespace, self.taken(lease)).await?).clone())
    }

    /// The lease as it is when this candidate holds it from now on.
    fn taken(&self, mut lease: Lease) -> Lease {
        let (mine, exists) = (self.is_mine(&lease), lease.spec.is_some());
        lease.metadata = ObjectMeta {
            name: Some(self.name.clone()),
            namespace: Some(self.namespace.clone()),
            ..lease.metadata
        };
        let now = MicroTime(self.clock.now());
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        if !mine {
            spec.acquire_time = Some(now.clone());
            let before = spec.lease_transitions.unwrap_or(0);
            spec.lease_transitions = Some(if exists { before.saturating_add(1) } else { 0 });
        }
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = i32::try_from(self.times.lease_duration.as_secs()).ok();
        spec.renew_time = Some(now);
        lease
    }

    /// Gives the lease up, if it is ours.
    async fn release(&self) {
        let give = async {
            let mut lease = (*self.api.get(&self.namespace, &self.name).await?).clone();
            if !self.is_mine(&lease) {
                return Ok(());
            }
            let now = MicroTime(self.clock.now());
            let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            spec.acquire_time = Some(now.clone());
            spec.renew_time = Some(now);
            self.api.update(&self.namespace, lease).await.map(drop)
        };
        match tokio::time::timeout(self.times.renew_deadline, give).await {
            Ok(Ok(())) => {}
            Ok(Err(status)) => warn!(lease = self.name, %status, "lease not given up"),
            Err(_) => warn!(lease = self.name, "lease not given up in time"),
        }
    }
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI32, Ordering};

    use k8s_openapi::api::core::v1::Event;
    use parking_lot::Mutex;

    use super::*;
    use crate::testing::FakeTransport;

    /// A candidate whose work counts itself while it runs.
    struct Candidate {
        task: tokio::task::JoinHandle<()>,
        stop: watch::Sender<bool>,
    }

    /// Who works now, and who ever did.
    #[derive(Default)]
    struct Seat {
        now: AtomicI32,
        order: Mutex<Vec<String>>,
    }

    /// Leaves the seat when the work is dropped.
    struct Sitting(Arc<Seat>);

    impl Drop for Sitting {
        fn drop(&mut self) {
            self.0.now.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn candidate(fake: &Arc<FakeTransport>, seat: &Arc<Seat>, name: &str) -> Candidate {
        let times = ElectionTimes::default();
        let election = Election::new(&fake.client(), Clock::system(), "kube-system", "boss", name, times);
        let (stop, stopped) = watch::channel(false);
        let (seat, name) = (seat.clone(), name.to_owned());
        let task = tokio::spawn(async move {
            let work = || {
                let (seat, name) = (seat.clone(), name.clone());
                async move {
                    assert_eq!(seat.now.fetch_add(1, Ordering::SeqCst), 0, "another works still");
                    let _sitting = Sitting(seat.clone());
                    seat.order.lock().push(name);
                    std::future::pending::<()>().await;
                }
            };
            election.lead(stopped, work).await;
        });
        Candidate { task, stop }
    }

    async fn after(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    async fn lease(fake: &Arc<FakeTransport>) -> LeaseSpec {
        let lease = fake.client().api::<Lease>().get("kube-system", "boss").await.expect("there");
        lease.spec.clone().expect("a spec")
    }

    #[tokio::test(start_paused = true)]
    async fn one_leads_and_another_takes_over_when_it_is_killed_but_no_sooner() {
        let fake = FakeTransport::new(Clock::system());
        let seat = Arc::new(Seat::default());
        let a = candidate(&fake, &seat, "a");
        after(1).await;
        let b = candidate(&fake, &seat, "b");
        after(60).await;
        assert_eq!(*seat.order.lock(), ["a"]);
        assert_eq!(lease(&fake).await.lease_transitions, Some(0));
        a.task.abort();
        after(9).await;
        assert_eq!(*seat.order.lock(), ["a"], "the lease has not run out");
        after(15).await;
        assert_eq!(*seat.order.lock(), ["a", "b"]);
        let held = lease(&fake).await;
        assert_eq!((held.holder_identity.as_deref(), held.lease_transitions), (Some("b"), Some(1)));
        let events = fake.client().api::<Event>().list("kube-system", <_>::default()).await.expect("listed");
        let said: Vec<_> = events.iter().filter_map(|e| e.message.as_deref()).collect();
        assert!(said.contains(&"a became leader") && said.contains(&"b became leader"), "{said:?}");
        b.task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_ends_gives_the_lease_up_at_once() {
        let fake = FakeTransport::new(Clock::system());
        let seat = Arc::new(Seat::default());
        let a = candidate(&fake, &seat, "a");
        after(1).await;
        let b = candidate(&fake, &seat, "b");
        after(1).await;
        a.stop.send_replace(true);
        a.task.await.expect("ended");
        assert_eq!(lease(&fake).await.holder_identity.as_deref(), Some(""));
        after(5).await;
        assert_eq!(*seat.order.lock(), ["a", "b"]);
        b.task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_cannot_renew_stops_before_another_may_begin() {
        let fake = FakeTransport::new(Clock::system());
        let seat = Arc::new(Seat::default());
        let a = candidate(&fake, &seat, "a");
        after(1).await;
        for _ in 0..40 {
            fake.fail_next("leases", Status::unavailable("no way through"));
        }
        after(11).await;
        assert_eq!(seat.now.load(Ordering::SeqCst), 0, "ten seconds after the last renewal nothing acts");
        after(120).await;
        assert_eq!(*seat.order.lock(), ["a", "a"], "it leads again once it gets through");
        a.task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn in_any_order_of_kills_and_ends_one_works_at_a_time_and_somebody_does_in_the_end() {
        use rand::{Rng as _, SeedableRng as _};
        let mut random = rand::rngs::StdRng::seed_from_u64(3);
        let fake = FakeTransport::new(Clock::system());
        let seat = Arc::new(Seat::default());
        let mut all = Vec::new();
        for n in 0..60 {
            all.push(candidate(&fake, &seat, &format!("c{n}")));
            after(random.random_range(0..25)).await;
            if all.len() > 2 {
                let one: Candidate = all.swap_remove(random.random_range(0..all.len()));
                match random.random_range(0..3) {
                    0 => one.task.abort(),
                    1 => drop(one.stop.send_replace(true)),
                    _ => {
                        for _ in 0..random.random_range(0..20) {
                            fake.fail_next("leases", Status::unavailable("no way through"));
                        }
                        all.push(one);
                    }
                }
            }
        }
        after(120).await;
        assert_eq!(seat.now.load(Ordering::SeqCst), 1);
        assert!(seat.order.lock().len() > 2, "it changed hands");
        assert!(all.iter().all(|c| !c.task.is_finished()), "no work ran beside another's");
    }
}
