//! An API server and a controller manager, each ours or upstream's.

use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_testkit::{Background, Machine, Output, coracle, kubectl, retry, run};
use serde_json::Value;

const PORT: u16 = 7443;
const ETCD_URL: &str = "http://127.0.0.1:2379";

/// Upstream's programs, as far as the environment names them.
pub struct Upstream {
    pub etcd: PathBuf,
    pub apiserver: PathBuf,
    pub manager: PathBuf,
}

impl Upstream {
    pub fn find() -> Option<Self> {
        let named = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.exists());
        Some(Self {
            etcd: named("ETCD")?,
            apiserver: named("KUBE_APISERVER")?,
            manager: named("KUBE_CONTROLLER_MANAGER")?,
        })
    }
}

/// A control plane without scheduler and nodes.
pub struct ControlPlane {
    /// Ended in this order.
    manager: Option<Background>,
    /// Programs by upstream's names.
    programs: Vec<Background>,
    _servers: Vec<Background>,
    pub machine: Machine,
}

impl ControlPlane {
    /// `apiserver` and `manager` say whose to take; ours where there is none.
    pub fn start(name: &str, apiserver: Option<&Upstream>, manager: Option<&Upstream>) -> Self {
        let mut this = Self::serve(name, apiserver);
        this.start_manager(manager);
        this
    }

    /// An API server alone.
    pub fn serve(name: &str, apiserver: Option<&Upstream>) -> Self {
        let machine = Machine::new(name);
        let key = rcgen::KeyPair::generate().expect("a key");
        machine.file("sa.key", &key.serialize_pem());
        machine.file("sa.pub", &key.public_key_pem());
        machine.file("tokens.csv", "admintoken,admin,admin,\"system:masters\"\n");
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{PORT}', insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: u, user: {{token: admintoken}}}}]\n"
        );
        machine.file("kubeconfig", &config);
        let servers = match apiserver {
            None => vec![our_server(&machine)],
            Some(upstream) => upstream_server(&machine, upstream),
        };
        let this = Self { manager: None, programs: Vec::new(), _servers: servers, machine };
        retry("the API server is ready", 120, || {
            let ready = this.run(&["get", "--raw", "/readyz"]);
            (ready.status == 0).then_some(()).ok_or(ready.stderr)
        });
        this
    }

    /// Starts our binary by the name of a program of upstream's, as the image of a static pod has it.
    pub fn start_program(&mut self, name: &str, flags: &[String]) {
        let link = self.machine.dir().join(name);
        if !link.exists() {
            std::os::unix::fs::symlink(coracle(), &link).expect("a link");
        }
        let mut command = self.machine.lasting(&link);
        let program = self.machine.background(name, command.args(flags));
        self.programs.push(program);
    }

    /// What a program's own port answers.
    pub fn ask(&self, port: u16, path: &str, token: &str) -> Output {
        let server = format!("https://127.0.0.1:{port}");
        let mut command = self.machine.command(&kubectl());
        command.args(["--server", &server, "--insecure-skip-tls-verify", "--token", token]);
        run(command.args(["get", "--raw", path]))
    }

    /// Ends the controllers at once and starts them again.
    pub fn restart_manager(&mut self, manager: Option<&Upstream>) {
        self.manager = None;
        self.start_manager(manager);
    }

    fn start_manager(&mut self, manager: Option<&Upstream>) {
        let program = manager.map_or_else(coracle, |upstream| upstream.manager.clone());
        let mut command = self.machine.lasting(&program);
        if manager.is_none() {
            command.arg("controller-manager");
        } else {
            command.args(["--cert-dir", "certs", "--secure-port", "0"]).current_dir(self.machine.dir());
        }
        let in_dir = |name: &str| self.machine.dir().join(name);
        command.args(["--leader-elect=false", "--use-service-account-credentials=true"]);
        command.arg("--kubeconfig").arg(in_dir("kubeconfig"));
        command.arg("--service-account-private-key-file").arg(in_dir("sa.key"));
        self.manager = Some(self.machine.background("manager", &mut command));
    }

    pub fn run(&self, args: &[&str]) -> Output {
        let mut command = self.machine.command(&kubectl());
        run(command.arg("--kubeconfig").arg(self.machine.dir().join("kubeconfig")).args(args))
    }

    #[track_caller]
    pub fn kubectl(&self, args: &str) -> String {
        self.run(&args.split_whitespace().collect::<Vec<_>>()).ok()
    }

    #[track_caller]
    pub fn json(&self, args: &str) -> Value {
        serde_json::from_str(&self.kubectl(&format!("{args} -o json"))).expect("kubectl prints JSON")
    }

    #[track_caller]
    pub fn apply(&self, name: &str, manifest: &str) {
        let path = self.machine.file(name, manifest).display().to_string();
        self.run(&["apply", "-f", &path]).ok();
    }
}

fn our_server(machine: &Machine) -> Background {
    let mut command = machine.lasting(&coracle());
    command.args(["apiserver", "--secure-port", &PORT.to_string()]);
    command.arg("--data-dir").arg(machine.data("server"));
    flags(&mut command, machine.dir());
    machine.background("apiserver", &mut command)
}

fn upstream_server(machine: &Machine, upstream: &Upstream) -> Vec<Background> {
    let mut etcd = machine.lasting(&upstream.etcd);
    etcd.arg("--data-dir").arg(machine.dir().join("etcd"));
    etcd.args(["--listen-client-urls", ETCD_URL, "--advertise-client-urls", ETCD_URL]);
    let mut server = machine.lasting(&upstream.apiserver);
    server.args([
        "--etcd-servers",
        ETCD_URL,
        "--secure-port",
        &PORT.to_string(),
        "--bind-address",
        "127.0.0.1",
    ]);
    server.args([
        "--advertise-address",
        "192.0.2.1",
        "--service-account-issuer",
        "https://kubernetes.default.svc",
    ]);
    server.args(["--authorization-mode", "Node,RBAC", "--service-cluster-ip-range", "10.96.0.0/16"]);
    server.arg("--cert-dir").arg(machine.dir().join("certs"));
    server.arg("--service-account-key-file").arg(machine.dir().join("sa.pub"));
    flags(&mut server, machine.dir());
    // Stopped first, so that it does not complain of a lost store.
    let etcd = machine.background("etcd", &mut etcd);
    vec![machine.background("kube-apiserver", &mut server), etcd]
}

fn flags(command: &mut Command, dir: &Path) {
    command.arg("--token-auth-file").arg(dir.join("tokens.csv"));
    command.arg("--service-account-signing-key-file").arg(dir.join("sa.key"));
}
