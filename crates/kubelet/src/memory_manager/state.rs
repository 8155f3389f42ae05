//! What the memory manager knows: how much memory of which kind each memory node has, and who has how much of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, shown_map};

/// One kind of memory of a node, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    /// All of it.
    pub total: u64,
    /// Not for pods.
    pub system_reserved: u64,
    /// For pods.
    pub allocatable: u64,
    /// Given to pods.
    pub reserved: u64,
    /// Left for pods.
    pub free: u64,
}

/// A memory node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    /// How many blocks are on it.
    pub number_of_assignments: u64,
    /// Kinds of memory by the resource's name.
    pub memory_map: BTreeMap<String, Table>,
    /// The nodes over which blocks on it spread.
    pub cells: Vec<u32>,
}

/// Memory of one kind that a container has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// From which nodes.
    #[serde(rename = "numaAffinity")]
    pub nodes: Vec<u32>,
    /// Which kind.
    #[serde(rename = "type")]
    pub kind: String,
    /// How much.
    pub size: u64,
}

/// All nodes by number.
pub type Machine = BTreeMap<u32, NodeState>;
/// Blocks by pod and container.
pub type Entries = BTreeMap<String, BTreeMap<String, Vec<Block>>>;

/// The file `memory_manager_state`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    pub policy_name: String,
    pub machine_state: Machine,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub entries: Entries,
    #[serde(default)]
    pub checksum: u64,
}

fn shown_list(items: &[u32]) -> String {
    let items: Vec<String> = items.iter().map(u32::to_string).collect();
    format!("([]int)[{}]", items.join(" "))
}

fn shown_table(t: &Table) -> String {
    format!(
        "<*>{{TotalMemSize:(uint64){} SystemReserved:(uint64){} Allocatable:(uint64){} Reserved:(uint64){} \
         Free:(uint64){}}}",
        t.total, t.system_reserved, t.allocatable, t.reserved, t.free
    )
}

fn shown_node(n: &NodeState) -> String {
    format!(
        "<*>{{NumberOfAssignments:(int){} MemoryMap:(map[v1.ResourceName]*state.MemoryTable){} Cells:{}}}",
        n.number_of_assignments,
        shown_map(&n.memory_map, shown_table),
        shown_list(&n.cells)
    )
}

fn shown_blocks(blocks: &[Block]) -> String {
    let one = |b: &Block| {
        let nodes = shown_list(&b.nodes);
        format!("{{NUMAAffinity:{nodes} Type:(v1.ResourceName){} Size:(uint64){}}}", b.kind, b.size)
    };
    format!("[{}]", blocks.iter().map(one).collect::<Vec<_>>().join(" "))
}

impl Checkpoint for State {
    const MANAGER: &'static str = "memory";
    fn shown(&self) -> String {
        format!(
            "(*state.MemoryManagerCheckpoint){{PolicyName:(string){} MachineState:(state.NUMANodeMap){} \
             Entries:(state.ContainerMemoryAssignments){} Checksum:(checksum.Checksum)0}}",
            self.policy_name,
            shown_map(&self.machine_state, shown_node),
            shown_map(&self.entries, |of| shown_map(of, |blocks| shown_blocks(blocks))),
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
        let path = dir.path().join("memory_manager_state");
        let write = |checksum: u64| {
            let text = format!(
                r#"{{"policyName":"static","machineState":{{"0":{{"numberOfAssignments":0,"memoryMap":{{"memory":
                {{"total":2048,"systemReserved":512,"allocatable":1536,"reserved":512,"free":1024}}}},"cells":[]}}}},
                "entries":{{"pod":{{"container1":[{{"numaAffinity":[0],"type":"memory","size":512}}]}}}},
                "checksum":{checksum}}}"#
            );
            std::fs::write(&path, text).expect("written");
            checkpoint::load::<State>(&path, "static")
        };
        // The sum that upstream's kubelet writes for this.
        let state = write(4_215_593_881).expect("good").expect("there");
        assert_eq!(state.entries["pod"]["container1"][0].size, 512);
        assert!(write(101_010).unwrap_err().contains("checkpoint is corrupted"));
        checkpoint::save(&path, state).expect("saved");
        assert!(std::fs::read_to_string(&path).expect("read").ends_with("\"checksum\":4215593881}"));
        let other = checkpoint::load::<State>(&path, "None").unwrap_err();
        let text = "configured policy \"None\" differs from state checkpoint policy \"static\", please drain this \
                    node and delete the memory manager checkpoint file";
        assert!(other.contains(text), "{other}");
    }

    #[test]
    fn several_nodes_and_kinds_are_shown_as_go_shows_them() {
        let table = |free: u64| Table {
            total: 1000,
            system_reserved: 100,
            allocatable: 900,
            reserved: 900 - free,
            free,
        };
        let node = |id: u32, number_of_assignments, tables: &[(&str, u64)]| {
            let memory_map = tables.iter().map(|(kind, free)| ((*kind).to_owned(), table(*free))).collect();
            (id, NodeState { number_of_assignments, memory_map, cells: vec![id] })
        };
        let block = |nodes: &[u32], kind: &str, size| Block { nodes: nodes.into(), kind: kind.into(), size };
        let blocks = vec![block(&[0, 1], "memory", 500), block(&[0], "hugepages-2Mi", 0)];
        let state = State {
            policy_name: "Static".into(),
            machine_state: [
                node(0, 2, &[("memory", 400), ("hugepages-2Mi", 900)]),
                node(1, 0, &[("memory", 900)]),
            ]
            .into(),
            entries: [("p".to_owned(), [("c".to_owned(), blocks)].into())].into(),
            checksum: 0,
        };
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state");
        checkpoint::save(&path, state).expect("saved");
        // What Go's own library gives for the same value.
        assert!(std::fs::read_to_string(&path).expect("read").contains("\"checksum\":302109873"));
    }
}
