//! The distribution protocol, as far as pulling needs it: manifests and blobs of one repository at one registry.

use std::sync::Once;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, RANGE, WWW_AUTHENTICATE};
use reqwest::{Certificate, Identity, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use super::digest::{Algorithm, Digest};
use super::login::{Challenge, Credentials};
use super::registries::{Endpoint, Tls};

/// Manifests and lists of these, as OCI and Docker call them.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// Manifests, configurations and tokens are not larger; anything else would be read into memory for nothing.
const MOST: usize = 16 << 20;

/// Why a registry gave nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    /// It does not have that.
    #[error("not found")]
    NotFound,
    /// It has no image for this kind of machine.
    #[error("no match for platform in manifest: not found")]
    NoPlatform,
    /// It wants other credentials, or shows this to nobody; what it says.
    #[error("pull access denied, repository does not exist or may require authorization: {0}")]
    Denied(String),
    /// Another answer than was asked for: its address, status and what it says.
    #[error("unexpected status from GET request to {0}: {1}: {2}")]
    Status(Url, StatusCode, String),
    /// It sent something that is not what it should be.
    #[error("{0}")]
    Damaged(String),
    /// The configuration names files that cannot be used.
    #[error("{0}")]
    Configuration(String),
    /// It was not reached, or the connection broke.
    #[error("{}", chain(.0))]
    Request(reqwest::Error),
}

impl From<reqwest::Error> for RegistryError {
    fn from(mut error: reqwest::Error) -> Self {
        error.url_mut().map(bare);
        Self::Request(error)
    }
}

/// Without what may be secret: registries send us on to addresses that are signed.
fn bare(url: &mut Url) {
    url.set_query(None);
}

/// An error with its causes: reqwest hides what people need (connection refused, unknown host).
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A part of an image: what it is called and how large it is.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Descriptor {
    pub digest: String,
    #[serde(default)]
    pub size: u64,
    #[serde(default)]
    platform: Platform,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Platform {
    os: String,
    architecture: String,
}

/// What an image consists of.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Manifest {
    pub config: Descriptor,
    #[serde(default)]
    pub layers: Vec<Descriptor>,
}

/// Either of the two.
#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    Manifest(Manifest),
    List { manifests: Vec<Descriptor> },
}

/// A repository at a registry.
pub(crate) struct Repository {
    client: reqwest::Client,
    /// `https://host/v2/name`.
    base: String,
    /// The registry whose mirror this is, which one mirror of several registries needs to know.
    mirrored: Option<String>,
    /// What tokens are asked for.
    scope: String,
    credentials: Credentials,
    /// What the registry has taken last.
    authorization: Mutex<Option<HeaderValue>>,
}

impl Repository {
    /// The repository `name` of `registry`, asked for at an endpoint.
    ///
    /// # Errors
    /// The certificates of the endpoint's configuration cannot be used.
    pub fn new(
        endpoint: &Endpoint,
        registry: &str,
        name: &str,
        credentials: Credentials,
    ) -> Result<Self, RegistryError> {
        let real = |host| if host == "docker.io" { "registry-1.docker.io" } else { host };
        let host = real(endpoint.host.as_str());
        let scheme = if endpoint.plain { "http" } else { "https" };
        Ok(Self {
            client: client(&endpoint.tls)?,
            base: format!("{scheme}://{host}/v2/{name}"),
            mirrored: (host != real(registry)).then(|| registry.to_owned()),
            scope: format!("repository:{name}:pull"),
            credentials,
            authorization: Mutex::new(None),
        })
    }

