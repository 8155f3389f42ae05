//! Three `coracle apiserver` processes on one etcd behave as one, for the real kubectl.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::thread::scope;
use std::time::Duration;

use coracle_testkit::{Background, Machine, Output, coracle, kubectl, retry, run, tool};
use serde_json::{Value, json};

const PORTS: [u16; 3] = [7001, 7002, 7003];
const ETCD: &str = "http://127.0.0.1:2379";

/// Starts an etcd on a machine, and waits until it answers.
fn start_etcd(machine: &Machine) -> Background {
    let etcd_dir = machine.dir().join("etcd");
    let mut etcd = machine.lasting(&tool("etcd"));
    let etcd = machine.background(
        "etcd",
        etcd.arg("--data-dir").arg(&etcd_dir).args([
            "--listen-client-urls",
            ETCD,
            "--advertise-client-urls",
            ETCD,
        ]),
    );
    retry("etcd answers", 30, || {
        let health = machine.command(&coracle()).args(["demo", "get", &format!("{ETCD}/health")]).output();
        health.is_ok_and(|o| o.status.success()).then_some(()).ok_or_else(|| "no".into())
    });
    etcd
}

/// The machine, its etcd and its API servers.
struct Servers {
    processes: Vec<Background>,
    _etcd: Background,
    /// Last: it takes their logs with it.
    machine: Machine,
}

impl Servers {
    /// All three start at the same time, on an empty etcd.
    fn start() -> Self {
        let machine = Machine::new("etcd");
        let etcd = start_etcd(&machine);
        let tokens = machine.file("tokens.csv", "admintoken,admin,admin,\"system:masters\"\n");
        let servers = PORTS.map(|port| {
            let mut command = machine.lasting(&coracle());
            command.args(["apiserver", "--etcd-servers", ETCD, "--secure-port", &port.to_string()]);
            command.arg("--data-dir").arg(machine.data(&port.to_string()));
            command.arg("--token-auth-file").arg(&tokens);
            command.arg("--service-account-signing-key-file").arg(signing_key(&machine));
            machine.background(&format!("server-{port}"), &mut command)
        });
        let this = Self { processes: servers.into(), _etcd: etcd, machine };
        for server in 0..PORTS.len() {
            retry("the API server is ready", 60, || {
                let ready = this.kubectl(server, &["get", "--raw", "/readyz"]);
                (ready.status == 0).then_some(()).ok_or(ready.stderr)
            });
        }
        this
    }

    fn kubectl(&self, server: usize, args: &[&str]) -> Output {
        let port = PORTS[server % PORTS.len()];
        let mut command = self.machine.command(&kubectl());
        command.args(["--insecure-skip-tls-verify", "--token", "admintoken"]);
        run(command.arg(format!("--server=https://127.0.0.1:{port}")).args(args))
    }

    fn json(&self, server: usize, args: &[&str]) -> Value {
        let out = self.kubectl(server, &[args, &["-o", "json"]].concat()).ok();
        serde_json::from_str(&out).expect("JSON")
    }
}

/// One key for all: a token of one server is good at the others.
fn signing_key(machine: &Machine) -> PathBuf {
    let path = machine.dir().join("sa.key");
    if !path.exists() {
        let key = rcgen::KeyPair::generate().expect("a key").serialize_pem();
        std::fs::write(&path, key).expect("a file");
    }
    path
}

fn writes_of_one_are_read_from_the_others_at_once(servers: &Servers) {
    for n in 0..9 {
        let name = format!("c{n}");
        servers.kubectl(n, &["create", "configmap", &name, "--from-literal=a=1"]).ok();
        servers.kubectl(n + 1, &["get", "configmap", &name]).ok();
        let listed = servers.json(n + 2, &["get", "configmaps"]);
        let found = listed["items"].as_array().expect("items").iter().any(|c| c["metadata"]["name"] == name);
        assert!(found, "{name} is not in the list of another server");
    }
    servers.kubectl(1, &["delete", "configmap", "c0"]).ok();
    assert!(servers.kubectl(2, &["get", "configmap", "c0"]).fails().contains("not found"));
}

