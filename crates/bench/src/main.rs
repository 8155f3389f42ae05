//! `coracle-bench`: drives any API server with load, and compares Coracle with upstream.

mod compare;
mod cost;
mod http;
mod load;
mod objects;
mod process;
mod scenario;
mod stats;
mod target;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::compare::{ClusterArgs, CompareArgs};
use self::load::LoadArgs;
use self::scenario::bare::{BareArgs, ServerArgs, bare, serve};
use self::scenario::controllers::{IdleArgs, RolloutArgs, delete_namespace, idle_deployments, rollouts};
use self::scenario::crds::{CrdsArgs, crds};
use self::scenario::flood::{FloodArgs, flood};
use self::scenario::pod_links::{LinksArgs, pod_links};
use self::scenario::pod_start::{PodStartArgs, pod_start};
use self::scenario::schedule::{ScheduleArgs, schedule};
use self::scenario::size::{SizeArgs, size};
use self::scenario::watch::{FanoutArgs, fanout};
use self::scenario::{Outcome, api};
use self::stats::Summary;
use self::target::{Failure, Target, TargetArgs};

/// Load generator for Kubernetes API servers.
#[derive(Debug, Parser)]
#[command(name = "coracle-bench", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Options of every single scenario.
#[derive(clap::Args, Clone, Debug)]
struct Common {
    #[command(flatten)]
    target: TargetArgs,
    /// Also write the result as JSON to this file (`-`: standard output).
    #[arg(long)]
    json: Option<PathBuf>,
}

/// A scenario with a closed loop.
#[derive(clap::Args, Clone, Debug)]
struct Looped {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    load: LoadArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create pods.
    CreatePods(Looped),
    /// Create ConfigMaps.
    CreateConfigmaps {
        #[command(flatten)]
        looped: Looped,
        /// Bytes of data in each.
        #[arg(long, default_value_t = 1024)]
        size: usize,
    },
    /// Get one pod again and again.
    Get(Looped),
    /// List pods again and again.
    List {
        #[command(flatten)]
        looped: Looped,
        /// Pods in the list.
        #[arg(long, default_value_t = 1000)]
        objects: u64,
    },
    /// One user floods the server with lists; another reads.
    Flood {
        #[command(flatten)]
        looped: Looped,
        #[command(flatten)]
        args: FloodArgs,
    },
    /// One writes, many watch.
    WatchFanout {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: FanoutArgs,
    },
    /// Schedule pods onto fake nodes (a scheduler must run).
    Schedule {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: ScheduleArgs,
    },
    /// Roll Deployments out onto fake nodes (controllers and a scheduler must run).
    Deployments {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: RolloutArgs,
    },
    /// What Deployments cost of which nothing is asked (controllers must run).
    IdleDeployments {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: IdleArgs,
    },
    /// Delete a namespace full of objects (controllers must run).
    DeleteNamespace {
        #[command(flatten)]
        common: Common,
        /// ConfigMaps in it.
        #[arg(long, default_value_t = 10_000)]
        objects: u64,
    },
    /// Start pods on real nodes and wait until they run.
    PodStart {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: PodStartArgs,
    },
    /// Define custom resources one after another.
    Crds {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: CrdsArgs,
    },
    /// Fill a store of its own with pods and a month's changes, and start on it again.
    StoreAtSize {
        /// Also write the result as JSON to this file (`-`: standard output).
        #[arg(long)]
        json: Option<PathBuf>,
        #[command(flatten)]
        args: SizeArgs,
    },
    /// Connect pods to the built-in network (no server needed, but root).
    PodLinks {
        /// Also write the result as JSON to this file (`-`: standard output).
        #[arg(long)]
        json: Option<PathBuf>,
        #[command(flatten)]
        args: LinksArgs,
    },
    /// The ceiling of this machine: hyper and rustls alone under the same load. Beside `get` and `watch-fanout`.
    Bare {
        #[command(flatten)]
        load: LoadArgs,
        #[command(flatten)]
        args: BareArgs,
    },
    /// What `bare` measures.
    #[command(hide = true)]
    BareServer(ServerArgs),
    /// Start `coracle up` in this network namespace, measure the cluster, and remove it. Results go to standard
    /// output as JSON lines. `compare` runs this in a namespace that it makes.
    Cluster(ClusterArgs),
    /// Start Coracle, and upstream if its programs are named, and measure both in one run.
    Compare(CompareArgs),
}

