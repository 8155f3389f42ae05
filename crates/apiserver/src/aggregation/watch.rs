//! Follows APIServices, Services and endpoints, and does what is due: routes, conditions, learning.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use coracle_client::WriteOptions;
use coracle_meta::{Object, ObjectReader, Status};
use coracle_stdx::Backoff;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use http::header::HeaderMap;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, info};

use super::availability::{self, Finding};
use super::link::aggregator;
use super::{Extension, GROUP, PLURAL, api_services, learn};
use crate::cache::{Event, EventKind, Filter};
use crate::http::metrics::families;
use crate::server::Server;
use crate::verbs::{Input, Part};

const SLICES: &str = "discovery.k8s.io";
/// A server that has answered is asked again after that: no event says that a network fails.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// One that has not is asked again sooner at first.
const RETRY: (Duration, Duration) = (Duration::from_millis(5), ASK_AGAIN);
/// Longest wait for the answer to one check.
const CHECK: Duration = Duration::from_secs(5);
/// A service may have many endpoints, one of which has to answer.
const ATTEMPTS: usize = 5;

type Changes = mpsc::Receiver<(EventKind, Arc<Event>)>;

/// How a check of one APIService ended.
enum Outcome {
    /// There is nothing to do before something changes.
    Settled,
    /// The server has answered.
    Passed,
    /// It has not, or it could not be noted.
    Failed,
}

/// What is known of the checks of an APIService.
#[derive(Default)]
struct Check {
    running: bool,
    /// Something has changed since the last check began.
    dirty: bool,
    due: Option<Instant>,
}

/// Does all that is due, for ever.
pub(crate) async fn run(server: Arc<Server>) {
    let watches = (watch(&server, GROUP, PLURAL), watch(&server, "", "services"), slices(&server));
    let (Some(mut apis), Some(mut services), Some(mut slices)) = watches else {
        return std::future::pending().await;
    };
    let mut checks: HashMap<String, Check> = HashMap::new();
    let mut retry = Backoff::new(RETRY.0, RETRY.1);
    let mut running: FuturesUnordered<BoxFuture<'static, (String, Outcome)>> = FuturesUnordered::new();
    follow(&server, &mut checks);
    loop {
        start(&server, &mut checks, &mut running);
        let due = checks.values().filter(|c| !c.running).filter_map(|c| c.due).min();
        let wait = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = apis.recv() => {
                let Some((_, event)) = event else { return };
                while apis.try_recv().is_ok() {}
                drop(event);
                follow(&server, &mut checks);
            }
            event = services.recv() => {
                let Some(event) = event else { return };
                touched(&server, &event, &mut checks);
            }
            event = slices.recv() => {
                let Some(event) = event else { return };
                touched(&server, &event, &mut checks);
            }
            Some((name, outcome)) = running.next() => {
                let Some(check) = checks.get_mut(&name) else { continue };
                check.running = false;
                check.due = match outcome {
                    Outcome::Failed => Some(Instant::now() + retry.next(name)),
                    Outcome::Settled => { retry.reset(&name); None }
                    Outcome::Passed => { retry.reset(&name); Some(Instant::now() + ASK_AGAIN) }
                };
            }
            () = wait => {}
        }
    }
}

fn watch(server: &Server, group: &str, plural: &str) -> Option<Changes> {
    let resource = server.cache.registry.find(group, plural)?;
    let filter = Filter { key: resource.prefix.clone(), ..Filter::default() };
    let applied = server.cache.applied();
    Some(resource.cache.subscribe(filter, Some(applied), applied).ok()?.live)
}

fn slices(server: &Server) -> Option<Changes> {
    watch(server, SLICES, "endpointslices")
}

/// Takes over the APIServices as they are now; each is to be checked.
fn follow(server: &Server, checks: &mut HashMap<String, Check>) {
    let services = api_services(&*server.cache);
    server.aggregation.follow(services.iter().map(|s| &**s));
    let is = |name: &str| services.iter().any(|s| s.metadata.name.as_deref() == Some(name));
    checks.retain(|name, _| is(name));
    for service in &services {
        checks.entry(service.metadata.name.clone().unwrap_or_default()).or_default().dirty = true;
    }
}

/// Has the APIServices checked whose service may have changed with an object.
fn touched(server: &Server, event: &(EventKind, Arc<Event>), checks: &mut HashMap<String, Check>) {
    let Some(entry) = event.1.entry(event.0) else { return };
    let (namespace, _) = entry.namespace_name();
    for extension in server.aggregation.routes().extensions() {
        if extension.link.namespace == namespace
            && let Some(check) = checks.get_mut(&extension.name)
        {
            check.dirty = true;
        }
    }
}

/// Begins the checks that are due.
fn start(
    server: &Arc<Server>,
    checks: &mut HashMap<String, Check>,
    running: &mut FuturesUnordered<BoxFuture<'static, (String, Outcome)>>,
) {
    let now = Instant::now();
    for (name, check) in checks {
        if !check.running && (check.dirty || check.due.is_some_and(|due| due <= now)) {
            *check = Check { running: true, dirty: false, due: None };
            let (server, name) = (server.clone(), name.clone());
            running.push(Box::pin(async move {
                let outcome = check_one(&server, &name).await;
                (name, outcome)
            }));
        }
    }
}

