//! LocalSubjectAccessReview: whether a user may do something in one namespace.

use k8s_openapi::api::authorization::v1::LocalSubjectAccessReview;

use crate::def::{ResourceDef, Storage, Strategy, Typed};

pub(super) static DEF: ResourceDef = ResourceDef {
    storage: Storage::Virtual,
    ..ResourceDef::new::<LocalSubjectAccessReview>("localsubjectaccessreview", &Typed::<LocalSubjectAccessReview, _>::new(LocalSubjectAccessReviews))
};

struct LocalSubjectAccessReviews;

impl Strategy<LocalSubjectAccessReview> for LocalSubjectAccessReviews {}
