//! Which credentials go with which image: docker configurations of pull secrets and of the node, matched as upstream
//! matches them. Pure.

use coracle_cri::v1::AuthConfig;
use serde_json::Value;

/// One entry of a docker configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Host, with port and path where given; labels may hold `*`.
    place: String,
    auth: AuthConfig,
}

/// Credentials for a place.
pub fn entry(place: &str, username: &str, password: &str) -> Entry {
    let auth = AuthConfig {
        username: username.to_owned(),
        password: password.to_owned(),
        server_address: place.to_owned(),
        ..AuthConfig::default()
    };
    let bare = place.trim_start_matches("https://").trim_start_matches("http://");
    Entry { place: bare.to_owned(), auth }
}

/// Host of Docker's registry under its old name.
const DOCKER: &str = "index.docker.io";

/// The entries of a `.dockerconfigjson` (with `auths`) or an old `.dockercfg` (without).
pub fn parse(data: &[u8]) -> Vec<Entry> {
    let Ok(config) = serde_json::from_slice::<Value>(data) else { return Vec::new() };
    let auths = if config["auths"].is_object() { &config["auths"] } else { &config };
    let one = |(server, entry): (&String, &Value)| {
        let bare = server.trim_start_matches("https://").trim_start_matches("http://");
        let bare = bare.strip_suffix("/v1/").or_else(|| bare.strip_suffix("/v2/")).unwrap_or(bare);
        let bare = bare.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
        let text = |key: &str| entry[key].as_str().unwrap_or("").to_owned();
        let mut auth = AuthConfig {
            username: text("username"),
            password: text("password"),
            identity_token: text("identitytoken"),
            registry_token: text("registrytoken"),
            server_address: server.clone(),
            ..AuthConfig::default()
        };
        if auth.username.is_empty() {
            decode(&text("auth"), &mut auth);
        }
        (!bare.is_empty()).then(|| Entry { place: bare.to_owned(), auth })
    };
    auths.as_object().into_iter().flatten().filter_map(one).collect()
}

/// `base64(user:password)`.
fn decode(encoded: &str, auth: &mut AuthConfig) {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).unwrap_or_default();
    if let Some((user, password)) = String::from_utf8_lossy(&bytes).split_once(':') {
        auth.username = user.to_owned();
        auth.password = password.to_owned();
    }
}

/// Host (with port) and path of an image, as registries know it.
fn place_of(image: &str) -> (String, String) {
    let image = image.split('@').next().unwrap_or(image);
    let (host, path) = match image.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path.to_owned()),
        _ => ("docker.io", image.to_owned()),
    };
    let host = if host == "docker.io" { DOCKER } else { host };
    let path = path.rsplit_once(':').map_or(path.as_str(), |(name, _)| name).to_owned();
    (host.to_owned(), path)
}

/// Whether a label fits a pattern with `*` for any run of characters.
fn label_fits(pattern: &str, label: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == label,
        Some((head, tail)) => {
            let Some(rest) = label.strip_prefix(head) else { return false };
            (0..=rest.len()).any(|at| rest.is_char_boundary(at) && label_fits(tail, &rest[at..]))
        }
    }
}

impl Entry {
    /// Whether it is for an image.
    pub fn fits(&self, image: &str) -> bool {
        let (host, path) = place_of(image);
        let (own_host, own_path) = self.place.split_once('/').unwrap_or((&self.place, ""));
        let own_host = if own_host == "docker.io" { DOCKER } else { own_host };
        let split =
            |h: &str| h.rsplit_once(':').map_or((h.to_owned(), String::new()), |(a, b)| (a.into(), b.into()));
        let ((own_name, own_port), (name, port)) = (split(own_host), split(&host));
        let (own_labels, labels): (Vec<&str>, Vec<&str>) =
            (own_name.split('.').collect(), name.split('.').collect());
        own_port == port
            && own_labels.len() == labels.len()
            && own_labels.iter().zip(&labels).all(|(p, l)| label_fits(p, l))
            && path.starts_with(own_path)
    }
}

/// The credentials for an image, the most exact place first.
pub fn lookup(entries: &[Entry], image: &str) -> Vec<AuthConfig> {
    let mut found: Vec<&Entry> = entries.iter().filter(|e| e.fits(image)).collect();
    found.sort_by(|a, b| b.place.cmp(&a.place));
    found.into_iter().map(|e| e.auth.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(config: &str, image: &str) -> Vec<String> {
        lookup(&parse(config.as_bytes()), image).into_iter().map(|a| a.username).collect()
    }

    #[test]
    fn places_match_by_host_label_port_and_path() {
        let config = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "dTpw"},
            "r.io": {"username": "all", "password": "x"},
            "r.io/team": {"username": "team", "password": "x"},
            "*.k.io": {"username": "star", "password": "x"},
            "p.io:5000": {"username": "port", "password": "x"}}}"#;
        assert_eq!(users(config, "busybox:1"), ["u"]);
        assert_eq!(users(config, "r.io/team/app:1"), ["team", "all"]);
        assert_eq!(users(config, "r.io/other/app@sha256:1"), ["all"]);
        assert_eq!(users(config, "eu.k.io/app"), ["star"]);
        assert!(users(config, "a.eu.k.io/app").is_empty() && users(config, "p.io/app").is_empty());
        assert_eq!(users(config, "p.io:5000/app:2"), ["port"]);
        assert_eq!(users(r#"{"r.io": {"auth": "dTpw"}}"#, "r.io/x"), ["u"]);
    }
}
