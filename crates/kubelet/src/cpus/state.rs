//! The file `cpu_manager_state`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, shown_map};

/// What is kept on disk.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    pub policy_name: String,
    /// CPUs that nobody has to himself; empty without a policy.
    pub default_cpu_set: String,
    /// CPUs by pod and container.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub entries: BTreeMap<String, BTreeMap<String, String>>,
    #[serde(default)]
    pub checksum: u64,
}

impl Checkpoint for State {
    const MANAGER: &'static str = "CPU";
    fn shown(&self) -> String {
        format!(
            "(*state.CPUManagerCheckpoint){{PolicyName:(string){} DefaultCPUSet:(string){} \
             Entries:(map[string]map[string]string){} Checksum:(checksum.Checksum)0}}",
            self.policy_name,
            self.default_cpu_set,
            shown_map(&self.entries, |of| shown_map(of, String::clone)),
        )
    }
    fn checksum(&mut self) -> &mut u64 {
        &mut self.checksum
    }
    fn policy(&self) -> &str {
        &self.policy_name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint;

    #[test]
    fn checksums_are_upstreams() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("cpu_manager_state");
        let written = |state: State| {
            checkpoint::save(&path, state).expect("saved");
            std::fs::read_to_string(&path).expect("read")
        };
        // As upstream's kubelet writes it on every node that has no policy.
        let none = r#"{"policyName":"none","defaultCpuSet":"","checksum":1353318690}"#;
        assert_eq!(written(State { policy_name: "none".into(), ..State::default() }), none);
        let of = |cpus: &[(&str, &str)]| {
            cpus.iter().map(|(c, set)| ((*c).to_owned(), (*set).to_owned())).collect()
        };
        let state = State {
            policy_name: "static".into(),
            default_cpu_set: "0-1".into(),
            entries: [("b".to_owned(), of(&[("y", "3"), ("x", "2")])), ("a".to_owned(), of(&[("c", "4")]))]
                .into(),
            checksum: 0,
        };
        // What Go's own library gives for the same value.
        assert!(written(state).ends_with("\"checksum\":785241924}"));
    }
}
