//! The `apps` group, `v1`.

mod deployment;
mod replica_set;
mod selector;

use crate::def::ResourceDef;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] = &[&deployment::DEF, &replica_set::DEF];
