//! Images: what is stored, under which names, and who may delete what.
//!
//! On disk below `root`: `images.json` (the index, written atomically), `blobs/sha256/<hex>` (manifests and
//! configurations), `layers/<hex of the uncompressed layer's digest>/fs` (unpacked layers, shared by all
//! images that have them). A layer is unpacked beside its place and renamed into it, so what is there is
//! whole.

mod archive;
mod digest;
mod export;
mod layer;
mod login;
mod pull;
mod reference;
mod registries;
mod registry;
mod self_image;
mod store;

pub(crate) use archive::import;
pub(crate) use export::export;

/// Whether a name of an image is one.
///
/// # Errors
/// The text is the kubelet's cause of `InvalidImageName`.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    reference::Reference::parse(name).map(drop)
}
pub(crate) use pull::pull;
pub(crate) use self_image::ensure as ensure_self_image;
pub(crate) use store::{ImageConfig, ImageRecord, ImageStore, Pin};
