//! The `coordination.k8s.io` group, `v1`.

mod lease;

use crate::def::ResourceDef;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] = &[&lease::DEF];
