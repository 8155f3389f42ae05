//! watch: a subscription to the cache with upstream's rules for where it begins, and its bookmarks.

use std::sync::Arc;
use std::time::Duration;

use coracle_client::ListOptions;
use coracle_meta::{Reason, Status};

use super::list::{check_list_options, filter, late};
use super::read::parse_revision;
use crate::cache::{CacheEntry, Event, EventKind, Filter, Subscription};
use crate::registry::Resource;
use crate::server::Server;

/// Time between bookmarks.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);

/// Options of a watch beside those of a list.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WatchOptions {
    /// `allowWatchBookmarks`.
    pub(crate) bookmarks: bool,
    /// `sendInitialEvents`.
    pub(crate) send_initial_events: Option<bool>,
}

/// What a watch delivers next.
pub(crate) enum Next {
    /// A present object, as added.
    Initial(Arc<CacheEntry>),
    /// A change.
    Event(EventKind, Arc<Event>),
    /// All up to this revision was delivered; `true` ends the initial events.
    Bookmark(u64, bool),
    /// The watcher was too slow and is cut off.
    End,
}

/// A running watch.
pub(crate) struct Watching {
    server: Arc<Server>,
    initial: std::vec::IntoIter<Arc<CacheEntry>>,
    backlog: std::vec::IntoIter<(EventKind, Arc<Event>)>,
    live: tokio::sync::mpsc::Receiver<(EventKind, Arc<Event>)>,
    revision: u64,
    mark_initial: bool,
    bookmarks: bool,
    next_bookmark: tokio::time::Instant,
    /// Revision to announce once `live` is drained.
    pending_bookmark: Option<u64>,
    /// What only converted objects can be matched with; see [`late`].
    late: Option<Filter>,
}

impl Server {
    /// Starts a watch.
    ///
    /// # Errors
    /// 400 for bad options, 410 when the revision is too old.
    pub(crate) async fn watch(
        self: &Arc<Self>,
        resource: &Resource,
        namespace: &str,
        name: &str,
        opts: &ListOptions,
        mut watch: WatchOptions,
    ) -> Result<Watching, Status> {
        let mut opts = opts.clone();
        let unsaid = watch.send_initial_events.is_none() && opts.resource_version_match.is_empty();
        if unsaid && matches!(opts.resource_version.as_str(), "" | "0") {
            // Upstream takes a watch from anywhere for one that wants the present objects first.
            watch.send_initial_events = Some(true);
            opts.resource_version_match = "NotOlderThan".to_owned();
        }
        let opts = &opts;
        check_list_options(opts, true, watch.send_initial_events)?;
        let mut filter = filter(resource, namespace, name, opts)?;
        let late = late(resource, &mut filter);
        let revision =
            parse_revision(&opts.resource_version).map_err(|e| Status::new(500, Reason::Unknown, e, None))?;
        let asked_initial = watch.send_initial_events == Some(true);
        let from = match (revision, watch.send_initial_events) {
            (Some(0) | None, Some(false)) => {
                self.fresh().await?;
                Some(self.store.revision())
            }
            (_, Some(true)) | (Some(0) | None, None) => None,
            (Some(revision), _) => Some(revision),
        };
        if asked_initial && let Some(revision) = revision {
            self.reach(revision).await?;
        }
        if from.is_none() && revision != Some(0) {
            self.fresh().await?;
        }
        let subscription = resource.cache.subscribe(filter, from, self.cache.applied()).map_err(|floor| {
            let asked = from.unwrap_or(0);
            Status::expired(format!("too old resource version: {asked} ({})", floor.0))
        })?;
        let Subscription { initial, backlog, live, revision } = subscription;
        Ok(Watching {
            server: self.clone(),
            initial: initial.into_iter(),
            backlog: backlog.into_iter(),
            live,
            revision,
            mark_initial: asked_initial && watch.bookmarks,
            bookmarks: watch.bookmarks,
            next_bookmark: tokio::time::Instant::now() + BOOKMARK_EVERY,
            pending_bookmark: None,
            late,
        })
    }
}

impl Watching {
    /// Matches what came with what only its version knows; `None` when it is not selected.
    ///
    /// # Errors
    /// 500 when a conversion webhook fails.
    pub(crate) async fn matched(&self, resource: &Resource, next: Next) -> Result<Option<Next>, Status> {
        let Some(late) = &self.late else { return Ok(Some(next)) };
        let selects = async |entry: Option<&Arc<CacheEntry>>| match entry {
            None => Ok(false),
            Some(entry) => {
                let entry = self.server.in_version(resource, entry.clone()).await?;
                Ok::<_, Status>(late.selects(&entry))
            }
        };
        Ok(match next {
            Next::Initial(entry) => selects(Some(&entry)).await?.then_some(Next::Initial(entry)),
            Next::Event(kind, event) => {
                let before = kind != EventKind::Added && selects(event.before()).await?;
                let now = kind != EventKind::Deleted && selects(event.entry(kind)).await?;
                EventKind::of(before, now).map(|kind| Next::Event(kind, event))
            }
            other => Some(other),
        })
    }

    /// The next thing to deliver. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Next {
        if let Some(next) = self.ready() {
            return next;
        }
        if !self.bookmarks {
            let event = self.live.recv().await;
            return self.received(event);
        }
        tokio::select! {
            biased;
            event = self.live.recv() => self.received(event),
            () = tokio::time::sleep_until(self.next_bookmark) => {
                self.next_bookmark += BOOKMARK_EVERY;
                // What the cache has applied by now is already in `live`: announce it behind that.
                self.pending_bookmark = Some(self.server.cache.applied().max(self.revision));
                match self.ready() {
                    Some(next) => next,
                    None => self.bookmark(),
                }
            }
        }
    }

    /// Whether all is delivered that was there at the beginning.
    pub(crate) fn has_begun(&self) -> bool {
        self.initial.len() == 0 && self.backlog.len() == 0 && !self.mark_initial
    }

    /// The next thing to deliver, if there is one right now.
    pub(crate) fn ready(&mut self) -> Option<Next> {
        if let Some(entry) = self.initial.next() {
            return Some(Next::Initial(entry));
        }
        if let Some((kind, event)) = self.backlog.next() {
            return Some(Next::Event(kind, event));
        }
        if self.mark_initial {
            self.mark_initial = false;
            return Some(Next::Bookmark(self.revision, true));
        }
        if let Ok((kind, event)) = self.live.try_recv() {
            self.revision = self.revision.max(event.revision);
            return Some(Next::Event(kind, event));
        }
        self.pending_bookmark.is_some().then(|| self.bookmark())
    }

    fn bookmark(&mut self) -> Next {
        let revision = self.pending_bookmark.take().unwrap_or(0).max(self.revision);
        self.revision = revision;
        Next::Bookmark(revision, false)
    }

    fn received(&mut self, event: Option<(EventKind, Arc<Event>)>) -> Next {
        match event {
            Some((kind, event)) => {
                self.revision = self.revision.max(event.revision);
                Next::Event(kind, event)
            }
            None => Next::End,
        }
    }
}
