//! Watch fan-out: one write, many watchers; from the write's start until each watcher has it.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::{Namespace, Outcome, resource_version};
use crate::cost::Meter;
use crate::http::{Call, Connection, NUMBER};
use crate::load::all;
use crate::objects::{config_map, run_id};
use crate::stats::Samples;
use crate::target::{Failure, Target};
use crate::wire::find;

/// How long a watcher waits for its next event.
const PATIENCE: Duration = Duration::from_secs(30);

/// Options of `watch-fanout`.
#[derive(clap::Args, Clone, Debug)]
pub struct FanoutArgs {
    /// Watches, each on a connection of its own.
    #[arg(long, default_value_t = 200)]
    pub watchers: usize,
    /// Objects to create.
    #[arg(long, default_value_t = 500)]
    pub count: usize,
    /// Connections that create.
    #[arg(long, default_value_t = 8)]
    pub writers: usize,
    /// Bytes of data in each object.
    #[arg(long, default_value_t = 512)]
    pub size: usize,
}

/// Runs it; `count` of the summary is deliveries.
///
/// # Errors
/// The server cannot be reached or refuses to prepare.
pub async fn fanout(target: &Arc<Target>, args: &FanoutArgs) -> Result<Outcome, Failure> {
    let namespace = Namespace::make(target, &run_id()).await?;
    let path = namespace.path("configmaps");
    let mut connection = Connection::open(target).await?;
    let version = resource_version(&mut connection, &path).await?;
    let sent: Arc<Vec<OnceLock<Instant>>> = Arc::new((0..args.count).map(|_| OnceLock::new()).collect());
    let mut watchers = JoinSet::new();
    for _ in 0..args.watchers {
        let watch = Connection::open(target).await?;
        let watch = watch.watch(&format!("{path}?watch=true&resourceVersion={version}")).await?;
        watchers.spawn(receive(watch, sent.clone()));
    }
    let (start, meter) = (Instant::now(), Meter::start(&target.pids));
    let stamps = sent.clone();
    let count = u64::try_from(args.count).unwrap_or(u64::MAX);
    let call = Call::post(path, config_map(&format!("w-{NUMBER}"), args.size).to_string());
    let stamp = move |i| {
        if let Some(stamp) = usize::try_from(i).ok().and_then(|i: usize| stamps.get(i)) {
            let _ = stamp.set(Instant::now());
        }
    };
    all(target, args.writers, count, &call, stamp).await?;
    let written = start.elapsed();
    let mut samples = Samples::default();
    let mut end = start;
    while let Some(done) = watchers.join_next().await {
        let (received, last) = done.map_err(|e| format!("a watcher failed: {e}"))?;
        samples.merge(received);
        end = end.max(last);
    }
    let mut summary = samples.summary("watch-fanout", end.duration_since(start), meter.stop());
    summary.extra.insert("watchers".into(), args.watchers as f64);
    summary.extra.insert("writes_per_second".into(), (args.count as f64 / written.as_secs_f64()).round());
    Ok(namespace.outcome(summary, &["configmaps"]))
}

async fn receive(mut watch: crate::http::Lines, sent: Arc<Vec<OnceLock<Instant>>>) -> (Samples, Instant) {
    let mut samples = Samples::default();
    let mut last = Instant::now();
    let mut seen = 0;
    while seen < sent.len() {
        let line = match tokio::time::timeout(PATIENCE, watch.next()).await {
            Ok(Some(line)) => line,
            ended => {
                let why = if ended.is_ok() { "the server ended a watch" } else { "events did not come" };
                samples.error(why);
                break;
            }
        };
        let length = line.len() as u64;
        let Some(i) = sequence(line) else { continue };
        last = Instant::now();
        if let Some(start) = sent.get(i).and_then(OnceLock::get) {
            samples.ok(last.duration_since(*start), length);
            seen += 1;
        }
    }
    (samples, last)
}

/// The number in the object's name, found without decoding the event.
fn sequence(line: &[u8]) -> Option<usize> {
    let found = &line[find(line, b"\"w-")? + 3..];
    let digits: Vec<u8> = found.iter().copied().take_while(u8::is_ascii_digit).collect();
    std::str::from_utf8(&digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_is_read_from_the_name() {
        let line = br#"{"type":"ADDED","object":{"metadata":{"name":"w-00000417","namespace":"n"}}}"#;
        assert_eq!(sequence(line), Some(417));
        assert_eq!(sequence(br#"{"a": {"name": "x"}, "metadata": {"name": "w-00000003"}}"#), Some(3));
        assert_eq!(sequence(br#"{"type":"BOOKMARK","object":{"metadata":{}}}"#), None);
    }
}
