//! What the file says, and what it may not say.

use std::path::Path;

use super::*;

fn with(fields: &str) -> Result<KubeletConfig, String> {
    let mut config = crate::node::testing_config();
    let head = "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\n";
    apply(parse(&format!("{head}{fields}"))?, &mut config).map(|()| config)
}

#[test]
fn fields_of_upstreams_file_change_what_the_kubelet_does() {
    let config = with(
        "
maxPods: 20
podPidsLimit: 100
containerLogMaxSize: 1Mi
cpuManagerPolicy: static
cpuManagerPolicyOptions: {full-pcpus-only: \"true\"}
reservedSystemCPUs: 0-1
systemReserved: {memory: 1Gi}
kubeReserved: {memory: 1Gi}
shutdownGracePeriod: 30s
shutdownGracePeriodCriticalPods: 10s
userNamespaces: {idsPerPod: 131072}
imageGCHighThresholdPercent: 60
imageGCLowThresholdPercent: 50
imageMinimumGCAge: 2m30s
evictionHard: {memory.available: 500Mi, nodefs.available: 10%}
evictionSoft: {memory.available: 1Gi}
evictionSoftGracePeriod: {memory.available: 1m30s}
evictionPressureTransitionPeriod: 30s
evictionMaxPodGracePeriod: 60
kernelMemcgNotification: true
enforceNodeAllocatable: [none]
staticPodPath: /etc/kubernetes/manifests
fileCheckFrequency: 1m0s
staticPodURL: https://manifests.example/pods
staticPodURLHeader: {X-Token: [one, two]}
syncFrequency: 1m0s
",
    )
    .expect("a configuration");
    assert_eq!((config.max_pods, config.pod_pids_limit, config.log_max_size), (20, 100, 1 << 20));
    assert_eq!(
        config.cpu_policy,
        CpuPolicy::Static(CpuOptions { whole_cores: true, ..CpuOptions::default() })
    );
    assert_eq!(config.reserved["cpu"].value(), 2);
    assert_eq!(config.reserved["memory"].value(), 2 << 30);
    assert_eq!(config.shutdown_periods.iter().map(|p| p.seconds).collect::<Vec<_>>(), [20, 10]);
    assert_eq!((config.ids_per_pod, config.user_ids), (131_072, IdRange::all(131_072)));
    let eviction = config.eviction;
    assert_eq!((eviction.thresholds.len(), eviction.most_grace), (4, 60), "{:?}", eviction.thresholds);
    assert_eq!((eviction.transition, eviction.kernel_tells), (Duration::from_secs(30), true));
    assert!(!config.enforce_allocatable);
    assert_eq!(config.static_pods, Path::new("/etc/kubernetes/manifests"));
    assert_eq!(config.static_pods_check, Duration::from_mins(1));
    let url = config.static_pod_url.expect("a URL");
    assert_eq!((url.url.as_str(), url.every), ("https://manifests.example/pods", CHECK_FREQUENCY));
    assert_eq!(url.headers.iter().map(|(_, v)| v.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    let gc = config.image_gc;
    assert_eq!((gc.high, gc.low, gc.min_age, gc.enough), (60, 50, 150, u64::MAX));
}

#[test]
fn managers_of_resources_are_told_where_these_are_to_be() {
    let config = with(
        "
memoryManagerPolicy: Static
reservedMemory:
- {numaNode: 0, limits: {memory: 1Gi, hugepages-2Mi: 4Mi}}
- {numaNode: 1, limits: {memory: 100Mi}}
topologyManagerPolicy: single-numa-node
topologyManagerScope: pod
topologyManagerPolicyOptions: {prefer-closest-numa-nodes: \"true\", max-allowable-numa-nodes: \"16\"}
",
    )
    .expect("a configuration");
    assert_eq!(config.memory_policy, MemoryPolicy::Static);
    let kept: Vec<_> = config.reserved_memory.iter().map(|r| (r.node, r.limits["memory"].value())).collect();
    assert_eq!(kept, [(0, 1 << 30), (1, 100 << 20)]);
    let topology = config.topology;
    assert_eq!((topology.policy, topology.scope), (TopologyPolicy::SingleNumaNode, TopologyScope::Pod));
    assert_eq!((topology.prefer_closest, topology.most_nodes), (true, 16));
    let refused = |fields: &str| with(fields).err().unwrap_or_default();
    assert!(refused("memoryManagerPolicy: static").contains("unknown policy: \"static\""));
    let twice = "reservedMemory: [{numaNode: 0, limits: {memory: 1}}, {numaNode: 0, limits: {memory: 2}}]";
    assert!(refused(twice).contains("has a duplicate value for NUMA node 0 and resource \"memory\""));
    assert!(refused("reservedMemory: [{numaNode: 0, limits: {cpu: 1}}]").contains("is not supported, only"));
    assert!(refused("topologyManagerPolicy: best").contains("must be one of: [\"none\" \"best-effort\""));
    assert!(refused("topologyManagerScope: node").contains("must be one of: \"container\", or \"pod\""));
    let few = "topologyManagerPolicyOptions: {max-allowable-numa-nodes: \"2\"}";
    assert!(refused(few).contains("should not be less than 8"));
}

#[test]
fn what_cannot_be_is_refused() {
    let refused = |fields: &str| with(fields).err().unwrap_or_default();
    assert!(refused("cpuManagerPolicy: dynamic").contains("unknown policy: \"dynamic\""));
    assert!(refused("evictionHard: {memory: 1Gi}").contains("unsupported eviction signal memory"));
    assert!(refused("evictionSoft: {memory.available: 1Gi}").contains("grace period must be specified"));
    assert!(refused("enforceNodeAllocatable: [system-reserved]").contains("is not supported"));
    assert!(refused("imageGCLowThresholdPercent: 90").contains("must be less than"));
    assert!(refused("shutdownGracePeriodCriticalPods: 10s").contains("must be <="));
    assert!(refused("shutdownGracePeriod: 10x").contains("unknown unit"));
    assert!(refused("staticPodURL: /etc/x").contains("is no http or https URL"));
    assert!(refused("staticPodURL: http://x/\nstaticPodURLHeader: {\"a b\": [c]}").contains("no header"));
    assert!(parse("kind: Pod\napiVersion: v1\n").is_err());
}

#[test]
fn options_of_the_cpu_manager_need_its_policy_and_their_gates() {
    let alpha = "cpuManagerPolicy: static\ncpuManagerPolicyOptions: {align-by-socket: \"true\"}\n";
    let refused = with(alpha).map(|_| ()).unwrap_err();
    let why = "CPU Manager Policy Alpha-level Options not enabled, but option \"align-by-socket\" provided";
    assert_eq!(refused, why);
    let enabled = with(&format!("{alpha}featureGates: {{CPUManagerPolicyAlphaOptions: true}}\n"));
    let want = CpuOptions { by_socket: true, ..CpuOptions::default() };
    assert_eq!(enabled.expect("a configuration").cpu_policy, CpuPolicy::Static(want));
    let none = with("cpuManagerPolicyOptions: {full-pcpus-only: \"true\"}\n").map(|_| ()).unwrap_err();
    assert_eq!(none, "None policy: received unsupported options=map[full-pcpus-only:true]");
}

#[test]
fn images_are_pulled_one_at_a_time_unless_more_are_allowed() {
    let pulls = |fields: &str| with(fields).map(|config| config.image_pulls);
    assert_eq!(pulls(""), Ok(Some(1)));
    assert_eq!(pulls("serializeImagePulls: false"), Ok(None));
    assert_eq!(pulls("maxParallelImagePulls: 5"), Ok(Some(5)));
    assert_eq!(pulls("maxParallelImagePulls: 1"), Ok(Some(1)));
    assert_eq!(pulls("serializeImagePulls: false\nmaxParallelImagePulls: 1"), Ok(Some(1)));
    assert_eq!(
        pulls("maxParallelImagePulls: 0"),
        Err("invalid configuration: maxParallelImagePulls 0 must be a positive number".into())
    );
    assert_eq!(
        pulls("serializeImagePulls: true\nmaxParallelImagePulls: 2"),
        Err("invalid configuration: maxParallelImagePulls cannot be larger than 1 unless SerializeImagePulls \
             (--serialize-image-pulls) is set to false"
            .into())
    );
}

#[test]
fn drop_ins_change_what_the_file_says_and_its_defaults() {
    let dir = tempfile::tempdir().expect("a directory");
    let head = "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\n";
    let file = dir.path().join("kubelet.yaml");
    std::fs::write(&file, format!("{head}maxPods: 5\npodPidsLimit: 9\n")).expect("written");
    let parts = dir.path().join("parts");
    std::fs::create_dir(&parts).expect("made");
    let read = |file: Option<&Path>, part: &str| {
        std::fs::write(parts.join("10.conf"), format!("{head}{part}")).expect("written");
        let args = NodeArgs {
            kubelet_config: file.map(Path::to_owned),
            kubelet_config_dir: Some(parts.clone()),
            ..NodeArgs::default()
        };
        let mut config = crate::node::testing_config();
        super::read(&args, &mut config).map(|()| config).map_err(|e| e.to_string())
    };
    let both = read(Some(&file), "maxPods: 6\n").expect("read");
    assert_eq!((both.max_pods, both.pod_pids_limit), (6, 9));
    assert_eq!(read(None, "maxPods: 6\n").expect("read").pod_pids_limit, -1);
    // The default of the one was there before the other came.
    let why = read(None, "maxParallelImagePulls: 3\n").unwrap_err();
    assert!(why.contains("unless SerializeImagePulls"), "{why}");
    let three = read(None, "maxParallelImagePulls: 3\nserializeImagePulls: null\n").expect("read");
    assert_eq!(three.image_pulls, Some(3));
}

#[test]
fn a_relative_path_of_static_pods_is_meant_from_where_the_file_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let head = "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\n";
    let file = dir.path().join("kubelet.yaml");
    let place = |path: &str| {
        std::fs::write(&file, format!("{head}staticPodPath: {path}\n")).expect("written");
        let args = NodeArgs { kubelet_config: Some(file.clone()), ..NodeArgs::default() };
        let mut config = crate::node::testing_config();
        super::read(&args, &mut config).expect("a configuration");
        config.static_pods
    };
    assert_eq!(place("pods.d"), dir.path().join("pods.d"));
    assert_eq!(place("/etc/pods"), Path::new("/etc/pods"));
    assert_eq!(place("\"\""), Path::new(""), "none");
}

#[test]
fn swap_is_as_the_file_says() {
    let limited =
        with("failSwapOn: true\nmemorySwap: {swapBehavior: LimitedSwap}\n").expect("a configuration");
    assert_eq!((limited.swap, limited.fail_swap_on), (SwapBehavior::LimitedSwap, true));
    let none = with("memorySwap: {}\n").expect("a configuration");
    assert_eq!((none.swap, none.fail_swap_on), (SwapBehavior::NoSwap, false));
    let odd = with("memorySwap: {swapBehavior: UnlimitedSwap}\n").map(|_| ()).unwrap_err();
    assert_eq!(
        odd,
        "invalid configuration: memorySwap.swapBehavior \"UnlimitedSwap\" must be one of: \"\", \"LimitedSwap\" or \
         \"NoSwap\""
    );
}
