//! `coracle down` and `coracle status`.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cli::{DataDir, DownArgs};
use crate::cluster::{Cluster, Paths, release_slot};
use crate::control::{self, Request};
use crate::error::Failure;
use crate::process::{running, start_time};
use crate::{data_dir, kubeconfig};

/// Stops the daemon and everything it made.
///
/// # Errors
/// Not root, a damaged cluster file, or a daemon that cannot be ended.
pub async fn down(args: DownArgs) -> Result<(), Failure> {
    crate::up::require_root()?;
    let paths = Paths::new(&args.data.data_dir)?;
    let cluster = match Cluster::load(&paths) {
        Ok(Some(cluster)) => cluster,
        // A first start, under way or killed, has no cluster file yet: the id follows from the directory.
        // Nor has a runtime alone (`coracle runtime`): what it left running is found the same way.
        Ok(None) if paths.pid().exists() || paths.run.exists() => Cluster::nameless(&paths),
        Ok(None) => {
            println!("no cluster in {}", paths.data.display());
            return Ok(());
        }
        // A damaged file must not make the rest unremovable.
        Err(_) if args.purge => Cluster::nameless(&paths),
        Err(e) => return Err(e),
    };
    if let Some(pid) = running(&paths) {
        end(pid).await?;
        println!("  ✓ daemon        ended (pid {pid})");
    }
    dismantle(&paths, &cluster, &|line| println!("  ✓ {line}")).await?;
    if !args.purge {
        println!("objects and images stay in {}; `coracle up` continues from them", paths.data.display());
        return Ok(());
    }
    let left = data_dir::remove(&paths.data)?;
    if left.is_empty() {
        println!("  ✓ data          {} removed", paths.data.display());
    } else {
        println!("  ✓ data          removed from {}", paths.data.display());
        println!("left there, since it is not of the cluster: {}", left.join(", "));
    }
    Ok(())
}

/// Removes all that a cluster without a daemon has on the machine, except its data directory.
///
/// # Errors
/// Something could not be removed; another try may.
pub async fn dismantle(paths: &Paths, cluster: &Cluster, say: &dyn Fn(&str)) -> Result<(), Failure> {
    let again = "run `coracle down` again";
    coracle_runtime::purge(&crate::up::runtime_config(paths, cluster))
        .map_err(|e| Failure::new(format!("removing the pods: {e}"), again))?;
    say("pods          stopped");
    let node_ip = [127, 0, 0, 1].into();
    coracle_network::purge(&crate::up::network_config(paths, cluster, node_ip))
        .await
        .map_err(|e| Failure::new(format!("removing the network: {e}"), again))?;
    say("network       removed");
    if let Some(user) = kubeconfig::user_path() {
        kubeconfig::remove_from(&user, &context_name(cluster));
    }
    let _ = std::fs::remove_file(paths.pid());
    unmount_below(&paths.data);
    let _ = std::fs::remove_dir_all(&paths.run);
    release_slot(paths);
    Ok(())
}

/// The context's name in the user's kubeconfig.
pub fn context_name(cluster: &Cluster) -> String {
    if cluster.slot == 0 { "coracle".into() } else { format!("coracle-{}", cluster.id) }
}

async fn end(pid: Pid) -> Result<(), Failure> {
    let alive = || start_time(pid.as_raw()).is_some();
    for (signal, patience) in [(Signal::SIGTERM, 10), (Signal::SIGKILL, 10)] {
        let _ = kill(pid, signal);
        let until = Instant::now() + Duration::from_secs(patience);
        while Instant::now() < until {
            if !alive() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Err(Failure::new(format!("the daemon (pid {pid}) does not end"), "it may wait for a disk; try again"))
}

/// Detaches what is still mounted below the data directory (volumes of pods), deepest first.
fn unmount_below(dir: &Path) {
    let Ok(table) = std::fs::read_to_string("/proc/self/mounts") else { return };
    let mut points: Vec<&str> = table
        .lines()
        .filter_map(|l| l.split(' ').nth(1))
        .filter(|p| Path::new(p).starts_with(dir) && Path::new(p) != dir)
        .collect();
    points.sort_by_key(|p| std::cmp::Reverse(p.len()));
    for point in points {
        let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Prints whether the cluster runs. Exit status 1 when it does not.
///
/// # Errors
/// The cluster is stopped, or was never made.
pub async fn status(args: DataDir) -> Result<(), Failure> {
    let paths = Paths::new(&args.data_dir)?;
    let Some(cluster) = Cluster::load(&paths)? else {
        let what = format!("no cluster in {}", paths.data.display());
        return Err(Failure::new(what, "make one with `coracle up`"));
    };
    let Some(pid) = running(&paths) else {
        println!("cluster    {} (stopped)", cluster.id);
        println!("data       {}", paths.data.display());
        return Err(Failure::new("the cluster is not running", "start it with `coracle up`"));
    };
    if !paths.socket().exists() {
        return Err(Failure::new(format!("the cluster is starting (pid {pid})"), "ask again in a moment"));
    }
    let about = control::ask(&paths.socket(), &Request::Status).await?;
    let text = |key: &str| match &about[key] {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    };
    println!("cluster    {} (running, pid {})", cluster.id, text("pid"));
    println!("version    {}", text("version"));
    println!("API        {}", text("server"));
    println!("node       {} {}", cluster.node_name, text("node_ip"));
    println!("pods       {} running", text("pods"));
    println!("ranges     pods {}, services {}", cluster.pod_cidr, cluster.service_cidr);
    println!("data       {}", paths.data.display());
    println!("kubeconfig {}", paths.kubeconfig().display());
    Ok(())
}
