//! Bootstrap tokens: `id.secret`, kept in Secrets of `kube-system`, for machines that are about to join.

use std::sync::Arc;

use async_trait::async_trait;
use coracle_meta::ObjectReader;
use coracle_stdx::Clock;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use sha2::{Digest, Sha256};

use crate::user::{Authenticator, AuthnError, Credentials, UserInfo};

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
/// The group of all who show such a token; further groups begin with it and a colon.
const GROUP: &str = "system:bootstrappers";

/// Takes bootstrap tokens.
pub struct BootstrapTokens {
    reader: Arc<dyn ObjectReader>,
    clock: Clock,
}

impl BootstrapTokens {
    /// Tokens among the Secrets of `reader`.
    pub fn new(reader: Arc<dyn ObjectReader>, clock: Clock) -> Self {
        Self { reader, clock }
    }

    fn user(&self, token: &str) -> Option<UserInfo> {
        let (id, secret) = parts(token)?;
        let name = format!("bootstrap-token-{id}");
        let found = self.reader.get("", "secrets", NAMESPACE, &name)?;
        judge(found.downcast::<Secret>()?, id, secret, self.clock.now())
    }
}

#[async_trait]
impl Authenticator for BootstrapTokens {
    async fn authenticate(&self, credentials: &Credentials) -> Result<Option<UserInfo>, AuthnError> {
        Ok(credentials.bearer.as_deref().and_then(|token| self.user(token)))
    }
}

/// Id and secret of a token that has the form of one.
fn parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

/// Whom a Secret makes of who shows its token; `None` when it is not one that may be shown.
fn judge(found: &Secret, id: &str, secret: &str, now: Timestamp) -> Option<UserInfo> {
    let text = |key: &str| {
        let value = found.data.as_ref().and_then(|d| d.get(key));
        value.map_or("", |v| std::str::from_utf8(&v.0).unwrap_or(""))
    };
    // Digests, so that the time it takes says nothing about how much of it is right.
    let same = Sha256::digest(text("token-secret")) == Sha256::digest(secret);
    let deleted = found.metadata.deletion_timestamp.is_some();
    if deleted || found.type_.as_deref() != Some(TYPE) || !same || text("token-id") != id {
        return None;
    }
    let expiration = text("expiration");
    let expired = |end: &str| end.parse::<Timestamp>().map_or(true, |end| end <= now);
    if (!expiration.is_empty() && expired(expiration)) || text("usage-bootstrap-authentication") != "true" {
        return None;
    }
    let mut groups = vec![GROUP];
    let further = text("auth-extra-groups");
    if !further.is_empty() {
        groups.extend(further.split(','));
    }
    if !groups[1..].iter().all(|g| is_group(g)) {
        return None;
    }
    groups.sort_unstable();
    groups.dedup();
    Some(UserInfo::authenticated(&format!("system:bootstrap:{id}"), &groups))
}

/// `system:bootstrappers:` and up to 256 of `a-z0-9:-`, not ending in a colon or dash.
fn is_group(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(GROUP).and_then(|rest| rest.strip_prefix(':')) else { return false };
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    rest.len() <= 256
        && rest.bytes().all(|b| word(b) || matches!(b, b':' | b'-'))
        && rest.bytes().next_back().is_some_and(word)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret(change: &[(&str, &str)]) -> Secret {
        use base64::Engine as _;
        let mut data = json!({});
        let usual = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
            ("auth-extra-groups", "system:bootstrappers:worker"),
        ];
        for (key, value) in usual.iter().chain(change) {
            data[*key] = base64::engine::general_purpose::STANDARD.encode(value).into();
        }
        serde_json::from_value(json!({ "metadata": {}, "type": TYPE, "data": data })).expect("a Secret")
    }

    fn judged(change: &[(&str, &str)]) -> Option<UserInfo> {
        let now = Timestamp::from_second(1_000_000_000).expect("a time");
        judge(&secret(change), "abcdef", "0123456789abcdef", now)
    }

    #[test]
    fn a_token_stands_for_its_id_and_groups_until_it_expires() {
        let user = judged(&[("expiration", "2033-01-01T00:00:00Z")]).expect("valid");
        assert_eq!(user.name, "system:bootstrap:abcdef");
        let groups = ["system:bootstrappers", "system:bootstrappers:worker", "system:authenticated"];
        assert_eq!(user.groups, groups);
        for wrong in [
            ("expiration", "2001-01-01T00:00:00Z"),
            ("expiration", "soon"),
            ("usage-bootstrap-authentication", "false"),
            ("auth-extra-groups", "system:masters"),
            ("token-secret", "0000000000000000"),
            ("token-id", "other0"),
        ] {
            assert_eq!(judged(&[wrong]), None, "{wrong:?}");
        }
    }

    #[test]
    fn tokens_have_six_and_sixteen_letters() {
        assert_eq!(parts("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for wrong in ["abcdef", "abcdef.short", "ABCDEF.0123456789abcdef", "abcdefg.0123456789abcdef"] {
            assert_eq!(parts(wrong), None, "{wrong}");
        }
    }
}
