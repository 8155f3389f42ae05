//! The `autoscaling` group, `v2` (stored) and `v1`.

mod horizontal_pod_autoscaler;
mod horizontal_pod_autoscaler_v1;

use crate::def::ResourceDef;

/// One row per kind and version.
pub(crate) static KINDS: &[&ResourceDef] =
    &[&horizontal_pod_autoscaler::DEF, &horizontal_pod_autoscaler_v1::DEF];
