//! The specification's names, one by one.

use serde_json::json;

use super::*;

#[derive(Default)]
struct Fake {
    services: Vec<Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
}

impl Cluster for Fake {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        let is = |s: &&Arc<Service>| {
            s.metadata.namespace.as_deref() == Some(namespace) && s.metadata.name.as_deref() == Some(name)
        };
        self.services.iter().find(is).cloned()
    }
    fn slices(&self, namespace: &str, name: &str) -> Vec<Arc<EndpointSlice>> {
        let is = |s: &&Arc<EndpointSlice>| crate::slices::service_of(s) == Some((namespace, name));
        self.slices.iter().filter(is).cloned().collect()
    }
    fn has_services(&self, namespace: &str) -> bool {
        self.services.iter().any(|s| s.metadata.namespace.as_deref() == Some(namespace))
    }
    fn services_at(&self, address: &str) -> Vec<Arc<Service>> {
        let is =
            |s: &&Arc<Service>| s.spec.as_ref().is_some_and(|s| s.cluster_ip.as_deref() == Some(address));
        self.services.iter().filter(is).cloned().collect()
    }
    fn slices_at(&self, address: &str) -> Vec<Arc<EndpointSlice>> {
        let has = |s: &&Arc<EndpointSlice>| s.endpoints.iter().flatten().any(|e| e.addresses[0] == address);
        self.slices.iter().filter(has).cloned().collect()
    }
}

fn zone() -> Zone<Fake> {
    let service = |v| Arc::new(serde_json::from_value::<Service>(v).expect("service"));
    let slice = |v| Arc::new(serde_json::from_value::<EndpointSlice>(v).expect("slice"));
    let services = vec![
        service(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {"clusterIP": "10.96.1.1",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"},
                {"name": "q", "port": 53, "protocol": "UDP"}]}})),
        service(json!({"metadata": {"name": "db", "namespace": "shop"}, "spec": {"clusterIP": "None"}})),
        service(json!({"metadata": {"name": "empty", "namespace": "shop"}, "spec": {"clusterIP": "None"}})),
        service(json!({"metadata": {"name": "all", "namespace": "shop"},
            "spec": {"clusterIP": "None", "publishNotReadyAddresses": true}})),
        service(json!({"metadata": {"name": "far", "namespace": "shop"},
            "spec": {"type": "ExternalName", "externalName": "example.com"}})),
    ];
    let endpoints = json!([
        {"addresses": ["10.244.0.5"], "hostname": "db-0", "conditions": {"ready": true}},
        {"addresses": ["10.244.0.6"], "conditions": {"ready": true}},
        {"addresses": ["10.244.0.7"], "hostname": "db-2", "conditions": {"ready": false}},
    ]);
    let of = |name: &str| {
        slice(json!({"metadata": {"name": format!("{name}-1"), "namespace": "shop",
            "labels": {"kubernetes.io/service-name": name}}, "addressType": "IPv4",
            "ports": [{"name": "pg", "port": 5432, "protocol": "TCP"}], "endpoints": endpoints}))
    };
    let slices = vec![of("db"), of("all")];
    Zone::new(Name::from_ascii("cluster.local.").expect("name"), Fake { services, slices })
}

/// The reply in short: `[data…] + [additional owners…]`, `no name`, ….
fn ask(name: &str, kind: RecordType) -> String {
    match zone().look_up(&Name::from_ascii(name).expect("name"), kind, 1) {
        Reply::Records(answers, extra) => {
            let data: Vec<String> = answers.iter().map(|r| r.data.to_string()).collect();
            let extra: Vec<String> = extra.iter().map(|r| r.name.to_string()).collect();
            if extra.is_empty() {
                data.join(" | ")
            } else {
                format!("{} + {}", data.join(" | "), extra.join(" "))
            }
        }
        Reply::NoName => "no name".into(),
        Reply::Alias(target) => format!("alias {target}"),
        Reply::NotOurs => "not ours".into(),
    }
}

const NO_DATA: &str = "";

