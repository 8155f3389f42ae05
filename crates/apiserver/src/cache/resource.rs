//! One resource's part of the cache: its objects by key, its recent changes, its watchers.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coracle_stdx::pack::{Dictionary, Lexicon};
use parking_lot::{Mutex, RwLock};

use super::entry::CacheEntry;
use super::watcher::{Event, Filter, Subscription, Watcher};

/// So many of the last changes are kept for watches from an older revision, whatever their age.
const LEAST: usize = 100;
/// More of them are kept for this long: upstream's `eventFreshDuration`.
const FRESH: Duration = Duration::from_secs(75);
/// But no more than these,
const MOST: usize = 65_536;
/// nor more bytes of objects that have been replaced since.
const MOST_BYTES: usize = 32 << 20;
/// After this time the watchers there are have a change, in whatever encoding they asked for.
const HOT: Duration = Duration::from_secs(10);

/// The objects of one resource.
pub(crate) struct ResourceCache {
    prefix_len: usize,
    state: RwLock<State>,
    /// Someone in this process reads decoded objects: keep them.
    shared: AtomicBool,
    /// Something was read or changed since [`ResourceCache::resting`] looked, or was not yet at rest then.
    awake: AtomicBool,
    /// What the texts have in common.
    lexicon: Mutex<Lexicon>,
}

struct State {
    entries: BTreeMap<Arc<str>, Arc<CacheEntry>>,
    window: VecDeque<Arc<Event>>,
    /// Bytes of the replaced objects in the window.
    replaced: usize,
    /// So many at the window's front have been cooled.
    cool: usize,
    /// All changes after this revision are in `window`.
    floor: u64,
    /// Revision of the last change.
    last: u64,
    /// Bytes of all entries, encoded.
    bytes: u64,
    watchers: Vec<Watcher>,
}

/// Objects at one moment.
pub(crate) struct Snapshot {
    /// In key order.
    pub(crate) entries: Vec<Arc<CacheEntry>>,
    /// The revision they are current at.
    pub(crate) revision: u64,
    /// Revision of the resource's last change.
    pub(crate) last: u64,
}

/// Why a watch cannot start: the revision lies before the window, which begins at the value.
#[derive(Debug)]
pub(crate) struct TooOld(pub(crate) u64);

impl ResourceCache {
    pub(crate) fn new(prefix_len: usize) -> Self {
        let state = State {
            entries: BTreeMap::new(),
            window: VecDeque::new(),
            replaced: 0,
            cool: 0,
            floor: 0,
            last: 0,
            bytes: 0,
            watchers: Vec::new(),
        };
        let (shared, awake, lexicon) = (AtomicBool::new(false), AtomicBool::new(false), Mutex::default());
        Self { prefix_len, state: RwLock::new(state), shared, awake, lexicon }
    }

    /// Bytes of the key prefix.
    pub(crate) fn prefix_len(&self) -> usize {
        self.prefix_len
    }

    /// Notes that decoded objects are read in this process.
    pub(crate) fn keep_decoded(&self) {
        if !self.shared.load(Ordering::Relaxed) {
            self.shared.store(true, Ordering::Relaxed);
        }
    }

    /// Whether decoded objects are read in this process.
    pub(crate) fn keeps_decoded(&self) -> bool {
        self.shared.load(Ordering::Relaxed)
    }

    fn wake(&self) {
        if !self.awake.load(Ordering::Relaxed) {
            self.awake.store(true, Ordering::Relaxed);
        }
    }

    /// The objects that nobody has read since the last call, of those that are not packed, or were never; none when
    /// nothing has been read or changed at all.
    pub(super) fn resting(&self, only_new: bool) -> Vec<Arc<CacheEntry>> {
        if !self.awake.swap(false, Ordering::Relaxed) {
            return Vec::new();
        }
        let state = self.state.read();
        // Also what the window has of objects that were replaced.
        let entries = state.entries.values().chain(state.window.iter().filter_map(|event| event.before()));
        let rests = |entry: &&Arc<CacheEntry>| (!only_new || entry.is_new()) && entry.is_unread();
        let (resting, awake): (Vec<_>, Vec<_>) = entries.filter(|entry| !entry.is_at_rest()).partition(rests);
        if !awake.is_empty() {
            self.wake();
        }
        resting.into_iter().cloned().collect()
    }

    /// The dictionary for packing these; `None` when the objects are too few.
    pub(super) fn dictionary(&self, resting: &[Arc<CacheEntry>]) -> Option<Arc<Dictionary>> {
        self.lexicon.lock().dictionary(self.len(), resting, |entry| entry.sample())
    }

