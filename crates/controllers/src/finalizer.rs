//! Finalizers that keep an object for as long as it is used.

use std::sync::Arc;

use coracle_client::Api;
use coracle_meta::{Kind, Reason, Status};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// What a finalizer needs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finalizer {
    /// It is as it should be.
    Nothing,
    /// The object lacks it.
    Add,
    /// It holds up a deletion for nothing.
    Remove,
}

/// What the finalizer of an object needs, given whether the object is used.
pub(crate) fn decide(meta: &ObjectMeta, finalizer: &str, is_used: bool) -> Finalizer {
    let held = meta.finalizers.iter().flatten().any(|known| known == finalizer);
    match (meta.deletion_timestamp.is_some(), held) {
        (false, false) => Finalizer::Add,
        (true, true) if !is_used => Finalizer::Remove,
        _ => Finalizer::Nothing,
    }
}

/// Does it; an object that is gone needs nothing.
///
/// # Errors
/// What the API refused.
pub(crate) async fn carry_out<K: Kind>(
    api: &Api<K>,
    object: &Arc<K>,
    finalizer: &str,
    change: &Finalizer,
) -> Result<(), Status> {
    let mut object = (**object).clone();
    let finalizers = object.metadata_mut().finalizers.get_or_insert_default();
    match change {
        Finalizer::Nothing => return Ok(()),
        Finalizer::Add => finalizers.push(finalizer.to_owned()),
        Finalizer::Remove => finalizers.retain(|known| known != finalizer),
    }
    let namespace = object.metadata().namespace.clone().unwrap_or_default();
    match api.update(&namespace, object).await {
        Err(status) if status.reason() != Reason::NotFound => Err(status),
        _ => Ok(()),
    }
}
