//! LimitRanger: pods get the default requests and limits of their namespace, and pods and claims beyond its bounds are
//! refused.

use std::collections::BTreeMap;

use async_trait::async_trait;
use coracle_meta::pod::Resources;
use coracle_meta::quantity::Quantity;
use coracle_meta::{Status, pod};
use k8s_openapi::api::core::v1::{
    Container, LimitRange, LimitRangeItem, PersistentVolumeClaim, Pod, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Api;

use crate::{Environment, Operation, Plugin, Request};

/// What the plugin says of the defaults it has set.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// The plugin.
pub(super) struct LimitRanger;

type Amounts = BTreeMap<String, Api>;

#[async_trait]
impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        let pods = (request.resource.group, request.resource.plural) == ("", "pods");
        match (request.operation, request.subresource) {
            (Operation::Create, "") => pods || request.is("", "persistentvolumeclaims"),
            (Operation::Update, "") => request.is("", "persistentvolumeclaims"),
            (Operation::Update, "resize") => pods,
            _ => false,
        }
    }

    async fn mutate(&self, env: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        if is_going(request) {
            return Ok(());
        }
        let ranges = env.reader.list("", "limitranges", request.namespace);
        if let Some(pod) = request.object_mut::<Pod>() {
            for range in ranges.iter().filter_map(|obj| obj.downcast::<LimitRange>()) {
                set_defaults(range, pod);
            }
        }
        Ok(())
    }

    async fn validate(&self, env: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        if is_going(request) {
            return Ok(());
        }
        for range in env.reader.list("", "limitranges", request.namespace) {
            let items = range.downcast::<LimitRange>().and_then(|r| r.spec.as_ref()).map(|s| &s.limits[..]);
            let items = items.unwrap_or_default();
            let mut errors = match (request.object_as::<Pod>(), request.object_as::<PersistentVolumeClaim>())
            {
                (Some(pod), _) => check_pod(items, pod),
                (_, Some(claim)) => check_claim(items, claim),
                _ => Vec::new(),
            };
            if !errors.is_empty() {
                let mut seen = Vec::new();
                errors.retain(|e| {
                    !seen.contains(e) && {
                        seen.push(e.clone());
                        true
                    }
                });
                let why =
                    if errors.len() == 1 { errors.remove(0) } else { format!("[{}]", errors.join(", ")) };
                return Err(request.forbidden(&why));
            }
        }
        Ok(())
    }
}

/// Whether the object is being deleted; then nothing is enforced any more.
fn is_going(request: &Request<'_>) -> bool {
    request.old.is_some_and(|old| old.meta().deletion_timestamp.is_some())
}

/// Gives containers what the range says where they say nothing.
fn set_defaults(range: &LimitRange, pod: &mut Pod) {
    let (mut requests, mut limits) = (Amounts::new(), Amounts::new());
    for item in range.spec.iter().flat_map(|s| &s.limits).filter(|item| item.type_ == "Container") {
        requests.extend(item.default_request.clone().unwrap_or_default());
        limits.extend(item.default.clone().unwrap_or_default());
    }
    let mut notes = Vec::new();
    let Some(spec) = &mut pod.spec else { return };
    for container in &mut spec.containers {
        fill(container, &requests, &limits, "container", &mut notes);
    }
    for container in spec.init_containers.iter_mut().flatten() {
        fill(container, &requests, &limits, "init container", &mut notes);
    }
    if !notes.is_empty() {
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        pod.metadata.annotations.get_or_insert_default().insert(ANNOTATION.to_owned(), note);
    }
}

fn fill(
    container: &mut Container,
    requests: &Amounts,
    limits: &Amounts,
    what: &str,
    notes: &mut Vec<String>,
) {
    if requests.is_empty() && limits.is_empty() {
        return;
    }
    let own = container.resources.get_or_insert_default();
    for (kind, defaults, slot) in
        [("request", requests, &mut own.requests), ("limit", limits, &mut own.limits)]
    {
        let present = slot.get_or_insert_default();
        let absent: Vec<&String> = defaults.keys().filter(|name| !present.contains_key(*name)).collect();
        if !absent.is_empty() {
            let names: Vec<&str> = absent.iter().map(|name| name.as_str()).collect();
            notes.push(format!("{} {kind} for {what} {}", names.join(", "), container.name));
            for name in absent {
                present.insert(name.clone(), defaults[name].clone());
            }
        }
        if present.is_empty() {
            *slot = None;
        }
    }
}