    /// One object.
    pub(crate) fn get(&self, key: &str) -> Option<Arc<CacheEntry>> {
        self.wake();
        self.state.read().entries.get(key).cloned()
    }

    /// Revision of the last change.
    pub(crate) fn last(&self) -> u64 {
        self.state.read().last
    }

    /// Number of objects.
    pub(crate) fn len(&self) -> usize {
        self.state.read().entries.len()
    }

    /// Number of objects, and their encoded bytes.
    pub(crate) fn size(&self) -> (u64, u64) {
        let state = self.state.read();
        (state.entries.len() as u64, state.bytes)
    }

    /// How many watchers look at what lies at `key`, or, if it ends with a slash, below it, as far as that can be told
    /// without the object.
    pub(crate) fn watchers_of(&self, key: &str) -> u64 {
        self.state.read().watchers.iter().filter(|w| w.looks_at(key)).count() as u64
    }

    /// The objects that `filter` covers and selects. `applied` is the cache's revision, read before.
    pub(crate) fn snapshot(&self, filter: &Filter, applied: u64) -> Snapshot {
        let mut snapshot = self.range(filter, applied);
        if !filter.is_plain() {
            snapshot.entries.retain(|e| filter.selects(e));
        }
        snapshot
    }

    /// The objects in the filter's range, selectors not yet applied.
    pub(crate) fn range(&self, filter: &Filter, applied: u64) -> Snapshot {
        self.wake();
        let state = self.state.read();
        let entries = state.range(filter);
        Snapshot { entries, revision: applied.max(state.last), last: state.last }
    }

    /// Loads what was stored when the process started.
    pub(super) fn load(&self, entries: impl Iterator<Item = CacheEntry>, revision: u64) {
        let mut state = self.state.write();
        for entry in entries {
            state.last = state.last.max(entry.revision);
            state.bytes += entry.size() as u64;
            state.entries.insert(entry.key.clone(), Arc::new(entry));
        }
        state.floor = revision;
        self.wake();
    }

    /// Applies one change and hands it to the watchers. Slow watchers are removed.
    pub(super) fn apply(&self, key: &Arc<str>, new: Option<Arc<CacheEntry>>, revision: u64) {
        self.wake();
        let mut guard = self.state.write();
        let state = &mut *guard;
        let old = match &new {
            Some(entry) => state.entries.insert(key.clone(), entry.clone()),
            None => state.entries.remove(key),
        };
        state.last = revision;
        let size = |entry: &Option<Arc<CacheEntry>>| entry.as_ref().map_or(0, |e| e.size() as u64);
        state.bytes = (state.bytes + size(&new)).saturating_sub(size(&old));
        if new.is_none() && old.is_none() {
            return;
        }
        if let (Some(_), Some(old)) = (&new, &old) {
            old.let_go();
        }
        let event = Arc::new(Event::new(revision, new, old));
        state.watchers.retain(|w| w.offer(&event));
        state.trim(event.seen);
        state.replaced += event.replaced();
        state.window.push_back(event);
    }

    /// Puts other entries in the place of those that `change` has some for, without an event: what is stored
    /// stays the same, but is read in another way.
    pub(crate) fn reread(&self, change: &dyn Fn(&CacheEntry) -> Option<CacheEntry>) {
        self.wake();
        let mut state = self.state.write();
        let mut bytes = state.bytes;
        for entry in state.entries.values_mut() {
            if let Some(other) = change(entry) {
                let (old, new) = (entry.size() as u64, other.size() as u64);
                bytes = (bytes + new).saturating_sub(old);
                *entry = Arc::new(other);
            }
        }
        state.bytes = bytes;
    }

    /// Ends all watches: the resource is not served any more.
    pub(crate) fn close(&self) {
        self.state.write().watchers.clear();
    }

    /// Drops window events that have become too old to be of use.
    pub(super) fn trim(&self, now: tokio::time::Instant) {
        self.state.write().trim(now);
    }

