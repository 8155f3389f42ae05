//! Certificates and certificate requests in PEM form: the checks the API makes of them.

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

/// Checks a signing request: its form, and that its signature is by the key in it.
///
/// # Errors
/// What is wrong, in upstream's words where they are its own.
pub(super) fn request(text: &[u8]) -> Result<(), String> {
    let first = Pem::iter_from_buffer(text).next().and_then(Result::ok);
    let Some(block) = first.filter(|block| block.label == "CERTIFICATE REQUEST") else {
        return Err("PEM block type must be CERTIFICATE REQUEST".to_owned());
    };
    let (rest, parsed) = X509CertificationRequest::from_der(&block.contents)
        .map_err(|e| format!("x509: malformed certificate request: {e}"))?;
    if !rest.is_empty() {
        return Err("asn1: syntax error: trailing data".to_owned());
    }
    parsed.verify_signature().map_err(|_| {
        let key = parsed.certification_request_info.subject_pki.parsed();
        let why = match key {
            Ok(PublicKey::RSA(_)) => "crypto/rsa: verification error",
            Ok(PublicKey::EC(_)) => "x509: ECDSA verification failure",
            _ => "x509: cannot verify signature: algorithm unimplemented",
        };
        why.to_owned()
    })
}

/// The organizations (groups) that a signing request asks for.
///
/// # Errors
/// Why it is none.
pub(super) fn organizations(text: &[u8]) -> Result<Vec<String>, String> {
    let first = Pem::iter_from_buffer(text).next().and_then(Result::ok);
    let Some(block) = first.filter(|block| block.label == "CERTIFICATE REQUEST") else {
        return Err("PEM block type must be CERTIFICATE REQUEST".to_owned());
    };
    let (_, parsed) = X509CertificationRequest::from_der(&block.contents)
        .map_err(|e| format!("x509: malformed certificate request: {e}"))?;
    let named = parsed.certification_request_info.subject.iter_organization();
    Ok(named.filter_map(|o| o.as_str().ok()).map(str::to_owned).collect())
}

/// Checks the chain that a signer has issued; an empty one is fine.
///
/// # Errors
/// What is wrong.
pub(super) fn chain(text: &[u8]) -> Result<(), String> {
    if text.is_empty() {
        return Ok(());
    }
    let mut blocks = 0;
    for block in Pem::iter_from_buffer(text).map_while(Result::ok) {
        if block.label != "CERTIFICATE" {
            return Err(format!("only CERTIFICATE PEM blocks are allowed, found {:?}", block.label));
        }
        if has_headers(text, blocks) {
            return Err("no PEM block headers are permitted".to_owned());
        }
        blocks += 1;
        if block.contents.is_empty() {
            return Err("found CERTIFICATE PEM block containing 0 certificates".to_owned());
        }
        let (rest, _) = x509_parser::parse_x509_certificate(&block.contents)
            .map_err(|e| format!("x509: malformed certificate: {e}"))?;
        if !rest.is_empty() {
            return Err("x509: trailing data".to_owned());
        }
    }
    if blocks == 0 {
        return Err("must contain at least one CERTIFICATE PEM block".to_owned());
    }
    Ok(())
}

/// Whether the block of that number has headers: lines with a colon behind its first line.
fn has_headers(text: &[u8], number: usize) -> bool {
    let text = String::from_utf8_lossy(text);
    let begin = text.match_indices("-----BEGIN ").nth(number);
    let body = begin.and_then(|(at, _)| text[at..].lines().nth(1));
    body.is_some_and(|line| line.contains(':'))
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_no_request_is_refused() {
        let why = "PEM block type must be CERTIFICATE REQUEST";
        assert_eq!(super::request(b"").unwrap_err(), why);
        assert_eq!(super::request(b"-----BEGIN X-----\nAAAA\n-----END X-----\n").unwrap_err(), why);
    }

    #[test]
    fn a_chain_is_certificates_only() {
        assert_eq!(super::chain(b""), Ok(()));
        assert_eq!(super::chain(b"x").unwrap_err(), "must contain at least one CERTIFICATE PEM block");
        let key = b"-----BEGIN KEY-----\nAAAA\n-----END KEY-----\n";
        assert_eq!(super::chain(key).unwrap_err(), "only CERTIFICATE PEM blocks are allowed, found \"KEY\"");
    }
}