fn read(amounts: Option<&Amounts>) -> Resources {
    amounts.into_iter().flatten().map(|(name, amount)| (name.clone(), Quantity::from_api(amount))).collect()
}

fn check_pod(items: &[LimitRangeItem], pod: &Pod) -> Vec<String> {
    let mut errors = Vec::new();
    let Some(spec) = &pod.spec else { return errors };
    for item in items {
        match item.type_.as_str() {
            "Container" => {
                for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
                    let own = container.resources.as_ref();
                    let pick = |side: fn(&ResourceRequirements) -> Option<&Amounts>| read(own.and_then(side));
                    let (requests, limits) = (pick(|r| r.requests.as_ref()), pick(|r| r.limits.as_ref()));
                    check_item(item, &requests, &limits, &mut errors);
                }
            }
            "Pod" => {
                let (requests, limits) = of_pod(pod);
                check_item(item, &requests, &limits, &mut errors);
            }
            _ => {}
        }
    }
    errors
}

/// Requests and limits of a whole pod, without overhead; at pod level only cpu and memory count.
fn of_pod(pod: &Pod) -> (Resources, Resources) {
    let mut pod = pod.clone();
    if let Some(spec) = &mut pod.spec {
        spec.overhead = None;
        if let Some(level) = &mut spec.resources {
            for side in [&mut level.requests, &mut level.limits].into_iter().flatten() {
                side.retain(|name, _| matches!(name.as_str(), "cpu" | "memory"));
            }
        }
    }
    (pod::requests(&pod), pod::limits(&pod))
}

fn check_claim(items: &[LimitRangeItem], claim: &PersistentVolumeClaim) -> Vec<String> {
    let mut errors = Vec::new();
    let own = claim.spec.as_ref().and_then(|s| s.resources.as_ref());
    let requests = read(own.and_then(|r| r.requests.as_ref()));
    let kind = "PersistentVolumeClaim";
    for item in items.iter().filter(|item| item.type_ == kind) {
        for (name, bound) in read(item.min.as_ref()) {
            errors.extend(below(kind, &name, bound, requests.get(&name), None));
        }
        for (name, bound) in read(item.max.as_ref()) {
            let stated = format!("maximum {name} usage per {kind} is {bound}");
            match requests.get(&name) {
                None => errors.push(format!("{stated}.  No request is specified")),
                Some(own) if *own > bound => errors.push(format!("{stated}, but request is {own}")),
                Some(_) => {}
            }
        }
    }
    errors
}

fn check_item(item: &LimitRangeItem, requests: &Resources, limits: &Resources, errors: &mut Vec<String>) {
    let kind = item.type_.as_str();
    for (name, bound) in read(item.min.as_ref()) {
        errors.extend(below(kind, &name, bound, requests.get(&name), limits.get(&name)));
    }
    for (name, bound) in read(item.max.as_ref()) {
        errors.extend(above(kind, &name, bound, requests.get(&name), limits.get(&name)));
    }
    for (name, bound) in read(item.max_limit_request_ratio.as_ref()) {
        errors.extend(ratio(kind, &name, bound, requests.get(&name), limits.get(&name)));
    }
}

fn below(
    kind: &str,
    name: &str,
    bound: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let stated = format!("minimum {name} usage per {kind} is {bound}");
    match (request, limit) {
        (None, _) => Some(format!("{stated}.  No request is specified")),
        (Some(own), _) if own.milli() < bound.milli() => Some(format!("{stated}, but request is {own}")),
        (_, Some(own)) if own.milli() < bound.milli() => Some(format!("{stated}, but limit is {own}")),
        _ => None,
    }
}