    /// Starts a watch after `from`, or with the present objects (`None`).
    ///
    /// # Errors
    /// [`TooOld`] when the window does not reach back to `from`.
    pub(crate) fn subscribe(
        &self,
        filter: Filter,
        from: Option<u64>,
        applied: u64,
    ) -> Result<Subscription, TooOld> {
        let mut state = self.state.write();
        let revision = applied.max(state.last);
        let (initial, from) = match from {
            Some(from) if from < state.floor => return Err(TooOld(state.floor)),
            Some(from) => (Vec::new(), from),
            None => {
                self.wake();
                let mut entries = state.range(&filter);
                entries.retain(|e| filter.selects(e));
                (entries, revision)
            }
        };
        let (watcher, live) = Watcher::new(filter, from);
        let start = state.window.partition_point(|e| e.revision <= from);
        let backlog =
            state.window.range(start..).filter_map(|e| Some((watcher.wants(e)?, e.clone()))).collect();
        state.watchers.push(watcher);
        Ok(Subscription { initial, backlog, live, revision: revision.max(from) })
    }
}

impl State {
    fn range(&self, filter: &Filter) -> Vec<Arc<CacheEntry>> {
        if filter.single {
            return self.entries.get(filter.key.as_str()).cloned().into_iter().collect();
        }
        let bounds = (Bound::Included(filter.key.as_str()), Bound::Unbounded);
        let range = self.entries.range::<str, _>(bounds);
        range.take_while(|(k, _)| k.starts_with(&filter.key)).map(|(_, e)| e.clone()).collect()
    }

