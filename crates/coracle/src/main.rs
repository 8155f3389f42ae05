//! The `coracle` binary: arguments, environment, files and wiring. The only crate that knows all parts.

mod apiserver;
mod audit_file;
mod authn;
mod authz;
mod cli;
mod cluster;
mod component;
mod control;
mod control_plane;
mod controller_manager;
mod data_dir;
mod demo;
mod detach;
mod down;
mod encryption;
mod error;
mod followed;
mod following;
mod image;
mod kubeconfig;
mod kubelet_config;
mod node;
mod node_args;
mod pki;
mod ports;
mod preload;
mod process;
mod progress;
mod release;
mod reload;
mod remote;
mod runtime;
mod scheduler;
mod signer;
mod snapshot;
mod store;
mod up;
mod upstream_flags;

use std::time::Duration;

use cli::Command;
use error::Failure;

#[global_allocator]
static ALLOCATOR: coracle_runtime::Allocator = coracle_runtime::Allocator;

/// What the API reports as its version.
pub const GIT_VERSION: &str = "v1.36.2+coracle";

fn main() {
    // Shims and container set-up run as this program too: single-threaded, before anything else starts.
    if let Some(status) = coracle_runtime::reexec() {
        std::process::exit(status);
    }
    if let Err(failure) = run() {
        eprintln!("error: {failure}");
        std::process::exit(failure.status());
    }
}

fn run() -> Result<(), Failure> {
    let cli = cli::parse(std::env::args().collect())?;
    if let Command::Demo(demo) = cli.command {
        return demo::run(demo);
    }
    let filter = tracing_subscriber::EnvFilter::try_new(&cli.log)
        .map_err(|e| Failure::usage(format!("--log {:?}: {e}", cli.log)))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    if !cli.without_effect.is_empty() {
        tracing::info!("without effect here: {}", cli.without_effect.join(" "));
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // Schemas nest, and what reads them recurses.
        .thread_stack_size(4 << 20)
        // Look for new requests after every few turns, not only after 61: a turn may encode a part of a long list.
        .event_interval(7)
        .build()
        .map_err(|e| Failure::new(format!("cannot start: {e}"), ""))?;
    let result = runtime.block_on(async {
        tokio::spawn(coracle_runtime::give_back_when_quiet());
        match cli.command {
            Command::Up(args) => up::up(*args).await,
            Command::Down(args) => down::down(args).await,
            Command::Status(args) => down::status(args).await,
            Command::Image(args) => image::run(args).await,
            Command::Release(args) => release::run(args).await,
            Command::Snapshot(args) => snapshot::run(*args).await,
            Command::Runtime(args) => runtime::run(args).await,
            Command::Apiserver(args) => apiserver::run(*args, cli.flags).await,
            Command::ControllerManager(args) => controller_manager::run(*args).await,
            Command::Scheduler(args) => scheduler::run(*args).await,
            Command::Demo(_) => Ok(()),
        }
    });
    let Err(mut failure) = result else {
        // Nothing waits for what still runs on threads (an import): every write survives an abrupt end.
        runtime.shutdown_background();
        return Ok(());
    };
    if let Some(undo) = failure.take_undo() {
        // What runs on threads must not make again what is removed.
        runtime.shutdown_timeout(Duration::from_secs(10));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if let Ok(runtime) = runtime {
            runtime.block_on(undo.run());
        }
    } else {
        runtime.shutdown_background();
    }
    Err(failure)
}
