//! Records Events about objects, aggregated and rate-limited as upstream's recorder does.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::time::Duration;

use coracle_meta::{Object, Reason, Status};
use coracle_stdx::Clock;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::debug;

use crate::api::{Api, Client};
use crate::transport::PatchKind;

/// Events waiting to be written; more are dropped.
const QUEUE: usize = 1000;
/// Objects, messages and sources remembered for aggregation.
const MEMORY: usize = 4096;
/// From the how-many-th different message of a reason on they are combined.
const COMBINE_AFTER: usize = 10;
/// Similar events further apart than this (seconds) are not combined.
const COMBINE_WITHIN: i64 = 600;
/// Events an object may cause at once; then one per [`REFILL_SECONDS`].
const BURST: f64 = 25.0;
const REFILL_SECONDS: f64 = 300.0;
const TRIES: u32 = 12;

/// `type` of an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// Information only.
    Normal,
    /// Something may be wrong.
    Warning,
}

impl EventType {
    /// The text of the `type` field.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

struct Occurrence {
    object: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
    annotations: Option<BTreeMap<String, String>>,
    at: Timestamp,
}

/// Records Events under one component's name. Clones share the queue and the memory.
///
/// Guarantees: recording never blocks and never fails; when more than 1000 Events wait, or one object
/// causes too many (25 at once, then one in five minutes), they are dropped. Events that differ in nothing
/// but time are counted in one Event object; more than ten of the same object and reason within ten minutes
/// are combined into one.
#[derive(Clone)]
pub struct EventRecorder {
    sender: mpsc::Sender<Occurrence>,
    clock: Clock,
}

impl fmt::Debug for EventRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventRecorder")
    }
}

