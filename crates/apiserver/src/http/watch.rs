//! Watch responses: frames as they happen, until the timeout or until the watcher is cut off.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use coracle_meta::{Status, go};
use futures::StreamExt;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use rand::Rng;
use serde_json::{Value, json};

use super::body::Body;
use super::gather::Writes;
use super::negotiate::{Format, Shape, Wanted};
use super::respond::{Answer, json_bytes};
use super::table;
use crate::cache::{CacheEntry, EventKind};
use crate::codec;
use crate::flow::{Leash, Seat};
use crate::protobuf;
use crate::registry::Resource;
use crate::server::Server;
use crate::verbs::watch::{Next, Watching};

/// Frames are joined up to this size.
const BATCH: usize = 64 * 1024;
/// Shortest watch when the client names no timeout; the longest is twice that.
const MIN_SECONDS: u64 = 1800;

/// What a watch response is made of.
struct Frames {
    server: Arc<Server>,
    resource: Arc<Resource>,
    watching: Watching,
    /// The seats of the request, until it has begun.
    seat: Option<Leash>,
    wanted: Wanted,
    include_object: String,
    deadline: tokio::time::Instant,
    first: bool,
    done: bool,
    writes: Writes,
}

/// A watch that begins.
pub(crate) struct Begin {
    /// What it delivers.
    pub(crate) watching: Watching,
    /// The seats it holds until the objects there were at its beginning are on their way.
    pub(crate) seat: Option<Seat>,
}

/// The response of a started watch.
pub(crate) fn response(
    server: &Arc<Server>,
    resource: &Arc<Resource>,
    begin: Begin,
    wanted: Wanted,
    include_object: String,
    timeout_seconds: Option<u64>,
) -> Response<Body> {
    let seconds = timeout_seconds.unwrap_or_else(|| rand::rng().random_range(MIN_SECONDS..MIN_SECONDS * 2));
    let Begin { watching, seat } = begin;
    // A reader that is slow from the beginning keeps them no longer than another request may take.
    let seat = seat.filter(|_| !watching.has_begun()).map(|seat| seat.for_at_most(server.limits.timeout));
    let frames = Frames {
        server: server.clone(),
        resource: resource.clone(),
        watching,
        seat,
        wanted,
        include_object,
        deadline: tokio::time::Instant::now() + Duration::from_secs(seconds),
        first: true,
        done: false,
        writes: Writes::default(),
    };
    let stream = futures::stream::unfold(frames, |mut frames| async move {
        loop {
            let bytes = frames.batch().await?;
            // Empty when nothing of it is selected.
            if !bytes.is_empty() {
                return Some((Ok(bytes), frames));
            }
        }
    });
    let mut response = json_bytes(StatusCode::OK, Bytes::new());
    if wanted.format == Format::Protobuf {
        let mime = HeaderValue::from_static("application/vnd.kubernetes.protobuf;stream=watch");
        response.headers_mut().insert(CONTENT_TYPE, mime);
    }
    *response.body_mut() = Body::Stream(stream.boxed());
    response
}

/// The frame of an object given as JSON.
fn framed(format: Format, kind: &str, object: &Value) -> Bytes {
    if format == Format::Protobuf {
        let object = protobuf::encode(object).unwrap_or_default();
        return protobuf::watch_frame(kind, &object).into();
    }
    crate::cache::frame(kind, &go::encode(object, go::Style::Compact))
}

/// The protobuf frame of an object given encoded.
fn binary(kind: EventKind, entry: &CacheEntry) -> Option<Bytes> {
    let value: Value = serde_json::from_slice(&entry.encoded()).ok()?;
    Some(framed(Format::Protobuf, kind.as_str(), &value))
}

impl Frames {
    /// The next frames; `None` at the end.
    async fn batch(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        if self.seat.is_some() && self.watching.has_begun() {
            self.seat = None;
        }
        let next = tokio::select! {
            biased;
            next = self.watching.next() => next,
            () = tokio::time::sleep_until(self.deadline) => return None,
        };
        self.gather(&next).await;
        let first = self.frame(next).await?;
        self.server.crowd.note(&mut self.writes);
        let Some(mut more) = self.watching.ready() else { return Some(first) };
        let mut out = BytesMut::with_capacity(first.len() * 4);
        out.put_slice(&first);
        loop {
            match self.frame(more).await {
                Some(bytes) => out.put_slice(&bytes),
                None => break,
            }
            if out.len() >= BATCH {
                self.writes.hurry();
                break;
            }
            match self.watching.ready() {
                Some(next) => more = next,
                None => break,
            }
        }
        Some(out.freeze())
    }

