//! A token in its three parts, and whether a key has signed it. RFC 7515 (compact form), RFC 7518 section 3.

use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, EllipticCurveKeyParameters, Jwk};
use jsonwebtoken::{Algorithm, DecodingKey};
use p521::ecdsa::signature::Verifier;
use p521::ecdsa::{Signature, VerifyingKey};
use serde::Deserialize;

use super::Claims;

/// P-521 with SHA-512, which neither ring nor `jsonwebtoken` has.
const ES512: &str = "ES512";
/// Bytes of a coordinate on P-521.
const COORDINATE: usize = 66;

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    /// Extensions that must be understood: none is.
    #[serde(default)]
    crit: Option<Vec<String>>,
}

/// A token of which nothing but its form has been checked.
pub(super) struct Signed<'a> {
    /// As the header names it.
    pub(super) algorithm: String,
    /// Which key has signed it, if it says so.
    pub(super) key: Option<String>,
    message: &'a str,
    payload: &'a str,
    signature: &'a str,
}

impl<'a> Signed<'a> {
    /// Reads the header of a token.
    pub(super) fn read(token: &'a str) -> Result<Self, String> {
        let malformed = |why: &str| format!("oidc: malformed jwt: {why}");
        let parts = token.rsplit_once('.').and_then(|(message, signature)| {
            let (header, payload) = message.split_once('.')?;
            (!payload.contains('.')).then_some((message, header, payload, signature))
        });
        let (message, header, payload, signature) = parts.ok_or("oidc: malformed jwt")?;
        let bytes = URL_SAFE_NO_PAD.decode(header).map_err(|e| malformed(&e.to_string()))?;
        let header: Header = serde_json::from_slice(&bytes).map_err(|e| malformed(&e.to_string()))?;
        if header.crit.is_some_and(|names| !names.is_empty()) {
            return Err(malformed("unsupported crit header"));
        }
        let key = header.kid.filter(|kid| !kid.is_empty());
        Ok(Self { algorithm: header.alg, key, message, payload, signature })
    }

    /// Whether `key` has made the signature. An answer to the algorithm and the kind of key that do not fit is no.
    pub(super) fn is_signed_by(&self, key: &Jwk) -> bool {
        if self.algorithm == ES512 {
            return match &key.algorithm {
                AlgorithmParameters::EllipticCurve(point) => self.on_p521(point).is_some(),
                _ => false,
            };
        }
        let (Ok(algorithm), Ok(key)) = (Algorithm::from_str(&self.algorithm), DecodingKey::from_jwk(key))
        else {
            return false;
        };
        // An octet sequence as a key would let whoever knows the public document sign.
        let asymmetric = !matches!(algorithm, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512);
        let signed =
            |key| jsonwebtoken::crypto::verify(self.signature, self.message.as_bytes(), key, algorithm);
        asymmetric && signed(&key).unwrap_or(false)
    }

    fn on_p521(&self, point: &EllipticCurveKeyParameters) -> Option<()> {
        if point.curve != EllipticCurve::P521 {
            return None;
        }
        // SEC 1: 4, then both coordinates in full width.
        let mut uncompressed = vec![4];
        for text in [&point.x, &point.y] {
            let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
            let room = COORDINATE.checked_sub(bytes.len())?;
            uncompressed.resize(uncompressed.len() + room, 0);
            uncompressed.extend(bytes);
        }
        let key = VerifyingKey::from_sec1_bytes(&uncompressed).ok()?;
        let signature = Signature::from_slice(&URL_SAFE_NO_PAD.decode(self.signature).ok()?).ok()?;
        key.verify(self.message.as_bytes(), &signature).ok()
    }

    /// What it says, believed or not.
    pub(super) fn claims(&self) -> Result<Claims, String> {
        let failed = |why: String| format!("oidc: failed to unmarshal claims: {why}");
        let bytes = URL_SAFE_NO_PAD.decode(self.payload).map_err(|e| failed(e.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|e| failed(e.to_string()))
    }
}
