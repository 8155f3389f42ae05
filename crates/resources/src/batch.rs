//! The `batch` group, `v1`.

mod cron_job;
mod job;

use crate::def::ResourceDef;

/// One row per kind.
pub(crate) static KINDS: &[&ResourceDef] = &[&cron_job::DEF, &job::DEF];
