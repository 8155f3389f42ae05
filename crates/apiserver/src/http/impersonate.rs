//! Requests made in the name of another user: what the headers say, and whether that is allowed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use coracle_auth::impersonation::{Mode, Step, modes};
use coracle_auth::{Attributes, Decision, SYSTEM_MASTERS, UserInfo};
use coracle_meta::Status;
use http::HeaderMap;
use http::header::HeaderName;
use parking_lot::Mutex;

use super::metrics::families;
use super::query::decode_path;
use crate::server::Server;

const USER: HeaderName = HeaderName::from_static("impersonate-user");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const UID: HeaderName = HeaderName::from_static("impersonate-uid");
/// What the names of headers with extra attributes begin with.
const EXTRA: &str = "impersonate-extra-";
/// So many users' ways are remembered.
const REMEMBERED: usize = 10_000;

/// By which way each user was allowed last: it is tried first, and a refusal speaks of it.
#[derive(Default)]
pub(crate) struct LastModes(Mutex<HashMap<String, &'static str>>);

/// Who a request is made by, and by which constraint ("" for none).
pub(crate) struct Acting {
    pub(crate) user: Arc<UserInfo>,
    pub(crate) constraint: &'static str,
}

/// The user that `asked`, whose user is the one who sends it, acts as; `None` when it acts as nobody else.
///
/// # Errors
/// 400 for headers without a user, 403 when it may not.
pub(crate) async fn acting(
    server: &Server,
    headers: &HeaderMap,
    asked: impl FnOnce() -> Attributes,
) -> Result<Option<Acting>, Status> {
    let Some(wanted) = wanted_user(headers)? else { return Ok(None) };
    let asked = asked();
    let started = Instant::now();
    let mut ways = modes(&wanted, &asked);
    let last = server.last_modes.0.lock().get(&asked.user.name).copied();
    ways.sort_by_key(|way| Some(way.name) != last);
    let mut refusal = None;
    for way in ways {
        match is_open(server, &way).await {
            Ok(()) => {
                note(server, way.name, true, started);
                let mut remembered = server.last_modes.0.lock();
                if remembered.len() >= REMEMBERED {
                    remembered.clear();
                }
                remembered.insert(asked.user.name, way.name);
                return Ok(Some(Acting { user: Arc::new(way.user), constraint: way.constraint }));
            }
            Err(status) => refusal = refusal.or(Some(status)),
        }
    }
    note(server, "", false, started);
    Err(refusal.unwrap_or_else(|| Status::internal("all impersonation modes failed")))
}

/// Counts how an attempt went.
fn note(server: &Server, mode: &'static str, allowed: bool, started: Instant) {
    let labels = || vec![outcome(allowed).into(), mode.into()];
    server.metrics.counts.add(&families::IMPERSONATIONS, labels());
    server.metrics.counts.took(&families::IMPERSONATION, labels(), started.elapsed());
}

fn outcome(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "denied" }
}

async fn is_open(server: &Server, way: &Mode) -> Result<(), Status> {
    for step in &way.steps {
        match step {
            Step::Allowed(what) => allowed(server, way.name, what).await?,
            Step::Never(what, why) => return Err(what.forbidden(why)),
            Step::AllOrEach(all, each) => {
                if allowed(server, way.name, all).await.is_err() {
                    for what in each {
                        allowed(server, way.name, what).await?;
                    }
                }
            }
        }
    }
    Ok(())
}

async fn allowed(server: &Server, mode: &'static str, what: &Attributes) -> Result<(), Status> {
    let started = Instant::now();
    let decision = match what.user.in_group(SYSTEM_MASTERS) {
        true => Ok(()),
        false => match server.decide(what).await {
            (Decision::Allow, _) => Ok(()),
            (_, reason) => Err(what.forbidden(&reason)),
        },
    };
    let labels = || vec![outcome(decision.is_ok()).into(), mode.into()];
    server.metrics.counts.add(&families::IMPERSONATION_CHECKS, labels());
    server.metrics.counts.took(&families::IMPERSONATION_CHECK, labels(), started.elapsed());
    decision
}

/// The user that the headers name; none when they name none.
fn wanted_user(headers: &HeaderMap) -> Result<Option<UserInfo>, Status> {
    let text = |name: &HeaderName| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let mut wanted = UserInfo { name: text(&USER), uid: text(&UID), ..UserInfo::default() };
    let groups = headers.get_all(GROUP).iter().filter_map(|v| v.to_str().ok());
    wanted.groups = groups.map(str::to_owned).collect();
    for (name, value) in headers {
        let Some(key) = name.as_str().strip_prefix(EXTRA) else { continue };
        let key = decode_path(key).map_or_else(|| key.to_owned(), |key| key.into_owned());
        wanted.extra.entry(key).or_default().extend(value.to_str().ok().map(str::to_owned));
    }
    if !wanted.name.is_empty() {
        return Ok(Some(wanted));
    }
    if wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty() {
        return Ok(None);
    }
    let list = |list: &[String]| {
        let quoted: Vec<String> = list.iter().map(|text| format!("{text:?}")).collect();
        format!("[]string{{{}}}", quoted.join(", "))
    };
    let groups = if wanted.groups.is_empty() { "[]string(nil)".to_owned() } else { list(&wanted.groups) };
    let extra: Vec<String> =
        wanted.extra.iter().map(|(key, values)| format!("{key:?}:{}", list(values))).collect();
    let extra = if extra.is_empty() { "(nil)".to_owned() } else { format!("{{{}}}", extra.join(", ")) };
    Err(Status::bad_request(format!(
        "requested &user.DefaultInfo{{Name:\"\", UID:{:?}, Groups:{groups}, \
         Extra:map[string][]string{extra}}} without impersonating a user name",
        wanted.uid
    )))
}
