//! The kubelet's configuration file (`KubeletConfiguration`, v1beta1), as upstream's `--config` takes it.

mod drop_in;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_kubelet::{
    CpuOptionGates, CpuOptions, CpuPolicy, CpuSet, EvictionTexts, IdRange, KubeletConfig, ManifestUrl,
    MemoryPolicy, MemoryReservation, ShutdownPeriod, SwapBehavior, TopologyPolicy, TopologyScope,
    shutdown_periods,
};
use coracle_meta::quantity::Quantity;
use serde::Deserialize;
use serde_json::{Map, Number, Value};

use crate::error::Failure;
use crate::node_args::NodeArgs;

/// What the documents are.
const KIND: &str = "KubeletConfiguration";
/// In which version.
const VERSION: &str = "kubelet.config.k8s.io/v1beta1";

/// Feature gates that are heeded.
const GATES: [&str; 2] = ["CPUManagerPolicyAlphaOptions", "CPUManagerPolicyBetaOptions"];

/// Default of `httpCheckFrequency`.
const CHECK_FREQUENCY: Duration = Duration::from_secs(20);

/// What of the file is heeded.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct File {
    max_pods: Option<u32>,
    pod_pids_limit: Option<i64>,
    container_log_max_size: Option<String>,
    container_log_max_files: Option<u32>,
    cpu_manager_policy: Option<String>,
    cpu_manager_policy_options: BTreeMap<String, String>,
    #[serde(rename = "reservedSystemCPUs")]
    reserved_system_cpus: String,
    memory_manager_policy: Option<String>,
    reserved_memory: Vec<Reservation>,
    topology_manager_policy: Option<String>,
    topology_manager_scope: Option<String>,
    topology_manager_policy_options: BTreeMap<String, String>,
    system_reserved: BTreeMap<String, String>,
    kube_reserved: BTreeMap<String, String>,
    shutdown_grace_period: String,
    shutdown_grace_period_critical_pods: String,
    shutdown_grace_period_by_pod_priority: Vec<Period>,
    user_namespaces: UserNamespaces,
    #[serde(rename = "imageGCHighThresholdPercent")]
    image_gc_high_threshold_percent: Option<u64>,
    #[serde(rename = "imageGCLowThresholdPercent")]
    image_gc_low_threshold_percent: Option<u64>,
    #[serde(rename = "imageMinimumGCAge")]
    image_minimum_gc_age: Option<String>,
    static_pod_path: Option<PathBuf>,
    #[serde(rename = "staticPodURL")]
    static_pod_url: String,
    #[serde(rename = "staticPodURLHeader")]
    static_pod_url_header: BTreeMap<String, Vec<String>>,
    http_check_frequency: Option<String>,
    file_check_frequency: Option<String>,
    eviction_hard: BTreeMap<String, String>,
    eviction_soft: BTreeMap<String, String>,
    eviction_soft_grace_period: BTreeMap<String, String>,
    eviction_minimum_reclaim: BTreeMap<String, String>,
    eviction_pressure_transition_period: Option<String>,
    eviction_max_pod_grace_period: i64,
    merge_default_eviction_settings: bool,
    kernel_memcg_notification: bool,
    enforce_node_allocatable: Option<Vec<String>>,
    feature_gates: BTreeMap<String, bool>,
    fail_swap_on: Option<bool>,
    memory_swap: MemorySwap,
    serialize_image_pulls: Option<bool>,
    max_parallel_image_pulls: Option<i32>,
    /// What there is besides.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Period {
    priority: i32,
    shutdown_grace_period_seconds: i64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reservation {
    numa_node: u32,
    limits: BTreeMap<String, Amount>,
}

/// A quantity, which may be written as a number.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Amount {
    Text(String),
    Number(Number),
}

