//! LocalSubjectAccessReview: whether a user may do something in one namespace.

use coracle_meta::field::{ErrorList, Path};
use k8s_openapi::api::authorization::v1::LocalSubjectAccessReview;

use super::attributes;
use crate::def::{ResourceDef, Storage, Strategy, Typed};

pub(super) static DEF: ResourceDef = ResourceDef {
    storage: Storage::Virtual,
    ..ResourceDef::new::<LocalSubjectAccessReview>(
        "localsubjectaccessreview",
        &Typed::<LocalSubjectAccessReview, _>::new(LocalSubjectAccessReviews),
    )
};

struct LocalSubjectAccessReviews;

impl Strategy<LocalSubjectAccessReview> for LocalSubjectAccessReviews {
    fn validate(&self, obj: &LocalSubjectAccessReview, errs: &mut ErrorList) {
        let spec = &obj.spec;
        attributes(spec.resource_attributes.as_ref(), spec.non_resource_attributes.as_ref(), errs);
        if spec.user.as_deref().unwrap_or("").is_empty() && spec.groups.as_ref().is_none_or(Vec::is_empty) {
            let path = Path::new("spec").child("user");
            errs.invalid(path, "", "at least one of user or group must be specified");
        }
        let namespace = obj.metadata.namespace.as_deref().unwrap_or("");
        let asked = spec.resource_attributes.as_ref().and_then(|r| r.namespace.as_deref()).unwrap_or("");
        if spec.resource_attributes.is_some() && asked != namespace {
            let path = Path::new("spec").child("resourceAttributes").child("namespace");
            errs.invalid(path, asked, "must match metadata.namespace");
        }
        if spec.non_resource_attributes.is_some() {
            let path = Path::new("spec").child("nonResourceAttributes");
            errs.forbidden(path, "disallowed on this kind of request");
        }
    }
}
