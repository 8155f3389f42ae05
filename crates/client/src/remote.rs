//! Requests to an API server elsewhere, by HTTP/2 and JSON.

mod account;
mod fetched;
mod route;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use coracle_meta::{DynamicObject, GroupVersionKind, Status};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Mutex;
use tracing::debug;

pub use account::{AccountToken, Credential};
pub use fetched::Fetched;
use route::{Route, route, watch_path};

use crate::transport::{
    ApiRequest, ApiResponse, ListOptions, ResourceId, Transport, WatchEvent, WatchStream,
};

/// How often the other side is asked whether it still is there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(15);
/// Most bytes on their way to us: of one answer, of all.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// How often a request is sent again that the server has no room for.
const TRIES: u32 = 10;
/// Watches end after a time between this and twice as much (seconds), and are then resumed.
const WATCH_SECONDS: u64 = 300;

/// A byte stream.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Opens a connection that speaks HTTP/2, or says why not.
pub type Dial = Arc<dyn Fn() -> BoxFuture<'static, Result<Box<dyn Io>, String>> + Send + Sync>;

/// An API server elsewhere. All identities share its two connections: one for watches, one for what is answered at
/// once.
pub struct RemoteServer {
    /// Scheme and authority, and what stands before all paths.
    url: String,
    dial: Dial,
    watches: Slot,
    requests: Slot,
}

impl fmt::Debug for RemoteServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteServer({})", self.url)
    }
}

type Sender = SendRequest<Full<Bytes>>;

/// A connection, opened when it is needed.
#[derive(Default)]
struct Slot(Mutex<Option<Sender>>);

impl Slot {
    async fn sender(&self, dial: &Dial) -> Result<Sender, Status> {
        let mut kept = self.0.lock().await;
        if let Some(sender) = kept.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let io = dial().await.map_err(Status::unavailable)?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|e| Status::unavailable(e.to_string()))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "connection to the API server ended");
            }
        });
        *kept = Some(sender.clone());
        Ok(sender)
    }
}

impl RemoteServer {
    /// The server at `url` (`https://host:port`, with a path if all its paths begin with one).
    pub fn new(url: &str, dial: Dial) -> Arc<Self> {
        let url = url.trim_end_matches('/').to_owned();
        Arc::new(Self { url, dial, watches: Slot::default(), requests: Slot::default() })
    }

    /// A transport that calls itself `agent` (before the first `/` stands the field manager of its writes).
    pub fn transport(self: &Arc<Self>, agent: &str, credential: Credential) -> Arc<dyn Transport> {
        let agent = HeaderValue::from_str(agent).unwrap_or_else(|_| HeaderValue::from_static("coracle"));
        Arc::new(Remote { server: self.clone(), agent, credential })
    }
}

/// Requests of one identity.
struct Remote {
    server: Arc<RemoteServer>,
    agent: HeaderValue,
    credential: Credential,
}

