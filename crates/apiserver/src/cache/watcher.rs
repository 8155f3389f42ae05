//! Watchers: what they select, and the events they get.

use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use coracle_meta::selector::{FieldSelector, LabelSelector};
use tokio::sync::mpsc;

use super::entry::CacheEntry;

/// Events a watcher may lag behind before it is cut off.
pub(super) const BUFFER: usize = 8192;

/// The type of a watch event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventKind {
    /// The object began to exist or to match.
    Added,
    /// The object changed.
    Modified,
    /// The object ceased to exist or to match.
    Deleted,
}

impl EventKind {
    /// What a change is to someone who selected the object before it or does now; `None` when neither.
    pub(crate) fn of(before: bool, now: bool) -> Option<Self> {
        match (before, now) {
            (false, true) => Some(Self::Added),
            (true, true) => Some(Self::Modified),
            (true, false) => Some(Self::Deleted),
            (false, false) => None,
        }
    }

    /// The `type` field.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// A change of one object.
#[derive(Debug)]
pub(crate) struct Event {
    /// Revision of the change.
    pub(crate) revision: u64,
    /// The new object; `None` for a deletion.
    pub(super) new: Option<Arc<CacheEntry>>,
    /// The object before.
    pub(super) old: Option<Arc<CacheEntry>>,
    /// The object before, with the revision of the change: what deletions carry.
    gone: OnceLock<Arc<CacheEntry>>,
    frames: [OnceLock<Bytes>; 3],
    /// The frames in protobuf; few clients' kinds are watched so.
    binary: OnceLock<Box<[OnceLock<Bytes>; 3]>>,
    /// When the cache saw it.
    pub(super) seen: tokio::time::Instant,
}

impl Event {
    pub(super) fn new(revision: u64, new: Option<Arc<CacheEntry>>, old: Option<Arc<CacheEntry>>) -> Self {
        let seen = tokio::time::Instant::now();
        Self {
            revision,
            new,
            old,
            gone: OnceLock::new(),
            frames: Default::default(),
            binary: OnceLock::new(),
            seen,
        }
    }

    /// Bytes of the object that the change replaced.
    pub(super) fn replaced(&self) -> usize {
        self.old.as_ref().map_or(0, |old| old.size())
    }

    /// Forgets what it has encoded: who still asks has it encoded again.
    pub(super) fn cool(&mut self) {
        self.gone = OnceLock::new();
        self.frames = Default::default();
        self.binary = OnceLock::new();
    }

    /// Whether a frame of it is kept.
    #[cfg(test)]
    pub(super) fn is_encoded(&self) -> bool {
        self.frames.iter().any(|frame| frame.get().is_some())
    }

    /// The object that an event of this kind carries.
    pub(crate) fn entry(&self, kind: EventKind) -> Option<&Arc<CacheEntry>> {
        match kind {
            EventKind::Added | EventKind::Modified => self.new.as_ref(),
            EventKind::Deleted => {
                let old = self.old.as_ref()?;
                Some(self.gone.get_or_init(|| {
                    let gone = Arc::new(old.at_revision(self.revision));
                    old.let_go();
                    gone
                }))
            }
        }
    }

    /// The object after the change.
    pub(crate) fn after(&self) -> Option<&Arc<CacheEntry>> {
        self.new.as_ref()
    }

    /// The object before the change.
    pub(crate) fn before(&self) -> Option<&Arc<CacheEntry>> {
        self.old.as_ref()
    }

    /// The JSON frame with its newline; encoded once for all watchers.
    pub(crate) fn frame(&self, kind: EventKind) -> Bytes {
        let encode = || self.entry(kind).map(|e| frame(kind.as_str(), &e.encoded())).unwrap_or_default();
        self.frames[kind as usize].get_or_init(encode).clone()
    }

    /// As [`Event::frame`], in the protobuf encoding that `encode` makes; also kept.
    pub(crate) fn binary_frame(
        &self,
        kind: EventKind,
        encode: impl FnOnce(EventKind, &CacheEntry) -> Option<Bytes>,
    ) -> Bytes {
        let frames = self.binary.get_or_init(Box::default);
        let encode = || self.entry(kind).and_then(|e| encode(kind, e)).unwrap_or_default();
        frames[kind as usize].get_or_init(encode).clone()
    }

