//! The `events.k8s.io` group, `v1`.

mod event;

use crate::def::ResourceDef;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] = &[&event::DEF];
