//! IP addresses and networks.

use std::net::IpAddr;

use super::Outcome;
use crate::value::{Cidr, Fault, Value, quoted};

fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let shown = quoted(text);
    let bare = text.split_once('%').map_or(text, |(bare, _)| bare);
    let failed = || {
        let why = parse_problem(text);
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

/// What Go says of an address that is none: the first of `.` and `:` tells what it was meant to be.
fn parse_problem(text: &str) -> String {
    match text.find(['.', ':', '%']).and_then(|at| text[at..].chars().next()) {
        Some('.') => problem_v4(text),
        Some(':') => problem_v6(text),
        Some(_) => "missing IPv6 address".to_owned(),
        None => "unable to parse IP".to_owned(),
    }
}

fn at(why: &str, rest: &str) -> String {
    if rest.is_empty() { why.to_owned() } else { format!("{why} (at {})", quoted(rest)) }
}

fn problem_v4(text: &str) -> String {
    let (mut field, mut digits, mut dots) = (0u32, 0, 0);
    for (i, c) in text.char_indices() {
        match c {
            '0'..='9' => {
                if digits == 1 && field == 0 {
                    return "IPv4 field has octet with leading zero".to_owned();
                }
                field = field * 10 + c.to_digit(10).unwrap_or(0);
                digits += 1;
                if field > 255 {
                    return "IPv4 field has value >255".to_owned();
                }
            }
            '.' if digits == 0 || i + 1 == text.len() => {
                return at("IPv4 field must have at least one digit", &text[i..]);
            }
            '.' if dots == 3 => return "IPv4 address too long".to_owned(),
            '.' => (field, digits, dots) = (0, 0, dots + 1),
            _ => return at("unexpected character", &text[i..]),
        }
    }
    "IPv4 address too short".to_owned()
}

fn problem_v6(text: &str) -> String {
    let (mut rest, zone) = text.split_once('%').map_or((text, None), |(rest, zone)| (rest, Some(zone)));
    if zone == Some("") {
        return "zone must be a non-empty string".to_owned();
    }
    let (mut groups, mut gap) = (0, false);
    if let Some(behind) = rest.strip_prefix("::") {
        (rest, gap) = (behind, true);
    }
    while groups < 8 && !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
        match digits {
            0 => return at("each colon-separated field must have at least one digit", rest),
            1..=4 => {}
            _ => return at("each group must have 4 or less digits", rest),
        }
        let behind = &rest[digits..];
        if behind.starts_with('.') {
            return match (gap, groups) {
                (false, count) if count != 6 => {
                    at("embedded IPv4 address must replace the final 2 fields of the address", rest)
                }
                (true, 7..) => {
                    at("too many hex fields to fit an embedded IPv4 at the end of the address", rest)
                }
                _ => problem_v4(rest),
            };
        }
        groups += 1;
        rest = match behind.strip_prefix(':') {
            _ if behind.is_empty() => "",
            None => return at("unexpected character, want colon", behind),
            Some("") => return at("colon must be followed by more characters", behind),
            Some(behind) => behind,
        };
        if let Some(behind) = rest.strip_prefix(':') {
            if gap {
                return at("multiple :: in address", rest);
            }
            (rest, gap) = (behind, true);
        }
    }
    match rest {
        "" if gap => "the :: must expand to at least one field of zeros".to_owned(),
        "" => "address string too short".to_owned(),
        rest => at("trailing garbage after address", rest),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_refused_in_the_words_of_go() {
        for (text, why) in [
            ("", "unable to parse IP"),
            ("x", "unable to parse IP"),
            ("10.0.0.0/8", "unexpected character (at \"/8\")"),
            ("1.2.3", "IPv4 address too short"),
            ("1.2.3.4.5", "IPv4 address too long"),
            ("1.2..4", "IPv4 field must have at least one digit (at \".4\")"),
            ("1.2.3.", "IPv4 field must have at least one digit (at \".\")"),
            ("01.2.3.4", "IPv4 field has octet with leading zero"),
            ("1.2.3.256", "IPv4 field has value >255"),
            ("a:b", "address string too short"),
            ("1::2::3", "multiple :: in address (at \":3\")"),
            ("12345::", "each group must have 4 or less digits (at \"12345::\")"),
            ("fe80::/64", "each colon-separated field must have at least one digit (at \"/64\")"),
            ("1:2:3:4:5:6:7:8:9", "trailing garbage after address (at \"9\")"),
            ("::x", "each colon-separated field must have at least one digit (at \"x\")"),
            ("1:2x", "unexpected character, want colon (at \"x\")"),
            ("1:", "colon must be followed by more characters (at \":\")"),
            ("%a", "missing IPv6 address"),
        ] {
            assert_eq!(parse_problem(text), why, "{text}");
        }
    }
}
