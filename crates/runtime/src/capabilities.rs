//! Which capabilities a container gets: containerd's default set, what the pod adds and drops, and what this
//! process itself may hand out.

use std::str::FromStr;
use std::sync::OnceLock;

use caps::{CapSet, Capability, CapsHashSet};
use coracle_cri::v1::LinuxSecurityContext;

/// The capabilities of a container whose pod says nothing, as containerd's.
const DEFAULT: [Capability; 14] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FSETID,
    Capability::CAP_FOWNER,
    Capability::CAP_MKNOD,
    Capability::CAP_NET_RAW,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETPCAP,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_KILL,
    Capability::CAP_AUDIT_WRITE,
];

/// What this process may give; machines exist whose bounding set lacks some (CAP_SYS_RESOURCE in many VMs).
pub(crate) fn available() -> &'static CapsHashSet {
    static AVAILABLE: OnceLock<CapsHashSet> = OnceLock::new();
    AVAILABLE.get_or_init(|| {
        let bounding = caps::read(None, CapSet::Bounding).unwrap_or_default();
        let permitted = caps::read(None, CapSet::Permitted).unwrap_or_default();
        bounding.intersection(&permitted).copied().collect()
    })
}

/// The set for a container.
///
/// # Errors
/// A name that is no capability; the text names it.
pub(crate) fn wanted(security: &LinuxSecurityContext) -> Result<CapsHashSet, String> {
    let all = || caps::all().into_iter().collect::<CapsHashSet>();
    let mut set: CapsHashSet = if security.privileged { all() } else { DEFAULT.into_iter().collect() };
    if has_all(&security.capabilities_add) {
        set = all();
    }
    if has_all(&security.capabilities_drop) {
        set.clear();
    }
    for name in security.capabilities_add.iter().filter(|n| !is_all(n)) {
        set.insert(parse(name)?);
    }
    for name in security.capabilities_drop.iter().filter(|n| !is_all(n)) {
        set.remove(&parse(name)?);
    }
    Ok(set.intersection(available()).copied().collect())
}

/// Names as in the runtime specification, sorted.
pub(crate) fn names(set: &CapsHashSet) -> Vec<String> {
    let mut names: Vec<String> = set.iter().map(ToString::to_string).collect();
    names.sort();
    names
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL")
}

fn has_all(names: &[String]) -> bool {
    names.iter().any(|n| is_all(n))
}

fn parse(name: &str) -> Result<Capability, String> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    Capability::from_str(&full).map_err(|_| format!("unknown capability {name:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(add: &[&str], drop: &[&str]) -> CapsHashSet {
        let own = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect();
        wanted(&LinuxSecurityContext {
            capabilities_add: own(add),
            capabilities_drop: own(drop),
            ..Default::default()
        })
        .unwrap()
    }

    #[test]
    fn drop_all_then_add_leaves_only_the_added() {
        let got = set(&["NET_BIND_SERVICE"], &["ALL"]);
        assert!(got.is_subset(&[Capability::CAP_NET_BIND_SERVICE].into_iter().collect()));
    }

    #[test]
    fn nothing_beyond_our_own_bounding_set_is_given() {
        assert!(set(&["ALL"], &[]).is_subset(available()));
    }

    #[test]
    fn unknown_name_is_refused_by_name() {
        let bad = LinuxSecurityContext { capabilities_add: vec!["FLY".into()], ..Default::default() };
        assert_eq!(wanted(&bad).unwrap_err(), "unknown capability \"FLY\"");
    }
}
