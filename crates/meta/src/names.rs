//! Syntax of names, labels and other short strings. Every function returns upstream's messages; an empty list
//! means valid. Follows `k8s.io/apimachinery/pkg/util/validation` and `pkg/api/validate/content`.

use crate::field::{ErrorList, Path};

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
    characters, '-' or \
    '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for \
    validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
    and must \
    start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation \
    is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const DNS1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start \
    with an \
    alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex \
    used for \
    validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS \
    subdomain, which \
    must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character \
    (e.g. \
    '*.example.com', regex used for validation is \
    '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const UNDERSCORE_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
    characters, '_', '-' or '.', and must start and end with an alphanumeric character (e.g. \
    'example.com', regex \
    used for validation is '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')";
const NAME_PART: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must \
    start and end \
    with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation \
    is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const QUALIFIED: &str = "a valid label key must consist of alphanumeric characters, '-', '_' or '.', and \
    must start \
    and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
    validation \
    is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. \
    'example.com/MyName')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, \
    '-', '_' or \
    '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or \
    '12345', regex \
    used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. \
    'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const HTTP_HEADER: &str = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. \
    'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";
const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. \
    '1%',  or \
    '93%', regex used for validation is '[0-9]+%')";
const ENV_VAR: &str = "a valid environment variable name must consist only of printable ASCII characters \
    other than \
    '='";

fn lower_alnum(c: u8) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

/// First and last byte fulfil `edge`, all fulfil `inner`; not empty.
fn framed(text: &str, first: fn(u8) -> bool, inner: fn(u8) -> bool, last: fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|c| first(*c))
        && bytes.last().is_some_and(|c| last(*c))
        && bytes.iter().all(|c| inner(*c))
}

