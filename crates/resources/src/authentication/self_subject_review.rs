//! SelfSubjectReview: who the caller is.

use k8s_openapi::api::authentication::v1::SelfSubjectReview;

use crate::def::{ResourceDef, Scope, Storage, Strategy, Typed};

pub(super) static DEF: ResourceDef = ResourceDef {
    scope: Scope::Cluster,
    storage: Storage::Virtual,
    ..ResourceDef::new::<SelfSubjectReview>(
        "selfsubjectreview",
        &Typed::<SelfSubjectReview, _>::new(SelfSubjectReviews),
    )
};

struct SelfSubjectReviews;

impl Strategy<SelfSubjectReview> for SelfSubjectReviews {}
