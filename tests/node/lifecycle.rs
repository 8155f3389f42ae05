//! Starts, ends and messages of containers.

use serde_json::json;

use crate::{Claim, Lab, MAIN, shell};

pub const CLAIMS: &[Claim] = &[
    ("lifecycle: init containers and sidecars", init_containers_and_sidecars),
    ("lifecycle: hooks", hooks),
    ("lifecycle: termination messages", termination_messages),
    ("lifecycle: restart rules", restart_rules),
    ("lifecycle: debug containers", debug_containers),
    ("lifecycle: probes", probes),
    ("lifecycle: names and addresses", names_and_addresses),
    ("lifecycle: downward api", downward_api),
    ("lifecycle: deadline", deadline),
];

fn init_containers_and_sidecars(lab: &Lab) {
    let order = "echo $NAME >> /v/order";
    let mount = json!([{"name": "v", "mountPath": "/v"}]);
    let step = |name: &str, script: String| {
        json!({"name": name, "command": ["sh", "-c", script], "volumeMounts": mount,
            "env": [{"name": "NAME", "value": name}]})
    };
    let mut side = step("side", format!("{order}; trap 'exit 0' TERM; sleep 1000 & wait"));
    side["restartPolicy"] = "Always".into();
    side["startupProbe"] = json!({"exec": {"command": ["test", "-s", "/v/order"]}, "periodSeconds": 1});
    let printed = lab.output(
        "sidecar",
        json!({
            "initContainers": [step("first", order.into()), side, step("second", order.into())],
            "containers": [step("app", format!("{order}; cat /v/order"))],
            "volumes": [{"name": "v", "emptyDir": {}}],
        }),
    );
    assert!(printed.contains("first\nside\nsecond\napp\n"), "{printed}");
    let pod = lab.get("pod", "sidecar");
    let init = &pod["status"]["initContainerStatuses"];
    assert_eq!(init[1]["state"]["terminated"]["exitCode"], 0, "the sidecar ends after the app: {init}");
    assert_eq!(init[0]["state"]["terminated"]["reason"], "Completed");
}

