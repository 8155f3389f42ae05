//! Pulls images from registries.

use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Once};
use std::time::Duration;

use coracle_cri::CriError;
use coracle_cri::v1::AuthConfig;
use futures::{StreamExt, TryStreamExt};
use oci_client::client::{BlobResponse, Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use tokio::io::AsyncWriteExt;

use super::layer::hex;
use super::reference::Reference;
use super::registries::{Endpoint, Registries};
use super::store::{ImageRecord, ImageStore, parse_config};

/// Layers fetched at a time, as containerd's default.
const PARALLEL: usize = 3;

/// Tries to get a layer to its end; each goes on where the one before stopped.
const TRIES: usize = 5;

/// Pulls an image; its id. `registries` names the file that says how registries are reached.
///
/// # Errors
/// No place has it, or all refuse or send something damaged. No image is stored then; layers that arrived whole
/// are collected unless another image has them.
pub(crate) async fn pull(
    store: &Arc<ImageStore>,
    name: &str,
    auth: Option<AuthConfig>,
    registries: &Path,
) -> Result<String, CriError> {
    let reference = Reference::parse(name).map_err(CriError::InvalidArgument)?;
    let registries = Registries::read(registries).map_err(CriError::FailedPrecondition)?;
    let endpoints = registries.endpoints(&reference.registry, reference.is_local());
    let mut first = None;
    for endpoint in endpoints {
        match fetch(store, &reference, auth.clone(), &endpoint).await {
            Ok(id) => return Ok(id),
            Err(e) => {
                tracing::debug!(image = name, endpoint = endpoint.host, error = %e, "not pulled from here");
                // What the registry itself says tells most; it is asked last.
                first = Some(e);
            }
        }
    }
    let store = store.clone();
    let _ = tokio::task::spawn_blocking(move || store.collect()).await;
    Err(first.unwrap_or_else(|| CriError::Internal("no registry to ask".into())))
}

/// A client for one endpoint.
///
/// # Errors
/// Its certificate authority cannot be read.
fn client(endpoint: &Endpoint) -> Result<oci_client::Client, CriError> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    let mut extra = Vec::new();
    if let Some(file) = &endpoint.tls.ca_file {
        let data = std::fs::read(file)
            .map_err(|e| CriError::FailedPrecondition(format!("cannot read {}: {e}", file.display())))?;
        extra.push(Certificate { encoding: CertificateEncoding::Pem, data });
    }
    let host = if endpoint.host == "docker.io" { "index.docker.io" } else { &endpoint.host };
    Ok(oci_client::Client::new(ClientConfig {
        protocol: if endpoint.plain {
            ClientProtocol::HttpsExcept(vec![host.to_owned()])
        } else {
            ClientProtocol::Https
        },
        accept_invalid_certificates: endpoint.tls.insecure_skip_verify,
        extra_root_certificates: extra,
        connect_timeout: Some(Duration::from_secs(15)),
        read_timeout: Some(Duration::from_secs(60)),
        user_agent: "coracle",
        ..ClientConfig::default()
    }))
}

