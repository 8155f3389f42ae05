//! TokenReview: whether a token is good, and whose it is.

use k8s_openapi::api::authentication::v1::TokenReview;

use crate::def::{ResourceDef, Scope, Storage, Strategy, Typed};

pub(super) static DEF: ResourceDef = ResourceDef {
    scope: Scope::Cluster,
    storage: Storage::Virtual,
    ..ResourceDef::new::<TokenReview>("tokenreview", &Typed::<TokenReview, _>::new(TokenReviews))
};

struct TokenReviews;

impl Strategy<TokenReview> for TokenReviews {}
