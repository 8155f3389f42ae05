//! What a measurement cost: processor time of the server, of this program, and of everything else that ran.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::process::{Usage, machine_busy, total, usage};

/// A measurement of processor time under way.
pub struct Meter {
    server: Vec<u32>,
    start: Instant,
    before: Reading,
}

#[derive(Clone, Copy)]
struct Reading {
    server: Usage,
    generator: f64,
    machine: f64,
}

impl Reading {
    fn now(server: &[u32]) -> Self {
        let generator = usage(std::process::id()).cpu_seconds;
        Self { server: total(server), generator, machine: machine_busy() }
    }
}

/// Processor time used between start and stop of a [`Meter`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Whether the server's processes were known.
    pub known: bool,
    /// Length in seconds.
    pub seconds: f64,
    /// Seconds of processor time of the server's processes.
    pub server: f64,
    /// Of this program.
    pub generator: f64,
    /// Of everything else on the machine, the kernel's own threads included.
    pub other: f64,
    /// Memory of the server at the end, in MB.
    pub server_rss_mb: f64,
}

impl Meter {
    /// Begins to measure; `server` are the server's processes, if they are of this machine.
    pub fn start(server: &[u32]) -> Self {
        Self { server: server.to_vec(), start: Instant::now(), before: Reading::now(server) }
    }

    /// Ends it.
    pub fn stop(self) -> Cost {
        let (now, before) = (Reading::now(&self.server), self.before);
        let server = now.server.cpu_seconds - before.server.cpu_seconds;
        let generator = now.generator - before.generator;
        Cost {
            known: !self.server.is_empty(),
            seconds: self.start.elapsed().as_secs_f64(),
            server,
            generator,
            other: (now.machine - before.machine - server - generator).max(0.0),
            server_rss_mb: now.server.rss_mb,
        }
    }
}

impl Cost {
    /// As figures of a summary over `operations`.
    pub fn figures(&self, operations: u64) -> BTreeMap<String, f64> {
        let mut figures = BTreeMap::new();
        let mut put = |name: &str, value: f64| {
            figures.insert(name.to_owned(), (value * 10_000.0).round() / 10_000.0);
        };
        let seconds = self.seconds.max(1e-9);
        put("generator_cores", self.generator / seconds);
        put("other_cores", self.other / seconds);
        if self.known {
            put("server_cores", self.server / seconds);
            put("server_rss_mb", self.server_rss_mb);
            if operations > 0 {
                put("server_cpu_s_per_1000", self.server / operations as f64 * 1000.0);
            }
        }
        figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_split_by_who_used_it() {
        let meter = Meter::start(&[]);
        let start = Instant::now();
        let mut n = 0u64;
        while start.elapsed().as_millis() < 60 {
            n = std::hint::black_box(n + 1);
        }
        let cost = meter.stop();
        assert!(cost.generator > 0.0 && cost.seconds >= 0.06, "{cost:?}");
        let figures = cost.figures(10);
        assert!(figures["generator_cores"] > 0.0 && !figures.contains_key("server_cores"));
        let known = Cost { known: true, seconds: 2.0, server: 3.0, ..Cost::default() }.figures(6000);
        assert_eq!((known["server_cores"], known["server_cpu_s_per_1000"]), (1.5, 0.5));
    }
}