async fn fetch(
    store: &Arc<ImageStore>,
    reference: &Reference,
    auth: Option<AuthConfig>,
    endpoint: &Endpoint,
) -> Result<String, CriError> {
    let full = reference.digested().or(reference.tagged()).unwrap_or_else(|| reference.name());
    let failed = |e: OciDistributionError| describe(&full, &e);
    let repository = endpoint.repository(&reference.repository).map_err(CriError::FailedPrecondition)?;
    let version = full.strip_prefix(&reference.name()).unwrap_or_default();
    let there = format!("{}/{repository}{version}", endpoint.host);
    let remote: oci_client::Reference =
        there.parse().map_err(|e| CriError::InvalidArgument(format!("{there}: {e}")))?;
    let client = client(endpoint)?;
    let own = endpoint.login.as_ref().map(|l| AuthConfig {
        username: l.username.clone(),
        password: l.password.clone(),
        auth: l.auth.clone(),
        identity_token: l.identity_token.clone(),
        ..AuthConfig::default()
    });
    // Credentials for the registry are not shown to its mirrors.
    let auth = if endpoint.host == reference.registry { auth.or(own) } else { own };
    let auth = credentials(auth);
    let (manifest, digest, list_digest) =
        client.pull_image_manifest_and_list_digest(&remote, &auth).await.map_err(failed)?;
    let mut config_bytes = Vec::new();
    client.pull_blob(&remote, &manifest.config, &mut config_bytes).await.map_err(failed)?;
    let internal = |e: std::io::Error| CriError::Internal(format!("failed to pull image {full:?}: {e}"));
    let (config, diff_ids) = parse_config(&config_bytes).map_err(internal)?;
    if diff_ids.len() != manifest.layers.len() {
        return Err(CriError::Internal(format!(
            "failed to pull image {full:?}: layers and configuration differ"
        )));
    }
    let config_hex = hex(&<sha2::Sha256 as sha2::Digest>::digest(&config_bytes));
    let _pin = store.pin(diff_ids.iter().cloned().chain([config_hex.clone()]));
    let fetcher = Fetcher { client, remote, store: store.clone(), full: full.clone() };
    let work: Vec<(String, OciDescriptor)> = diff_ids.iter().cloned().zip(manifest.layers.clone()).collect();
    let layers = work.into_iter().map(|(diff_id, descriptor)| fetcher.layer(diff_id, descriptor));
    futures::stream::iter(layers).buffer_unordered(PARALLEL).try_collect::<Vec<()>>().await?;
    let size = manifest.layers.iter().map(|l| l.size.max(0) as u64).sum::<u64>() + config_bytes.len() as u64;
    let record = ImageRecord {
        id: format!("sha256:{config_hex}"),
        blobs: vec![config_hex],
        layers: diff_ids,
        size,
        tags: reference.tagged().into_iter().filter(|_| reference.digest.is_none()).collect(),
        digests: [format!("{}@{}", reference.name(), list_digest.unwrap_or(digest))].into(),
        config,
        stamp: String::new(),
    };
    let (id, store) = (record.id.clone(), store.clone());
    tokio::task::spawn_blocking(move || {
        store.put_blob(&config_bytes)?;
        store.sync()?;
        store.commit(record)
    })
    .await
    .map_err(|e| CriError::Internal(e.to_string()))?
    .map_err(internal)?;
    Ok(id)
}

/// Gets layers of one image.
struct Fetcher {
    client: oci_client::Client,
    remote: oci_client::Reference,
    store: Arc<ImageStore>,
    full: String,
}

impl Fetcher {
    async fn layer(&self, diff_id: String, descriptor: OciDescriptor) -> Result<(), CriError> {
        if self.store.layer_dir(&diff_id).exists() {
            return Ok(());
        }
        let internal =
            |e: std::io::Error| CriError::Internal(format!("failed to pull image {:?}: {e}", self.full));
        let path = self.store.temporary();
        let (store, blob) = (self.store.clone(), path.clone());
        let result = match self.download(&descriptor, &path).await {
            Err(e) => Err(e),
            Ok(()) => tokio::task::spawn_blocking(move || {
                store.add_layer(&diff_id, || Ok(Box::new(std::fs::File::open(blob)?) as Box<dyn Read>))
            })
            .await
            .map_err(|e| CriError::Internal(e.to_string()))?
            .map_err(internal),
        };
        let _ = tokio::fs::remove_file(&path).await;
        result
    }
}

impl Fetcher {
    /// Gets a blob into a file. What arrived before a connection broke is kept and the rest asked for.
    async fn download(&self, descriptor: &OciDescriptor, path: &Path) -> Result<(), CriError> {
        let internal =
            |e: std::io::Error| CriError::Internal(format!("failed to pull image {:?}: {e}", self.full));
        let mut file = tokio::fs::File::create(path).await.map_err(internal)?;
        let mut have: u64 = 0;
        let whole = descriptor.size.max(0).unsigned_abs();
        let mut last = None;
        for attempt in 0..TRIES {
            if attempt > 0 {
                tokio::time::sleep(Duration::from_millis(200 << attempt)).await;
            }
            match self.part(descriptor, &mut file, &mut have).await {
                Ok(()) if have >= whole => {
                    last = None;
                    break;
                }
                Ok(()) => {
                    last = Some(CriError::Unavailable(format!(
                        "failed to pull image {:?}: blob {} ended after {have} of {whole} bytes",
                        self.full, descriptor.digest
                    )))
                }
                Err(e @ CriError::Unavailable(_)) => last = Some(e),
                Err(e) => return Err(e),
            }
        }
        if let Some(e) = last {
            return Err(e);
        }
        file.flush().await.map_err(internal)?;
        let (path, digest) = (path.to_owned(), descriptor.digest.clone());
        let found = tokio::task::spawn_blocking(move || digest_of(&path))
            .await
            .map_err(|e| CriError::Internal(e.to_string()))?
            .map_err(internal)?;
        if found == digest {
            return Ok(());
        }
        Err(CriError::Internal(format!(
            "failed to pull image {:?}: blob has digest {found}, its manifest says {digest}",
            self.full
        )))
    }

