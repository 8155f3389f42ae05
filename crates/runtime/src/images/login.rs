//! Who we are at a registry, and how it asks for that.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use coracle_cri::v1::AuthConfig;

/// Standard base64 as people write it: with or without the padding at its end.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Credentials in the form in which they are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// None.
    Anonymous,
    /// Name and password.
    Basic(String, String),
    /// A token that the registry takes as it is.
    Bearer(String),
    /// A token that the registry's token server changes for others.
    Identity(String),
}

impl From<Option<AuthConfig>> for Credentials {
    fn from(auth: Option<AuthConfig>) -> Self {
        let Some(auth) = auth else { return Self::Anonymous };
        if !auth.registry_token.is_empty() {
            return Self::Bearer(auth.registry_token);
        }
        if !auth.identity_token.is_empty() {
            return Self::Identity(auth.identity_token);
        }
        if !auth.username.is_empty() {
            return Self::Basic(auth.username, auth.password);
        }
        let packed = LENIENT.decode(&auth.auth).ok().and_then(|b| String::from_utf8(b).ok());
        match packed.as_deref().and_then(|pair| pair.split_once(':')) {
            Some((user, password)) => {
                Self::Basic(user.to_owned(), password.trim_end_matches('\0').to_owned())
            }
            None => Self::Anonymous,
        }
    }
}

/// What a registry wants to see, as `WWW-Authenticate` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// Name and password.
    Basic,
    /// A token that `realm` gives for `service` and `scope`.
    Bearer { realm: String, service: String, scope: String },
}

impl Challenge {
    /// The best of what several headers ask for: tokens before passwords.
    pub fn best<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Self> {
        let all: Vec<Self> = headers.filter_map(Self::parse).collect();
        all.iter().find(|c| **c != Self::Basic).or(all.first()).cloned()
    }

    fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let [mut realm, mut service, mut scope] = [const { String::new() }; 3];
        for (name, value) in parameters(rest) {
            match name.to_ascii_lowercase().as_str() {
                "realm" => realm = value,
                "service" => service = value,
                "scope" => scope = value,
                _ => {}
            }
        }
        (!realm.is_empty()).then_some(Self::Bearer { realm, service, scope })
    }
}

/// `name=value, name="value"` in pairs.
fn parameters(mut text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    while let Some((name, rest)) = text.split_once('=') {
        let name = name.trim_matches([' ', ',']).to_owned();
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once(',').unwrap_or((rest, "")),
        };
        found.push((name, value.trim().to_owned()));
        text = rest;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_come_from_tokens_from_name_or_packed_form() {
        let basic = Credentials::Basic("user".into(), "pass".into());
        let packed = AuthConfig { auth: "dXNlcjpwYXNz".into(), ..Default::default() };
        assert_eq!(Credentials::from(Some(packed.clone())), basic);
        let named = AuthConfig { username: "user".into(), password: "pass".into(), ..Default::default() };
        assert_eq!(Credentials::from(Some(named)), basic);
        let identity = AuthConfig { identity_token: "id".into(), ..packed.clone() };
        assert_eq!(Credentials::from(Some(identity)), Credentials::Identity("id".into()));
        let bearer = AuthConfig { registry_token: "t".into(), ..packed };
        assert_eq!(Credentials::from(Some(bearer)), Credentials::Bearer("t".into()));
        assert_eq!(Credentials::from(None), Credentials::Anonymous);
        let bare = AuthConfig { auth: "dXNlcjpwYXNzMQ".into(), ..Default::default() };
        assert_eq!(Credentials::from(Some(bare)), Credentials::Basic("user".into(), "pass1".into()));
        let junk = AuthConfig { auth: "?".into(), ..Default::default() };
        assert_eq!(Credentials::from(Some(junk)), Credentials::Anonymous);
    }

    #[test]
    fn tokens_are_asked_for_where_the_registry_says_and_for_what() {
        let bearer = |realm: &str, service: &str, scope: &str| Challenge::Bearer {
            realm: realm.into(),
            service: service.into(),
            scope: scope.into(),
        };
        let of = |headers: &[&str]| Challenge::best(headers.iter().copied());
        let both =
            ["Basic realm=\"x\"", "Bearer realm=\"https://a/token\",service=\"s\",scope=\"r:x:pull,push\""];
        assert_eq!(of(&both), Some(bearer("https://a/token", "s", "r:x:pull,push")));
        assert_eq!(of(&["bearer Realm=\"https://a\", service=b"]), Some(bearer("https://a", "b", "")));
        assert_eq!(of(&both[..1]), Some(Challenge::Basic));
        assert_eq!(of(&["Negotiate", "Bearer service=\"no realm\""]), None);
    }
}
