//! How to reach registries: mirrors, credentials and TLS by a file in k3s' form (`registries.yaml`). Read anew at each
//! pull, so that a change needs no restart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The registry that mirrors of `"*"` do not speak of by name.
const ANY: &str = "*";

/// What the file says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Registries {
    mirrors: BTreeMap<String, Mirror>,
    configs: BTreeMap<String, Access>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Mirror {
    endpoint: Vec<String>,
    /// Other names that repositories have there: patterns and what takes their place, with `$1` for groups.
    rewrite: BTreeMap<String, String>,
}

/// How one registry is reached.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Access {
    /// Who we are there.
    pub auth: Option<Login>,
    /// TLS.
    pub tls: Tls,
}

/// Credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Login {
    pub username: String,
    pub password: String,
    /// base64 of `username:password`.
    pub auth: String,
    pub identity_token: String,
}

/// TLS of one registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Tls {
    /// Certificate authority beyond the system's, PEM.
    pub ca_file: Option<PathBuf>,
    /// Our certificate, for registries that want one, PEM.
    pub cert_file: Option<PathBuf>,
    /// Its private key, PEM.
    pub key_file: Option<PathBuf>,
    /// Any certificate will do.
    pub insecure_skip_verify: bool,
}

/// A place to ask for an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Host and port, as in an image name.
    pub host: String,
    /// Without TLS.
    pub plain: bool,
    pub tls: Tls,
    pub login: Option<Login>,
    /// What stands before the names of repositories, as `https://host/v2/PREFIX` says.
    prefix: String,
    rewrite: BTreeMap<String, String>,
}

impl Endpoint {
    /// The repository's name there.
    ///
    /// # Errors
    /// A pattern that is none.
    pub fn repository(&self, name: &str) -> Result<String, String> {
        for (pattern, other) in &self.rewrite {
            let pattern = regex::Regex::new(pattern).map_err(|e| format!("rewrite of {}: {e}", self.host))?;
            if pattern.is_match(name) {
                return Ok(format!("{}{}", self.prefix, pattern.replace(name, other.as_str())));
            }
        }
        Ok(format!("{}{name}", self.prefix))
    }
}

impl Registries {
    /// Reads the file; none is as good as an empty one.
    ///
    /// # Errors
    /// The file makes no sense; the text says where.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(format!("cannot read {}: {e}", path.display())),
        };
        serde_yaml_ng::from_str::<Option<Self>>(&text)
            .map(Option::unwrap_or_default)
            .map_err(|e| format!("{} makes no sense: {e}", path.display()))
    }

    /// Where to ask for images of a registry, in order; the registry itself comes last. `local` ones speak without
    /// TLS unless told otherwise.
    pub fn endpoints(&self, registry: &str, local: bool) -> Vec<Endpoint> {
        let mirror = self.mirrors.get(registry).or_else(|| self.mirrors.get(ANY));
        let mut list: Vec<Endpoint> = Vec::new();
        for text in mirror.into_iter().flat_map(|m| &m.endpoint) {
            let (plain, rest) = match text.split_once("://") {
                Some(("http", rest)) => (true, rest),
                Some((_, rest)) => (false, rest),
                None => (false, text.as_str()),
            };
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            if !host.is_empty() {
                let prefix = path.strip_prefix("v2").unwrap_or(path).trim_matches('/');
                let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
                let rewrite = mirror.map(|m| m.rewrite.clone()).unwrap_or_default();
                list.push(Endpoint { prefix, rewrite, ..self.endpoint(host, plain) });
            }
        }
        if !list.iter().any(|e| e.host == registry) {
            list.push(self.endpoint(registry, local));
        }
        list
    }

    fn endpoint(&self, host: &str, plain: bool) -> Endpoint {
        let access = self.configs.get(host).cloned().unwrap_or_default();
        Endpoint { host: host.to_owned(), plain, tls: access.tls, login: access.auth, ..Endpoint::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_asked_first_and_the_registry_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registries.yaml");
        assert_eq!(Registries::read(&path).unwrap().endpoints("docker.io", false).len(), 1);
        let text = "mirrors:\n  docker.io:\n    endpoint: [\"http://10.0.0.1:5000/v2\", \"https://m.example\"]\n\
                    configs:\n  m.example:\n    auth: {username: u, password: p}\n\
                    \x20   tls: {insecure_skip_verify: true}\n";
        std::fs::write(&path, text).unwrap();
        let got = Registries::read(&path).unwrap().endpoints("docker.io", false);
        let hosts: Vec<_> = got.iter().map(|e| (e.host.as_str(), e.plain)).collect();
        assert_eq!(hosts, [("10.0.0.1:5000", true), ("m.example", false), ("docker.io", false)]);
        assert!(got[1].tls.insecure_skip_verify && got[1].login.as_ref().is_some_and(|l| l.username == "u"));
        assert_eq!(Registries::read(&path).unwrap().endpoints("quay.io", false)[0].host, "quay.io");
        let text = "mirrors:\n  docker.io:\n    endpoint: [\"https://h.example/v2/hub\"]\n\
                    \x20   rewrite: {\"^rancher/(.*)\": \"images/$1\"}\n";
        std::fs::write(&path, text).unwrap();
        let got = Registries::read(&path).unwrap().endpoints("docker.io", false);
        assert_eq!(got[0].repository("rancher/klipper"), Ok("hub/images/klipper".into()));
        assert_eq!(got[0].repository("library/busybox"), Ok("hub/library/busybox".into()));
        assert_eq!(got[1].repository("rancher/klipper"), Ok("rancher/klipper".into()));
        std::fs::write(&path, "mirrors: 3").unwrap();
        assert!(Registries::read(&path).is_err());
    }
}
