//! secret: the keys of a Secret as files, in memory only.

use async_trait::async_trait;
use coracle_meta::Reason;
use k8s_openapi::api::core::v1::{KeyToPath, Secret, Volume};

use super::atomic_writer::{self, Payload};
use super::config_map::{DEFAULT_MODE, project};
use super::{SetUp, VolumeContext, VolumeKind, mount_tmpfs};
use crate::objects::Reference;

pub(super) struct SecretVolume;

/// The files of a Secret; none if it is absent but optional.
///
/// # Errors
/// Upstream's text for a missing object or key.
pub(super) async fn payload(
    cx: &VolumeContext,
    name: &str,
    items: Option<&Vec<KeyToPath>>,
    mode: i32,
    optional: bool,
) -> Result<Payload, String> {
    match cx.client.api::<Secret>().get(cx.namespace(), name).await {
        Ok(secret) => {
            let data = secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect();
            project(&data, items, mode, optional).map_err(|e| e.replace("config key", "secret key"))
        }
        Err(s) if s.reason() == Reason::NotFound && optional => Ok(Payload::new()),
        Err(s) if s.reason() == Reason::NotFound => Err(format!("secret {name:?} not found")),
        Err(s) => Err(s.to_string()),
    }
}

#[async_trait]
impl VolumeKind for SecretVolume {
    fn is(&self, volume: &Volume) -> bool {
        volume.secret.is_some()
    }

    async fn set_up(&self, cx: &VolumeContext, volume: &Volume) -> Result<SetUp, String> {
        let source = volume.secret.as_ref().ok_or("not a secret")?;
        let name = source.secret_name.as_deref().unwrap_or("");
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let optional = source.optional == Some(true);
        let files = payload(cx, name, source.items.as_ref(), mode, optional).await?;
        atomic_writer::check_paths(&files)?;
        let path = cx.path("secret", &volume.name);
        mount_tmpfs(&path, None)?;
        atomic_writer::write(&path, &files, cx.fs_group()).map_err(|e| e.to_string())?;
        Ok(SetUp::plain(path, true))
    }

    fn references(&self, namespace: &str, volume: &Volume) -> Vec<Reference> {
        let name = volume.secret.as_ref().and_then(|s| s.secret_name.as_deref());
        name.iter().map(|n| Reference::secret(namespace, n)).collect()
    }

    fn is_live(&self) -> bool {
        true
    }
}