    /// The manifest for this machine, and the digest by which the whole image is known.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn manifest(&self, version: &str) -> Result<(Manifest, String), RegistryError> {
        let (document, digest) = self.document(version).await?;
        let list = match document {
            Document::Manifest(manifest) => return Ok((manifest, digest)),
            Document::List { manifests } => manifests,
        };
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let fits = |d: &&Descriptor| d.platform.os == "linux" && d.platform.architecture == architecture;
        let one = list.iter().find(fits).ok_or(RegistryError::NoPlatform)?;
        match self.document(&one.digest).await?.0 {
            Document::Manifest(manifest) => Ok((manifest, digest)),
            Document::List { .. } => Err(RegistryError::NoPlatform),
        }
    }

    async fn document(&self, version: &str) -> Result<(Document, String), RegistryError> {
        let answer = self.get(&format!("manifests/{version}"), MANIFESTS, 0).await?;
        let body = whole(answer).await?;
        let wanted = version.contains(':').then(|| parse(version)).transpose()?;
        let algorithm = wanted.as_ref().map_or(Algorithm::Sha256, |w| w.algorithm);
        let digest = Digest::of(algorithm, &body);
        if wanted.is_some_and(|wanted| wanted != digest) {
            return Err(RegistryError::Damaged(format!(
                "manifest has digest {digest}, it was asked for as {version}"
            )));
        }
        let digest = digest.to_string();
        let document = serde_json::from_slice(&body)
            .map_err(|e| RegistryError::Damaged(format!("manifest {digest} makes no sense: {e}")))?;
        Ok((document, digest))
    }

    /// A small blob as a whole, its digest checked.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn small(&self, digest: &str) -> Result<Vec<u8>, RegistryError> {
        let wanted = parse(digest)?;
        let body = whole(self.blob(digest, 0).await?).await?;
        let found = Digest::of(wanted.algorithm, &body);
        if found == wanted {
            return Ok(body);
        }
        Err(RegistryError::Damaged(format!("blob has digest {found}, its manifest says {digest}")))
    }

    /// A blob from byte `from` on; from its beginning if the answer is no partial one.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn blob(&self, digest: &str, from: u64) -> Result<Response, RegistryError> {
        self.get(&format!("blobs/{digest}"), "*/*", from).await
    }

    /// Asks, and again with credentials if these are wanted.
    async fn get(&self, path: &str, accept: &'static str, from: u64) -> Result<Response, RegistryError> {
        let url = format!("{}/{path}", self.base);
        // As containerd does: https://github.com/containerd/containerd/blob/main/docs/hosts.md.
        let mut url = Url::parse(&url).map_err(|e| RegistryError::Configuration(format!("{url}: {e}")))?;
        if let Some(registry) = &self.mirrored {
            url.query_pairs_mut().append_pair("ns", registry);
        }
        let mut was_asked = false;
        loop {
            let mut request = self.client.get(url.clone()).header(ACCEPT, accept);
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let known = self.authorization.lock().clone();
            if let Some(known) = known {
                request = request.header(AUTHORIZATION, known);
            }
            let answer = request.send().await?;
            if answer.status() != StatusCode::UNAUTHORIZED || was_asked {
                return checked(answer).await;
            }
            was_asked = true;
            let headers = answer.headers().get_all(WWW_AUTHENTICATE);
            let challenge = Challenge::best(headers.iter().filter_map(|h| h.to_str().ok()));
            let Some(value) = self.answer(challenge).await? else { return checked(answer).await };
            *self.authorization.lock() = Some(value);
        }
    }

    /// `Authorization` that answers a challenge; `None` if we have nothing to show.
    async fn answer(&self, challenge: Option<Challenge>) -> Result<Option<HeaderValue>, RegistryError> {
        let bearer = |token: &str| {
            HeaderValue::from_str(&format!("Bearer {token}")).map(Some).map_err(|_| {
                RegistryError::Damaged("the token server gave a token that no header can hold".into())
            })
        };
        match (challenge, &self.credentials) {
            (_, Credentials::Bearer(token)) => bearer(token),
            (Some(Challenge::Bearer { realm, service, scope }), credentials) => {
                let scope = if scope.is_empty() { self.scope.clone() } else { scope };
                bearer(&self.token(&realm, &service, &scope, credentials).await?)
            }
            (_, Credentials::Basic(user, password)) => {
                let request = self.client.get(&self.base).basic_auth(user, Some(password)).build()?;
                Ok(request.headers().get(AUTHORIZATION).cloned())
            }
            _ => Ok(None),
        }
    }

    async fn token(
        &self,
        realm: &str,
        service: &str,
        scope: &str,
        credentials: &Credentials,
    ) -> Result<String, RegistryError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Token {
            token: String,
            access_token: String,
        }
        let answer = token_request(&self.client, realm, service, scope, credentials)?.send().await?;
        let found: Token = serde_json::from_slice(&whole(checked(answer).await?).await?)
            .map_err(|e| RegistryError::Damaged(format!("the answer of {realm} makes no sense: {e}")))?;
        Ok(if found.token.is_empty() { found.access_token } else { found.token })
    }
}

