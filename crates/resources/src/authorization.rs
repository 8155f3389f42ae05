//! The `authorization.k8s.io` group, `v1`: reviews answered by the server itself.

mod local_subject_access_review;
mod self_subject_access_review;
mod self_subject_rules_review;
mod subject_access_review;

use crate::def::ResourceDef;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] = &[
    &local_subject_access_review::DEF,
    &self_subject_access_review::DEF,
    &self_subject_rules_review::DEF,
    &subject_access_review::DEF,
];