#[test]
fn service_names_give_the_cluster_ip_in_any_case_of_letters() {
    assert_eq!(ask("web.shop.svc.cluster.local.", RecordType::A), "10.96.1.1");
    assert_eq!(ask("WEB.Shop.svc.CLUSTER.local.", RecordType::A), "10.96.1.1");
    assert_eq!(ask("web.shop.svc.cluster.local.", RecordType::AAAA), NO_DATA);
    assert_eq!(ask("nope.shop.svc.cluster.local.", RecordType::A), "no name");
    assert_eq!(ask("web.nope.svc.cluster.local.", RecordType::A), "no name");
    assert_eq!(ask("far.shop.svc.cluster.local.", RecordType::A), "alias example.com.");
}

#[test]
fn headless_names_give_ready_endpoints_unless_all_are_published() {
    assert_eq!(ask("db.shop.svc.cluster.local.", RecordType::A), "10.244.0.5 | 10.244.0.6");
    assert_eq!(ask("all.shop.svc.cluster.local.", RecordType::A), "10.244.0.5 | 10.244.0.6 | 10.244.0.7");
    assert_eq!(ask("empty.shop.svc.cluster.local.", RecordType::A), "no name");
    assert_eq!(ask("db-0.db.shop.svc.cluster.local.", RecordType::A), "10.244.0.5");
    assert_eq!(ask("10-244-0-6.db.shop.svc.cluster.local.", RecordType::A), "10.244.0.6");
    assert_eq!(ask("db-2.db.shop.svc.cluster.local.", RecordType::A), "no name");
    assert_eq!(ask("db-2.all.shop.svc.cluster.local.", RecordType::A), "10.244.0.7");
}

#[test]
fn port_names_give_srv_records_with_addresses_added() {
    let web = "web.shop.svc.cluster.local.";
    assert_eq!(
        ask("_http._tcp.web.shop.svc.cluster.local.", RecordType::SRV),
        format!("0 100 80 {web} + {web}")
    );
    assert_eq!(ask("_http._udp.web.shop.svc.cluster.local.", RecordType::SRV), "no name");
    assert_eq!(ask("_http._tcp.web.shop.svc.cluster.local.", RecordType::A), NO_DATA);
    assert_eq!(ask(web, RecordType::SRV), format!("0 50 80 {web} | 0 50 53 {web} + {web}"));
    let (one, two) = ("db-0.db.shop.svc.cluster.local.", "10-244-0-6.db.shop.svc.cluster.local.");
    let answer = format!("0 50 5432 {one} | 0 50 5432 {two} + {one} {two}");
    assert_eq!(ask("_pg._tcp.db.shop.svc.cluster.local.", RecordType::SRV), answer);
}

#[test]
fn addresses_give_names_and_unknown_ones_are_for_others() {
    assert_eq!(ask("1.1.96.10.in-addr.arpa.", RecordType::PTR), "web.shop.svc.cluster.local.");
    let pointers = ask("5.0.244.10.in-addr.arpa.", RecordType::PTR);
    assert_eq!(pointers, "db-0.all.shop.svc.cluster.local. | db-0.db.shop.svc.cluster.local.");
    assert_eq!(ask("9.9.9.9.in-addr.arpa.", RecordType::PTR), "not ours");
}

#[test]
fn names_between_exist_without_data_and_others_do_not_exist() {
    assert_eq!(ask("10-244-0-5.shop.pod.cluster.local.", RecordType::A), "10.244.0.5");
    assert_eq!(ask("x.shop.pod.cluster.local.", RecordType::A), "no name");
    for name in ["cluster.local.", "svc.cluster.local.", "shop.svc.cluster.local.", "pod.cluster.local."] {
        assert_eq!(ask(name, RecordType::A), NO_DATA, "{name}");
    }
    for name in ["nope.svc.cluster.local.", "nope.cluster.local.", "example.com.shop.svc.cluster.local."] {
        assert_eq!(ask(name, RecordType::A), "no name", "{name}");
    }
    assert_eq!(ask("dns-version.cluster.local.", RecordType::TXT), "1.1.0");
    assert!(
        ask("cluster.local.", RecordType::SOA)
            .starts_with("ns.dns.cluster.local. hostmaster.cluster.local. 1 ")
    );
    assert_eq!(ask("example.com.", RecordType::A), "not ours");
}
