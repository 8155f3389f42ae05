//! image: the files of an image, read-only. The runtime mounts it into each container; the image is pulled when
//! the container is started.

use std::path::PathBuf;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Volume;

use super::{SetUp, VolumeContext, VolumeKind};

pub(super) struct ImageVolume;

#[async_trait]
impl VolumeKind for ImageVolume {
    fn is(&self, volume: &Volume) -> bool {
        volume.image.is_some()
    }

    async fn set_up(&self, _: &VolumeContext, _: &Volume) -> Result<SetUp, String> {
        Ok(SetUp::plain(PathBuf::new(), true))
    }
}
