//! What the static policy is told beside its name: `cpuManagerPolicyOptions`, which of them may stand together, and
//! which this machine can follow.

use std::collections::BTreeMap;

use super::topology::{Level, Topology};
use crate::topology_manager::{TopologyPolicy, boolean};

const WHOLE_CORES: &str = "full-pcpus-only";
const ACROSS_NODES: &str = "distribute-cpus-across-numa";
const BY_SOCKET: &str = "align-by-socket";
const ACROSS_CORES: &str = "distribute-cpus-across-cores";
const STRICT: &str = "strict-cpu-reservation";
const BY_CACHE: &str = "prefer-align-cpus-by-uncorecache";

/// Options of the static policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// `full-pcpus-only`: only whole cores are given away.
    pub whole_cores: bool,
    /// `distribute-cpus-across-numa`: who needs several memory nodes gets as much of each.
    pub across_nodes: bool,
    /// `align-by-socket`: what is on one socket counts as near, whatever its memory node.
    pub by_socket: bool,
    /// `distribute-cpus-across-cores`: CPUs of different cores, if there are so many.
    pub across_cores: bool,
    /// `strict-cpu-reservation`: nobody else runs on the reserved ones.
    pub strict_reservation: bool,
    /// `prefer-align-cpus-by-uncorecache`: CPUs that share their last-level cache, if that can be.
    pub by_cache: bool,
}

/// Feature gates on which options depend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptionGates {
    /// `CPUManagerPolicyAlphaOptions`, which is off unless asked for.
    pub alpha: bool,
    /// `CPUManagerPolicyBetaOptions`, which is on unless refused.
    pub beta: bool,
}

impl CpuOptions {
    /// None of them; a constant for tests, as a default value is none.
    #[cfg(test)]
    pub(super) const NONE: Self = Self {
        whole_cores: false,
        across_nodes: false,
        by_socket: false,
        across_cores: false,
        strict_reservation: false,
        by_cache: false,
    };

    /// Reads upstream's form.
    ///
    /// # Errors
    /// An option that is not known or not enabled, no truth value, or two that cannot be together; upstream's text.
    pub fn parse(options: &BTreeMap<String, String>, gates: CpuOptionGates) -> Result<Self, String> {
        let mut given = Self::default();
        for (name, value) in options {
            let level = match name.as_str() {
                BY_SOCKET | ACROSS_CORES => Some(("Alpha", gates.alpha)),
                ACROSS_NODES => Some(("Beta", gates.beta)),
                WHOLE_CORES | STRICT | BY_CACHE => None,
                _ => return Err(format!("unknown CPU Manager Policy option: {name:?}")),
            };
            if let Some((level, false)) = level {
                return Err(format!(
                    "CPU Manager Policy {level}-level Options not enabled, but option {name:?} provided"
                ));
            }
            let value = boolean(value).map_err(|e| format!("bad value for option {name:?}: {e}"))?;
            match name.as_str() {
                WHOLE_CORES => given.whole_cores = value,
                ACROSS_NODES => given.across_nodes = value,
                BY_SOCKET => given.by_socket = value,
                ACROSS_CORES => given.across_cores = value,
                STRICT => given.strict_reservation = value,
                _ => given.by_cache = value,
            }
        }
        let exclusive = [
            (given.whole_cores && given.across_cores, WHOLE_CORES, ACROSS_CORES),
            (given.across_nodes && given.across_cores, ACROSS_NODES, ACROSS_CORES),
            (given.by_cache && given.across_cores, BY_CACHE, ACROSS_CORES),
            (given.by_cache && given.across_nodes, BY_CACHE, ACROSS_NODES),
        ];
        match exclusive.iter().find(|(both, ..)| *both) {
            Some((_, one, other)) => {
                Err(format!("static policy options {one} and {other} can not be used at the same time"))
            }
            None => Ok(given),
        }
    }

