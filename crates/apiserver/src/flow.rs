//! API priority and fairness: every request takes seats of a priority level, waits for them, or is refused, so that
//! no client's flood takes the server from the others. Follows
//! <https://kubernetes.io/docs/concepts/cluster-administration/flow-control/>; docs/adr/0011-protection.md says where
//! it differs.
//!
//! What is decided is pure (`rules`, `queues`, `shares`, `work`, `retry`); `level` and this file carry it out.

mod configure;
mod counts;
mod deal;
mod dump;
mod in_flight;
mod level;
mod present;
mod queues;
mod retry;
mod rules;
mod shares;
pub(crate) mod work;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use k8s_openapi::api::flowcontrol::v1::FlowSchemaSpec;
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

pub(crate) use self::configure::Given;
use self::counts::Counted;
pub(crate) use self::in_flight::{InFlight, Place};
use self::level::{Comer, Level, LevelView};
pub(crate) use self::level::{Leash, Seat};
use self::present::Texts;
pub(crate) use self::queues::Work;
pub(crate) use self::rules::Asked;
use self::shares::PERIOD;

const SCHEMA_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const LEVEL_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");
/// Nobody waits longer for seats, whatever the time limit of the request.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How many requests may run at a time, and who comes first.
pub(crate) enum Protection {
    /// Priority and fairness.
    Fair(FlowControl),
    /// Two plain limits.
    Plain(InFlight),
}

/// A FlowSchema that is in force.
struct Schema {
    name: String,
    uid: HeaderValue,
    spec: FlowSchemaSpec,
    by: Distinguisher,
    level: usize,
    counted: Arc<Counted>,
}

/// What tells one flow of a schema from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distinguisher {
    User,
    Namespace,
    Nothing,
}

/// What is in force, in order of precedence.
#[derive(Default)]
struct Configured {
    schemas: Vec<Schema>,
    levels: Vec<LevelView>,
}

/// Under which schema and level a request was counted; answers tell it by uid.
pub(crate) struct Marks {
    schema: HeaderValue,
    level: HeaderValue,
}

impl Marks {
    /// Adds the headers to an answer.
    pub(crate) fn put(self, headers: &mut HeaderMap) {
        headers.insert(SCHEMA_UID, self.schema);
        headers.insert(LEVEL_UID, self.level);
    }
}

/// A request that was refused; it may come again after so many seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Seconds.
    pub(crate) retry_after: u64,
}

/// Priority and fairness of one server.
pub(crate) struct FlowControl {
    /// All seats.
    total: u64,
    /// Most lists at a time in a level.
    abreast: usize,
    epoch: Instant,
    hasher: RandomState,
    configured: RwLock<Arc<Configured>>,
    /// The objects that `configured` was made of.
    given: Mutex<Given>,
    /// When seats were divided last, in milliseconds after `epoch`.
    divided: AtomicU64,
}

impl FlowControl {
    /// A server with `total` seats and `abreast` lists at a time in a level, under the two mandatory schemas until it
    /// is told of others.
    pub(crate) fn new(total: u64, abreast: usize) -> Self {
        let flow = Self {
            total,
            abreast,
            epoch: Instant::now(),
            hasher: RandomState::new(),
            configured: RwLock::default(),
            given: Mutex::default(),
            divided: AtomicU64::new(0),
        };
        flow.configure(Given::default());
        flow
    }

    /// Takes the seats that a request needs, waiting for them up to `patience`. What it needs is asked once its level
    /// is known, with the most that the level allows.
    ///
    /// Cancel-safe: who goes away while waiting leaves nothing behind.
    pub(crate) async fn admit(
        &self,
        asked: Asked<'_>,
        patience: Duration,
        work: impl FnOnce(u64) -> Work,
    ) -> (Marks, Result<Seat, Refused>) {
        let configured = self.configured.read().clone();
        let schemas = &configured.schemas;
        let schema = schemas.iter().find(|s| rules::matches(&s.spec, &asked));
        let for_all = || schemas.iter().find(|s| s.name == configure::CATCH_ALL);
        let Some(schema) = schema.or_else(for_all) else {
            unreachable!("the mandatory schemas are always there");
        };
        let view = &configured.levels[schema.level];
        let marks = Marks { schema: schema.uid.clone(), level: view.uid.clone() };
        let distinguisher = match schema.by {
            Distinguisher::User => asked.user.name.as_str(),
            Distinguisher::Namespace => asked.info.namespace,
            Distinguisher::Nothing => "",
        };
        let flow = if view.queued() { self.hasher.hash_one((&schema.name, distinguisher)) } else { 0 };
        let (level, counted, work) = (&view.level, &schema.counted, work(view.widest));
        self.keep_divided();
        let comer = Comer { texts: Texts::new(&asked, &schema.name, distinguisher), work, flow };
        let seat = level::take(level, counted, comer, patience.min(LONGEST_WAIT)).await;
        let watch = asked.info.verb == "watch";
        (marks, seat.map(|seat| seat.of(watch)).map_err(|_| Refused { retry_after: level.retry_after() }))
    }

    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Divides the seats anew when a period is over. Seats move only while requests come, so nothing has to tick.
    fn keep_divided(&self) {
        let now = u64::try_from(self.now().as_millis()).unwrap_or(u64::MAX);
        let before = self.divided.load(Ordering::Relaxed);
        let period = u64::try_from(PERIOD.as_millis()).unwrap_or(u64::MAX);
        let passed = now.saturating_sub(before);
        if passed < period
            || self.divided.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            return;
        }
        let configured = self.configured.read().clone();
        if configured.levels.iter().any(|view| view.leaving && view.level.is_idle()) {
            let given = self.given.lock().clone();
            self.configure(given);
        } else {
            configured.divide(i32::try_from(passed / period).unwrap_or(i32::MAX));
        }
    }
}

#[cfg(test)]
#[path = "flow/tests.rs"]
mod tests;
