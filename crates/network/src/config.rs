//! What a cluster's network is told, and the names it gives to things in the kernel.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use coracle_cri::NetworkError;

/// A cluster's network on one node.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// The cluster's id: 8 hex digits. Everything in the kernel bears it.
    pub cluster_id: String,
    /// The node's range of pod addresses, IPv4, e.g. `10.244.0.0/16`.
    pub pod_cidr: String,
    /// The range of cluster IPs, IPv4, e.g. `10.96.0.0/16`; empty where there are no services (a runtime alone).
    pub service_cidr: String,
    /// The node's address.
    pub node_ip: IpAddr,
    /// The node's name.
    pub node_name: String,
    /// The cluster's DNS domain, e.g. `cluster.local`.
    pub cluster_domain: String,
    /// The address on which DNS answers, inside `service_cidr`.
    pub dns_ip: IpAddr,
    /// Directory for addresses in use; on a tmpfs, since it is worthless after a reboot.
    pub state: PathBuf,
}

/// An IPv4 range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    base: u32,
    length: u8,
}

impl Cidr {
    /// Parses `10.244.0.0/16`.
    ///
    /// # Errors
    /// When the text is not an IPv4 range.
    pub fn parse(text: &str) -> Result<Self, NetworkError> {
        let parsed = text.split_once('/').and_then(|(address, length)| {
            let address = u32::from(address.parse::<Ipv4Addr>().ok()?);
            let length = length.parse::<u8>().ok().filter(|n| *n <= 32)?;
            Some(Self { base: address & mask(length), length })
        });
        parsed.ok_or_else(|| {
            NetworkError::NotReady(format!("{text:?} is not an IPv4 range like 10.244.0.0/16"))
        })
    }
    /// Whether the address lies in the range.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.length) == self.base
    }
    /// The first address.
    pub fn network(self) -> Ipv4Addr {
        self.base.into()
    }
    /// The number of leading bits.
    pub fn length(self) -> u8 {
        self.length
    }
    /// The netmask.
    pub fn mask(self) -> Ipv4Addr {
        mask(self.length).into()
    }
    /// How many addresses lie in the range.
    pub fn size(self) -> u64 {
        1 << (32 - u32::from(self.length))
    }
    /// The `n`th address.
    pub fn nth(self, n: u64) -> Option<Ipv4Addr> {
        let n = u32::try_from(n).ok().filter(|_| n < self.size())?;
        Some((self.base + n).into())
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network(), self.length)
    }
}

fn mask(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

impl NetworkConfig {
    /// The service proxy's table.
    pub fn service_table(&self) -> String {
        format!("coracle-{}", self.cluster_id)
    }
    /// The pod links' table: masquerading and host ports.
    pub fn pod_table(&self) -> String {
        format!("coracle-{}-pods", self.cluster_id)
    }
    /// What the names of the host ends of pod links begin with.
    pub fn link_prefix(&self) -> String {
        format!("cr{}", self.cluster_id.get(..4).unwrap_or(&self.cluster_id))
    }
    /// Whether there are services.
    pub fn has_services(&self) -> bool {
        !self.service_cidr.is_empty()
    }
    /// The range of pod addresses.
    ///
    /// # Errors
    /// When it is not an IPv4 range.
    pub fn pod_range(&self) -> Result<Cidr, NetworkError> {
        Cidr::parse(&self.pod_cidr)
    }
    /// The range of cluster IPs.
    ///
    /// # Errors
    /// When it is not an IPv4 range.
    pub fn service_range(&self) -> Result<Cidr, NetworkError> {
        Cidr::parse(&self.service_cidr)
    }
    /// The address on which DNS answers.
    ///
    /// # Errors
    /// When it is not IPv4.
    pub fn dns_address(&self) -> Result<Ipv4Addr, NetworkError> {
        match self.dns_ip {
            IpAddr::V4(address) => Ok(address),
            IpAddr::V6(address) => {
                Err(NetworkError::NotReady(format!("the DNS address {address} is not IPv4")))
            }
        }
    }
    /// The source address of the node's own packets to pods and services: the node's address if this
    /// machine has it and pods can answer to it, else the DNS address, which is always here.
    pub(crate) fn own_source(&self) -> Result<Ipv4Addr, NetworkError> {
        if let IpAddr::V4(address) = self.node_ip
            && !address.is_loopback()
            && std::net::UdpSocket::bind((address, 0)).is_ok()
        {
            return Ok(address);
        }
        self.dns_address()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_contains_its_addresses_and_no_others() {
        let range = Cidr::parse("10.244.1.7/24").expect("range");
        assert_eq!(range.to_string(), "10.244.1.0/24");
        assert!(range.contains([10, 244, 1, 255].into()));
        assert!(!range.contains([10, 244, 2, 0].into()));
        assert_eq!(range.nth(2), Some([10, 244, 1, 2].into()));
        assert_eq!(range.nth(256), None);
    }

    #[test]
    fn what_is_no_ipv4_range_is_refused() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "fd00::/8", "x/8"] {
            assert!(Cidr::parse(text).is_err(), "{text:?}");
        }
    }
}
