//! The closed loop: so many connections, each sending its next request when the last is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::cost::Meter;
use crate::http::{Call, Connection, Prepared, accepted, message};
use crate::stats::{Samples, Summary};
use crate::target::{Failure, Target};

/// Options of every scenario with a closed loop.
#[derive(clap::Args, Clone, Debug)]
pub struct LoadArgs {
    /// Connections, each with one request under way.
    #[arg(long, default_value_t = 64)]
    pub connections: usize,
    /// Seconds before measuring begins.
    #[arg(long, default_value_t = 1.0)]
    pub warmup: f64,
    /// Seconds to measure; ignored with --count.
    #[arg(long, default_value_t = 10.0)]
    pub duration: f64,
    /// Operations to measure.
    #[arg(long)]
    pub count: Option<u64>,
}

const WARMUP: u8 = 0;
const MEASURE: u8 = 1;
const DONE: u8 = 2;
/// A connection that fails so often in a row gives up.
const MAX_FAILURES: u32 = 20;

struct Shared {
    phase: AtomicU8,
    sequence: AtomicU64,
    left: AtomicI64,
    prepared: Prepared,
}

/// Sends the prepared request again and again, with distinct numbers (also during warm-up).
///
/// # Errors
/// The server cannot be reached at all.
pub async fn closed_loop(
    target: &Arc<Target>,
    args: &LoadArgs,
    scenario: &str,
    call: &Call,
) -> Result<Summary, Failure> {
    let left = args.count.map_or(i64::MAX, |n| i64::try_from(n).unwrap_or(i64::MAX));
    let shared = Arc::new(Shared {
        phase: AtomicU8::new(WARMUP),
        sequence: AtomicU64::new(0),
        left: AtomicI64::new(left),
        prepared: Prepared::new(target, call),
    });
    let mut connections = Vec::new();
    for _ in 0..args.connections.max(1) {
        connections.push(Connection::open(target).await?);
    }
    let mut workers = JoinSet::new();
    for connection in connections {
        workers.spawn(worker(shared.clone(), connection, target.clone()));
    }
    tokio::time::sleep(Duration::from_secs_f64(args.warmup.max(0.0))).await;
    let (start, meter) = (Instant::now(), Meter::start(&target.pids));
    shared.phase.store(MEASURE, Ordering::Release);
    if args.count.is_none() {
        tokio::time::sleep(Duration::from_secs_f64(args.duration.max(0.0))).await;
        shared.phase.store(DONE, Ordering::Release);
    }
    let mut samples = Samples::default();
    while let Some(done) = workers.join_next().await {
        samples.merge(done.map_err(|e| format!("a worker failed: {e}"))?);
    }
    Ok(samples.summary(scenario, start.elapsed(), meter.stop()))
}

async fn worker(shared: Arc<Shared>, mut connection: Connection, target: Arc<Target>) -> Samples {
    let mut samples = Samples::default();
    let mut failures = 0;
    loop {
        let phase = shared.phase.load(Ordering::Acquire);
        if phase == DONE || failures > MAX_FAILURES {
            break;
        }
        if phase == MEASURE && shared.left.fetch_sub(1, Ordering::AcqRel) <= 0 {
            break;
        }
        let number = shared.sequence.fetch_add(1, Ordering::Relaxed);
        let start = Instant::now();
        let result = connection.fire(&shared.prepared, number).await;
        let took = start.elapsed();
        let error = match result {
            Ok(reply) if reply.status < 300 => {
                if phase == MEASURE {
                    samples.ok(took, reply.length);
                }
                failures = 0;
                continue;
            }
            Ok(reply) => {
                let text: String = message(&reply.body).chars().take(120).collect();
                format!("{} {text}", reply.status)
            }
            Err(e) => {
                failures += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
                if let Ok(again) = Connection::open(&target).await {
                    connection = again;
                }
                e
            }
        };
        if phase == MEASURE {
            samples.error(error);
        }
    }
    samples
}

/// Sends the prepared request with the numbers 0 to `n` over so many connections as fast as it goes; each must
/// succeed (or exist already). `sent` is called before each.
///
/// # Errors
/// The first failure.
pub async fn all(
    target: &Arc<Target>,
    connections: usize,
    n: u64,
    call: &Call,
    sent: impl Fn(u64) + Send + Sync + 'static,
) -> Result<(), Failure> {
    let what = Arc::new(format!("{} {}", call.method, call.path));
    let prepared = Arc::new(Prepared::new(target, call));
    let sent = Arc::new(sent);
    let next = Arc::new(AtomicU64::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..connections.clamp(1, usize::try_from(n).unwrap_or(usize::MAX).max(1)) {
        let (prepared, next, target) = (prepared.clone(), next.clone(), target.clone());
        let (sent, what) = (sent.clone(), what.clone());
        workers.spawn(async move {
            let mut connection = Connection::open(&target).await?;
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= n {
                    return Ok::<(), Failure>(());
                }
                sent(i);
                let reply = connection.fire(&prepared, i).await?;
                accepted(&reply).map_err(|e| format!("{what}: {e}"))?;
            }
        });
    }
    while let Some(done) = workers.join_next().await {
        done.map_err(|e| format!("a worker failed: {e}"))??;
    }
    Ok(())
}
