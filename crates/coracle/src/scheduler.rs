//! `coracle scheduler`: the scheduler alone, against any API server, with upstream's flags.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use coracle_scheduler::{Scheduler, SchedulerConfig};
use coracle_stdx::Clock;
use serde_json::json;
use serde_yaml_ng::Value;

use crate::component::{self, Component, ComponentArgs};
use crate::control_plane::LeaderArgs;
use crate::error::Failure;
use crate::remote;

const NAME: &str = "kube-scheduler";
const PORT: u16 = 10259;

/// Options of `scheduler`: upstream's names.
#[derive(Args, Clone, Debug)]
pub struct SchedulerArgs {
    /// Kubeconfig file that says where the API server is and who asks.
    #[arg(long, env = "KUBECONFIG")]
    pub kubeconfig: PathBuf,
    /// Pods with this schedulerName are scheduled.
    #[arg(long, default_value = "default-scheduler")]
    pub scheduler_name: String,
    /// Its port, and who may read there.
    #[command(flatten)]
    pub component: ComponentArgs,
    /// Of several replicas, one acts.
    #[command(flatten)]
    pub leader: LeaderArgs,
}

/// The options that a `KubeSchedulerConfiguration` stands for.
///
/// # Errors
/// It asks for what there is no option for.
pub fn options(config: BTreeMap<String, Value>) -> Result<BTreeMap<String, Value>, String> {
    /// Fields of `leaderElection`, and their flags.
    const LEADER: [(&str, &str); 7] = [
        ("leaderElect", "leader-elect"),
        ("leaseDuration", "leader-elect-lease-duration"),
        ("renewDeadline", "leader-elect-renew-deadline"),
        ("retryPeriod", "leader-elect-retry-period"),
        ("resourceLock", "leader-elect-resource-lock"),
        ("resourceName", "leader-elect-resource-name"),
        ("resourceNamespace", "leader-elect-resource-namespace"),
    ];
    let mut options = BTreeMap::new();
    for (field, value) in config {
        match field.as_str() {
            "clientConnection" => {
                options.extend(value.get("kubeconfig").map(|path| ("kubeconfig".to_owned(), path.clone())));
            }
            "leaderElection" => {
                for (field, flag) in LEADER {
                    options.extend(value.get(field).map(|value| (flag.to_owned(), value.clone())));
                }
            }
            "profiles" => {
                let profiles = value.as_sequence().map_or(&[][..], Vec::as_slice);
                let [profile] = profiles else {
                    return Err("profiles: there can be but one".to_owned());
                };
                for field in ["plugins", "pluginConfig", "percentageOfNodesToScore"] {
                    if profile.get(field).is_some() {
                        return Err(format!("profiles[0].{field}: cannot be set"));
                    }
                }
                let name = profile.get("schedulerName");
                options.extend(name.map(|name| ("scheduler-name".to_owned(), name.clone())));
            }
            "extenders" => return Err("extenders: cannot be set".to_owned()),
            // How fast it is, which is for it to find, and what it is.
            _ => {}
        }
    }
    Ok(options)
}

/// Runs until SIGTERM or Ctrl-C.
///
/// # Errors
/// A flag or file that cannot be used.
pub async fn run(args: SchedulerArgs) -> Result<(), Failure> {
    args.leader.check()?;
    let clock = Clock::system();
    let server = remote::Server::open(&args.kubeconfig, NAME)?;
    let name = args.scheduler_name.clone();
    let work = {
        let (client, clock) = (server.client("scheduler"), clock.clone());
        move || {
            let config = SchedulerConfig { scheduler_name: name.clone(), ..SchedulerConfig::default() };
            Scheduler::new(client.clone(), clock.clone(), config).run()
        }
    };
    let config = json!({ "kubescheduler.config.k8s.io": {
        "kind": "KubeSchedulerConfiguration", "apiVersion": "kubescheduler.config.k8s.io/v1",
        "LeaderElection": args.leader.shown(NAME, &args.component),
        "Profiles": [{ "SchedulerName": args.scheduler_name }],
    } });
    let component = Component {
        name: NAME,
        port: PORT,
        checks: &[
            ("/healthz", &["leaderElection"]),
            ("/livez", &["ping"]),
            ("/readyz", &["leaderElection", "shutdown", "sched-handler-sync"]),
        ],
        config,
    };
    let client = |purpose: &str| server.client(purpose);
    component::run(component, (&args.component, &args.leader), clock, client, work).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_of_upstreams_stands_for_options() {
        let read = |text: &str| options(serde_yaml_ng::from_str(text).unwrap());
        let file = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n\
            clientConnection: { kubeconfig: /etc/kubernetes/scheduler.conf, qps: 50 }\n\
            leaderElection: { leaderElect: false, leaseDuration: 20s }\nparallelism: 16\n\
            profiles: [{ schedulerName: mine }]\n";
        let options = read(file).unwrap();
        let named: Vec<&str> = options.keys().map(String::as_str).collect();
        assert_eq!(named, ["kubeconfig", "leader-elect", "leader-elect-lease-duration", "scheduler-name"]);
        let refused = read("profiles: [{ plugins: { score: { disabled: [{ name: '*' }] } } }]").unwrap_err();
        assert!(refused.contains("plugins"), "{refused}");
        assert!(read("extenders: [{ urlPrefix: x }]").is_err());
    }
}
