//! Private keys as others keep them: PKCS#1 (kubeadm's RSA keys) and SEC1 (EC keys of openssl) brought to PKCS#8, which
//! all of ours read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

/// Object identifiers, encoded.
const RSA: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const EC: &[u8] = &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const CURVES: [&[u8]; 2] = [
    &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
    &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22],
];
const NULL: &[u8] = &[0x05, 0x00];
const VERSION: &[u8] = &[0x02, 0x01, 0x00];
const SEQUENCE: u8 = 0x30;
const OCTET_STRING: u8 = 0x04;
/// Characters of a line of PEM.
const LINE: usize = 64;

/// A value of DER: its tag, its length, its content.
fn value(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let bytes = length.to_be_bytes();
    let digits = &bytes[bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len() - 1)..];
    let mut out = vec![tag];
    if digits.len() > 1 || digits[0] > 0x7f {
        out.push(0x80 | u8::try_from(digits.len()).unwrap_or(u8::MAX));
    }
    out.extend_from_slice(digits);
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

fn wrapped(algorithm: &[&[u8]], key: &[u8]) -> Vec<u8> {
    value(SEQUENCE, &[VERSION, &value(SEQUENCE, algorithm), &value(OCTET_STRING, &[key])])
}

/// The first private key of a PEM text, as PKCS#8 PEM.
///
/// # Errors
/// There is none, or it is an EC key of another curve than P-256 and P-384.
pub fn pkcs8(pem: &str) -> Result<String, String> {
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| e.to_string())?;
    let der = match &key {
        PrivateKeyDer::Pkcs8(der) => der.secret_pkcs8_der().to_vec(),
        PrivateKeyDer::Pkcs1(der) => wrapped(&[RSA, NULL], der.secret_pkcs1_der()),
        PrivateKeyDer::Sec1(der) => {
            let der = der.secret_sec1_der();
            let is_of = |curve: &&&[u8]| der.windows(curve.len()).any(|part| part == **curve);
            let curve = CURVES.iter().find(is_of).ok_or("an EC key of neither P-256 nor P-384")?;
            wrapped(&[EC, curve], der)
        }
        _ => return Err("a kind of private key that is not known".to_owned()),
    };
    let text = STANDARD.encode(der);
    let mut out = String::from("-----BEGIN PRIVATE KEY-----\n");
    for at in (0..text.len()).step_by(LINE) {
        out.push_str(&text[at..text.len().min(at + LINE)]);
        out.push('\n');
    }
    out.push_str("-----END PRIVATE KEY-----\n");
    Ok(out)
}

#[cfg(test)]
mod tests {
    use rcgen::KeyPair;

    use super::*;

    #[test]
    fn keys_of_kubeadm_and_openssl_are_read() {
        for name in ["rsa-pkcs1.pem", "ec-sec1.pem"] {
            let path = format!("{}/testdata/{name}", env!("CARGO_MANIFEST_DIR"));
            let pem = std::fs::read_to_string(path).expect("the key");
            let ours = pkcs8(&pem).expect("read");
            let pair = KeyPair::from_pem(&ours).expect("understood");
            assert_eq!(pkcs8(&ours).expect("read"), ours, "{name}: PKCS#8 stays");
            let rsa = pair.is_compatible(&rcgen::PKCS_RSA_SHA256);
            assert_eq!(rsa, name.starts_with("rsa"));
        }
        assert!(pkcs8("nonsense").is_err());
    }

    #[test]
    fn lengths_take_as_many_bytes_as_they_need() {
        assert_eq!(value(SEQUENCE, &[]), [0x30, 0]);
        assert_eq!(value(SEQUENCE, &[&[0; 127]])[..2], [0x30, 127]);
        assert_eq!(value(SEQUENCE, &[&[0; 128]])[..3], [0x30, 0x81, 128]);
        assert_eq!(value(SEQUENCE, &[&[0; 300]])[..4], [0x30, 0x82, 1, 44]);
    }
}
