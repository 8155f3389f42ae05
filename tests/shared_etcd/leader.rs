//! Two replicas of the whole on one etcd: one leads; when it is killed, the other takes over.

use coracle_testkit::{Machine, retry};
use serde_json::Value;

use crate::{ETCD, start_etcd};

const LEASES: [&str; 2] = ["kube-controller-manager", "kube-scheduler"];

struct Replicas {
    machine: Machine,
}

impl Replicas {
    /// Starts the replica of this name.
    fn up(&self, name: &str) {
        let shared = ["--etcd-servers", ETCD, "--service-cluster-ip-range", "10.96.0.0/16"];
        let quick = [
            "--leader-elect-lease-duration=4s",
            "--leader-elect-renew-deadline=3s",
            "--leader-elect-retry-period=1s",
        ];
        let up = ["up", "--detach", "--no-user-kubeconfig", "--node-name", name];
        self.machine.coracle(name, &[&up[..], &shared, &quick].concat()).ok();
    }

    #[track_caller]
    fn kubectl(&self, replica: &str, args: &str) -> String {
        let args: Vec<&str> = args.split_whitespace().collect();
        self.machine.kubectl(replica, &args).ok()
    }

    /// Who holds a lease, and how often it changed hands.
    fn holder(&self, asked: &str, lease: &str) -> (String, i64) {
        let text = self.kubectl(asked, &format!("get lease -n kube-system {lease} -o json"));
        let lease: Value = serde_json::from_str(&text).expect("JSON");
        let spec = &lease["spec"];
        let holder = spec["holderIdentity"].as_str().unwrap_or("").to_owned();
        (holder, spec["leaseTransitions"].as_i64().unwrap_or(-1))
    }

    /// Waits until a Deployment has all its pods on nodes, and no pod too many.
    fn is_scheduled(&self, asked: &str, name: &str, replicas: usize) {
        retry("its pods have nodes", 60, || {
            let text = self.kubectl(asked, &format!("get pods -l app={name} -o json"));
            let pods: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
            let pods = pods["items"].as_array().cloned().unwrap_or_default();
            let placed = pods.iter().filter(|p| p["spec"]["nodeName"].is_string()).count();
            assert!(pods.len() <= replicas, "{} pods of {replicas}", pods.len());
            if placed == replicas { Ok(()) } else { Err(format!("{placed} of {} pods", pods.len())) }
        });
    }
}

#[test]
fn of_two_replicas_one_leads_and_the_other_takes_over_when_it_is_killed_or_ends() {
    let replicas = Replicas { machine: Machine::new("leader") };
    let _etcd = start_etcd(&replicas.machine);
    replicas.up("a");
    replicas.up("b");
    for lease in LEASES {
        let (holder, changes) = replicas.holder("b", lease);
        assert!(holder.starts_with("a_") && changes == 0, "{lease}: {holder}, {changes}");
    }
    let deployment =
        "create deployment NAME --image coracle.local/self:latest --replicas 2 -- /coracle demo serve";
    replicas.kubectl("b", &deployment.replace("NAME", "before"));
    replicas.is_scheduled("b", "before", 2);

    let pid = std::fs::read_to_string(replicas.machine.data("a").join("coracle.pid")).expect("a pid");
    let pid = pid.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("a number");
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("killed");
    for lease in LEASES {
        retry("the other leads", 60, || {
            let (holder, changes) = replicas.holder("b", lease);
            if holder.starts_with("b_") && changes == 1 {
                Ok(())
            } else {
                Err(format!("{holder}, {changes}"))
            }
        });
    }
    replicas.kubectl("b", &deployment.replace("NAME", "after"));
    replicas.is_scheduled("b", "after", 2);
    let events = replicas.kubectl("b", "get events -n kube-system --field-selector reason=LeaderElection");
    assert!(events.matches("became leader").count() >= 4, "{events}");

    // One that ends in good order gives the lease up.
    replicas.up("a");
    replicas.machine.coracle("b", &["down"]).ok();
    for lease in LEASES {
        retry("the first leads again", 60, || {
            let (holder, changes) = replicas.holder("a", lease);
            if holder.starts_with("a_") && changes == 2 {
                Ok(())
            } else {
                Err(format!("{holder}, {changes}"))
            }
        });
    }
    replicas.machine.coracle("b", &["down", "--purge"]).ok();
    replicas.machine.coracle("a", &["down", "--purge"]).ok();
}
