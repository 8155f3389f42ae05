//! The cryptography of `jsonwebtoken` by ring, which TLS uses already: ES256, ES384 and RS256 to RS512.
//!
//! Token keys are made and checked by the library that the rest of the program has, instead of a second set
//! of elliptic curves and big integers. Source: RFC 7518 section 3.

use std::sync::Once;

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::jwk::{EllipticCurve, ThumbprintHash};
use jsonwebtoken::signature::{self, Signer, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::rand::SystemRandom;
use ring::signature::{
    self as keys, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair, RsaEncoding, RsaKeyPair, RsaParameters,
    RsaPublicKeyComponents, UnparsedPublicKey,
};

/// Makes ring the provider of this process. Every call behind the first does nothing.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    static PROVIDER: CryptoProvider = CryptoProvider {
        signer_factory: signer,
        verifier_factory: verifier,
        key_utils: KeyUtils {
            rsa_pub_components_from_private_key: rsa_public,
            rsa_pub_components_from_public_key: |_| Err(ErrorKind::InvalidAlgorithm.into()),
            ec_pub_components_from_private_key: ec_public,
            ed_pub_components_from_private_key: |_, _| Err(ErrorKind::InvalidAlgorithm.into()),
            compute_digest: digest,
        },
    };
    // An error says that a provider is there already: then that one serves.
    ONCE.call_once(|| {
        let _ = PROVIDER.install_default();
    });
}

enum Private {
    Ec(Box<EcdsaKeyPair>),
    Rsa(Box<RsaKeyPair>, &'static dyn RsaEncoding),
}

struct RingSigner {
    algorithm: Algorithm,
    key: Private,
}

fn signer(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>, Error> {
    let rsa = |encoding: &'static dyn RsaEncoding| {
        let pair = rsa_pair(key.as_bytes())?;
        Ok::<_, Error>(Private::Rsa(Box::new(pair), encoding))
    };
    let private = match algorithm {
        Algorithm::ES256 | Algorithm::ES384 => Private::Ec(Box::new(ec_pair(key.as_bytes(), *algorithm)?.0)),
        Algorithm::RS256 => rsa(&keys::RSA_PKCS1_SHA256)?,
        Algorithm::RS384 => rsa(&keys::RSA_PKCS1_SHA384)?,
        Algorithm::RS512 => rsa(&keys::RSA_PKCS1_SHA512)?,
        _ => return Err(ErrorKind::InvalidAlgorithm.into()),
    };
    Ok(Box::new(RingSigner { algorithm: *algorithm, key: private }))
}

impl Signer<Vec<u8>> for RingSigner {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        let random = SystemRandom::new();
        match &self.key {
            Private::Ec(pair) => {
                let signed = pair.sign(&random, message).map_err(|_| signature::Error::new())?;
                Ok(signed.as_ref().to_vec())
            }
            Private::Rsa(pair, encoding) => {
                let mut signed = vec![0; pair.public().modulus_len()];
                let done = pair.sign(*encoding, &random, message, &mut signed);
                done.map_err(|_| signature::Error::new())?;
                Ok(signed)
            }
        }
    }
}