/// Checks one APIService: what Service and endpoints say, then the server itself; then what it serves.
async fn check_one(server: &Arc<Server>, name: &str) -> Outcome {
    let found = server.cache.get(GROUP, PLURAL, "", name).map(Object::into_any_arc);
    let Some(api) = found.and_then(|obj| obj.downcast::<APIService>().ok()) else { return Outcome::Settled };
    let extension = server.aggregation.routes().extensions().find(|e| e.name == name).cloned();
    let (finding, asked) = match look(server, &api) {
        Some(finding) => (finding, false),
        None => match &extension {
            None => return Outcome::Settled,
            Some(extension) => (ask(server, extension).await, true),
        },
    };
    let passed = finding == Finding::passed();
    if let Err(status) = note(server, &api, &finding).await {
        debug!(apiservice = name, error = %status, "cannot note whether it is available");
        return Outcome::Failed;
    }
    let Some(extension) = extension else { return Outcome::Settled };
    let news = if passed { learn::again(server, &extension).await } else { learn::lost(&extension) };
    if news {
        server.aggregation.learned();
    }
    match (asked, passed) {
        (false, _) => Outcome::Settled,
        (true, true) if extension.learned.read().fresh => Outcome::Passed,
        (true, _) => Outcome::Failed,
    }
}

/// What can be said without asking the extension server.
fn look(server: &Server, api: &APIService) -> Option<Finding> {
    let to = api.spec.as_ref().and_then(|s| s.service.clone()).unwrap_or_default();
    let (namespace, name) = (to.namespace.unwrap_or_default(), to.name.unwrap_or_default());
    let service = server.cache.get("", "services", &namespace, &name);
    let slices = server.cache.list(SLICES, "endpointslices", &namespace);
    let of_service = |slice: &&EndpointSlice| {
        let label = slice.metadata.labels.as_ref().and_then(|l| l.get("kubernetes.io/service-name"));
        label == Some(&name)
    };
    let slices: Vec<&EndpointSlice> =
        slices.iter().filter_map(|obj| obj.downcast::<EndpointSlice>()).filter(of_service).collect();
    availability::judge(api, service.as_ref().and_then(|s| s.downcast::<Service>()), &slices)
}

/// Asks the server for the version that it shall serve: one of several endpoints has to answer.
async fn ask(server: &Server, extension: &Extension) -> Finding {
    let mut failure = match attempt(server, extension).await {
        Ok(()) => return Finding::passed(),
        Err(why) => why,
    };
    let mut others: FuturesUnordered<_> = (1..ATTEMPTS).map(|_| attempt(server, extension)).collect();
    while let Some(answer) = others.next().await {
        match answer {
            Ok(()) => return Finding::passed(),
            Err(why) => failure = why,
        }
    }
    Finding::failed(failure)
}

async fn attempt(server: &Server, extension: &Extension) -> Result<(), String> {
    let path = format!("/apis/{}/{}", extension.group, extension.version);
    let failed = |url: &str, why: &str| format!("failing or missing response from {url}: {why}");
    match tokio::time::timeout(CHECK, extension.link.read(server, &aggregator(), &path, HeaderMap::new()))
        .await
    {
        Ok(Ok((_, reply))) if (200..300).contains(&reply.code) => Ok(()),
        Ok(Ok((url, reply))) => Err(failed(&url, &format!("bad status from {url}: {}", reply.code))),
        Ok(Err((url, why))) if url.is_empty() => Err(why),
        Ok(Err((url, why))) => Err(failed(&url, &why)),
        Err(_) => {
            let at = extension.link.address(server).unwrap_or_default();
            let url = format!("https://{}{path}", crate::outbound::authority(&at.0, at.1));
            let late = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
            Err(failed(&url, &format!("Get {url:?}: {late}")))
        }
    }
}

/// Writes the condition, if it is another one. Whoever was faster leads to another check.
async fn note(server: &Arc<Server>, api: &APIService, finding: &Finding) -> Result<(), Status> {
    let Some(noted) = availability::noted(api, finding, server.clock.now()) else { return Ok(()) };
    let resource = server.cache.registry.find(GROUP, PLURAL).ok_or_else(Status::no_such_path)?;
    let name = noted.metadata.name.clone().unwrap_or_default();
    info!(apiservice = name, ?finding, "availability changes");
    let available = finding.available();
    server.metrics.counts.set(
        &families::UNAVAILABLE,
        vec![name.clone().into()],
        f64::from(u8::from(!available)),
    );
    if !available {
        let labels = vec![name.clone().into(), finding.reason().into()];
        server.metrics.counts.add(&families::UNAVAILABLE_TOTAL, labels);
    }
    let (caller, opts, input) = (Server::loopback(), WriteOptions::default(), Input::Object(Arc::new(noted)));
    match server.update(&caller, &resource, "", &name, Part::Status, input, &opts).await {
        Err(status) if status.code() != 404 => Err(status),
        _ => Ok(()),
    }
}
