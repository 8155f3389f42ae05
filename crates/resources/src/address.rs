//! IP addresses and address blocks as fields of objects hold them: what is refused, and what is warned of.
//! Follows `k8s.io/apimachinery/pkg/util/validation/ip.go`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use coracle_meta::field::Path;

const NO_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const NO_BLOCK: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// A parsed address, and how strictly it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// The address; an IPv4 one also when it was written in the IPv6 form.
    pub(crate) ip: IpAddr,
    /// Numbers begin with zeros.
    zeros: bool,
    /// An IPv4 address in the IPv6 form.
    mapped: bool,
}

impl Address {
    /// Parses leniently, as old fields are: leading zeros are accepted.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.contains(':') {
            let (head, tail) = text.rsplit_once(':')?;
            let (plain, zeros) = match tail.contains('.') {
                true => {
                    let (v4, zeros) = lenient_v4(tail)?;
                    (format!("{head}:{v4}"), zeros)
                }
                false => (text.to_owned(), false),
            };
            let ip: Ipv6Addr = plain.parse().ok()?;
            return Some(match ip.to_ipv4_mapped() {
                Some(v4) => Self { ip: v4.into(), zeros, mapped: true },
                None => Self { ip: ip.into(), zeros, mapped: false },
            });
        }
        let (v4, zeros) = lenient_v4(text)?;
        Some(Self { ip: v4.into(), zeros, mapped: false })
    }
}

/// An IPv4 address and whether one of its numbers has leading zeros.
fn lenient_v4(text: &str) -> Option<(Ipv4Addr, bool)> {
    let parts: Vec<&str> = text.split('.').collect();
    let mut octets = [0_u8; 4];
    if parts.len() != octets.len() {
        return None;
    }
    for (octet, part) in octets.iter_mut().zip(&parts) {
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    Some((octets.into(), parts.iter().any(|part| part.len() > 1 && part.starts_with('0'))))
}

/// Messages for an address in a field that predates strict checks: any notation, but unambiguous.
pub(crate) fn legacy_ip(text: &str) -> Vec<String> {
    let Some(address) = Address::parse(text) else { return vec![NO_IP.to_owned()] };
    let mut out = Vec::new();
    if address.zeros {
        out.push("must not have leading 0s".to_owned());
    } else if address.mapped {
        out.push("must not be an IPv4-mapped IPv6 address".to_owned());
    }
    out
}

/// Messages for an address that must be written in the canonical form.
pub(crate) fn canonical_ip(text: &str) -> Vec<String> {
    let mut out = legacy_ip(text);
    if let Some(address) = Address::parse(text).filter(|a| out.is_empty() && a.ip.to_string() != text) {
        out.push(format!("must be in canonical form ({:?})", address.ip.to_string()));
    }
    out
}

/// Warnings about an address in a field that predates strict checks.
pub(crate) fn ip_warnings(path: &Path, text: &str) -> Vec<String> {
    let Some(address) = Address::parse(text) else { return Vec::new() };
    let shown = address.ip.to_string();
    if address.zeros || address.mapped {
        return vec![format!("{path}: non-standard IP address {text:?} is invalid: use {shown:?}")];
    }
    if address.ip.is_ipv6() && shown != text {
        return vec![format!(
            "{path}: IPv6 address {text:?} should be in RFC 5952 canonical format ({shown:?})"
        )];
    }
    Vec::new()
}

/// A parsed address block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    address: Address,
    /// The address with the bits beyond the prefix cleared.
    pub(crate) network: IpAddr,
    /// Length of the prefix.
    pub(crate) bits: u8,
    zeros: bool,
}

impl Block {
    /// Parses leniently: leading zeros, and bits set beyond the prefix are accepted.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (ip, length) = text.split_once('/')?;
        let address = Address::parse(ip)?;
        if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let digits = length.trim_start_matches('0');
        let mut bits: u8 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
        if bits > if address.ip.is_ipv4() && !address.mapped { 32 } else { 128 } {
            return None;
        }
        if address.mapped {
            bits = bits.saturating_sub(96);
        }
        let zeros = address.zeros || (length.len() > 1 && length.starts_with('0'));
        Some(Self { address, network: mask(address.ip, bits), bits, zeros })
    }

    /// Whether the other block lies within this one, and is smaller.
    pub(crate) fn strictly_contains(&self, other: &Self) -> bool {
        self.network.is_ipv4() == other.network.is_ipv4()
            && self.bits < other.bits
            && mask(other.network, self.bits) == self.network
    }
}

impl std::fmt::Display for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network, self.bits)
    }
}

fn mask(ip: IpAddr, bits: u8) -> IpAddr {
    let bits = u32::from(bits);
    match ip {
        IpAddr::V4(ip) => {
            let kept = u32::MAX.checked_shl(32_u32.saturating_sub(bits)).unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & kept).into()
        }
        IpAddr::V6(ip) => {
            let kept = u128::MAX.checked_shl(128_u32.saturating_sub(bits)).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & kept).into()
        }
    }
}

