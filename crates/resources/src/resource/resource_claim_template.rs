//! ResourceClaimTemplate: from which claims of pods are made.

use coracle_meta::field::{ErrorKind, ErrorList, Path};
use coracle_meta::object_meta::{validate_annotations, validate_labels};
use k8s_openapi::api::resource::v1::ResourceClaimTemplate;

use super::{claim_spec, shown};
use crate::check::about_text;
use crate::def::{ResourceDef, Strategy, Typed};

pub(super) static DEF: ResourceDef = ResourceDef::new::<ResourceClaimTemplate>(
    "resourceclaimtemplate",
    &Typed::<ResourceClaimTemplate, _>::new(Templates),
);

struct Templates;

impl Strategy<ResourceClaimTemplate> for Templates {
    fn default(&self, obj: &mut ResourceClaimTemplate) {
        claim_spec::default(&mut obj.spec.spec);
    }

    fn validate(&self, obj: &ResourceClaimTemplate, errs: &mut ErrorList) {
        let path = Path::new("spec");
        if let Some(meta) = &obj.spec.metadata {
            let path = path.child("metadata");
            if let Some(labels) = &meta.labels {
                validate_labels(labels, &path.child("labels"), errs);
            }
            if let Some(annotations) = &meta.annotations {
                validate_annotations(annotations, &path.child("annotations"), errs);
            }
        }
        claim_spec::check(&obj.spec.spec, &path.child("spec"), errs);
    }

    fn validate_update(
        &self,
        new: &ResourceClaimTemplate,
        old: &ResourceClaimTemplate,
        errs: &mut ErrorList,
    ) {
        self.validate(new, errs);
        if new.spec != old.spec {
            let shown = shown::template_spec(&new.spec);
            about_text(errs, ErrorKind::Invalid, &Path::new("spec"), shown, "field is immutable");
        }
    }
}
