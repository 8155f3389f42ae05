//! What runs containers on this node: the built-in runtime, which then also serves CRI on a socket, or another one. And
//! `coracle runtime`: the built-in one alone.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use coracle_cri::{CriClient, CriServer, ImageService, PodNetwork, RuntimeService, StreamServer, Streams};
use coracle_network::{CniConfig, CniNetwork, NetworkConfig, PodLinks};
use coracle_runtime::Runtime;
use coracle_stdx::{Clock, Tasks};

use crate::cli::RuntimeArgs;
use crate::cluster::{Cluster, Paths, make_dir, make_run_dir, node_ip};
use crate::data_dir::{self, Owner};
use crate::error::Failure;
use crate::node_args::{CniArgs, NodeArgs};
use crate::process::Signals;
use crate::up;

/// The services of a node's runtime.
#[derive(Clone)]
pub struct Containers {
    /// The built-in runtime, unless another one is used.
    pub own: Option<Arc<Runtime>>,
    /// Containers.
    pub runtime: Arc<dyn RuntimeService>,
    /// Images.
    pub images: Arc<dyn ImageService>,
    /// Streams into containers.
    pub streams: Streams,
    /// What is told of it.
    pub said: String,
}

fn broken(what: &str, why: impl std::fmt::Display) -> Failure {
    Failure::new(format!("{what}: {why}"), "see the log for more")
}

/// Who connects pods.
async fn pod_network(
    cni: &CniArgs,
    paths: &Paths,
    config: NetworkConfig,
) -> Result<Arc<dyn PodNetwork>, Failure> {
    let Some(conf_dir) = &cni.cni_conf_dir else {
        let links = PodLinks::open(config).await.map_err(|e| broken("pod network", e))?;
        return Ok(links);
    };
    coracle_network::prepare(&config).await.map_err(|e| broken("pod network", e))?;
    let cni = CniConfig {
        conf_dir: conf_dir.clone(),
        bin_dirs: cni.cni_bin_dir.clone(),
        // Not on a memory file system: what plug-ins gave away is given back after a reboot too.
        cache: paths.file("cni"),
    };
    Ok(CniNetwork::open(cni).await.map_err(|e| broken("CNI", e))?)
}

/// Serves the built-in runtime on a socket, until the tasks are dropped.
async fn serve(
    runtime: &Arc<Runtime>,
    socket: &Path,
    clock: &Clock,
    tasks: &mut Tasks,
) -> Result<(), Failure> {
    let streams = StreamServer::open(runtime.clone()).await.map_err(|e| broken("streams of CRI", e))?;
    let server = CriServer::new(runtime.clone(), runtime.clone(), streams, clock.clone());
    let listener = coracle_grpc::listen(socket).map_err(|e| Failure::file("listen on", socket, &e))?;
    tasks.spawn(server.serve(listener));
    Ok(())
}

impl Containers {
    /// Opens what runs containers.
    ///
    /// # Errors
    /// It cannot be opened; another runtime is not asked yet.
    pub async fn open(
        args: &NodeArgs,
        paths: &Paths,
        cluster: &Cluster,
        network: NetworkConfig,
        clock: &Clock,
        tasks: &mut Tasks,
    ) -> Result<Self, Failure> {
        if let Some(socket) = &args.container_runtime_endpoint {
            coracle_network::prepare(&network).await.map_err(|e| broken("services", e))?;
            let client = Arc::new(CriClient::new(socket, args.image_service_endpoint.as_deref()));
            return Ok(Self {
                own: None,
                runtime: client.clone(),
                images: client.clone(),
                streams: Streams::Elsewhere(client),
                said: format!("container runtime at unix://{}", socket.display()),
            });
        }
        let links = pod_network(&args.cni, paths, network).await?;
        let config = up::runtime_config(paths, cluster);
        let runtime = Runtime::open(config, links).await.map_err(|e| broken("container runtime", e))?;
        let socket = paths.run.join("cri.sock");
        serve(&runtime, &socket, clock, tasks).await?;
        tasks.spawn(make_self_image(runtime.clone()));
        tasks.spawn(crate::preload::run(runtime.clone(), paths.file("images")));
        Ok(Self {
            own: Some(runtime.clone()),
            runtime: runtime.clone(),
            images: runtime.clone(),
            streams: Streams::Here(runtime),
            said: format!("container runtime at unix://{}", socket.display()),
        })
    }
}

/// The image `coracle.local/self` holds this very program. Nothing waits for it but pods that name it.
async fn make_self_image(runtime: Arc<Runtime>) {
    let own = std::fs::canonicalize("/proc/self/exe").unwrap_or_else(|_| "/proc/self/exe".into());
    if let Err(e) = runtime.ensure_self_image("coracle.local/self:latest", &own).await {
        tracing::warn!("image coracle.local/self: {e}");
    }
}

/// Runs the container runtime alone, until SIGTERM or Ctrl-C. Containers go on and are adopted by the next start.
///
/// # Errors
/// It cannot be opened, or the socket not be listened on.
pub async fn run(args: RuntimeArgs) -> Result<(), Failure> {
    up::require_root()?;
    up::preflight()?;
    let mut signals = Signals::listen()?;
    let paths = Paths::new(&args.data.data_dir)?;
    data_dir::check(&paths.data)?;
    make_dir(&paths.data, 0o700)?;
    let _owner = Owner::take(&paths)?;
    make_run_dir(&paths)?;
    let cluster =
        Cluster { pod_cidr: args.pod_cidr, service_cidr: String::new(), ..Cluster::nameless(&paths) };
    let ip = node_ip().unwrap_or(IpAddr::from([127, 0, 0, 1]));
    let (mut tasks, clock) = (Tasks::new(), Clock::system());
    let links = pod_network(&args.cni, &paths, up::network_config(&paths, &cluster, ip)).await?;
    let config = up::runtime_config(&paths, &cluster);
    let runtime = Runtime::open(config, links).await.map_err(|e| broken("container runtime", e))?;
    serve(&runtime, &args.listen, &clock, &mut tasks).await?;
    tasks.spawn(crate::preload::run(runtime.clone(), paths.file("images")));
    println!("serving CRI v1 at unix://{}", args.listen.display());
    signals.recv().await;
    let _ = std::fs::remove_file(&args.listen);
    Ok(())
}
