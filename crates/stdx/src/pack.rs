//! Texts that are alike, packed: each is kept as what it has beside a dictionary that they share.
//!
//! For many small texts of one form, such as the JSON of objects of one kind. LZ4 with a dictionary: an object of 4 KB
//! takes about 200 bytes, comes back in a microsecond or two, and packing costs five to ten.

use std::sync::Arc;
use std::time::Duration;

/// Longest dictionary in bytes. LZ4 looks back 64 KB; each packing walks through all of it.
const LONGEST: usize = 16 << 10;
/// Most samples in a dictionary.
const SAMPLES: usize = 8;

/// What texts have in common: a few of them.
#[derive(Debug)]
pub struct Dictionary(Box<[u8]>);

impl Dictionary {
    /// A dictionary of the texts of up to eight of these, spread evenly.
    pub fn of<T, S: AsRef<[u8]>>(some: &[T], text: impl Fn(&T) -> S) -> Self {
        let step = some.len().div_ceil(SAMPLES).max(1);
        let mut all = Vec::new();
        for one in some.iter().step_by(step) {
            let text = text(one);
            let text = text.as_ref();
            if all.len() + text.len() <= LONGEST {
                all.extend_from_slice(text);
            }
        }
        Self(all.into_boxed_slice())
    }

    /// Packs a text; `None` when that would save less than half of it.
    pub fn pack(self: &Arc<Self>, text: &[u8]) -> Option<Packed> {
        let length = u32::try_from(text.len()).ok()?;
        let rest = lz4_flex::block::compress_with_dict(text, &self.0);
        // A new allocation of just this size: the one above was made for the worst case.
        let packed = || Packed { dictionary: self.clone(), length, rest: rest.as_slice().into() };
        (rest.len() <= text.len() / 2).then(packed)
    }
}

/// Fewer texts are not worth a dictionary.
const FEW: usize = 16;
/// With so many times as many texts as a dictionary was made for, there is a new one.
const OUTGROWN: usize = 8;

/// The dictionary for a growing collection of texts.
#[derive(Debug, Default)]
pub struct Lexicon(Option<(Arc<Dictionary>, usize)>);

impl Lexicon {
    /// The dictionary for packing `new`, of a collection of `count`; `None` while they are too few. `text` gives one's
    /// text.
    pub fn dictionary<T, S: AsRef<[u8]>>(
        &mut self,
        count: usize,
        new: &[T],
        text: impl Fn(&T) -> S,
    ) -> Option<Arc<Dictionary>> {
        let grown = |made_for: usize| count >= made_for * OUTGROWN && new.len() >= FEW;
        if let Some((dictionary, made_for)) = &self.0
            && !grown(*made_for)
        {
            return Some(dictionary.clone());
        }
        if new.len() < FEW {
            return None;
        }
        let dictionary = Arc::new(Dictionary::of(new, text));
        self.0 = Some((dictionary.clone(), count));
        Some(dictionary)
    }
}

/// What is new is packed between one and two of these intervals after somebody last asked for it,
const NEW: Duration = Duration::from_secs(2);
/// and what was packed before, and somebody asked for again, after so many.
const OLD: u32 = 15;

/// When to look for what may be packed. What is new goes soon: else thousands of new objects, made within a minute,
/// stand decoded side by side, and what stays of each keeps the pages of all.
#[derive(Debug, Default)]
pub struct Rounds(u32);

impl Rounds {
    /// Waits for the next round and tells whether it is for new objects only.
    pub async fn next(&mut self) -> bool {
        tokio::time::sleep(NEW).await;
        self.0 = (self.0 + 1) % OLD;
        self.0 != 0
    }
}

/// So many are packed in a go, about a millisecond's work, or as many as all of them take in this number of goes,
const AT_ONCE: usize = 64;
const GOES: usize = 64;
/// and so long nothing is packed after that.
const PAUSE: Duration = Duration::from_millis(25);

/// Packs many, a few at a time: other work comes first. It takes no longer than two seconds, or what comes meanwhile
/// would pile up.
pub async fn gently<T>(all: &[T], pack: impl Fn(&T)) {
    for some in all.chunks(all.len().div_ceil(GOES).max(AT_ONCE)) {
        some.iter().for_each(&pack);
        tokio::time::sleep(PAUSE).await;
    }
}

/// A packed text.
#[derive(Debug)]
pub struct Packed {
    dictionary: Arc<Dictionary>,
    length: u32,
    rest: Box<[u8]>,
}

impl Packed {
    /// The text as it was.
    pub fn unpack(&self) -> Vec<u8> {
        // It was made by `pack`: it cannot be damaged but by a fault in memory.
        lz4_flex::block::decompress_with_dict(&self.rest, self.len(), &self.dictionary.0).unwrap_or_default()
    }

    /// Bytes of the text.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// Bytes that are kept of it, without the dictionary's.
    pub fn kept(&self) -> usize {
        self.rest.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(n: usize) -> Vec<u8> {
        let fields: Vec<String> =
            (0..40).map(|field| format!("\"field-{field}\":\"value-{field}\"")).collect();
        format!("{{\"name\":\"n-{n}\",{}}}", fields.join(",")).into_bytes()
    }

    #[test]
    fn texts_that_are_alike_take_a_tenth_and_come_back_as_they_were() {
        let texts: Vec<Vec<u8>> = (0..100).map(text).collect();
        let dictionary = Arc::new(Dictionary::of(&texts, Vec::clone));
        for text in &texts {
            let packed = dictionary.pack(text).expect("smaller");
            assert!(packed.kept() * 10 < text.len(), "{} of {}", packed.kept(), text.len());
            assert_eq!((packed.len(), packed.unpack()), (text.len(), text.clone()));
        }
    }

    #[test]
    fn what_has_nothing_in_common_is_not_packed() {
        let dictionary = Arc::new(Dictionary::of(&[1], |n| text(*n)));
        let other: Vec<u8> = (0..500_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        assert!(dictionary.pack(&other).is_none());
        assert!(dictionary.pack(b"").is_none_or(|packed| packed.unpack().is_empty()));
    }

    #[test]
    fn a_collection_gets_a_dictionary_when_it_is_worth_it_and_another_when_it_has_outgrown_it() {
        let mut lexicon = Lexicon::default();
        let mut given = |count: usize, new: usize| lexicon.dictionary(count, &vec![7; new], |n| text(*n));
        assert!(given(15, 15).is_none());
        let first = given(16, 16).expect("enough");
        let same = |other: Option<Arc<Dictionary>>| other.is_some_and(|other| Arc::ptr_eq(&first, &other));
        assert!(same(given(100, 1)) && same(given(127, 100)) && same(given(1000, 3)));
        assert!(!same(given(128, 16)));
    }

    #[test]
    fn texts_of_any_size_come_back_and_a_dictionary_stays_small() {
        let large = text(1).repeat(1000);
        let of = |texts: &[&[u8]]| Dictionary::of(texts, |text| text.to_vec());
        for dictionary in [of(&[&large[..]]), of(&[]), of(&[&text(3)[..]; 100])] {
            assert!(dictionary.0.len() <= LONGEST);
            let packed = Arc::new(dictionary).pack(&large).expect("it repeats itself");
            assert_eq!(packed.unpack(), large);
        }
    }
}
