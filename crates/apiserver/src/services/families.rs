//! Which IP families a Service gets, and how its singular and plural address fields are kept in step. The
//! cluster has one family, IPv4.

use coracle_meta::field::{ErrorList, Path};
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use serde_json::json;

/// The family of the cluster.
const IPV4: &str = "IPv4";
const NONE: &str = "None";
const SINGLE: &str = "SingleStack";
const REQUIRE: &str = "RequireDualStack";
const PREFER: &str = "PreferDualStack";

/// Whether a service of this type has an address: also one of a type that validation refuses later.
pub(super) fn needs_address(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() != Some("ExternalName")
}

fn needs_node_port(spec: &ServiceSpec) -> bool {
    match spec.type_.as_deref() {
        Some("NodePort") => true,
        Some("LoadBalancer") => spec.allocate_load_balancer_node_ports != Some(false),
        _ => false,
    }
}

/// Whether the load balancer asks the nodes for their health.
pub(super) fn needs_health_port(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() == Some("LoadBalancer") && spec.external_traffic_policy.as_deref() == Some("Local")
}

fn address(spec: &ServiceSpec) -> &str {
    spec.cluster_ip.as_deref().unwrap_or("")
}

fn addresses(spec: &ServiceSpec) -> &[String] {
    spec.cluster_ips.as_deref().unwrap_or_default()
}

fn families(spec: &ServiceSpec) -> &[String] {
    spec.ip_families.as_deref().unwrap_or_default()
}

/// A change that does not speak of what was allocated keeps it.
pub(super) fn keep_allocated(new: &mut ServiceSpec, old: &ServiceSpec) {
    if needs_address(old) && needs_address(new) {
        if address(new).is_empty() {
            new.cluster_ip.clone_from(&old.cluster_ip);
        }
        if addresses(new).is_empty() {
            new.cluster_ips.clone_from(&old.cluster_ips);
        }
    }
    if needs_node_port(old) && needs_node_port(new) {
        let number = |port: &k8s_openapi::api::core::v1::ServicePort| port.node_port.unwrap_or(0);
        let used: Vec<i32> = new.ports.iter().flatten().map(number).filter(|n| *n != 0).collect();
        for port in new.ports.iter_mut().flatten().filter(|p| p.node_port.unwrap_or(0) == 0) {
            let same = |p: &&k8s_openapi::api::core::v1::ServicePort| {
                p.name.as_deref().unwrap_or("") == port.name.as_deref().unwrap_or("")
            };
            let before = old.ports.iter().flatten().rfind(same).map_or(0, number);
            if before != 0 && !used.contains(&before) {
                port.node_port = Some(before);
            }
        }
    }
    if needs_health_port(old) && needs_health_port(new) && new.health_check_node_port.unwrap_or(0) == 0 {
        new.health_check_node_port = old.health_check_node_port;
    }
}

/// Fills in the plural address field for clients that know the singular only.
pub(super) fn pair_up(new: &mut ServiceSpec, old: Option<&ServiceSpec>) {
    let Some(old) = old else {
        if !address(new).is_empty() && addresses(new).is_empty() {
            new.cluster_ips = Some(vec![address(new).to_owned()]);
        }
        return;
    };
    if !addresses(old).is_empty() && addresses(new).is_empty() && address(old) == address(new) {
        new.cluster_ips.clone_from(&old.cluster_ips);
    }
    if address(old) != address(new) && addresses(old) == addresses(new) {
        let cleared = address(new).is_empty();
        new.cluster_ips = (!cleared).then(|| vec![address(new).to_owned()]);
    }
}

