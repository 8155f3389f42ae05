//! The requests of a level that wait or run, for people who look at them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::queues::Work;
use super::rules::Asked;

/// Number of a request's texts.
const TEXTS: usize = 10;

/// What a request asks for, as tables name it: one allocation for all of it, as every request has one.
#[derive(Debug)]
pub(super) struct Texts {
    all: Box<str>,
    ends: [u32; TEXTS],
}

impl Texts {
    /// Of a request under a schema, in a flow of it.
    pub(super) fn new(asked: &Asked<'_>, schema: &str, distinguisher: &str) -> Self {
        let Asked { user, info, path } = asked;
        let parts = [
            schema,
            distinguisher,
            &user.name,
            &info.verb,
            path,
            info.namespace,
            info.name,
            if info.is_resource { info.group } else { "" },
            if info.is_resource { info.version } else { "" },
            info.resource,
        ];
        // The subresource is what comes behind the last of them.
        let length = parts.iter().map(|part| part.len()).sum::<usize>() + info.subresource.len();
        let mut all = String::with_capacity(length);
        let ends = parts.map(|part| {
            all.push_str(part);
            u32::try_from(all.len()).unwrap_or(u32::MAX)
        });
        all.push_str(info.subresource);
        Self { all: all.into(), ends }
    }

    fn part(&self, at: usize) -> &str {
        let end = |at: usize| self.ends.get(at).map_or(self.all.len(), |end| *end as usize);
        let begin = at.checked_sub(1).map_or(0, end);
        self.all.get(begin..end(at)).unwrap_or("")
    }

    /// The names of the schema and of the flow.
    pub(super) fn flow(&self) -> [String; 2] {
        [0, 1].map(|at| self.part(at).to_owned())
    }

    /// User, verb, path, namespace, name, version with its group, resource, subresource.
    pub(super) fn details(&self) -> [String; 8] {
        let version = match (self.part(7), self.part(8)) {
            ("", version) => version.to_owned(),
            (group, version) => format!("{group}/{version}"),
        };
        let own = |at: usize| self.part(at).to_owned();
        [own(2), own(3), own(4), own(5), own(6), version, own(9), own(10)]
    }
}

/// A request that waits or runs.
#[derive(Debug)]
pub(super) struct Request {
    /// What it is.
    pub(super) texts: Texts,
    /// What it costs.
    pub(super) work: Work,
    /// The queue it came from, or waits in.
    pub(super) queue: Option<usize>,
    /// When it came.
    pub(super) arrived: Duration,
    /// When it began to run.
    pub(super) started: Option<Duration>,
}

/// Requests in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Present {
    next: u64,
    pub(super) requests: BTreeMap<u64, Request>,
}

impl Present {
    /// Adds one; it is removed by the number that comes back.
    pub(super) fn add(&mut self, request: Request) -> u64 {
        self.next += 1;
        self.requests.insert(self.next, request);
        self.next
    }
}
