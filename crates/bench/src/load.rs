//! The closed loop: so many connections, each sending its next request when the last is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::http::{Call, Connection, message};
use crate::stats::Samples;
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

struct Shared<M> {
    phase: AtomicU8,
    sequence: AtomicU64,
    left: AtomicI64,
    make: M,
}

/// Runs the loop; `make` yields the request of each sequence number (distinct, also during warm-up).
/// Returns the samples and how long the measured part took.
///
/// # Errors
/// The server cannot be reached at all.
pub async fn closed_loop<M>(
    target: &Arc<Target>,
    args: &LoadArgs,
    make: M,
) -> Result<(Samples, Duration), Failure>
where
    M: Fn(u64) -> Call + Send + Sync + 'static,
{
    let left = args.count.map_or(i64::MAX, |n| i64::try_from(n).unwrap_or(i64::MAX));
    let shared = Arc::new(Shared {
        phase: AtomicU8::new(WARMUP),
        sequence: AtomicU64::new(0),
        left: AtomicI64::new(left),
        make,
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
    let start = Instant::now();
    shared.phase.store(MEASURE, Ordering::Release);
    if args.count.is_none() {
        tokio::time::sleep(Duration::from_secs_f64(args.duration.max(0.0))).await;
        shared.phase.store(DONE, Ordering::Release);
    }
    let mut samples = Samples::default();
    while let Some(done) = workers.join_next().await {
        samples.merge(done.map_err(|e| format!("a worker failed: {e}"))?);
    }
    Ok((samples, start.elapsed()))
}

async fn worker<M>(shared: Arc<Shared<M>>, mut connection: Connection, target: Arc<Target>) -> Samples
where
    M: Fn(u64) -> Call,
{
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
        let call = (shared.make)(shared.sequence.fetch_add(1, Ordering::Relaxed));
        let start = Instant::now();
        let result = connection.send(call, false).await;
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

/// Sends `n` requests over so many connections as fast as they go; all must succeed (or exist already).
///
/// # Errors
/// The first failure.
pub async fn all<M>(target: &Arc<Target>, connections: usize, n: u64, make: M) -> Result<(), Failure>
where
    M: Fn(u64) -> Call + Send + Sync + 'static,
{
    let make = Arc::new(make);
    let next = Arc::new(AtomicU64::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..connections.clamp(1, usize::try_from(n).unwrap_or(usize::MAX).max(1)) {
        let (make, next, target) = (make.clone(), next.clone(), target.clone());
        workers.spawn(async move {
            let mut connection = Connection::open(&target).await?;
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= n {
                    return Ok::<(), Failure>(());
                }
                connection.ensure(make(i)).await?;
            }
        });
    }
    while let Some(done) = workers.join_next().await {
        done.map_err(|e| format!("a worker failed: {e}"))??;
    }
    Ok(())
}
