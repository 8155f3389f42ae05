//! The seams of the node: other container runtimes below our kubelet, our runtime below other clients, and CNI plug-ins
//! in place of the built-in network.

mod manifests;
mod pressure;

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use coracle_testkit::{Census, Machine, busybox_archive, coracle, retry, run};
use serde_json::{Value, json};

/// The cluster's name in the test's directory.
const MAIN: &str = "main";
/// The test image.
const IMAGE: &str = "test.example/busybox:1";

/// A program or folder of Debian's containerd, runc or CNI plug-ins, as `make tools` unpacks them.
fn peer(path: &str) -> PathBuf {
    coracle_testkit::tool(&format!("runtimes/{path}"))
}

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

fn start(command: &mut Command, log: &Path, socket: &Path) -> Server {
    let file = std::fs::File::create(log).expect("a log");
    let server =
        Server(command.stdout(file.try_clone().expect("a log")).stderr(file).spawn().expect("a server"));
    retry("the server listens", 30, || {
        let text = || std::fs::read_to_string(log).unwrap_or_default();
        std::os::unix::net::UnixStream::connect(socket).map(drop).map_err(|e| format!("{e}\n{}", text()))
    });
    server
}

/// A cluster whose node has what `args` say.
struct Lab {
    machine: Machine,
}

impl Lab {
    fn up(machine: Machine, args: &[&str]) -> Self {
        let base = ["up", "--detach", "--node-name", "n1"];
        machine.coracle(MAIN, &[&base[..], args].concat()).ok();
        let lab = Self { machine };
        retry("the default service account", 30, || {
            let found = lab.machine.kubectl(MAIN, &["get", "serviceaccount", "default"]);
            if found.status == 0 { Ok(()) } else { Err(found.stderr) }
        });
        lab
    }

    #[track_caller]
    fn kubectl(&self, args: &[&str]) -> String {
        self.machine.kubectl(MAIN, args).ok()
    }

    fn pod(&self, name: &str, container: &Value) {
        let mut container = container.clone();
        container["name"] = "main".into();
        container["image"] = IMAGE.into();
        container["imagePullPolicy"] = "IfNotPresent".into();
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]}});
        let path = self.machine.file(&format!("{name}.json"), &pod.to_string());
        self.kubectl(&["create", "-f", &path.display().to_string()]);
    }

    #[track_caller]
    fn running(&self, name: &str) -> Value {
        retry(&format!("{name} runs"), 90, || {
            let text = self.machine.kubectl(MAIN, &["get", "pod", name, "-o", "json"]).stdout;
            let pod: Value = serde_json::from_str(&text).unwrap_or_default();
            let events = || self.machine.kubectl(MAIN, &["get", "events"]).stdout;
            if pod["status"]["containerStatuses"][0]["ready"] == true {
                return Ok(pod);
            }
            Err(format!("{}\n{}", pod["status"], events()))
        })
    }

    /// What every runtime below the kubelet must do for a pod.
    fn tries_a_pod(&self) {
        self.pod(
            "web",
            &json!({"command": ["sh", "-c",
            "echo from the log; echo up > /tmp/up; while :; do nc -l -p 8080 -e cat /tmp/up; done & trap 'exit 0' TERM; wait"],
            "readinessProbe": {"exec": {"command": ["cat", "/tmp/up"]}, "periodSeconds": 1}}),
        );
        let pod = self.running("web");
        assert!(!pod["status"]["podIP"].as_str().unwrap_or_default().is_empty(), "{}", pod["status"]);
        retry("the log", 30, || {
            let text = self.kubectl(&["logs", "web"]);
            if text == "from the log\n" { Ok(()) } else { Err(text) }
        });
        assert_eq!(self.kubectl(&["exec", "web", "--", "cat", "/tmp/up"]), "up\n");
        let failed = self.machine.kubectl(MAIN, &["exec", "web", "--", "sh", "-c", "exit 7"]);
        assert_eq!(failed.status, 7, "{failed:?}");
        // An end is seen, and restarted from. The command may end with the container that it ends.
        self.machine.kubectl(MAIN, &["exec", "web", "--", "kill", "1"]);
        retry("a restart", 60, || {
            let count = "jsonpath={.status.containerStatuses[0].restartCount}";
            let text = self.kubectl(&["get", "pod", "web", "-o", count]);
            if text == "1" { Ok(()) } else { Err(text) }
        });
        self.kubectl(&["delete", "pod", "web", "--wait=true", "--timeout=60s"]);
    }

    fn down(self) -> Machine {
        self.machine.coracle(MAIN, &["down", "--purge"]).ok();
        self.machine
    }
}