    fn kind_for(&self, filter: &Filter) -> Option<EventKind> {
        if !filter.covers(self.new.as_ref().or(self.old.as_ref())?) {
            return None;
        }
        let now = self.new.as_ref().is_some_and(|e| filter.selects(e));
        let before = self.old.as_ref().is_some_and(|e| filter.selects(e));
        EventKind::of(before, now)
    }
}

/// A watch frame around an encoded object.
pub(crate) fn frame(kind: &str, object: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(object.len() + 40);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
    out.freeze()
}

/// What a list or watch selects.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Key prefix, or the whole key when `single`.
    pub(crate) key: String,
    /// `key` is that of one object.
    pub(crate) single: bool,
    /// Label selector, if any.
    pub(crate) labels: Option<LabelSelector>,
    /// Field selector, if any.
    pub(crate) fields: Option<FieldSelector>,
}

impl Filter {
    /// Whether the object lies in the range watched.
    fn covers(&self, entry: &CacheEntry) -> bool {
        if self.single { *entry.key == *self.key } else { entry.key.starts_with(&self.key) }
    }

    /// Whether there are no selectors.
    pub(crate) fn is_plain(&self) -> bool {
        self.labels.is_none() && self.fields.is_none()
    }

    /// Whether the selectors match.
    pub(crate) fn selects(&self, entry: &CacheEntry) -> bool {
        if self.is_plain() {
            return true;
        }
        if let Some(fields) = &self.fields
            && !fields.matches(|path| field(entry, path))
        {
            return false;
        }
        self.labels.as_ref().is_none_or(|labels| labels.matches_by(|name| entry.facts().label(name)))
    }
}

fn field(entry: &CacheEntry, path: &str) -> Option<String> {
    let (namespace, name) = entry.namespace_name();
    match path {
        "metadata.name" => Some(name.to_owned()),
        "metadata.namespace" => Some(namespace.to_owned()),
        _ => entry.facts().field(path).map(str::to_owned),
    }
}

/// A registered watcher, on the cache's side.
pub(super) struct Watcher {
    filter: Filter,
    /// The reader knows everything up to here, also what the cache has yet to apply.
    after: u64,
    tx: mpsc::Sender<(EventKind, Arc<Event>)>,
}

impl Watcher {
    pub(super) fn new(filter: Filter, after: u64) -> (Self, mpsc::Receiver<(EventKind, Arc<Event>)>) {
        let (tx, rx) = mpsc::channel(BUFFER);
        (Self { filter, after, tx }, rx)
    }

    /// Offers an event; false when the watcher is gone or too slow and must be removed.
    pub(super) fn offer(&self, event: &Arc<Event>) -> bool {
        match self.wants(event) {
            Some(kind) => self.tx.try_send((kind, event.clone())).is_ok(),
            None => !self.tx.is_closed(),
        }
    }

    /// Whether an event of `key` has to be shown to it. One that selects by fields looks at few objects.
    pub(super) fn looks_at(&self, key: &str) -> bool {
        let Filter { key: range, single, fields, .. } = &self.filter;
        let covers = if *single { range == key } else { key.starts_with(range.as_str()) };
        covers && (*single || fields.is_none())
    }

    pub(super) fn wants(&self, event: &Event) -> Option<EventKind> {
        if event.revision <= self.after { None } else { event.kind_for(&self.filter) }
    }
}

/// A running watch, on the reader's side.
pub(crate) struct Subscription {
    /// Present objects, to be sent as added first (empty unless asked for).
    pub(crate) initial: Vec<Arc<CacheEntry>>,
    /// Events after the asked revision that had happened before the subscription.
    pub(crate) backlog: Vec<(EventKind, Arc<Event>)>,
    /// Live events; ends when the watcher was too slow.
    pub(crate) live: mpsc::Receiver<(EventKind, Arc<Event>)>,
    /// Revision that `initial` and `backlog` bring the reader to.
    pub(crate) revision: u64,
}
