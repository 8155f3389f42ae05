//! The command line: every option is a flag, an environment variable `CORACLE_…` and a key of the YAML file
//! given by `--config`, in that order of precedence.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::authn::{AuthenticationArgs, FrontProxyArgs};
use crate::authz::AuthorizationArgs;
use crate::control_plane::ControlArgs;
use crate::controller_manager::ControllerManagerArgs;
use crate::error::Failure;
use crate::node_args::{CniArgs, NodeArgs};
use crate::scheduler::{self, SchedulerArgs};
use crate::store::StoreArgs;
use crate::upstream_flags;

/// Options of all commands stand below a command's own in its help.
const LAST: usize = 1000;
/// What `--version` prints after the name.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (Kubernetes v1.36.2+coracle)");

/// Kubernetes 1.36 in one binary: `coracle up` turns this machine into a cluster.
#[derive(Debug, Parser)]
#[command(name = "coracle", version = VERSION)]
pub struct Cli {
    /// The flags of the command as they are in force, by name.
    #[arg(skip)]
    pub flags: BTreeMap<String, String>,
    /// Flags given that mean nothing here.
    #[arg(skip)]
    pub without_effect: Vec<String>,
    /// YAML file with options: keys are flag names, e.g. `api-port: 6443`.
    #[arg(long, global = true, env = "CORACLE_CONFIG", value_name = "FILE", display_order = LAST)]
    pub config: Option<PathBuf>,
    /// Log filter, e.g. `info` or `coracle_kubelet=debug`.
    #[arg(long, global = true, env = "CORACLE_LOG", default_value = "info", display_order = LAST)]
    pub log: String,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Turn this machine into a cluster: control plane, node, network and DNS in one process.
    Up(Box<UpArgs>),
    /// Stop the cluster and its pods; leaves no process, mount, interface, rule or cgroup behind.
    Down(DownArgs),
    /// Tell whether the cluster runs, and where.
    Status(DataDir),
    /// Container images of the node.
    Image(ImageArgs),
    /// Rollouts: follow one and learn why it fails, go back, pause, go on, abort.
    Release(ReleaseArgs),
    /// Save the cluster's objects to a file while it runs, and restore them from one.
    #[command(visible_alias = "etcd-snapshot")]
    Snapshot(Box<SnapshotArgs>),
    /// Run the API server alone, with upstream's flags.
    Apiserver(Box<ApiserverArgs>),
    /// Run the container runtime alone, for other kubelets and for crictl: CRI v1 on a Unix socket.
    Runtime(RuntimeArgs),
    /// Run the controllers alone, against any API server, with upstream's flags.
    ControllerManager(Box<ControllerManagerArgs>),
    /// Run the scheduler alone, against any API server, with upstream's flags.
    Scheduler(Box<SchedulerArgs>),
    /// Small server and client for first pods and tests (the image `coracle.local/self`).
    #[command(subcommand)]
    Demo(DemoCommand),
}

/// Where the cluster lives.
#[derive(Args, Clone, Debug)]
pub struct DataDir {
    /// Directory of the cluster's data; each directory is a cluster of its own.
    #[arg(
        long,
        global = true,
        env = "CORACLE_DATA_DIR",
        default_value = "/var/lib/coracle",
        display_order = LAST
    )]
    pub data_dir: PathBuf,
}

