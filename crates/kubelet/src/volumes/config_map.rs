//! configMap: the keys of a ConfigMap as files.

use std::collections::BTreeMap;

use async_trait::async_trait;
use coracle_meta::Reason;
use k8s_openapi::api::core::v1::{ConfigMap, KeyToPath, Volume};

use super::atomic_writer::{self, File, Payload};
use super::{SetUp, VolumeContext, VolumeKind};
use crate::objects::Reference;

pub(super) struct ConfigMapVolume;

/// Mode of files when nothing is said.
pub(super) const DEFAULT_MODE: i32 = 0o644;

/// Picks the files that `items` (all, if there are none) name out of an object's data.
///
/// # Errors
/// A named key that is not there.
pub(super) fn project(
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&Vec<KeyToPath>>,
    default_mode: i32,
    optional: bool,
) -> Result<Payload, String> {
    let file = |data: &[u8], mode: i32| File { data: data.to_vec(), mode: mode.unsigned_abs(), uid: None };
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        return Ok(data.iter().map(|(k, v)| (k.clone(), file(v, default_mode))).collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match data.get(&item.key) {
            Some(value) => {
                payload.insert(item.path.clone(), file(value, item.mode.unwrap_or(default_mode)));
            }
            None if optional => {}
            None => return Err(format!("references non-existent config key: {}", item.key)),
        }
    }
    Ok(payload)
}

/// Text and binary keys of a ConfigMap.
fn data_of(map: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    text.chain(binary).collect()
}

/// The files of a ConfigMap; none if it is absent but optional.
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
    match cx.client.api::<ConfigMap>().get(cx.namespace(), name).await {
        Ok(map) => project(&data_of(&map), items, mode, optional)
            .map_err(|e| if e.is_empty() { e } else { format!("configmap {e}") }),
        Err(s) if s.reason() == Reason::NotFound && optional => Ok(Payload::new()),
        Err(s) if s.reason() == Reason::NotFound => Err(format!("configmap {name:?} not found")),
        Err(s) => Err(s.to_string()),
    }
}

#[async_trait]
impl VolumeKind for ConfigMapVolume {
    fn is(&self, volume: &Volume) -> bool {
        volume.config_map.is_some()
    }

    async fn set_up(&self, cx: &VolumeContext, volume: &Volume) -> Result<SetUp, String> {
        let source = volume.config_map.as_ref().ok_or("not a configMap")?;
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let optional = source.optional == Some(true);
        let files = payload(cx, &source.name, source.items.as_ref(), mode, optional).await?;
        atomic_writer::check_paths(&files)?;
        let path = cx.path("configmap", &volume.name);
        atomic_writer::write(&path, &files, cx.fs_group()).map_err(|e| e.to_string())?;
        Ok(SetUp::plain(path, true))
    }

    fn references(&self, namespace: &str, volume: &Volume) -> Vec<Reference> {
        volume.config_map.iter().map(|s| Reference::config_map(namespace, &s.name)).collect()
    }

    fn is_live(&self) -> bool {
        true
    }
}