    /// Waits for company, if `next` is a live event and frames left a moment ago.
    async fn gather(&self, next: &Next) {
        if matches!(next, Next::Event(..))
            && let Some(until) = self.server.crowd.until(&self.writes)
        {
            tokio::time::sleep_until(self.deadline.min(until)).await;
        }
    }

    /// One frame; `None` when the watch is over.
    async fn frame(&mut self, next: Next) -> Option<Bytes> {
        // Frames of the stored version are made once for all watchers.
        let plain = self.wanted.shape == Shape::Object && self.resource.view().is_none();
        let format = self.wanted.format;
        let foreign = |entry: &CacheEntry| {
            self.resource.custom().is_some() && !std::ptr::eq(entry.def, self.resource.def)
        };
        let next = match self.watching.matched(&self.resource, next).await {
            Ok(Some(next)) => next,
            Ok(None) => return Some(Bytes::new()),
            Err(status) => return Some(self.failed(&status)),
        };
        let made = match next {
            Next::Initial(entry) if foreign(&entry) => self.converted(EventKind::Added, entry).await,
            Next::Event(kind, event) if event.entry(kind).is_some_and(|e| foreign(e)) => {
                let entry = event.entry(kind)?.clone();
                self.converted(kind, entry).await
            }
            Next::Initial(entry) if plain && format == Format::Protobuf => {
                return binary(EventKind::Added, &entry);
            }
            Next::Event(kind, event) if plain && format == Format::Protobuf => {
                return Some(event.binary_frame(kind, binary));
            }
            Next::Initial(entry) if plain => {
                return Some(crate::cache::frame(EventKind::Added.as_str(), &entry.encoded()));
            }
            Next::Event(kind, event) if plain => return Some(event.frame(kind)),
            Next::Bookmark(revision, end) => return Some(self.bookmark(revision, end)),
            Next::Initial(entry) => self.shaped(EventKind::Added, &entry),
            Next::Event(kind, event) => self.shaped(kind, event.entry(kind)?),
            Next::End => return None,
        };
        match made {
            Ok(bytes) => Some(bytes),
            Err(status) => Some(self.failed(&status)),
        }
    }

    /// The last frame of a watch that cannot go on.
    fn failed(&mut self, status: &Status) -> Bytes {
        self.done = true;
        framed(self.wanted.format, "ERROR", &status.to_value())
    }

    /// The frame of a custom resource that is stored in another version.
    async fn converted(&mut self, kind: EventKind, entry: Arc<CacheEntry>) -> Result<Bytes, Status> {
        let entry = self.server.in_version(&self.resource, entry).await?;
        self.shaped(kind, &entry)
    }

    fn shaped(&mut self, kind: EventKind, entry: &Arc<CacheEntry>) -> Result<Bytes, Status> {
        let entry = &self.server.fields.show(&self.resource, entry)?;
        let value = match self.wanted.shape {
            Shape::Object if self.wanted.format == Format::Protobuf => {
                return binary(kind, entry).ok_or_else(|| Status::internal("object does not encode"));
            }
            Shape::Object => return Ok(crate::cache::frame(kind.as_str(), &entry.encoded())),
            Shape::Table => {
                let answer = Answer {
                    server: &self.server,
                    wanted: self.wanted,
                    include_object: &self.include_object,
                    gzip: false,
                    trail: None,
                };
                table::of_event(&answer, &self.resource, entry, std::mem::take(&mut self.first))?
            }
            _ => table::partial(entry, self.wanted.version)?,
        };
        Ok(framed(self.wanted.format, kind.as_str(), &value))
    }

    fn bookmark(&self, revision: u64, end: bool) -> Bytes {
        let object = match self.wanted.shape {
            Shape::Table => table::empty(self.wanted.version, revision),
            shape => {
                let (kind, version) = match shape {
                    Shape::Object => (self.resource.def.kind, codec::api_version(self.resource.def)),
                    _ => ("PartialObjectMetadata", format!("meta.k8s.io/{}", self.wanted.version)),
                };
                let mut meta = json!({ "resourceVersion": revision.to_string() });
                if end {
                    meta["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
                }
                let mut object = json!({ "kind": kind, "apiVersion": version, "metadata": meta });
                if shape == Shape::Object {
                    self.server.fields.complete(self.resource.def, &mut object);
                }
                object
            }
        };
        framed(self.wanted.format, "BOOKMARK", &object)
    }
}