    /// Whether this machine, and what the topology manager does, allow them.
    ///
    /// # Errors
    /// They do not; upstream's text.
    pub(super) fn check(&self, machine: &Topology, topology: TopologyPolicy) -> Result<(), String> {
        if self.by_socket && topology == TopologyPolicy::SingleNumaNode {
            return Err(format!(
                "Topolgy manager single-numa-node policy is incompatible with CPUManager {BY_SOCKET} policy option"
            ));
        }
        if self.by_socket && machine.count(Level::Socket) > machine.count(Level::Node) {
            return Err(
                "Align by socket is not compatible with hardware where number of sockets are more than \
                        number of NUMA"
                    .into(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATES: CpuOptionGates = CpuOptionGates { alpha: true, beta: true };

    fn parse(options: &[(&str, &str)], gates: CpuOptionGates) -> Result<CpuOptions, String> {
        let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        CpuOptions::parse(&options, gates)
    }

    #[test]
    fn options_are_read_as_go_reads_truth_values() {
        let given = parse(&[(WHOLE_CORES, "1"), (STRICT, "True"), (BY_CACHE, "f")], GATES);
        let want = CpuOptions { whole_cores: true, strict_reservation: true, ..CpuOptions::default() };
        assert_eq!(given, Ok(want));
        assert_eq!(
            parse(&[(STRICT, "yes")], GATES),
            Err("bad value for option \"strict-cpu-reservation\": strconv.ParseBool: parsing \"yes\": invalid \
                 syntax"
                .into())
        );
        assert_eq!(
            parse(&[("whole", "true")], GATES),
            Err("unknown CPU Manager Policy option: \"whole\"".into())
        );
    }

    #[test]
    fn young_options_need_their_gate() {
        let gates = CpuOptionGates { alpha: false, beta: false };
        let refused = |name: &str| parse(&[(name, "false")], gates).unwrap_err();
        let want = |level: &str, name: &str| {
            format!("CPU Manager Policy {level}-level Options not enabled, but option {name:?} provided")
        };
        assert_eq!(refused(BY_SOCKET), want("Alpha", BY_SOCKET));
        assert_eq!(refused(ACROSS_CORES), want("Alpha", ACROSS_CORES));
        assert_eq!(refused(ACROSS_NODES), want("Beta", ACROSS_NODES));
        assert!(parse(&[(BY_CACHE, "true"), (WHOLE_CORES, "true")], gates).is_ok());
    }

    #[test]
    fn options_that_want_opposites_are_refused() {
        let pairs = [
            (WHOLE_CORES, ACROSS_CORES),
            (ACROSS_NODES, ACROSS_CORES),
            (BY_CACHE, ACROSS_CORES),
            (BY_CACHE, ACROSS_NODES),
        ];
        for (one, other) in pairs {
            let why = parse(&[(one, "true"), (other, "true")], GATES).unwrap_err();
            let want = format!("static policy options {one} and {other} can not be used at the same time");
            assert_eq!(why, want);
        }
        assert!(parse(&[(WHOLE_CORES, "true"), (ACROSS_NODES, "true"), (BY_SOCKET, "true")], GATES).is_ok());
    }

    #[test]
    fn sockets_are_followed_only_where_they_are_the_larger_groups() {
        let by_socket = CpuOptions { by_socket: true, ..CpuOptions::default() };
        let machine = Topology::made_up(2, 2);
        assert_eq!(by_socket.check(&machine, TopologyPolicy::Restricted), Ok(()));
        let single = by_socket.check(&machine, TopologyPolicy::SingleNumaNode).unwrap_err();
        assert!(single.contains("is incompatible with CPUManager align-by-socket policy option"), "{single}");
        let mut sockets = machine;
        sockets.0.iter_mut().for_each(|cpu| cpu.node = 0);
        let why = by_socket.check(&sockets, TopologyPolicy::None).unwrap_err();
        assert!(why.starts_with("Align by socket is not compatible with hardware"), "{why}");
        assert_eq!(CpuOptions::default().check(&sockets, TopologyPolicy::SingleNumaNode), Ok(()));
    }
}
