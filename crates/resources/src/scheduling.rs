//! The `scheduling.k8s.io` group, `v1`.

mod priority_class;

use crate::def::ResourceDef;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] = &[&priority_class::DEF];

/// The priority classes of the system.
pub(crate) fn bootstrap() -> Vec<serde_json::Value> {
    priority_class::bootstrap()
}