impl std::fmt::Display for Amount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Number(number) => number.fmt(f),
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct UserNamespaces {
    ids_per_pod: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct MemorySwap {
    swap_behavior: String,
}

/// Reads the file, merges what the directory of drop-ins says, and changes the configuration accordingly. Upstream's
/// fields that have no meaning here are named in the log.
///
/// # Errors
/// A file cannot be read, is not of the kind, or says what cannot be.
pub fn read(args: &NodeArgs, config: &mut KubeletConfig) -> Result<(), Failure> {
    let mut value = match &args.kubelet_config {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| Failure::file("read", path, &e))?;
            let mut value =
                parse(&text).map_err(|why| Failure::usage(format!("{}: {why}", path.display())))?;
            from_its_directory(path, &mut value);
            value
        }
        None => Value::Object(Map::new()),
    };
    if let Some(dir) = &args.kubelet_config_dir {
        // Upstream fills in defaults before it merges, so this one is not chosen by what a drop-in says.
        let parallel = &value["maxParallelImagePulls"];
        let serial = Value::from(is_serial(parallel.as_i64()));
        if value["serializeImagePulls"].is_null() {
            value["serializeImagePulls"] = serial;
        }
        drop_in::merge(dir, &mut value).map_err(Failure::usage)?;
    }
    let from = args.kubelet_config.as_ref().or(args.kubelet_config_dir.as_ref());
    apply(value, config)
        .map_err(|why| Failure::usage(from.map_or(why.clone(), |from| format!("{}: {why}", from.display()))))
}

/// Reads which programs know credentials of images.
///
/// # Errors
/// The file cannot be read, or says what cannot be.
pub fn read_credential_providers(args: &NodeArgs, config: &mut KubeletConfig) -> Result<(), Failure> {
    let (Some(path), Some(dir)) =
        (&args.image_credential_provider_config, &args.image_credential_provider_bin_dir)
    else {
        return Ok(());
    };
    let text = std::fs::read_to_string(path).map_err(|e| Failure::file("read", path, &e))?;
    config.credential_providers = coracle_kubelet::credential_providers(&text)
        .map_err(|why| Failure::usage(format!("{}: {why}", path.display())))?;
    config.credential_provider_dir.clone_from(dir);
    Ok(())
}

/// The document, which must be of the kind.
fn parse(text: &str) -> Result<Value, String> {
    let value: Value = serde_yaml_ng::from_str(text).map_err(|e| e.to_string())?;
    let (kind, version) = (value["kind"].as_str(), value["apiVersion"].as_str());
    if kind != Some(KIND) || version != Some(VERSION) {
        return Err(format!("it is no {KIND} of {VERSION}"));
    }
    Ok(value)
}

/// Paths are meant from where the file is. Those of drop-ins are not, upstream neither.
fn from_its_directory(file: &Path, value: &mut Value) {
    let Some(path) = value["staticPodPath"].as_str().filter(|path| !path.is_empty()) else { return };
    let whole = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    let whole = whole.parent().unwrap_or(Path::new("/")).join(path);
    value["staticPodPath"] = whole.to_string_lossy().into();
}

fn apply(value: Value, config: &mut KubeletConfig) -> Result<(), String> {
    let file: File = serde_json::from_value(value).map_err(|e| e.to_string())?;
    let ignored: Vec<&String> = file.rest.keys().filter(|k| *k != "kind" && *k != "apiVersion").collect();
    if !ignored.is_empty() {
        tracing::warn!(?ignored, "fields of the kubelet's configuration that have no effect here");
    }
    let gates: Vec<&String> = file.feature_gates.keys().filter(|k| !GATES.contains(&k.as_str())).collect();
    if !gates.is_empty() {
        tracing::warn!(?gates, "feature gates of the kubelet's configuration that have no effect here");
    }
    config.max_pods = file.max_pods.unwrap_or(config.max_pods);
    config.pod_pids_limit = file.pod_pids_limit.unwrap_or(config.pod_pids_limit);
    config.log_max_files = file.container_log_max_files.unwrap_or(config.log_max_files);
    if let Some(size) = &file.container_log_max_size {
        config.log_max_size = quantity("containerLogMaxSize", size)?.value().max(0).unsigned_abs();
    }
    cpus(&file, config)?;
    memory(&file, config)?;
    topology(&file, config)?;
    shutdown(&file, config)?;
    image_gc(&file, config)?;
    eviction(&file, config)?;
    static_pods(&file, config)?;
    image_pulls(&file, config)?;
    config.fail_swap_on = file.fail_swap_on.unwrap_or(config.fail_swap_on);
    config.swap = match file.memory_swap.swap_behavior.as_str() {
        "" | "NoSwap" => SwapBehavior::NoSwap,
        "LimitedSwap" => SwapBehavior::LimitedSwap,
        other => {
            return Err(format!(
                "invalid configuration: memorySwap.swapBehavior {other:?} must be one of: \"\", \"LimitedSwap\" or \
                 \"NoSwap\""
            ));
        }
    };
    if let Some(ids) = file.user_namespaces.ids_per_pod {
        config.ids_per_pod = ids;
        config.user_ids = IdRange::all(ids);
    }
    Ok(())
}

