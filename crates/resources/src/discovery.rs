//! The `discovery.k8s.io` group, `v1`.

mod endpoint_slice;

use crate::def::ResourceDef;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] = &[&endpoint_slice::DEF];
