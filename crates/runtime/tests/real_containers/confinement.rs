//! What containers see and may do.

use super::*;

pub async fn output_is_logged_and_exit_code_kept(lab: &Lab) {
    let pod = lab.sandbox("logs").await;
    let id = lab.run(&pod, shell("main", "echo one; echo two >&2; printf rest; exit 42")).await;
    let status = lab.exited(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (42, "Error"));
    assert!(status.started_at > 0 && status.finished_at >= status.started_at);
    let mut log = lab.log(&status);
    log.sort();
    assert_eq!(log, ["stderr F two", "stdout F one", "stdout P rest"]);
    let ok = lab.run(&pod, shell("fine", "true")).await;
    assert_eq!(lab.exited(&ok).await.reason, "Completed");
    lab.runtime.remove_container(&ok).await.unwrap();
    assert!(matches!(lab.runtime.container_status(&ok).await, Err(CriError::NotFound(_))));
    lab.remove(&pod).await;
}

pub async fn failed_start_says_why_as_containerd(lab: &Lab) {
    let pod = lab.sandbox("wrong").await;
    let config = ContainerConfig { command: vec!["no-such-program".into()], ..shell("main", "") };
    let id = lab.create(&pod, config).await;
    let error = lab.runtime.start_container(&id).await.unwrap_err().to_string();
    assert!(error.contains("exec: \"no-such-program\": executable file not found in $PATH"), "{error}");
    let status = lab.runtime.container_status(&id).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    let mut ghost = shell("ghost", "true");
    ghost.security.run_as_username = "ghost".into();
    let error = lab.runtime.create_container(&pod.0, ghost, pod.1.clone()).await.unwrap_err();
    assert_eq!(error.to_string(), "unable to find user ghost: no matching entries in passwd file");
    lab.remove(&pod).await;
}

