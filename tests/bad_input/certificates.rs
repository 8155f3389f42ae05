//! Certificates that expired or come from elsewhere.

use std::path::{Path, PathBuf};

use coracle_testkit::{Census, Machine, Output, kubectl, run};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};

use crate::{MAIN, nothing_left, refused, up};

fn pki(machine: &Machine, name: &str) -> PathBuf {
    machine.data(MAIN).join("pki").join(name)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).expect("a file of the cluster")
}

/// The administrator's names; valid in those years.
fn params(years: (i32, i32)) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "kubeadm:cluster-admins");
    params.distinguished_name.push(DnType::CommonName, "kubernetes-admin");
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = date_time_ymd(years.0, 1, 1);
    params.not_after = date_time_ymd(years.1, 1, 1);
    params
}

/// kubectl with a client certificate of the test's own and the cluster's CA.
fn kubectl_as(machine: &Machine, name: &str, cert: &str, key: &str, args: &[&str]) -> Output {
    let (cert, key) = (machine.file(&format!("{name}.crt"), cert), machine.file(&format!("{name}.key"), key));
    let mut command = machine.command(&kubectl());
    command.env("KUBECONFIG", "/dev/null").args(["--server", "https://127.0.0.1:6443"]);
    command.arg("--certificate-authority").arg(pki(machine, "ca.crt"));
    command.arg("--client-certificate").arg(cert).arg("--client-key").arg(key);
    run(command.args(args))
}

fn own_ca(machine: &Machine) -> Issuer<'static, KeyPair> {
    let key = KeyPair::from_pem(&read(&pki(machine, "ca.key"))).expect("a key");
    Issuer::from_ca_cert_pem(&read(&pki(machine, "ca.crt")), key).expect("the CA")
}

/// Client certificates, at a running cluster.
pub fn of_clients(machine: &Machine) {
    let key = KeyPair::generate().expect("a key");
    let pem = key.serialize_pem();
    let get = ["get", "--raw", "/api/v1/namespaces/default"];
    let valid = params((2020, 4000)).signed_by(&key, &own_ca(machine)).expect("signed").pem();
    assert!(kubectl_as(machine, "valid", &valid, &pem, &get).ok().contains("default"));
    let expired = params((2020, 2021)).signed_by(&key, &own_ca(machine)).expect("signed").pem();
    let foreign = params((2020, 4000)).self_signed(&key).expect("signed").pem();
    for (name, cert) in [("expired", expired), ("foreign", foreign)] {
        let said = kubectl_as(machine, name, &cert, &pem, &get).fails();
        assert!(said.contains("You must be logged in to the server"), "{name}: {said}");
        // A request without rights is not answered either, as upstream.
        let said = kubectl_as(machine, name, &cert, &pem, &["get", "--raw", "/version"]).fails();
        assert!(said.contains("You must be logged in to the server"), "{name}: {said}");
    }
    let mut wrong = machine.command(&kubectl());
    wrong.env("KUBECONFIG", "/dev/null").args(["--server", "https://127.0.0.1:6443", "--token", "guessed"]);
    wrong.arg("--certificate-authority").arg(pki(machine, "ca.crt")).args(get);
    assert!(run(&mut wrong).fails().contains("You must be logged in to the server"), "a wrong token");
    let other = machine.file("other-ca.crt", &params((2020, 4000)).self_signed(&key).expect("signed").pem());
    let mut wrong = machine.command(&kubectl());
    wrong.env("KUBECONFIG", "/dev/null").args(["--server", "https://127.0.0.1:6443", "--token", "x"]);
    let said = run(wrong.arg("--certificate-authority").arg(other).args(["get", "nodes"])).fails();
    assert!(said.contains("certificate"), "another cluster's CA: {said}");
}

#[test]
fn expired_leaf_is_renewed_at_the_start_and_an_expired_or_broken_ca_is_named() {
    let machine = Machine::new("pki");
    let before = Census::own(&machine);
    assert!(up(&machine).contains("made ca, front-proxy-ca, "));
    machine.kubectl(MAIN, &["create", "configmap", "kept", "--from-literal=a=b"]).ok();
    machine.coracle(MAIN, &["down"]).ok();

    let leaf = KeyPair::from_pem(&read(&pki(&machine, "apiserver.key"))).expect("a key");
    let expired = params((2020, 2021)).signed_by(&leaf, &own_ca(&machine)).expect("signed").pem();
    std::fs::write(pki(&machine, "apiserver.crt"), expired).expect("written");
    assert!(up(&machine).contains("made apiserver "), "only what expired");
    machine.kubectl(MAIN, &["get", "configmap", "kept"]).ok();
    machine.coracle(MAIN, &["down"]).ok();

    let mut ca = params((2020, 2021));
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::from_pem(&read(&pki(&machine, "ca.key"))).expect("a key");
    std::fs::write(pki(&machine, "ca.crt"), ca.self_signed(&key).expect("signed").pem()).expect("written");
    let words = ["CA certificate", "ca.crt expired at 2021-01-01", "clock", "remove both"];
    refused(machine.coracle(MAIN, &["up", "--detach"]), 1, &words);
    std::fs::write(pki(&machine, "ca.crt"), b"\xff\xfe").expect("written");
    refused(machine.coracle(MAIN, &["up", "--detach"]), 1, &["ca.crt cannot be used", "remove both"]);
    // What the message advises works, and nothing stored is lost.
    std::fs::remove_file(pki(&machine, "ca.crt")).expect("removed");
    std::fs::remove_file(pki(&machine, "ca.key")).expect("removed");
    assert!(up(&machine).contains("made ca, apiserver, admin"));
    machine.kubectl(MAIN, &["get", "configmap", "kept"]).ok();
    machine.coracle(MAIN, &["down", "--purge"]).ok();
    nothing_left(&machine, &before);
}