fn is_label(text: &str) -> bool {
    framed(text, lower_alnum, |c| lower_alnum(c) || c == b'-', lower_alnum)
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

fn is_name_part(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    framed(text, |c| c.is_ascii_alphanumeric(), inner, |c| c.is_ascii_alphanumeric())
}

fn list(pairs: [(bool, String); 2]) -> Vec<String> {
    pairs.into_iter().filter(|(bad, _)| *bad).map(|(_, text)| text).collect()
}

fn checked(text: &str, max: usize, ok: bool, message: &str) -> Vec<String> {
    if ok && text.len() <= max {
        return Vec::new();
    }
    list([(text.len() > max, max_len(max)), (!ok, message.to_owned())])
}

/// `must be no more than N characters`.
pub fn max_len(max: usize) -> String {
    format!("must be no more than {max} characters")
}

fn max_bytes(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// A DNS-1123 label, at most 63 characters: namespaces, container names …
pub fn dns1123_label(name: &str) -> Vec<String> {
    let message = if is_subdomain(name) { "must not contain dots" } else { LABEL };
    checked(name, 63, is_label(name), message)
}

/// A DNS-1123 subdomain, at most 253 characters: most object names.
pub fn dns1123_subdomain(name: &str) -> Vec<String> {
    checked(name, 253, is_subdomain(name), SUBDOMAIN)
}

/// A DNS-1123 subdomain whose labels may contain and begin with underscores (DNS searches).
pub fn dns1123_subdomain_with_underscore(name: &str) -> Vec<String> {
    let label = |l: &str| {
        let l = l.strip_prefix('_').unwrap_or(l);
        framed(l, lower_alnum, |c| lower_alnum(c) || matches!(c, b'-' | b'_'), lower_alnum)
    };
    checked(name, 253, name.split('.').all(label), UNDERSCORE_SUBDOMAIN)
}

/// A DNS-1035 label (begins with a letter), at most 63 characters: service names.
pub fn dns1035_label(name: &str) -> Vec<String> {
    let ok = framed(name, |c| c.is_ascii_lowercase(), |c| lower_alnum(c) || c == b'-', lower_alnum);
    checked(name, 63, ok, DNS1035)
}

/// `*.` and a DNS-1123 subdomain: ingress hosts.
pub fn wildcard_dns1123_subdomain(name: &str) -> Vec<String> {
    checked(name, 253, name.strip_prefix("*.").is_some_and(is_subdomain), WILDCARD)
}

/// A label or annotation key: a name part of at most 63 bytes with an optional DNS prefix and a slash.
pub fn qualified_name(name: &str) -> Vec<String> {
    let mut out = Vec::new();
    let part = match name.split_once('/') {
        None => name,
        Some((_, rest)) if rest.contains('/') => return vec![QUALIFIED.to_owned()],
        Some((prefix, rest)) => {
            if prefix.is_empty() {
                out.push("prefix part must be non-empty".to_owned());
            } else {
                if prefix.len() > 253 {
                    out.push(format!("prefix part {}", max_bytes(253)));
                }
                if !is_subdomain(prefix) {
                    out.push(format!("prefix part {SUBDOMAIN}"));
                }
            }
            rest
        }
    };
    if part.is_empty() {
        out.push("name part must be non-empty".to_owned());
    } else if part.len() > 63 {
        out.push(format!("name part {}", max_bytes(63)));
    }
    if !is_name_part(part) {
        out.push(NAME_PART.to_owned());
    }
    out
}

/// A label value: empty, or a name of at most 63 bytes.
pub fn label_value(value: &str) -> Vec<String> {
    let ok = value.is_empty() || is_name_part(value);
    if ok && value.len() <= 63 {
        return Vec::new();
    }
    list([(value.len() > 63, max_bytes(63)), (!ok, LABEL_VALUE.to_owned())])
}

/// A name that may stand as one segment of a URL path.
pub fn path_segment(name: &str) -> Vec<String> {
    match name {
        "." => return vec!["may not be '.'".to_owned()],
        ".." => return vec!["may not be '..'".to_owned()],
        _ => {}
    }
    let found = ["/", "%"].into_iter().filter(|c| name.contains(*c));
    found.map(|c| format!("may not contain '{c}'")).collect()
}

/// Checks a path behind a domain, such as `acme.io/foo`.
pub fn check_prefixed_path(value: &str, path: &Path, errs: &mut ErrorList) {
    if value.is_empty() {
        return errs.required(path, "");
    }
    let (host, rest) = value.split_once('/').unwrap_or((value, ""));
    if host.is_empty() || rest.is_empty() {
        return errs.invalid(path, value, "must be a domain-prefixed path (such as \"acme.io/foo\")");
    }
    for why in dns1123_subdomain(host) {
        errs.invalid(path, host, why);
    }
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
    if !rest.bytes().all(legal) {
        let why = "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
        errs.invalid(path, rest, why);
    }
}

/// A container port's or service port's IANA name: at most 15 characters, a letter among them.
pub fn port_name(name: &str) -> Vec<String> {
    let mut out = Vec::new();
    if name.len() > 15 {
        out.push(max_len(15));
    }
    if name.is_empty() || !name.bytes().all(|c| lower_alnum(c) || c == b'-') {
        out.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !name.bytes().any(|c| c.is_ascii_lowercase()) {
        out.push("must contain at least one letter (a-z)".to_owned());
    }
    if name.contains("--") {
        out.push("must not contain consecutive hyphens".to_owned());
    }
    if name.starts_with('-') || name.ends_with('-') {
        out.push("must not begin or end with a hyphen".to_owned());
    }
    out
}

/// A port number, 1 to 65535.
pub fn port_number(port: i64) -> Vec<String> {
    if (1..=65535).contains(&port) { Vec::new() } else { vec![in_range(1, 65535)] }
}

/// `must be between 1 and 65535, inclusive`.
pub fn in_range(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

/// A key of a ConfigMap or Secret.
pub fn config_key(key: &str) -> Vec<String> {
    let legal = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    let mut out = Vec::new();
    if key.len() > 253 {
        out.push(max_len(253));
    }
    if key.is_empty() || !key.bytes().all(legal) {
        out.push(CONFIG_KEY.to_owned());
    }
    match key {
        "." => out.push("must not be '.'".to_owned()),
        ".." => out.push("must not be '..'".to_owned()),
        _ if key.starts_with("..") => out.push("must not start with '..'".to_owned()),
        _ => {}
    }
    out
}

/// An environment variable's name: printable ASCII without `=`.
pub fn env_var_name(name: &str) -> Vec<String> {
    if name.is_empty() {
        return vec!["environment variable name must not be empty".to_owned(), ENV_VAR.to_owned()];
    }
    let ok = name.bytes().all(|c| (0x20..0x7f).contains(&c) && c != b'=');
    if ok { Vec::new() } else { vec![ENV_VAR.to_owned()] }
}

/// An HTTP header's name.
pub fn http_header_name(name: &str) -> Vec<String> {
    let ok = !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
    if ok { Vec::new() } else { vec![HTTP_HEADER.to_owned()] }
}

/// A percentage such as `25%`.
pub fn percent(text: &str) -> Vec<String> {
    let ok = text.strip_suffix('%').is_some_and(|d| !d.is_empty() && d.bytes().all(|c| c.is_ascii_digit()));
    if ok { Vec::new() } else { vec![PERCENT.to_owned()] }
}

/// An IP address in canonical notation (no leading zeros in IPv4 octets).
pub fn ip(text: &str) -> Vec<String> {
    if text.parse::<std::net::IpAddr>().is_ok() && !text.contains('%') {
        Vec::new()
    } else if has_leading_zeros(text) {
        vec!["must not have leading 0s".to_owned()]
    } else {
        vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()]
    }
}

/// Whether the text is an IPv4 address but for zeros before its numbers.
fn has_leading_zeros(text: &str) -> bool {
    let octets: Vec<&str> = text.split('.').collect();
    let number = |o: &&str| o.bytes().all(|c| c.is_ascii_digit()) && o.parse::<u32>().is_ok_and(|n| n < 256);
    octets.len() == 4 && octets.iter().all(number)
}

/// An address block such as `10.9.8.0/24`.
pub fn cidr(text: &str) -> Vec<String> {
    let ok = text.split_once('/').is_some_and(|(address, bits)| {
        let plain = !bits.is_empty()
            && bits.bytes().all(|c| c.is_ascii_digit())
            && (bits == "0" || !bits.starts_with('0'));
        let Ok(bits) = bits.parse::<u8>() else { return false };
        match address.parse::<std::net::IpAddr>() {
            Ok(std::net::IpAddr::V4(_)) => plain && bits <= 32,
            Ok(std::net::IpAddr::V6(_)) => plain && bits <= 128,
            Err(_) => false,
        }
    });
    if ok {
        Vec::new()
    } else {
        vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned()]
    }
}

/// Wraps a check of whole names so that it also takes generateName prefixes, which may end with a dash:
/// the shape that object metadata validation asks for.
pub fn maybe_prefix(check: fn(&str) -> Vec<String>, name: &str, prefix: bool) -> Vec<String> {
    if !prefix {
        return check(name);
    }
    match name.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => check(&format!("{rest}a")),
        _ => check(name),
    }
}

/// The order of API versions: `v2` is above `v1`, which is above `v2beta1`, `v1beta2`, `v1alpha1`, and these
/// above what is no such version; those are ordered by name, the first one on top.
pub fn compare_versions(a: &str, b: &str) -> std::cmp::Ordering {
    match (parse_version(a), parse_version(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (Some(_), None) => std::cmp::Ordering::Greater,
        (None, Some(_)) => std::cmp::Ordering::Less,
        (None, None) => b.cmp(a),
    }
}

/// Stability (2: stable, 1: beta, 0: alpha), major and minor version.
fn parse_version(text: &str) -> Option<(u8, u32, u32)> {
    let number = |text: &str| {
        let plain = !text.is_empty() && !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
        if plain { text.parse().ok() } else { None }
    };
    let rest = text.strip_prefix('v')?;
    for (word, stability) in [("alpha", 0), ("beta", 1)] {
        if let Some((major, minor)) = rest.split_once(word) {
            let minor = if minor.is_empty() { 0 } else { number(minor)? };
            return Some((stability, number(major)?, minor));
        }
    }
    Some((2, number(rest)?, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_names_pass() {
        for messages in [
            dns1123_label("a-1"),
            dns1123_subdomain("a.b-c.9"),
            dns1035_label("web"),
            qualified_name("app.kubernetes.io/Name_x"),
            label_value(""),
            label_value("v1.0_x"),
            port_name("http-2"),
            config_key("a_B.c"),
            wildcard_dns1123_subdomain("*.example.com"),
            env_var_name("my.VAR x"),
            maybe_prefix(dns1123_label, "a-", true),
            cidr("10.0.0.0/8"),
        ] {
            assert_eq!(messages, Vec::<String>::new());
        }
    }

    #[test]
    fn each_fault_has_its_message() {
        assert_eq!(qualified_name("/a"), ["prefix part must be non-empty"]);
        assert_eq!(qualified_name("example.com/"), ["name part must be non-empty", NAME_PART]);
        assert_eq!(qualified_name("a/b/c"), [QUALIFIED]);
        assert_eq!(qualified_name(&"x".repeat(64)), ["name part must be no more than 63 bytes"]);
        assert_eq!(label_value("-x"), [LABEL_VALUE]);
        assert_eq!(dns1123_subdomain(&"x".repeat(254)), ["must be no more than 253 characters"]);
        assert_eq!(dns1123_label("A"), [LABEL]);
        assert_eq!(path_segment("a/b%"), ["may not contain '/'", "may not contain '%'"]);
        assert_eq!(config_key("..a"), ["must not start with '..'"]);
    }
}
