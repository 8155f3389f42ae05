//! StatefulSet, DaemonSet, Job and CronJob with the real kubectl and real containers.

mod autoscaler;
mod cluster;
mod release;

use coracle_testkit::{Machine, busybox_archive, retry, run};
use serde_json::Value;

/// The cluster's name in the test's directory.
const MAIN: &str = "main";
const IMAGE: &str = "test.example/busybox:1";

struct Story {
    machine: Machine,
}

impl Story {
    #[track_caller]
    fn kubectl(&self, args: &str) -> String {
        let args: Vec<&str> = args.split_whitespace().collect();
        self.machine.kubectl(MAIN, &args).ok()
    }

    #[track_caller]
    fn json(&self, args: &str) -> Value {
        serde_json::from_str(&self.kubectl(&format!("{args} -o json"))).expect("kubectl prints JSON")
    }

    #[track_caller]
    fn apply(&self, name: &str, manifest: &str) {
        let path = self.machine.file(name, &manifest.replace("IMAGE", IMAGE)).display().to_string();
        self.machine.kubectl(MAIN, &["apply", "-f", &path]).ok();
    }

    /// Names, images and readiness of pods with a label, by name.
    fn pods(&self, label: &str) -> Vec<Value> {
        let list = self.json(&format!("get pods -l {label}"));
        let live = |p: &&Value| p["metadata"]["deletionTimestamp"].is_null();
        list["items"].as_array().into_iter().flatten().filter(live).cloned().collect()
    }
}

fn name(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().unwrap_or("")
}

#[test]
fn every_kind_of_workload_runs_updates_and_goes_back() {
    let machine = Machine::new("workloads");
    let story = Story { machine };
    let up = [&["up", "--detach", "--node-name", "one"], &autoscaler::QUICK[..]].concat();
    story.machine.coracle(MAIN, &up).ok();
    let archive = story.machine.dir().join("busybox.tar");
    busybox_archive(&archive, &[IMAGE, "test.example/busybox:2"], &["sh"]);
    let path = archive.display().to_string();
    run(story
        .machine
        .command(&coracle_testkit::coracle())
        .args(["image", "import", &path, "--data-dir"])
        .arg(story.machine.data(MAIN)))
    .ok();
    stateful_set(&story);
    daemon_set(&story);
    job(&story);
    indexed_job(&story);
    failed_job(&story);
    cron_job(&story);
    replication_controller(&story);
    disruption_budget(&story);
    release::a_rollout_is_followed_and_taken_back(&story);
    release::every_fault_is_named_in_a_sentence(&story);
    release::other_workloads_are_followed_too(&story);
    release::a_deployment_goes_back_to_what_was_ready(&story);
    autoscaler::load_scales_up(&story);
    token_in_a_secret(&story);
    cluster::load_balancer_answers_on_the_node(&story);
    cluster::a_policy_is_checked_against_the_kinds_it_is_for(&story);
    story.machine.coracle(MAIN, &["down", "--purge"]).ok();
}

const STATEFUL: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: peers }
spec: { clusterIP: None, selector: { app: db }, ports: [{ port: 80 }] }
---
apiVersion: apps/v1
kind: StatefulSet
metadata: { name: db }
spec:
  replicas: 3
  serviceName: peers
  selector: { matchLabels: { app: db } }
  template:
    metadata: { labels: { app: db } }
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{ name: c, image: IMAGE, command: [sh, -c, "hostname; exec sleep 9999"] }]
"#;

fn stateful_set(story: &Story) {
    story.apply("db.yaml", STATEFUL);
    story.kubectl("rollout status sts/db --timeout=120s");
    let pods = story.pods("app=db");
    assert_eq!(pods.iter().map(name).collect::<Vec<_>>(), ["db-0", "db-1", "db-2"]);
    let started = |pod: &Value| pod["status"]["startTime"].as_str().unwrap_or("").to_owned();
    assert!(started(&pods[0]) <= started(&pods[1]) && started(&pods[1]) <= started(&pods[2]), "in order");
    assert_eq!(story.kubectl("logs db-1"), "db-1\n", "the host name is the pod's");
    story.kubectl("set image sts/db c=test.example/busybox:2");
    story.kubectl("rollout status sts/db --timeout=120s");
    let image = |pod: &Value| pod["spec"]["containers"][0]["image"].clone();
    assert!(story.pods("app=db").iter().all(|pod| image(pod) == "test.example/busybox:2"));
    let history = story.kubectl("rollout history sts/db");
    assert!(
        history.lines().any(|l| l.starts_with("1 ")) && history.lines().any(|l| l.starts_with("2 ")),
        "{history}"
    );
    story.kubectl("rollout undo sts/db");
    story.kubectl("rollout status sts/db --timeout=120s");
    assert!(story.pods("app=db").iter().all(|pod| image(pod) == IMAGE), "undo brings the first image back");
    story.kubectl("scale sts/db --replicas=1");
    retry("scaled down from the top", 60, || {
        let pods = story.pods("app=db");
        if pods.iter().map(name).eq(["db-0"]) { Ok(()) } else { Err(format!("{} pods", pods.len())) }
    });
    let events = story.kubectl("get events --field-selector involvedObject.kind=StatefulSet");
    assert!(events.contains("Create Pod db-0 in StatefulSet db successful"), "{events}");
    story.kubectl("delete sts/db svc/peers");
}

