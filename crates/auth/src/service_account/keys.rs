//! Public keys that check tokens which other keys of the cluster signed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use rcgen::{KeyPair, PublicKeyData as _};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// Bytes of a coordinate of P-256.
const COORDINATE: usize = 32;

/// A key that checks signatures.
pub(super) struct CheckingKey {
    pub key: DecodingKey,
    pub validation: Validation,
    /// As published.
    pub jwk: Value,
}

/// Upstream's id of a key.
pub(super) fn id(public: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(public))
}

/// Signatures alone are checked: times and audiences are looked at with the injected clock.
pub(super) fn validation(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation.set_required_spec_claims::<&str>(&[]);
    validation
}

/// The public keys of a PEM text, or the public half of the private key in it.
///
/// # Errors
/// There is none, or it is neither RSA nor ECDSA P-256.
pub(super) fn read(pem: &str) -> Result<Vec<CheckingKey>, String> {
    let public: Vec<Vec<u8>> = SubjectPublicKeyInfoDer::pem_slice_iter(pem.as_bytes())
        .map(|key| key.map(|key| key.to_vec()))
        .collect::<Result<_, _>>()
        .map_err(|e| e.to_string())?;
    if !public.is_empty() {
        return public.iter().map(|der| checking(der)).collect();
    }
    let private = crate::private_key::pkcs8(pem)?;
    let pair = KeyPair::from_pem(&private).map_err(|e| e.to_string())?;
    Ok(vec![checking(&pair.subject_public_key_info())?])
}

fn checking(der: &[u8]) -> Result<CheckingKey, String> {
    let (_, info) = SubjectPublicKeyInfo::from_der(der).map_err(|e| e.to_string())?;
    let text = |bytes: &[u8]| {
        let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(0);
        URL_SAFE_NO_PAD.encode(&bytes[first..])
    };
    let (algorithm, mut jwk) = match info.parsed().map_err(|e| e.to_string())? {
        PublicKey::RSA(key) => (
            Algorithm::RS256,
            json!({ "kty": "RSA", "alg": "RS256", "n": text(key.modulus), "e": text(key.exponent) }),
        ),
        PublicKey::EC(point) => {
            let data = point.data();
            let (Some(4), true) = (data.first(), data.len() == 2 * COORDINATE + 1) else {
                return Err("an EC key of another curve than P-256".to_owned());
            };
            let (x, y) = data[1..].split_at(COORDINATE);
            let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
            (Algorithm::ES256, json!({ "kty": "EC", "alg": "ES256", "crv": "P-256", "x": x, "y": y }))
        }
        _ => return Err("neither an RSA nor an ECDSA key".to_owned()),
    };
    jwk["kid"] = id(der).into();
    jwk["use"] = "sig".into();
    let known: Jwk = serde_json::from_value(jwk.clone()).map_err(|e| e.to_string())?;
    let key = DecodingKey::from_jwk(&known).map_err(|e| e.to_string())?;
    Ok(CheckingKey { key, validation: validation(algorithm), jwk })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::{TokenIssuer, TokenSpec};
    use super::*;

    #[test]
    fn tokens_of_a_key_before_are_still_believed_and_its_public_half_is_published() {
        let url = "https://kubernetes.default.svc";
        let (old, new) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
        let issuer = |pair: &KeyPair| TokenIssuer::new(&pair.serialize_pem(), url, Vec::new()).expect("made");
        let (token, _) = issuer(&old).issue(&TokenSpec::default(), Timestamp::UNIX_EPOCH);
        assert!(issuer(&new).check::<Value>(&token, url).is_err());
        let both = issuer(&new).with_keys(&[new.public_key_pem() + &old.public_key_pem()]).expect("read");
        assert!(both.check::<Value>(&token, url).expect("believed").is_some());
        let (own, _) = both.issue(&TokenSpec::default(), Timestamp::UNIX_EPOCH);
        assert!(both.check::<Value>(&own, url).expect("believed").is_some());
        let published = both.jwks()["keys"].as_array().expect("a list").len();
        assert_eq!(published, 2, "one each, none twice");
        let private = issuer(&new).with_keys(&[old.serialize_pem()]).expect("read");
        assert_eq!(private.jwks()["keys"][1]["kid"], id(&old.subject_public_key_info()));
    }

    #[test]
    fn a_key_is_published_alike_from_its_private_and_its_public_half() {
        let path = format!("{}/testdata/rsa-pkcs1.pem", env!("CARGO_MANIFEST_DIR"));
        let pem = std::fs::read_to_string(path).expect("the key");
        let issuer = TokenIssuer::new(&pem, "https://i", Vec::new()).expect("made");
        let read = read(&pem).expect("read");
        assert_eq!(issuer.jwks()["keys"][0], read[0].jwk);
    }
}