pub async fn what_contradicts_itself_is_refused(lab: &Lab) {
    let pod = lab.sandbox("contradictions").await;
    let refused = async |config: ContainerConfig, why: &str| {
        let error =
            lab.runtime.create_container(&pod.0, config, pod.1.clone()).await.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    let mut group = shell("group", "true");
    group.security.run_as_group = Some(7);
    refused(group, "user group \"7\" is specified without user").await;
    let mount = |readonly, propagation, image: &str| {
        let mount = Mount {
            container_path: "/m".into(),
            host_path: "/tmp".into(),
            recursive_read_only: image.is_empty(),
            readonly,
            propagation,
            image: image.into(),
            ..Mount::default()
        };
        ContainerConfig { mounts: vec![mount], ..shell("mount", "true") }
    };
    refused(mount(false, 0, ""), "needs a read-only mount").await;
    refused(mount(true, 1, ""), "needs private propagation").await;
    refused(mount(true, 2, ""), "needs private propagation").await;
    refused(mount(false, 0, crate::IMAGE), "only be mounted read-only").await;
    lab.remove(&pod).await;
}

pub async fn containers_are_confined(lab: &Lab) {
    let pod = lab.sandbox("confined").await;
    let mut main = shell("main", "sleep 100");
    main.security.readonly_paths = vec!["/proc/sys".into()];
    main.security.masked_paths = vec!["/proc/keys".into()];
    let id = lab.run(&pod, main).await;
    assert_eq!(lab.output(&id, "cat /proc/keys").await, "");
    assert_eq!(lab.output(&id, "echo $$; ls /proc | grep -c '^[0-9]'").await.lines().count(), 2);
    assert_eq!(lab.output(&id, "cat /proc/1/cmdline | tr '\\0' ' '").await, "sleep 100");
    assert!(lab.output(&id, "grep Seccomp: /proc/self/status").await.ends_with('2'));
    let caps = lab.output(&id, "grep -E 'CapBnd|CapEff' /proc/self/status | cut -f2").await;
    assert_eq!(caps, "00000000a80425fb\n00000000a80425fb");
    assert!(
        lab.output(&id, "mount -t tmpfs x /mnt").await.contains("permission denied")
            || lab
                .output(&id, "mkdir -p /mnt; mount -t tmpfs x /mnt")
                .await
                .to_lowercase()
                .contains("not permitted")
            || lab
                .output(&id, "mkdir -p /mnt; mount -t tmpfs x /mnt")
                .await
                .to_lowercase()
                .contains("denied")
    );
    for write in
        ["mkdir /sys/fs/cgroup/x", "mkdir /sys/fs/cgroup/memory/x", "echo 1 > /proc/sys/kernel/panic"]
    {
        let said = lab.output(&id, write).await;
        assert!(said.contains("Read-only file system"), "{write}: {said}");
    }
    let mut user = shell("user", "id -u; id -g; grep -E 'CapEff|NoNewPrivs' /proc/self/status | cut -f2");
    user.security.run_as_user = Some(1000);
    user.security.run_as_group = Some(2000);
    user.security.no_new_privs = true;
    user.security.readonly_rootfs = true;
    user.working_dir = "/made/for/it".into();
    let id = lab.run(&pod, user).await;
    let status = lab.exited(&id).await;
    let want = ["1000", "2000", "0000000000000000", "1"].map(|l| format!("stdout F {l}"));
    assert_eq!(lab.log(&status), want);
    lab.remove(&pod).await;
}

pub async fn pod_shares_network_ipc_and_hostname(lab: &Lab) {
    let pod = lab.sandbox("shared").await;
    let one = lab
        .run(&pod, shell("one", "echo hello > /dev/shm/x; nc -l -p 4000 -e echo served & sleep 100"))
        .await;
    let two = lab.run(&pod, shell("two", "sleep 100")).await;
    assert_eq!(lab.output(&two, "hostname; cat /etc/hostname /dev/shm/x").await, "shared\nshared\nhello");
    assert_eq!(lab.output(&two, "sleep 0.2; nc 127.0.0.1 4000").await, "served");
    for kind in ["net", "ipc", "uts"] {
        let link = format!("readlink /proc/self/ns/{kind}");
        assert_eq!(lab.output(&one, &link).await, lab.output(&two, &link).await);
        let host = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(lab.output(&one, &link).await, host.to_string_lossy());
    }
    let status = lab.runtime.pod_sandbox_status(&pod.0).await.unwrap();
    assert_eq!((status.ready, status.ips), (true, vec!["10.9.8.7".to_owned()]));
    lab.remove(&pod).await;
}

pub async fn limits_hold_and_oom_is_told(lab: &Lab) {
    let pod = lab.sandbox("limits").await;
    let resources = LinuxResources {
        memory_limit_in_bytes: 24 << 20,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        cpu_shares: 512,
        pids_limit: 20,
        ..Default::default()
    };
    let config = ContainerConfig { resources, ..shell("hungry", "dd if=/dev/zero of=/dev/null bs=64M") };
    let id = lab.run(&pod, config.clone()).await;
    let status = lab.exited(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    let calm = ContainerConfig { metadata: ContainerMetadata { name: "calm".into(), attempt: 0 }, ..config };
    let calm = ContainerConfig { command: vec!["sleep".into(), "100".into()], ..calm };
    let id = lab.run(&pod, calm).await;
    let limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null";
    assert_eq!(lab.output(&id, limit).await, (24 << 20).to_string());
    let stats = lab.runtime.container_stats(&id).await.unwrap();
    assert!(stats.usage.memory_usage_bytes > 0 && stats.usage.cpu_core_nano_seconds > 0, "{stats:?}");
    lab.remove(&pod).await;
}

pub async fn shared_process_namespace_has_pause(lab: &Lab) {
    let mut config = lab.sandbox_config("pause");
    config.namespaces = NamespaceOptions { share_process_namespace: true, ..Default::default() };
    let pod = (lab.runtime.run_pod_sandbox(config.clone()).await.unwrap(), config);
    let one = lab.run(&pod, shell("one", "sleep 1000")).await;
    let two = lab.run(&pod, shell("two", "sleep 100 & sleep 2000")).await;
    let seen = lab.output(&two, "ps -o pid,args").await;
    assert!(seen.contains("__pause") && seen.contains("sleep 1000"), "{seen}");
    assert!(!lab.output(&two, "ls /proc/1/root/").await.contains("etc"));
    lab.runtime.stop_container(&two, 0).await.unwrap();
    let seen = lab.output(&one, "ps -o pid,args").await;
    assert!(!seen.contains("sleep 100\n") && !seen.contains("sleep 2000"), "{seen}");
    lab.remove(&pod).await;
}

pub async fn volumes_are_mounted(lab: &Lab) {
    let pod = lab.sandbox("volumes").await;
    let host = lab.dir.join("volume");
    fs::create_dir_all(host.join("inner")).unwrap();
    fs::write(host.join("file"), "content").unwrap();
    let mount = |container: &str, host: &Path, readonly| Mount {
        container_path: container.into(),
        host_path: host.to_string_lossy().into_owned(),
        readonly,
        ..Mount::default()
    };
    let mut config =
        shell("main", "cat /v/file; echo x > /v/inner/y; echo z > /ro/z || echo refused; cat /etc/hosts");
    config.mounts = vec![
        mount("/v/inner", &lab.dir.join("made-by-runtime"), false),
        mount("/v", &host, false),
        mount("/ro", &host, true),
        mount("/etc/hosts", &host.join("file"), true),
    ];
    let id = lab.run(&pod, config).await;
    let status = lab.exited(&id).await;
    let log = lab.log(&status).join("|");
    assert!(log.contains("content") && log.contains("refused") && log.ends_with("content"), "{log}");
    assert_eq!(fs::read_to_string(lab.dir.join("made-by-runtime/y")).unwrap(), "x\n");
    lab.remove(&pod).await;
}

pub async fn mounts_propagate_when_asked(lab: &Lab) {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    let pod = lab.sandbox("propagation").await;
    let host = lab.config.state.join("propagation");
    fs::create_dir_all(&host).unwrap();
    mount("tmpfs", &host, "tmpfs", MountFlags::empty(), None).unwrap();
    mount_change(&host, MountPropagationFlags::SHARED).unwrap();
    let volume = |propagation| Mount {
        container_path: "/v".into(),
        host_path: host.to_string_lossy().into_owned(),
        propagation,
        ..Mount::default()
    };
    let none = ContainerConfig { mounts: vec![volume(0)], ..shell("none", "sleep 100") };
    let slave = ContainerConfig { mounts: vec![volume(1)], ..shell("slave", "sleep 100") };
    let mut both = ContainerConfig { mounts: vec![volume(2)], ..shell("both", "sleep 100") };
    both.security.privileged = true;
    let (none, slave, both) =
        (lab.run(&pod, none).await, lab.run(&pod, slave).await, lab.run(&pod, both).await);
    fs::create_dir_all(host.join("late")).unwrap();
    mount("tmpfs", host.join("late"), "tmpfs", MountFlags::empty(), None).unwrap();
    fs::write(host.join("late/file"), "").unwrap();
    assert_eq!(lab.output(&none, "ls /v/late").await, "");
    assert_eq!(lab.output(&slave, "ls /v/late").await, "file");
    let said =
        lab.output(&both, "mkdir /v/theirs && mount -t tmpfs x /v/theirs && touch /v/theirs/here").await;
    assert_eq!(said, "");
    assert!(host.join("theirs/here").exists());
    lab.remove(&pod).await;
    for dir in ["theirs", "late", ""] {
        rustix::mount::unmount(host.join(dir), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

pub async fn host_namespaces_are_the_hosts(lab: &Lab) {
    let mut config = lab.sandbox_config("host");
    config.hostname = String::new();
    config.namespaces = NamespaceOptions {
        host_network: true,
        host_pid: true,
        host_ipc: true,
        ..NamespaceOptions::default()
    };
    let pod = (lab.runtime.run_pod_sandbox(config.clone()).await.unwrap(), config);
    let id = lab.run(&pod, shell("main", "sleep 100 & sleep 200")).await;
    for kind in ["net", "ipc", "uts", "pid"] {
        let host = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_eq!(
            lab.output(&id, &format!("readlink /proc/1/ns/../../self/ns/{kind}")).await,
            host.to_string_lossy()
        );
    }
    assert!(lab.runtime.pod_sandbox_status(&pod.0).await.unwrap().ips.is_empty());
    lab.runtime.stop_container(&id, 0).await.unwrap();
    assert_eq!(lab.exited(&id).await.exit_code, 137);
    lab.remove(&pod).await;
}

pub async fn privileged_sees_devices_and_may_mount(lab: &Lab) {
    let pod = lab.sandbox("privileged").await;
    let mut config =
        shell("main", "mkdir -p /mnt && mount -t tmpfs x /mnt && ls /dev/loop-control /dev/kmsg; sleep 100");
    config.security.privileged = true;
    let id = lab.run(&pod, config).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(lab.output(&id, "grep Seccomp: /proc/self/status").await.ends_with('0'));
    let said =
        lab.output(&id, "mount | grep -c 'x on /mnt'; echo 1 > /proc/sys/net/ipv4/ip_forward; ls /dev").await;
    assert!(said.starts_with('1') && said.contains("kmsg"), "{said}");
    lab.remove(&pod).await;
}
