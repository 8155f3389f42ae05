//! kubectl of the minor version before ours, of ours and of the one after it: what each uses of the API.

use coracle_testkit::{Output, retry, run, tool};
use serde_json::Value;

use crate::{Cluster, MAIN};

const VERSIONS: [&str; 3] = ["kubectl-1.35", "kubectl", "kubectl-1.37"];

/// One kubectl at the cluster, in a namespace of its own.
struct Client<'c> {
    cluster: &'c Cluster,
    program: &'static str,
    namespace: String,
}

impl Client<'_> {
    fn run(&self, args: &str) -> Output {
        let mut command = self.cluster.machine.command(&tool(self.program));
        command.env("KUBECONFIG", self.cluster.machine.data(MAIN).join("kubeconfig"));
        command.env("KUBECTL_COMMAND_HEADERS", "true").args(["--namespace", &self.namespace]);
        run(command.args(args.split_whitespace()))
    }

    #[track_caller]
    fn ok(&self, args: &str) -> String {
        let out = self.run(args);
        assert_eq!(out.status, 0, "{} {args}: {}{}", self.program, out.stdout, out.stderr);
        out.stdout
    }

    #[track_caller]
    fn says(&self, args: &str, text: &str) {
        let out = self.ok(args);
        assert!(out.contains(text), "{} {args}: no {text:?} in {out}", self.program);
    }

    fn file(&self, name: &str, content: &str) -> String {
        self.cluster.machine.file(&format!("{}-{name}", self.program), content).display().to_string()
    }
}

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: { name: web, labels: { app: web } }
spec:
  replicas: 2
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{ name: web, image: coracle.local/self, command: [/coracle, demo, serve] }]
---
apiVersion: v1
kind: ConfigMap
metadata: { name: extra, labels: { app: web } }
data: { a: b }
";

const GADGET: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: { name: gadgets.GROUP }
spec:
  group: GROUP
  scope: Namespaced
  names: { plural: gadgets, singular: gadget, kind: Gadget, shortNames: [gd] }
  versions:
  - name: v1
    served: true
    storage: true
    subresources: { status: {}, scale: { specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas } }
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties: { replicas: { type: integer, description: How many gadgets there are. } }
          status: { type: object, properties: { replicas: { type: integer } } }
";

fn reads(client: &Client<'_>) {
    client.says("version", "Server Version: v1.36");
    client.says("api-resources --api-group=apps", "deployments");
    client.says("api-versions", "resource.k8s.io/v1");
    client.says("explain pod.spec.containers.resizePolicy", "resizePolicy");
    client.says("explain deployment --api-version=apps/v1 --recursive", "progressDeadlineSeconds");
    client.says("auth can-i --list", "*.*");
    client.says("auth whoami", "kubernetes-admin");
    client.says("cluster-info", "Kubernetes control plane");
    client.says("get nodes -o wide", "control-plane");
    client.says("get --raw /readyz?verbose", "readyz check passed");
    client.says("describe node one", "Allocatable");
}

fn applies(client: &Client<'_>) {
    let web = client.file("web.yaml", WEB);
    client.ok(&format!("apply -f {web}"));
    client.ok("rollout status deploy/web --timeout=90s");
    client.says(&format!("apply --server-side --force-conflicts -f {web}"), "serverside-applied");
    assert_eq!(client.run(&format!("diff -f {web}")).status, 0, "nothing differs");
    let changed = client.file("changed.yaml", &WEB.replace("replicas: 2", "replicas: 3"));
    let differs = client.run(&format!("diff -f {changed}"));
    assert!(differs.status == 1 && differs.stdout.contains("+  replicas: 3"), "{differs:?}");
    let without = client.file("without.yaml", WEB.split("---").next().unwrap_or_default());
    client.says(
        &format!("apply --prune -l app=web --prune-allowlist=core/v1/ConfigMap -f {without}"),
        "configmap/extra pruned",
    );
    client.ok("set env deploy/web A=b");
    client.ok("scale deploy/web --replicas=1");
    client.ok("wait --for=jsonpath={.status.readyReplicas}=1 deploy/web --timeout=90s");
    client.says("rollout history deploy/web", "REVISION");
    client.ok("rollout undo deploy/web");
    client.ok("rollout restart deploy/web");
    client.ok("rollout status deploy/web --timeout=90s");
    client.ok("label deploy/web tier=front");
    client.ok("annotate deploy/web note=x");
    client.says("get deploy -l tier=front -o name", "deployment.apps/web");
    client.ok("autoscale deploy/web --max=3");
    client.ok("create quota q --hard=pods=10");
    client.says("describe quota q", "pods");
    client.says("events --for deploy/web", "ScalingReplicaSet");
    client.says("create token default", ".");
}

