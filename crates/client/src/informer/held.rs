//! An object in an informer: decoded while somebody needs it, packed while nobody does (ADR 20).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coracle_meta::Kind;
use coracle_stdx::pack::{Dictionary, Packed};
use parking_lot::Mutex;
use tracing::error;

/// Namespace and name.
pub(super) type Key = (Arc<str>, Arc<str>);

/// One object's state.
pub(super) struct Held<K> {
    pub(super) key: Key,
    /// Its resourceVersion.
    pub(super) version: Option<Box<str>>,
    form: Mutex<Form<K>>,
    /// Asked for since the last [`Held::is_unread`].
    read: AtomicBool,
}

enum Form<K> {
    /// As it came; never packed yet.
    New(Arc<K>),
    /// It was packed before.
    Decoded(Arc<K>),
    Packed(Packed),
}

impl<K> Form<K> {
    fn decoded(&self) -> Option<&Arc<K>> {
        match self {
            Self::New(object) | Self::Decoded(object) => Some(object),
            Self::Packed(_) => None,
        }
    }
}

impl<K: Kind> Held<K> {
    pub(super) fn new(key: Key, object: Arc<K>) -> Self {
        let version = object.metadata().resource_version.as_deref().map(Into::into);
        Self { key, version, form: Mutex::new(Form::New(object)), read: AtomicBool::new(true) }
    }

    /// The object. What was packed stays decoded for a while.
    pub(super) fn get(&self) -> Option<Arc<K>> {
        if !self.read.load(Ordering::Relaxed) {
            self.read.store(true, Ordering::Relaxed);
        }
        let mut form = self.form.lock();
        let packed = match &*form {
            Form::New(object) | Form::Decoded(object) => return Some(object.clone()),
            Form::Packed(packed) => packed,
        };
        match serde_json::from_slice::<K>(&packed.unpack()) {
            Ok(object) => {
                let object = Arc::new(object);
                *form = Form::Decoded(object.clone());
                Some(object)
            }
            // Unless memory is damaged: the text was written by this very type.
            Err(e) => {
                error!(kind = K::KIND, namespace = %self.key.0, name = %self.key.1, error = %e, "a packed object is lost");
                None
            }
        }
    }

    /// Whether nobody has asked for it since the last call, nor keeps it.
    pub(super) fn is_unread(&self) -> bool {
        let unread = !self.read.swap(false, Ordering::Relaxed);
        unread && self.form.lock().decoded().is_some_and(|object| Arc::strong_count(object) == 1)
    }

    /// Whether it was never packed.
    pub(super) fn is_new(&self) -> bool {
        matches!(*self.form.lock(), Form::New(_))
    }

    /// Whether it is packed.
    pub(super) fn is_packed(&self) -> bool {
        matches!(*self.form.lock(), Form::Packed(_))
    }

    /// The object as text, for a dictionary.
    pub(super) fn sample(&self) -> Vec<u8> {
        match &*self.form.lock() {
            Form::New(object) | Form::Decoded(object) => serde_json::to_vec(&**object).unwrap_or_default(),
            Form::Packed(packed) => packed.unpack(),
        }
    }

    /// Packs it.
    pub(super) fn pack(&self, dictionary: &Arc<Dictionary>) {
        let mut form = self.form.lock();
        if let Some(object) = form.decoded()
            && let Ok(text) = serde_json::to_vec(&**object)
            && let Some(packed) = dictionary.pack(&text)
        {
            *form = Form::Packed(packed);
        }
    }
}
