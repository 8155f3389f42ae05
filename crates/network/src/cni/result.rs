//! What plug-ins answer: the addresses of the pod's interface.

use std::net::IpAddr;

use coracle_cri::NetworkError;
use serde_json::Value;

/// The addresses that an interface in the pod has, IPv4 first.
///
/// # Errors
/// There are none.
pub fn addresses(result: &Value, interface: &str) -> Result<Vec<IpAddr>, NetworkError> {
    let ours = |ip: &&Value| match ip["interface"].as_u64().and_then(|i| usize::try_from(i).ok()) {
        // Without a number it is nobody else's.
        None => true,
        Some(index) => {
            let of = &result["interfaces"][index];
            of["name"] == interface && of["sandbox"].as_str().is_some_and(|s| !s.is_empty())
        }
    };
    let list = result["ips"].as_array().into_iter().flatten().filter(ours);
    let parsed = list.filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok());
    let mut all: Vec<IpAddr> = parsed.collect();
    all.sort_by_key(|ip| !ip.is_ipv4());
    if all.is_empty() {
        let message = format!("no address for {interface} in the result {result}");
        return Err(NetworkError::Plugin { plugin: "the last".into(), command: "add", message });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_addresses_of_the_pods_interface_count_and_ipv4_comes_first() {
        let result = json!({
            "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/run/netns/a"}],
            "ips": [
                {"address": "10.1.0.1/16", "interface": 0},
                {"address": "fd00::5/64", "interface": 1},
                {"address": "10.1.0.5/16", "interface": 1},
            ],
        });
        let want: [IpAddr; 2] = ["10.1.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        assert_eq!(addresses(&result, "eth0").unwrap(), want);
        assert!(addresses(&json!({}), "eth0").is_err());
        assert_eq!(addresses(&json!({"ips": [{"address": "10.0.0.2/24"}]}), "eth0").unwrap().len(), 1);
    }
}