async fn run(command: Command) -> Result<bool, Failure> {
    let (json, Outcome { summary, leftovers }) = match command {
        Command::Compare(args) => return compare::run(&args).await.map(|()| true),
        Command::Cluster(args) => return compare::cluster(&args).await.map(|()| true),
        Command::Bare { load, args } => {
            for summary in bare(&load, &args).await? {
                report(&summary, None)?;
            }
            return Ok(true);
        }
        Command::BareServer(args) => return serve(&args).map(|()| true),
        Command::PodLinks { json, args } => {
            let summary = pod_links(&args)?;
            report(&summary, json)?;
            return Ok(summary.failures() == 0);
        }
        Command::Crds { common, args } => {
            let target = Target::from_args(&common.target)?;
            let summary = crds(&target, &args).await?;
            report(&summary, common.json)?;
            return Ok(true);
        }
        Command::StoreAtSize { json, args } => {
            let summary = size(&args).await?;
            report(&summary, json)?;
            return Ok(true);
        }
        Command::CreatePods(Looped { common, load }) => {
            let target = Target::from_args(&common.target)?;
            (common.json, api::create_pods(&target, &load).await?)
        }
        Command::CreateConfigmaps { looped: Looped { common, load }, size } => {
            let target = Target::from_args(&common.target)?;
            (common.json, api::create_config_maps(&target, &load, size).await?)
        }
        Command::Get(Looped { common, load }) => {
            let target = Target::from_args(&common.target)?;
            (common.json, api::get(&target, &load).await?)
        }
        Command::List { looped: Looped { common, load }, objects } => {
            let target = Target::from_args(&common.target)?;
            (common.json, api::list(&target, &load, objects).await?)
        }
        Command::Flood { looped: Looped { common, load }, args } => {
            let target = Target::from_args(&common.target)?;
            (common.json, flood(&target, &load, &args).await?)
        }
        Command::WatchFanout { common, args } => {
            let target = Target::from_args(&common.target)?;
            (common.json, fanout(&target, &args).await?)
        }
        Command::Schedule { common, args } => {
            let target = Target::from_args(&common.target)?;
            (common.json, schedule(&target, &args).await?)
        }
        Command::Deployments { common, args } => {
            let target = Target::from_args(&common.target)?;
            (common.json, rollouts(&target, &args).await?)
        }
        Command::IdleDeployments { common, args } => {
            let target = Target::from_args(&common.target)?;
            (common.json, idle_deployments(&target, &args).await?)
        }
        Command::DeleteNamespace { common, objects } => {
            let target = Target::from_args(&common.target)?;
            (common.json, delete_namespace(&target, objects).await?)
        }
        Command::PodStart { common, args } => {
            let target = Target::from_args(&common.target)?;
            (common.json, pod_start(&target, &args).await?)
        }
    };
    report(&summary, json)?;
    eprintln!("removing what was made");
    leftovers.clean().await;
    Ok(summary.failures() == 0)
}

fn report(summary: &Summary, json: Option<PathBuf>) -> Result<(), Failure> {
    let Some(path) = json else {
        println!("{summary}");
        return Ok(());
    };
    let text = serde_json::to_string_pretty(summary).map_err(|e| e.to_string())?;
    if path.as_os_str() == "-" {
        println!("{text}");
        return Ok(());
    }
    println!("{summary}");
    std::fs::write(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // One thread: it shares the processors with the server that it measures.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            eprintln!("coracle-bench: {e}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(cli.command)) {
        Ok(true) => ExitCode::SUCCESS,
        // Operations failed: the figures are shown, the status says so.
        Ok(false) => ExitCode::from(3),
        Err(e) => {
            eprintln!("coracle-bench: {e}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        let cli = Cli::parse_from([
            "coracle-bench",
            "list",
            "--server",
            "https://h:1",
            "--insecure",
            "--objects",
            "5",
        ]);
        assert!(matches!(cli.command, Command::List { objects: 5, .. }));
    }
}