    /// One request: from `have` on to wherever it gets.
    async fn part(
        &self,
        descriptor: &OciDescriptor,
        file: &mut tokio::fs::File,
        have: &mut u64,
    ) -> Result<(), CriError> {
        use tokio::io::AsyncSeekExt as _;
        let internal =
            |e: std::io::Error| CriError::Internal(format!("failed to pull image {:?}: {e}", self.full));
        let failed = |e: OciDistributionError| describe(&self.full, &e);
        let answer = if *have == 0 {
            BlobResponse::Full(self.client.pull_blob_stream(&self.remote, descriptor).await.map_err(failed)?)
        } else {
            self.client
                .pull_blob_stream_partial(&self.remote, descriptor, *have, None)
                .await
                .map_err(failed)?
        };
        let mut stream = match answer {
            BlobResponse::Partial(stream) => stream.stream,
            BlobResponse::Full(stream) => {
                // The registry knows no ranges: from the beginning.
                file.set_len(0).await.map_err(internal)?;
                file.rewind().await.map_err(internal)?;
                *have = 0;
                stream.stream
            }
        };
        while let Some(chunk) = stream.next().await {
            let Ok(chunk) = chunk else { return Ok(()) };
            file.write_all(&chunk).await.map_err(internal)?;
            *have += chunk.len() as u64;
        }
        Ok(())
    }
}

/// `sha256:…` of a file.
fn digest_of(path: &Path) -> std::io::Result<String> {
    use sha2::Digest as _;
    let mut hash = sha2::Sha256::new();
    std::io::copy(&mut std::fs::File::open(path)?, &mut hash)?;
    Ok(format!("sha256:{}", hex(&hash.finalize())))
}

fn credentials(auth: Option<AuthConfig>) -> RegistryAuth {
    let Some(auth) = auth else { return RegistryAuth::Anonymous };
    if !auth.registry_token.is_empty() {
        return RegistryAuth::Bearer(auth.registry_token);
    }
    if !auth.username.is_empty() {
        return RegistryAuth::Basic(auth.username, auth.password);
    }
    match decode_base64(&auth.auth).and_then(|b| String::from_utf8(b).ok()) {
        Some(pair) => match pair.split_once(':') {
            Some((user, password)) => {
                RegistryAuth::Basic(user.to_owned(), password.trim_end_matches('\0').to_owned())
            }
            None => RegistryAuth::Anonymous,
        },
        None => RegistryAuth::Anonymous,
    }
}

/// Standard base64; `None` if it is not, or is empty.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let mut out = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0);
    for byte in digits.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    (!out.is_empty()).then_some(out)
}

fn describe(full: &str, error: &OciDistributionError) -> CriError {
    let text = format!("failed to pull image {full:?}: {error}");
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => {
            CriError::NotFound(format!("failed to pull image {full:?}: {full}: not found"))
        }
        OciDistributionError::ServerError { code: 404, .. } => {
            CriError::NotFound(format!("failed to pull image {full:?}: {full}: not found"))
        }
        OciDistributionError::RegistryError { envelope, .. }
            if envelope.errors.iter().any(|e| {
                matches!(
                    e.code,
                    OciErrorCode::ManifestUnknown | OciErrorCode::NameUnknown | OciErrorCode::NotFound
                )
            }) =>
        {
            CriError::NotFound(format!("failed to pull image {full:?}: {full}: not found"))
        }
        OciDistributionError::RequestError(e) => {
            // reqwest hides the cause that people need (connection refused, unknown host).
            let mut text = text;
            let mut source = std::error::Error::source(e);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            CriError::Unavailable(text)
        }
        _ => CriError::Internal(text),
    }
}

#[cfg(test)]
mod tests;
