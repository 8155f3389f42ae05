//! scale, rolling update, history, pause, resume, undo; restarts with back-off; replacement of deleted pods.

use coracle_testkit::retry;

use crate::{MAIN, Story};

pub fn run(story: &Story) {
    story.kubectl("scale -n shop deploy/web --replicas=4");
    story.kubectl("rollout status -n shop deploy/web --timeout=60s");
    assert_eq!(story.pods("app=web").len(), 4);
    update(story);
    replacement(story);
    restart(story);
}

fn update(story: &Story) {
    let surge = r#"{"spec":{"strategy":{"rollingUpdate":{"maxSurge":1,"maxUnavailable":0}}}}"#;
    story.machine.kubectl(MAIN, &["patch", "deploy", "web", "-n", "shop", "-p", surge]).ok();
    story.kubectl("set image -n shop deploy/web httpd=test.example/busybox:2 side=test.example/busybox:2");
    // maxUnavailable 0: the service never has fewer than four ready pods.
    let done = retry("the update", 90, || {
        let deploy = story.json("get deploy web -n shop");
        let status = &deploy["status"];
        let available = status["availableReplicas"].as_u64().unwrap_or(0);
        let total = status["replicas"].as_u64().unwrap_or(0);
        assert!(available >= 4, "only {available} available during the update");
        assert!(total <= 5, "{total} pods with maxSurge 1");
        let observed = status["observedGeneration"] == deploy["metadata"]["generation"];
        let updated = status["updatedReplicas"].as_u64() == Some(4) && total == 4;
        if observed && updated { Ok(deploy) } else { Err(status.to_string()) }
    });
    assert_eq!(done["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "2");
    story.kubectl("rollout status -n shop deploy/web --timeout=60s");
    let history = story.kubectl("rollout history -n shop deploy/web");
    assert!(history.lines().any(|l| l.starts_with("1 ")) && history.lines().any(|l| l.starts_with("2 ")));

    story.kubectl("rollout pause -n shop deploy/web");
    story.kubectl("set env -n shop deploy/web EXTRA=1");
    retry("the paused change is observed", 10, || {
        let deploy = story.json("get deploy web -n shop");
        let same = deploy["status"]["observedGeneration"] == deploy["metadata"]["generation"];
        if same { Ok(()) } else { Err("not observed".into()) }
    });
    let sets = story.json("get rs -n shop")["items"].as_array().map_or(0, Vec::len);
    assert_eq!(sets, 2, "a paused deployment makes no new ReplicaSet");
    story.kubectl("rollout resume -n shop deploy/web");
    story.kubectl("rollout status -n shop deploy/web --timeout=90s");
    assert_eq!(story.sh("deploy/web", "echo $EXTRA"), "1\n");

    story.kubectl("rollout undo -n shop deploy/web --to-revision=1");
    story.kubectl("rollout status -n shop deploy/web --timeout=90s");
    let deploy = story.json("get deploy web -n shop");
    let image = &deploy["spec"]["template"]["spec"]["containers"][0]["image"];
    assert_eq!(image, crate::IMAGE, "undo restores the first image");
}

fn replacement(story: &Story) {
    let before = story.pods("app=web");
    story.kubectl(&format!("delete pod -n shop {}", before[0]));
    retry("a new pod in its place", 30, || {
        let now = story.pods("app=web");
        if now.len() == 4 && !now.contains(&before[0]) { Ok(()) } else { Err(format!("{now:?}")) }
    });
    story.kubectl("rollout status -n shop deploy/web --timeout=60s");
    // Graceful termination: TERM is delivered and the grace period honoured.
    let line = "trap 'echo bye; exit 0' TERM; while true; do sleep 0.1; done";
    let args =
        ["run", "polite", "-n", "shop", "--image", crate::IMAGE, "--restart=Never", "--", "sh", "-c", line];
    story.machine.kubectl(MAIN, &args).ok();
    story.kubectl("wait -n shop pod/polite --for=condition=Ready --timeout=30s");
    let follow = story
        .machine
        .kubectl_command(MAIN, &["logs", "-f", "-n", "shop", "polite"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    story.kubectl("delete pod polite -n shop");
    let said = follow.wait_with_output().expect("logs -f ends with the container");
    assert_eq!(String::from_utf8_lossy(&said.stdout), "bye\n");
}

fn restart(story: &Story) {
    let args =
        ["run", "crashing", "-n", "shop", "--image", crate::IMAGE, "--", "sh", "-c", "sleep 0.2; exit 3"];
    story.machine.kubectl(MAIN, &args).ok();
    let status = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0].clone();
    let pod = retry("back-off", 60, || {
        let pod = story.json("get pod crashing -n shop");
        let waiting = status(&pod)["state"]["waiting"]["reason"].as_str().unwrap_or("").to_owned();
        let restarts = status(&pod)["restartCount"].as_u64().unwrap_or(0);
        if waiting == "CrashLoopBackOff" && restarts >= 1 {
            Ok(pod)
        } else {
            Err(format!("{waiting} {restarts}"))
        }
    });
    let last = &status(&pod)["lastState"]["terminated"];
    assert_eq!((last["exitCode"].as_i64(), last["reason"].as_str()), (Some(3), Some("Error")));
    assert!(story.kubectl("get pod crashing -n shop").contains("CrashLoopBackOff"));
    let message = status(&pod)["state"]["waiting"]["message"].as_str().unwrap_or("").to_owned();
    assert!(message.starts_with("back-off ") && message.contains("restarting failed container"), "{message}");
    story.kubectl("delete pod crashing -n shop --grace-period=0 --force");
}
