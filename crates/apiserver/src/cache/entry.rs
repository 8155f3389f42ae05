//! One object as the cache holds it: encoded once, decoded while somebody needs it, packed while nobody does.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use coracle_meta::{Object, Status};
use coracle_resources::def::ResourceDef;
use coracle_stdx::pack::Dictionary;
use parking_lot::Mutex;

use super::facts::Facts;
use super::text::Text;
use crate::codec;

/// The decoded form of an entry.
#[derive(Default)]
enum Decoded {
    /// Nobody asked for it.
    #[default]
    Never,
    /// Shared with who asks.
    Kept(Arc<dyn Object>),
    /// Not kept any more.
    Past,
}

/// An object at a revision. Immutable; shared by everyone who reads.
pub(crate) struct CacheEntry {
    /// Store key.
    pub(crate) key: Arc<str>,
    /// Bytes of the resource's key prefix.
    prefix_len: usize,
    /// Revision of the write (0 for what is not stored).
    pub(crate) revision: u64,
    /// The JSON with its resourceVersion.
    text: Text,
    /// The kind, in the version that the JSON has.
    pub(crate) def: &'static ResourceDef,
    /// The JSON as stored, where `encoded` is what reading makes of it.
    pub(crate) stored: Option<Bytes>,
    /// A write of this very object would store something else than what is stored.
    pub(crate) stale: bool,
    decoded: Mutex<Decoded>,
    facts: OnceLock<Facts>,
}

impl CacheEntry {
    /// An entry of encoded bytes.
    pub(crate) fn new(
        key: Arc<str>,
        prefix_len: usize,
        revision: u64,
        encoded: Bytes,
        def: &'static ResourceDef,
    ) -> Self {
        let (text, decoded, facts) = (Text::new(encoded), Mutex::default(), OnceLock::new());
        Self { key, prefix_len, revision, text, def, stored: None, stale: false, decoded, facts }
    }

    /// The JSON with its resourceVersion.
    pub(crate) fn encoded(&self) -> Bytes {
        self.text.get()
    }

    /// Bytes of the JSON.
    pub(crate) fn size(&self) -> usize {
        self.text.len()
    }

    /// The same object in another version, or as reading it makes it.
    pub(crate) fn read_as(&self, def: &'static ResourceDef, encoded: Bytes) -> Self {
        let entry = Self::new(self.key.clone(), self.prefix_len, self.revision, encoded, def);
        Self { stale: self.stale, ..entry }
    }

    /// Notes how the entry differs from what is stored.
    pub(crate) fn unlike(self, stored: Option<Bytes>, stale: bool) -> Self {
        Self { stored, stale, ..self }
    }

    /// An entry for an object that is not stored (a review, a Scale, a dry run).
    pub(crate) fn transient(def: &'static ResourceDef, obj: Arc<dyn Object>) -> Self {
        let mut out = Vec::with_capacity(512);
        obj.write_json(&mut out);
        let entry = Self::new(Arc::from(""), 0, 0, Bytes::from(out), def);
        entry.keep(obj);
        entry
    }

    /// The same object with other bytes: as a version beside the stored one encodes it. Decoded it stays what
    /// it is.
    pub(crate) fn shown(&self, encoded: Bytes) -> Self {
        let entry = Self::new(self.key.clone(), self.prefix_len, self.revision, encoded, self.def);
        if let Ok(obj) = self.decoded() {
            entry.keep(obj);
        }
        entry
    }

    /// Gives the decoded form, known from the write.
    pub(crate) fn set_decoded(&self, mut obj: Box<dyn Object>) {
        self.set_facts(&*obj);
        let meta = obj.meta_mut();
        meta.resource_version = Some(self.revision.to_string());
        meta.managed_fields = None;
        self.keep(Arc::from(obj));
    }

    /// Notes what selectors look at without keeping the decoded form.
    pub(crate) fn set_facts(&self, obj: &dyn Object) {
        let _ = self.facts.set(Facts::of(self.def, obj));
    }

