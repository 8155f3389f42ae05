//! Pods bound to a node that cannot take them.

use serde_json::{Value, json};

use crate::{Claim, Lab, shell};

pub const CLAIMS: &[Claim] = &[("refused: pods that do not fit", run)];

fn run(lab: &Lab) {
    let check = |name: &str, mut spec: Value, reason: &str, message: &str| {
        spec["nodeName"] = "n1".into();
        lab.pod(name, spec);
        let pod = lab.ended(name);
        let status = &pod["status"];
        assert_eq!(status["phase"], "Failed", "{status}");
        assert_eq!(status["reason"], reason, "{status}");
        assert!(status["message"].as_str().is_some_and(|m| m.starts_with(message)), "{status}");
        assert!(status["containerStatuses"].is_null(), "{status}");
        lab.event(name, reason, message.trim_start_matches("Pod was rejected: "));
        lab.kubectl(&format!("delete pod {name} --now"));
    };
    let mut big = shell("true");
    big["resources"] = json!({"requests": {"cpu": "999"}});
    check(
        "toobig",
        json!({"containers": [big]}),
        "OutOfcpu",
        "Pod was rejected: Node didn't have enough resource: cpu, requested: 999000, used: ",
    );
    check(
        "elsewhere",
        json!({"containers": [shell("true")], "nodeSelector": {"where": "else"}}),
        "NodeAffinity",
        "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
    );
    check(
        "tuned",
        json!({"containers": [shell("true")],
            "securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}),
        "SysctlForbidden",
        "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted",
    );
}