fn one_of_many_creators_wins(servers: &Servers) {
    let won = scope(|s| {
        let create = |n| s.spawn(move || servers.kubectl(n, &["create", "namespace", "race"]).status == 0);
        let all: Vec<_> = (0..6).map(create).collect();
        all.into_iter().map(|t| t.join().expect("a thread")).filter(|won| *won).count()
    });
    assert_eq!(won, 1);
}

fn services_get_addresses_of_their_own(servers: &Servers) {
    scope(|s| {
        for t in 0..3 {
            s.spawn(move || {
                for n in 0..4 {
                    let name = format!("s{t}-{n}");
                    servers.kubectl(t, &["create", "service", "nodeport", &name, "--tcp=80"]).ok();
                }
            });
        }
    });
    let all = servers.json(0, &["get", "services"]);
    let items = all["items"].as_array().expect("items");
    let distinct = |pointer: &str| {
        let mut values: Vec<String> =
            items.iter().filter_map(|i| i.pointer(pointer)).map(Value::to_string).collect();
        values.sort();
        values.dedup();
        values.len()
    };
    assert_eq!((items.len(), distinct("/spec/clusterIP"), distinct("/spec/ports/0/nodePort")), (13, 13, 12));
    // A number that one server has given out is refused by another, and free again once a third has deleted it.
    let taken = items[1].pointer("/spec/clusterIP").expect("an address");
    let same = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "same" },
        "spec": { "clusterIP": taken, "ports": [{ "port": 80 }] },
    });
    let file = servers.machine.file("same.json", &same.to_string());
    let file = file.to_str().expect("a path");
    for server in 0..3 {
        let why = servers.kubectl(server, &["create", "-f", file]).fails();
        assert!(why.contains("provided IP is already allocated"), "{why}");
    }
    let owner = items[1]["metadata"]["name"].as_str().expect("a name");
    servers.kubectl(1, &["delete", "service", owner]).ok();
    retry("the address is free again", 20, || {
        let out = servers.kubectl(2, &["create", "-f", file]);
        (out.status == 0).then_some(()).ok_or(out.stderr)
    });
}

/// The ports of the API servers that Service `kubernetes` leads to.
fn endpoints(servers: &Servers, from: usize) -> BTreeSet<u64> {
    let endpoints = servers.json(from, &["get", "endpoints", "kubernetes"]);
    let subsets = endpoints["subsets"].as_array().cloned().unwrap_or_default();
    subsets.iter().filter_map(|subset| subset["ports"][0]["port"].as_u64()).collect()
}

fn every_server_is_an_endpoint_until_it_ends(mut servers: Servers) {
    let all: BTreeSet<u64> = PORTS.map(u64::from).into();
    let lead_to = |servers: &Servers, wanted: &BTreeSet<u64>, seconds: u64| {
        retry("the Service leads to those that serve", seconds, || {
            let found = endpoints(servers, 0);
            if found == *wanted { Ok(()) } else { Err(format!("{found:?}")) }
        });
    };
    lead_to(&servers, &all, 20);
    // They agree: nobody writes any more.
    let version = |servers: &Servers| {
        let of =
            |kind: &str| servers.json(1, &["get", kind, "kubernetes"])["metadata"]["resourceVersion"].clone();
        (of("endpoints"), of("endpointslices"))
    };
    let before = version(&servers);
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(version(&servers), before);
    // One that is told to end says so, long before its Lease is over; of one that is killed the others find out.
    servers.processes[2].terminate();
    lead_to(&servers, &BTreeSet::from([7001, 7002]), 5);
    servers.processes[1].kill();
    lead_to(&servers, &BTreeSet::from([7001]), 40);
    let leases =
        servers.json(0, &["get", "leases", "-n", "kube-system", "-l", "apiserver.kubernetes.io/identity"]);
    assert_eq!(leases["items"].as_array().map(Vec::len), Some(1), "{leases}");
}

mod leader;
mod sealed;

#[test]
fn three_api_servers_on_one_etcd_behave_as_one() {
    let servers = Servers::start();
    writes_of_one_are_read_from_the_others_at_once(&servers);
    one_of_many_creators_wins(&servers);
    services_get_addresses_of_their_own(&servers);
    every_server_is_an_endpoint_until_it_ends(servers);
}