    fn trim(&mut self, now: tokio::time::Instant) {
        while let Some(first) = self.window.front() {
            let fresh = now.duration_since(first.seen) < FRESH;
            let fits = self.window.len() < MOST && self.replaced <= MOST_BYTES;
            if self.window.len() <= LEAST || fresh && fits {
                break;
            }
            self.floor = self.floor.max(first.revision);
            self.replaced -= first.replaced();
            self.window.pop_front();
            self.cool = self.cool.saturating_sub(1);
        }
        while let Some(event) = self.window.get_mut(self.cool)
            && now.duration_since(event.seen) >= HOT
        {
            if let Some(event) = Arc::get_mut(event) {
                event.cool();
            }
            self.cool += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_watch_from_a_revision_that_is_not_applied_yet_does_not_see_it_again() {
        let def = coracle_resources::find("", "configmaps").expect("a kind");
        let cache = ResourceCache::new(1);
        let mut watch = cache.subscribe(Filter::default(), Some(5), 4).expect("in the window");
        let key: Arc<str> = "/ns/a".into();
        for revision in [5, 6] {
            let text = Bytes::from_static(b"{\"metadata\":{\"name\":\"a\"}}");
            let entry = CacheEntry::new(key.clone(), 1, revision, text, def);
            cache.apply(&key, Some(Arc::new(entry)), revision);
        }
        assert_eq!(watch.live.try_recv().expect("the later change").1.revision, 6);
        assert!(watch.live.try_recv().is_err());
    }

    fn change(cache: &ResourceCache, revision: u64, bytes: usize) {
        let def = coracle_resources::find("", "configmaps").expect("a kind");
        let key: Arc<str> = "/ns/a".into();
        let text =
            format!("{{\"metadata\":{{\"name\":\"a\"}},\"data\":{{\"a\":\"{}\"}}}}", "x".repeat(bytes));
        let entry = CacheEntry::new(key.clone(), 1, revision, Bytes::from(text), def);
        cache.apply(&key, Some(Arc::new(entry)), revision);
    }

    fn backlog(cache: &ResourceCache, from: u64) -> Option<usize> {
        cache.subscribe(Filter::default(), Some(from), 0).ok().map(|watch| watch.backlog.len())
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_has_what_is_fresh_and_the_last_hundred_changes() {
        let cache = ResourceCache::new(1);
        (1..=1000).for_each(|revision| change(&cache, revision, 1));
        tokio::time::advance(FRESH - Duration::from_secs(1)).await;
        cache.trim(tokio::time::Instant::now());
        assert_eq!(backlog(&cache, 1), Some(999));
        tokio::time::advance(Duration::from_secs(2)).await;
        cache.trim(tokio::time::Instant::now());
        assert_eq!((backlog(&cache, 899), backlog(&cache, 900)), (None, Some(100)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_of_large_objects_is_bounded_by_their_bytes() {
        let cache = ResourceCache::new(1);
        (1..=300).for_each(|revision| change(&cache, revision, 256 << 10));
        assert_eq!((backlog(&cache, 150), backlog(&cache, 200)), (None, Some(100)));
    }

    fn filled(count: usize) -> ResourceCache {
        let def = coracle_resources::find("", "configmaps").expect("a kind");
        let cache = ResourceCache::new(1);
        let entry = |n: usize| {
            let data = "a value that all of them have, ".repeat(10);
            let text = format!("{{\"metadata\":{{\"name\":\"n-{n:03}\"}},\"data\":{{\"a\":\"{data}\"}}}}");
            CacheEntry::new(format!("/ns/n-{n:03}").into(), 1, 1, Bytes::from(text), def)
        };
        cache.load((0..count).map(entry), 1);
        cache
    }

    fn pack(cache: &ResourceCache) -> usize {
        let resting = cache.resting(false);
        let Some(dictionary) = cache.dictionary(&resting) else { return 0 };
        resting.iter().for_each(|entry| entry.rest(&dictionary));
        resting.len()
    }

    #[test]
    fn what_nobody_reads_is_packed_and_reads_the_same() {
        let cache = filled(100);
        let before: Vec<Bytes> =
            cache.range(&Filter::default(), 0).entries.iter().map(|e| e.encoded()).collect();
        assert_eq!(pack(&cache), 0, "they have just been read");
        cache.get("/ns/n-007").expect("an object").encoded();
        assert_eq!((pack(&cache), pack(&cache)), (99, 1), "one was in use for longer");
        assert_eq!((pack(&cache), cache.size().1), (0, before.iter().map(|text| text.len() as u64).sum()));
        let entries = cache.range(&Filter::default(), 0).entries;
        assert!(entries.iter().all(|entry| entry.is_at_rest()));
        let map = entries[7].decoded().expect("a ConfigMap");
        assert_eq!((map.name(), entries[7].is_decoded()), ("n-007", true));
        let after: Vec<Bytes> = entries.iter().map(|entry| entry.encoded()).collect();
        assert_eq!(before, after);
        assert_eq!(
            (pack(&cache), pack(&cache), entries[7].is_decoded()),
            (0, 1, false),
            "texts were read once"
        );
    }

    #[test]
    fn what_the_window_has_of_replaced_objects_is_packed_too() {
        let cache = filled(100);
        for revision in 2..102 {
            change(&cache, revision, 500);
        }
        assert_eq!((pack(&cache), pack(&cache)), (0, 200));
        assert!(cache.state.read().window.iter().all(|e| e.before().is_none_or(|old| old.is_at_rest())));
    }

    #[test]
    fn nothing_is_looked_at_while_nothing_happens_and_few_objects_stay_as_they_are() {
        let cache = filled(100);
        assert_eq!((pack(&cache), pack(&cache)), (0, 100));
        assert!(!cache.awake.load(Ordering::Relaxed));
        change(&cache, 2, 10);
        assert!(cache.awake.load(Ordering::Relaxed));
        let few = filled(3);
        assert_eq!((pack(&few), pack(&few)), (0, 0));
        assert_eq!(
            few.range(&Filter::default(), 0).entries[0].size(),
            few.range(&Filter::default(), 0).entries[0].encoded().len()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_encoded_for_watchers_is_kept_for_a_short_time_only() {
        let cache = ResourceCache::new(1);
        change(&cache, 1, 10);
        let frame = cache.state.read().window[0].frame(super::super::watcher::EventKind::Added);
        assert!(cache.state.read().window[0].is_encoded());
        tokio::time::advance(HOT).await;
        cache.trim(tokio::time::Instant::now());
        assert!(!cache.state.read().window[0].is_encoded());
        let again = cache.state.read().window[0].frame(super::super::watcher::EventKind::Added);
        assert_eq!(frame, again);
    }

    #[test]
    fn a_watcher_that_does_not_read_is_cut_off_and_one_that_reads_is_not() {
        let def = coracle_resources::find("", "configmaps").expect("a kind");
        let cache = ResourceCache::new(1);
        let mut slow = cache.subscribe(Filter::default(), Some(1), 1).expect("in the window");
        let mut quick = cache.subscribe(Filter::default(), Some(1), 1).expect("in the window");
        let key: Arc<str> = "/ns/a".into();
        let buffer = u64::try_from(super::super::watcher::BUFFER).expect("a number");
        for revision in 2..buffer + 12 {
            let text = Bytes::from_static(b"{\"metadata\":{\"name\":\"a\"}}");
            let entry = CacheEntry::new(key.clone(), 1, revision, text, def);
            cache.apply(&key, Some(Arc::new(entry)), revision);
            assert_eq!(quick.live.try_recv().expect("each as it comes").1.revision, revision);
        }
        assert_eq!(cache.watchers_of("/ns/a"), 1);
        let mut got = 0;
        while slow.live.try_recv().is_ok() {
            got += 1;
        }
        assert_eq!(got, buffer, "what was waiting is delivered, without gaps");
        assert!(slow.live.is_closed());
    }
}
