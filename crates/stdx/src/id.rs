//! Identifiers: random ones, and bytes in hex.

use rand::Rng;

/// Alphabet of generated names: no vowels and no look-alikes, as upstream's.
const SUFFIX: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A random version-4 UUID in text form (RFC 9562).
pub fn uuid() -> String {
    let mut b: [u8; 16] = rand::rng().random();
    b[6] = (b[6] & 0x0f) | 0x40;
    b[8] = (b[8] & 0x3f) | 0x80;
    let mut out = String::with_capacity(36);
    for (i, byte) in b.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        push_hex(&mut out, *byte);
    }
    out
}

/// `n` random characters for generated object names.
pub fn random_suffix(n: usize) -> String {
    let mut rng = rand::rng();
    (0..n).map(|_| char::from(SUFFIX[rng.random_range(0..SUFFIX.len())])).collect()
}

/// `bytes` random bytes in lower-case hex.
pub fn random_hex(bytes: usize) -> String {
    let mut rng = rand::rng();
    let mut out = String::with_capacity(2 * bytes);
    (0..bytes).for_each(|_| push_hex(&mut out, rng.random()));
    out
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(2 * bytes.len());
    bytes.iter().for_each(|byte| push_hex(&mut out, *byte));
    out
}

fn push_hex(out: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend([byte >> 4, byte & 15].map(|digit| char::from(DIGITS[usize::from(digit)])));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_has_the_form_of_version_4() {
        let (one, other) = (uuid(), uuid());
        assert_ne!(one, other);
        let parts: Vec<&str> = one.split('-').collect();
        assert_eq!(parts.iter().map(|p| p.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert!(parts.concat().bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)), "{one}");
        assert!(parts[2].starts_with('4') && parts[3].starts_with(['8', '9', 'a', 'b']), "{one}");
        assert_eq!(random_hex(4).len(), 8);
        assert_eq!(hex(&[0, 0x1f, 0xe0, 0xff]), "001fe0ff");
    }
}
