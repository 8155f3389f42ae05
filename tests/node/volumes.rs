//! What pods mount.

use serde_json::json;

use crate::{Claim, IMAGE, Lab, MAIN, shell};

pub const CLAIMS: &[Claim] = &[
    ("volumes: environment files", environment_files),
    ("volumes: scratch", scratch),
    ("volumes: images", images),
    ("volumes: paths", paths),
    ("volumes: claims", claims),
    ("volumes: projected", projected),
];

fn scratch(lab: &Lab) {
    let mut main = shell("df /mem | tail -1; stat -c %a /disk; mount | grep ' /mem '");
    main["volumeMounts"] =
        json!([{"name": "mem", "mountPath": "/mem"}, {"name": "disk", "mountPath": "/disk"}]);
    let printed = lab.output(
        "scratch",
        json!({"containers": [main], "volumes": [
            {"name": "mem", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}},
            {"name": "disk", "emptyDir": {}}]}),
    );
    assert!(printed.contains("tmpfs") && printed.contains("8192") && printed.contains("777"), "{printed}");
}

fn images(lab: &Lab) {
    let mut main = shell("ls /img/bin/busybox; cat /file; touch /img/x 2>&1; true");
    main["volumeMounts"] = json!([
        {"name": "img", "mountPath": "/img"}, {"name": "img", "mountPath": "/file", "subPath": "etc/group"}]);
    let printed = lab.output(
        "images",
        json!({"containers": [main],
            "volumes": [{"name": "img", "image": {"reference": IMAGE, "pullPolicy": "IfNotPresent"}}]}),
    );
    assert!(printed.contains("/img/bin/busybox\n") && printed.contains("nogroup:x:65534:\n"), "{printed}");
    assert!(printed.contains("Read-only file system"), "{printed}");
}

fn paths(lab: &Lab) {
    let dir = lab.machine.dir().join("paths");
    std::fs::create_dir_all(dir.join("sub")).expect("a directory");
    std::fs::write(dir.join("sub/f"), "content").expect("a file");
    let mut main =
        shell("cat /sub/f; cat /one; echo x > /made/y; touch /ro/z 2>&1; touch /ro/sub/z 2>&1; true");
    main["env"] = json!([{"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]);
    main["volumeMounts"] = json!([
        {"name": "v", "mountPath": "/sub", "subPath": "sub"},
        {"name": "v", "mountPath": "/one", "subPath": "sub/f"},
        {"name": "v", "mountPath": "/made", "subPathExpr": "own/$(WHO)"},
        {"name": "v", "mountPath": "/ro", "readOnly": true, "recursiveReadOnly": "Enabled"},
    ]);
    let printed = lab.output(
        "paths",
        json!({"containers": [main], "volumes": [{"name": "v", "hostPath": {"path": dir, "type": "Directory"}}]}),
    );
    assert!(printed.starts_with("contentcontent"), "{printed}");
    assert_eq!(printed.matches("Read-only file system").count(), 2, "{printed}");
    assert!(dir.join("own/paths/y").exists());
    lab.pod(
        "nofile",
        json!({"containers": [shell("true")], "volumes": [
            {"name": "v", "hostPath": {"path": dir.join("absent"), "type": "File"}}]}),
    );
    lab.event(
        "nofile",
        "FailedMount",
        "MountVolume.SetUp failed for volume \"v\" : hostPath type check failed: ",
    );
    lab.kubectl("delete pod nofile --now");
}

fn claims(lab: &Lab) {
    let dir = lab.machine.dir().join("local");
    std::fs::create_dir_all(&dir).expect("a directory");
    let affinity = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": ["n1"]}]}]}});
    let pv = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv"}, "spec": {
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "",
        "local": {"path": dir}, "nodeAffinity": affinity}});
    lab.create(&pv);
    lab.create(&json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": "pv",
            "resources": {"requests": {"storage": "1Gi"}}}}));
    // Binding is a controller's work; here it is done by hand.
    let uid = lab.get("pvc", "data")["metadata"]["uid"].as_str().unwrap_or("").to_owned();
    let claim = json!({"spec": {"claimRef": {"kind": "PersistentVolumeClaim", "namespace": "default",
        "name": "data", "uid": uid}}});
    lab.machine.kubectl(MAIN, &["patch", "pv", "pv", "--type=merge", "-p", &claim.to_string()]).ok();
    let bound = r#"{"status":{"phase":"Bound"}}"#;
    lab.machine.kubectl(MAIN, &["patch", "pvc", "data", "--subresource=status", "-p", bound]).ok();
    let mut main = shell("echo kept > /data/f; stat -c %g /data");
    main["volumeMounts"] = json!([{"name": "d", "mountPath": "/data"}]);
    let printed = lab.output(
        "claims",
        json!({"securityContext": {"fsGroup": 5005}, "containers": [main],
            "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]}),
    );
    assert_eq!(printed, "5005\n");
    assert_eq!(std::fs::read_to_string(dir.join("f")).unwrap_or_default(), "kept\n");
}

fn projected(lab: &Lab) {
    lab.kubectl("create configmap settings --from-literal=a=1");
    lab.kubectl("create secret generic keys --from-literal=b=2");
    let mut main = shell("cat /p/a /p/b /p/me; wc -c < /p/token; stat -Lc %a /p/b; sleep 1000");
    main["volumeMounts"] = json!([{"name": "p", "mountPath": "/p"}]);
    lab.pod(
        "projected",
        json!({"containers": [main], "volumes": [{"name": "p", "projected": {"sources": [
            {"configMap": {"name": "settings"}}, {"secret": {"name": "keys", "items": [
                {"key": "b", "path": "b", "mode": 256}]}},
            {"downwardAPI": {"items": [{"path": "me", "fieldRef": {"fieldPath": "metadata.name"}}]}},
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}]}}]}),
    );
    lab.running("projected");
    let printed = lab.kubectl("logs projected");
    assert!(printed.starts_with("12projected") && printed.ends_with("400\n"), "{printed}");
    lab.kubectl("delete pod projected --now");
}

fn environment_files(lab: &Lab) {
    let key = |name: &str, key: &str, optional: bool| {
        json!({"name": name, "valueFrom": {"fileKeyRef":
            {"volumeName": "env", "path": "settings", "key": key, "optional": optional}}})
    };
    let make = |script: &str| {
        let mut make = shell(script);
        make["name"] = "make".into();
        make["volumeMounts"] = json!([{"name": "env", "mountPath": "/e"}]);
        make
    };
    let mut main = shell("echo $A $B; echo ${C-absent}");
    main["env"] = json!([key("A", "ONE", false), key("B", "TWO", false), key("C", "THREE", true)]);
    let spec = |init: serde_json::Value, main: &serde_json::Value| json!({"initContainers": [init], "containers": [main], "volumes": [{"name": "env", "emptyDir": {}}]});
    let good = make("printf \"# made\\nONE='1 # 1'\\nTWO='2' # two\\n\" > /e/settings");
    assert_eq!(lab.output("env-file", spec(good, &main)), "1 # 1 2\nabsent\n");
    lab.pod("env-file-bad", spec(make("echo ONE=1 > /e/settings"), &main));
    lab.wait("env-file-bad", "is told", |p| {
        let waiting = &p["status"]["containerStatuses"][0]["state"]["waiting"];
        waiting["reason"] == "CreateContainerConfigError" && waiting["message"] == "couldn't parse env file"
    });
    lab.kubectl("delete pod env-file-bad --now");
}
