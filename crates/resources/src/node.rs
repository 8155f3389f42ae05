//! The `node.k8s.io` group, `v1`.

mod runtime_class;

use crate::def::ResourceDef;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] = &[&runtime_class::DEF];
