//! Who containers run as and what they may do.

use serde_json::json;

use crate::{Claim, Lab, shell};

pub const CLAIMS: &[Claim] = &[
    ("security: users and groups", users_and_groups),
    ("security: rights", rights),
    ("security: refusals", refusals),
    ("security: users of its own", own_users),
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

fn own_users(lab: &Lab) {
    let supported = "jsonpath={.items[0].status.runtimeHandlers[0].features.userNamespaces}";
    assert_eq!(lab.kubectl(&format!("get nodes -o {supported}")), "true", "this kernel has user namespaces");
    let script = "cat /proc/self/uid_map; id -u; stat -c %u:%g /v /cm/k /bin/sh /etc/hosts; touch /v/mine; \
        stat -c %u:%g /v/mine; chown 7:8 /v/mine; stat -c %u:%g /v/mine; mkdir /new; hostname renamed; hostname";
    let mut main = shell(script);
    main["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}, {"name": "cm", "mountPath": "/cm"}, {"name": "h", "mountPath": "/h"}]);
    main["securityContext"] = json!({"capabilities": {"add": ["SYS_ADMIN"]}});
    let host = lab.machine.dir().join("shared");
    std::fs::create_dir_all(&host).expect("a directory");
    lab.create(
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mapped"}, "data": {"k": "v"}}),
    );
    let spec = json!({"hostUsers": false, "containers": [main], "volumes": [{"name": "v", "emptyDir": {}},
        {"name": "cm", "configMap": {"name": "mapped"}}, {"name": "h", "hostPath": {"path": host}}]});
    let printed = lab.output("mapped", spec);
    let (map, rest) = printed.split_once('\n').unwrap_or_default();
    let map: Vec<u32> = map.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    assert!(map.len() == 3 && map[0] == 0 && map[1] >= 65536 && map[2] == 65536, "{printed}");
    assert_eq!(
        rest, "0\n0:0\n0:0\n0:0\n0:0\n0:0\n7:8\nrenamed\n",
        "owners are as in a pod of the host's users"
    );

    // A pod that goes on: exec, one process namespace, writing to the host as root of the pod.
    let mut main = shell("touch /h/file; echo ready; sleep 1000");
    main["volumeMounts"] = json!([{"name": "h", "mountPath": "/h"}]);
    let spec = json!({"hostUsers": false, "shareProcessNamespace": true, "containers": [main],
        "volumes": [{"name": "h", "hostPath": {"path": host}}]});
    lab.pod("apart", spec);
    lab.wait("apart", "runs", |p| p["status"]["containerStatuses"][0]["ready"] == true);
    let map = lab.kubectl("exec apart -- cat /proc/1/uid_map");
    let first: u32 = map.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    assert!(first >= 65536, "pid 1 of the pod is no user of the host: {map}");
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(host.join("file")).expect("a file"));
    assert_eq!(owner, 0, "files keep the owner that the pod sees");
    let id = lab.get("pod", "apart")["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let record = lab.machine.data(crate::MAIN).join("kubelet/pods").join(id).join("userns");
    let record = std::fs::read_to_string(record).expect("a record");
    assert!(record.contains(&format!("\"hostId\":{first}")), "{record}");
    lab.kubectl("delete pod apart --now");
}
