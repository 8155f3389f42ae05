//! URLs as Go's `net/url` parses them, as far as the API's checks and messages need it.

/// The parts of a URL that checks look at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Url {
    /// In lower case; empty when relative.
    pub(crate) scheme: String,
    /// What stands before the `@`.
    pub(crate) user: Option<String>,
    /// Host and port.
    pub(crate) host: String,
    /// Behind the `?`.
    pub(crate) query: String,
    /// Behind the `#`.
    pub(crate) fragment: String,
}

impl Url {
    /// Parses.
    ///
    /// # Errors
    /// The text of Go's error.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
        let failed = |why: String| format!("parse {rest:?}: {why}");
        if rest.bytes().any(|b| b < b' ' || b == 0x7f) {
            return Err(failed("net/url: invalid control character in URL".to_owned()));
        }
        let (scheme, rest_of) = scheme(rest).map_err(|why| failed(why.to_owned()))?;
        let (path, query) = rest_of.split_once('?').unwrap_or((rest_of, ""));
        let mut url = Self {
            scheme: scheme.to_ascii_lowercase(),
            query: query.to_owned(),
            fragment: fragment.to_owned(),
            ..Self::default()
        };
        if !path.starts_with('/') {
            let first = path.split('/').next().unwrap_or("");
            if scheme.is_empty() && first.contains(':') {
                return Err(failed("first path segment in URL cannot contain colon".to_owned()));
            }
            if !scheme.is_empty() {
                return Ok(url);
            }
        }
        let mut path = path;
        if let Some(rest) = path.strip_prefix("//")
            && !(scheme.is_empty() && path.starts_with("///"))
        {
            let (authority, tail) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
            path = tail;
            let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(u, h)| (Some(u), h));
            check_host(host).map_err(&failed)?;
            url.user = user.map(str::to_owned);
            host.clone_into(&mut url.host);
        }
        escapes(path).map_err(&failed)?;
        Ok(url)
    }
}

/// Splits off the scheme.
fn scheme(text: &str) -> Result<(&str, &str), &'static str> {
    for (i, c) in text.char_indices() {
        match c {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if i > 0 => {}
            ':' if i == 0 => return Err("missing protocol scheme"),
            ':' => return Ok((&text[..i], &text[i + 1..])),
            _ => break,
        }
    }
    Ok(("", text))
}

fn check_host(host: &str) -> Result<(), String> {
    let port = match host.strip_prefix('[') {
        Some(rest) => match rest.rfind(']') {
            Some(end) => &rest[end + 1..],
            None => return Err("missing ']' in host".to_owned()),
        },
        None => host.rfind(':').map_or("", |at| &host[at..]),
    };
    let digits = port.strip_prefix(':').unwrap_or(if port.is_empty() { "" } else { "x" });
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("invalid port {port:?} after host"));
    }
    let legal = |c: char| !c.is_ascii() || c.is_ascii_alphanumeric() || "-_.~!$&'()*+,;=:[]<>\"%".contains(c);
    match host.chars().find(|c| !legal(*c)) {
        Some(c) => Err(format!("invalid character {:?} in host name", c.to_string())),
        None => escapes(host),
    }
}

/// Every `%` must be followed by two hexadecimal digits.
fn escapes(text: &str) -> Result<(), String> {
    for (at, _) in text.match_indices('%') {
        let code = text.get(at + 1..at + 3);
        if !code.is_some_and(|code| code.bytes().all(|b| b.is_ascii_hexdigit())) {
            let end = text.char_indices().map(|(i, _)| i).filter(|i| *i >= at).nth(3).unwrap_or(text.len());
            return Err(format!("invalid URL escape {:?}", &text[at..end]));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found() {
        let url = Url::parse("HTTPS://me@example.com:443/a?b=c#d").expect("a URL");
        assert_eq!((url.scheme.as_str(), url.user.as_deref()), ("https", Some("me")));
        assert_eq!((url.host.as_str(), url.query.as_str()), ("example.com:443", "b=c"));
        assert_eq!(url.fragment, "d");
        assert_eq!(Url::parse("a/b"), Ok(Url::default()));
    }

    #[test]
    fn faults_are_told_as_go_does() {
        let fault = |text| Url::parse(text).expect_err("a fault");
        assert_eq!(fault(":a"), "parse \":a\": missing protocol scheme");
        assert_eq!(fault("1:a"), "parse \"1:a\": first path segment in URL cannot contain colon");
        assert_eq!(fault("https://a b/"), "parse \"https://a b/\": invalid character \" \" in host name");
        assert_eq!(fault("https://a:x"), "parse \"https://a:x\": invalid port \":x\" after host");
        assert_eq!(fault("https://a/%zz"), "parse \"https://a/%zz\": invalid URL escape \"%zz\"");
    }
}
