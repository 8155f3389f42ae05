//! The OCI runtime specification of a container, from its CRI configuration, its image and its sandbox.

use std::path::{Path, PathBuf};

use coracle_cri::v1::{ContainerConfig, Mount, PodSandboxConfig};
use serde_json::{Value, json};

use crate::cgroup::Hierarchies;
use crate::images::ImageConfig;
use crate::rootfs::{Identity, device};
use crate::shim::executor::DEFAULT_PATH;

/// Everything a specification is made of.
pub(crate) struct SpecInput<'a> {
    pub config: &'a ContainerConfig,
    pub sandbox: &'a PodSandboxConfig,
    pub image: &'a ImageConfig,
    pub rootfs: &'a Path,
    pub identity: &'a Identity,
    /// Capabilities the process ends up with.
    pub capabilities: &'a [String],
    /// A system call filter will be installed by our executor.
    pub seccomp: bool,
    pub cgroup: &'a str,
    pub hierarchies: &'a Hierarchies,
    pub network: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    /// The pod's user namespace, if it has one.
    pub users: Option<PathBuf>,
    /// Of the pause process; `None` for a process namespace of its own, unless on the host's.
    pub pid: Option<PathBuf>,
    /// Files of the sandbox: `resolv.conf`, `hostname`, `shm`.
    pub sandbox_dir: &'a Path,
}

/// Program and arguments: the pod's command and args over the image's entrypoint and command.
///
/// # Errors
/// Neither says what to run.
pub(crate) fn arguments(config: &ContainerConfig, image: &ImageConfig) -> Result<Vec<String>, String> {
    let mut all = if config.command.is_empty() { image.entrypoint.clone() } else { config.command.clone() };
    if !config.args.is_empty() {
        all.extend(config.args.clone());
    } else if config.command.is_empty() {
        all.extend(image.cmd.clone());
    }
    if all.is_empty() { Err("no command specified".into()) } else { Ok(all) }
}

/// The working directory.
pub(crate) fn working_dir(config: &ContainerConfig, image: &ImageConfig) -> String {
    [&config.working_dir, &image.working_dir]
        .into_iter()
        .find(|d| !d.is_empty())
        .map_or_else(|| "/".to_owned(), |d| if d.starts_with('/') { d.clone() } else { format!("/{d}") })
}

/// The environment: the image's, overridden by the pod's.
fn environment(input: &SpecInput<'_>) -> Vec<String> {
    let hostname = if input.sandbox.hostname.is_empty() {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    } else {
        input.sandbox.hostname.clone()
    };
    let mut all = vec![("PATH".to_owned(), DEFAULT_PATH.to_owned()), ("HOSTNAME".to_owned(), hostname)];
    if input.config.tty {
        all.push(("TERM".into(), "xterm".into()));
    }
    let image = input.image.env.iter().filter_map(|e| e.split_once('='));
    let pod = input.config.envs.iter().map(|e| (e.key.as_str(), e.value.as_str()));
    let mut at: std::collections::HashMap<String, usize> =
        all.iter().enumerate().map(|(i, (k, _))| (k.clone(), i)).collect();
    for (key, value) in image.chain(pod) {
        match at.get(key) {
            Some(i) => value.clone_into(&mut all[*i].1),
            None => {
                at.insert(key.to_owned(), all.len());
                all.push((key.to_owned(), value.to_owned()));
            }
        }
    }
    all.into_iter().map(|(k, v)| format!("{k}={v}")).collect()
}

