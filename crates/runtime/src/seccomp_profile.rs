//! System call filters out of a profile file, in the JSON form that Docker, containerd and the runtime
//! specification share. Each action of the profile becomes a program of its own, stacked over the one that
//! holds the default; the kernel takes the strictest verdict.

use std::collections::BTreeMap;

use caps::CapsHashSet;
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};
use serde::Deserialize;

use crate::seccomp::{Rules, architecture, compile, number};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    name: String,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// When an entry counts (Docker's extension).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    caps: Vec<String>,
    arches: Vec<String>,
}

impl Condition {
    fn holds(&self, keep: &CapsHashSet) -> bool {
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let has = |name: &String| name.parse().is_ok_and(|c| keep.contains(&c));
        (self.caps.is_empty() || self.caps.iter().all(has))
            && (self.arches.is_empty() || self.arches.iter().any(|a| a == arch))
    }
    fn is_empty(&self) -> bool {
        self.caps.is_empty() && self.arches.is_empty()
    }
}

/// What happens to a matching call. The errno stands in it, so equal actions share a program.
fn action(name: &str, errno: Option<u32>) -> Result<SeccompAction, String> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => SeccompAction::Allow,
        "SCMP_ACT_ERRNO" => SeccompAction::Errno(errno.unwrap_or(libc::EPERM as u32)),
        "SCMP_ACT_LOG" => SeccompAction::Log,
        "SCMP_ACT_TRAP" => SeccompAction::Trap,
        "SCMP_ACT_TRACE" => SeccompAction::Trace(errno.unwrap_or(libc::EPERM as u32)),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => SeccompAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => SeccompAction::KillProcess,
        other => return Err(format!("seccomp action {other:?} is not supported")),
    })
}

fn condition(argument: &Argument) -> Result<SeccompCondition, String> {
    let (operation, value) = match argument.op.as_str() {
        "SCMP_CMP_NE" => (SeccompCmpOp::Ne, argument.value),
        "SCMP_CMP_LT" => (SeccompCmpOp::Lt, argument.value),
        "SCMP_CMP_LE" => (SeccompCmpOp::Le, argument.value),
        "SCMP_CMP_EQ" => (SeccompCmpOp::Eq, argument.value),
        "SCMP_CMP_GE" => (SeccompCmpOp::Ge, argument.value),
        "SCMP_CMP_GT" => (SeccompCmpOp::Gt, argument.value),
        "SCMP_CMP_MASKED_EQ" => (SeccompCmpOp::MaskedEq(argument.value), argument.value_two),
        other => return Err(format!("seccomp operator {other:?} is not supported")),
    };
    SeccompCondition::new(argument.index, SeccompCmpArgLen::Qword, operation, value)
        .map_err(|e| e.to_string())
}

/// Adds a rule; one without conditions (an empty list) stands for every call.
fn add(rules: &mut Rules, call: i64, conditions: &[SeccompCondition]) -> Result<(), String> {
    if conditions.is_empty() {
        rules.insert(call, Vec::new());
        return Ok(());
    }
    let rule = SeccompRule::new(conditions.to_vec()).map_err(|e| e.to_string())?;
    match rules.get_mut(&call) {
        Some(list) if list.is_empty() => {}
        Some(list) => list.push(rule),
        None => drop(rules.insert(call, vec![rule])),
    }
    Ok(())
}

/// The programs of a profile for a container with these capabilities.
///
/// # Errors
/// The text is no profile, or asks for what cannot be done; it says which.
pub(crate) fn filters(text: &str, keep: &CapsHashSet) -> Result<Vec<BpfProgram>, String> {
    let profile: Profile =
        serde_json::from_str(text).map_err(|e| format!("seccomp profile is malformed: {e}"))?;
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    // What some entry speaks of passes the program that holds the default.
    let mut named = Rules::new();
    let mut by_action: BTreeMap<String, (SeccompAction, Rules)> = BTreeMap::new();
    for entry in &profile.syscalls {
        if !entry.includes.holds(keep) || (!entry.excludes.is_empty() && entry.excludes.holds(keep)) {
            continue;
        }
        let wanted = action(&entry.action, entry.errno_ret)?;
        let conditions = entry.args.iter().flatten().map(condition).collect::<Result<Vec<_>, _>>()?;
        let names = entry.names.iter().chain((!entry.name.is_empty()).then_some(&entry.name));
        for call in names.filter_map(|name| number(name)) {
            add(&mut named, call, &conditions)?;
            if wanted != SeccompAction::Allow {
                let slot = by_action.entry(format!("{wanted:?}"));
                add(&mut slot.or_insert_with(|| (wanted.clone(), Rules::new())).1, call, &conditions)?;
            }
        }
    }
    let arch = architecture()?;
    let mut programs = Vec::new();
    for (_, (matched, rules)) in by_action {
        programs.push(compile(rules, SeccompAction::Allow, matched, arch)?);
    }
    if default != SeccompAction::Allow {
        programs.push(compile(named, default, SeccompAction::Allow, arch)?);
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn count(text: &str) -> Result<usize, String> {
        filters(text, &CapsHashSet::new()).map(|f| f.len())
    }

    #[test]
    fn each_action_of_a_profile_is_a_program() {
        let deny = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
            {"names": ["personality"], "action": "SCMP_ACT_KILL",
             "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}]}"#;
        assert_eq!(count(deny), Ok(2));
        let allow = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"}]}"#;
        assert_eq!(count(allow), Ok(1));
        assert_eq!(count(r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#), Ok(0));
    }

    #[test]
    fn what_is_no_profile_is_refused() {
        assert!(count("{").is_err_and(|e| e.starts_with("seccomp profile is malformed")));
        assert!(count(r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#).is_err());
    }
}
