//! Swap: whether the machine has any, and how much of it a container may use. What is decided is pure.
//! Source: <https://kubernetes.io/docs/concepts/cluster-administration/swap-memory-management/>.

use std::path::Path;

use coracle_cri::v1::LinuxResources;
use coracle_meta::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::container::resources::requests;
use crate::machine::meminfo;
use crate::pod::containers;

/// The file of cgroup v2 that says how much swap a group may use.
const LIMIT: &str = "memory.swap.max";

/// What pods may do with swap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SwapBehavior {
    /// Nothing.
    #[default]
    NoSwap,
    /// Containers of burstable pods that ask for memory get a share as large as their share of memory.
    LimitedSwap,
}

/// How the kernel limits swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    /// Not at all.
    Absent,
    /// With memory, in one number (cgroup v1).
    WithMemory,
    /// By itself (cgroup v2).
    Alone,
}

/// Swap of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swap {
    /// What pods may do with it.
    behavior: SwapBehavior,
    control: Control,
    /// Bytes of swap.
    pub capacity: i64,
    /// Bytes of memory.
    memory: i64,
}

impl Swap {
    /// What there is, and how it can be limited.
    pub fn read(behavior: SwapBehavior) -> Self {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let amount = |key: &str| meminfo(&text, key).unwrap_or(0);
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let control = control(Path::new("/sys/fs/cgroup"), &own);
        Self { behavior, control, capacity: amount("SwapTotal"), memory: amount("MemTotal") }
    }

    /// What a container may do with it.
    pub fn behavior_of(&self, pod: &Pod, container: &Container) -> SwapBehavior {
        let amount = |limits: bool| {
            let r = container.resources.as_ref()?;
            let side = if limits { &r.limits } else { &r.requests };
            side.as_ref()?.get("memory").map(Quantity::from_api)
        };
        let limit = amount(true).unwrap_or_default();
        let request = amount(false).unwrap_or_default();
        let fits = self.behavior == SwapBehavior::LimitedSwap
            && self.control == Control::Alone
            && !crate::evict::is_critical(pod)
            && coracle_meta::pod::qos(pod) == "Burstable"
            && request != limit;
        if fits { SwapBehavior::LimitedSwap } else { SwapBehavior::NoSwap }
    }

    /// Why memory of a pod that swaps cannot be changed while it runs; upstream's text.
    pub fn forbids_resize(&self, desired: &Pod, allocated: &Pod) -> Option<String> {
        let request = |c: &Container| requests(c).get("memory").copied().unwrap_or_default();
        let restarts = |c: &Container| {
            let mut policies = c.resize_policy.iter().flatten();
            policies.any(|p| p.resource_name == "memory" && p.restart_policy == "RestartContainer")
        };
        let swaps = containers(desired).any(|(new, _)| {
            let Some((old, _)) = containers(allocated).find(|(old, _)| old.name == new.name) else {
                return false;
            };
            let both = [self.behavior_of(desired, new), self.behavior_of(allocated, old)];
            request(new) != request(old) && !restarts(old) && both.contains(&SwapBehavior::LimitedSwap)
        });
        swaps.then(|| "In-place resize of containers with swap is not supported.".to_owned())
    }

    /// Limits what a container with these resources may use.
    pub fn limit(&self, pod: &Pod, container: &Container, to: &mut LinuxResources) {
        match (self.control, self.behavior_of(pod, container)) {
            (Control::Absent, _) => {}
            // Where there is no swap the limit of both would only be in the way of resizes.
            (Control::WithMemory, _) if self.capacity > 0 => {
                to.memory_swap_limit_in_bytes = to.memory_limit_in_bytes;
            }
            (Control::WithMemory, _) => {}
            (Control::Alone, SwapBehavior::NoSwap) => drop(to.unified.insert(LIMIT.into(), "0".into())),
            (Control::Alone, SwapBehavior::LimitedSwap) => {
                let request = requests(container).get("memory").map_or(0, |q| q.value());
                drop(to.unified.insert(LIMIT.into(), self.share(request).to_string()));
            }
        }
    }

    /// The part of the swap that is as large as the request's part of memory; nothing for more than there is.
    fn share(&self, request: i64) -> i64 {
        if self.memory <= 0 || request > self.memory {
            return 0;
        }
        let part = request as f64 / self.memory as f64;
        (part * self.capacity as f64) as i64
    }

    /// Why the kubelet does not start where swap is not wanted; upstream's text.
    ///
    /// # Errors
    /// `/proc/swaps` names swap areas.
    pub fn refuse(swaps: &str) -> Result<(), String> {
        // The first line is a heading.
        if swaps.trim().lines().count() > 1 {
            return Err(
                "running with swap on is not supported, please disable swap or set --fail-swap-on flag to \
                        false"
                    .into(),
            );
        }
        Ok(())
    }
}

