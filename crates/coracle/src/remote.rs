//! Servers elsewhere that a kubeconfig file names: where they are, whom to trust, what to show.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use coracle_apiserver::{RemoteClient, RemoteConfig, Tls};
use coracle_auth::Remote;
use coracle_client::{Client, Credential, RemoteServer};
use serde_yaml_ng::Value;

use crate::apiserver::read;
use crate::error::Failure;

/// URL and client of the current context of a kubeconfig file.
///
/// # Errors
/// A file that cannot be read or understood, or names what cannot be used.
pub fn open(path: &Path) -> Result<(String, Arc<dyn Remote>), Failure> {
    let (url, config) = config(path)?;
    let client = RemoteClient::new(&config).map_err(|why| failed(path, &why))?;
    Ok((url, Arc::new(client)))
}

/// URL of the current context of a kubeconfig file, whom it trusts and what it shows.
///
/// # Errors
/// A file that cannot be read or understood, or names what cannot be read.
pub fn config(path: &Path) -> Result<(String, RemoteConfig), Failure> {
    let file: Value = serde_yaml_ng::from_str(&read(path)?).map_err(|e| failed(path, &e.to_string()))?;
    parse(&file, path.parent().unwrap_or(Path::new("/"))).map_err(|why| failed(path, &why))
}

/// An API server elsewhere, for one who asks there under one identity.
pub struct Server {
    server: Arc<RemoteServer>,
    credential: Credential,
    agent: String,
}

impl Server {
    /// The server of the current context of a kubeconfig file; `program` is upstream's name of who asks.
    ///
    /// # Errors
    /// A file that cannot be read or understood, or names what cannot be used.
    pub fn open(path: &Path, program: &str) -> Result<Self, Failure> {
        let (url, config) = config(path)?;
        Self::new(path, &url, &config, program)
    }

    /// The same for a file that was read before.
    ///
    /// # Errors
    /// A file that names what cannot be used.
    pub fn new(path: &Path, url: &str, config: &RemoteConfig, program: &str) -> Result<Self, Failure> {
        let credential = config.bearer.clone().map_or(Credential::Connection, Credential::Token);
        let server = RemoteServer::new(url, config.dial(url).map_err(|why| failed(path, &why))?);
        let version = crate::GIT_VERSION.split('+').next().unwrap_or_default();
        let agent = format!("{program}/{version} (linux/amd64) kubernetes/coracle");
        Ok(Self { server, credential, agent })
    }

    /// How the server is told who asks; what stands before the first `/` is the field manager of all writes.
    pub fn agent(&self, purpose: &str) -> String {
        format!("{}/{purpose}", self.agent)
    }

    /// A client for one purpose.
    pub fn client(&self, purpose: &str) -> Client {
        Client::new(self.server.transport(&self.agent(purpose), self.credential.clone()))
    }
}

/// Says that a kubeconfig file cannot be used.
pub fn failed(path: &Path, why: &str) -> Failure {
    Failure::new(format!("{}: {why}", path.display()), "give a kubeconfig file with a current context")
}

fn text(value: &Value, key: &str) -> Option<String> {
    value.get(key)?.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// The part of the entry `name` of a list that is called `field`.
fn entry(file: &Value, list: &str, field: &str, name: &str) -> Option<Value> {
    let named = |e: &&Value| text(e, "name").as_deref() == Some(name);
    file.get(list)?.as_sequence()?.iter().find(named)?.get(field).cloned()
}

fn parse(file: &Value, dir: &Path) -> Result<(String, RemoteConfig), String> {
    let context = text(file, "current-context").ok_or("no current-context")?;
    let context = entry(file, "contexts", "context", &context).ok_or("the current context is missing")?;
    let cluster = text(&context, "cluster").and_then(|name| entry(file, "clusters", "cluster", &name));
    let cluster = cluster.ok_or("the cluster of the current context is missing")?;
    let user = text(&context, "user").and_then(|name| entry(file, "users", "user", &name));
    let user = user.unwrap_or(Value::Null);
    let url = text(&cluster, "server").ok_or("the cluster has no server")?;
    let cert = data(&user, "client-certificate", dir)?;
    let key = data(&user, "client-key", dir)?;
    let file_token = text(&user, "tokenFile").map(|file| content(&dir.join(file))).transpose()?;
    let config = RemoteConfig {
        ca_pem: data(&cluster, "certificate-authority", dir)?,
        insecure: cluster.get("insecure-skip-tls-verify").and_then(Value::as_bool).unwrap_or(false),
        server_name: text(&cluster, "tls-server-name"),
        identity: cert.zip(key).map(|(cert_pem, key_pem)| Tls { cert_pem, key_pem }),
        bearer: text(&user, "token").or_else(|| file_token.map(|token| token.trim().to_owned())),
    };
    Ok((url, config))
}

/// What stands in the file itself, or in another that it names.
fn data(of: &Value, key: &str, dir: &Path) -> Result<Option<String>, String> {
    if let Some(encoded) = text(of, &format!("{key}-data")) {
        let bytes = base64::engine::general_purpose::STANDARD.decode(encoded);
        let bytes = bytes.map_err(|e| format!("{key}-data: {e}"))?;
        return String::from_utf8(bytes).map(Some).map_err(|e| format!("{key}-data: {e}"));
    }
    text(of, key).map(|file| content(&dir.join(file))).transpose()
}

fn content(path: &PathBuf) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_context_says_where_whom_to_trust_and_what_to_show() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), "CA").unwrap();
        let file = "current-context: c\ncontexts: [{name: c, context: {cluster: x, user: u}}]\n\
            clusters: [{name: x, cluster: {server: 'https://h/p', certificate-authority: ca.pem}}]\n\
            users: [{name: u, user: {client-certificate-data: Yw==, client-key-data: aw==, token: t}}]\n";
        let file: Value = serde_yaml_ng::from_str(file).unwrap();
        let (url, config) = parse(&file, dir.path()).unwrap();
        assert_eq!((url.as_str(), config.ca_pem.as_deref()), ("https://h/p", Some("CA")));
        let identity = config.identity.unwrap();
        assert_eq!((identity.cert_pem.as_str(), identity.key_pem.as_str()), ("c", "k"));
        assert_eq!(config.bearer.as_deref(), Some("t"));
        let none: Value = serde_yaml_ng::from_str("clusters: []").unwrap();
        assert_eq!(parse(&none, dir.path()).unwrap_err(), "no current-context");
    }
}
