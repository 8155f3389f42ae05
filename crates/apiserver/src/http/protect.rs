//! What protects the server and its other clients from a request: the time it may take, and the seats it has to take.

use std::sync::atomic::Ordering;
use std::time::Duration;

use coracle_auth::UserInfo;
use coracle_meta::{Reason, Status};
use http::header::RETRY_AFTER;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;

use super::body::{BLOCK, Body};
use super::info::Info;
use super::query::Query;
use super::respond;
use crate::authn::Connection;
use crate::flow::{Asked, Marks, Place, Protection, Seat, Work, work};
use crate::server::Server;

/// Bytes a microsecond at which the reader of a list has to read for its seats to be kept to the end.
const SLOWEST: u64 = 20;
/// Time for which the seats of a list are kept in any case, if it takes that long.
const LEAST_KEPT: Duration = Duration::from_millis(20);

/// What a request holds while it runs.
pub(super) enum Held<'a> {
    /// Nothing: it is a connection, which lasts.
    Nothing,
    /// Seats of a priority level.
    Seat(Seat, Marks),
    /// A place below the plain limits.
    Place(#[expect(dead_code, reason = "held, then dropped")] Place<'a>),
}

/// Whether a request is a connection or a stream that lasts as long as its client wants.
pub(super) fn lasts(info: &Info<'_>) -> bool {
    info.verb == "watch"
        || info.is_resource && matches!(info.subresource, "attach" | "exec" | "proxy" | "log" | "portforward")
}

/// What a request means for its connection.
pub(super) fn note(server: &Server, connection: &Connection, request: &Request<Incoming>, info: &Info<'_>) {
    if lasts(info) {
        connection.waited.lasts();
        if info.verb != "watch" {
            connection.patient.store(true, Ordering::Relaxed);
        }
    }
    let chance = server.limits.goaway_chance;
    if chance > 0.0 && request.version() == Version::HTTP_2 && rand::random::<f64>() < chance {
        connection.goaway.notify_one();
    }
}

/// How long a request may take: what it says, up to what the server allows; none for those that last.
///
/// # Errors
/// 400 for a `timeout` that is no duration.
pub(super) fn time_limit(
    server: &Server,
    info: &Info<'_>,
    query: &Query<'_>,
) -> Result<Option<Duration>, Status> {
    if lasts(info) {
        return Ok(None);
    }
    let most = server.limits.timeout;
    let Some(text) = query.get("timeout").filter(|text| !text.is_empty()) else { return Ok(Some(most)) };
    let nanos = coracle_cel::go_duration(text).map_err(|why| {
        let why = format!("invalid timeout specified in the request URL - time: {why}");
        Status::new(400, Reason::BadRequest, why, None)
    })?;
    let asked = Duration::from_nanos(u64::try_from(nanos).unwrap_or(0));
    Ok(Some(if asked.is_zero() { most } else { asked.min(most) }))
}

/// What a request is told that took too long.
pub(super) fn timed_out() -> Response<Body> {
    respond::status(&Status::timeout("Timeout: request did not complete within the allotted timeout"))
}

/// Lets a request in, after it has waited for its turn.
///
/// # Errors
/// 429 when there is no room for it.
pub(super) async fn enter<'a>(
    server: &'a Server,
    user: &UserInfo,
    info: &Info<'_>,
    path: &str,
    query: &Query<'_>,
    limit: Option<Duration>,
) -> Result<Held<'a>, Response<Body>> {
    match &server.protection {
        Protection::Fair(_) if lasts(info) && info.verb != "watch" => Ok(Held::Nothing),
        Protection::Fair(flow) => {
            let patience = limit.unwrap_or(server.limits.timeout) / 4;
            let asked = Asked { user, info, path };
            let (marks, seat) = flow.admit(asked, patience, |most| estimate(server, info, query, most)).await;
            match seat {
                Ok(seat) => Ok(Held::Seat(seat, marks)),
                Err(refused) => {
                    let mut response = too_many(refused.retry_after);
                    marks.put(response.headers_mut());
                    Err(response)
                }
            }
        }
        Protection::Plain(_) if lasts(info) => Ok(Held::Nothing),
        Protection::Plain(limits) => {
            let place = limits.enter(&info.verb, user.in_group(coracle_auth::SYSTEM_MASTERS));
            place.map(Held::Place).ok_or_else(|| too_many(1))
        }
    }
}

/// 429, as upstream's filter says it: a text, not a Status.
fn too_many(seconds: u64) -> Response<Body> {
    let text = "Too many requests, please try again later.\n";
    let mut response = respond::text(StatusCode::TOO_MANY_REQUESTS, text);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    response
}

/// What a request will cost.
fn estimate(server: &Server, info: &Info<'_>, query: &Query<'_>, most: u64) -> Work {
    let resource = || server.cache.registry.served(info.group, info.version, info.resource);
    match info.verb.as_str() {
        "list" => {}
        "watch" => {
            let from = query.get("resourceVersion").unwrap_or("");
            if query.send_initial_events() != Some(true) && !matches!(from, "" | "0") {
                return Work::of(1);
            }
        }
        "create" | "update" | "patch" | "delete" => {
            if (info.resource, info.subresource) == ("serviceaccounts", "token") {
                return Work::of(1);
            }
            let watchers = resource().map_or(0, |r| match info.name {
                "" => r.cache.watchers_of(&r.key_prefix(info.namespace)),
                name => r.cache.watchers_of(&r.key(info.namespace, name)),
            });
            return work::write(watchers, most);
        }
        _ => return Work::of(1),
    }
    let (objects, bytes) = resource().map_or((0, 0), |r| r.cache.size());
    let limit = query.get("limit").and_then(|text| text.parse().ok()).unwrap_or(0);
    work::list(work::Reading { single: !info.name.is_empty(), limit, objects, bytes }, most)
}

impl Held<'_> {
    /// The seats, for who holds them beyond the answer's beginning.
    pub(super) fn seat(&self) -> Option<&Seat> {
        if let Self::Seat(seat, _) = self { Some(seat) } else { None }
    }

    /// Marks the answer. One that is written block by block keeps the seats until it is written, though no longer
    /// than a reader of [`SLOWEST`] takes: else a few slow ones would keep all others out.
    pub(super) fn leave(self, response: &mut Response<Body>, limit: Option<Duration>) {
        let Self::Seat(seat, marks) = self else { return };
        marks.put(response.headers_mut());
        let bytes = match response.body() {
            Body::List(list) if list.len() > BLOCK as u64 => list.len(),
            Body::Gzip(list) => list.len(),
            _ => return,
        };
        if let Some(limit) = limit {
            let body = std::mem::replace(response.body_mut(), Body::Full(bytes::Bytes::new()));
            let seats_for = LEAST_KEPT + Duration::from_micros(bytes / SLOWEST);
            *response.body_mut() = Body::Kept(Box::new(body.keeping(seat, seats_for.min(limit), limit)));
        }
    }
}
