//! Resolver configuration of pods by `dnsPolicy` and `dnsConfig`.

use std::net::IpAddr;

use coracle_cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::Pod;

use crate::pod::{host_network, spec};

/// Reads a `resolv.conf`.
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or("");
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => config.servers.extend(words.next()),
            Some("search" | "domain") => config.searches = words.collect(),
            Some("options") => config.options = words.collect(),
            _ => {}
        }
    }
    config
}

fn push_unique(list: &mut Vec<String>, items: impl IntoIterator<Item = String>) {
    for item in items {
        if !item.is_empty() && !list.contains(&item) {
            list.push(item);
        }
    }
}

/// What a pod's `/etc/resolv.conf` is to say.
pub fn config(pod: &Pod, host: &DnsConfig, servers: &[IpAddr], domain: &str) -> DnsConfig {
    let s = spec(pod);
    let policy = s.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !host_network(pod),
        _ => false,
    } && !servers.is_empty();
    let mut config = if cluster {
        let namespace = crate::names::namespace(pod);
        let mut searches =
            vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
        push_unique(&mut searches, host.searches.iter().cloned());
        DnsConfig {
            servers: servers.iter().map(ToString::to_string).collect(),
            searches,
            options: vec!["ndots:5".into()],
        }
    } else if policy == "None" {
        DnsConfig::default()
    } else {
        host.clone()
    };
    if let Some(own) = &s.dns_config {
        push_unique(&mut config.servers, own.nameservers.iter().flatten().cloned());
        push_unique(&mut config.searches, own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            config.options.retain(|o| o.split(':').next() != Some(&name));
            config.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name,
            });
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn policies_choose_servers_and_searches() {
        let host = parse_resolv_conf("nameserver 1.1.1.1 # x\nsearch corp.example\noptions edns0\n");
        let dns = [IpAddr::from([10, 96, 0, 10])];
        let get = |s: serde_json::Value| config(&pod(s), &host, &dns, "cluster.local");
        let first = get(json!({"containers": []}));
        assert_eq!(first.servers, ["10.96.0.10"]);
        assert_eq!(
            first.searches,
            ["default.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"]
        );
        assert_eq!(first.options, ["ndots:5"]);
        assert_eq!(get(json!({"containers": [], "dnsPolicy": "Default"})), host);
        assert_eq!(get(json!({"containers": [], "hostNetwork": true})), host);
        let own = get(json!({"containers": [], "dnsConfig": {
            "nameservers": ["8.8.8.8"], "options": [{"name": "ndots", "value": "2"}]}}));
        assert_eq!(own.servers, ["10.96.0.10", "8.8.8.8"]);
        assert_eq!(own.options, ["ndots:2"]);
        let none =
            get(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"]}}));
        assert_eq!((none.servers.len(), none.searches.len()), (1, 0));
    }
}
