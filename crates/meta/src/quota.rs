//! What an object uses of a ResourceQuota, and which quotas are about it. Admission charges by these rules, and the
//! quota controller recounts by them: <https://kubernetes.io/docs/concepts/policy/resource-quotas/>.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{
    Container, PersistentVolumeClaim, Pod, PodAffinityTerm, ResourceQuota, ScopedResourceSelectorRequirement,
    Service,
};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::pod::Resources;
use crate::quantity::Quantity;
use crate::selector::{Operator, Requirement};
use crate::{Object, pod};

/// Amounts that every container must name when a quota limits them.
const REQUIRED: [&str; 6] =
    ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
const POD: [&str; 11] = [
    "count/pods",
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
];
const SERVICE: [&str; 4] = ["count/services", "services", "services.nodeports", "services.loadbalancers"];
const CLAIM: [&str; 2] = ["persistentvolumeclaims", "requests.storage"];
const CLASS: &str = ".storageclass.storage.k8s.io/";
const DEVICES: &str = ".deviceclass.resource.k8s.io/devices";
/// Devices that a request for all of them may yield at the most.
const ALL_DEVICES: i64 = 32;
/// Resources whose objects were counted by their plural before there was `count/`.
const OLD_COUNTS: [&str; 4] = ["configmaps", "resourcequotas", "replicationcontrollers", "secrets"];

/// How the objects of one resource are charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evaluator {
    /// Pods: what they request, while they are not over.
    Pods,
    /// Services: node ports and load balancers.
    Services,
    /// PersistentVolumeClaims: storage, also by class.
    Claims,
    /// ResourceClaims: devices by class.
    DeviceClaims,
    /// All others are counted under these names.
    Count(Vec<String>),
}

/// Upstream's `requests` and `limits` of one container as a quota names them.
fn compute(requests: &Resources, limits: &Resources) -> Resources {
    let mut out = Resources::from([("pods".to_owned(), Quantity::from(1))]);
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(amount) = requests.get(name) {
            out.insert(name.to_owned(), *amount);
            out.insert(format!("requests.{name}"), *amount);
        }
        if let Some(amount) = limits.get(name) {
            out.insert(format!("limits.{name}"), *amount);
        }
    }
    for (name, amount) in requests {
        if name.starts_with("hugepages-") {
            out.insert(name.clone(), *amount);
            out.insert(format!("requests.{name}"), *amount);
        }
        if is_extended(name) {
            out.insert(format!("requests.{name}"), *amount);
        }
    }
    out
}

/// Whether the resource is defined by someone else than Kubernetes.
fn is_extended(name: &str) -> bool {
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    (!native && !name.starts_with("requests.")) || name.starts_with("deviceclass.resource.kubernetes.io/")
}

fn is_extended_in_quota(name: &str) -> bool {
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    (!native || name.starts_with("requests.deviceclass.resource.kubernetes.io/"))
        && name.starts_with("requests.")
}

impl Evaluator {
    /// The one for a resource, by group and plural.
    pub fn of(group: &str, plural: &str) -> Self {
        match (group, plural) {
            ("", "pods") => Self::Pods,
            ("", "services") => Self::Services,
            ("", "persistentvolumeclaims") => Self::Claims,
            ("resource.k8s.io", "resourceclaims") => Self::DeviceClaims,
            ("", plural) => {
                let old = OLD_COUNTS.contains(&plural).then(|| plural.to_owned());
                Self::Count(std::iter::once(format!("count/{plural}")).chain(old).collect())
            }
            (group, plural) => Self::Count(vec![format!("count/{plural}.{group}")]),
        }
    }

    /// Whether an amount of a quota is about such objects.
    pub fn covers(&self, name: &str) -> bool {
        match self {
            Self::Pods => {
                POD.contains(&name)
                    || name.starts_with("hugepages-")
                    || name.starts_with("requests.hugepages-")
                    || is_extended_in_quota(name)
            }
            Self::Services => SERVICE.contains(&name),
            Self::Claims => {
                name == "count/persistentvolumeclaims"
                    || CLAIM.contains(&name)
                    || CLAIM.iter().any(|r| name.strip_suffix(r).is_some_and(|rest| rest.ends_with(CLASS)))
            }
            Self::DeviceClaims => name == "count/resourceclaims.resource.k8s.io" || name.ends_with(DEVICES),
            Self::Count(names) => names.iter().any(|n| n == name),
        }
    }

