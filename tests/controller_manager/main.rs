//! The controllers as a program of their own: ours on our API server and on upstream's, and upstream's on ours.
//! What a user sees is the same. The pairs with upstream's programs are left out unless ETCD, KUBE_APISERVER and
//! KUBE_CONTROLLER_MANAGER name them.

mod kubeadm;
mod servers;

use std::sync::atomic::{AtomicU32, Ordering};

use coracle_testkit::retry;
use serde_json::{Value, json};

use servers::{ControlPlane, Upstream};

/// Heartbeats of all nodes so far.
static BEATS: AtomicU32 = AtomicU32::new(0);

fn template(labels: &str, image: &str, restart: &str) -> String {
    format!(
        "{{ metadata: {{ labels: {{ {labels} }} }}, spec: {{ restartPolicy: {restart}, \
         containers: [{{ name: c, image: '{image}' }}] }} }}"
    )
}

const NODE: &str = "{ apiVersion: v1, kind: Node, metadata: { name: one } }";

/// Plays scheduler and kubelet once: the node lives, pods are bound, run and are ready, or have ended well if
/// they are a Job's, and what is being deleted goes.
fn kubelet(plane: &ControlPlane) {
    // Heartbeats only have to differ from each other.
    let beat = BEATS.fetch_add(1, Ordering::Relaxed);
    let at = format!("2020-01-01T{:02}:{:02}:{:02}Z", beat / 3600 % 24, beat / 60 % 60, beat % 60);
    let ready = json!({ "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "m",
        "lastHeartbeatTime": at, "lastTransitionTime": "2020-01-01T00:00:00Z" });
    let status = json!({ "status": { "conditions": [ready] } }).to_string();
    plane.run(&["patch", "node", "one", "--subresource=status", "-p", &status]).ok();
    let pods = plane.json("get pods -n work");
    // What is asked of a pod may be too late: then it is gone.
    for pod in pods["items"].as_array().into_iter().flatten() {
        let name = pod["metadata"]["name"].as_str().unwrap_or("");
        let is_job = pod["metadata"]["labels"]["job-name"].is_string();
        let phase = if is_job { "Succeeded" } else { "Running" };
        if pod["metadata"]["deletionTimestamp"].is_string() {
            plane.run(&["delete", "pod", name, "-n", "work", "--force", "--grace-period=0", "--wait=false"]);
            continue;
        }
        if !pod["spec"]["nodeName"].is_string() {
            let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": name },
                "target": { "kind": "Node", "name": "one" } });
            let file = plane.machine.file("binding.json", &binding.to_string());
            let path = format!("/api/v1/namespaces/work/pods/{name}/binding");
            plane.run(&["create", "--raw", &path, "-f", &file.display().to_string()]);
        }
        if pod["status"]["phase"] == phase {
            continue;
        }
        let ready = if is_job { "False" } else { "True" };
        let patch = json!({ "status": { "phase": phase, "podIP": "10.9.8.7", "podIPs": [{ "ip": "10.9.8.7" }],
            "conditions": [{ "type": "Ready", "status": ready, "lastTransitionTime": "2020-01-01T00:00:00Z" }] } });
        let patch = patch.to_string();
        plane.run(&[
            "patch",
            "pod",
            name,
            "-n",
            "work",
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ]);
    }
}

/// Plays the kubelet until it holds.
#[track_caller]
fn until<T>(plane: &ControlPlane, what: &str, mut holds: impl FnMut() -> Result<T, String>) -> T {
    retry(what, 90, || {
        kubelet(plane);
        holds()
    })
}

fn rolled_out(plane: &ControlPlane, what: &str) {
    until(plane, &format!("{what} is rolled out"), || {
        let out = plane.run(&["rollout", "status", what, "-n", "work", "--watch=false"]);
        if out.status == 0 && out.stdout.contains("rolled out") || out.stdout.contains("roll out complete") {
            Ok(())
        } else {
            Err(format!("{}{}", out.stdout, out.stderr))
        }
    });
}

fn names(plane: &ControlPlane, what: &str) -> Vec<String> {
    let list = plane.json(&format!("get {what} -n work"));
    let items = list["items"].as_array().cloned().unwrap_or_default();
    items.iter().map(|item| item["metadata"]["name"].as_str().unwrap_or("").to_owned()).collect()
}

fn a_namespace_is_furnished(plane: &ControlPlane) {
    plane.kubectl("create namespace work");
    plane.apply("node.yaml", NODE);
    retry("the namespace has its account and the root CA", 60, || {
        let all = plane.run(&["get", "serviceaccount/default", "configmap/kube-root-ca.crt", "-n", "work"]);
        (all.status == 0).then_some(()).ok_or(all.stderr)
    });
}

