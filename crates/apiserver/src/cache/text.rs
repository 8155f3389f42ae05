//! An object's JSON: as it is while it is read, packed when nobody has read it for a while (ADR 20).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use coracle_stdx::pack::{Dictionary, Packed};
use parking_lot::Mutex;

/// Shorter texts are not worth packing.
const WORTH: usize = 256;

/// A text that never changes.
pub(super) struct Text {
    form: Mutex<Form>,
    /// Read since the last [`Text::is_unread`].
    read: AtomicBool,
}

enum Form {
    /// As it came; never packed yet.
    New(Bytes),
    /// It was packed before.
    Plain(Bytes),
    Packed(Packed),
    /// Too short, or too unlike the others.
    Unlike(Bytes),
}

impl Form {
    fn text(&self) -> Bytes {
        match self {
            Self::New(text) | Self::Plain(text) | Self::Unlike(text) => text.clone(),
            Self::Packed(packed) => Bytes::from(packed.unpack()),
        }
    }
}

impl Text {
    pub(super) fn new(text: Bytes) -> Self {
        Self { form: Mutex::new(Form::New(text)), read: AtomicBool::new(true) }
    }

    /// The text. What is packed is unpacked for the caller; who comes a second time within a while has it stay so.
    pub(super) fn get(&self) -> Bytes {
        let again = self.note();
        let mut form = self.form.lock();
        let text = form.text();
        if again && matches!(*form, Form::Packed(_)) {
            *form = Form::Plain(text.clone());
        }
        text
    }

    /// The text, without a note that somebody read it.
    pub(super) fn peek(&self) -> Bytes {
        self.form.lock().text()
    }

    /// Notes that the object is in use; whether it was before.
    pub(super) fn note(&self) -> bool {
        let before = self.read.load(Ordering::Relaxed);
        if !before {
            self.read.store(true, Ordering::Relaxed);
        }
        before
    }

    /// Bytes of the text.
    pub(super) fn len(&self) -> usize {
        match &*self.form.lock() {
            Form::New(text) | Form::Plain(text) | Form::Unlike(text) => text.len(),
            Form::Packed(packed) => packed.len(),
        }
    }

    /// Whether nobody has read it since the last call.
    pub(super) fn is_unread(&self) -> bool {
        !self.read.swap(false, Ordering::Relaxed)
    }

    /// Whether packing would change nothing.
    pub(super) fn is_settled(&self) -> bool {
        !matches!(*self.form.lock(), Form::New(_) | Form::Plain(_))
    }

    /// Whether packing was never tried.
    pub(super) fn is_new(&self) -> bool {
        matches!(*self.form.lock(), Form::New(_))
    }

    /// Packs it, unless it is too short or too unlike the others.
    pub(super) fn pack(&self, dictionary: &Arc<Dictionary>) {
        let mut form = self.form.lock();
        if let Form::New(text) | Form::Plain(text) = &*form {
            let packed = if text.len() < WORTH { None } else { dictionary.pack(text) };
            *form = packed.map_or_else(|| Form::Unlike(text.clone()), Form::Packed);
        }
    }

    /// Whether it is packed.
    #[cfg(test)]
    pub(super) fn is_packed(&self) -> bool {
        matches!(*self.form.lock(), Form::Packed(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(text: &Bytes) -> Text {
        let packed = Text::new(text.clone());
        assert!(!packed.is_unread() && packed.is_unread(), "it is new, then it rests");
        packed.pack(&Arc::new(Dictionary::of(&[text], |text| (*text).clone())));
        assert!(packed.is_packed());
        packed
    }

    #[test]
    fn what_is_read_once_stays_packed_and_what_is_read_again_does_not() {
        let plain = Bytes::from("0123456789".repeat(50));
        let text = packed(&plain);
        assert_eq!((text.len(), text.get()), (500, plain.clone()));
        assert!(text.is_packed());
        assert_eq!(text.get(), plain);
        assert!(!text.is_packed());
        assert!(!text.is_unread(), "it was read");
    }

    #[test]
    fn readers_at_long_intervals_leave_it_packed() {
        let plain = Bytes::from("0123456789".repeat(50));
        let text = packed(&plain);
        for _ in 0..3 {
            assert_eq!(text.get(), plain);
            assert!(!text.is_unread());
        }
        assert!(text.is_packed());
    }

    #[test]
    fn a_short_text_stays_as_it_is() {
        let text = Text::new(Bytes::from_static(b"{}"));
        text.pack(&Arc::new(Dictionary::of(&["{}"], |text| *text)));
        assert!(!text.is_packed());
    }
}