fn quantity(field: &str, text: &str) -> Result<Quantity, String> {
    Quantity::parse(text).map_err(|e| format!("{field}: {e}"))
}

fn length(field: &str, text: &str) -> Result<Duration, String> {
    if text.is_empty() {
        return Ok(Duration::ZERO);
    }
    coracle_meta::cron::duration(text).map_err(|e| format!("{field}: {e}"))
}

fn cpus(file: &File, config: &mut KubeletConfig) -> Result<(), String> {
    for (field, amounts) in [("systemReserved", &file.system_reserved), ("kubeReserved", &file.kube_reserved)]
    {
        for (name, amount) in amounts {
            let amount = quantity(&format!("{field}.{name}"), amount)?;
            *config.reserved.entry(name.clone()).or_default() += amount;
        }
    }
    if !file.reserved_system_cpus.is_empty() {
        let set =
            CpuSet::parse(&file.reserved_system_cpus).map_err(|e| format!("reservedSystemCPUs: {e}"))?;
        config.reserved.insert("cpu".into(), Quantity::from(i64::try_from(set.len()).unwrap_or(0)));
        config.reserved_cpus = Some(set);
    }
    let options = &file.cpu_manager_policy_options;
    config.cpu_policy = match file.cpu_manager_policy.as_deref() {
        None | Some("none") if !options.is_empty() => {
            let shown: Vec<String> = options.iter().map(|(name, value)| format!("{name}:{value}")).collect();
            return Err(format!("None policy: received unsupported options=map[{}]", shown.join(" ")));
        }
        None | Some("none") => CpuPolicy::None,
        Some("static") => {
            let gate = |name: &str, default: bool| file.feature_gates.get(name).copied().unwrap_or(default);
            let gates = CpuOptionGates {
                alpha: gate("CPUManagerPolicyAlphaOptions", false),
                beta: gate("CPUManagerPolicyBetaOptions", true),
            };
            CpuPolicy::Static(CpuOptions::parse(options, gates)?)
        }
        Some(other) => return Err(format!("unknown policy: \"{other}\"")),
    };
    Ok(())
}

fn memory(file: &File, config: &mut KubeletConfig) -> Result<(), String> {
    config.memory_policy = match file.memory_manager_policy.as_deref() {
        None | Some("None") => MemoryPolicy::None,
        Some("Static") => MemoryPolicy::Static,
        Some("BestEffort") => {
            return Err("policy \"BestEffort\" is not available for platform \"linux\"".into());
        }
        Some(other) => return Err(format!("unknown policy: \"{other}\"")),
    };
    config.reserved_memory = Vec::new();
    for Reservation { numa_node, limits } in &file.reserved_memory {
        let mut amounts = BTreeMap::new();
        for (kind, amount) in limits {
            if kind != "memory" && !kind.starts_with("hugepages-") {
                return Err(format!(
                    "invalid configuration: the limit type {kind:?} for NUMA node {numa_node} is not supported, only \
                     [memory hugepages-<HugePageSize>] is accepted"
                ));
            }
            let amount = quantity(&format!("reservedMemory.limits.{kind}"), &amount.to_string())?;
            if amount.is_zero() {
                return Err(format!(
                    "invalid configuration: reserved memory may not be zero for NUMA node {numa_node} and resource \
                     {kind:?}"
                ));
            }
            let mut earlier = config.reserved_memory.iter().filter(|r| r.node == *numa_node);
            if earlier.any(|r| r.limits.contains_key(kind)) {
                return Err(format!(
                    "invalid configuration: the reserved memory has a duplicate value for NUMA node {numa_node} and \
                     resource {kind:?}"
                ));
            }
            amounts.insert(kind.clone(), amount);
        }
        config.reserved_memory.push(MemoryReservation { node: *numa_node, limits: amounts });
    }
    Ok(())
}

