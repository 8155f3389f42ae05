//! URLs as Go's `net/url` parses them.

use std::collections::BTreeMap;

use super::Outcome;
use crate::value::{Fault, Key, Map, Value, quoted};

/// A URL in parts.
#[derive(Debug, Default)]
pub struct Url {
    pub(crate) text: String,
    scheme: String,
    host: String,
    path: String,
    query: String,
}

/// Parses an absolute URL or an absolute path.
///
/// # Errors
/// Go's message.
pub(crate) fn parse(text: &str) -> Result<Url, String> {
    let failed = |why: &str| Err(format!("parse {}: {why}", quoted(text)));
    if text.bytes().any(|b| b < b' ' || b == 0x7f) {
        return failed("net/url: invalid control character in URL");
    }
    if text.is_empty() {
        return failed("empty url");
    }
    if text == "*" {
        return Ok(Url { text: text.to_owned(), path: text.to_owned(), ..Url::default() });
    }
    let (before, _) = text.split_once('#').unwrap_or((text, ""));
    let (scheme, rest) = match split_scheme(before) {
        Ok(parts) => parts,
        Err(why) => return failed(why),
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut url = Url {
        text: text.to_owned(),
        scheme: scheme.to_ascii_lowercase(),
        query: query.to_owned(),
        ..Url::default()
    };
    if !rest.starts_with('/') {
        if !scheme.is_empty() {
            return Ok(url);
        }
        return failed("invalid URI for request");
    }
    let mut path = rest;
    if let Some(authority) =
        rest.strip_prefix("//").filter(|_| !scheme.is_empty() || !rest.starts_with("///"))
    {
        let (authority, tail) = authority.find('/').map_or((authority, ""), |at| authority.split_at(at));
        path = tail;
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        if let Err(why) = check_host(host) {
            return failed(&why);
        }
        host.clone_into(&mut url.host);
    }
    if let Some(bad) = bad_escape(path) {
        return failed(&format!("invalid URL escape {}", quoted(bad)));
    }
    path.clone_into(&mut url.path);
    Ok(url)
}

fn split_scheme(text: &str) -> Result<(&str, &str), &'static str> {
    for (i, c) in text.char_indices() {
        match c {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if i > 0 => {}
            '0'..='9' | '+' | '-' | '.' => return Ok(("", text)),
            ':' if i == 0 => return Err("missing protocol scheme"),
            ':' => return Ok((&text[..i], &text[i + 1..])),
            _ => return Ok(("", text)),
        }
    }
    Ok(("", text))
}

fn check_host(host: &str) -> Result<(), String> {
    let port = if host.starts_with('[') {
        let Some(end) = host.rfind(']') else { return Err("missing ']' in host".to_owned()) };
        &host[end + 1..]
    } else {
        host.find(':').map_or("", |at| &host[at..])
    };
    let digits = port.strip_prefix(':').is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    if !port.is_empty() && !digits {
        return Err(format!("invalid port {} after host", quoted(port)));
    }
    if let Some(bad) =
        host.chars().find(|c| matches!(c, ' ' | '<' | '>' | '"' | '\\' | '^' | '`' | '{' | '|' | '}'))
    {
        return Err(format!("invalid character {} in host name", quoted(&bad.to_string())));
    }
    Ok(())
}

fn bad_escape(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    (0..bytes.len()).filter(|i| bytes[*i] == b'%').find_map(|i| {
        let hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
        (!hex(i + 1) || !hex(i + 2)).then(|| {
            let end = (i + 3).min(text.len());
            let end = (end..=text.len()).find(|end| text.is_char_boundary(*end)).unwrap_or(text.len());
            &text[i..end]
        })
    })
}

impl Url {
    fn hostname(&self) -> &str {
        match self.host.strip_prefix('[') {
            Some(inner) => inner.split(']').next().unwrap_or(""),
            None => self.host.split(':').next().unwrap_or(""),
        }
    }

    fn port(&self) -> &str {
        let rest =
            if self.host.starts_with('[') { self.host.rsplit(']').next().unwrap_or("") } else { &self.host };
        rest.rsplit_once(':').map_or("", |(_, port)| port)
    }

    fn query(&self) -> Value {
        let mut map: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for pair in self.query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if let (Some(key), Some(value)) = (unescape(key), unescape(value)) {
                map.entry(key).or_default().push(Value::string(value));
            }
        }
        let entries = map.into_iter().map(|(key, values)| (Key::String(key.into()), Value::list(values)));
        Value::Map(entries.collect::<Map>().into())
    }

    fn escaped_path(&self) -> String {
        let mut out = String::new();
        for b in self.path.bytes() {
            if b.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@%!'()*[]".contains(&b) {
                out.push(char::from(b));
            } else {
                out.push_str(&format!("%{b:02X}"));
            }
        }
        out
    }
}

fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'%' => {
                let hex = text.get(i + 1..i + 3)?;
                out.push(u8::from_str_radix(hex, 16).ok()?);
                i += 2;
            }
            b'+' => out.push(b' '),
            b => out.push(b),
        }
        i += 1;
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}

pub(super) fn call(function: &str, args: &[Value]) -> Option<Outcome> {
    Some(Ok(match (function, args) {
        ("url", [Value::String(text)]) => match parse(text) {
            Ok(url) => Value::Url(url.into()),
            Err(why) => {
                let why = format!("URL parse error during conversion from string: {why}");
                return Some(Err(Fault::new(why)));
            }
        },
        ("isURL", [Value::String(text)]) => Value::Bool(parse(text).is_ok()),
        ("getScheme", [Value::Url(url)]) => Value::string(&url.scheme),
        ("getHost", [Value::Url(url)]) => Value::string(&url.host),
        ("getHostname", [Value::Url(url)]) => Value::string(url.hostname()),
        ("getPort", [Value::Url(url)]) => Value::string(url.port()),
        ("getEscapedPath", [Value::Url(url)]) => Value::string(url.escaped_path()),
        ("getQuery", [Value::Url(url)]) => url.query(),
        _ => return None,
    }))
}
