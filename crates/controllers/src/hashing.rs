//! Short stable names for templates.

/// The alphabet of generated names.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A short stable name for a text. `collisions` gives another one when the name is taken.
pub(crate) fn safe_hash(text: &[u8], collisions: Option<i32>) -> String {
    let fnv32a = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(16_777_619);
    let mut hash = text.iter().fold(2_166_136_261_u32, fnv32a);
    if let Some(collisions) = collisions {
        hash = collisions.to_le_bytes().iter().fold(hash, fnv32a);
    }
    hash.to_string().bytes().map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()])).collect()
}
