//! Limits of what runs: changed in place for containers and pods, and weighed between classes of pods.

use std::sync::Arc;

use coracle_cri::CriError;
use coracle_cri::v1::{ContainerState, LinuxResources, PodSandboxConfig};

use super::{ContainerEntry, Runtime, Sandbox, blocking};

/// The class whose pods together weigh as little as can be.
const BEST_EFFORT: &str = "besteffort";
/// Least CPU shares there are.
const LEAST_SHARES: i64 = 2;

/// `old` with the fields that `new` sets.
fn merge(old: &LinuxResources, new: &LinuxResources) -> LinuxResources {
    let pick = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: &String, new: &String| if new.is_empty() { old.clone() } else { new.clone() };
    LinuxResources {
        cpu_period: pick(old.cpu_period, new.cpu_period),
        cpu_quota: pick(old.cpu_quota, new.cpu_quota),
        cpu_shares: pick(old.cpu_shares, new.cpu_shares),
        memory_limit_in_bytes: pick(old.memory_limit_in_bytes, new.memory_limit_in_bytes),
        oom_score_adj: old.oom_score_adj,
        pids_limit: pick(old.pids_limit, new.pids_limit),
        cpuset_cpus: text(&old.cpuset_cpus, &new.cpuset_cpus),
        cpuset_mems: text(&old.cpuset_mems, &new.cpuset_mems),
        hugepages: if new.hugepages.is_empty() { old.hugepages.clone() } else { new.hugepages.clone() },
        unified: if new.unified.is_empty() { old.unified.clone() } else { new.unified.clone() },
        memory_swap_limit_in_bytes: pick(old.memory_swap_limit_in_bytes, new.memory_swap_limit_in_bytes),
    }
}

impl ContainerEntry {
    /// The limits as they are now.
    pub(super) fn resources(&self) -> LinuxResources {
        let changed = self.now.lock().resources.clone();
        changed.unwrap_or_else(|| self.record.config.resources.clone())
    }
}

impl Runtime {
    pub(super) async fn change_container(&self, id: &str, wanted: LinuxResources) -> Result<(), CriError> {
        let container = self.container(id)?;
        let _busy = container.busy.lock().await;
        if container.now.lock().state != ContainerState::Running {
            return Err(CriError::FailedPrecondition(format!("container {id:?} is not running")));
        }
        let merged = merge(&container.resources(), &wanted);
        let mut record = container.record.clone();
        record.config.resources = merged.clone();
        let hierarchies = self.hierarchies.clone();
        blocking(move || {
            hierarchies.change(&record.launch.cgroup, &wanted)?;
            // So that the next daemon knows.
            crate::files::write_record(&record.launch.bundle.join("container.json"), &record)
        })
        .await
        .map_err(|e| CriError::Internal(format!("failed to update resources: {e}")))?;
        container.now.lock().resources = Some(merged);
        Ok(())
    }

    pub(super) async fn change_sandbox(&self, id: &str, wanted: LinuxResources) -> Result<(), CriError> {
        let sandbox = self.sandbox(id)?;
        let cgroup = self.pod_cgroup(id, &sandbox.config);
        let hierarchies = self.hierarchies.clone();
        let limits = wanted.clone();
        blocking(move || hierarchies.change(&cgroup, &limits))
            .await
            .map_err(|e| CriError::Internal(format!("failed to update sandbox resources: {e}")))?;
        let merged = {
            let mut state = sandbox.state.lock();
            let old = state.resources.clone().unwrap_or_else(|| sandbox.config.resources.clone());
            let merged = merge(&old, &wanted);
            state.resources = Some(merged.clone());
            merged
        };
        tracing::debug!(sandbox = id, ?merged, "limits of a pod changed");
        self.weigh(&sandbox.config).await;
        Ok(())
    }

    /// Gives a class of pods (a cgroup between the root and the pods') the weight of its pods together.
    pub(super) async fn weigh(&self, config: &PodSandboxConfig) {
        let Some(class) = class_of(config) else { return };
        let shares = if class == BEST_EFFORT {
            LEAST_SHARES
        } else {
            let sandboxes: Vec<Arc<Sandbox>> = self.sandboxes.lock().values().cloned().collect();
            let alive = sandboxes.iter().filter(|s| class_of(&s.config) == Some(class));
            alive.map(|s| s.shares()).sum::<i64>().max(LEAST_SHARES)
        };
        let path = format!("{}/{class}", self.config.pods_cgroup());
        let hierarchies = self.hierarchies.clone();
        let resources = LinuxResources { cpu_shares: shares.min(262_144), ..LinuxResources::default() };
        let set = blocking(move || {
            hierarchies.limit(&path, &resources);
            Ok(())
        });
        if let Err(error) = set.await {
            tracing::debug!(class, %error, "class not weighed");
        }
    }
}

impl Sandbox {
    /// CPU shares of the pod; none when it has stopped.
    fn shares(&self) -> i64 {
        let state = self.state.lock();
        if state.stopped {
            return 0;
        }
        state.resources.as_ref().unwrap_or(&self.config.resources).cpu_shares
    }
}

/// The class in a cgroup parent `…/<class>/pod<uid>`.
fn class_of(config: &PodSandboxConfig) -> Option<&str> {
    let (above, _) = config.cgroup_parent.trim_matches('/').rsplit_once('/')?;
    let class = above.rsplit('/').next().unwrap_or(above);
    matches!(class, BEST_EFFORT | "burstable").then_some(class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_read_off_the_parent() {
        let parent = |p: &str| PodSandboxConfig { cgroup_parent: p.into(), ..Default::default() };
        assert_eq!(class_of(&parent("/coracle/x/pods/burstable/pod1")), Some("burstable"));
        assert_eq!(class_of(&parent("/coracle/x/pods/pod1")), None);
        assert_eq!(class_of(&parent("")), None);
    }

    #[test]
    fn unset_limits_stay() {
        let old = LinuxResources { cpu_shares: 10, memory_limit_in_bytes: 5, ..Default::default() };
        let new = LinuxResources { cpu_shares: 20, ..Default::default() };
        assert_eq!(merge(&old, &new), LinuxResources { cpu_shares: 20, memory_limit_in_bytes: 5, ..old });
    }
}
