//! Helm installs, tests, upgrades, rolls back and uninstalls a chart with a definition, hooks and one of every kind that
//! charts have.

use std::path::Path;

use coracle_testkit::{Output, run, tool};
use serde_json::Value;

use crate::{Cluster, MAIN};

impl Cluster {
    fn helm(&self, args: &[&str]) -> Output {
        let mut command = self.machine.command(&tool("helm"));
        command.env("KUBECONFIG", self.machine.data(MAIN).join("kubeconfig"));
        // Nothing is read from or left in anybody's home.
        for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(name, self.machine.dir().join("helm"));
        }
        run(command.args(args))
    }

    /// Status of a release's revisions, by number.
    fn history(&self) -> Vec<(u64, String)> {
        let text = self.helm(&["history", "shop", "-o", "json"]).ok();
        let all: Vec<Value> = serde_json::from_str(&text).expect("JSON");
        let one =
            |r: &Value| (r["revision"].as_u64().unwrap_or(0), r["status"].as_str().unwrap_or("").to_owned());
        all.iter().map(one).collect()
    }

    fn greeting(&self) -> String {
        self.json(&["get", "configmap", "shop"])["data"]["greeting"].as_str().unwrap_or_default().to_owned()
    }
}

fn chart() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/chart").display().to_string()
}

const KINDS: &str = "deploy,svc,cm,secret,sa,role,rolebinding,pdb,ingress,prices.shop.example.com";

#[test]
fn helm_installs_tests_upgrades_rolls_back_and_uninstalls() {
    let cluster = Cluster::start("helm");
    let chart = chart();
    let wait = ["--wait", "--timeout", "120s"];
    let with = |args: &[&str]| cluster.helm(&[args, &wait[..]].concat());

    with(&["install", "shop", &chart]).ok();
    assert_eq!(cluster.history(), [(1, "deployed".to_owned())]);
    let made = cluster.json(&["get", KINDS, "-l", "app.kubernetes.io/managed-by=Helm"]);
    assert_eq!(made["items"].as_array().expect("items").len(), 10, "{made}");
    let price = cluster.json(&["get", "prices.shop.example.com", "shop"]);
    assert_eq!((&price["spec"]["cents"], &price["spec"]["currency"]), (&100.into(), &"EUR".into()));
    let hook = cluster.json(&["get", "job", "shop-prepare"]);
    assert_eq!(hook["status"]["succeeded"], 1, "the hook ran before the installation");
    assert!(cluster.helm(&["test", "shop", "--timeout", "120s"]).ok().contains("Succeeded"));

    with(&["upgrade", "shop", &chart, "--set", "replicas=2,greeting=welcome"]).ok();
    assert_eq!((cluster.greeting().as_str(), cluster.history().len()), ("welcome", 2));
    let deployment = cluster.json(&["get", "deploy", "shop"]);
    assert_eq!(deployment["status"]["readyReplicas"], 2, "Helm waited for them");
    assert_eq!(cluster.json(&["get", "prices.shop.example.com", "shop"])["spec"]["cents"], 200);

    // A chart that the API refuses, and one whose hook fails, leave what runs as it is.
    let refused = with(&["upgrade", "shop", &chart, "--reuse-values", "--set", "replicas=-1"]).fails();
    assert!(refused.contains("must be greater than or equal to 0"), "{refused}");
    let failed = with(&["upgrade", "shop", &chart, "--set", "broken=true,greeting=never"]).fails();
    assert!(failed.contains("pre-upgrade"), "{failed}");
    assert_eq!(cluster.greeting(), "welcome");
    let last = |history: Vec<(u64, String)>| history.into_iter().next_back().map(|(_, status)| status);
    assert_eq!(last(cluster.history()).as_deref(), Some("failed"));

    with(&["rollback", "shop", "1"]).ok();
    assert_eq!(
        (cluster.greeting().as_str(), last(cluster.history()).as_deref()),
        ("hello", Some("deployed"))
    );
    assert_eq!(cluster.json(&["get", "deploy", "shop"])["spec"]["replicas"], 1);
    assert!(cluster.helm(&["get", "values", "shop"]).ok().contains("null"));
    assert!(cluster.helm(&["status", "shop"]).ok().contains("STATUS: deployed"));

    with(&["uninstall", "shop"]).ok();
    let left = cluster.json(&["get", KINDS, "-l", "app.kubernetes.io/managed-by=Helm"]);
    assert_eq!(left["items"].as_array().map(Vec::len), Some(0), "{left}");
    cluster.served("prices.shop.example.com");
    cluster.end();
}