/// How swap is limited where cgroups are mounted at `mount` and this process is in `own`, as `/proc/self/cgroup` says.
fn control(mount: &Path, own: &str) -> Control {
    if !mount.join("cgroup.controllers").exists() {
        let both = mount.join("memory/memory.memsw.limit_in_bytes").exists();
        return if both { Control::WithMemory } else { Control::Absent };
    }
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    // The root has no such file: whoever is there finds it one below.
    let below = std::fs::read_dir(mount).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut places = std::iter::once(mount.join(own)).chain(below);
    if places.any(|place| place.join(LIMIT).exists()) { Control::Alone } else { Control::Absent }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::tests::pod;

    const LIMITED: Swap = Swap {
        behavior: SwapBehavior::LimitedSwap,
        control: Control::Alone,
        capacity: 4 << 30,
        memory: 16 << 30,
    };

    fn limit(swap: Swap, spec: Value) -> Option<String> {
        let pod = pod(spec);
        let mut to = LinuxResources::default();
        swap.limit(&pod, &crate::pod::spec(&pod).containers[0], &mut to);
        to.unified.get(LIMIT).cloned()
    }

    fn asks(requests: Value, limits: Value) -> Value {
        json!({"containers": [{"name": "a", "resources": {"requests": requests, "limits": limits}}]})
    }

    #[test]
    fn burstable_containers_get_as_much_of_the_swap_as_of_memory() {
        let share = limit(LIMITED, asks(json!({"memory": "2Gi"}), json!({"memory": "4Gi"})));
        assert_eq!(share, Some((512_i64 << 20).to_string()));
        let unlimited = limit(LIMITED, asks(json!({"memory": "4Gi"}), json!({})));
        assert_eq!(unlimited, Some((1_i64 << 30).to_string()));
        let more_than_there_is = limit(LIMITED, asks(json!({"memory": "17Gi"}), json!({})));
        assert_eq!(more_than_there_is.as_deref(), Some("0"));
    }

    #[test]
    fn nobody_else_may_swap() {
        let none = |swap, spec| assert_eq!(limit(swap, spec).as_deref(), Some("0"));
        let burstable = || asks(json!({"memory": "2Gi"}), json!({"memory": "4Gi"}));
        none(LIMITED, asks(json!({}), json!({})));
        none(LIMITED, asks(json!({"cpu": "1"}), json!({})));
        none(LIMITED, asks(json!({"memory": "2Gi"}), json!({"memory": "2Gi"})));
        let guaranteed = json!({"cpu": "1", "memory": "2Gi"});
        none(LIMITED, asks(guaranteed.clone(), guaranteed));
        let mut critical = burstable();
        critical["priority"] = 2_000_000_000.into();
        none(LIMITED, critical);
        none(Swap { behavior: SwapBehavior::NoSwap, ..LIMITED }, burstable());
        assert_eq!(limit(Swap { control: Control::Absent, ..LIMITED }, burstable()), None);
    }

    #[test]
    fn memory_of_who_swaps_is_not_resized_in_place() {
        let of = |request: &str, policy: Value| {
            let mut spec = asks(json!({"memory": request}), json!({"memory": "4Gi"}));
            spec["containers"][0]["resizePolicy"] = policy;
            pod(spec)
        };
        let check = |swap: Swap, new: &str, policy: Value| {
            swap.forbids_resize(&of(new, policy.clone()), &of("2Gi", policy)).is_some()
        };
        assert!(check(LIMITED, "3Gi", json!([])));
        assert!(!check(LIMITED, "2Gi", json!([])));
        let restarts = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
        assert!(!check(LIMITED, "3Gi", restarts));
        assert!(!check(Swap { behavior: SwapBehavior::NoSwap, ..LIMITED }, "3Gi", json!([])));
    }

    #[test]
    fn on_cgroup_v1_memory_and_swap_are_limited_to_what_memory_is() {
        let pod = pod(asks(json!({}), json!({"memory": "1Gi"})));
        let both = |capacity: i64| {
            let mut to = LinuxResources { memory_limit_in_bytes: 1 << 30, ..LinuxResources::default() };
            let swap = Swap { control: Control::WithMemory, capacity, ..LIMITED };
            swap.limit(&pod, &crate::pod::spec(&pod).containers[0], &mut to);
            (to.memory_swap_limit_in_bytes, to.unified.len())
        };
        assert_eq!((both(4 << 30), both(0)), ((1 << 30, 0), (0, 0)));
    }

    #[test]
    fn how_swap_is_limited_is_found_where_cgroups_are() {
        let dir = tempfile::tempdir().expect("a directory");
        let touch = |path: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            std::fs::write(path, "").expect("written");
        };
        let found = |own: &str| control(dir.path(), own);
        assert_eq!(found("3:memory:/\n"), Control::Absent);
        touch("memory/memory.memsw.limit_in_bytes");
        assert_eq!(found("3:memory:/\n0::/\n"), Control::WithMemory);
        touch("cgroup.controllers");
        assert_eq!(found("0::/a/b\n"), Control::Absent);
        touch("system.slice/memory.swap.max");
        assert_eq!(found("0::/\n"), Control::Alone, "from the root it is seen one below");
        touch("a/b/memory.swap.max");
        assert_eq!(found("0::/a/b\n"), Control::Alone);
    }

    #[test]
    fn where_swap_is_not_wanted_there_must_be_none() {
        let heading = "Filename\t\t\t\tType\t\tSize\n";
        assert_eq!(Swap::refuse(heading), Ok(()));
        assert_eq!(Swap::refuse(""), Ok(()));
        let why = Swap::refuse(&format!("{heading}/dev/zram0 partition 1\n")).unwrap_err();
        assert!(why.starts_with("running with swap on is not supported"), "{why}");
    }
}