    /// The decoded object, without managedFields. Shared: never changed.
    ///
    /// # Errors
    /// 500 when the stored bytes do not decode.
    pub(crate) fn decoded(&self) -> Result<Arc<dyn Object>, Status> {
        self.text.note();
        if let Decoded::Kept(obj) = &*self.decoded.lock() {
            return Ok(obj.clone());
        }
        let mut obj = self.decode_full()?;
        obj.meta_mut().managed_fields = None;
        let obj: Arc<dyn Object> = Arc::from(obj);
        self.keep(obj.clone());
        Ok(obj)
    }

    fn keep(&self, obj: Arc<dyn Object>) {
        let mut decoded = self.decoded.lock();
        if !matches!(*decoded, Decoded::Past) {
            *decoded = Decoded::Kept(obj);
        }
    }

    /// The object was replaced, or is too large to be kept twice: who still asks for it decoded gets it, but it is
    /// no longer kept. The windows of recent changes hold thousands of such entries.
    pub(crate) fn let_go(&self) {
        if self.is_decoded() {
            self.facts();
        }
        *self.decoded.lock() = Decoded::Past;
    }

    /// Whether the decoded form is present.
    pub(crate) fn is_decoded(&self) -> bool {
        matches!(*self.decoded.lock(), Decoded::Kept(_))
    }

    /// Whether there is nothing that [`CacheEntry::rest`] would give back.
    pub(super) fn is_at_rest(&self) -> bool {
        self.text.is_settled() && !self.is_decoded()
    }

    /// Whether it was never at rest.
    pub(super) fn is_new(&self) -> bool {
        self.text.is_new()
    }

    /// Whether nobody has read it since the last call.
    pub(super) fn is_unread(&self) -> bool {
        self.text.is_unread()
    }

    /// The JSON, for a dictionary.
    pub(super) fn sample(&self) -> Bytes {
        self.text.peek()
    }

    /// Packs the JSON and lets go of the decoded form, until somebody reads it again.
    pub(super) fn rest(&self, dictionary: &Arc<Dictionary>) {
        self.text.pack(dictionary);
        let mut decoded = self.decoded.lock();
        if matches!(*decoded, Decoded::Kept(_)) {
            *decoded = Decoded::Never;
        }
    }

    /// A fresh decoded copy with everything in it.
    ///
    /// # Errors
    /// 500 when the stored bytes do not decode.
    pub(crate) fn decode_full(&self) -> Result<Box<dyn Object>, Status> {
        self.def.strategy.decode_slice(&self.encoded())
    }

    /// Labels and selectable fields.
    pub(crate) fn facts(&self) -> &Facts {
        self.facts.get_or_init(|| match &*self.decoded.lock() {
            Decoded::Kept(obj) => Facts::of(self.def, &**obj),
            _ => self.decode_full().map(|obj| Facts::of(self.def, &*obj)).unwrap_or_default(),
        })
    }

    /// Namespace (empty for cluster scope) and name, from the key.
    pub(crate) fn namespace_name(&self) -> (&str, &str) {
        let tail = self.tail();
        tail.split_once('/').unwrap_or(("", tail))
    }

    /// The key below the resource's prefix.
    pub(crate) fn tail(&self) -> &str {
        self.key.get(self.prefix_len..).unwrap_or("")
    }

    /// The same object at another revision: what a deletion event carries.
    pub(crate) fn at_revision(&self, revision: u64) -> Self {
        let encoded = codec::resplice(&self.encoded(), revision);
        let entry = Self::new(self.key.clone(), self.prefix_len, revision, encoded, self.def);
        let entry = Self { stale: self.stale, ..entry };
        let obj = match &*self.decoded.lock() {
            Decoded::Kept(obj) => Some(obj.clone_object()),
            _ => None,
        };
        if let Some(obj) = obj {
            entry.set_decoded(obj);
        }
        entry
    }
}

impl std::fmt::Debug for CacheEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.key, self.revision)
    }
}
