//! The `apps` group, `v1`.

mod deployment;
mod replica_set;

use crate::def::ResourceDef;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] = &[&deployment::DEF, &replica_set::DEF];
