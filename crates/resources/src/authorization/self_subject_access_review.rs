//! SelfSubjectAccessReview: whether the caller may do something.

use coracle_meta::field::ErrorList;
use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;

use super::attributes;
use crate::def::{ResourceDef, Scope, Storage, Strategy, Typed};

pub(super) static DEF: ResourceDef = ResourceDef {
    scope: Scope::Cluster,
    storage: Storage::Virtual,
    ..ResourceDef::new::<SelfSubjectAccessReview>(
        "selfsubjectaccessreview",
        &Typed::<SelfSubjectAccessReview, _>::new(SelfSubjectAccessReviews),
    )
};

struct SelfSubjectAccessReviews;

impl Strategy<SelfSubjectAccessReview> for SelfSubjectAccessReviews {
    fn validate(&self, obj: &SelfSubjectAccessReview, errs: &mut ErrorList) {
        let spec = &obj.spec;
        attributes(spec.resource_attributes.as_ref(), spec.non_resource_attributes.as_ref(), errs);
    }
}
