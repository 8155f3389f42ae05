//! Pulls images from registries.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri::CriError;
use coracle_cri::v1::AuthConfig;
use futures::{StreamExt, TryStreamExt};
use tokio::io::AsyncWriteExt;

use super::digest::{Algorithm, Digest, sha256};
use super::login::Credentials;
use super::reference::Reference;
use super::registries::{Endpoint, Registries};
use super::registry::{self, Descriptor, RegistryError, Repository};
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

async fn fetch(
    store: &Arc<ImageStore>,
    reference: &Reference,
    auth: Option<AuthConfig>,
    endpoint: &Endpoint,
) -> Result<String, CriError> {
    let full = reference.digested().or(reference.tagged()).unwrap_or_else(|| reference.name());
    let failed = |e: RegistryError| describe(&full, &e);
    let repository = endpoint.repository(&reference.repository).map_err(CriError::FailedPrecondition)?;
    let version = reference.digest.as_deref().or(reference.tag.as_deref()).unwrap_or_default();
    let own = endpoint.login.as_ref().map(|l| AuthConfig {
        username: l.username.clone(),
        password: l.password.clone(),
        auth: l.auth.clone(),
        identity_token: l.identity_token.clone(),
        ..AuthConfig::default()
    });
    // Credentials for the registry are not shown to its mirrors.
    let auth = if endpoint.host == reference.registry { auth.or(own) } else { own };
    let repository = Repository::new(endpoint, &reference.registry, &repository, Credentials::from(auth));
    let repository = Arc::new(repository.map_err(failed)?);
    let (manifest, digest) = repository.manifest(version).await.map_err(failed)?;
    let config_bytes = repository.small(&manifest.config.digest).await.map_err(failed)?;
    let internal = |e: std::io::Error| CriError::Internal(format!("failed to pull image {full:?}: {e}"));
    let (config, diff_ids) = parse_config(&config_bytes).map_err(internal)?;
    if diff_ids.len() != manifest.layers.len() {
        return Err(CriError::Internal(format!(
            "failed to pull image {full:?}: layers and configuration differ"
        )));
    }
    let config_hex = sha256(&config_bytes);
    let _pin = store.pin(diff_ids.iter().cloned().chain([config_hex.clone()]));
    let fetcher = Fetcher { repository, store: store.clone(), full: full.clone() };
    let work: Vec<(String, Descriptor)> = diff_ids.iter().cloned().zip(manifest.layers.clone()).collect();
    let layers = work.into_iter().map(|(diff_id, descriptor)| fetcher.layer(diff_id, descriptor));
    futures::stream::iter(layers).buffer_unordered(PARALLEL).try_collect::<Vec<()>>().await?;
    let size = manifest.layers.iter().map(|l| l.size).sum::<u64>() + config_bytes.len() as u64;
    let record = ImageRecord {
        id: format!("sha256:{config_hex}"),
        blobs: vec![config_hex],
        layers: diff_ids,
        size,
        tags: reference.tagged().into_iter().filter(|_| reference.digest.is_none()).collect(),
        digests: [format!("{}@{}", reference.name(), digest)].into(),
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
    repository: Arc<Repository>,
    store: Arc<ImageStore>,
    full: String,
}

impl Fetcher {
    async fn layer(&self, diff_id: String, descriptor: Descriptor) -> Result<(), CriError> {
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
    async fn download(&self, descriptor: &Descriptor, path: &Path) -> Result<(), CriError> {
        let internal =
            |e: std::io::Error| CriError::Internal(format!("failed to pull image {:?}: {e}", self.full));
        let wanted = registry::parse(&descriptor.digest).map_err(|e| describe(&self.full, &e))?;
        let mut file = tokio::fs::File::create(path).await.map_err(internal)?;
        let mut have: u64 = 0;
        let whole = descriptor.size;
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
        let (path, algorithm) = (path.to_owned(), wanted.algorithm);
        let found = tokio::task::spawn_blocking(move || digest_of(&path, algorithm))
            .await
            .map_err(|e| CriError::Internal(e.to_string()))?
            .map_err(internal)?;
        if found == wanted {
            return Ok(());
        }
        Err(CriError::Internal(format!(
            "failed to pull image {:?}: blob has digest {found}, its manifest says {wanted}",
            self.full
        )))
    }

    /// One request: from `have` on to wherever it gets.
    async fn part(
        &self,
        descriptor: &Descriptor,
        file: &mut tokio::fs::File,
        have: &mut u64,
    ) -> Result<(), CriError> {
        use tokio::io::AsyncSeekExt as _;
        let internal =
            |e: std::io::Error| CriError::Internal(format!("failed to pull image {:?}: {e}", self.full));
        let failed = |e: RegistryError| describe(&self.full, &e);
        let mut answer = self.repository.blob(&descriptor.digest, *have).await.map_err(failed)?;
        if answer.status() != reqwest::StatusCode::PARTIAL_CONTENT {
            // The registry knows no ranges: from the beginning.
            file.set_len(0).await.map_err(internal)?;
            file.rewind().await.map_err(internal)?;
            *have = 0;
        }
        // What came before the connection broke counts.
        while let Ok(Some(chunk)) = answer.chunk().await {
            file.write_all(&chunk).await.map_err(internal)?;
            *have += chunk.len() as u64;
        }
        Ok(())
    }
}

/// The digest of a file.
fn digest_of(path: &Path, algorithm: Algorithm) -> std::io::Result<Digest> {
    let mut hash = algorithm.hasher();
    std::io::copy(&mut std::fs::File::open(path)?, &mut hash)?;
    Ok(hash.finish())
}

fn describe(full: &str, error: &RegistryError) -> CriError {
    let text = format!("failed to pull image {full:?}: {error}");
    match error {
        RegistryError::NotFound => {
            CriError::NotFound(format!("failed to pull image {full:?}: {full}: not found"))
        }
        RegistryError::NoPlatform => CriError::NotFound(text),
        RegistryError::Configuration(_) => CriError::FailedPrecondition(text),
        RegistryError::Request(_) => CriError::Unavailable(text),
        RegistryError::Denied(_) | RegistryError::Status(..) | RegistryError::Damaged(_) => {
            CriError::Internal(text)
        }
    }
}

#[cfg(test)]
mod tests;
