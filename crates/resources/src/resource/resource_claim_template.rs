//! ResourceClaimTemplate: from which claims of pods are made.

use coracle_meta::field::{ErrorKind, ErrorList, Path};
use coracle_meta::object_meta::{validate_annotations, validate_labels};
use k8s_openapi::api::resource::v1::ResourceClaimTemplate;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{claim_spec, shown};
use crate::check::about_text;
use crate::def::{ResourceDef, Strategy, Typed};

pub(super) static DEF: ResourceDef = ResourceDef {
    returns_deleted: true,
    ..ResourceDef::new::<ResourceClaimTemplate>(
        "resourceclaimtemplate",
        &Typed::<ResourceClaimTemplate, _>::new(Templates),
    )
};

struct Templates;

impl Strategy<ResourceClaimTemplate> for Templates {
    fn default(&self, obj: &mut ResourceClaimTemplate) {
        obj.spec.metadata.get_or_insert_default();
        claim_spec::default(&mut obj.spec.spec);
    }

    fn validate(&self, obj: &ResourceClaimTemplate, errs: &mut ErrorList) {
        check(obj, errs);
    }

    fn validate_update(
        &self,
        new: &ResourceClaimTemplate,
        old: &ResourceClaimTemplate,
        errs: &mut ErrorList,
    ) {
        check(new, errs);
        if new.spec != old.spec {
            let shown = shown::template_spec(&new.spec);
            about_text(errs, ErrorKind::Invalid, &Path::new("spec"), shown, "field is immutable");
        }
    }
}

fn check(obj: &ResourceClaimTemplate, errs: &mut ErrorList) {
    let path = Path::new("spec");
    if let Some(meta) = &obj.spec.metadata {
        let path = path.child("metadata");
        if let Some(labels) = &meta.labels {
            validate_labels(labels, &path.child("labels"), errs);
        }
        if let Some(annotations) = &meta.annotations {
            validate_annotations(annotations, &path.child("annotations"), errs);
        }
        for field in forbidden(meta) {
            errs.forbidden(path.child(field), "cannot be set");
        }
    }
    claim_spec::check(&obj.spec.spec, &path.child("spec"), errs);
}

/// The fields that are set but that a template must not set, named as Go names them.
fn forbidden(meta: &ObjectMeta) -> impl Iterator<Item = &'static str> {
    let text = |value: &Option<String>| value.as_ref().is_some_and(|v| !v.is_empty());
    let number = |value: Option<i64>| value.is_some_and(|v| v != 0);
    [
        ("name", text(&meta.name)),
        ("generateName", text(&meta.generate_name)),
        ("namespace", text(&meta.namespace)),
        ("selfLink", text(&meta.self_link)),
        ("uID", text(&meta.uid)),
        ("resourceVersion", text(&meta.resource_version)),
        ("generation", number(meta.generation)),
        ("creationTimestamp", meta.creation_timestamp.is_some()),
        ("deletionTimestamp", meta.deletion_timestamp.is_some()),
        ("deletionGracePeriodSeconds", meta.deletion_grace_period_seconds.is_some()),
        ("ownerReferences", meta.owner_references.is_some()),
        ("finalizers", meta.finalizers.is_some()),
        ("managedFields", meta.managed_fields.is_some()),
    ]
    .into_iter()
    .filter_map(|(field, set)| set.then_some(field))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn metadata_of_claims_is_checked_on_change_too() {
        let of = |meta: serde_json::Value| -> ResourceClaimTemplate {
            let spec = json!({ "metadata": meta, "spec": { "devices": {} } });
            serde_json::from_value(json!({ "metadata": { "name": "t" }, "spec": spec })).expect("a template")
        };
        let mut errs = ErrorList::new();
        Templates.validate_update(&of(json!({ "name": "x" })), &of(json!({})), &mut errs);
        let fields: Vec<String> = errs.iter().map(|e| e.path.clone()).collect();
        assert_eq!(fields, ["spec.metadata.name", "spec"]);
    }
}
