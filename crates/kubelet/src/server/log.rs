//! `/containerLogs`: finds the instance that is meant and streams its log.

use std::sync::Arc;

use coracle_cri::v1::{ContainerState, ContainerStatus};
use futures::stream;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::{Body, Refusal};
use crate::context::Context;
use crate::logs::{self, Chunk, Follow, LogOptions, Streams};
use crate::names;
use crate::pod::after;
use crate::worker::Handle;
use coracle_cri::remote::Query;

/// Chunks under way to a client.
const WINDOW: usize = 16;

fn options(query: &Query, now: Timestamp) -> Result<LogOptions, Refusal> {
    let bad = |name: &str| (StatusCode::BAD_REQUEST, format!("invalid {name}"));
    let number = |name: &str| match query.get(name) {
        None => Ok(None),
        Some(text) => text.parse::<u64>().map(Some).map_err(|_| bad(name)),
    };
    let since = match (query.get("sinceTime"), number("sinceSeconds")?) {
        (Some(text), _) => Some(text.parse().map_err(|_| bad("sinceTime"))?),
        (None, Some(seconds)) => Some(after(now, -i64::try_from(seconds).unwrap_or(i64::MAX))),
        (None, None) => None,
    };
    let tail = number("tailLines")?;
    Ok(LogOptions {
        follow: query.is(&["follow"]),
        tail: tail.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        since,
        timestamps: query.is(&["timestamps"]),
        limit: number("limitBytes")?,
        streams: match query.get("stream") {
            Some("Stdout") => Streams::Stdout,
            Some("Stderr") => Streams::Stderr,
            _ => Streams::All,
        },
    })
}

/// The instance whose log is meant.
fn instance(handle: &Handle, container: &str, previous: bool) -> Result<ContainerStatus, Refusal> {
    let pod = &handle.pod;
    let name = names::name(pod);
    if crate::pod::container(pod, container).is_none() {
        let message = format!("container {container:?} not found in pod {name:?}");
        return Err((StatusCode::NOT_FOUND, message));
    }
    let bad = |message: String| Err((StatusCode::BAD_REQUEST, message));
    let seen = handle.observed.borrow().clone();
    let ran = |c: &&ContainerStatus| {
        c.metadata.name == container && matches!(c.state, ContainerState::Running | ContainerState::Exited)
    };
    let status = pod.status.as_ref();
    let lists = [
        status.and_then(|s| s.container_statuses.as_ref()),
        status.and_then(|s| s.init_container_statuses.as_ref()),
    ];
    let shown = lists.into_iter().flatten().flatten().find(|c| c.name == container);
    let waiting = shown.and_then(|c| c.state.as_ref()).and_then(|s| s.waiting.as_ref());
    let mut instances = seen.containers.iter().filter(ran);
    if previous {
        let newest = instances.next();
        let held = newest.filter(|c| c.state == ContainerState::Exited && waiting.is_some());
        let before = held.or_else(|| instances.find(|c| c.state == ContainerState::Exited));
        return match before {
            Some(c) => Ok(c.clone()),
            None => bad(format!("previous terminated container {container:?} in pod {name:?} not found")),
        };
    }
    if let Some(c) = instances.next() {
        return Ok(c.clone());
    }
    let reason = waiting.and_then(|w| w.reason.as_deref()).unwrap_or("ContainerCreating");
    let why = match reason {
        "ErrImagePull" => "image can't be pulled",
        "ImagePullBackOff" => "trying and failing to pull image",
        other => other,
    };
    bad(format!("container {container:?} in pod {name:?} is waiting to start: {why}"))
}

/// Streams a container's log.
pub fn logs(
    cx: &Arc<Context>,
    handle: &Handle,
    container: &str,
    query: &Query,
) -> Result<Response<Body>, Refusal> {
    let options = options(query, cx.clock.now())?;
    let instance = instance(handle, container, query.is(&["previous"]))?;
    let folder = crate::start::log_directory(cx, &handle.pod).join(container);
    let path = folder.join(format!("{}.log", instance.metadata.attempt));
    let (sender, receiver) = mpsc::channel::<Chunk>(WINDOW);
    let job = Follow { path, options, watcher: cx.files.clone() };
    let (state, mut changes) = (handle.observed.clone(), handle.observed.clone());
    changes.mark_unchanged();
    let changes = Arc::new(tokio::sync::Mutex::new(changes));
    let id = instance.id;
    let alive = move || {
        state.borrow().by_id(&id).is_some_and(|c| c.state == ContainerState::Running)
            && state.has_changed().is_ok()
    };
    let changed = move || {
        let changes = changes.clone();
        // An error means that the worker has ended: `alive` tells.
        async move { drop(changes.lock().await.changed().await) }
    };
    tokio::spawn(async move {
        if let Err(e) = logs::follow(job, sender, alive, changed).await {
            tracing::debug!(error = %e, "log not read");
        }
    });
    let chunks = stream::unfold(receiver, |mut receiver| async move {
        let chunk = receiver.recv().await?;
        Some((Ok(Frame::data(chunk)), receiver))
    });
    let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(chunks)));
    let kind = http::HeaderValue::from_static("text/plain");
    response.headers_mut().insert("content-type", kind);
    Ok(response)
}