fn a_deployment_rolls_and_goes_back(plane: &ControlPlane) {
    let manifest = format!(
        "{{ apiVersion: apps/v1, kind: Deployment, metadata: {{ name: web, namespace: work }}, spec: {{ replicas: 3, \
         selector: {{ matchLabels: {{ app: web }} }}, template: {} }} }}\n---\n\
         {{ apiVersion: v1, kind: Service, metadata: {{ name: web, namespace: work }}, \
         spec: {{ selector: {{ app: web }}, ports: [{{ port: 80 }}] }} }}",
        template("app: web", "a:1", "Always")
    );
    plane.apply("web.yaml", &manifest);
    rolled_out(plane, "deployment/web");
    plane.kubectl("set image deployment/web c=a:2 -n work");
    rolled_out(plane, "deployment/web");
    plane.kubectl("rollout undo deployment/web -n work");
    rolled_out(plane, "deployment/web");
    let pods = plane.json("get pods -n work -l app=web");
    let images: Vec<&Value> = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .map(|pod| &pod["spec"]["containers"][0]["image"])
        .collect();
    assert_eq!(images, ["a:1", "a:1", "a:1"]);
    let web = plane.json("get deployment web -n work");
    let reasons: Vec<&str> = web["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|condition| condition["reason"].as_str())
        .collect();
    assert!(
        reasons.contains(&"NewReplicaSetAvailable") && reasons.contains(&"MinimumReplicasAvailable"),
        "{web}"
    );
    let managers: Vec<&str> = web["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|entry| entry["subresource"] == "status")
        .filter_map(|entry| entry["manager"].as_str())
        .collect();
    let shown = plane.kubectl("get deployment web -n work -o yaml --show-managed-fields");
    assert!(
        managers.contains(&"kube-controller-manager") || shown.contains("manager: kube-controller-manager")
    );
    retry("events name the controller", 30, || {
        let events = plane.json("get events -n work --field-selector reason=ScalingReplicaSet");
        let is_it = |event: &Value| event["source"]["component"] == "deployment-controller";
        events["items"]
            .as_array()
            .into_iter()
            .flatten()
            .any(is_it)
            .then_some(())
            .ok_or_else(|| events.to_string())
    });
    until(plane, "the Service has its endpoints", || {
        let slices = plane.json("get endpointslices -n work -l kubernetes.io/service-name=web");
        let ready = |slice: &Value| slice["endpoints"].as_array().map_or(0, Vec::len);
        let count: usize = slices["items"].as_array().into_iter().flatten().map(ready).sum();
        // All pods have one address here: they are told apart by their names.
        (count == 3).then_some(()).ok_or_else(|| slices.to_string())
    });
}

fn a_stateful_set_comes_up_in_order(plane: &ControlPlane) {
    let manifest = format!(
        "{{ apiVersion: apps/v1, kind: StatefulSet, metadata: {{ name: db, namespace: work }}, spec: {{ replicas: 3, \
         serviceName: db, selector: {{ matchLabels: {{ app: db }} }}, template: {} }} }}",
        template("app: db", "a:1", "Always")
    );
    plane.apply("db.yaml", &manifest);
    rolled_out(plane, "statefulset/db");
    let all: Vec<String> = names(plane, "pods").into_iter().filter(|name| name.starts_with("db-")).collect();
    assert_eq!(all, ["db-0", "db-1", "db-2"]);
}

fn a_job_completes_once(plane: &ControlPlane) {
    let manifest = format!(
        "{{ apiVersion: batch/v1, kind: Job, metadata: {{ name: sum, namespace: work }}, \
         spec: {{ completions: 3, parallelism: 2, template: {} }} }}",
        template("job: sum", "a:1", "Never")
    );
    plane.apply("sum.yaml", &manifest);
    let status = until(plane, "the Job is complete", || {
        let job = plane.json("get job sum -n work");
        let is_complete = |c: &Value| c["type"] == "Complete" && c["status"] == "True";
        let done = job["status"]["conditions"].as_array().into_iter().flatten().any(is_complete);
        if done { Ok(job["status"].clone()) } else { Err(job["status"].to_string()) }
    });
    assert_eq!((&status["succeeded"], &status["failed"]), (&json!(3), &Value::Null), "{status}");
}

fn a_quota_counts(plane: &ControlPlane) {
    plane.kubectl("create quota all --hard=configmaps=10,count/deployments.apps=5 -n work");
    retry("the quota is counted", 60, || {
        let used = plane.json("get quota all -n work")["status"]["used"].clone();
        let is_right = used["count/deployments.apps"] == "1" && used["configmaps"].is_string();
        if is_right { Ok(()) } else { Err(used.to_string()) }
    });
}

fn dependents_go_with_their_owner_unless_they_are_orphaned(plane: &ControlPlane) {
    plane.kubectl("delete deployment web -n work --cascade=orphan");
    let sets = names(plane, "replicasets");
    assert_eq!(sets.len(), 2, "{sets:?}");
    retry("the orphans have no owner", 60, || {
        let all = plane.json("get replicasets -n work");
        let owned = |set: &Value| set["metadata"]["ownerReferences"].is_array();
        let any = all["items"].as_array().into_iter().flatten().any(owned);
        if any { Err(all.to_string()) } else { Ok(()) }
    });
    plane.kubectl("delete replicasets --all -n work");
    plane.kubectl("delete statefulset db -n work --cascade=foreground --wait=false");
    until(plane, "their pods go", || {
        let left: Vec<String> =
            names(plane, "pods").into_iter().filter(|name| !name.starts_with("sum-")).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    retry("the StatefulSet goes after them", 60, || {
        let left = names(plane, "statefulsets");
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}

const DEFINITION: &str = "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: { name: boats.example.com }
spec:
  group: example.com
  scope: Namespaced
  names: { plural: boats, singular: boat, kind: Boat }
  versions: [{ name: v1, served: true, storage: true, schema: { openAPIV3Schema: { type: object } } }]
";

fn a_namespace_vanishes_with_all_that_is_in_it(plane: &ControlPlane) {
    plane.apply("boats.yaml", DEFINITION);
    plane.kubectl("wait --for=condition=Established crd/boats.example.com --timeout=60s");
    retry("a boat is made", 60, || {
        let path = plane.machine.file(
            "boat.yaml",
            "{ apiVersion: example.com/v1, kind: Boat, \
            metadata: { name: coracle, namespace: work, finalizers: [example.com/moored] } }",
        );
        let out = plane.run(&["apply", "-f", &path.display().to_string()]);
        (out.status == 0).then_some(()).ok_or(out.stderr)
    });
    plane.kubectl("delete namespace work --wait=false");
    until(plane, "the namespace says what holds it", || {
        let namespace = plane.json("get namespace work");
        let is_it = |c: &Value| {
            c["type"] == "NamespaceFinalizersRemaining"
                && c["status"] == "True"
                && c["message"]
                    .as_str()
                    .is_some_and(|m| m.contains("example.com/moored in 1 resource instances"))
        };
        let told = namespace["status"]["conditions"].as_array().into_iter().flatten().any(is_it);
        if told { Ok(()) } else { Err(namespace["status"].to_string()) }
    });
    plane
        .run(&[
            "patch",
            "boat",
            "coracle",
            "-n",
            "work",
            "--type=merge",
            "-p",
            r#"{"metadata":{"finalizers":null}}"#,
        ])
        .ok();
    retry("the namespace is gone", 90, || {
        let out = plane.run(&["get", "namespace", "work"]);
        (out.status != 0 && out.stderr.contains("not found")).then_some(()).ok_or(out.stdout)
    });
}

fn story(name: &str, apiserver: Option<&Upstream>, manager: Option<&Upstream>) {
    let mut plane = ControlPlane::start(name, apiserver, manager);
    a_namespace_is_furnished(&plane);
    a_deployment_rolls_and_goes_back(&plane);
    a_stateful_set_comes_up_in_order(&plane);
    plane.restart_manager(manager);
    a_job_completes_once(&plane);
    a_quota_counts(&plane);
    dependents_go_with_their_owner_unless_they_are_orphaned(&plane);
    a_namespace_vanishes_with_all_that_is_in_it(&plane);
}

#[test]
fn our_controllers_work_from_outside_our_api_server() {
    story("cm-own", None, None);
}

#[test]
fn our_controllers_work_on_upstreams_api_server() {
    match Upstream::find() {
        Some(upstream) => story("cm-on-up", Some(&upstream), None),
        None => eprintln!("left out: ETCD, KUBE_APISERVER and KUBE_CONTROLLER_MANAGER name no programs"),
    }
}

#[test]
fn upstreams_controllers_work_on_our_api_server() {
    match Upstream::find() {
        Some(upstream) => story("cm-up-on", None, Some(&upstream)),
        None => eprintln!("left out: ETCD, KUBE_APISERVER and KUBE_CONTROLLER_MANAGER name no programs"),
    }
}