/// Options of `up`.
#[derive(Args, Clone, Debug)]
pub struct UpArgs {
    /// Where the cluster lives.
    #[command(flatten)]
    pub data: DataDir,
    /// Where objects are kept.
    #[command(flatten)]
    pub store: StoreArgs,
    /// Whether Secrets are encrypted in the embedded store, with a key in the data directory's `pki`.
    #[arg(
        long,
        env = "CORACLE_SECRETS_ENCRYPTION",
        default_value_t = true,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub secrets_encryption: bool,
    /// Port of the API server; default 6443, or the first free slot's for a further cluster.
    #[arg(long, env = "CORACLE_API_PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub api_port: Option<u16>,
    /// Port of the kubelet; default 10250, or the slot's.
    #[arg(long, env = "CORACLE_KUBELET_PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub kubelet_port: Option<u16>,
    /// Address on which the API server listens.
    #[arg(long, env = "CORACLE_BIND_ADDRESS", default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// The node's name; default the host name.
    #[arg(long, env = "CORACLE_NODE_NAME")]
    pub node_name: Option<String>,
    /// The node's address; default that of the default route.
    #[arg(long, env = "CORACLE_NODE_IP")]
    pub node_ip: Option<IpAddr>,
    /// Pod address range; default 10.244.0.0/24, or the slot's.
    #[arg(long, env = "CORACLE_CLUSTER_CIDR")]
    pub cluster_cidr: Option<String>,
    /// Service address range; default 10.96.0.0/16, or the slot's.
    #[arg(long, env = "CORACLE_SERVICE_CLUSTER_IP_RANGE")]
    pub service_cluster_ip_range: Option<String>,
    /// DNS domain of the cluster.
    #[arg(long, env = "CORACLE_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Do not write a context into the user's kubeconfig.
    #[arg(long, env = "CORACLE_NO_USER_KUBECONFIG")]
    pub no_user_kubeconfig: bool,
    /// Scheduler and controllers.
    #[command(flatten)]
    pub control: ControlArgs,
    /// Who runs containers and connects pods.
    #[command(flatten)]
    pub node: NodeArgs,
    /// Return when the node is Ready and leave the cluster running in the background.
    #[arg(long, env = "CORACLE_DETACH")]
    pub detach: bool,
    /// Set by `--detach` for the process it starts.
    #[arg(long, hide = true)]
    pub daemon: bool,
}

/// Options of `runtime`.
#[derive(Args, Clone, Debug)]
pub struct RuntimeArgs {
    /// Where images and containers are kept; `coracle down` with the same directory ends all of them.
    #[command(flatten)]
    pub data: DataDir,
    /// Where to listen, e.g. `unix:///run/coracle.sock`.
    #[arg(long, env = "CORACLE_LISTEN", value_parser = crate::node_args::socket)]
    pub listen: PathBuf,
    /// Pod address range of the built-in pod network.
    #[arg(long, env = "CORACLE_POD_CIDR", default_value = "10.88.0.0/16")]
    pub pod_cidr: String,
    /// CNI plug-ins in place of the built-in pod network.
    #[command(flatten)]
    pub cni: CniArgs,
}

/// Options of `down`.
#[derive(Args, Clone, Debug)]
pub struct DownArgs {
    /// Where the cluster lives.
    #[command(flatten)]
    pub data: DataDir,
    /// Also remove the data directory: objects, images, certificates.
    #[arg(long)]
    pub purge: bool,
}

/// Options of `image`.
#[derive(Args, Clone, Debug)]
pub struct ImageArgs {
    /// Where the cluster lives.
    #[command(flatten)]
    pub data: DataDir,
    /// What to do.
    #[command(subcommand)]
    pub command: ImageCommand,
}

/// Image subcommands.
#[derive(Clone, Debug, Subcommand)]
pub enum ImageCommand {
    /// Import an OCI layout or docker archive (tar, also compressed) or an OCI layout directory.
    Import {
        /// The archives.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// Pull from a registry.
    Pull {
        /// The image, e.g. `registry.example/app:1`.
        image: String,
    },
    /// Write an image into an OCI archive.
    Export {
        /// Name or id.
        image: String,
        /// The new file.
        path: PathBuf,
    },
    /// List images.
    Ls,
    /// Remove an image.
    Rm {
        /// Name or id.
        image: String,
    },
}

/// Options of `snapshot`.
#[derive(Args, Clone, Debug)]
pub struct SnapshotArgs {
    /// Where the cluster lives.
    #[command(flatten)]
    pub data: DataDir,
    /// Where objects are kept.
    #[command(flatten)]
    pub store: StoreArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: SnapshotCommand,
}

/// Snapshot subcommands.
#[derive(Clone, Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Save all objects as they are at one moment.
    Save {
        /// The file to write.
        file: PathBuf,
    },
    /// Check a snapshot and tell what it holds.
    Status {
        /// The file to read.
        file: PathBuf,
    },
    /// Make the store of a new data directory (or an unused etcd prefix) of a snapshot.
    Restore {
        /// The file to read.
        file: PathBuf,
        /// How far resource versions move on, so that no client takes an old one for a new one.
        #[arg(long, default_value_t = 1_000_000)]
        bump_revision: u64,
    },
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Sentences.
    Text,
    /// One JSON object: `outcome` (`done`, `failed`, `late`), `said`, and of a failure `cause` and `log`.
    Json,
}

