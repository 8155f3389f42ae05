//! `fieldRef` and `resourceFieldRef`: what pods may ask about themselves (downward API).

use std::collections::BTreeMap;
use std::net::IpAddr;

use coracle_meta::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use crate::pod::spec;

/// What the downward API knows beyond the pod object.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Address of the node.
    pub node_ip: IpAddr,
    /// Addresses of the pod, primary first.
    pub pod_ips: Vec<String>,
    /// What the node can give: limits that are not set default to it.
    pub allocatable: BTreeMap<String, Quantity>,
}

/// `key="value"` lines, sorted, values quoted: labels and annotations as one field.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect();
    lines.join("\n")
}

/// `metadata.labels['key']` → (`metadata.labels`, `key`).
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (base, rest) = path.split_once("['")?;
    Some((base, rest.strip_suffix("']")?))
}

/// The value of a field path of a pod.
///
/// # Errors
/// A path that the downward API does not offer.
pub fn field(pod: &Pod, path: &str, facts: &Facts) -> Result<String, String> {
    let meta = &pod.metadata;
    if let Some((base, key)) = subscript(path) {
        let map = match base {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(format!("unsupported fieldPath: {path}")),
        };
        return Ok(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        "spec.nodeName" => text(&spec(pod).node_name),
        "spec.serviceAccountName" => text(&spec(pod).service_account_name),
        "status.hostIP" | "status.hostIPs" => facts.node_ip.to_string(),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

fn divided(amount: Quantity, divisor: Option<Quantity>, milli: bool) -> i128 {
    let by = divisor.filter(|d| !d.is_zero());
    let (amount, by) = match (milli, by) {
        (true, by) => (amount.milli(), by.map_or(1000, Quantity::milli)),
        (false, by) => (i128::from(amount.value()), by.map_or(1, |d| i128::from(d.value()))),
    };
    amount.div_euclid(by) + i128::from(amount.rem_euclid(by) != 0)
}

/// The value of a resource field, rounded up to the divisor.
///
/// # Errors
/// An unknown container or resource name.
pub fn resource(
    pod: &Pod,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
    facts: &Facts,
) -> Result<String, String> {
    let name = selector.container_name.as_deref().filter(|n| !n.is_empty());
    let named = name.and_then(|n| crate::pod::container(pod, n).map(|(c, _)| c));
    let container = match (name, named) {
        (Some(name), None) => return Err(format!("container {name} not found")),
        (Some(_), found) => found,
        (None, _) => own.map(std::borrow::Cow::Borrowed),
    };
    let container = container.ok_or("containerName must be specified")?;
    let divisor = selector.divisor.as_ref().map(Quantity::from_api);
    let resources = container.resources.clone().unwrap_or_default();
    let (side, resource) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource : {}", selector.resource))?;
    let (amounts, default) = match side {
        "limits" => (&resources.limits, facts.allocatable.get(resource).copied()),
        "requests" => (&resources.requests, None),
        _ => return Err(format!("unsupported container resource : {}", selector.resource)),
    };
    let given = amounts.as_ref().and_then(|a| a.get(resource)).map(Quantity::from_api);
    let amount = given.filter(|a| !a.is_zero()).or(default).unwrap_or_default();
    Ok(divided(amount, divisor, resource == "cpu").to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    fn facts() -> Facts {
        let allocatable = [("cpu", "2"), ("memory", "1Gi")];
        Facts {
            node_ip: IpAddr::from([10, 0, 0, 1]),
            pod_ips: vec!["10.244.0.2".into()],
            allocatable: allocatable
                .iter()
                .map(|(k, v)| ((*k).to_owned(), Quantity::parse(v).expect("quantity")))
                .collect(),
        }
    }

    #[test]
    fn labels_are_sorted_quoted_lines_and_single_ones_can_be_named() {
        let mut p = pod(json!({"containers": []}));
        p.metadata.labels = Some([("b", "2\"x"), ("a", "1")].map(|(k, v)| (k.into(), v.into())).into());
        assert_eq!(field(&p, "metadata.labels", &facts()), Ok("a=\"1\"\nb=\"2\\\"x\"".into()));
        assert_eq!(field(&p, "metadata.labels['a']", &facts()), Ok("1".into()));
        assert!(field(&p, "spec.containers", &facts()).is_err());
    }

    #[test]
    fn resources_are_rounded_up_to_the_divisor_and_limits_default_to_the_node() {
        let p = pod(json!({"containers": [{"name": "a", "resources": {
            "limits": {"cpu": "1500m"}, "requests": {"memory": "64Mi"}}}]}));
        let get = |resource: &str, divisor: Option<&str>| {
            let selector = ResourceFieldSelector {
                container_name: Some("a".into()),
                divisor: divisor.map(|d| k8s_openapi::apimachinery::pkg::api::resource::Quantity(d.into())),
                resource: resource.into(),
            };
            self::resource(&p, None, &selector, &facts()).expect("value")
        };
        assert_eq!(get("limits.cpu", None), "2");
        assert_eq!(get("limits.cpu", Some("1m")), "1500");
        assert_eq!(get("requests.memory", Some("1Mi")), "64");
        assert_eq!(get("limits.memory", Some("1Mi")), "1024");
        assert_eq!(get("requests.cpu", None), "0");
    }
}
