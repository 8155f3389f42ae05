//! Host names of pods and the `/etc/hosts` file that the kubelet keeps for them.

use k8s_openapi::api::core::v1::Pod;

use crate::names;
use crate::pod::{host_network, spec};

/// Longest host name the kernel takes.
const MAX_HOSTNAME: usize = 63;

/// The pod's host name (`spec.hostname`, else its name) and its domain, empty without a subdomain.
pub fn hostname_and_domain(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let s = spec(pod);
    let mut host = match s.hostname.as_deref().filter(|h| !h.is_empty()) {
        Some(host) => host.to_owned(),
        None => names::name(pod).to_owned(),
    };
    if host.len() > MAX_HOSTNAME {
        host.truncate(MAX_HOSTNAME);
        host.truncate(host.trim_end_matches(['-', '.']).len());
    }
    let domain = match s.subdomain.as_deref().filter(|d| !d.is_empty()) {
        Some(sub) => format!("{sub}.{}.svc.{cluster_domain}", names::namespace(pod)),
        None => String::new(),
    };
    (host, domain)
}

/// Content of `/etc/hosts`. On the host network it is the host's own file, `host_file`, with a header.
pub fn hosts_file(pod: &Pod, ips: &[String], cluster_domain: &str, host_file: &str) -> String {
    let mut text = if host_network(pod) {
        format!("# Kubernetes-managed hosts file (host network).\n{host_file}")
    } else {
        let mut text = String::from(
            "# Kubernetes-managed hosts file.\n\
             127.0.0.1\tlocalhost\n\
             ::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::\tip6-localnet\n\
             fe00::\tip6-mcastprefix\n\
             fe00::1\tip6-allnodes\n\
             fe00::2\tip6-allrouters\n",
        );
        let (host, domain) = hostname_and_domain(pod, cluster_domain);
        for ip in ips {
            if domain.is_empty() {
                text.push_str(&format!("{ip}\t{host}\n"));
            } else {
                text.push_str(&format!("{ip}\t{host}.{domain}\t{host}\n"));
            }
        }
        text
    };
    let aliases = spec(pod).host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let hosts = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            text.push_str(&format!("{}\t{hosts}\n", alias.ip));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn hosts_name_the_pod_and_its_aliases() {
        let p = pod(json!({"containers": [], "hostname": "h", "subdomain": "s",
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["x", "y"]}]}));
        let text = hosts_file(&p, &["10.244.0.3".into()], "cluster.local", "");
        assert!(text.contains("\n10.244.0.3\th.s.default.svc.cluster.local\th\n"));
        assert!(text.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\tx\ty\n"));
    }
}