/// A reference to an object, as Events and other objects bear it.
pub fn reference(object: &dyn Object) -> ObjectReference {
    let gvk = object.gvk();
    let meta = object.meta();
    ObjectReference {
        api_version: Some(gvk.api_version()),
        kind: Some(gvk.kind),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

impl EventRecorder {
    /// A recorder for `component`. Call within a tokio runtime: starts the task that writes.
    pub fn new(client: Client, component: &str, clock: Clock) -> Self {
        Self::with_host(client, component, "", clock)
    }

    /// The same, with `source.host` set, as kubelets do.
    pub fn with_host(client: Client, component: &str, host: &str, clock: Clock) -> Self {
        let (sender, mut receiver) = mpsc::channel(QUEUE);
        let mut sink = Sink { api: client.api(), correlator: Correlator::new(component, host) };
        tokio::spawn(async move {
            while let Some(occurrence) = receiver.recv().await {
                sink.write(occurrence).await;
            }
        });
        Self { sender, clock }
    }

    /// Records something about an object.
    pub fn event(&self, object: &dyn Object, kind: EventType, reason: &str, message: impl Into<String>) {
        self.event_about(reference(object), kind, reason, message);
    }

    /// Records something about a part of an object, e.g. `spec.containers{web}`.
    pub fn event_at(
        &self,
        object: &dyn Object,
        field_path: &str,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let about = ObjectReference { field_path: Some(field_path.to_owned()), ..reference(object) };
        self.event_about(about, kind, reason, message);
    }

    /// Records something about whatever the reference names.
    pub fn event_about(
        &self,
        object: ObjectReference,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.record(object, None, kind, reason, message.into());
    }

    /// Records something about an object, with annotations for programs. They are those of the first of Events that are
    /// counted as one.
    pub fn annotated_event(
        &self,
        object: &dyn Object,
        annotations: BTreeMap<String, String>,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let annotations = Some(annotations).filter(|all| !all.is_empty());
        self.record(reference(object), annotations, kind, reason, message.into());
    }

    fn record(
        &self,
        object: ObjectReference,
        annotations: Option<BTreeMap<String, String>>,
        kind: EventType,
        reason: &str,
        message: String,
    ) {
        let (reason, at) = (reason.to_owned(), self.clock.now());
        let occurrence = Occurrence { object, kind, reason, message, annotations, at };
        if self.sender.try_send(occurrence).is_err() {
            debug!("event dropped: too many wait");
        }
    }
}

struct Sink {
    api: Api<Event>,
    correlator: Correlator,
}

impl Sink {
    async fn write(&mut self, occurrence: Occurrence) {
        let Some(correlated) = self.correlator.correlate(occurrence) else { return };
        let mut wait = Duration::from_millis(200);
        for _ in 0..TRIES {
            match self.send(&correlated).await {
                Ok(stored) => return self.correlator.written(correlated.key, &stored),
                // The server refuses it for good, e.g. because the namespace is going away.
                Err(status) if status.code() < 500 && status.code() != 429 => {
                    return debug!(%status, "event refused");
                }
                Err(_) => tokio::time::sleep(wait).await,
            }
            wait = (wait * 2).min(Duration::from_secs(10));
        }
    }

    async fn send(&self, correlated: &Correlated) -> Result<Arc<Event>, Status> {
        let event = &correlated.event;
        let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
        if event.count > Some(1) {
            let patch = json!({
                "count": event.count, "message": event.message, "lastTimestamp": event.last_timestamp,
            });
            let name = event.metadata.name.as_deref().unwrap_or("");
            match self.api.patch(namespace, name, PatchKind::Strategic, patch).await {
                Err(status) if status.reason() == Reason::NotFound => {}
                outcome => return outcome,
            }
        }
        self.api.create(namespace, event.clone()).await
    }
}

/// What makes events the same, as a digest: thousands are remembered.
type Digest = (u64, u64);

struct Correlated {
    key: Digest,
    event: Event,
}

/// The first Event written for a key.
struct Written {
    name: String,
    first: Option<Time>,
    count: i32,
}

struct Similar {
    messages: HashSet<Digest>,
    last: Timestamp,
}

struct Bucket {
    tokens: f64,
    filled: Timestamp,
}

/// A map that forgets its oldest entries.
struct Memory<K, V> {
    entries: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K: Clone + Eq + std::hash::Hash, V> Memory<K, V> {
    fn new() -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new() }
    }
    fn entry(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        if !self.entries.contains_key(&key) {
            self.order.push_back(key.clone());
            if self.order.len() > MEMORY
                && let Some(oldest) = self.order.pop_front()
            {
                self.entries.remove(&oldest);
            }
        }
        self.entries.entry(key).or_insert_with(make)
    }
}

/// Decides what becomes of an occurrence: dropped, counted with an earlier one, combined, or written.
struct Correlator {
    source: EventSource,
    written: Memory<Digest, Written>,
    similar: Memory<Digest, Similar>,
    buckets: Memory<Digest, Bucket>,
    hashers: [RandomState; 2],
}

/// What tells objects apart.
fn identity(object: &ObjectReference) -> [&str; 6] {
    [&object.kind, &object.namespace, &object.name, &object.field_path, &object.uid, &object.api_version]
        .map(|field| field.as_deref().unwrap_or(""))
}

impl Correlator {
    fn new(component: &str, host: &str) -> Self {
        let host = (!host.is_empty()).then(|| host.to_owned());
        Self {
            source: EventSource { component: Some(component.to_owned()), host },
            written: Memory::new(),
            similar: Memory::new(),
            buckets: Memory::new(),
            hashers: [RandomState::new(), RandomState::new()],
        }
    }

    fn digest(&self, of: impl Hash) -> Digest {
        let [one, other] = &self.hashers;
        (one.hash_one(&of), other.hash_one(&of))
    }

    fn has_budget(&mut self, object: Digest, now: Timestamp) -> bool {
        let bucket = self.buckets.entry(object, || Bucket { tokens: BURST, filled: now });
        let passed = now.duration_since(bucket.filled).as_secs_f64().max(0.0);
        bucket.tokens = (bucket.tokens + passed / REFILL_SECONDS).min(BURST);
        bucket.filled = now;
        let allowed = bucket.tokens >= 1.0;
        if allowed {
            bucket.tokens -= 1.0;
        }
        allowed
    }

    fn correlate(&mut self, occurrence: Occurrence) -> Option<Correlated> {
        let Occurrence { object, kind, reason, mut message, annotations, at } = occurrence;
        let id = identity(&object);
        let alike = self.digest((id, kind, &reason));
        let same = self.digest((alike, &message));
        let id = self.digest(id);
        let similar = self.similar.entry(alike, || Similar { messages: HashSet::new(), last: at });
        if at.duration_since(similar.last).as_secs() > COMBINE_WITHIN {
            similar.messages.clear();
        }
        similar.last = at;
        if similar.messages.len() < COMBINE_AFTER {
            similar.messages.insert(same);
        }
        let combined = similar.messages.len() >= COMBINE_AFTER;
        let key = if combined { alike } else { same };
        if combined {
            message = format!("(combined from similar events): {message}");
        }
        if !self.has_budget(id, at) {
            return None;
        }
        let event = self.build(key, Occurrence { object, kind, reason, message, annotations, at });
        Some(Correlated { key, event })
    }

    fn build(&mut self, key: Digest, occurrence: Occurrence) -> Event {
        let Occurrence { object, kind, reason, message, annotations, at } = occurrence;
        let name = object.name.clone().unwrap_or_default();
        let namespace = object.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let written = self.written.entry(key, || Written { name: String::new(), first: None, count: 0 });
        let fresh = format!("{name}.{:x}", at.as_nanosecond());
        let known = written.count > 0;
        Event {
            metadata: ObjectMeta {
                name: Some(if known { written.name.clone() } else { fresh }),
                namespace: Some(namespace),
                annotations,
                ..ObjectMeta::default()
            },
            involved_object: object,
            reason: Some(reason),
            message: Some(message),
            type_: Some(kind.as_str().to_owned()),
            first_timestamp: written.first.clone().or(Some(Time(at))),
            last_timestamp: Some(Time(at)),
            count: Some(written.count + 1),
            source: Some(self.source.clone()),
            reporting_component: self.source.component.clone(),
            reporting_instance: Some(self.source.host.clone().unwrap_or_default()),
            ..Event::default()
        }
    }

    fn written(&mut self, key: Digest, stored: &Event) {
        let written = self.written.entry(key, || Written { name: String::new(), first: None, count: 0 });
        written.name = stored.metadata.name.clone().unwrap_or_default();
        written.first.clone_from(&stored.first_timestamp);
        written.count = stored.count.unwrap_or(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occurrence(message: &str, second: i64) -> Occurrence {
        Occurrence {
            object: ObjectReference { name: Some("web".into()), ..ObjectReference::default() },
            kind: EventType::Normal,
            reason: "Pulled".into(),
            message: message.into(),
            annotations: Some([("starved_resource".to_owned(), "memory".to_owned())].into()),
            at: Timestamp::from_second(second).expect("in range"),
        }
    }

    #[test]
    fn the_same_event_is_counted_under_its_first_name() {
        let mut c = Correlator::new("kubelet", "n1");
        let first = c.correlate(occurrence("m", 1)).expect("written");
        assert_eq!(first.event.metadata.annotations, occurrence("m", 1).annotations);
        c.written(first.key, &first.event);
        let second = c.correlate(occurrence("m", 5)).expect("written");
        assert_eq!(second.event.count, Some(2));
        assert_eq!(second.event.metadata.name, first.event.metadata.name);
        assert_eq!(second.event.first_timestamp, first.event.first_timestamp);
        assert_ne!(second.event.last_timestamp, first.event.last_timestamp);
    }

    #[test]
    fn many_similar_events_are_combined_and_a_flood_is_dropped() {
        let mut c = Correlator::new("kubelet", "n1");
        let messages: Vec<Option<String>> = (0..40)
            .map(|i| c.correlate(occurrence(&format!("m{i}"), 1)).and_then(|e| e.event.message))
            .collect();
        assert_eq!(messages[0].as_deref(), Some("m0"));
        assert_eq!(messages[12].as_deref(), Some("(combined from similar events): m12"));
        assert_eq!(messages[30], None);
    }
}
