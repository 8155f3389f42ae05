//! `/exec`, `/attach` and `/portForward`: finds the container, then hands the request to the streams of the runtime.

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use coracle_cri::remote::{self, Job, Query, Target, Wanted, redirect};
use coracle_cri::v1::ContainerState;
use coracle_cri::{CriError, ExecRequest, Streams};

use super::{Body, Refusal};
use crate::context::Context;
use crate::names;
use crate::worker::Handle;

/// The id of the running instance of a container.
fn running(handle: &Handle, container: &str) -> Result<String, Refusal> {
    let seen = handle.observed.borrow();
    let newest = seen.newest(container).filter(|c| c.state == ContainerState::Running);
    newest
        .map(|c| c.id.clone())
        .ok_or_else(|| (StatusCode::NOT_FOUND, format!("container not found ({container:?})")))
}

fn refused(error: CriError) -> Refusal {
    (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

/// Runs a command in a container.
///
/// # Errors
/// No such container, or a request that cannot be upgraded.
pub async fn exec(
    cx: &Context,
    request: Request<Incoming>,
    handle: &Handle,
    container: &str,
    query: &Query,
) -> Result<Response<Body>, Refusal> {
    let wanted = Wanted::of(query)?;
    let command = query.all("command");
    if command.is_empty() {
        return Err((StatusCode::BAD_REQUEST, "you must specify a command".to_owned()));
    }
    let container_id = running(handle, container)?;
    let job = ExecRequest { container_id, command, tty: wanted.tty, stdin: wanted.stdin };
    serve(cx, request, wanted, Job::Exec(job)).await
}

/// Attaches to a container's main process.
///
/// # Errors
/// No such container, or a request that cannot be upgraded.
pub async fn attach(
    cx: &Context,
    request: Request<Incoming>,
    handle: &Handle,
    container: &str,
    query: &Query,
) -> Result<Response<Body>, Refusal> {
    let mut wanted = Wanted::of(query)?;
    let id = running(handle, container)?;
    // The container says whether there is a terminal, whatever the client thinks.
    let own = crate::pod::container(&handle.pod, container).is_some_and(|(c, _)| c.tty == Some(true));
    wanted.tty &= own;
    serve(cx, request, wanted, Job::Attach(id)).await
}

async fn serve(
    cx: &Context,
    request: Request<Incoming>,
    wanted: Wanted,
    job: Job,
) -> Result<Response<Body>, Refusal> {
    match &cx.streams {
        Streams::Here(streaming) => remote::serve(streaming, request, wanted, job),
        Streams::Elsewhere(urls) => {
            let url = urls.command_url(job, wanted).await.map_err(refused)?;
            redirect::pass_on(&url, request).await
        }
    }
}

/// Forwards ports of a pod for as long as the client stays.
///
/// # Errors
/// The pod has no sandbox, or the request cannot be upgraded.
pub async fn forward(
    cx: &Context,
    request: Request<Incoming>,
    handle: &Handle,
) -> Result<Response<Body>, Refusal> {
    let sandbox = {
        let seen = handle.observed.borrow();
        seen.sandboxes.first().filter(|s| s.ready).map(|s| s.id.clone())
    };
    let sandbox = sandbox.ok_or_else(|| {
        let name = names::name(&handle.pod);
        (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot find pod sandbox of pod {name:?}"))
    })?;
    match &cx.streams {
        Streams::Here(streaming) => {
            let target = Target { streaming: streaming.clone(), sandbox, pod: names::full_name(&handle.pod) };
            remote::forward(target, request)
        }
        Streams::Elsewhere(urls) => {
            let url = urls.port_forward_url(&sandbox).await.map_err(refused)?;
            redirect::pass_on(&url, request).await
        }
    }
}