fn token_request(
    client: &reqwest::Client,
    realm: &str,
    service: &str,
    scope: &str,
    credentials: &Credentials,
) -> Result<RequestBuilder, RegistryError> {
    let wrong = |e: &dyn std::fmt::Display| RegistryError::Damaged(format!("realm {realm:?}: {e}"));
    let mut url = Url::parse(realm).map_err(|e| wrong(&e))?;
    if let Credentials::Identity(token) = credentials {
        // OAuth 2: the identity is a refresh token.
        let fields = [
            ("grant_type", "refresh_token"),
            ("service", service),
            ("scope", scope),
            ("client_id", "coracle"),
            ("refresh_token", token),
        ];
        let form = Url::parse_with_params("http://form", fields).map_err(|e| wrong(&e))?;
        let kind = "application/x-www-form-urlencoded";
        return Ok(client
            .post(url)
            .header("content-type", kind)
            .body(form.query().unwrap_or_default().to_owned()));
    }
    url.query_pairs_mut().append_pair("service", service).append_pair("scope", scope);
    Ok(match credentials {
        Credentials::Basic(user, password) => client.get(url).basic_auth(user, Some(password)),
        _ => client.get(url),
    })
}

/// A client as an endpoint's certificates want it.
fn client(tls: &Tls) -> Result<reqwest::Client, RegistryError> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    let configuration = RegistryError::Configuration;
    let read = |file: &std::path::Path| {
        std::fs::read(file).map_err(|e| configuration(format!("cannot read {}: {e}", file.display())))
    };
    let mut builder = reqwest::Client::builder()
        .danger_accept_invalid_certs(tls.insecure_skip_verify)
        .connect_timeout(Duration::from_secs(15))
        .read_timeout(Duration::from_secs(60))
        .user_agent("coracle");
    if let Some(file) = &tls.ca_file {
        let found = Certificate::from_pem_bundle(&read(file)?)
            .map_err(|e| configuration(format!("failed to load CA file {:?}: {}", file, chain(&e))))?;
        builder = builder.tls_certs_merge(found);
    }
    match (&tls.cert_file, &tls.key_file) {
        (None, None) => {}
        (Some(cert), None) => {
            let what = "no corresponding key file was specified";
            return Err(configuration(format!("cert file {cert:?} was specified, but {what}")));
        }
        (None, Some(key)) => {
            let what = "no corresponding cert file was specified";
            return Err(configuration(format!("key file {key:?} was specified, but {what}")));
        }
        (Some(cert), Some(key)) => {
            let both = [read(cert)?, b"\n".to_vec(), read(key)?].concat();
            let identity = Identity::from_pem(&both)
                .map_err(|e| configuration(format!("failed to load cert file {cert:?}: {}", chain(&e))))?;
            builder = builder.identity(identity);
        }
    }
    builder.build().map_err(|e| configuration(format!("certificates cannot be used: {}", chain(&e))))
}

/// An answer that is what was asked for.
async fn checked(answer: Response) -> Result<Response, RegistryError> {
    let (mut url, status) = (answer.url().clone(), answer.status());
    bare(&mut url);
    if status.is_success() {
        return Ok(answer);
    }
    let said = said(&whole(answer).await.unwrap_or_default());
    Err(match status {
        StatusCode::NOT_FOUND => RegistryError::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let said = if said.is_empty() { "authorization failed".to_owned() } else { said };
            RegistryError::Denied(format!("server message: {said}"))
        }
        _ => RegistryError::Status(url, status, said),
    })
}

/// The errors in a body, `code: message` each.
fn said(body: &[u8]) -> String {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct One {
        code: String,
        message: String,
    }
    let found: Errors = serde_json::from_slice(body).unwrap_or_default();
    let texts = found.errors.iter().map(|e| format!("{}: {}", e.code.to_lowercase(), e.message));
    texts.collect::<Vec<_>>().join(", ")
}

async fn whole(mut answer: Response) -> Result<Vec<u8>, RegistryError> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > MOST {
            return Err(RegistryError::Damaged(format!("{} has more than {MOST} bytes", answer.url())));
        }
    }
    Ok(body)
}

/// What a manifest or an image's name calls a content.
pub(crate) fn parse(digest: &str) -> Result<Digest, RegistryError> {
    Digest::parse(digest).map_err(|e| RegistryError::Damaged(format!("{digest:?}: {e}")))
}