fn hooks(lab: &Lab) {
    let mut main = shell("sleep 1000");
    main["lifecycle"] = json!({
        "postStart": {"exec": {"command": ["sh", "-c", "echo begun > /v/begun"]}},
        "preStop": {"exec": {"command": ["sh", "-c", "echo stopping > /v/stopping; sleep 1"]}},
    });
    main["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    let dir = lab.machine.dir().join("hooks");
    lab.pod(
        "hooks",
        json!({"containers": [main], "terminationGracePeriodSeconds": 20,
        "volumes": [{"name": "v", "hostPath": {"path": dir, "type": "DirectoryOrCreate"}}]}),
    );
    lab.running("hooks");
    assert_eq!(lab.sh("hooks", "main", "cat /v/begun"), "begun\n");
    lab.kubectl("delete pod hooks --grace-period=5");
    assert_eq!(std::fs::read_to_string(dir.join("stopping")).unwrap_or_default(), "stopping\n");

    let mut main = shell("sleep 1000");
    main["lifecycle"] = json!({"postStart": {"exec": {"command": ["false"]}}});
    lab.pod("badhook", json!({"containers": [main]}));
    lab.event("badhook", "FailedPostStartHook", "PostStartHook failed");
    lab.kubectl("delete pod badhook --now");
}

fn termination_messages(lab: &Lab) {
    let check = |name: &str, script: &str, extra: serde_json::Value, expected: &str| {
        let mut main = shell(script);
        for (key, value) in extra.as_object().into_iter().flatten() {
            main[key] = value.clone();
        }
        lab.pod(name, json!({"restartPolicy": "Never", "containers": [main]}));
        let pod = lab.ended(name);
        let state = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        assert_eq!(state["message"].as_str().unwrap_or(""), expected, "{name}: {state}");
    };
    check("word-file", "echo -n OK > /dev/termination-log", json!({}), "OK");
    check(
        "word-place",
        "echo -n DONE > /dev/own-log",
        json!({"terminationMessagePath": "/dev/own-log", "securityContext": {"runAsUser": 1000}}),
        "DONE",
    );
    let fallback = json!({"terminationMessagePolicy": "FallbackToLogsOnError"});
    check("word-log", "echo -n DONE; exit 1", fallback.clone(), "DONE");
    check("word-none", "echo -n DONE", fallback, "");
}

fn restart_rules(lab: &Lab) {
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let mut main =
        shell("n=$(cat /v/n 2>/dev/null || echo 0); echo $((n+1)) > /v/n; [ $n = 0 ] && exit 42; exit 7");
    main["restartPolicy"] = "Never".into();
    main["restartPolicyRules"] = rules;
    main["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    lab.pod(
        "rules",
        json!({"restartPolicy": "Never", "containers": [main],
        "volumes": [{"name": "v", "emptyDir": {}}]}),
    );
    let pod = lab.ended("rules");
    let c = &pod["status"]["containerStatuses"][0];
    assert_eq!((&c["restartCount"], &c["state"]["terminated"]["exitCode"]), (&json!(1), &json!(7)), "{c}");
    assert_eq!(pod["status"]["phase"], "Failed");
}

fn debug_containers(lab: &Lab) {
    lab.pod("patient", json!({"containers": [shell("sleep 1234")]}));
    lab.running("patient");
    let image = format!("--image={}", crate::IMAGE);
    let args =
        ["debug", "patient", &image, "--image-pull-policy=IfNotPresent", "--target=main", "-c", "look"];
    let args = [&args[..], &["--profile=general", "--", "sh", "-c", "ps; sleep 1000"]].concat();
    lab.machine.kubectl(MAIN, &args).ok();
    let pod = lab.wait("patient", "the debug container runs", |p| {
        !p["status"]["ephemeralContainerStatuses"][0]["state"]["running"].is_null()
    });
    assert_eq!(pod["status"]["phase"], "Running");
    let seen = lab.kubectl("logs patient -c look");
    assert!(seen.contains("sleep 1234"), "the target's processes are seen: {seen}");
    assert_eq!(lab.sh("patient", "look", "echo in"), "in\n");
    lab.event("patient", "Started", "Container started");
    lab.kubectl("delete pod patient --now");
}

fn probes(lab: &Lab) {
    let mut main = shell("touch /tmp/ok; sleep 1; rm /tmp/ok; sleep 1000");
    main["livenessProbe"] = json!({"exec": {"command": ["cat", "/tmp/ok"]}, "periodSeconds": 1,
        "failureThreshold": 1});
    main["startupProbe"] = json!({"exec": {"command": ["true"]}, "periodSeconds": 1});
    lab.pod("dying", json!({"containers": [main]}));
    lab.wait("dying", "restarted by its liveness probe", |p| {
        p["status"]["containerStatuses"][0]["restartCount"].as_i64().is_some_and(|n| n >= 1)
    });
    lab.event("dying", "Killing", "Container main failed liveness probe, will be restarted");
    lab.event("dying", "Unhealthy", "Liveness probe failed: cat: can't open '/tmp/ok'");
    lab.kubectl("delete pod dying --now");
    let gated = json!({"containers": [shell("sleep 1000")],
        "readinessGates": [{"conditionType": "example.com/ok"}]});
    lab.pod("gated", gated);
    let ready = |p: &serde_json::Value| -> String {
        let all = p["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let c = all.into_iter().find(|c| c["type"] == "Ready").unwrap_or_default();
        format!("{} {}", c["status"].as_str().unwrap_or(""), c["reason"].as_str().unwrap_or(""))
    };
    lab.wait("gated", "held by its gate", |p| ready(p) == "False ReadinessGatesNotReady");
    let patch = r#"{"status":{"conditions":[{"type":"example.com/ok","status":"True"}]}}"#;
    lab.machine.kubectl(MAIN, &["patch", "pod", "gated", "--subresource=status", "-p", patch]).ok();
    lab.wait("gated", "let through", |p| ready(p) == "True ");
    lab.kubectl("delete pod gated --now");
}

fn names_and_addresses(lab: &Lab) {
    let printed = lab.output(
        "named",
        json!({"hostname": "h", "subdomain": "sub", "setHostnameAsFQDN": true,
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["x.example", "y"]}],
            "dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"], "searches": ["s.example"],
                "options": [{"name": "ndots", "value": "3"}]},
            "containers": [shell("hostname; cat /etc/hosts /etc/resolv.conf")]}),
    );
    for line in [
        "h.sub.default.svc.cluster.local\n",
        "1.2.3.4\tx.example\ty\n",
        "nameserver 9.9.9.9\n",
        "search s.example\n",
        "options ndots:3\n",
    ] {
        assert!(printed.contains(line), "{line:?} in {printed}");
    }
    let host = lab.output(
        "hostly",
        json!({"hostNetwork": true, "hostPID": true, "hostIPC": true,
            "containers": [shell("readlink /proc/self/ns/ipc; ls -d /proc/1")]}),
    );
    let ipc = std::fs::read_link("/proc/self/ns/ipc").unwrap_or_default();
    assert!(host.contains(&*ipc.to_string_lossy()), "{host}");
    let shared = json!({"shareProcessNamespace": true, "containers": [
        {"name": "a", "command": ["sleep", "777"]}, {"name": "b", "command": ["sleep", "888"]}]});
    lab.pod("shared", shared);
    lab.running("shared");
    assert!(lab.sh("shared", "a", "ps").contains("sleep 888"));
    lab.kubectl("delete pod shared --now");
}

fn downward_api(lab: &Lab) {
    let field =
        |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let mut main = shell("env; cat /info/labels /info/cpu");
    main["env"] = json!([
        field("POD", "metadata.name"), field("IP", "status.podIP"), field("IPS", "status.podIPs"),
        field("HOST", "status.hostIPs"), field("UID", "metadata.uid"), field("APP", "metadata.labels['app']"),
        {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1m"}}},
        {"name": "BOTH", "value": "$(POD)-$(MEM)"},
    ]);
    main["resources"] = json!({"limits": {"memory": "64Mi"}, "requests": {"cpu": "20m"}});
    main["volumeMounts"] = json!([{"name": "info", "mountPath": "/info"}]);
    let info = json!({"name": "info", "downwardAPI": {"items": [
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        {"path": "cpu", "resourceFieldRef": {"containerName": "main", "resource": "requests.cpu",
            "divisor": "1m"}}]}});
    let printed = lab.output("downward", json!({"containers": [main], "volumes": [info]}));
    for line in [
        "POD=downward\n",
        "IP=10.",
        "IPS=10.",
        "APP=downward\n",
        "MEM=64\n",
        "CPU=20\n",
        "BOTH=downward-64\n",
        "app=\"downward\"",
        "HOST=192.168.77.1\n",
    ] {
        assert!(printed.contains(line), "{line:?} in {printed}");
    }
}

fn deadline(lab: &Lab) {
    lab.pod("late", json!({"activeDeadlineSeconds": 2, "containers": [shell("sleep 1000")]}));
    let pod = lab.ended("late");
    let status = &pod["status"];
    assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("DeadlineExceeded")));
    let text = "Pod was active on the node longer than the specified deadline";
    assert_eq!(status["message"], text, "{status}");
}