/// The specification.
///
/// # Errors
/// The configuration contradicts itself or names what does not exist.
pub(crate) fn build(input: &SpecInput<'_>) -> Result<Value, String> {
    let (config, security) = (input.config, &input.config.security);
    let mut given = input.capabilities.to_vec();
    if input.seccomp && !security.no_new_privs {
        // Installing the filter needs these for a moment; our executor takes them away again.
        for extra in ["CAP_SYS_ADMIN", "CAP_SETPCAP"] {
            if !given.iter().any(|c| c == extra) {
                given.push(extra.into());
            }
        }
    }
    let mut process = json!({
        "terminal": config.tty,
        "user": {
            "uid": input.identity.uid,
            "gid": input.identity.gid,
            "additionalGids": input.identity.groups,
        },
        "args": arguments(config, input.image)?,
        "env": environment(input),
        "cwd": working_dir(config, input.image),
        "capabilities": { "bounding": given, "effective": given, "permitted": given },
        "noNewPrivileges": security.no_new_privs,
        "oomScoreAdj": oom_score(config.resources.oom_score_adj),
    });
    if !security.no_new_privs {
        process["noNewPrivileges"] = json!(false);
    }
    let (devices, rules) = devices(config)?;
    let mut linux = json!({
        "namespaces": namespaces(input),
        "cgroupsPath": format!("/{}", input.cgroup.trim_matches('/')),
        "resources": resources(input, rules),
        "devices": devices,
        "maskedPaths": paths(&security.masked_paths, security.privileged),
        "readonlyPaths": paths(&security.readonly_paths, security.privileged),
    });
    if !input.hierarchies.is_v2() && !security.privileged {
        // Otherwise the tmpfs that holds the read-only mounts could be written to.
        if let Some(list) = linux["readonlyPaths"].as_array_mut() {
            list.push("/sys/fs/cgroup".into());
        }
    }
    // libcontainer leaves a volume with the propagation that the whole tree had when it was bound. So the
    // widest wish of a container's volumes holds for all of them.
    linux["rootfsPropagation"] = match config.mounts.iter().map(|m| m.propagation).max() {
        Some(2) => "shared",
        Some(1) => "slave",
        _ => "private",
    }
    .into();
    Ok(json!({
        "ociVersion": "1.1.0",
        "process": process,
        "root": { "path": input.rootfs, "readonly": security.readonly_rootfs },
        "mounts": mounts(input)?,
        "linux": linux,
    }))
}

/// As containerd: what the caller does not name is neither hidden nor protected.
fn paths(given: &[String], privileged: bool) -> Vec<String> {
    if privileged { Vec::new() } else { given.to_vec() }
}

/// Below its own value a process without CAP_SYS_RESOURCE cannot go.
fn oom_score(wanted: i64) -> i64 {
    let wanted = wanted.clamp(-1000, 1000);
    if caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_RESOURCE).unwrap_or(false) {
        return wanted;
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|t| t.trim().parse().ok());
    wanted.max(own.unwrap_or(0))
}

fn namespaces(input: &SpecInput<'_>) -> Vec<Value> {
    let host = &input.sandbox.namespaces;
    let mut all = vec![json!({ "type": "mount" })];
    match &input.pid {
        Some(path) => all.push(json!({ "type": "pid", "path": path })),
        None if host.host_pid => {}
        None => all.push(json!({ "type": "pid" })),
    }
    let joined =
        [("user", &input.users), ("network", &input.network), ("ipc", &input.ipc), ("uts", &input.uts)];
    for (kind, path) in joined {
        if let Some(path) = path {
            all.push(json!({ "type": kind, "path": path }));
        }
    }
    if input.hierarchies.is_v2() && !input.config.security.privileged {
        all.push(json!({ "type": "cgroup" }));
    }
    all
}

fn resources(input: &SpecInput<'_>, devices: Vec<Value>) -> Value {
    let r = &input.config.resources;
    let mut all = json!({ "devices": devices });
    let mut cpu = serde_json::Map::new();
    for (name, value) in [("shares", r.cpu_shares), ("quota", r.cpu_quota), ("period", r.cpu_period)] {
        if value > 0 {
            cpu.insert(name.into(), value.into());
        }
    }
    for (name, list) in [("cpus", &r.cpuset_cpus), ("mems", &r.cpuset_mems)] {
        if !list.is_empty() {
            cpu.insert(name.into(), list.as_str().into());
        }
    }
    if !cpu.is_empty() {
        all["cpu"] = cpu.into();
    }
    if r.memory_limit_in_bytes > 0 {
        all["memory"] = json!({ "limit": r.memory_limit_in_bytes });
        if r.memory_swap_limit_in_bytes > 0 {
            all["memory"]["swap"] = r.memory_swap_limit_in_bytes.into();
        }
    }
    // As containerd: a machine without the controller limits none.
    if !r.hugepages.is_empty() && input.hierarchies.controllers().iter().any(|c| c == "hugetlb") {
        let limit = |(size, limit): (&String, &u64)| json!({ "pageSize": size, "limit": limit });
        all["hugepageLimits"] = r.hugepages.iter().map(limit).collect();
    }
    if !r.unified.is_empty() {
        all["unified"] = json!(r.unified);
    }
    if r.pids_limit > 0 {
        all["pids"] = json!({ "limit": r.pids_limit });
    }
    all
}

