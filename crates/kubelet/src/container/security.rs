//! Security contexts: who a container runs as and what it may do.

use std::path::Path;

use coracle_cri::v1::{Image, LinuxSecurityContext};
use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile};

use crate::names::full_name;
use crate::pod::spec;
use crate::volumes::MountedVolumes;

const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn paths(list: &[&str]) -> Vec<String> {
    list.iter().map(|p| (*p).to_owned()).collect()
}

/// What the runtime is told about a container's rights.
///
/// # Errors
/// Upstream's text when the container would run as root against `runAsNonRoot`.
pub fn context(
    pod: &Pod,
    container: &Container,
    image: &Image,
    root: &Path,
    volumes: &MountedVolumes,
) -> Result<LinuxSecurityContext, String> {
    let none = k8s_openapi::api::core::v1::SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&none);
    let shared = spec(pod).security_context.clone().unwrap_or_default();
    let privileged = own.privileged == Some(true);
    let run_as_user = own.run_as_user.or(shared.run_as_user);
    let non_root = own.run_as_non_root.or(shared.run_as_non_root) == Some(true);
    if non_root {
        verify_non_root(pod, container, run_as_user, image)?;
    }
    let run_as_group = own.run_as_group.or(shared.run_as_group);
    let (run_as_user, run_as_username) = match run_as_user {
        // A runtime refuses a group without a user.
        None if run_as_group.is_some() && image.username.is_empty() => {
            (Some(image.uid.unwrap_or(0)), String::new())
        }
        None if run_as_group.is_some() => (None, image.username.clone()),
        user => (user, String::new()),
    };
    let mut groups = shared.supplemental_groups.clone().unwrap_or_default();
    groups.extend(shared.fs_group);
    groups.extend(mounted_groups(container, volumes));
    let mut known = std::collections::HashSet::new();
    groups.retain(|g| known.insert(*g));
    let seccomp = own.seccomp_profile.as_ref().or(shared.seccomp_profile.as_ref());
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let capabilities = own.capabilities.clone().unwrap_or_default();
    Ok(LinuxSecurityContext {
        capabilities_add: capabilities.add.unwrap_or_default(),
        capabilities_drop: capabilities.drop.unwrap_or_default(),
        privileged,
        run_as_user,
        run_as_group,
        run_as_username,
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups: groups,
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: if unmasked { Vec::new() } else { paths(&MASKED) },
        readonly_paths: if unmasked { Vec::new() } else { paths(&READ_ONLY) },
        // No profile means unconfined, as upstream's kubelet does without --seccomp-default.
        seccomp_unconfined: privileged || seccomp.is_none_or(|p| p.type_ == "Unconfined"),
        seccomp_localhost: match seccomp.filter(|p| p.type_ == "Localhost") {
            Some(profile) => localhost_profile(profile, root)?,
            None => String::new(),
        },
        supplemental_groups_strict: shared.supplemental_groups_policy.as_deref() == Some("Strict"),
        pid_target: String::new(),
        pid_private: false,
    })
}

/// Groups that own what a container mounts, as its volumes say.
fn mounted_groups(container: &Container, volumes: &MountedVolumes) -> Vec<i64> {
    let mounts = container.volume_mounts.iter().flatten();
    mounts.filter_map(|m| volumes.get(&m.name)?.group).collect()
}

/// Where a profile of the node is.
fn localhost_profile(profile: &SeccompProfile, root: &Path) -> Result<String, String> {
    let name = profile.localhost_profile.as_deref().filter(|n| !n.is_empty());
    let name = name.ok_or("localhostProfile must be set if seccompProfile type is Localhost.")?;
    Ok(root.join("seccomp").join(name).to_string_lossy().into_owned())
}

fn verify_non_root(pod: &Pod, c: &Container, user: Option<i64>, image: &Image) -> Result<(), String> {
    let place = format!("(pod: \"{}\", container: {})", full_name(pod), c.name);
    match user {
        Some(0) => Err(format!("container's runAsUser breaks non-root policy {place}")),
        Some(_) => Ok(()),
        None if image.username.is_empty() && image.uid.unwrap_or(0) == 0 => {
            Err(format!("container has runAsNonRoot and image will run as root {place}"))
        }
        None if image.uid.is_none() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), \
             cannot verify user is non-root {place}",
            image.username
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn a_group_alone_comes_with_the_images_user() {
        let p = pod(json!({"securityContext": {"runAsGroup": 7}, "containers": [{"name": "a"}]}));
        let none = MountedVolumes::new();
        let of = |image: Image| {
            let s = super::context(&p, &spec(&p).containers[0], &image, Path::new("/k"), &none).unwrap();
            (s.run_as_user, s.run_as_username, s.run_as_group)
        };
        assert_eq!(of(Image::default()), (Some(0), String::new(), Some(7)));
        assert_eq!(of(Image { uid: Some(9), ..Image::default() }), (Some(9), String::new(), Some(7)));
        let named = Image { username: "web".into(), ..Image::default() };
        assert_eq!(of(named), (None, "web".to_owned(), Some(7)));
    }

    #[test]
    fn run_as_non_root_is_checked_against_user_and_image() {
        let check = |context: serde_json::Value, image: Image, expected: Option<&str>| {
            let p = pod(json!({"containers": [{"name": "a", "securityContext": context}]}));
            let none = MountedVolumes::new();
            let got = super::context(&p, &spec(&p).containers[0], &image, Path::new("/k"), &none).err();
            let place = "(pod: \"web_default(u1)\", container: a)";
            assert_eq!(got, expected.map(|e| format!("{e} {place}")));
        };
        let root = Image::default();
        check(
            json!({"runAsNonRoot": true}),
            root.clone(),
            Some("container has runAsNonRoot and image will run as root"),
        );
        check(
            json!({"runAsNonRoot": true, "runAsUser": 0}),
            root.clone(),
            Some("container's runAsUser breaks non-root policy"),
        );
        check(json!({"runAsNonRoot": true, "runAsUser": 7}), root, None);
        check(json!({"runAsNonRoot": true}), Image { uid: Some(9), ..Image::default() }, None);
        check(
            json!({"runAsNonRoot": true}),
            Image { username: "web".into(), ..Image::default() },
            Some(
                "container has runAsNonRoot and image has non-numeric user (web), \
                 cannot verify user is non-root",
            ),
        );
    }
}
