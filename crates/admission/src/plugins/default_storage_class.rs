//! DefaultStorageClass: claims that name no class get the default one, the newest if there are several.

use async_trait::async_trait;
use coracle_meta::Status;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::{Environment, Operation, Plugin, Request};

/// Annotations that make a class the default one.
const MARKS: &[&str] =
    &["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
/// Annotation by which old claims name their class.
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// The plugin.
pub(super) struct DefaultStorageClass;

#[async_trait]
impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.operation == Operation::Create && request.is("", "persistentvolumeclaims")
    }

    async fn mutate(&self, env: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        let Some(claim) = request.object_mut::<PersistentVolumeClaim>() else { return Ok(()) };
        let old = claim.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(OLD_CLASS));
        let spec = claim.spec.get_or_insert_default();
        if !old && spec.storage_class_name.is_none() {
            let classes = env.reader.list("storage.k8s.io", "storageclasses", "");
            let metas = classes.iter().filter_map(|obj| obj.downcast::<StorageClass>()).map(|c| &c.metadata);
            spec.storage_class_name = default_of(metas, MARKS);
        }
        Ok(())
    }
}

/// The name of the class that one of the annotations marks; of several the newest, then the first by name.
pub(super) fn default_of<'a>(
    classes: impl Iterator<Item = &'a ObjectMeta>,
    marks: &[&str],
) -> Option<String> {
    let marked = |meta: &&ObjectMeta| {
        let annotations = meta.annotations.as_ref();
        marks.iter().any(|mark| annotations.and_then(|a| a.get(*mark)).is_some_and(|v| v == "true"))
    };
    let rank = |meta: &&ObjectMeta| {
        let created = meta.creation_timestamp.as_ref().map(|t| t.0);
        (std::cmp::Reverse(created), meta.name.clone())
    };
    classes.filter(marked).min_by_key(rank).and_then(|meta| meta.name.clone())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn class(name: &str, mark: &str, created: i64) -> ObjectMeta {
        let created = jiff::Timestamp::from_second(created).expect("a time");
        ObjectMeta {
            name: Some(name.to_owned()),
            annotations: Some([(MARKS[0].to_owned(), mark.to_owned())].into()),
            creation_timestamp: Some(Time(created)),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn the_newest_marked_class_is_the_default() {
        let classes = [class("old", "true", 1), class("new", "true", 2), class("other", "false", 3)];
        assert_eq!(default_of(classes.iter(), MARKS).as_deref(), Some("new"));
        assert_eq!(default_of(classes[2..].iter(), MARKS), None);
    }
}