fn above(
    kind: &str,
    name: &str,
    bound: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let stated = format!("maximum {name} usage per {kind} is {bound}");
    match (request, limit) {
        (_, None) => Some(format!("{stated}.  No limit is specified")),
        (_, Some(own)) if own.milli() > bound.milli() => Some(format!("{stated}, but limit is {own}")),
        (Some(own), _) if own.milli() > bound.milli() => Some(format!("{stated}, but request is {own}")),
        _ => None,
    }
}

fn ratio(
    kind: &str,
    name: &str,
    bound: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
) -> Option<String> {
    let stated = format!("{name} max limit to request ratio per {kind} is {bound}");
    let positive = |amount: Option<&Quantity>| amount.copied().filter(|a| !a.is_zero());
    let Some(request) = positive(request) else {
        return Some(format!("{stated}, but no request is specified or request is 0"));
    };
    let Some(limit) = positive(limit) else {
        return Some(format!("{stated}, but no limit is specified or limit is 0"));
    };
    #[expect(clippy::cast_precision_loss, reason = "a ratio, as upstream computes it")]
    let observed = limit.milli() as f64 / request.milli() as f64;
    (observed > bound.as_f64()).then(|| format!("{stated}, but provided ratio is {observed:.6}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use coracle_meta::Object;
    use serde_json::json;

    use super::super::testing::{admit, pod, validate};
    use super::*;

    fn range(item: serde_json::Value) -> Arc<dyn Object> {
        let meta = json!({ "name": "r", "namespace": "ns" });
        let range: LimitRange =
            serde_json::from_value(json!({ "metadata": meta, "spec": { "limits": [item] } })).unwrap();
        Arc::new(range)
    }

    fn resources(spec: serde_json::Value) -> Box<dyn Object> {
        pod("p", |s| s.containers[0].resources = serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn containers_get_defaults_and_a_note_of_them() {
        let range = range(json!({ "type": "Container", "default": { "cpu": "1", "memory": "1Gi" },
            "defaultRequest": { "cpu": "500m" } }));
        let mut pod = resources(json!({ "limits": { "memory": "2Gi" } }));
        admit(&LimitRanger, &[range], &mut pod).unwrap();
        let value = pod.to_value();
        let want = json!({ "limits": { "cpu": "1", "memory": "2Gi" }, "requests": { "cpu": "500m" } });
        assert_eq!(value["spec"]["containers"][0]["resources"], want);
        let note = "LimitRanger plugin set: cpu request for container c; cpu limit for container c";
        assert_eq!(value["metadata"]["annotations"][ANNOTATION], note);
    }

    #[track_caller]
    fn check(item: serde_json::Value, own: serde_json::Value, want: Option<&str>) {
        let refused = validate(&LimitRanger, &[range(item)], &mut resources(own)).err();
        let why = refused.map(|s| s.message().replace("pods \"p\" is forbidden: ", ""));
        assert_eq!(why.as_deref(), want);
    }

    #[test]
    fn pods_beyond_the_bounds_are_refused_in_upstreams_words() {
        let max = json!({ "type": "Container", "max": { "cpu": "1" } });
        check(max.clone(), json!({ "limits": { "cpu": "1" } }), None);
        let why = "maximum cpu usage per Container is 1, but limit is 2";
        check(max.clone(), json!({ "limits": { "cpu": "2" } }), Some(why));
        check(max, json!({}), Some("maximum cpu usage per Container is 1.  No limit is specified"));
        let min = json!({ "type": "Pod", "min": { "cpu": "1", "memory": "1Gi" } });
        let why = "[minimum cpu usage per Pod is 1, but request is 100m, minimum memory usage per Pod is 1Gi.  \
                   No request is specified]";
        check(min, json!({ "requests": { "cpu": "100m" } }), Some(why));
        let ratio = json!({ "type": "Container", "maxLimitRequestRatio": { "cpu": "2" } });
        let why = "cpu max limit to request ratio per Container is 2, but provided ratio is 2.500000";
        check(ratio, json!({ "limits": { "cpu": "5" }, "requests": { "cpu": "2" } }), Some(why));
    }
}