/// Device nodes to make, and rules for the device controller.
fn devices(config: &ContainerConfig) -> Result<(Vec<Value>, Vec<Value>), String> {
    if config.security.privileged {
        let mut nodes = Vec::new();
        host_devices(Path::new("/dev"), &mut nodes);
        return Ok((nodes, vec![json!({ "allow": true, "access": "rwm" })]));
    }
    let mut nodes = Vec::new();
    let mut rules = vec![json!({ "allow": false, "access": "rwm" })];
    for wanted in &config.devices {
        let path = Path::new(&wanted.host_path);
        let found = device(path).map_err(|e| format!("device {}: {e}", wanted.host_path))?;
        let (kind, major, minor, mode) =
            found.ok_or_else(|| format!("{} is not a device", wanted.host_path))?;
        let access = if wanted.permissions.is_empty() { "rwm" } else { &wanted.permissions };
        nodes.push(json!({
            "path": wanted.container_path, "type": kind, "major": major, "minor": minor, "fileMode": mode,
            "uid": 0, "gid": 0,
        }));
        rules.push(json!({
            "allow": true, "type": kind, "major": major, "minor": minor, "access": access,
        }));
    }
    Ok((nodes, rules))
}

fn host_devices(dir: &Path, nodes: &mut Vec<Value>) {
    // What libcontainer makes itself, and what the container has of its own.
    let skip = [
        "pts",
        "shm",
        "fd",
        "mqueue",
        ".lxc",
        ".lxd-mounts",
        ".udev",
        "console",
        "ptmx",
        "null",
        "zero",
        "full",
        "random",
        "urandom",
        "tty",
    ];
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if skip.iter().any(|s| name == **s) {
            continue;
        }
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            host_devices(&path, nodes);
        } else if !kind.is_symlink()
            && let Ok(Some((kind, major, minor, mode))) = device(&path)
        {
            nodes.push(json!({
                "path": path, "type": kind, "major": major, "minor": minor, "fileMode": mode,
                "uid": 0, "gid": 0,
            }));
        }
    }
}

fn mounts(input: &SpecInput<'_>) -> Result<Vec<Value>, String> {
    let config = input.config;
    let privileged = config.security.privileged;
    let access = if privileged { "rw" } else { "ro" };
    let mut all = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
    ];
    cgroup_mounts(input, access, &mut all);
    let taken = |path: &str| config.mounts.iter().any(|m| m.container_path.trim_end_matches('/') == path);
    if !taken("/dev/shm") {
        let source = if input.sandbox.namespaces.host_ipc {
            PathBuf::from("/dev/shm")
        } else {
            input.sandbox_dir.join("shm")
        };
        all.push(json!({
            "destination": "/dev/shm", "type": "bind", "source": source,
            "options": ["rbind", "rprivate", "nosuid", "noexec", "nodev", "rw"],
        }));
    }
    for name in ["resolv.conf", "hostname"] {
        let (source, target) = (input.sandbox_dir.join(name), format!("/etc/{name}"));
        if source.exists() && !taken(&target) {
            let access = if config.security.readonly_rootfs { "ro" } else { "rw" };
            all.push(json!({
                "destination": target, "type": "bind", "source": source,
                "options": ["rbind", "rprivate", access],
            }));
        }
    }
    let mut volumes: Vec<&Mount> = config.mounts.iter().collect();
    // An outer volume must be mounted before one inside it.
    volumes.sort_by_key(|m| Path::new(&m.container_path).components().count());
    for volume in volumes {
        all.push(bind(volume)?);
    }
    Ok(all)
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}

