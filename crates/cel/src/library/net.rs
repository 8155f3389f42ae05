//! IP addresses and networks.

use std::net::IpAddr;

use super::Outcome;
use crate::value::{Cidr, Fault, Value, quoted};

fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let shown = quoted(text);
    let bare = text.split_once('%').map_or(text, |(bare, _)| bare);
    let failed = || {
        let why = if text.is_empty() { "unable to parse IP" } else { parse_problem(text) };
        format!("IP Address {shown} parse error during conversion from string: ParseAddr({shown}): {why}")
    };
    let ip: IpAddr = bare.parse().map_err(|_| failed())?;
    if bare.len() < text.len() {
        if ip.is_ipv4() {
            return Err(failed());
        }
        return Err(format!("IP address {shown} with zone value is not allowed"));
    }
    if let IpAddr::V6(v6) = ip
        && v6.to_ipv4_mapped().is_some()
    {
        return Err(format!("IPv4-mapped IPv6 address {shown} is not allowed"));
    }
    Ok(ip)
}

/// What Go says of an address that is none.
fn parse_problem(text: &str) -> &'static str {
    if text.contains(':') {
        return "unable to parse IP";
    }
    if !text.contains('.') {
        return "unable to parse IP";
    }
    let fields: Vec<&str> = text.split('.').collect();
    for (i, field) in fields.iter().enumerate() {
        if field.is_empty() {
            return "IPv4 field must have at least one digit";
        }
        if !field.bytes().all(|b| b.is_ascii_digit()) {
            return "unexpected character";
        }
        if field.len() > 1 && field.starts_with('0') {
            return "IPv4 field has octet with leading zero";
        }
        if field.parse::<u32>().map_or(true, |value| value > 255) {
            return "IPv4 field has value >255";
        }
        if i > 3 {
            return "IPv4 address too long";
        }
    }
    "IPv4 address too short"
}

fn parse_cidr(text: &str) -> Result<Cidr, String> {
    let wrap = |why: String| format!("network address parse error during conversion from string: {why}");
    let failed = |why: &str| wrap(format!("netip.ParsePrefix({}): {why}", quoted(text)));
    let (address, bits) = text.rsplit_once('/').ok_or_else(|| failed("no '/'"))?;
    let ip: IpAddr = address
        .parse()
        .map_err(|_| failed(&format!("ParseAddr({}): {}", quoted(address), parse_problem(address))))?;
    let max = if ip.is_ipv4() { 32 } else { 128 };
    let shown = quoted(bits);
    let plain = bits.bytes().all(|b| b.is_ascii_digit()) && !(bits.len() > 1 && bits.starts_with('0'));
    if !plain || bits.is_empty() {
        return Err(failed(&format!("bad bits after slash: {shown}")));
    }
    let value = bits.parse::<u8>().ok().filter(|bits| *bits <= max);
    let bits = value.ok_or_else(|| failed("prefix length out of range"))?;
    if let IpAddr::V6(v6) = ip
        && v6.to_ipv4_mapped().is_some()
    {
        return Err(format!("IPv4-mapped IPv6 address {} is not allowed", quoted(text)));
    }
    Ok(Cidr { address: ip, bits })
}

fn bits_of(ip: IpAddr) -> (u128, u8) {
    match ip {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

fn prefix(ip: IpAddr, bits: u8) -> (u128, u8) {
    let (value, len) = bits_of(ip);
    let mask = if bits == 0 { 0 } else { u128::MAX << (128 - u32::from(bits)) };
    (value & mask, len)
}

fn contains_ip(cidr: Cidr, ip: IpAddr) -> bool {
    prefix(cidr.address, cidr.bits) == prefix(ip, cidr.bits)
}

fn contains_cidr(outer: Cidr, inner: Cidr) -> bool {
    outer.bits <= inner.bits && contains_ip(outer, inner.address)
}

fn masked(cidr: Cidr) -> Cidr {
    let (value, len) = prefix(cidr.address, cidr.bits);
    let address = if len == 32 {
        IpAddr::V4(std::net::Ipv4Addr::from_bits(u32::try_from(value >> 96).unwrap_or(0)))
    } else {
        IpAddr::V6(std::net::Ipv6Addr::from_bits(value))
    };
    Cidr { address, bits: cidr.bits }
}

fn is_global_unicast(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !is_link_local(ip) && !broadcast
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn is_link_local_multicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    }
}

pub(super) fn call(function: &str, args: &[Value]) -> Option<Outcome> {
    let ip = |text: &str| parse_ip(text).map_err(Fault::new);
    let cidr = |text: &str| {
        parse_cidr(text).map_err(|why| {
            Fault::new(format!("network address parse error during conversion from string: {why}"))
        })
    };
    Some(match (function, args) {
        ("ip", [Value::String(text)]) => ip(text).map(Value::Ip),
        ("ip", [Value::Cidr(cidr)]) => Ok(Value::Ip(cidr.address)),
        ("isIP", [Value::String(text)]) => Ok(Value::Bool(parse_ip(text).is_ok())),
        ("ip.isCanonical", [Value::String(text)]) => ip(text).map(|ip| Value::Bool(ip.to_string() == **text)),
        ("family", [Value::Ip(ip)]) => Ok(Value::Int(if ip.is_ipv4() { 4 } else { 6 })),
        ("isUnspecified", [Value::Ip(ip)]) => Ok(Value::Bool(ip.is_unspecified())),
        ("isLoopback", [Value::Ip(ip)]) => Ok(Value::Bool(ip.is_loopback())),
        ("isLinkLocalMulticast", [Value::Ip(ip)]) => Ok(Value::Bool(is_link_local_multicast(*ip))),
        ("isLinkLocalUnicast", [Value::Ip(ip)]) => Ok(Value::Bool(is_link_local(*ip))),
        ("isGlobalUnicast", [Value::Ip(ip)]) => Ok(Value::Bool(is_global_unicast(*ip))),
        ("cidr", [Value::String(text)]) => cidr(text).map(Value::Cidr),
        ("isCIDR", [Value::String(text)]) => Ok(Value::Bool(parse_cidr(text).is_ok())),
        ("containsIP", [Value::Cidr(net), Value::String(text)]) => {
            ip(text).map(|ip| Value::Bool(contains_ip(*net, ip))).map_err(|_| Fault::no_overload())
        }
        ("containsIP", [Value::Cidr(net), Value::Ip(ip)]) => Ok(Value::Bool(contains_ip(*net, *ip))),
        ("containsCIDR", [Value::Cidr(net), Value::String(text)]) => {
            cidr(text).map(|inner| Value::Bool(contains_cidr(*net, inner)))
        }
        ("containsCIDR", [Value::Cidr(net), Value::Cidr(inner)]) => {
            Ok(Value::Bool(contains_cidr(*net, *inner)))
        }
        ("prefixLength", [Value::Cidr(net)]) => Ok(Value::Int(net.bits.into())),
        ("masked", [Value::Cidr(net)]) => Ok(Value::Cidr(masked(*net))),
        _ => return None,
    })
}