fn topology(file: &File, config: &mut KubeletConfig) -> Result<(), String> {
    let topology = &mut config.topology;
    topology.policy = match file.topology_manager_policy.as_deref() {
        None | Some("none") => TopologyPolicy::None,
        Some("best-effort") => TopologyPolicy::BestEffort,
        Some("restricted") => TopologyPolicy::Restricted,
        Some("single-numa-node") => TopologyPolicy::SingleNumaNode,
        Some(other) => {
            return Err(format!(
                "invalid configuration: topologyManagerPolicy (--topology-manager-policy) {other:?} must be one of: \
                 [\"none\" \"best-effort\" \"restricted\" \"single-numa-node\"]"
            ));
        }
    };
    topology.scope = match file.topology_manager_scope.as_deref() {
        None | Some("container") => TopologyScope::Container,
        Some("pod") => TopologyScope::Pod,
        Some(other) => {
            return Err(format!(
                "invalid configuration: topologyManagerScope (--topology-manager-scope) {other:?} must be one of: \
                 \"container\", or \"pod\""
            ));
        }
    };
    topology.options(&file.topology_manager_policy_options)
}

fn shutdown(file: &File, config: &mut KubeletConfig) -> Result<(), String> {
    let all = length("shutdownGracePeriod", &file.shutdown_grace_period)?;
    let critical = length("shutdownGracePeriodCriticalPods", &file.shutdown_grace_period_critical_pods)?;
    let by_priority = &file.shutdown_grace_period_by_pod_priority;
    let is_given = !all.is_zero() || !critical.is_zero();
    if is_given && !by_priority.is_empty() {
        return Err(
            "Cannot specify both shutdownGracePeriodByPodPriority and shutdownGracePeriod at the same \
                    time"
                .into(),
        );
    }
    if critical > all {
        return Err(format!(
            "invalid configuration: shutdownGracePeriodCriticalPods {critical:?} must be <= \
             shutdownGracePeriod {all:?}"
        ));
    }
    let seconds = |length: Duration| i64::try_from(length.as_secs()).unwrap_or(i64::MAX);
    config.shutdown_periods = match by_priority.is_empty() {
        true => shutdown_periods(seconds(all), seconds(critical)),
        false => by_priority
            .iter()
            .map(|p| ShutdownPeriod { priority: p.priority, seconds: p.shutdown_grace_period_seconds })
            .collect(),
    };
    Ok(())
}

fn eviction(file: &File, config: &mut KubeletConfig) -> Result<(), String> {
    config.eviction.configure(EvictionTexts {
        hard: &file.eviction_hard,
        soft: &file.eviction_soft,
        grace: &file.eviction_soft_grace_period,
        reclaim: &file.eviction_minimum_reclaim,
        merge: file.merge_default_eviction_settings,
    })?;
    let transition = file.eviction_pressure_transition_period.as_deref();
    let transition = transition.map(|text| length("evictionPressureTransitionPeriod", text)).transpose()?;
    if let Some(transition) = transition.filter(|time| !time.is_zero()) {
        config.eviction.transition = transition;
    }
    config.eviction.most_grace = file.eviction_max_pod_grace_period;
    config.eviction.kernel_tells = file.kernel_memcg_notification;
    let Some(enforced) = &file.enforce_node_allocatable else { return Ok(()) };
    config.enforce_allocatable = enforced.iter().any(|what| what == "pods");
    match enforced.iter().find(|what| !matches!(what.as_str(), "pods" | "none" | "")) {
        Some(other) => {
            Err(format!("enforceNodeAllocatable: {other:?} is not supported (these are: pods, none)"))
        }
        None => Ok(()),
    }
}

