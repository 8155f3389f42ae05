//! SelfSubjectAccessReview: whether the caller may do something.

use k8s_openapi::api::authorization::v1::SelfSubjectAccessReview;

use crate::def::{ResourceDef, Scope, Storage, Strategy, Typed};

pub(super) static DEF: ResourceDef = ResourceDef {
    scope: Scope::Cluster,
    storage: Storage::Virtual,
    ..ResourceDef::new::<SelfSubjectAccessReview>("selfsubjectaccessreview", &Typed::<SelfSubjectAccessReview, _>::new(SelfSubjectAccessReviews))
};

struct SelfSubjectAccessReviews;

impl Strategy<SelfSubjectAccessReview> for SelfSubjectAccessReviews {}
