//! Client certificates: CN is the user, each O a group, and an attribute of Kubernetes' own the uid.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use coracle_stdx::Clock;
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use x509_parser::x509::X509Name;

use crate::user::{Authenticator, AuthnError, Credentials, UserInfo};

/// The attribute of a subject that holds the user's uid.
const UID: &str = "1.3.6.1.4.1.57683.2";
/// Remembered certificates; more than that many different clients start over.
const REMEMBERED: usize = 1024;

/// Takes the identity from a verified client certificate. That it chains to the client CA is TLS's matter;
/// its validity in time is checked here with the injected clock.
#[derive(Debug)]
pub struct X509Authenticator {
    clock: Clock,
    known: RwLock<HashMap<Vec<u8>, Arc<Known>>>,
}

#[derive(Debug)]
struct Known {
    not_before: i64,
    not_after: i64,
    /// `None`: the certificate has no CN, so it says nothing about who this is.
    user: Option<UserInfo>,
}

impl X509Authenticator {
    /// An authenticator that tells the time by `clock`.
    pub fn new(clock: Clock) -> Self {
        Self { clock, known: RwLock::default() }
    }

    fn read(&self, der: &[u8]) -> Result<Arc<Known>, AuthnError> {
        if let Some(known) = self.known.read().get(der) {
            return Ok(known.clone());
        }
        let (_, cert) = x509_parser::parse_x509_certificate(der)
            .map_err(|e| AuthnError(format!("client certificate is not readable: {e}")))?;
        let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().map(str::to_owned).ok();
        let name = cert.subject().iter_common_name().filter_map(text).next().unwrap_or_default();
        let uid = uid_of(cert.subject())?;
        let groups: Vec<String> = cert.subject().iter_organization().filter_map(text).collect();
        let user = (!name.is_empty()).then(|| {
            let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
            let mut user = UserInfo { uid, ..UserInfo::authenticated(&name, &groups) };
            let id = vec![format!("X509SHA256={}", coracle_stdx::hex(&Sha256::digest(der)))];
            user.extra.insert("authentication.kubernetes.io/credential-id".into(), id);
            user
        });
        let validity = cert.validity();
        let known = Arc::new(Known {
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
            user,
        });
        let mut all = self.known.write();
        if all.len() >= REMEMBERED {
            all.clear();
        }
        all.insert(der.to_owned(), known.clone());
        Ok(known)
    }
}

/// The uid that a subject states; empty when it states none.
fn uid_of(subject: &X509Name<'_>) -> Result<String, AuthnError> {
    let stated = subject.iter_attributes().filter(|a| a.attr_type().to_id_string() == UID);
    let uids: Result<Vec<&str>, _> = stated.map(|a| a.as_str()).collect();
    match uids.map_err(|_| AuthnError("unable to parse UID into a string".to_owned()))?.as_slice() {
        [] => Ok(String::new()),
        [""] => Err(AuthnError("UID cannot be an empty string".to_owned())),
        [uid] => Ok((*uid).to_owned()),
        uids => Err(AuthnError(format!("expected 1 UID, but found multiple: [{}]", uids.join(" ")))),
    }
}

/// The common name of a certificate (DER); empty when it has none.
pub(crate) fn common_name(der: &[u8]) -> Result<String, AuthnError> {
    let (_, cert) = x509_parser::parse_x509_certificate(der)
        .map_err(|e| AuthnError(format!("client certificate is not readable: {e}")))?;
    let name = cert.subject().iter_common_name().find_map(|a| a.as_str().ok());
    Ok(name.unwrap_or_default().to_owned())
}

#[async_trait]
impl Authenticator for X509Authenticator {
    async fn authenticate(&self, credentials: &Credentials) -> Result<Option<UserInfo>, AuthnError> {
        let Some(der) = &credentials.client_cert else { return Ok(None) };
        let known = self.read(der)?;
        let now = self.clock.now();
        let time = |second| jiff::Timestamp::from_second(second).unwrap_or_default();
        if now.as_second() > known.not_after {
            let end = time(known.not_after);
            return Err(AuthnError(format!(
                "x509: certificate has expired or is not yet valid: current time {now:.0} is after {end}"
            )));
        }
        if now.as_second() < known.not_before {
            let begin = time(known.not_before);
            return Err(AuthnError(format!(
                "x509: certificate has expired or is not yet valid: current time {now:.0} is before {begin}"
            )));
        }
        Ok(known.user.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;
    use crate::pki::{CertificateAuthority, Issue, first_der};

    async fn user_with_uids(uids: &[&str]) -> Result<Option<UserInfo>, AuthnError> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "jane");
        for uid in uids {
            params
                .distinguished_name
                .push(rcgen::DnType::CustomDnType(vec![1, 3, 6, 1, 4, 1, 57683, 2]), *uid);
        }
        let key = rcgen::KeyPair::generate().expect("a key");
        let cert = params.self_signed(&key).expect("a certificate").der().to_vec();
        let credentials = Credentials { client_cert: Some(cert), bearer: None };
        X509Authenticator::new(Clock::system()).authenticate(&credentials).await
    }

    #[tokio::test]
    async fn a_certificate_may_state_the_uid_of_the_user() {
        let user = user_with_uids(&["6a1"]).await.expect("valid").expect("a user");
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("jane", "6a1"));
        assert_eq!(user_with_uids(&[]).await.expect("valid").expect("a user").uid, "");
        let empty = user_with_uids(&[""]).await.expect_err("an empty uid");
        assert_eq!(empty.to_string(), "UID cannot be an empty string");
    }

    #[tokio::test]
    async fn certificate_names_user_and_groups_until_it_expires() {
        let second = Arc::new(AtomicI64::new(1_700_000_000));
        let source = second.clone();
        let clock = Clock::from_fn(move || {
            jiff::Timestamp::from_second(source.load(Ordering::Relaxed)).expect("a time")
        });
        let ca = CertificateAuthority::create("kubernetes", &clock).expect("a CA");
        let issue = Issue {
            common_name: "jane".into(),
            organizations: vec!["devs".into(), "ops".into()],
            client: true,
            days: 1,
            ..Issue::default()
        };
        let pem = ca.issue(issue, &clock).expect("issues");
        let credentials = Credentials { client_cert: Some(first_der(&pem.cert).expect("der")), bearer: None };
        let x509 = X509Authenticator::new(clock);
        let user = x509.authenticate(&credentials).await.expect("valid").expect("a user");
        assert_eq!(user.name, "jane");
        assert_eq!(user.groups, ["devs", "ops", "system:authenticated"]);
        second.fetch_add(86_401, Ordering::Relaxed);
        let error = x509.authenticate(&credentials).await.expect_err("expired").to_string();
        assert!(error.contains("is after"), "{error}");
        second.fetch_sub(2 * 86_400, Ordering::Relaxed);
        assert!(x509.authenticate(&credentials).await.is_err());
    }
}