/// Messages for a block in a field that predates strict checks.
pub(crate) fn legacy_cidr(text: &str) -> Vec<String> {
    let Some(block) = Block::parse(text) else { return vec![NO_BLOCK.to_owned()] };
    let why = if block.zeros {
        "must not have leading 0s in IP or prefix length"
    } else if block.address.mapped {
        "must not have an IPv4-mapped IPv6 address"
    } else if block.address.ip != block.network {
        "must not have bits set beyond the prefix length"
    } else {
        return Vec::new();
    };
    vec![why.to_owned()]
}

/// Messages for a block that must be written in the canonical form.
pub(crate) fn canonical_cidr(text: &str) -> Vec<String> {
    let mut out = legacy_cidr(text);
    if let Some(block) = Block::parse(text).filter(|b| out.is_empty() && b.to_string() != text) {
        out.push(format!("must be in canonical form ({:?})", block.to_string()));
    }
    out
}

/// Messages for an address with the length of its network's prefix, in canonical form.
pub(crate) fn interface_address(text: &str) -> Vec<String> {
    let Some(block) = Block::parse(text) else {
        return vec!["must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)".to_owned()];
    };
    let shown = format!("{}/{}", block.address.ip, block.bits);
    if shown == text { Vec::new() } else { vec![format!("must be in canonical form ({shown:?})")] }
}

/// Warnings about a block in a field that predates strict checks.
pub(crate) fn cidr_warnings(path: &Path, text: &str) -> Vec<String> {
    let Some(block) = Block::parse(text) else { return Vec::new() };
    let shown = block.to_string();
    let mut out = Vec::new();
    if block.address.ip != block.network {
        let length = if block.address.ip.is_ipv4() { 32 } else { 128 };
        let single = format!("{}/{length}", block.address.ip);
        out.push(format!(
            "{path}: CIDR value {text:?} is ambiguous in this context (should be {shown:?} or {single:?}?)"
        ));
    }
    if block.zeros || block.address.mapped {
        out.push(format!("{path}: non-standard CIDR value {text:?} is invalid: use {shown:?}"));
    }
    if out.is_empty() && block.network.is_ipv6() && shown != text {
        out.push(format!(
            "{path}: IPv6 CIDR value {text:?} should be in RFC 5952 canonical format ({shown:?})"
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_refused_for_each_fault() {
        assert_eq!(canonical_ip("10.0.0.1"), Vec::<String>::new());
        assert_eq!(canonical_ip("2001:db8::1"), Vec::<String>::new());
        assert_eq!(canonical_ip("10.0.0.01"), ["must not have leading 0s"]);
        assert_eq!(canonical_ip("::ffff:1.2.3.4"), ["must not be an IPv4-mapped IPv6 address"]);
        assert_eq!(canonical_ip("2001:DB8:0::1"), ["must be in canonical form (\"2001:db8::1\")"]);
        assert_eq!(canonical_ip("10.0.0"), [NO_IP]);
        assert_eq!(canonical_ip("fe80::1%eth0"), [NO_IP]);
    }

    #[test]
    fn a_block_is_refused_for_each_fault() {
        assert_eq!(canonical_cidr("10.0.0.0/8"), Vec::<String>::new());
        assert_eq!(canonical_cidr("0.0.0.0/0"), Vec::<String>::new());
        assert_eq!(canonical_cidr("::/0"), Vec::<String>::new());
        assert_eq!(canonical_cidr("10.0.0.1/8"), ["must not have bits set beyond the prefix length"]);
        assert_eq!(canonical_cidr("10.0.0.0/08"), ["must not have leading 0s in IP or prefix length"]);
        assert_eq!(canonical_cidr("10.0.0.0/33"), [NO_BLOCK]);
        assert_eq!(canonical_cidr("2001:DB8::/64"), ["must be in canonical form (\"2001:db8::/64\")"]);
    }

    #[test]
    fn a_block_contains_smaller_blocks_only() {
        let block = |text| Block::parse(text).expect("a block");
        assert!(block("10.0.0.0/8").strictly_contains(&block("10.1.0.0/16")));
        assert!(!block("10.0.0.0/8").strictly_contains(&block("10.0.0.0/8")));
        assert!(!block("10.0.0.0/8").strictly_contains(&block("11.0.0.0/16")));
        assert!(!block("0.0.0.0/0").strictly_contains(&block("::/8")));
    }

    #[test]
    fn lenient_notations_are_warned_of() {
        let path = Path::new("a");
        assert_eq!(ip_warnings(&path, "1.2.3.4"), Vec::<String>::new());
        assert_eq!(
            ip_warnings(&path, "01.2.3.4"),
            ["a: non-standard IP address \"01.2.3.4\" is invalid: use \"1.2.3.4\""]
        );
        let ambiguous = "a: CIDR value \"1.2.3.4/24\" is ambiguous in this context \
                         (should be \"1.2.3.0/24\" or \"1.2.3.4/32\"?)";
        assert_eq!(cidr_warnings(&path, "1.2.3.4/24"), [ambiguous]);
    }
}