fn archive(machine: &Machine) -> PathBuf {
    let path = machine.dir().join("busybox.tar");
    busybox_archive(&path, &[IMAGE], &["sleep", "1000000"]);
    path
}

#[test]
fn our_runtime_runs_the_pods_of_a_kubelet_in_another_process() {
    let machine = Machine::new("socket");
    let before = Census::own(&machine);
    let (socket, log) = (machine.dir().join("cri.sock"), machine.dir().join("runtime.log"));
    let data = machine.data("runtime");
    std::fs::create_dir_all(data.join("images")).expect("a directory");
    std::fs::copy(archive(&machine), data.join("images/busybox.tar")).expect("an archive");
    let listen = format!("unix://{}", socket.display());
    let mut command = machine.lasting(&coracle());
    command.args(["runtime", "--listen", &listen, "--data-dir"]).arg(&data);
    let server = start(&mut command, &log, &socket);
    let lab = Lab::up(machine, &["--container-runtime-endpoint", &listen]);
    let version = "jsonpath={.items[0].status.nodeInfo.containerRuntimeVersion}";
    assert!(lab.kubectl(&["get", "nodes", "-o", version]).starts_with("coracle://"));
    lab.tries_a_pod();
    let machine = lab.down();
    drop(server);
    machine.coracle("runtime", &["down", "--purge"]).ok();
    let left = Census::own(&machine).since(&before);
    assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
}

/// Configuration of containerd with everything of its own below a directory.
fn containerd_config(dir: &Path) -> String {
    let (dir, plugins) = (dir.display(), peer("usr/lib/cni"));
    let plugins = plugins.display();
    format!(
        r#"version = 2
root = "{dir}/c-root"
state = "{dir}/c-state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{dir}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{dir}/net.d"
"#
    )
}

