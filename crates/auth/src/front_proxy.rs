//! The front proxy: a server with a certificate of its own CA that says in headers for whom it asks.

use std::collections::BTreeMap;

use http::HeaderMap;
use http::header::HeaderName;

use crate::user::{AuthnError, UserInfo};
use crate::x509::common_name;

/// Which proxies are believed, and which headers they use. Header names count without regard to case.
#[derive(Clone, Debug, Default)]
pub struct FrontProxy {
    /// CA of the proxies' certificates, PEM.
    pub ca_pem: String,
    /// Common names of the proxies that are believed; empty: all that the CA vouches for.
    pub allowed_names: Vec<String>,
    /// Headers with the user's name; the first that is there counts.
    pub username_headers: Vec<String>,
    /// Headers with the user's id.
    pub uid_headers: Vec<String>,
    /// Headers with groups; all count.
    pub group_headers: Vec<String>,
    /// What the names of headers with extra attributes begin with; the rest is the key, percent-encoded.
    pub extra_prefixes: Vec<String>,
}

impl FrontProxy {
    /// For whom the proxy with this certificate (DER, of the CA) asks. `None` when it says nothing about that: it
    /// then asks for itself.
    ///
    /// # Errors
    /// The certificate is of a proxy that is not allowed.
    pub fn user(&self, certificate: &[u8], headers: &HeaderMap) -> Result<Option<UserInfo>, AuthnError> {
        let name = common_name(certificate)?;
        if !self.allowed_names.is_empty() && !self.allowed_names.contains(&name) {
            return Err(AuthnError(format!("x509: subject with cn={name} is not in the allowed list")));
        }
        let Some(user) = first(headers, &self.username_headers) else { return Ok(None) };
        let mut groups: Vec<String> = Vec::new();
        for header in &self.group_headers {
            groups.extend(
                headers.get_all(header.as_str()).iter().filter_map(|v| v.to_str().ok()).map(Into::into),
            );
        }
        let known = |g: &String| g == "system:authenticated" || g == "system:unauthenticated";
        if !groups.iter().any(known) {
            groups.push("system:authenticated".into());
        }
        let uid = first(headers, &self.uid_headers).unwrap_or_default();
        Ok(Some(UserInfo { name: user, uid, groups, extra: self.extra(headers) }))
    }

    fn extra(&self, headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in headers {
            let key = self.extra_prefixes.iter().find_map(|p| strip(name, p));
            if let (Some(key), Ok(value)) = (key, value.to_str()) {
                extra.entry(unescaped(key)).or_default().push(value.to_owned());
            }
        }
        extra
    }

    /// Takes out the headers that say for whom a proxy asks: they have been read, or count for nothing.
    pub fn clear(&self, headers: &mut HeaderMap) {
        let named = |name: &HeaderName| {
            let lists = [&self.username_headers, &self.uid_headers, &self.group_headers];
            lists.iter().any(|list| list.iter().any(|h| h.eq_ignore_ascii_case(name.as_str())))
                || self.extra_prefixes.iter().any(|p| strip(name, p).is_some())
        };
        let gone: Vec<HeaderName> = headers.keys().filter(|name| named(name)).cloned().collect();
        for name in gone {
            headers.remove(name);
        }
    }
}

/// What of a header's name follows a prefix.
fn strip<'n>(name: &'n HeaderName, prefix: &str) -> Option<&'n str> {
    let (name, long) = (name.as_str(), prefix.len());
    let head = name.get(..long)?;
    (!prefix.is_empty() && head.eq_ignore_ascii_case(prefix)).then(|| &name[long..])
}

fn first(headers: &HeaderMap, names: &[String]) -> Option<String> {
    let values = names.iter().filter_map(|name| headers.get(name.as_str())?.to_str().ok());
    values.map(str::to_owned).find(|value| !value.is_empty())
}

/// A percent-encoded key; one that is not well formed is taken as it is.
fn unescaped(key: &str) -> String {
    let mut out = Vec::with_capacity(key.len());
    let mut bytes = key.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let digits: Vec<u8> = bytes.by_ref().take(2).collect();
        let digits = std::str::from_utf8(&digits).ok().filter(|d| d.len() == 2);
        match digits.and_then(|d| u8::from_str_radix(d, 16).ok()) {
            Some(b) => out.push(b),
            None => return key.to_owned(),
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| key.to_owned())
}

#[cfg(test)]
mod tests {
    use coracle_stdx::Clock;
    use http::HeaderValue;

    use super::*;
    use crate::pki::{CertificateAuthority, Issue, first_der};

    fn certificate(name: &str) -> Vec<u8> {
        let clock = Clock::system();
        let ca = CertificateAuthority::create("front-proxy-ca", &clock).expect("a CA");
        let issue = Issue { common_name: name.into(), client: true, days: 1, ..Issue::default() };
        first_der(&ca.issue(issue, &clock).expect("issues").cert).expect("der")
    }

    fn proxy() -> FrontProxy {
        let list = |text: &str| vec![text.to_owned()];
        FrontProxy {
            allowed_names: list("front-proxy-client"),
            username_headers: list("X-Remote-User"),
            uid_headers: list("X-Remote-Uid"),
            group_headers: list("X-Remote-Group"),
            extra_prefixes: list("X-Remote-Extra-"),
            ..FrontProxy::default()
        }
    }

    #[test]
    fn the_user_is_whom_an_allowed_proxy_names() {
        let mut headers = HeaderMap::new();
        let sent = [
            ("x-remote-user", "jane"),
            ("x-remote-uid", "7"),
            ("x-remote-group", "devs"),
            ("x-remote-group", "ops"),
            ("x-remote-extra-example.org%2fteam", "a"),
            ("accept", "*/*"),
        ];
        for (name, value) in sent {
            headers.append(name, HeaderValue::from_static(value));
        }
        let (proxy, certificate) = (proxy(), certificate("front-proxy-client"));
        let user = proxy.user(&certificate, &headers).expect("allowed").expect("a user");
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("jane", "7"));
        assert_eq!(user.groups, ["devs", "ops", "system:authenticated"]);
        assert_eq!(user.extra["example.org/team"], ["a"]);
        proxy.clear(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
        assert_eq!(proxy.user(&certificate, &headers).expect("allowed"), None);
    }

    #[test]
    fn a_proxy_that_is_not_allowed_is_refused() {
        let error = proxy().user(&certificate("other"), &HeaderMap::new()).expect_err("not allowed");
        assert_eq!(error.to_string(), "x509: subject with cn=other is not in the allowed list");
    }
}
