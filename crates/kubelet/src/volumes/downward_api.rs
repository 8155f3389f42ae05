//! downwardAPI: fields of the pod as files.

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, Volume};

use super::atomic_writer::{self, File, Payload};
use super::config_map::DEFAULT_MODE;
use super::{SetUp, VolumeContext, VolumeKind};
use crate::container::fields;

pub(super) struct DownwardApi;

/// The files that `items` describe.
///
/// # Errors
/// A field or resource that does not exist.
pub(super) fn payload(
    cx: &VolumeContext,
    items: Option<&Vec<DownwardAPIVolumeFile>>,
    mode: i32,
) -> Result<Payload, String> {
    let mut files = Payload::new();
    for item in items.into_iter().flatten() {
        let text = if let Some(f) = &item.field_ref {
            fields::field(&cx.pod, &f.field_path, &cx.facts)?
        } else if let Some(r) = &item.resource_field_ref {
            fields::resource(&cx.pod, None, r, &cx.facts)?
        } else {
            continue;
        };
        let mode = item.mode.unwrap_or(mode).unsigned_abs();
        files.insert(item.path.clone(), File { data: text.into_bytes(), mode, uid: None });
    }
    Ok(files)
}

#[async_trait]
impl VolumeKind for DownwardApi {
    fn is(&self, volume: &Volume) -> bool {
        volume.downward_api.is_some()
    }

    async fn set_up(&self, cx: &VolumeContext, volume: &Volume) -> Result<SetUp, String> {
        let source = volume.downward_api.as_ref().ok_or("not a downwardAPI")?;
        let files = payload(cx, source.items.as_ref(), source.default_mode.unwrap_or(DEFAULT_MODE))?;
        atomic_writer::check_paths(&files)?;
        let path = cx.path("downward-api", &volume.name);
        atomic_writer::write(&path, &files, cx.fs_group()).map_err(|e| e.to_string())?;
        Ok(SetUp::plain(path, true))
    }

    fn is_live(&self) -> bool {
        true
    }
}