/// A bridge of its own for the pods of a test.
fn bridge(dir: &Path) -> PathBuf {
    let conf = dir.join("net.d");
    std::fs::create_dir_all(&conf).expect("a directory");
    let list = json!({"cniVersion": "1.0.0", "name": "test", "plugins": [
        {"type": "bridge", "bridge": "cni-test", "isGateway": true, "ipMasq": false, "hairpinMode": true,
         "ipam": {"type": "host-local", "dataDir": dir.join("ipam"),
                  "ranges": [[{"subnet": "10.77.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": true}}]});
    std::fs::write(conf.join("10-test.conflist"), list.to_string()).expect("a file");
    conf
}

#[test]
fn debians_containerd_runs_the_pods_of_our_kubelet() {
    let machine = Machine::new("containerd");
    bridge(machine.dir());
    let config = machine.file("containerd.toml", &containerd_config(machine.dir()));
    let socket = machine.dir().join("containerd.sock");
    let mut command = machine.lasting(&peer("usr/bin/containerd"));
    let own = [peer("usr/bin"), peer("usr/sbin")].map(|p| p.display().to_string()).join(":");
    let path = format!("{own}:{}", std::env::var("PATH").unwrap_or_default());
    command.arg("--config").arg(config).env("PATH", path);
    let server = start(&mut command, &machine.dir().join("containerd.log"), &socket);
    let archive = archive(&machine);
    let ctr = |args: &[&str]| {
        run(machine
            .command(&peer("usr/bin/ctr"))
            .arg("--address")
            .arg(&socket)
            .args(["-n", "k8s.io"])
            .args(args))
    };
    ctr(&["images", "import", &archive.display().to_string()]).ok();
    let lab = Lab::up(machine, &["--container-runtime-endpoint", &format!("unix://{}", socket.display())]);
    lab.tries_a_pod();
    let machine = lab.down();
    drop(server);
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let ours = |line: &&str| line.contains(&machine.dir().display().to_string());
    assert_eq!(mounts.lines().find(ours), None, "the kubelet leaves no mount behind");
}

#[test]
fn cni_plugins_of_debian_connect_pods_in_place_of_the_built_in_network() {
    let machine = Machine::new("cni");
    let conf = bridge(machine.dir()).display().to_string();
    let archive = archive(&machine).display().to_string();
    let dir = machine.dir().to_owned();
    let plugins = peer("usr/lib/cni").display().to_string();
    let lab = Lab::up(machine, &["--cni-conf-dir", &conf, "--cni-bin-dir", &plugins]);
    lab.machine.coracle(MAIN, &["image", "import", &archive]).ok();
    let server = json!({"command": ["sh", "-c", "echo hello > /tmp/x; while :; do nc -l -p 8080 -e cat /tmp/x; done"],
        "ports": [{"containerPort": 8080, "hostPort": 18080}]});
    lab.pod("server", &server);
    let pod = lab.running("server");
    let ip = pod["status"]["podIP"].as_str().unwrap_or_default().to_owned();
    assert!(ip.starts_with("10.77.0."), "the address is the plug-in's: {ip}");
    assert!(dir.join("ipam/test").join(&ip).exists(), "host-local has given {ip} away");
    lab.pod("client", &json!({"command": ["sleep", "1000"]}));
    lab.running("client");
    let get = |from: &str, port: &str| {
        retry("the server answers", 30, || {
            let out = lab.machine.kubectl(MAIN, &["exec", "client", "--", "nc", "-w", "5", from, port]);
            if out.stdout == "hello\n" { Ok(()) } else { Err(format!("{out:?}")) }
        });
    };
    get(&ip, "8080");
    get("192.168.77.1", "18080");
    lab.kubectl(&["delete", "pod", "server", "client", "--wait=true", "--timeout=60s"]);
    retry("the address is given back", 30, || {
        if dir.join("ipam/test").join(&ip).exists() { Err(ip.clone()) } else { Ok(()) }
    });
    let records = std::fs::read_dir(lab.machine.data(MAIN).join("cni")).expect("the records").count();
    assert_eq!(records, 0, "no record is left of pods that are gone");
    lab.down();
}

#[test]
fn cpus_and_memory_of_guaranteed_pods_are_theirs_alone() {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    assert!(cpus > 1, "a machine with one CPU has none to give away");
    let machine = Machine::new("cpus");
    let archive = archive(&machine).display().to_string();
    let config = "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\n\
        cpuManagerPolicy: static\nkubeReserved: {cpu: 500m, memory: 28Mi}\nmemoryManagerPolicy: Static\n\
        reservedMemory: [{numaNode: 0, limits: {memory: 128Mi}}]\ntopologyManagerPolicy: single-numa-node\n";
    let config = machine.file("kubelet.yaml", config).display().to_string();
    let lab = Lab::up(machine, &["--kubelet-config", &config]);
    lab.machine.coracle(MAIN, &["image", "import", &archive]).ok();
    let sleep = json!({"command": ["sleep", "1000"]});
    lab.pod("shares", &sleep);
    lab.running("shares");
    let allowed = |pod: &str| {
        let text = lab.kubectl(&["exec", pod, "--", "grep", "Cpus_allowed_list", "/proc/1/status"]);
        text.split_whitespace().nth(1).unwrap_or_default().to_owned()
    };
    let all = allowed("shares");
    let mut own = sleep.clone();
    let amounts = json!({"cpu": "1", "memory": "32Mi"});
    own["resources"] = json!({"requests": amounts, "limits": amounts});
    lab.pod("owns", &own);
    lab.running("owns");
    let given = allowed("owns");
    assert!(given.parse::<u32>().is_ok(), "one CPU: {given}");
    retry("the others leave that CPU", 60, || {
        let now = allowed("shares");
        if now != all && now != given { Ok(()) } else { Err(format!("{now}, {given} is given")) }
    });
    let state = std::fs::read_to_string(lab.machine.data(MAIN).join("kubelet/cpu_manager_state"));
    let state: Value = serde_json::from_str(&state.expect("a state")).expect("JSON");
    assert_eq!(state["policyName"], "static", "{state}");
    let memory = std::fs::read_to_string(lab.machine.data(MAIN).join("kubelet/memory_manager_state"));
    let memory: Value = serde_json::from_str(&memory.expect("a state")).expect("JSON");
    let table = &memory["machineState"]["0"]["memoryMap"]["memory"];
    assert_eq!(
        (&table["systemReserved"], &table["reserved"]),
        (&json!(128 << 20), &json!(32 << 20)),
        "{memory}"
    );
    let bound = lab.kubectl(&["exec", "owns", "--", "grep", "Mems_allowed_list", "/proc/1/status"]);
    assert_eq!(bound.split_whitespace().nth(1), Some("0"));
    let more = json!({"spec": {"containers": [{"name": "main", "resources": {
        "requests": {"cpu": "1", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "64Mi"}}}]}});
    lab.kubectl(&["patch", "pod", "owns", "--subresource", "resize", "-p", &more.to_string()]);
    retry("the resize is refused for good", 60, || {
        let path = "jsonpath={.status.conditions[?(@.type==\"PodResizePending\")]['reason','message']}";
        let shown = lab.kubectl(&["get", "pod", "owns", "-o", path]);
        let why =
            "Infeasible Resize is infeasible for Guaranteed Pods alongside Memory Manager policy \"Static\"";
        if shown == why { Ok(()) } else { Err(shown) }
    });
    lab.kubectl(&["delete", "pod", "owns", "--wait=true", "--timeout=60s"]);
    retry("the CPU is shared again", 60, || {
        let now = allowed("shares");
        if now == all { Ok(()) } else { Err(now) }
    });
    lab.down();
}