    /// Whether the quota is about the object: it limits something that the object may use, and all its scopes hold.
    /// Which amounts it limits is told by its status.
    pub fn matches(&self, quota: &ResourceQuota, obj: &dyn Object) -> bool {
        let hard = quota.status.as_ref().and_then(|s| s.hard.as_ref());
        hard.is_some_and(|h| h.keys().any(|name| self.covers(name))) && self.in_scope(quota, obj)
    }

    /// Whether all scopes of the quota hold for the object.
    pub fn in_scope(&self, quota: &ResourceQuota, obj: &dyn Object) -> bool {
        let Some(spec) = &quota.spec else { return true };
        let exists = |scope: &String| ScopedResourceSelectorRequirement {
            scope_name: scope.clone(),
            operator: "Exists".into(),
            values: None,
        };
        let plain = spec.scopes.iter().flatten().map(exists);
        let selected = spec.scope_selector.iter().flat_map(|s| s.match_expressions.iter().flatten().cloned());
        plain.chain(selected).all(|scope| self.scope_holds(&scope, obj))
    }

    fn scope_holds(&self, scope: &ScopedResourceSelectorRequirement, obj: &dyn Object) -> bool {
        match self {
            Self::Pods => obj.downcast::<Pod>().is_some_and(|pod| pod_scope(scope, pod)),
            Self::Claims if scope.scope_name == "VolumeAttributesClass" => {
                obj.downcast::<PersistentVolumeClaim>().is_some_and(|claim| claim_scope(scope, claim))
            }
            _ => false,
        }
    }

    /// What the object uses at `now`.
    pub fn usage(&self, obj: &dyn Object, now: Timestamp) -> Resources {
        match self {
            Self::Pods => obj.downcast::<Pod>().map(|pod| pod_usage(pod, now)).unwrap_or_default(),
            Self::Services => obj.downcast::<Service>().map(service_usage).unwrap_or_default(),
            Self::Claims => obj.downcast::<PersistentVolumeClaim>().map(claim_usage).unwrap_or_default(),
            Self::DeviceClaims => obj.downcast::<ResourceClaim>().map(device_usage).unwrap_or_default(),
            Self::Count(names) => names.iter().map(|name| (name.clone(), Quantity::from(1))).collect(),
        }
    }

    /// Checks that every container of a pod names what the quota limits (`required`).
    ///
    /// # Errors
    /// Upstream's words for what is missing where.
    pub fn constraints(&self, required: &[&str], obj: &dyn Object) -> Result<(), String> {
        let spec = match (self, obj.downcast::<Pod>()) {
            (Self::Pods, Some(Pod { spec: Some(spec), .. })) => spec,
            _ => return Ok(()),
        };
        let pod_level = spec.resources.as_ref();
        if pod_level.is_some_and(|r| r.requests.is_some() || r.limits.is_some()) {
            return Ok(());
        }
        let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
            let named = container_usage(container);
            for name in required.iter().filter(|name| REQUIRED.contains(*name) && !named.contains_key(**name))
            {
                missing.entry(name).or_default().insert(&container.name);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let join = |names: BTreeSet<&str>| names.into_iter().collect::<Vec<_>>().join(",");
        let parts: Vec<String> = missing
            .into_iter()
            .map(|(name, containers)| format!("{name} for: {}", join(containers)))
            .collect();
        Err(format!("must specify {}", parts.join("; ")))
    }
}

fn amounts(api: Option<&BTreeMap<String, ApiQuantity>>) -> Resources {
    api.into_iter().flatten().map(|(name, amount)| (name.clone(), Quantity::from_api(amount))).collect()
}

fn container_usage(container: &Container) -> Resources {
    let resources = container.resources.as_ref();
    let requests = amounts(resources.and_then(|r| r.requests.as_ref()));
    compute(&requests, &amounts(resources.and_then(|r| r.limits.as_ref())))
}

/// Whether a pod counts beyond its mere existence: it is neither finished nor long overdue to be gone.
pub fn counts(pod: &Pod, now: Timestamp) -> bool {
    if pod::is_terminal(pod) {
        return false;
    }
    let meta = &pod.metadata;
    match (&meta.deletion_timestamp, meta.deletion_grace_period_seconds) {
        (Some(Time(at)), Some(grace)) => {
            at.checked_add(SignedDuration::from_secs(grace)).is_ok_and(|end| now <= end)
        }
        _ => true,
    }
}

fn pod_usage(pod: &Pod, now: Timestamp) -> Resources {
    let mut out =
        if counts(pod, now) { compute(&pod::requests(pod), &pod::limits(pod)) } else { Resources::new() };
    out.insert("count/pods".to_owned(), Quantity::from(1));
    out
}

/// Whether a pod's life is limited.
pub fn is_terminating(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.active_deadline_seconds).is_some_and(|s| s >= 0)
}

