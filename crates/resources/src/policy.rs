//! The `policy` group, `v1`.

mod pod_disruption_budget;

use crate::def::ResourceDef;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] = &[&pod_disruption_budget::DEF];
