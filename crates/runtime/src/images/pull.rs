//! Pulls images from registries.

use std::io::Read;
use std::sync::{Arc, Once};
use std::time::Duration;

use coracle_cri::CriError;
use coracle_cri::v1::AuthConfig;
use futures::{StreamExt, TryStreamExt};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use tokio::io::AsyncWriteExt;

use super::layer::hex;
use super::reference::Reference;
use super::store::{ImageRecord, ImageStore, parse_config};

/// Layers fetched at a time, as containerd's default.
const PARALLEL: usize = 3;

/// Pulls an image; its id.
///
/// # Errors
/// The registry does not have it, refuses, or sends something damaged. No image is stored then.
pub(crate) async fn pull(
    store: &Arc<ImageStore>,
    name: &str,
    auth: Option<AuthConfig>,
) -> Result<String, CriError> {
    let reference = Reference::parse(name).map_err(CriError::InvalidArgument)?;
    let result = fetch(store, &reference, auth).await;
    if result.is_err() {
        let store = store.clone();
        let _ = tokio::task::spawn_blocking(move || store.collect()).await;
    }
    result
}

async fn fetch(
    store: &Arc<ImageStore>,
    reference: &Reference,
    auth: Option<AuthConfig>,
) -> Result<String, CriError> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    let full = reference.digested().or(reference.tagged()).unwrap_or_else(|| reference.name());
    let failed = |e: OciDistributionError| describe(&full, &e);
    let remote: oci_client::Reference =
        full.parse().map_err(|e| CriError::InvalidArgument(format!("{full}: {e}")))?;
    let protocol = if reference.is_local() {
        ClientProtocol::HttpsExcept(vec![remote.resolve_registry().to_owned()])
    } else {
        ClientProtocol::Https
    };
    let client = oci_client::Client::new(ClientConfig {
        protocol,
        connect_timeout: Some(Duration::from_secs(15)),
        read_timeout: Some(Duration::from_secs(60)),
        user_agent: "coracle",
        ..ClientConfig::default()
    });
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
        let mut file = tokio::fs::File::create(&path).await.map_err(internal)?;
        let done = self.client.pull_blob(&self.remote, &descriptor, &mut file).await;
        let flushed = file.flush().await;
        let (store, blob) = (self.store.clone(), path.clone());
        let result = match (done, flushed) {
            (Err(e), _) => Err(describe(&self.full, &e)),
            (_, Err(e)) => Err(internal(e)),
            _ => tokio::task::spawn_blocking(move || {
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
mod tests {
    use super::*;

    #[test]
    fn credentials_come_from_name_or_packed_form() {
        let packed = AuthConfig { auth: "dXNlcjpwYXNz".into(), ..Default::default() };
        let RegistryAuth::Basic(user, password) = credentials(Some(packed)) else { panic!("not basic") };
        assert_eq!((user.as_str(), password.as_str()), ("user", "pass"));
        assert!(matches!(credentials(None), RegistryAuth::Anonymous));
    }
}