fn pod_scope(scope: &ScopedResourceSelectorRequirement, pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    match scope.scope_name.as_str() {
        "Terminating" => is_terminating(pod),
        "NotTerminating" => !is_terminating(pod),
        "BestEffort" => pod::qos(pod) == "BestEffort",
        "NotBestEffort" => pod::qos(pod) != "BestEffort",
        "PriorityClass" => {
            let class = spec.and_then(|s| s.priority_class_name.as_deref()).filter(|c| !c.is_empty());
            selects(scope, class)
        }
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    }
}

/// Whether the scope's selector holds for a value, or for its absence.
fn selects(scope: &ScopedResourceSelectorRequirement, value: Option<&str>) -> bool {
    let operator = match scope.operator.as_str() {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        _ => return false,
    };
    let values = scope.values.clone().unwrap_or_default();
    Requirement::new(&scope.scope_name, operator, values).is_ok_and(|r| r.matches_value(value))
}

fn crosses_namespaces(pod: &Pod) -> bool {
    let Some(affinity) = pod.spec.as_ref().and_then(|s| s.affinity.as_ref()) else { return false };
    let crosses = |term: &PodAffinityTerm| {
        term.namespaces.as_ref().is_some_and(|n| !n.is_empty()) || term.namespace_selector.is_some()
    };
    let (with, without) = (affinity.pod_affinity.as_ref(), affinity.pod_anti_affinity.as_ref());
    let required = with.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let required_anti = without.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    let preferred = with.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let preferred_anti =
        without.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    required.into_iter().chain(required_anti).flatten().any(crosses)
        || preferred.into_iter().chain(preferred_anti).flatten().any(|w| crosses(&w.pod_affinity_term))
}

fn claim_scope(scope: &ScopedResourceSelectorRequirement, claim: &PersistentVolumeClaim) -> bool {
    let status = claim.status.as_ref();
    let names: BTreeSet<&str> = [
        claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref()),
        status.and_then(|s| s.current_volume_attributes_class_name.as_deref()),
        status
            .and_then(|s| s.modify_volume_status.as_ref())
            .and_then(|m| m.target_volume_attributes_class_name.as_deref()),
    ]
    .into_iter()
    .flatten()
    .filter(|name| !name.is_empty())
    .collect();
    if names.is_empty() { selects(scope, None) } else { names.iter().any(|name| selects(scope, Some(name))) }
}

fn claim_usage(claim: &PersistentVolumeClaim) -> Resources {
    let one = Quantity::from(1);
    let mut out = Resources::from([
        ("persistentvolumeclaims".to_owned(), one),
        ("count/persistentvolumeclaims".to_owned(), one),
    ]);
    let spec = claim.spec.as_ref();
    let old =
        claim.metadata.annotations.as_ref().and_then(|a| a.get("volume.beta.kubernetes.io/storage-class"));
    let class = old.or_else(|| spec.and_then(|s| s.storage_class_name.as_ref())).filter(|c| !c.is_empty());
    let requested = spec.and_then(|s| s.resources.as_ref()?.requests.as_ref()?.get("storage"));
    let allocated = claim.status.as_ref().and_then(|s| s.allocated_resources.as_ref()?.get("storage"));
    let storage = requested.map(|r| {
        let wanted = Quantity::from_api(r);
        let most = allocated.map(Quantity::from_api).filter(|a| *a > wanted).unwrap_or(wanted);
        // Whole bytes.
        if most.is_whole() { most } else { Quantity::from(most.value()) }
    });
    if let Some(class) = class {
        out.insert(format!("{class}{CLASS}persistentvolumeclaims"), one);
        out.extend(storage.map(|amount| (format!("{class}{CLASS}requests.storage"), amount)));
    }
    out.extend(storage.map(|amount| ("requests.storage".to_owned(), amount)));
    out
}

fn service_usage(service: &Service) -> Resources {
    let spec = service.spec.as_ref();
    let ports = spec.and_then(|s| s.ports.as_deref()).unwrap_or_default();
    let all = i64::try_from(ports.len()).unwrap_or(0);
    let (node_ports, balancers) = match spec.and_then(|s| s.type_.as_deref()) {
        Some("NodePort") => (all, 0),
        Some("LoadBalancer") if spec.and_then(|s| s.allocate_load_balancer_node_ports) == Some(false) => {
            let set = ports.iter().filter(|p| p.node_port.is_some_and(|n| n != 0)).count();
            (i64::try_from(set).unwrap_or(0), 1)
        }
        Some("LoadBalancer") => (all, 1),
        _ => (0, 0),
    };
    SERVICE
        .iter()
        .zip([1, 1, node_ports, balancers])
        .map(|(n, q)| ((*n).to_owned(), Quantity::from(q)))
        .collect()
}

