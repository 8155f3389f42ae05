//! Clients that people have, as they are: Helm with a chart of several kinds, kubectl of the versions before and after
//! ours, and the tests of the Python client's own project.

mod helm;
mod kubectl;
mod python;

use coracle_testkit::{Machine, retry};
use serde_json::Value;

/// The cluster's name in the test's directory.
const MAIN: &str = "main";

/// A machine with a cluster of one node.
struct Cluster {
    machine: Machine,
}

impl Cluster {
    fn start(name: &str) -> Self {
        let machine = Machine::new(name);
        machine.coracle(MAIN, &["up", "--detach", "--node-name", "one"]).ok();
        Self { machine }
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let text = self.machine.kubectl(MAIN, &[args, &["-o", "json"]].concat()).ok();
        serde_json::from_str(&text).expect("kubectl prints JSON")
    }

    /// Waits until a resource is served.
    fn served(&self, resource: &str) {
        retry("the resource is served", 60, || {
            let list = self.machine.kubectl(MAIN, &["get", resource]);
            (list.status == 0).then_some(()).ok_or(list.stderr)
        });
    }

    fn end(self) {
        self.machine.coracle(MAIN, &["down", "--purge"]).ok();
    }
}