const DAEMON: &str = r#"
apiVersion: apps/v1
kind: DaemonSet
metadata: { name: agent }
spec:
  selector: { matchLabels: { app: agent } }
  template:
    metadata: { labels: { app: agent } }
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{ name: c, image: IMAGE, command: [sleep, "9999"] }]
"#;

fn daemon_set(story: &Story) {
    story.apply("agent.yaml", DAEMON);
    story.kubectl("rollout status ds/agent --timeout=60s");
    assert_eq!(story.pods("app=agent").len(), 1);
    story.kubectl("set image ds/agent c=test.example/busybox:2");
    story.kubectl("rollout status ds/agent --timeout=60s");
    story.kubectl("rollout undo ds/agent");
    story.kubectl("rollout status ds/agent --timeout=60s");
    let pods = story.pods("app=agent");
    assert_eq!(pods[0]["spec"]["containers"][0]["image"], IMAGE);
    let patch = r#"{"spec":{"template":{"spec":{"nodeSelector":{"disk":"none"}}}}}"#;
    story.machine.kubectl(MAIN, &["patch", "ds", "agent", "-p", patch]).ok();
    retry("no node is selected", 60, || {
        let left = story.pods("app=agent").len();
        if left == 0 { Ok(()) } else { Err(format!("{left} pods")) }
    });
    story.kubectl("label node one disk=none");
    retry("the node is selected", 60, || {
        let pods = story.pods("app=agent");
        if pods.len() == 1 { Ok(()) } else { Err(format!("{} pods", pods.len())) }
    });
    story.kubectl("delete ds/agent");
}

fn job(story: &Story) {
    story.apply(
        "job.yaml",
        r#"
apiVersion: batch/v1
kind: Job
metadata: { name: pi }
spec:
  completions: 3
  parallelism: 2
  template:
    spec:
      restartPolicy: Never
      containers: [{ name: c, image: IMAGE, command: [sh, -c, "echo 3.14"] }]
"#,
    );
    story.kubectl("wait --for=condition=complete job/pi --timeout=120s");
    let job = story.json("get job pi");
    assert_eq!((job["status"]["succeeded"].as_i64(), job["status"]["failed"].as_i64()), (Some(3), None));
    assert!(job["status"]["completionTime"].is_string());
    let pods = story.pods("job-name=pi");
    assert_eq!(pods.len(), 3);
    assert!(pods.iter().all(|pod| pod["metadata"]["finalizers"].is_null()), "counted pods are free to go");
    story.kubectl("delete job/pi");
    retry("the pods go with the job", 60, || {
        let left = story.pods("job-name=pi").len();
        if left == 0 { Ok(()) } else { Err(format!("{left} pods")) }
    });
}

fn indexed_job(story: &Story) {
    story.apply(
        "indexed.yaml",
        r#"
apiVersion: batch/v1
kind: Job
metadata: { name: parts }
spec:
  completions: 3
  parallelism: 3
  completionMode: Indexed
  ttlSecondsAfterFinished: 5
  template:
    spec:
      restartPolicy: Never
      containers: [{ name: c, image: IMAGE, command: [sh, -c, "echo part $JOB_COMPLETION_INDEX"] }]
"#,
    );
    story.kubectl("wait --for=condition=complete job/parts --timeout=120s");
    assert_eq!(story.json("get job parts")["status"]["completedIndexes"], "0-2");
    let pods = story.pods("batch.kubernetes.io/job-completion-index=2");
    assert_eq!(story.kubectl(&format!("logs {}", name(&pods[0]))), "part 2\n");
    story.kubectl("wait --for=delete job/parts --timeout=60s");
}

fn failed_job(story: &Story) {
    story.apply(
        "bad.yaml",
        r#"
apiVersion: batch/v1
kind: Job
metadata: { name: bad }
spec:
  backoffLimit: 0
  podFailurePolicy:
    rules:
      - { action: FailJob, onExitCodes: { operator: In, values: [42] } }
  template:
    spec:
      restartPolicy: Never
      containers: [{ name: c, image: IMAGE, command: [sh, -c, "exit 42"] }]
"#,
    );
    story.kubectl("wait --for=condition=failed job/bad --timeout=60s");
    let job = story.json("get job bad");
    let failed = job["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Failed");
    let failed = failed.expect("the condition").clone();
    assert_eq!(failed["reason"], "PodFailurePolicy");
    let message = failed["message"].as_str().unwrap_or("");
    assert!(message.contains("failed with exit code 42 matching FailJob rule at index 0"), "{message}");
    story.kubectl("delete job/bad");
}