fn device_usage(claim: &ResourceClaim) -> Resources {
    let devices = |mode: Option<&str>, count: Option<i64>| match mode {
        Some("All") => ALL_DEVICES,
        _ => count.unwrap_or(0),
    };
    let mut out = Resources::from([("count/resourceclaims.resource.k8s.io".to_owned(), Quantity::from(1))]);
    for request in claim.spec.devices.iter().flat_map(|d| d.requests.iter().flatten()) {
        // Of alternatives, the worst case per class.
        let mut most: BTreeMap<&str, i64> = BTreeMap::new();
        for sub in request.first_available.iter().flatten() {
            let count = devices(sub.allocation_mode.as_deref(), sub.count);
            let slot = most.entry(&sub.device_class_name).or_default();
            *slot = (*slot).max(count);
        }
        if let (true, Some(exactly)) = (most.is_empty(), &request.exactly) {
            let count = devices(exactly.allocation_mode.as_deref(), exactly.count);
            most.insert(&exactly.device_class_name, count);
        }
        for (class, count) in most {
            let implicit = format!("requests.deviceclass.resource.kubernetes.io/{class}");
            for name in [format!("{class}{DEVICES}"), implicit] {
                *out.entry(name).or_default() += Quantity::from(count);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "p" }, "spec": spec })).unwrap()
    }

    #[test]
    fn pods_are_charged_for_requests_and_limits_until_they_are_over() {
        let mut pod = pod(json!({ "containers": [{ "name": "c", "resources": {
            "requests": { "cpu": "100m", "example.com/gpu": "2" }, "limits": { "cpu": "1" } } }] }));
        let used = Evaluator::Pods.usage(&pod, Timestamp::UNIX_EPOCH);
        let get = |name: &str| used.get(name).map(ToString::to_string);
        assert_eq!(get("requests.cpu").as_deref(), Some("100m"));
        assert_eq!(get("limits.cpu").as_deref(), Some("1"));
        assert_eq!(get("requests.example.com/gpu").as_deref(), Some("2"));
        assert_eq!((get("pods").as_deref(), get("limits.memory")), (Some("1"), None));
        pod.status.get_or_insert_default().phase = Some("Failed".into());
        let used = Evaluator::Pods.usage(&pod, Timestamp::UNIX_EPOCH);
        assert_eq!(used.keys().collect::<Vec<_>>(), ["count/pods"]);
    }

    #[test]
    fn containers_must_name_what_is_limited() {
        let pod = pod(json!({ "containers": [{ "name": "b" }, { "name": "a", "resources": {
            "limits": { "memory": "1" } } }] }));
        let why = Evaluator::Pods.constraints(&["limits.memory", "requests.cpu", "pods"], &pod);
        assert_eq!(why.unwrap_err(), "must specify limits.memory for: b; requests.cpu for: a,b");
    }

    #[test]
    fn scopes_select_pods() {
        let best_effort = pod(json!({ "containers": [{ "name": "c" }], "priorityClassName": "high" }));
        let quota = |selector: serde_json::Value| -> ResourceQuota {
            serde_json::from_value(json!({ "spec": selector, "status": { "hard": { "pods": "1" } } }))
                .unwrap()
        };
        let check = |selector, want: bool| {
            assert_eq!(Evaluator::Pods.matches(&quota(selector), &best_effort), want);
        };
        check(json!({ "scopes": ["BestEffort", "NotTerminating"] }), true);
        check(json!({ "scopes": ["Terminating"] }), false);
        let class = |operator: &str, values: serde_json::Value| {
            json!({ "scopeSelector": { "matchExpressions": [
                { "scopeName": "PriorityClass", "operator": operator, "values": values }] } })
        };
        check(class("In", json!(["high"])), true);
        check(class("NotIn", json!(["high"])), false);
        check(class("Exists", json!(null)), true);
    }

    #[test]
    fn other_objects_are_counted() {
        let check =
            |group: &str, plural: &str, name: &str| assert!(Evaluator::of(group, plural).covers(name));
        check("", "secrets", "secrets");
        check("", "secrets", "count/secrets");
        check("example.com", "things", "count/things.example.com");
        check("", "persistentvolumeclaims", "gold.storageclass.storage.k8s.io/requests.storage");
    }
}