/// What users ask first of `release`.
const RELEASE_HELP: &str = "\
Publish:   kubectl apply -f app.yaml, or kubectl set image deployment/web app=shop:2
Succeeded? coracle release status deployment/web   (exit status 0; prints each step on the way)
Failed?    the same: exit status 1, and one sentence says why, with the last log lines of what crashed
Pause:     coracle release pause deployment/web, and on with coracle release resume deployment/web
Cancel:    coracle release abort deployment/web    (back to the last version that was ready, at once)
Go back:   coracle release undo deployment/web [--to-revision N]   (kubectl rollout history lists them)";

/// Options of `release`.
#[derive(Args, Clone, Debug)]
#[command(after_help = RELEASE_HELP)]
pub struct ReleaseArgs {
    /// How the result is printed.
    #[arg(long, short, global = true, value_enum, default_value = "text")]
    pub output: Output,
    /// Where the cluster lives.
    #[command(flatten)]
    pub data: DataDir,
    /// Namespace of the workload.
    #[arg(long, short, global = true, default_value = "default")]
    pub namespace: String,
    /// What to do.
    #[command(subcommand)]
    pub command: ReleaseCommand,
}

/// Release subcommands. A target is `deployment/x`, `statefulset/x` or `daemonset/x`.
#[derive(Clone, Debug, Subcommand)]
pub enum ReleaseCommand {
    /// Follow a rollout to its end. Exit status: 0 done, 1 failed (and why), 2 still going on.
    Status {
        /// e.g. `deployment/web`.
        target: String,
        /// How long to follow it: `90`, `90s`, `5m`.
        #[arg(long, default_value = "10m", value_parser = crate::release::seconds)]
        timeout: u64,
    },
    /// Go back to the version before, or to a revision.
    Undo {
        /// e.g. `deployment/web`.
        target: String,
        /// Revision, as `kubectl rollout history` lists them.
        #[arg(long)]
        to_revision: Option<i64>,
    },
    /// Make no new pods of a changed template.
    Pause {
        /// e.g. `deployment/web`.
        target: String,
    },
    /// Go on after a pause.
    Resume {
        /// e.g. `deployment/web`.
        target: String,
    },
    /// Go back to the last version that was ready, at once.
    Abort {
        /// e.g. `deployment/web`.
        target: String,
    },
}

