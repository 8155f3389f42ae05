//! SubjectAccessReview: whether a user may do something.

use k8s_openapi::api::authorization::v1::SubjectAccessReview;

use crate::def::{ResourceDef, Scope, Storage, Strategy, Typed};

pub(super) static DEF: ResourceDef = ResourceDef {
    scope: Scope::Cluster,
    storage: Storage::Virtual,
    ..ResourceDef::new::<SubjectAccessReview>("subjectaccessreview", &Typed::<SubjectAccessReview, _>::new(SubjectAccessReviews))
};

struct SubjectAccessReviews;

impl Strategy<SubjectAccessReview> for SubjectAccessReviews {}
