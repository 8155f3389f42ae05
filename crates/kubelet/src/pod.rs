//! Small readings of a pod that several parts of the kubelet share.

use std::borrow::Cow;

use coracle_cri::v1::ImageSpec;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};

/// What part a container plays in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// Init container that keeps running (`restartPolicy: Always`).
    Sidecar,
    /// Ordinary container.
    App,
    /// Added to a pod that runs, to look around in it; never started twice.
    Ephemeral,
}

/// The specification; an empty one for a pod without.
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::OnceLock<PodSpec> = std::sync::OnceLock::new();
    pod.spec.as_ref().unwrap_or_else(|| EMPTY.get_or_init(PodSpec::default))
}

/// Init containers in order with their role.
pub fn init_containers(pod: &Pod) -> impl DoubleEndedIterator<Item = (&Container, Role)> {
    spec(pod).init_containers.iter().flatten().map(|c| {
        let sidecar = c.restart_policy.as_deref() == Some("Always");
        (c, if sidecar { Role::Sidecar } else { Role::Init })
    })
}

/// Ephemeral containers in order.
pub fn ephemeral_containers(pod: &Pod) -> impl Iterator<Item = &EphemeralContainer> {
    spec(pod).ephemeral_containers.iter().flatten()
}

/// An ephemeral container as an ordinary one: the fields are the same.
pub fn as_container(e: &EphemeralContainer) -> Container {
    Container {
        name: e.name.clone(),
        image: e.image.clone(),
        image_pull_policy: e.image_pull_policy.clone(),
        command: e.command.clone(),
        args: e.args.clone(),
        working_dir: e.working_dir.clone(),
        env: e.env.clone(),
        env_from: e.env_from.clone(),
        volume_mounts: e.volume_mounts.clone(),
        volume_devices: e.volume_devices.clone(),
        security_context: e.security_context.clone(),
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        tty: e.tty,
        termination_message_path: e.termination_message_path.clone(),
        termination_message_policy: e.termination_message_policy.clone(),
        ..Container::default()
    }
}

/// All containers but the ephemeral ones: init containers first.
pub fn containers(pod: &Pod) -> impl Iterator<Item = (&Container, Role)> {
    init_containers(pod).chain(spec(pod).containers.iter().map(|c| (c, Role::App)))
}

/// A container by name.
pub fn container<'a>(pod: &'a Pod, name: &str) -> Option<(Cow<'a, Container>, Role)> {
    let ordinary = containers(pod).find(|(c, _)| c.name == name);
    ordinary.map(|(c, role)| (Cow::Borrowed(c), role)).or_else(|| {
        let found = ephemeral_containers(pod).find(|c| c.name == name)?;
        Some((Cow::Owned(as_container(found)), Role::Ephemeral))
    })
}

/// `spec.containers{web}`: the field path of a container in events.
pub fn field_path(pod: &Pod, name: &str) -> String {
    match container(pod, name) {
        Some((_, Role::App)) | None => format!("spec.containers{{{name}}}"),
        Some((_, Role::Ephemeral)) => format!("spec.ephemeralContainers{{{name}}}"),
        Some(_) => format!("spec.initContainers{{{name}}}"),
    }
}

/// The pod's restart policy; `Always` when not said.
pub fn restart_policy(pod: &Pod) -> &str {
    spec(pod).restart_policy.as_deref().unwrap_or("Always")
}

/// Whether a container that ended with `exit_code` is to be started again.
pub fn restarts(pod: &Pod, container: &Container, role: Role, exit_code: i32) -> bool {
    match role {
        Role::Sidecar => return true,
        Role::Ephemeral => return false,
        Role::App | Role::Init => {}
    }
    let own = container.restart_policy.as_deref();
    if let Some(action) = matching_rule(container, exit_code)
        && matches!(action, "Restart" | RESTART_ALL)
    {
        return true;
    }
    match own.unwrap_or_else(|| restart_policy(pod)) {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => role == Role::App || exit_code != 0,
    }
}

/// Action of a restart rule: the pod starts over in its sandbox, init containers first.
pub const RESTART_ALL: &str = "RestartAllContainers";

/// The action of the first restart rule that speaks of `exit_code`.
pub fn matching_rule(container: &Container, exit_code: i32) -> Option<&str> {
    container.restart_policy.as_ref()?;
    let speaks = |rule: &&k8s_openapi::api::core::v1::ContainerRestartRule| {
        let Some(codes) = &rule.exit_codes else { return false };
        let listed = codes.values.iter().flatten().any(|v| *v == exit_code);
        match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        }
    };
    container.restart_policy_rules.iter().flatten().find(speaks).map(|rule| rule.action.as_str())
}

/// Whether some restart rule may start the whole pod over.
pub fn may_restart_all(pod: &Pod) -> bool {
    let mut rules = containers(pod).flat_map(|(c, _)| c.restart_policy_rules.iter().flatten());
    rules.any(|rule| rule.action == RESTART_ALL)
}

/// Uses the node's network.
pub fn host_network(pod: &Pod) -> bool {
    spec(pod).host_network == Some(true)
}

/// Seconds a pod gets to end: what a deletion said, else its specification's, else 30.
pub fn grace_period(pod: &Pod) -> i64 {
    pod.metadata.deletion_grace_period_seconds.or(spec(pod).termination_grace_period_seconds).unwrap_or(30)
}

/// A point in time that lies `seconds` after `from`.
pub fn after(from: Timestamp, seconds: i64) -> Timestamp {
    from.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

/// Whole time from `earlier` to `later`; zero when it would be negative.
pub fn elapsed(earlier: Timestamp, later: Timestamp) -> std::time::Duration {
    later.duration_since(earlier).try_into().unwrap_or_default()
}

/// A runtime time stamp.
pub fn from_nanos(nanos: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or_default()
}

/// Without the fraction of a second, which API times do not have.
pub fn whole_seconds(t: Timestamp) -> Timestamp {
    Timestamp::from_second(t.as_second()).unwrap_or(t)
}

/// An image reference as the runtime wants it.
pub fn image_spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), ..ImageSpec::default() }
}

/// The earlier of two optional times.
pub fn earliest(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// A pod from its `spec`, named `web` in `default` with uid `u1`.
    pub(crate) fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u1", "generation": 1},
            "spec": spec,
        }))
        .expect("a pod")
    }

    #[test]
    fn rules_of_a_container_come_before_its_policy() {
        let p = pod(json!({"restartPolicy": "Never", "containers": [{
            "name": "a", "restartPolicy": "Never",
            "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}],
        }]}));
        let (c, role) = container(&p, "a").expect("container");
        assert!(restarts(&p, &c, role, 42));
        assert!(!restarts(&p, &c, role, 1));
    }

    #[test]
    fn ephemeral_containers_are_found_by_name_and_never_restarted() {
        let p = pod(json!({"containers": [{"name": "a"}],
            "ephemeralContainers": [{"name": "d", "image": "i", "stdin": true, "targetContainerName": "a"}]}));
        let (c, role) = container(&p, "d").expect("container");
        assert_eq!((c.stdin, role), (Some(true), Role::Ephemeral));
        assert!(!restarts(&p, &c, role, 1));
        assert_eq!(field_path(&p, "d"), "spec.ephemeralContainers{d}");
    }
}
