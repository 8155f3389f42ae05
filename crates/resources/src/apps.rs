//! The `apps` group, `v1`.

mod controller_revision;
mod daemon_set;
mod deployment;
mod replica_set;
mod rolling;
mod selector;
mod stateful_set;

use crate::def::ResourceDef;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] =
    &[&controller_revision::DEF, &daemon_set::DEF, &deployment::DEF, &replica_set::DEF, &stateful_set::DEF];
