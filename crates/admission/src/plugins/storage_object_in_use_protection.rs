//! StorageObjectInUseProtection: claims, volumes and classes of volume attributes get a finalizer, so that
//! they stay while something uses them.

use async_trait::async_trait;
use coracle_meta::Status;

use crate::{Environment, Operation, Plugin, Request};

/// Group, resource and its finalizer.
const PROTECTED: &[(&str, &str, &str)] = &[
    ("", "persistentvolumes", "kubernetes.io/pv-protection"),
    ("", "persistentvolumeclaims", "kubernetes.io/pvc-protection"),
    ("storage.k8s.io", "volumeattributesclasses", "kubernetes.io/vac-protection"),
];

/// The plugin.
pub(super) struct StorageObjectInUseProtection;

fn finalizer(request: &Request<'_>) -> Option<&'static str> {
    let found = PROTECTED.iter().find(|(group, plural, _)| request.is(group, plural));
    found.map(|(.., finalizer)| *finalizer)
}

#[async_trait]
impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.operation == Operation::Create && finalizer(request).is_some()
    }

    async fn mutate(&self, _: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        let finalizer = finalizer(request);
        if let (Some(name), Some(object)) = (finalizer, request.object.as_deref_mut()) {
            let finalizers = object.meta_mut().finalizers.get_or_insert_default();
            if !finalizers.iter().any(|present| present == name) {
                finalizers.push(name.to_owned());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use coracle_meta::Object;
    use k8s_openapi::api::storage::v1::VolumeAttributesClass;

    use super::*;
    use crate::plugins::testing::admit_in;

    #[test]
    fn the_finalizer_is_added_once() {
        let mut object: Box<dyn Object> = Box::new(VolumeAttributesClass::default());
        for _ in 0..2 {
            let resource = ("storage.k8s.io", "volumeattributesclasses");
            admit_in(&StorageObjectInUseProtection, &[], resource, &mut object).expect("admitted");
            let finalizers = object.meta().finalizers.as_deref();
            assert_eq!(finalizers, Some(&["kubernetes.io/vac-protection".to_owned()][..]));
        }
    }
}
