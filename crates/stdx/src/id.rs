//! Random identifiers.

use rand::Rng;

/// Alphabet of generated names: no vowels and no look-alikes, as upstream's.
const SUFFIX: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A random version-4 UUID in text form (RFC 9562).
pub fn uuid() -> String {
    let mut b: [u8; 16] = rand::rng().random();
    b[6] = (b[6] & 0x0f) | 0x40;
    b[8] = (b[8] & 0x3f) | 0x80;
    let hex: String = b.iter().map(|x| format!("{x:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// `n` random characters for generated object names.
pub fn random_suffix(n: usize) -> String {
    let mut rng = rand::rng();
    (0..n).map(|_| char::from(SUFFIX[rng.random_range(0..SUFFIX.len())])).collect()
}

/// `bytes` random bytes in lower-case hex.
pub fn random_hex(bytes: usize) -> String {
    let mut rng = rand::rng();
    (0..bytes).map(|_| format!("{:02x}", rng.random::<u8>())).collect()
}
