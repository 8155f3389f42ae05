//! The ciphers. Each value has a random nonce of its own in front.

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockDecryptMut, BlockEncryptMut, KeyIvInit};
use aes::{Aes128, Aes192, Aes256};
use aes_gcm::aead::consts::U12;
use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{AesGcm, KeyInit};
use crypto_secretbox::XSalsa20Poly1305;
use rand::RngCore;

const GCM_NONCE: usize = 12;
const BLOCK: usize = 16;
const BOX_NONCE: usize = 24;

/// A cipher with its key.
pub(super) enum Cipher {
    Gcm128(Box<AesGcm<Aes128, U12>>),
    Gcm192(Box<AesGcm<Aes192, U12>>),
    Gcm256(Box<AesGcm<Aes256, U12>>),
    Cbc(Box<[u8]>),
    Secretbox(Box<XSalsa20Poly1305>),
}

/// `head` with a random nonce behind it.
fn with_nonce<const N: usize>(mut head: Vec<u8>) -> (Vec<u8>, [u8; N]) {
    let mut nonce = [0; N];
    rand::rng().fill_bytes(&mut nonce);
    head.extend_from_slice(&nonce);
    (head, nonce)
}

const SHORT: &str = "the stored data was shorter than the required size";

impl Cipher {
    /// AES in Galois/counter mode; keys of 16, 24 or 32 bytes.
    pub(super) fn gcm(key: &[u8]) -> Option<Self> {
        Some(match key.len() {
            16 => Self::Gcm128(Box::new(AesGcm::new_from_slice(key).ok()?)),
            24 => Self::Gcm192(Box::new(AesGcm::new_from_slice(key).ok()?)),
            32 => Self::Gcm256(Box::new(AesGcm::new_from_slice(key).ok()?)),
            _ => return None,
        })
    }

    /// AES in cipher block chaining; keys of 16, 24 or 32 bytes.
    pub(super) fn cbc(key: &[u8]) -> Option<Self> {
        matches!(key.len(), 16 | 24 | 32).then(|| Self::Cbc(key.into()))
    }

    /// XSalsa20 and Poly1305; keys of 32 bytes.
    pub(super) fn secretbox(key: &[u8]) -> Option<Self> {
        Some(Self::Secretbox(Box::new(XSalsa20Poly1305::new_from_slice(key).ok()?)))
    }

    /// `head`, nonce and encrypted value, bound to `about` where the cipher can.
    pub(super) fn seal(&self, head: Vec<u8>, value: &[u8], about: &[u8]) -> Result<Vec<u8>, String> {
        let failed = |_| "the value cannot be encrypted".to_owned();
        match self {
            Self::Gcm128(cipher) => seal_gcm(&**cipher, head, value, about),
            Self::Gcm192(cipher) => seal_gcm(&**cipher, head, value, about),
            Self::Gcm256(cipher) => seal_gcm(&**cipher, head, value, about),
            Self::Secretbox(cipher) => {
                let (mut out, nonce) = with_nonce::<BOX_NONCE>(head);
                out.extend(cipher.encrypt(&nonce.into(), value).map_err(failed)?);
                Ok(out)
            }
            Self::Cbc(key) => {
                let (mut out, iv) = with_nonce::<BLOCK>(head);
                let sealed = match key.len() {
                    16 => encrypt_cbc::<Aes128>(key, &iv, value),
                    24 => encrypt_cbc::<Aes192>(key, &iv, value),
                    _ => encrypt_cbc::<Aes256>(key, &iv, value),
                };
                out.extend(sealed.ok_or("the value cannot be encrypted")?);
                Ok(out)
            }
        }
    }

    /// The value of what [`Cipher::seal`] made, without its head.
    pub(super) fn open(&self, stored: &[u8], about: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Self::Gcm128(cipher) => open_gcm(&**cipher, stored, about),
            Self::Gcm192(cipher) => open_gcm(&**cipher, stored, about),
            Self::Gcm256(cipher) => open_gcm(&**cipher, stored, about),
            Self::Secretbox(cipher) => {
                let (nonce, sealed) = stored.split_at_checked(BOX_NONCE).ok_or(SHORT)?;
                cipher
                    .decrypt(nonce.into(), sealed)
                    .map_err(|_| "output array was not large enough for encryption".into())
            }
            Self::Cbc(key) => {
                let (iv, sealed) = stored.split_at_checked(BLOCK).ok_or(SHORT)?;
                if sealed.len() % BLOCK != 0 {
                    return Err("the stored data is not a multiple of the block size".into());
                }
                let opened = match key.len() {
                    16 => decrypt_cbc::<Aes128>(key, iv, sealed),
                    24 => decrypt_cbc::<Aes192>(key, iv, sealed),
                    _ => decrypt_cbc::<Aes256>(key, iv, sealed),
                };
                opened.ok_or_else(|| "invalid padding on input".into())
            }
        }
    }
}

fn seal_gcm<C: Aead<NonceSize = U12>>(
    cipher: &C,
    head: Vec<u8>,
    value: &[u8],
    about: &[u8],
) -> Result<Vec<u8>, String> {
    let (mut out, nonce) = with_nonce::<GCM_NONCE>(head);
    let sealed = cipher.encrypt(&nonce.into(), Payload { msg: value, aad: about });
    out.extend(sealed.map_err(|_| "the value cannot be encrypted")?);
    Ok(out)
}

fn open_gcm<C: Aead<NonceSize = U12>>(cipher: &C, stored: &[u8], about: &[u8]) -> Result<Vec<u8>, String> {
    let (nonce, sealed) = stored.split_at_checked(GCM_NONCE).ok_or(SHORT)?;
    let opened = cipher.decrypt(nonce.into(), Payload { msg: sealed, aad: about });
    opened.map_err(|_| "cipher: message authentication failed".into())
}

fn encrypt_cbc<C>(key: &[u8], iv: &[u8], value: &[u8]) -> Option<Vec<u8>>
where
    C: aes::cipher::BlockEncryptMut + aes::cipher::BlockCipher,
    cbc::Encryptor<C>: KeyIvInit + BlockEncryptMut,
{
    Some(cbc::Encryptor::<C>::new_from_slices(key, iv).ok()?.encrypt_padded_vec_mut::<Pkcs7>(value))
}

fn decrypt_cbc<C>(key: &[u8], iv: &[u8], sealed: &[u8]) -> Option<Vec<u8>>
where
    C: aes::cipher::BlockDecryptMut + aes::cipher::BlockCipher,
    cbc::Decryptor<C>: KeyIvInit + BlockDecryptMut,
{
    cbc::Decryptor::<C>::new_from_slices(key, iv).ok()?.decrypt_padded_vec_mut::<Pkcs7>(sealed).ok()
}