/// Options of `apiserver`: upstream's names. Unused duration and feature flags are accepted where harmless.
#[derive(Args, Clone, Debug)]
pub struct ApiserverArgs {
    /// Directory of the embedded store and, unless given, of certificates.
    #[arg(long, env = "CORACLE_DATA_DIR", default_value = "/var/lib/coracle")]
    pub data_dir: PathBuf,
    /// Where objects are kept.
    #[command(flatten)]
    pub store: StoreArgs,
    /// HTTPS port.
    #[arg(long, default_value_t = 6443)]
    pub secure_port: u16,
    /// Address to listen on.
    #[arg(long, default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// Address told to clients inside the cluster.
    #[arg(long)]
    pub advertise_address: Option<IpAddr>,
    /// Who is believed.
    #[command(flatten)]
    pub authentication: AuthenticationArgs,
    /// Who decides.
    #[command(flatten)]
    pub authorization: AuthorizationArgs,
    /// Audiences of tokens for this server; the issuer without.
    #[arg(long, value_delimiter = ',')]
    pub api_audiences: Vec<String>,
    /// CIDR for service addresses.
    #[arg(long, default_value = "10.96.0.0/16")]
    pub service_cluster_ip_range: String,
    /// Ports for NodePort services.
    #[arg(long, default_value = "30000-32767")]
    pub service_node_port_range: String,
    /// Serving certificate.
    #[arg(long, requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// Its key.
    #[arg(long, requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,
    /// CA of client certificates.
    #[arg(long)]
    pub client_ca_file: Option<PathBuf>,
    /// Proxies that say for whom they ask.
    #[command(flatten)]
    pub front_proxy: FrontProxyArgs,
    /// Issuer of service-account tokens.
    #[arg(long, default_value = "https://kubernetes.default.svc")]
    pub service_account_issuer: String,
    /// Key that signs service-account tokens (PEM).
    #[arg(long)]
    pub service_account_signing_key_file: Option<PathBuf>,
    /// Keys (PEM, public or private) that tokens of service accounts may be signed with, beside the one that signs now.
    #[arg(long)]
    pub service_account_key_file: Vec<PathBuf>,
    /// Certificate shown to kubelets; without, nothing is asked of them.
    #[arg(long, requires = "kubelet_client_key")]
    pub kubelet_client_certificate: Option<PathBuf>,
    /// Its key.
    #[arg(long, requires = "kubelet_client_certificate")]
    pub kubelet_client_key: Option<PathBuf>,
    /// CA of the kubelets' certificates; without, any will do.
    #[arg(long)]
    pub kubelet_certificate_authority: Option<PathBuf>,
    /// Admission plugins that run beside those that do by default.
    #[arg(long, value_delimiter = ',')]
    pub enable_admission_plugins: Vec<String>,
    /// Admission plugins that do not run.
    #[arg(long, value_delimiter = ',')]
    pub disable_admission_plugins: Vec<String>,
    /// Requests that read and run at a time. With priority and fairness, this and
    /// --max-mutating-requests-inflight together are the seats that priority levels share.
    #[arg(long, default_value_t = 400, allow_hyphen_values = true)]
    pub max_requests_inflight: i64,
    /// Requests that write and run at a time.
    #[arg(long, default_value_t = 200, allow_hyphen_values = true)]
    pub max_mutating_requests_inflight: i64,
    /// Whether FlowSchemas and PriorityLevelConfigurations decide which requests run, wait and are refused.
    #[arg(
        long,
        default_value_t = true,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub enable_priority_and_fairness: bool,
    /// How long a request may take that is neither a watch nor a connection, e.g. `1m0s`.
    #[arg(long, default_value = "1m0s", allow_hyphen_values = true)]
    pub request_timeout: String,
    /// How long the server goes on after SIGTERM while it says that it is not ready, e.g. `10s`; then what is under way
    /// is answered, for as long as a request may take.
    #[arg(long, default_value = "0s", allow_hyphen_values = true)]
    pub shutdown_delay_duration: String,
    /// How long the history of changes is kept, e.g. `5m0s`; 0 keeps all of it.
    #[arg(long, default_value = "5m0s", allow_hyphen_values = true)]
    pub etcd_compaction_interval: String,
    /// Chance with which an HTTP/2 client is told to connect anew (0 to 0.02).
    #[arg(long, default_value_t = 0.0, allow_hyphen_values = true)]
    pub goaway_chance: f64,
    /// Policy that says which requests the audit log notes (audit.k8s.io/v1).
    #[arg(long, requires = "audit_log_path")]
    pub audit_policy_file: Option<PathBuf>,
    /// Megabytes of an audit log before it is put aside.
    #[arg(long, default_value_t = 100)]
    pub audit_log_maxsize: u64,
    /// How many audit logs that were put aside are kept; 0 is all.
    #[arg(long, default_value_t = 100)]
    pub audit_log_maxbackup: usize,
    /// How many days they are kept; 0 is for ever.
    #[arg(long, default_value_t = 366)]
    pub audit_log_maxage: u32,
    /// File that audit events are appended to, one JSON line each; `-` is the standard output.
    #[arg(long)]
    pub audit_log_path: Option<PathBuf>,
    /// Whether privileged containers are allowed. Always true.
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true")]
    pub allow_privileged: bool,
}

