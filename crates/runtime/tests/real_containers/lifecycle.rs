//! Start, stop, events, adoption, loss.

use super::*;

pub async fn start_is_quick(lab: &Lab) {
    let mut times = Vec::new();
    for n in 0..6 {
        let begin = Instant::now();
        let pod = lab.sandbox(&format!("quick{n}")).await;
        let sandbox = begin.elapsed();
        let id = lab.create(&pod, shell("main", "sleep 100")).await;
        let created = begin.elapsed();
        lab.runtime.start_container(&id).await.unwrap();
        times.push((begin.elapsed(), sandbox, created));
        let begin = Instant::now();
        lab.remove(&pod).await;
        if n == 5 {
            println!("   stop and remove: {:?}", begin.elapsed());
        }
    }
    times.sort();
    println!(
        "   sandbox + container started: median {:?} (sandbox {:?}, created at {:?})",
        times[3].0, times[3].1, times[3].2
    );
    assert!(times[3].0 < Duration::from_millis(400), "{times:?}");
}

pub async fn stop_is_graceful_then_forced(lab: &Lab) {
    let pod = lab.sandbox("stop").await;
    let polite = lab.run(&pod, shell("polite", "trap 'exit 9' TERM; while true; do sleep 0.05; done")).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    lab.runtime.stop_container(&polite, 10).await.unwrap();
    assert_eq!(lab.exited(&polite).await.exit_code, 9);
    let deaf = lab.run(&pod, shell("deaf", "trap '' TERM; while true; do sleep 0.05; done")).await;
    let begin = Instant::now();
    lab.runtime.stop_container(&deaf, 1).await.unwrap();
    let took = begin.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(3), "{took:?}");
    let status = lab.exited(&deaf).await;
    assert_eq!((status.exit_code, status.signal), (137, 9));
    lab.runtime.stop_container(&deaf, 1).await.unwrap();
    lab.remove(&pod).await;
}

pub async fn events_are_pushed(lab: &Lab) {
    let mut events = lab.runtime.container_events().await.unwrap();
    let pod = lab.sandbox("events").await;
    let id = lab.run(&pod, shell("main", "sleep 0.1")).await;
    lab.exited(&id).await;
    lab.remove(&pod).await;
    let mut kinds = Vec::new();
    while let Ok(event) = events.try_recv() {
        assert_eq!(event.pod.name, "events");
        kinds.push((event.kind, !event.container_id.is_empty()));
    }
    use ContainerEventType::{Created, Deleted, Started, Stopped};
    let want = [
        (Started, false),
        (Created, true),
        (Started, true),
        (Stopped, true),
        (Stopped, false),
        (Deleted, true),
        (Deleted, false),
    ];
    assert_eq!(kinds, want);
}

pub async fn many_pods_start_together(lab: &Lab) {
    let begin = Instant::now();
    let pods = futures::future::join_all((0..12).map(|n| async move {
        let pod = lab.sandbox(&format!("many{n}")).await;
        let id = lab.run(&pod, shell("main", "sleep 100")).await;
        (pod, id)
    }))
    .await;
    println!("   12 pods: {:?}", begin.elapsed());
    let all = lab.runtime.list_containers(ContainerFilter::default()).await.unwrap();
    assert_eq!(all.iter().filter(|c| c.state == ContainerState::Running).count(), 12);
    futures::future::join_all(pods.iter().map(|(pod, _)| lab.remove(pod))).await;
    assert!(lab.runtime.list_containers(ContainerFilter::default()).await.unwrap().is_empty());
}

pub async fn running_pods_are_adopted(lab: Lab) -> Lab {
    let begin = Instant::now();
    let pod = lab.sandbox("adopted").await;
    let stays =
        lab.run(&pod, shell("stays", "n=0; while true; do echo $n; n=$((n+1)); sleep 0.05; done")).await;
    let ends = lab.run(&pod, shell("ends", "sleep 0.5; exit 4")).await;
    let before = lab.runtime.container_status(&stays).await.unwrap();
    let dir = lab.dir.clone();
    drop(lab);
    tokio::time::sleep(Duration::from_millis(900)).await;
    let lab = Lab::open(&dir).await;
    let after = lab.runtime.container_status(&stays).await.unwrap();
    assert_eq!(
        (after.state, after.pid, after.started_at),
        (ContainerState::Running, before.pid, before.started_at)
    );
    let ended = lab.runtime.container_status(&ends).await.unwrap();
    assert_eq!((ended.state, ended.exit_code), (ContainerState::Exited, 4));
    assert!(lab.log(&after).len() > 15, "the log must go on while nobody watches");
    assert!(lab.runtime.pod_sandbox_status(&pod.0).await.unwrap().ready);
    assert_eq!(lab.output(&stays, "echo in").await, "in");
    lab.runtime.stop_container(&stays, 1).await.unwrap();
    assert_eq!(lab.exited(&stays).await.exit_code, 137);
    lab.remove(&pod).await;
    println!("ok running_pods_are_adopted ({:?})", begin.elapsed());
    lab
}

pub async fn lost_shim_is_reported(lab: Lab) -> Lab {
    let begin = Instant::now();
    let kill_shim = |sandbox: &str| {
        let file = lab.config.state.join("sandboxes").join(sandbox).join("shim.pid");
        let pid: i32 = fs::read_to_string(file).unwrap().split(' ').next().unwrap().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
    };
    let pod = lab.sandbox("lost").await;
    let id = lab.run(&pod, shell("main", "sleep 100")).await;
    kill_shim(&pod.0);
    let status = lab.exited(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    assert!(!lab.runtime.pod_sandbox_status(&pod.0).await.unwrap().ready);
    lab.remove(&pod).await;
    // The same while no daemon watches.
    let pod = lab.sandbox("lost2").await;
    let id = lab.run(&pod, shell("main", "sleep 100")).await;
    let dir = lab.dir.clone();
    kill_shim(&pod.0);
    drop(lab);
    let lab = Lab::open(&dir).await;
    assert_eq!(lab.exited(&id).await.exit_code, 255);
    lab.remove(&pod).await;
    println!("ok lost_shim_is_reported ({:?})", begin.elapsed());
    lab
}

pub async fn leave_everything_running(lab: &Lab) {
    for n in 0..2 {
        let pod = lab.sandbox(&format!("left{n}")).await;
        lab.run(&pod, shell("main", "sleep 100 & sleep 200")).await;
        let file = lab.config.state.join("sandboxes").join(&pod.0).join("shim.pid");
        let pid = fs::read_to_string(file).unwrap().split(' ').next().unwrap().to_owned();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let sizes = status.lines().filter(|l| l.starts_with("VmRSS") || l.starts_with("RssAnon"));
        println!("   shim: {}", sizes.collect::<Vec<_>>().join(" "));
    }
}