/// Sets family policy and families. `errs` gets what the cluster cannot do, or what contradicts itself.
pub(super) fn choose(service: &mut Service, old: Option<&ServiceSpec>, errs: &mut ErrorList) {
    let Some(spec) = &mut service.spec else { return };
    if spec.type_.as_deref() == Some("ExternalName") || prefers_as_before(spec, old) {
        return;
    }
    let open = spec.selector.as_ref().is_none_or(std::collections::BTreeMap::is_empty);
    let unselected_headless = address(spec) == NONE && open;
    if spec.ip_family_policy.is_none() {
        let before = old.and_then(|o| o.ip_family_policy.clone());
        let fresh = if unselected_headless { REQUIRE } else { SINGLE };
        spec.ip_family_policy = Some(before.unwrap_or_else(|| fresh.to_owned()));
    }
    coracle_resources::validate_cluster_ips(service, errs);
    let Some(spec) = &mut service.spec else { return };
    if errs.is_empty() {
        fit_policy(spec, old, errs);
    }
    if errs.is_empty() {
        infer_families(spec, errs);
    }
    if !errs.is_empty() {
        return;
    }
    let policy = spec.ip_family_policy.clone().unwrap_or_default();
    if unselected_headless {
        let list = spec.ip_families.get_or_insert_default();
        if list.is_empty() {
            list.push(IPV4.to_owned());
        }
        if list.len() < 2 && policy != SINGLE {
            let other = if list[0] == IPV4 { "IPv6" } else { IPV4 };
            list.push(other.to_owned());
        }
        return;
    }
    let path = Path::new("spec");
    if policy == REQUIRE {
        let why = "this cluster is not configured for dual-stack services";
        errs.invalid(path.child("ipFamilyPolicy"), policy, why);
    }
    for (i, family) in families(spec).iter().enumerate().filter(|(_, f)| *f != IPV4) {
        let at = path.child("ipFamilies").index(i);
        errs.invalid(at, family.as_str(), "not configured on this cluster");
    }
    if errs.is_empty() && families(spec).is_empty() {
        spec.ip_families = Some(vec![IPV4.to_owned()]);
    }
}

/// A service that prefers two families stays as it is unless its fields change.
fn prefers_as_before(new: &ServiceSpec, old: Option<&ServiceSpec>) -> bool {
    old.is_some_and(|old| {
        old.type_ == new.type_
            && needs_address(new)
            && new.ip_family_policy.as_deref() == Some(PREFER)
            && old.ip_family_policy.as_deref().is_none_or(|policy| policy == PREFER)
            && addresses(old) == addresses(new)
            && families(old) == families(new)
    })
}

/// Policy against the numbers of addresses and families.
fn fit_policy(spec: &mut ServiceSpec, old: Option<&ServiceSpec>, errs: &mut ErrorList) {
    let at = Path::new("spec").child("ipFamilyPolicy");
    let policy = spec.ip_family_policy.clone().unwrap_or_default();
    if let Some(old) = old {
        let reduced = |new: &[String], old: &[String]| new.len() == 1 && old.len() == 2 && new[0] == old[0];
        if policy == SINGLE {
            if addresses(old) == addresses(spec) && addresses(spec).len() > 1 {
                spec.cluster_ips.iter_mut().for_each(|ips| ips.truncate(1));
            }
            if families(old) == families(spec) && families(spec).len() > 1 {
                spec.ip_families.iter_mut().for_each(|families| families.truncate(1));
            }
        } else {
            if reduced(addresses(spec), addresses(old)) {
                let why = "must be 'SingleStack' to release the secondary cluster IP";
                errs.invalid(&at, policy.as_str(), why);
            }
            if reduced(families(spec), families(old)) {
                let why = "must be 'SingleStack' to release the secondary IP family";
                errs.invalid(&at, policy.as_str(), why);
            }
        }
    }
    if policy == SINGLE {
        for (count, of) in [(addresses(spec).len(), "cluster IPs"), (families(spec).len(), "IP families")] {
            if count == 2 {
                let why = format!(
                    "must be 'RequireDualStack' or 'PreferDualStack' when multiple {of} are specified"
                );
                errs.invalid(&at, policy.as_str(), why);
            }
        }
    }
}

/// Families that go with the addresses given.
fn infer_families(spec: &mut ServiceSpec, errs: &mut ErrorList) {
    let all = addresses(spec).to_vec();
    for (i, ip) in all.iter().enumerate().take_while(|(_, ip)| *ip != NONE) {
        if i < families(spec).len() {
            continue;
        }
        if ip.contains(':') {
            let at = Path::new("spec").child("clusterIPs").index(i);
            errs.invalid(at, json!(all), "IPv6 is not configured on this cluster");
        } else {
            spec.ip_families.get_or_insert_default().push(IPV4.to_owned());
        }
    }
}