/// v2: the container's own view, by its cgroup namespace. v1: a mount of type `cgroup` would be writable,
/// so the container's own directories are bind-mounted one by one.
fn cgroup_mounts(input: &SpecInput<'_>, access: &str, all: &mut Vec<Value>) {
    const FLAGS: [&str; 3] = ["nosuid", "noexec", "nodev"];
    if input.hierarchies.is_v2() {
        let options = [&FLAGS[..], &["relatime", access]].concat();
        all.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &options));
        return;
    }
    let options = [&FLAGS[..], &["mode=755", "size=64k"]].concat();
    all.push(mount("/sys/fs/cgroup", "tmpfs", "tmpfs", &options));
    for (name, dir) in input.hierarchies.v1_dirs(input.cgroup) {
        let options = [&FLAGS[..], &["bind", "rprivate", access]].concat();
        let destination = Path::new("/sys/fs/cgroup").join(name);
        all.push(json!({
            "destination": destination, "type": "bind", "source": dir, "options": options,
        }));
    }
}

/// Makes the directory that a volume names, if nothing is there.
///
/// # Errors
/// It cannot be made.
pub(crate) fn make_source(volume: &Mount) -> Result<(), String> {
    let source = Path::new(&volume.host_path);
    if source.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(source).map_err(|e| format!("failed to mkdir {:?}: {e}", volume.host_path))
}

fn bind(volume: &Mount) -> Result<Value, String> {
    let source = Path::new(&volume.host_path);
    if !volume.container_path.starts_with('/') {
        return Err(format!("mount path {:?} is not absolute", volume.container_path));
    }
    make_source(volume)?;
    let propagation = match volume.propagation {
        1 => "rslave",
        2 => "rshared",
        _ => "rprivate",
    };
    let access = match (volume.readonly, volume.recursive_read_only) {
        (true, true) => "rro",
        (true, false) => "ro",
        (false, _) => "rw",
    };
    Ok(json!({
        "destination": volume.container_path, "type": "bind", "source": source,
        "options": ["rbind", propagation, access],
    }))
}

#[cfg(test)]
mod tests {
    use coracle_cri::v1::KeyValue;

    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    #[track_caller]
    fn check(command: &[&str], args: &[&str], want: &[&str]) {
        let image =
            ImageConfig { entrypoint: strings(&["entry"]), cmd: strings(&["cmd"]), ..Default::default() };
        let config = ContainerConfig { command: strings(command), args: strings(args), ..Default::default() };
        assert_eq!(arguments(&config, &image).unwrap(), strings(want));
    }

    #[test]
    fn command_and_args_replace_entrypoint_and_cmd_as_kubernetes_documents() {
        check(&[], &[], &["entry", "cmd"]);
        check(&["c"], &[], &["c"]);
        check(&[], &["a"], &["entry", "a"]);
        check(&["c"], &["a"], &["c", "a"]);
    }

    #[test]
    fn pod_environment_overrides_the_image_in_place() {
        let image = ImageConfig { env: strings(&["A=1", "PATH=/x"]), ..Default::default() };
        let envs = vec![KeyValue { key: "A".into(), value: "2".into() }];
        let config = ContainerConfig { envs, ..Default::default() };
        let sandbox = PodSandboxConfig { hostname: "h".into(), ..Default::default() };
        let input = SpecInput {
            config: &config,
            sandbox: &sandbox,
            image: &image,
            rootfs: Path::new("/"),
            identity: &Identity::default(),
            capabilities: &[],
            seccomp: true,
            cgroup: "a/b",
            hierarchies: &Hierarchies::detect(),
            network: None,
            ipc: None,
            uts: None,
            users: None,
            pid: None,
            sandbox_dir: Path::new("/nonexistent"),
        };
        assert_eq!(environment(&input), strings(&["PATH=/x", "HOSTNAME=h", "A=2"]));
    }
}
