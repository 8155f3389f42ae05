//! What Services need, and what changes when they change.

use serde_json::{Value, json};

use super::*;
use crate::proxy::{Changes, Maps, diff};

fn service(spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec}))
        .expect("service")
}

fn slices(endpoints: Value) -> Vec<Arc<EndpointSlice>> {
    let slice = json!({"metadata": {"name": "web-1", "namespace": "shop",
        "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints});
    vec![Arc::new(serde_json::from_value(slice).expect("slice"))]
}

fn spec(extra: Value) -> Value {
    let mut spec = json!({"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"],
        "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}]});
    for (key, value) in extra.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    spec
}

fn ready(ips: &[&str]) -> Value {
    ips.iter().map(|ip| json!({"addresses": [ip], "nodeName": "n1", "conditions": {"ready": true}})).collect()
}

const IP: Frontend = Frontend { address: Some(Ipv4Addr::new(10, 96, 0, 5)), protocol: 6, port: 80 };
const NODE_PORT: Frontend = Frontend { address: None, protocol: 6, port: 30080 };

fn backends_of(rules: &RuleSet, frontend: Frontend) -> Vec<String> {
    match &rules.frontends[&frontend] {
        Action::Reject => vec!["reject".into()],
        Action::Balance { backends, .. } => {
            backends.iter().map(|(ip, port)| format!("{ip}:{port}")).collect()
        }
    }
}

#[test]
fn ready_endpoints_serve_and_without_any_connections_are_refused() {
    let endpoints = json!([
        {"addresses": ["10.244.0.3"], "conditions": {"ready": true}},
        {"addresses": ["10.244.0.2"]},
        {"addresses": ["10.244.0.4"], "conditions": {"ready": false, "serving": true, "terminating": true}},
    ]);
    let rules = service_rules("n1", &service(spec(json!({}))), &slices(endpoints));
    assert_eq!(backends_of(&rules, IP), ["10.244.0.2:8080", "10.244.0.3:8080"]);
    assert_eq!(backends_of(&rules, NODE_PORT), ["10.244.0.2:8080", "10.244.0.3:8080"]);
    let rules = service_rules("n1", &service(spec(json!({}))), &[]);
    assert_eq!(backends_of(&rules, IP), ["reject"]);
}

#[test]
fn leaving_endpoints_serve_only_while_none_is_ready() {
    let leaving = json!([{"addresses": ["10.244.0.4"],
        "conditions": {"ready": false, "serving": true, "terminating": true}},
        {"addresses": ["10.244.0.5"], "conditions": {"ready": false, "serving": false}}]);
    let rules = service_rules("n1", &service(spec(json!({}))), &slices(leaving));
    assert_eq!(backends_of(&rules, IP), ["10.244.0.4:8080"]);
}

#[test]
fn local_policies_keep_to_this_node_and_keep_the_client_address() {
    let endpoints = json!([{"addresses": ["10.244.0.2"], "nodeName": "n1"},
        {"addresses": ["10.244.1.2"], "nodeName": "n2"}]);
    let spec = spec(json!({"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}));
    let rules = service_rules("n2", &service(spec), &slices(endpoints));
    assert_eq!(backends_of(&rules, IP), ["10.244.1.2:8080"]);
    let Action::Balance { backends, masquerade, .. } = &rules.frontends[&NODE_PORT] else {
        panic!("{rules:?}")
    };
    assert_eq!(backends.len(), 1);
    assert!(!masquerade);
}

#[test]
fn external_addresses_are_frontends_and_headless_services_have_none() {
    let mut with_balancer = service(spec(json!({"externalIPs": ["192.0.2.9"]})));
    with_balancer.status =
        serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.8"}]}})).ok();
    let rules = service_rules("n1", &with_balancer, &slices(ready(&["10.244.0.2"])));
    assert_eq!(rules.frontends.len(), 4);
    assert_eq!(rules.cluster_ips.len(), 1, "external addresses have other ports, which stay reachable");
    let headless = service(json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]}));
    assert_eq!(service_rules("n1", &headless, &slices(ready(&["10.244.0.2"]))), RuleSet::default());
}

#[test]
fn source_ranges_guard_the_load_balancers_address_and_nothing_else() {
    let ranges = |ranges: Value| {
        let mut balanced = service(spec(json!({"type": "LoadBalancer", "externalIPs": ["192.0.2.9"],
            "loadBalancerSourceRanges": ranges})));
        balanced.status =
            serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.8"}]}})).ok();
        service_rules("n1", &balanced, &slices(ready(&["10.244.0.2"])))
    };
    let open = ranges(json!([]));
    assert!(open.guards.is_empty());
    let some = ranges(json!(["10.0.0.0/8", " 192.0.2.0/24", "10.0.0.0/8"]));
    let guarded: Vec<String> = some.guards.keys().filter_map(|f| Some(f.address?.to_string())).collect();
    assert_eq!(guarded, ["192.0.2.8"]);
    let texts = |rules: &RuleSet| -> Vec<String> {
        rules.guards.values().flat_map(|guard| guard.ranges().iter().map(ToString::to_string)).collect()
    };
    assert_eq!(texts(&some), ["10.0.0.0/8", "192.0.2.0/24"]);
    let nobody = ranges(json!(["2001:db8::/32"]));
    assert_eq!((nobody.guards.len(), texts(&nobody).len()), (1, 0), "no IPv4 client may come");
    // One element more, one exchanged, one less.
    assert_eq!(diff(&open, &some).size(), (0, 1));
    assert_eq!(diff(&some, &nobody).size(), (1, 1));
    assert_eq!(diff(&some, &open).size(), (1, 0));
}

#[test]
fn one_endpoint_replaced_changes_one_element_of_each_map() {
    let rules = |ips: &[&str]| {
        let service = service(spec(json!({})));
        let slices = slices(ready(ips));
        desired("n1", [(&service, slices.as_slice())])
    };
    let (old, new) = (rules(&["10.244.0.2", "10.244.0.3"]), rules(&["10.244.0.2", "10.244.0.4"]));
    assert!(diff(&old, &old).is_empty());
    // One of `endpoints`, one of `node-port-endpoints`, one of `hairpin`.
    assert_eq!(diff(&old, &new).size(), (3, 3));
    // From two to three: the balancer changes, one index is added, in both maps; and a hairpin.
    assert_eq!(diff(&old, &rules(&["10.244.0.2", "10.244.0.3", "10.244.0.4"])).size(), (2, 5));
    assert_eq!(diff(&RuleSet::default(), &old).size().0, 0);
    assert_eq!(diff(&old, &RuleSet::default()).size().1, 0);
}

#[test]
fn an_address_shared_by_services_stays_until_the_last_is_gone() {
    let endpoints = slices(ready(&["10.244.0.2"]));
    let one = service_rules("n1", &service(spec(json!({}))), &endpoints);
    let other = service_rules(
        "n1",
        &service(json!({"clusterIP": "10.96.0.6", "clusterIPs": ["10.96.0.6"],
        "ports": [{"name": "http", "port": 80}]})),
        &endpoints,
    );
    let (mut maps, a, b) = (Maps::default(), ("s".into(), "a".into()), ("s".into(), "b".into()));
    maps.update(&a, one, &mut Changes::default());
    maps.update(&b, other, &mut Changes::default());
    let mut changes = Changes::default();
    maps.update(&a, RuleSet::default(), &mut changes);
    // services, endpoints, node-ports, node-port-endpoints, cluster-ips; not the shared hairpin.
    assert_eq!(changes.size(), (5, 0));
    let mut changes = Changes::default();
    maps.update(&b, RuleSet::default(), &mut changes);
    assert_eq!(changes.size(), (4, 0));
}

#[test]
fn a_frontend_claimed_twice_goes_to_the_second_when_the_first_gives_it_up() {
    let endpoints = slices(ready(&["10.244.0.2"]));
    let rules = service_rules("n1", &service(spec(json!({}))), &endpoints);
    let (mut maps, a, b) = (Maps::default(), ("s".into(), "a".into()), ("s".into(), "b".into()));
    let mut changes = Changes::default();
    assert!(maps.update(&a, rules.clone(), &mut changes).is_empty());
    let mut changes = Changes::default();
    maps.update(&b, rules.clone(), &mut changes);
    assert!(changes.is_empty(), "{changes:?}");
    let again = maps.update(&a, RuleSet::default(), &mut Changes::default());
    assert_eq!(again, std::slice::from_ref(&b));
    let mut changes = Changes::default();
    maps.update(&b, rules, &mut changes);
    assert!(!changes.is_empty());
}
