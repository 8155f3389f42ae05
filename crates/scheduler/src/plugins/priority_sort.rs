//! PrioritySort: pods of higher priority first, then older ones.

use crate::framework::{PluginDef, QueueSort};
use crate::pod_info::PodInfo;

pub(super) const DEF: PluginDef =
    PluginDef { queue_sort: Some(&PrioritySort), ..PluginDef::named("PrioritySort") };

pub(super) struct PrioritySort;

impl QueueSort for PrioritySort {
    fn rank(&self, pod: &PodInfo) -> i64 {
        pod.priority
    }
}