impl Remote {
    async fn message(&self, route: &Route) -> Result<Request<Full<Bytes>>, Status> {
        let mut request = Request::builder()
            .method(route.method.clone())
            .uri(format!("{}{}", self.server.url, route.path))
            .header(USER_AGENT, &self.agent)
            .header(ACCEPT, "application/json");
        if !route.content_type.is_empty() {
            request = request.header(CONTENT_TYPE, route.content_type);
        }
        if let Some(token) = self.credential.bearer().await? {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(Status::internal)?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        request.body(Full::new(route.body.clone())).map_err(Status::internal)
    }

    /// Sends it; once more, on another connection, if it cannot have been done.
    async fn send(&self, slot: &Slot, route: &Route) -> Result<Response<Incoming>, Status> {
        let mut last = None;
        for _ in 0..2 {
            let message = self.message(route).await?;
            let mut sender = slot.sender(&self.server.dial).await?;
            match sender.send_request(message).await {
                Ok(answer) => return Ok(answer),
                Err(e) => {
                    let unsent = e.is_canceled() || e.is_closed() || route.method == Method::GET;
                    last = Some(Status::unavailable(e.to_string()));
                    if !unsent {
                        break;
                    }
                }
            }
        }
        Err(last.unwrap_or_else(|| Status::unavailable("not sent")))
    }

    /// Sends it until the server has room for it.
    async fn exchange(&self, slot: &Slot, route: &Route) -> Result<Response<Incoming>, Status> {
        for tried in 0.. {
            let answer = self.send(slot, route).await?;
            if answer.status().is_success() {
                return Ok(answer);
            }
            let (code, after) = (answer.status().as_u16(), answer.headers().get(RETRY_AFTER).cloned());
            let after = after.and_then(|after| after.to_str().ok()?.parse().ok()).map(Duration::from_secs);
            let status = failure(code, &whole(answer).await?);
            match after {
                Some(wait) if (code == 429 || code >= 500) && tried < TRIES && is_turned_away(&status) => {
                    tokio::time::sleep(wait).await;
                }
                _ => {
                    if code == 401 {
                        self.credential.refused().await;
                    }
                    return Err(status);
                }
            }
        }
        Err(Status::unavailable("not sent"))
    }

    async fn get(&self, path: String) -> Result<Value, Status> {
        let route = Route { method: Method::GET, path, content_type: "", body: Bytes::new() };
        let answer = self.exchange(&self.server.requests, &route).await?;
        serde_json::from_slice(&whole(answer).await?).map_err(Status::internal)
    }
}

/// Whether a refusal is about room, not about what was asked: an eviction that a budget forbids is for the caller.
fn is_turned_away(status: &Status) -> bool {
    let causes = status.details().and_then(|d| d.get("causes")).and_then(Value::as_array);
    !causes.into_iter().flatten().any(|cause| cause.get("reason").is_some_and(|r| r == "DisruptionBudget"))
}

async fn whole(answer: Response<Incoming>) -> Result<Bytes, Status> {
    let body = answer.into_body().collect().await.map_err(|e| Status::unavailable(e.to_string()))?;
    Ok(body.to_bytes())
}

/// What a server said that did not do as it was asked.
fn failure(code: u16, body: &[u8]) -> Status {
    let said = serde_json::from_slice(body).ok().and_then(|body| Status::from_value(&body));
    said.unwrap_or_else(|| {
        let text = String::from_utf8_lossy(body).trim().to_owned();
        let reason = coracle_meta::Reason::Unknown;
        Status::new(code, reason, if text.is_empty() { format!("HTTP status {code}") } else { text }, None)
    })
}

/// The parts of a list that are not its objects.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct List {
    #[serde(default)]
    api_version: String,
    kind: String,
    #[serde(default)]
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta,
    #[serde(default)]
    items: Option<Vec<Value>>,
}

/// `kind`, wherever it stands.
#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    kind: String,
}

fn response(body: Bytes) -> Result<ApiResponse, Status> {
    let named: Named = serde_json::from_slice(&body).map_err(Status::internal)?;
    if named.kind == "Status" {
        return serde_json::from_slice(&body).map(ApiResponse::Status).map_err(Status::internal);
    }
    Ok(ApiResponse::Object(Arc::new(Fetched::new(body)?)))
}

fn list(body: &Bytes) -> Result<ApiResponse, Status> {
    let list: List = serde_json::from_slice(body).map_err(Status::internal)?;
    let (group, version) = list.api_version.split_once('/').unwrap_or(("", &list.api_version));
    let gvk = GroupVersionKind::new(group, version, list.kind.strip_suffix("List").unwrap_or(&list.kind));
    let mut items: Vec<Arc<dyn coracle_meta::Object>> = Vec::new();
    for item in list.items.unwrap_or_default() {
        items.push(Arc::new(DynamicObject::from_value(gvk.clone(), item).map_err(Status::internal)?));
    }
    Ok(ApiResponse::List {
        items,
        resource_version: list.metadata.resource_version.unwrap_or_default(),
        continue_token: list.metadata.continue_.unwrap_or_default(),
    })
}

/// Type and object of an event. Servers write them in this order; then the object's text is taken as it stands.
fn parts(line: &Bytes) -> Option<(&[u8], Bytes)> {
    let rest = line.strip_prefix(b"{\"type\":\"".as_slice())?;
    let (kind, rest) = rest.split_at(rest.iter().position(|b| *b == b'"')?);
    let object = rest.strip_prefix(b"\",\"object\":".as_slice())?.strip_suffix(b"}")?;
    Some((kind, line.slice_ref(object)))
}

/// The same of an event that is written in another way.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Value,
}

/// An event of a watch, from its line.
fn event(line: &Bytes) -> Result<WatchEvent, Status> {
    if let Some((kind, object)) = parts(line) {
        return event_of(kind, object);
    }
    let event: Event = serde_json::from_slice(line)
        .map_err(|e| Status::internal(format!("the server's watch event cannot be read: {e}")))?;
    event_of(event.kind.as_bytes(), event.object.to_string().into())
}

fn event_of(kind: &[u8], object: Bytes) -> Result<WatchEvent, Status> {
    match kind {
        b"ADDED" => Ok(WatchEvent::Added(Arc::new(Fetched::new(object)?))),
        b"MODIFIED" => Ok(WatchEvent::Modified(Arc::new(Fetched::new(object)?))),
        b"DELETED" => Ok(WatchEvent::Deleted(Arc::new(Fetched::new(object)?))),
        b"BOOKMARK" => {
            let value: Value = serde_json::from_slice(&object).map_err(Status::internal)?;
            let meta = &value["metadata"];
            let end = &meta["annotations"]["k8s.io/initial-events-end"];
            Ok(WatchEvent::Bookmark {
                resource_version: meta["resourceVersion"].as_str().unwrap_or("").to_owned(),
                initial_events_end: end == "true",
            })
        }
        _ => Err(failure(500, &object)),
    }
}

