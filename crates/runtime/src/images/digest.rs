//! Digests of contents. The store names everything by sha256; what manifests name by sha512, the other algorithm that
//! OCI registers and registries have, is checked by that.
//! Source: <https://github.com/opencontainers/image-spec/blob/main/descriptor.md#digests>.

use std::fmt;
use std::io::{self, Write};

use sha2::{Digest as _, Sha256, Sha512};

/// A way to make digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// As digests begin with it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Hex digits.
    const fn length(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }

    /// The one whose digests are as long as this one in hex.
    pub fn of_hex(hex: &str) -> Self {
        Self::ALL.into_iter().find(|a| a.length() == hex.len()).unwrap_or(Self::Sha256)
    }

    /// Makes a digest of what will be written.
    pub fn hasher(self) -> Hasher {
        match self {
            Self::Sha256 => Hasher::Sha256(Sha256::new()),
            Self::Sha512 => Hasher::Sha512(Sha512::new()),
        }
    }
}

/// Hashes what is written.
#[derive(Clone)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    /// The digest of all that was written.
    pub fn finish(self) -> Digest {
        let (algorithm, hex) = match self {
            Self::Sha256(hash) => (Algorithm::Sha256, coracle_stdx::hex(&hash.finalize())),
            Self::Sha512(hash) => (Algorithm::Sha512, coracle_stdx::hex(&hash.finalize())),
        };
        Digest { algorithm, hex }
    }
}

impl Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a content is called by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Digest {
    pub algorithm: Algorithm,
    /// Lower case.
    pub hex: String,
}

impl Digest {
    /// Reads `sha256:…` or `sha512:…`.
    ///
    /// # Errors
    /// It is no digest, or of another kind; the texts are those of Docker's and containerd's library.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const FORMAT: &str = "invalid checksum digest format";
        let (name, hex) = text.split_once(':').ok_or(FORMAT)?;
        let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric());
        let known = Algorithm::ALL.into_iter().find(|a| a.name() == name);
        let Some(algorithm) = known else {
            let one =
                name.split(['+', '.', '_', '-']).all(word) && hex.bytes().all(|b| b.is_ascii_hexdigit());
            return Err(if one && !hex.is_empty() { "unsupported digest algorithm" } else { FORMAT });
        };
        if hex.len() != algorithm.length() {
            return Err("invalid checksum digest length");
        }
        if !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(FORMAT);
        }
        Ok(Self { algorithm, hex: hex.to_owned() })
    }

    /// The digest of these bytes.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = algorithm.hasher();
        hasher.update(bytes);
        hasher.finish()
    }

    /// Where OCI layouts have a blob.
    pub fn path(&self) -> String {
        format!("blobs/{}/{}", self.algorithm.name(), self.hex)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

/// The sha256 in hex by which the store has a content.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Digest::of(Algorithm::Sha256, bytes).hex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_known_by_either_algorithm() {
        // The examples of FIPS 180-2.
        let short = Digest::of(Algorithm::Sha256, b"abc");
        assert!(short.to_string().starts_with("sha256:ba7816bf8f01cfea"), "{short}");
        let long = Digest::of(Algorithm::Sha512, b"abc");
        assert!(long.path().starts_with("blobs/sha512/ddaf35a193617aba"), "{long}");
        for digest in [short, long] {
            assert_eq!(Algorithm::of_hex(&digest.hex), digest.algorithm);
            assert_eq!(Digest::parse(&digest.to_string()), Ok(digest));
        }
    }

    #[test]
    fn what_is_no_digest_is_told_from_an_unknown_algorithm() {
        let check = |text: &str, why| assert_eq!(Digest::parse(text), Err(why), "{text}");
        let digits = "a".repeat(64);
        check(&format!("sha512:{digits}"), "invalid checksum digest length");
        check(&format!("sha256:{}", "A".repeat(64)), "invalid checksum digest format");
        check(&format!("md5:{digits}"), "unsupported digest algorithm");
        check(&format!("blake3+b64:{digits}"), "unsupported digest algorithm");
        check(&format!("../x:{digits}"), "invalid checksum digest format");
        check("sha256", "invalid checksum digest format");
        check("md5:", "invalid checksum digest format");
    }
}
