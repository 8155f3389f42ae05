//! What policies and the match conditions of webhooks share: which requests they concern, their parameters, and the
//! evaluation of their expressions.
//! Follows <https://kubernetes.io/docs/reference/access-authn-authz/validating-admission-policy/>.

mod compiled;
mod conditions;
mod matching;
mod params;
mod scope;

pub(crate) use compiled::{Builder, Cache, Compiled, Condition};
pub use conditions::Conditions;
pub(crate) use matching::matched;
pub(crate) use params::{collect as params, is_known, unknown};
pub(crate) use scope::{Input, Run};

use crate::Request;

/// What the evaluation of a policy for one request and parameter may cost.
pub(crate) const BUDGET: i64 = 10_000_000;
/// What the evaluation of match conditions may cost.
pub(crate) const CONDITIONS_BUDGET: i64 = 2_500_000;

/// Reviews, which no policy is asked about: a cluster whose reviews fail cannot be mended.
const REVIEWS: &[&str] = &[
    "selfsubjectreviews",
    "tokenreviews",
    "localsubjectaccessreviews",
    "selfsubjectaccessreviews",
    "selfsubjectrulesreviews",
    "subjectaccessreviews",
];

/// Whether policies are asked about such requests at all: not about policies and webhooks themselves, nor reviews.
pub(crate) fn concerns(request: &Request<'_>) -> bool {
    let (group, plural) = (request.resource.group, request.resource.plural);
    let review =
        matches!(group, "authentication.k8s.io" | "authorization.k8s.io") && REVIEWS.contains(&plural);
    let policy = group == "admissionregistration.k8s.io"
        && (plural.starts_with("validatingadmissionpolic") || plural.starts_with("mutatingadmissionpolic"));
    !review && !policy
}
