//! The `authentication.k8s.io` group, `v1`: reviews answered by the server itself.

mod self_subject_review;
mod token_review;

use crate::def::ResourceDef;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] = &[&self_subject_review::DEF, &token_review::DEF];
