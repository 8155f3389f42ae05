//! The Python client does what its own tests do: `everyday.py`.

use std::path::Path;

use coracle_testkit::{run, tool};

use crate::{Cluster, MAIN};

#[test]
fn the_python_client_does_its_everyday_work() {
    let cluster = Cluster::start("python");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/everyday.py");
    let mut command = cluster.machine.command(Path::new("python3"));
    command
        .env("PYTHONPATH", tool("python"))
        .env("KUBECONFIG", cluster.machine.data(MAIN).join("kubeconfig"));
    let told = run(command.arg(script)).ok();
    assert!(told.contains("everything went well"), "{told}");
    cluster.end();
}
