//! Who containers run as and what they may do.

use serde_json::json;

use crate::{Claim, Lab, shell};

pub const CLAIMS: &[Claim] = &[
    ("security: users and groups", users_and_groups),
    ("security: rights", rights),
    ("security: refusals", refusals),
];

fn users_and_groups(lab: &Lab) {
    let printed = lab.output(
        "ids",
        json!({"securityContext": {"runAsUser": 1001, "runAsGroup": 2002, "fsGroup": 3003,
                "supplementalGroups": [4004], "supplementalGroupsPolicy": "Strict"},
            "containers": [{"name": "main",
                "command": ["sh", "-c", "id -u; id -g; id -G; stat -c %g /v; touch /v/x; stat -c %g /v/x"],
                "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "volumes": [{"name": "v", "emptyDir": {}}]}),
    );
    assert_eq!(printed, "1001\n2002\n2002 3003 4004\n3003\n3003\n");
    let user = &lab.get("pod", "ids")["status"]["containerStatuses"][0]["user"]["linux"];
    assert_eq!((&user["uid"], &user["gid"]), (&json!(1001), &json!(2002)), "{user}");
}

fn rights(lab: &Lab) {
    let status = "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status";
    let with = |name: &str, context: serde_json::Value, script: &str| {
        let mut main = shell(script);
        main["securityContext"] = context;
        lab.output(name, json!({"containers": [main]}))
    };
    let plain = with("plain", json!({}), status);
    assert!(plain.contains("CapEff:\t00000000a80425fb") && plain.contains("NoNewPrivs:\t0"), "{plain}");
    assert!(plain.contains("Seccomp:\t0"), "no profile unless asked for: {plain}");
    let strict = json!({"allowPrivilegeEscalation": false, "seccompProfile": {"type": "RuntimeDefault"},
        "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}});
    let strict = with("strict", strict, status);
    assert!(strict.contains("CapEff:\t0000000000000400") && strict.contains("NoNewPrivs:\t1"), "{strict}");
    assert!(strict.contains("Seccomp:\t2"), "{strict}");
    let fixed = with("fixed", json!({"readOnlyRootFilesystem": true}), "touch /x 2>&1; true");
    assert!(fixed.contains("Read-only file system"), "{fixed}");
    let free = with("free", json!({"privileged": true}), "grep CapEff /proc/self/status; ls /dev | wc -l");
    assert!(!free.contains("00000000a80425fb"), "{free}");

    let profiles = lab.machine.data(crate::MAIN).join("kubelet/seccomp");
    std::fs::create_dir_all(&profiles).expect("the kubelet's directory");
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}"#;
    std::fs::write(profiles.join("nodirs.json"), profile).expect("a profile");
    let local = json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "nodirs.json"}});
    let local = with("local", local, "mkdir /tmp/x 2>&1; echo made > /tmp/y; cat /tmp/y");
    assert!(local.contains("Operation not permitted") && local.ends_with("made\n"), "{local}");
    let sysctl = lab.output(
        "sysctl",
        json!({"securityContext": {"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}]},
            "containers": [shell("cat /proc/sys/kernel/shm_rmid_forced")]}),
    );
    assert_eq!(sysctl, "1\n");
}

fn refusals(lab: &Lab) {
    let check = |name: &str, context: serde_json::Value, reason: &str, message: &str| {
        let mut main = shell("true");
        main["securityContext"] = context;
        lab.pod(name, json!({"containers": [main]}));
        lab.wait(name, reason, |p| {
            let waiting = &p["status"]["containerStatuses"][0]["state"]["waiting"];
            waiting["reason"] == reason && waiting["message"].as_str().is_some_and(|m| m.contains(message))
        });
        lab.kubectl(&format!("delete pod {name} --now"));
    };
    let root = json!({"runAsNonRoot": true});
    let text = "container has runAsNonRoot and image will run as root (pod: \"rooted_default(";
    check("rooted", root, "CreateContainerConfigError", text);
    let absent = json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "absent.json"}});
    check("unprofiled", absent, "CreateContainerError", "cannot load seccomp profile");
}