fn reaches_containers(client: &Client<'_>) {
    client.ok("run one --image=coracle.local/self --restart=Never --command -- /coracle demo serve");
    client.ok("wait --for=condition=Ready pod/one --timeout=90s");
    client.says("exec one -- /coracle --version", "coracle");
    client.ok("logs one");
    client.says("get pod one -o jsonpath={.status.phase}", "Running");
    client.says("debug one --image=coracle.local/self --container=look -- /coracle --version", "");
    retry("the ephemeral container has said it", 60, || {
        let out = client.run("logs one -c look");
        if out.stdout.contains("coracle") { Ok(()) } else { Err(out.stderr) }
    });
    client.ok("delete pod one --now");
}

fn custom_resources(client: &Client<'_>) {
    let group = format!("{}.example.com", client.namespace);
    let definition = client.file("gadgets.yaml", &GADGET.replace("GROUP", &group));
    client.ok(&format!("create -f {definition}"));
    client.ok(&format!("wait --for=condition=Established crd/gadgets.{group} --timeout=60s"));
    let gadget =
        format!("apiVersion: {group}/v1\nkind: Gadget\nmetadata: {{ name: g }}\nspec: {{ replicas: 1 }}\n");
    let gadget = client.file("gadget.yaml", &gadget);
    client.ok(&format!("apply -f {gadget}"));
    client.says(&format!("explain gadgets.{group}.spec.replicas"), "How many gadgets there are.");
    client.ok(&format!("scale gadgets.{group}/g --replicas=4"));
    client.says(&format!("get gadgets.{group} g -o jsonpath={{.spec.replicas}}"), "4");
    let wrong = client.file(
        "wrong.yaml",
        &format!("apiVersion: {group}/v1\nkind: Gadget\nmetadata: {{ name: w }}\nspec: {{ x: 1 }}\n"),
    );
    let refused = client.run(&format!("create -f {wrong}")).fails();
    assert!(refused.contains("unknown field \"spec.x\""), "{refused}");
    client.ok(&format!("delete crd gadgets.{group}"));
}

#[test]
fn kubectl_of_three_versions_does_its_everyday_work() {
    let cluster = Cluster::start("kubectl");
    std::thread::scope(|scope| {
        for (number, program) in VERSIONS.into_iter().enumerate() {
            let cluster = &cluster;
            scope.spawn(move || {
                let client = Client { cluster, program, namespace: format!("n{number}") };
                client.ok(&format!("create namespace {}", client.namespace));
                retry("the service account is there", 60, || {
                    let out = client.run("get serviceaccount default");
                    (out.status == 0).then_some(()).ok_or(out.stderr)
                });
                reads(&client);
                applies(&client);
                reaches_containers(&client);
                custom_resources(&client);
                client.ok(&format!("delete namespace {} --timeout=90s", client.namespace));
            });
        }
    });
    let left: Value = cluster.json(&["get", "namespaces"]);
    let names: Vec<_> =
        left["items"].as_array().into_iter().flatten().map(|n| &n["metadata"]["name"]).collect();
    assert!(!names.iter().any(|n| **n == "n0" || **n == "n1" || **n == "n2"), "{names:?}");
    cluster.end();
}