/// Demonstration server and client.
#[derive(Clone, Debug, Subcommand)]
pub enum DemoCommand {
    /// Answer HTTP requests with the pod's name and the request's path.
    Serve {
        /// Port to listen on.
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
    /// GET a URL (http only) and print the body; the exit status tells success.
    Get {
        /// e.g. `http://web.default.svc.cluster.local:80/`.
        url: String,
    },
    /// Print a line a second: something for `kubectl logs -f`.
    Tick,
}

/// Parses the arguments; values of the YAML file become defaults below flags and environment.
///
/// # Errors
/// An unreadable or malformed configuration file, or an unknown key in it. Usage errors end the process with
/// clap's message and status 2.
pub fn parse(argv: Vec<String>) -> Result<Cli, Failure> {
    let (argv, without_effect) = upstream_flags::without_effect(upstream_flags::by_name(argv));
    let mut command = Cli::command();
    if let Some(path) = config_path(&argv) {
        let text = std::fs::read_to_string(&path).map_err(|e| Failure::config(&path, e))?;
        let file: std::collections::BTreeMap<String, serde_yaml_ng::Value> =
            serde_yaml_ng::from_str(&text).map_err(|e| Failure::config(&path, e))?;
        let file = match file.get("kind").and_then(serde_yaml_ng::Value::as_str) {
            Some("KubeSchedulerConfiguration") => {
                scheduler::options(file).map_err(|why| Failure::config(&path, why))?
            }
            _ => file,
        };
        let sub =
            argv.iter().skip(1).find_map(|a| command.find_subcommand(a)).map(|c| c.get_name().to_owned());
        for (key, value) in file {
            let text = match value {
                serde_yaml_ng::Value::String(s) => s,
                other => serde_yaml_ng::to_string(&other).unwrap_or_default().trim().to_owned(),
            };
            let Some(sub) = &sub else { continue };
            let id = key.replace('-', "_");
            let known = command
                .find_subcommand(sub)
                .is_some_and(|c| c.get_arguments().any(|a| a.get_id().as_str() == id));
            if !known {
                return Err(Failure::config(&path, format!("{key:?} is not an option of `coracle {sub}`")));
            }
            let value: &'static str = text.leak();
            command = command.mut_subcommand(sub, |c| {
                c.mut_arg(id, |a| {
                    if matches!(a.get_action(), clap::ArgAction::SetTrue) {
                        if value == "true" { a.default_value("true") } else { a }
                    } else {
                        a.default_value(value)
                    }
                })
            });
        }
    }
    command = without_values(command);
    let shown = command.clone();
    let matches = command.try_get_matches_from(argv).unwrap_or_else(|e| e.exit());
    let mut cli = Cli::from_arg_matches(&matches).map_err(|e| Failure::usage(e.to_string()))?;
    cli.without_effect = without_effect;
    if let Some((name, matches)) = matches.subcommand() {
        cli.flags = shown.find_subcommand(name).map(|sub| flags_of(sub, matches)).unwrap_or_default();
    }
    Ok(cli)
}

/// The flags of a subcommand as they are in force, lists in brackets.
fn flags_of(command: &clap::Command, matches: &clap::ArgMatches) -> BTreeMap<String, String> {
    let named = command.get_arguments().filter_map(|arg| Some((arg, arg.get_long()?)));
    named
        .map(|(arg, name)| {
            let given = matches.try_get_raw(arg.get_id().as_str()).ok().flatten();
            let values: Vec<String> =
                given.into_iter().flatten().map(|value| value.to_string_lossy().into_owned()).collect();
            let many = matches!(arg.get_action(), clap::ArgAction::Append);
            let value = values.join(",");
            (name.to_owned(), if many { format!("[{value}]") } else { value })
        })
        .collect()
}

/// Help names the environment variables without what they hold.
fn without_values(command: clap::Command) -> clap::Command {
    command.mut_args(|a| a.hide_env_values(true)).mut_subcommands(without_values)
}

fn config_path(argv: &[String]) -> Option<PathBuf> {
    let mut args = argv.iter();
    while let Some(arg) = args.next() {
        if arg == "--config" {
            return args.next().map(PathBuf::from);
        }
        if let Some(path) = arg.strip_prefix("--config=") {
            return Some(path.into());
        }
    }
    std::env::var_os("CORACLE_CONFIG").map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(args: &[&str]) -> UpArgs {
        let argv = ["coracle", "up"].iter().chain(args).map(|s| (*s).to_owned()).collect();
        match parse(argv).unwrap().command {
            Command::Up(up) => *up,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flag_overrides_file_and_file_overrides_default() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.yaml");
        std::fs::write(&file, "api-port: 7000\ncluster-domain: example.org\ndetach: true\n").unwrap();
        let config = file.to_str().unwrap();
        let got = up(&["--config", config, "--api-port", "7001"]);
        assert_eq!(
            (got.api_port, got.cluster_domain.as_str(), got.detach),
            (Some(7001), "example.org", true)
        );
        assert_eq!(up(&["--config", config]).api_port, Some(7000));
        assert_eq!(up(&[]).cluster_domain, "cluster.local");
    }

    #[test]
    fn command_line_is_consistent_and_names_the_version_of_the_api() {
        Cli::command().debug_assert();
        assert!(VERSION.contains(crate::GIT_VERSION));
    }

    #[test]
    fn unknown_key_in_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.yaml");
        std::fs::write(&file, "api-prot: 7000\n").unwrap();
        let argv = ["coracle", "up", "--config", file.to_str().unwrap()].map(str::to_owned).to_vec();
        let error = parse(argv).unwrap_err().to_string();
        assert!(error.contains("api-prot"), "{error}");
    }
}
