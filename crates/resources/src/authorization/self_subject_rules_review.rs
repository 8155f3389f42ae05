//! SelfSubjectRulesReview: what the caller may do in a namespace.

use k8s_openapi::api::authorization::v1::SelfSubjectRulesReview;

use crate::def::{ResourceDef, Scope, Storage, Strategy, Typed};

pub(super) static DEF: ResourceDef = ResourceDef {
    scope: Scope::Cluster,
    storage: Storage::Virtual,
    ..ResourceDef::new::<SelfSubjectRulesReview>(
        "selfsubjectrulesreview",
        &Typed::<SelfSubjectRulesReview, _>::new(SelfSubjectRulesReviews),
    )
};

struct SelfSubjectRulesReviews;

impl Strategy<SelfSubjectRulesReview> for SelfSubjectRulesReviews {}