fn static_pods(file: &File, config: &mut KubeletConfig) -> Result<(), String> {
    if let Some(path) = &file.static_pod_path {
        config.static_pods.clone_from(path);
    }
    let every = file.file_check_frequency.as_deref().map(|text| length("fileCheckFrequency", text));
    if let Some(every) = every.transpose()?.filter(|every| !every.is_zero()) {
        config.static_pods_check = every;
    }
    if file.static_pod_url.is_empty() {
        return Ok(());
    }
    let url: http::Uri = file.static_pod_url.parse().map_err(|e| format!("staticPodURL: {e}"))?;
    if !matches!(url.scheme_str(), Some("http" | "https")) {
        return Err(format!("staticPodURL: {url} is no http or https URL"));
    }
    let mut headers = Vec::new();
    for (name, values) in &file.static_pod_url_header {
        for value in values {
            let valid =
                http::HeaderName::try_from(name).is_ok() && http::HeaderValue::try_from(value).is_ok();
            if !valid {
                return Err(format!("staticPodURLHeader: {name:?} is no header, or its value none"));
            }
            headers.push((name.clone(), value.clone()));
        }
    }
    let every = file.http_check_frequency.as_deref().map(|text| length("httpCheckFrequency", text));
    let every = every.transpose()?.filter(|every| !every.is_zero()).unwrap_or(CHECK_FREQUENCY);
    config.static_pod_url = Some(ManifestUrl { url: file.static_pod_url.clone(), headers, every });
    Ok(())
}

/// Whether images are pulled one at a time unless something is said of that.
fn is_serial(parallel: Option<i64>) -> bool {
    parallel.is_none_or(|most| most < 2)
}

fn image_pulls(file: &File, config: &mut KubeletConfig) -> Result<(), String> {
    let most = file.max_parallel_image_pulls;
    let serial = file.serialize_image_pulls.unwrap_or(is_serial(most.map(i64::from)));
    if let Some(most) = most.filter(|most| *most < 1) {
        return Err(format!("invalid configuration: maxParallelImagePulls {most} must be a positive number"));
    }
    if serial && most.is_some_and(|most| most > 1) {
        return Err("invalid configuration: maxParallelImagePulls cannot be larger than 1 unless \
                    SerializeImagePulls (--serialize-image-pulls) is set to false"
            .into());
    }
    let most = if serial { Some(1) } else { most.map(i32::unsigned_abs) };
    config.image_pulls = most.and_then(|most| usize::try_from(most).ok());
    Ok(())
}

fn image_gc(file: &File, config: &mut KubeletConfig) -> Result<(), String> {
    let gc = &mut config.image_gc;
    let given = file.image_gc_high_threshold_percent.is_some();
    gc.high = file.image_gc_high_threshold_percent.unwrap_or(gc.high);
    gc.low = file.image_gc_low_threshold_percent.unwrap_or(gc.low);
    if given {
        // Who names a share of the disk means it.
        gc.enough = u64::MAX;
    }
    if let Some(age) = &file.image_minimum_gc_age {
        let seconds = length("imageMinimumGCAge", age)?.as_secs();
        gc.min_age = i64::try_from(seconds).unwrap_or(i64::MAX);
    }
    if gc.high > 100 || gc.low >= gc.high {
        return Err(format!(
            "invalid configuration: imageGCLowThresholdPercent (--image-gc-low-threshold) {} must be less than \
             imageGCHighThresholdPercent (--image-gc-high-threshold) {}",
            gc.low, gc.high
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