fn cron_job(story: &Story) {
    story
        .machine
        .kubectl(
            MAIN,
            &["create", "cronjob", "tick", "--image", IMAGE, "--schedule", "* * * * *", "--", "date"],
        )
        .ok();
    // At the longest until the next minute begins; by hand it goes at once.
    story.kubectl("create job now --from=cronjob/tick");
    story.kubectl("wait --for=condition=complete job/now --timeout=60s");
    let jobs = || {
        let all = story.json("get jobs");
        let mut found: Vec<Value> = all["items"].as_array().cloned().unwrap_or_default();
        found.retain(|j| j["metadata"]["name"].as_str().is_some_and(|n| n.starts_with("tick-")));
        found
    };
    let started = retry("the first tick", 90, || jobs().into_iter().next().ok_or_else(|| "none".to_owned()));
    let at = &started["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"];
    assert!(at.as_str().is_some_and(|at| at.ends_with(":00Z")), "{at}");
    story.kubectl(&format!("wait --for=condition=complete job/{} --timeout=60s", name(&started)));
    retry("the list of active jobs", 30, || {
        let cron = story.json("get cronjob tick");
        let status = &cron["status"];
        if status["lastSuccessfulTime"].is_string() { Ok(()) } else { Err(status.to_string()) }
    });
    story.kubectl("delete cronjob/tick");
    story.kubectl("wait --for=delete job/now --timeout=60s");
}

fn replication_controller(story: &Story) {
    story.apply(
        "rc.yaml",
        r#"
apiVersion: v1
kind: ReplicationController
metadata: { name: old }
spec:
  replicas: 2
  selector: { app: old }
  template:
    metadata: { labels: { app: old } }
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{ name: c, image: IMAGE, command: [sleep, "9999"] }]
"#,
    );
    retry("both pods are ready", 60, || {
        let ready = story.json("get rc old")["status"]["readyReplicas"].as_i64();
        if ready == Some(2) { Ok(()) } else { Err(format!("{ready:?}")) }
    });
    story.kubectl("scale rc/old --replicas=1");
    retry("one pod is left", 60, || {
        let left = story.pods("app=old").len();
        if left == 1 { Ok(()) } else { Err(format!("{left} pods")) }
    });
}

fn disruption_budget(story: &Story) {
    story
        .machine
        .kubectl(MAIN, &["create", "pdb", "old", "--selector", "app=old", "--min-available", "1"])
        .ok();
    retry("the budget's status", 30, || {
        let status = story.json("get pdb old")["status"].clone();
        let numbers = (status["currentHealthy"].as_i64(), status["disruptionsAllowed"].as_i64());
        if numbers == (Some(1), Some(0)) { Ok(()) } else { Err(status.to_string()) }
    });
    story.kubectl("delete pdb/old rc/old");
}

fn token_in_a_secret(story: &Story) {
    story.kubectl("create serviceaccount robot");
    story.kubectl("create clusterrolebinding robot --clusterrole=view --serviceaccount=default:robot");
    story.apply(
        "token.yaml",
        r#"
apiVersion: v1
kind: Secret
metadata: { name: robot, annotations: { kubernetes.io/service-account.name: robot } }
type: kubernetes.io/service-account-token
"#,
    );
    let token = retry("the Secret gets its token", 30, || {
        let token =
            story.kubectl("get secret robot -o go-template={{if(.data)}}{{.data.token|base64decode}}{{end}}");
        if token.is_empty() { Err("none yet".to_owned()) } else { Ok(token) }
    });
    // A token beside the administrator's certificate would not count: it goes without that.
    let config = story.machine.data(MAIN).join("kubeconfig");
    let text = std::fs::read_to_string(config).expect("a kubeconfig");
    let kept = |line: &&str| !line.contains("client-certificate-data") && !line.contains("client-key-data");
    let bare = story.machine.file("bare.yaml", &text.lines().filter(kept).collect::<Vec<_>>().join("\n"));
    let mut whoami = story.machine.command(&coracle_testkit::kubectl());
    whoami.args(["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}", "--token", &token]);
    let name = run(whoami.arg("--kubeconfig").arg(bare)).ok();
    assert_eq!(name, "system:serviceaccount:default:robot");
    story.kubectl("delete serviceaccount robot");
    story.kubectl("wait --for=delete secret/robot --timeout=30s");
    story.kubectl("delete clusterrolebinding robot");
}
