//! Our binary in the place of kubeadm's static pods: called by upstream's names, with the flags of its manifests.

use coracle_testkit::retry;
use serde_json::Value;

use crate::servers::ControlPlane;

/// Flags of kubeadm's manifest of kube-controller-manager; `DIR` is where it keeps certificates and kubeconfigs.
const MANAGER: &str = "--allocate-node-cidrs=true --authentication-kubeconfig=DIR/kubeconfig \
    --authorization-kubeconfig=DIR/kubeconfig --bind-address=127.0.0.1 --client-ca-file=DIR/ca.crt \
    --cluster-cidr=10.244.0.0/16 --cluster-name=kubernetes --cluster-signing-cert-file=DIR/ca.crt \
    --cluster-signing-key-file=DIR/ca.key --controllers=*,bootstrapsigner,tokencleaner --kubeconfig=DIR/kubeconfig \
    --leader-elect=true --requestheader-client-ca-file=DIR/ca.crt --root-ca-file=DIR/ca.crt \
    --service-account-private-key-file=DIR/sa.key --service-cluster-ip-range=10.96.0.0/16 \
    --use-service-account-credentials=true --v=2";
/// The same of kube-scheduler.
const SCHEDULER: &str = "--authentication-kubeconfig=DIR/kubeconfig --authorization-kubeconfig=DIR/kubeconfig \
    --bind-address=127.0.0.1 --kubeconfig=DIR/kubeconfig --leader-elect=true";

const WORK: &str = "
{ apiVersion: v1, kind: Node, metadata: { name: one }, status: { allocatable: { cpu: '4', memory: 8Gi, pods: '110' } } }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: web }
spec:
  replicas: 2
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec: { tolerations: [{ operator: Exists }], containers: [{ name: c, image: i }] }
";

fn flags(plane: &ControlPlane, list: &str) -> Vec<String> {
    let dir = plane.machine.dir().display().to_string();
    list.split_whitespace().map(|flag| flag.replace("DIR", &dir)).collect()
}

#[test]
fn kubeadms_static_pods_run_with_our_binary() {
    let mut plane = ControlPlane::serve("cm-kubeadm", None);
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().expect("a key");
    plane.machine.file("ca.crt", &ca.self_signed(&key).expect("a certificate").pem());
    plane.machine.file("ca.key", &key.serialize_pem());
    let (manager, scheduler) = (flags(&plane, MANAGER), flags(&plane, SCHEDULER));
    plane.start_program("kube-controller-manager", &manager);
    plane.start_program("kube-scheduler", &scheduler);
    plane.apply("work.yaml", WORK);
    retry("the Deployment's pods are on the node", 90, || {
        let pods = plane.json("get pods -l app=web");
        let placed = |pod: &&Value| pod["spec"]["nodeName"] == "one";
        let placed = pods["items"].as_array().into_iter().flatten().filter(placed).count();
        (placed == 2).then_some(()).ok_or_else(|| pods.to_string())
    });
    for (port, path) in [(10257, "/healthz"), (10259, "/livez"), (10259, "/readyz")] {
        assert_eq!(plane.ask(port, path, "admintoken").ok(), "ok", "{path}");
    }
    for (port, program) in [(10257, "kube-controller-manager"), (10259, "kube-scheduler")] {
        let metrics = plane.ask(port, "/metrics", "admintoken").ok();
        let leads = format!("leader_election_master_status{{name=\"{program}\"}} 1");
        assert!(metrics.contains(&leads), "{metrics}");
        let holder = plane.json(&format!("get lease {program} -n kube-system"));
        assert!(holder["spec"]["holderIdentity"].is_string(), "{holder}");
        let refused = plane.ask(port, "/metrics", "nonsense");
        assert!(refused.status != 0 && refused.stderr.contains("Unauthorized"), "{}", refused.stderr);
    }
    let config = plane.ask(10259, "/configz", "admintoken").ok();
    assert!(config.contains("kubescheduler.config.k8s.io"), "{config}");
}
