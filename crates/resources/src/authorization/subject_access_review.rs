//! SubjectAccessReview: whether a user may do something.

use coracle_meta::field::{ErrorList, Path};
use k8s_openapi::api::authorization::v1::SubjectAccessReview;

use super::attributes;
use crate::def::{ResourceDef, Scope, Storage, Strategy, Typed};

pub(super) static DEF: ResourceDef = ResourceDef {
    scope: Scope::Cluster,
    storage: Storage::Virtual,
    ..ResourceDef::new::<SubjectAccessReview>(
        "subjectaccessreview",
        &Typed::<SubjectAccessReview, _>::new(SubjectAccessReviews),
    )
};

struct SubjectAccessReviews;

impl Strategy<SubjectAccessReview> for SubjectAccessReviews {
    fn validate(&self, obj: &SubjectAccessReview, errs: &mut ErrorList) {
        let spec = &obj.spec;
        attributes(spec.resource_attributes.as_ref(), spec.non_resource_attributes.as_ref(), errs);
        if spec.user.as_deref().unwrap_or("").is_empty() && spec.groups.as_ref().is_none_or(Vec::is_empty) {
            let path = Path::new("spec").child("user");
            errs.invalid(path, "", "at least one of user or group must be specified");
        }
    }
}