impl JwtSigner for RingSigner {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

struct RingVerifier {
    algorithm: Algorithm,
    key: DecodingKey,
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    let family = match algorithm {
        Algorithm::ES256 | Algorithm::ES384 => AlgorithmFamily::Ec,
        Algorithm::RS256
        | Algorithm::RS384
        | Algorithm::RS512
        | Algorithm::PS256
        | Algorithm::PS384
        | Algorithm::PS512 => AlgorithmFamily::Rsa,
        _ => return Err(ErrorKind::InvalidAlgorithm.into()),
    };
    if key.family() != family {
        return Err(ErrorKind::InvalidKeyFormat.into());
    }
    Ok(Box::new(RingVerifier { algorithm: *algorithm, key: key.clone() }))
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signed: &Vec<u8>) -> Result<(), signature::Error> {
        let rsa = |parameters: &'static RsaParameters| match self.key.kind() {
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signed)
            }
            DecodingKeyKind::SecretOrDer(der) => {
                UnparsedPublicKey::new(parameters, der).verify(message, signed)
            }
        };
        let ec = |parameters: &'static keys::EcdsaVerificationAlgorithm| {
            let point = self.key.try_get_as_bytes().map_err(|_| ring::error::Unspecified)?;
            UnparsedPublicKey::new(parameters, point).verify(message, signed)
        };
        let checked = match self.algorithm {
            Algorithm::ES256 => ec(&keys::ECDSA_P256_SHA256_FIXED),
            Algorithm::ES384 => ec(&keys::ECDSA_P384_SHA384_FIXED),
            Algorithm::PS256 => rsa(&keys::RSA_PSS_2048_8192_SHA256),
            Algorithm::PS384 => rsa(&keys::RSA_PSS_2048_8192_SHA384),
            Algorithm::PS512 => rsa(&keys::RSA_PSS_2048_8192_SHA512),
            Algorithm::RS384 => rsa(&keys::RSA_PKCS1_2048_8192_SHA384),
            Algorithm::RS512 => rsa(&keys::RSA_PKCS1_2048_8192_SHA512),
            _ => rsa(&keys::RSA_PKCS1_2048_8192_SHA256),
        };
        checked.map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

/// An elliptic key pair from PKCS#8, with its curve.
fn ec_pair(der: &[u8], algorithm: Algorithm) -> Result<(EcdsaKeyPair, EllipticCurve), Error> {
    let (kind, curve): (&'static EcdsaSigningAlgorithm, _) = match algorithm {
        Algorithm::ES256 => (&keys::ECDSA_P256_SHA256_FIXED_SIGNING, EllipticCurve::P256),
        Algorithm::ES384 => (&keys::ECDSA_P384_SHA384_FIXED_SIGNING, EllipticCurve::P384),
        _ => return Err(ErrorKind::InvalidEcdsaKey.into()),
    };
    let pair = EcdsaKeyPair::from_pkcs8(kind, der, &SystemRandom::new());
    Ok((pair.map_err(|_| ErrorKind::InvalidEcdsaKey)?, curve))
}

/// An RSA key pair from PKCS#1, which is how `EncodingKey` holds it.
fn rsa_pair(der: &[u8]) -> Result<RsaKeyPair, Error> {
    RsaKeyPair::from_der(der)
        .or_else(|_| RsaKeyPair::from_pkcs8(der))
        .map_err(|e| ErrorKind::InvalidRsaKey(e.to_string()).into())
}

/// Modulus and exponent.
fn rsa_public(der: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let parts = RsaPublicKeyComponents::<Vec<u8>>::from(rsa_pair(der)?.public());
    Ok((parts.n, parts.e))
}

/// The curve and the point's two coordinates.
fn ec_public(der: &[u8], algorithm: Algorithm) -> Result<(EllipticCurve, Vec<u8>, Vec<u8>), Error> {
    let (pair, curve) = ec_pair(der, algorithm)?;
    match pair.public_key().as_ref() {
        [4, point @ ..] => {
            let (x, y) = point.split_at(point.len() / 2);
            Ok((curve, x.to_vec(), y.to_vec()))
        }
        _ => Err(ErrorKind::InvalidEcdsaKey.into()),
    }
}

fn digest(data: &[u8], function: ThumbprintHash) -> Result<Vec<u8>, Error> {
    let algorithm = match function {
        ThumbprintHash::SHA256 => &ring::digest::SHA256,
        ThumbprintHash::SHA384 => &ring::digest::SHA384,
        ThumbprintHash::SHA512 => &ring::digest::SHA512,
        _ => return Err(ErrorKind::InvalidAlgorithm.into()),
    };
    Ok(ring::digest::digest(algorithm, data).as_ref().to_vec())
}
