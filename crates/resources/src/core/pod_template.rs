//! PodTemplate: a template kept for later use.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodTemplate;
use serde_json::Value;

use crate::common::{column, containers_and_images, format_labels};
use crate::def::{Column, NAME, ResourceDef, Strategy, Typed};
use crate::podspec::{defaults, validation, warnings};

const COLUMNS: &[Column] = &[
    NAME,
    column("Containers", "string", "", "Names of each container in the template."),
    column("Images", "string", "", "Images referenced by each container in the template."),
    column("Pod Labels", "string", "", "The labels for the pod template."),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::Change,
    columns: COLUMNS,
    returns_deleted: true,
    has_generation: true,
    ..ResourceDef::new::<PodTemplate>("podtemplate", &Typed::<PodTemplate, _>::new(Templates))
};

struct Templates;

impl Strategy<PodTemplate> for Templates {
    fn drop_disabled(&self, obj: &mut PodTemplate) {
        crate::podspec::defaults::drop_disabled(obj.template.as_mut().and_then(|t| t.spec.as_mut()));
    }

    fn default(&self, obj: &mut PodTemplate) {
        defaults::template(obj.template.get_or_insert_default());
    }

    fn validate(&self, obj: &PodTemplate, errs: &mut ErrorList) {
        if let Some(template) = &obj.template {
            validation::template(template, &Path::new("template"), errs);
        }
    }

    fn warnings(&self, new: &PodTemplate, old: Option<&PodTemplate>) -> Vec<String> {
        if old.is_some_and(|old| old.template == new.template) {
            return Vec::new();
        }
        let path = Path::new("template").child("spec");
        let Some(template) = &new.template else { return Vec::new() };
        let spec = template.spec.as_ref();
        spec.map(|spec| warnings::of(spec, template.metadata.as_ref(), &path)).unwrap_or_default()
    }

    fn row(&self, obj: &PodTemplate, _: Timestamp) -> Vec<Value> {
        let (containers, images) = containers_and_images(obj.template.as_ref());
        let labels = obj.template.as_ref().and_then(|t| t.metadata.as_ref()?.labels.as_ref());
        vec![obj.metadata.name.clone().into(), containers, images, format_labels(labels).into()]
    }
}