/// The lines of a stream of bytes.
struct Lines {
    body: http_body_util::BodyDataStream<Incoming>,
    read: BytesMut,
    /// How much of `read` holds no end of a line.
    searched: usize,
}

impl Lines {
    async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        loop {
            if let Some(at) = self.read[self.searched..].iter().position(|b| *b == b'\n') {
                let mut line = self.read.split_to(self.searched + at + 1);
                line.truncate(line.trim_ascii_end().len());
                self.searched = 0;
                return Some(Ok(line.freeze()));
            }
            self.searched = self.read.len();
            match self.body.next().await? {
                Ok(more) => self.read.extend_from_slice(&more),
                Err(e) => return Some(Err(Status::unavailable(e.to_string()))),
            }
        }
    }
}

#[async_trait]
impl Transport for Remote {
    async fn request(&self, request: ApiRequest) -> Result<ApiResponse, Status> {
        let is_list = matches!(request.verb, crate::transport::Verb::List(_));
        let answer = self.exchange(&self.server.requests, &route(request)).await?;
        let body = whole(answer).await?;
        if is_list { list(&body) } else { response(body) }
    }

    async fn watch(
        &self,
        resource: ResourceId,
        namespace: &str,
        options: ListOptions,
        send_initial_events: bool,
    ) -> Result<WatchStream, Status> {
        let seconds = WATCH_SECONDS + rand::random_range(0..WATCH_SECONDS);
        let path = watch_path(resource, namespace, &options, send_initial_events, seconds);
        let route = Route { method: Method::GET, path, content_type: "", body: Bytes::new() };
        let answer = self.exchange(&self.server.watches, &route).await?;
        let body = answer.into_body().into_data_stream();
        let lines = Lines { body, read: BytesMut::new(), searched: 0 };
        let events = futures::stream::unfold(lines, |mut lines| async move {
            let event = match lines.next().await? {
                Ok(line) => event(&line),
                Err(status) => Err(status),
            };
            Some((event, lines))
        });
        Ok(events.boxed())
    }

    async fn read(&self, path: &str, query: &str) -> Result<Value, Status> {
        self.get(if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<WatchEvent, Status> {
        event(&Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn events_of_all_types_are_read() {
        let pod = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"p","resourceVersion":"7"}}"#;
        let Ok(WatchEvent::Modified(object)) = line(&format!(r#"{{"type":"MODIFIED","object":{pod}}}"#))
        else {
            panic!("no change")
        };
        assert_eq!((object.name(), object.gvk().kind.as_str()), ("p", "Pod"));
        let mark = r#"{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"9",
            "annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
        let Ok(WatchEvent::Bookmark { resource_version, initial_events_end }) = line(mark) else {
            panic!("no bookmark")
        };
        assert_eq!((resource_version.as_str(), initial_events_end), ("9", true));
        let gone =
            r#"{"type":"ERROR","object":{"kind":"Status","reason":"Expired","code":410,"message":"old"}}"#;
        assert_eq!(line(gone).expect_err("a failure").code(), 410);
        assert_eq!(line("{}").expect_err("no event").code(), 500);
    }

    #[test]
    fn failures_keep_what_the_server_said_also_where_that_is_no_status() {
        let said = br#"{"kind":"Status","code":409,"reason":"Conflict","message":"stale"}"#;
        assert_eq!(failure(409, said).reason(), coracle_meta::Reason::Conflict);
        let text = failure(502, b"bad gateway\n");
        assert_eq!((text.code(), text.message()), (502, "bad gateway"));
        let budget = br#"{"kind":"Status","code":429,"reason":"TooManyRequests","message":"no",
            "details":{"causes":[{"reason":"DisruptionBudget"}]}}"#;
        assert!(!is_turned_away(&failure(429, budget)));
        assert!(is_turned_away(&failure(429, b"busy")));
    }

    #[test]
    fn lists_name_the_kind_of_their_items() {
        let body =
            br#"{"kind":"ConfigMapList","apiVersion":"v1","metadata":{"resourceVersion":"3","continue":"c"},
            "items":[{"metadata":{"name":"a"}}]}"#;
        let Ok(ApiResponse::List { items, continue_token, .. }) = list(&Bytes::from_static(body)) else {
            panic!("no list")
        };
        assert_eq!(
            (items[0].gvk().kind.as_str(), items[0].name(), continue_token.as_str()),
            ("ConfigMap", "a", "c")
        );
    }
}
