//! Keeps a watch going for ever: restarts, relists, and turns what it sees into a gapless series of changes.

use std::sync::Arc;
use std::time::Duration;

use coracle_meta::{Object, Reason, Status};
use futures::StreamExt;
use tracing::{debug, warn};

use crate::api::Client;
use crate::transport::{ListOptions, ResourceId, WatchEvent, WatchStream};

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What [`reflect`] reports.
#[derive(Clone, Debug)]
pub enum Reflected {
    /// A list begins: [`Reflected::Applied`] follows for every present object, then [`Reflected::Synced`].
    Listing,
    /// The object exists in this state.
    Applied(Arc<dyn Object>),
    /// The object is gone; this is its last state.
    Deleted(Arc<dyn Object>),
    /// Every object that was not applied since [`Reflected::Listing`] does not exist, as of this
    /// resourceVersion.
    Synced(String),
    /// All changes up to this resourceVersion were reported.
    Progress(String),
}

/// Watches `resource` and calls `sink` for every change, in revision order, for as long as it is polled.
///
/// Guarantees: between the first [`Reflected::Synced`] and now no change is missed. A watch that ends is
/// resumed after the last revision seen; when that is too old (410) or was never learnt, the list starts
/// anew. Failures are retried after 100 ms, doubling up to 30 s, with jitter.
pub async fn reflect(
    client: &Client,
    resource: ResourceId,
    namespace: &str,
    options: &ListOptions,
    sink: &mut (dyn FnMut(Reflected) + Send),
) {
    let mut resume: Option<String> = None;
    let mut wait = FIRST_WAIT;
    loop {
        let mut options = options.clone();
        let initial = resume.is_none();
        options.resource_version = resume.clone().unwrap_or_default();
        let outcome = match client.watch(resource, namespace, options, initial).await {
            Ok(stream) => {
                if initial {
                    sink(Reflected::Listing);
                }
                follow(stream, initial, &mut resume, &mut wait, sink).await
            }
            Err(status) => Some(status),
        };
        match outcome {
            None => debug!(resource = resource.resource, "watch ended; resuming"),
            Some(status) if is_too_old(&status) => {
                debug!(resource = resource.resource, "watch expired; listing again");
                resume = None;
            }
            Some(status) => warn!(resource = resource.resource, %status, "watch failed; retrying"),
        }
        tokio::time::sleep(jittered(wait)).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

fn is_too_old(status: &Status) -> bool {
    status.code() == 410 || matches!(status.reason(), Reason::Expired | Reason::Gone)
}

fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + rand::random::<f64>() / 2.0)
}

/// Passes a stream's events on until it ends; the failure that ended it, if it was one.
async fn follow(
    mut stream: WatchStream,
    initial: bool,
    resume: &mut Option<String>,
    wait: &mut Duration,
    sink: &mut (dyn FnMut(Reflected) + Send),
) -> Option<Status> {
    let mut listing = initial;
    while let Some(event) = stream.next().await {
        let change = match event {
            Err(status) => return Some(status),
            Ok(WatchEvent::Bookmark { resource_version, initial_events_end }) => {
                if listing && !initial_events_end {
                    continue;
                }
                *resume = Some(resource_version.clone());
                *wait = FIRST_WAIT;
                let ended = std::mem::replace(&mut listing, false);
                let report = if ended { Reflected::Synced } else { Reflected::Progress };
                sink(report(resource_version));
                continue;
            }
            Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => Reflected::Applied(object),
            Ok(WatchEvent::Deleted(object)) => Reflected::Deleted(object),
        };
        if let (false, Reflected::Applied(object) | Reflected::Deleted(object)) = (listing, &change) {
            // The list is not in revision order: only what follows it says where to resume.
            *resume = object.meta().resource_version.clone().or(resume.take());
            *wait = FIRST_WAIT;
        }
        sink(change);
    }
    None
}
