//! System call filters: the runtime's default profile as BPF programs. seccompiler has one action per
//! program, so each errno but the common one gets a program of its own, stacked over the allow list.

use std::collections::BTreeMap;
use std::io;
use std::str::FromStr;

use caps::{Capability, CapsHashSet};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use syscalls::Sysno;

use crate::seccomp_table::{ALWAYS, ARGUMENTS, Compare, NOT_IMPLEMENTED, WITH_CAPABILITY};

/// Rules by system call; an empty list matches every call of it.
pub(crate) type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// This processor's architecture.
///
/// # Errors
/// There are no filters for it.
pub(crate) fn architecture() -> Result<TargetArch, String> {
    TargetArch::try_from(std::env::consts::ARCH).map_err(|e| e.to_string())
}

/// The default profile for a container with these capabilities.
///
/// # Errors
/// This processor's architecture has no filters.
pub(crate) fn default_filters(keep: &CapsHashSet) -> Result<Vec<BpfProgram>, String> {
    let arch = architecture()?;
    let mut allow = Rules::new();
    // Conditional rules first: an unconditional one (empty list) replaces them.
    for (names, argument, compare) in ARGUMENTS {
        for name in names.split_whitespace() {
            let (operation, value) = match *compare {
                Compare::Equal(v) => (SeccompCmpOp::Eq, v),
                Compare::NotEqual(v) => (SeccompCmpOp::Ne, v),
                Compare::Masked(mask, v) => (SeccompCmpOp::MaskedEq(mask), v),
            };
            let condition = SeccompCondition::new(*argument, SeccompCmpArgLen::Qword, operation, value)
                .map_err(|e| e.to_string())?;
            let rule = SeccompRule::new(vec![condition]).map_err(|e| e.to_string())?;
            if let Some(number) = number(name) {
                allow.entry(number).or_default().push(rule);
            }
        }
    }
    // These are conditional only without the capability to make namespaces.
    if keep.contains(&Capability::CAP_SYS_ADMIN) {
        for name in ["clone", "clone3"] {
            allow.extend(number(name).map(|n| (n, Vec::new())));
        }
    }
    let granted = WITH_CAPABILITY.iter().filter(|(capability, _)| keep.contains(capability));
    for names in granted.map(|(_, names)| *names).chain([ALWAYS]) {
        for name in names.split_whitespace() {
            allow.extend(number(name).map(|n| (n, Vec::new())));
        }
    }
    let mut filters = Vec::new();
    if !keep.contains(&Capability::CAP_SYS_ADMIN) {
        let mut absent = Rules::new();
        for name in NOT_IMPLEMENTED.split_whitespace() {
            absent.extend(number(name).map(|n| (n, Vec::new())));
        }
        // The strictest action of the stack wins unless both are errnos: then the newest program's. So the
        // allow list lets these pass and this program refuses them.
        allow.extend(absent.clone());
        let errno = SeccompAction::Errno(libc::ENOSYS as u32);
        filters.push(compile(absent, SeccompAction::Allow, errno, arch)?);
    }
    filters.push(compile(allow, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow, arch)?);
    Ok(filters)
}

/// One program: `matched` for what `rules` say, `other` for the rest.
pub(crate) fn compile(
    rules: Rules,
    other: SeccompAction,
    matched: SeccompAction,
    arch: TargetArch,
) -> Result<BpfProgram, String> {
    let filter = SeccompFilter::new(rules, other, matched, arch).map_err(|e| e.to_string())?;
    BpfProgram::try_from(filter).map_err(|e| e.to_string())
}

/// A system call's number here; `None` where this architecture does not have it.
pub(crate) fn number(name: &str) -> Option<i64> {
    Sysno::from_str(name).ok().map(|s| i64::from(s.id()))
}

/// Installs a program for this process and all it starts. Unlike `seccompiler::apply_filter` it leaves
/// no_new_privs alone; without that, CAP_SYS_ADMIN is needed.
pub(crate) fn install(program: &BpfProgram) -> io::Result<()> {
    #[repr(C)]
    struct Program {
        length: u16,
        filter: *const seccompiler::sock_filter,
    }
    let program = Program { length: program.len() as u16, filter: program.as_ptr() };
    // SAFETY: the kernel copies the program, which lives until the call returns.
    let status =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    if status != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_profile_compiles_and_stays_small() {
        let filters = default_filters(&CapsHashSet::new()).unwrap();
        assert_eq!(filters.len(), 2);
        assert!(filters.iter().all(|f| f.len() < 4096));
        let privileged = [Capability::CAP_SYS_ADMIN].into_iter().collect();
        assert_eq!(default_filters(&privileged).unwrap().len(), 1);
    }

    #[test]
    fn names_of_the_table_are_system_calls() {
        let known = ALWAYS.split_whitespace().filter(|n| number(n).is_some()).count();
        assert!(known > 280, "{known}");
    }
}
