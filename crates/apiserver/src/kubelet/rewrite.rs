//! Answers of proxied web servers: redirects and the links of HTML pages lead through the proxy, as upstream's do.

use std::io::{Read as _, Write as _};

use bytes::Bytes;
use coracle_meta::Status;
use flate2::Compression;
use flate2::read::{DeflateDecoder, GzDecoder};
use flate2::write::{DeflateEncoder, GzEncoder};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;

use super::target::Target;
use crate::http::body::Body;
use crate::http::info::Info;
use crate::http::respond;

/// The longest page whose links are followed up, packed or not.
const MOST: usize = 64 << 20;
/// What a page may carry in these attributes is an address.
const ATTRIBUTES: [&str; 15] = [
    "action",
    "background",
    "cite",
    "classid",
    "codebase",
    "data",
    "formaction",
    "href",
    "icon",
    "longdesc",
    "manifest",
    "poster",
    "profile",
    "src",
    "usemap",
];
/// Elements of which these attributes are looked at.
const ELEMENTS: [&str; 25] = [
    "a",
    "applet",
    "area",
    "audio",
    "base",
    "blockquote",
    "body",
    "button",
    "command",
    "del",
    "embed",
    "form",
    "frame",
    "head",
    "html",
    "iframe",
    "img",
    "input",
    "ins",
    "link",
    "object",
    "q",
    "script",
    "source",
    "video",
];
/// Elements whose content is no markup.
const RAW: [&str; 4] = ["script", "style", "textarea", "title"];
/// What other origins may do is for this server to say, not for one behind it.
const CORS: [&str; 4] = [
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
];

/// Sends a reader of `…/proxy` to `…/proxy/`, without which the relative links of the page there go astray.
pub(super) fn with_slash(request: &Request<Incoming>, info: &Info<'_>) -> Option<Response<Body>> {
    let uri = request.uri();
    let bare = info.subresource == "proxy" && info.rest.is_empty() && uri.path().ends_with("/proxy");
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !bare || !reads || request.headers().contains_key(UPGRADE) {
        return None;
    }
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let to = HeaderValue::from_str(&format!("{}/{query}", uri.path())).ok()?;
    let mut response = respond::text(StatusCode::MOVED_PERMANENTLY, "");
    response.headers_mut().insert(LOCATION, to);
    Some(response)
}

/// Rewrites the addresses of one answer.
pub(super) struct Rewriter {
    /// Path of the proxy.
    base: String,
    /// Host and port of the proxied server.
    target: String,
    /// Host and port as the client named this server.
    host: String,
}

impl Rewriter {
    /// For an answer to a request, which is told where it came in; `None` for what is no web server.
    pub(super) fn of(target: &Target, request: &mut Request<Incoming>) -> Option<Self> {
        let base = target.base.clone()?;
        let path = target.path.split('?').next().unwrap_or("");
        let forwarded = HeaderValue::from_str(&format!("{base}{path}")).ok();
        let headers = request.headers_mut();
        forwarded.map(|uri| headers.insert("x-forwarded-uri", uri));
        let host = headers.get(HOST).and_then(|h| h.to_str().ok()).unwrap_or("").to_owned();
        Some(Self { base, target: format!("{}:{}", target.host, target.port), host })
    }

    /// The answer as the client gets it.
    ///
    /// # Errors
    /// 500 for a page that cannot be read.
    pub(super) async fn answer(&self, mut response: Response<Body>) -> Result<Response<Body>, Status> {
        CORS.iter().for_each(|name| drop(response.headers_mut().remove(*name)));
        let headers = response.headers_mut();
        if let Some(location) = headers.get(LOCATION).and_then(|l| l.to_str().ok()) {
            if let Ok(moved) = HeaderValue::from_str(&self.url(location)) {
                headers.insert(LOCATION, moved);
            }
            return Ok(response);
        }
        let kind = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        if kind.split(';').next().map(str::trim) != Some("text/html") {
            return Ok(response);
        }
        let encoding = headers.get(CONTENT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        let Some(packing) = Packing::of(&encoding) else { return Ok(response) };
        let (mut parts, body) = response.into_parts();
        let failed = |e: &dyn std::fmt::Display| Status::internal(format!("cannot rewrite the page: {e}"));
        let page = Limited::new(body, MOST).collect().await.map_err(|e| failed(&e))?.to_bytes();
        let page = packing.unpack(&page).map_err(|e| failed(&e))?;
        let page = packing.pack(self.html(&page)).map_err(|e| failed(&e))?;
        parts.headers.remove(CONTENT_LENGTH);
        Ok(Response::from_parts(parts, Body::Full(Bytes::from(page))))
    }

    /// An address as the client must use it: one of the proxied server with the proxy's path in front.
    fn url(&self, url: &str) -> String {
        let (host, path) = match url.find("//") {
            Some(at) if at == 0 || url[..at].ends_with(':') => {
                let rest = &url[at + 2..];
                let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                (&rest[..end], &rest[end..])
            }
            _ => ("", url),
        };
        let other = !host.is_empty() && host != self.target && host != self.host;
        if other || !path.starts_with('/') {
            return url.to_owned();
        }
        let front = if host == self.host { &url[..url.len() - path.len()] } else { "" };
        if path.starts_with(&self.base) {
            return format!("{front}{path}");
        }
        format!("{front}{}{path}", self.base)
    }

    /// A page with its addresses rewritten; everything else stays byte for byte.
    fn html(&self, page: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(page.len() + page.len() / 8);
        let mut rest = page;
        while let Some(at) = memchr::memchr(b'<', rest) {
            out.extend_from_slice(&rest[..at]);
            rest = &rest[at..];
            let length = if rest.starts_with(b"<!--") {
                memchr::memmem::find(rest, b"-->").map_or(rest.len(), |end| end + 3)
            } else if rest.get(1).is_some_and(u8::is_ascii_alphabetic) {
                let (length, name) = self.tag(rest, &mut out);
                rest = &rest[length..];
                if RAW.contains(&name.as_str()) {
                    let end = raw_end(rest, &name);
                    out.extend_from_slice(&rest[..end]);
                    rest = &rest[end..];
                }
                continue;
            } else {
                1
            };
            out.extend_from_slice(&rest[..length]);
            rest = &rest[length..];
        }
        out.extend_from_slice(rest);
        out
    }

    /// Copies a start tag, its addresses rewritten; yields its length and the element's name.
    fn tag(&self, text: &[u8], out: &mut Vec<u8>) -> (usize, String) {
        let name_end = text[1..].iter().position(|b| ends_name(*b)).map_or(text.len(), |at| at + 1);
        let name = String::from_utf8_lossy(&text[1..name_end]).to_ascii_lowercase();
        let known = ELEMENTS.contains(&name.as_str());
        out.extend_from_slice(&text[..name_end]);
        let mut at = name_end;
        while at < text.len() && text[at] != b'>' {
            let attribute = Attribute::read(&text[at..]);
            let Some(attribute) = attribute else {
                out.push(text[at]);
                at += 1;
                continue;
            };
            let (value, end) = (attribute.value, attribute.end);
            let key = String::from_utf8_lossy(&text[at..at + attribute.name_end]).to_ascii_lowercase();
            let address = std::str::from_utf8(&text[at + value.0..at + value.1]);
            match address {
                Ok(address) if known && ATTRIBUTES.contains(&key.as_str()) && !address.is_empty() => {
                    out.extend_from_slice(&text[at..at + value.0]);
                    out.extend_from_slice(self.url(address).as_bytes());
                    out.extend_from_slice(&text[at + value.1..at + end]);
                }
                _ => out.extend_from_slice(&text[at..at + end]),
            }
            at += end;
        }
        if at < text.len() {
            out.push(b'>');
            at += 1;
        }
        (at, name)
    }
}

fn ends_name(b: u8) -> bool {
    b.is_ascii_whitespace() || matches!(b, b'>' | b'/')
}

/// Where the content of an element ends that holds no markup.
fn raw_end(text: &[u8], name: &str) -> usize {
    let closes = |at: &usize| {
        let after = &text[at + 1..];
        after.first() == Some(&b'/')
            && after.get(1..=name.len()).is_some_and(|n| n.eq_ignore_ascii_case(name.as_bytes()))
    };
    memchr::memchr_iter(b'<', text).find(closes).unwrap_or(text.len())
}

/// An attribute at the front of a text: where its name ends, where its value is, where all of it ends.
struct Attribute {
    name_end: usize,
    value: (usize, usize),
    end: usize,
}

impl Attribute {
    /// `None` where no attribute begins.
    fn read(text: &[u8]) -> Option<Self> {
        let ends = |b: &u8| ends_name(*b) || *b == b'=';
        let name_end = text.iter().position(ends).unwrap_or(text.len());
        if name_end == 0 {
            return None;
        }
        let skip = |from: usize| from + text[from..].iter().take_while(|b| b.is_ascii_whitespace()).count();
        let equals = skip(name_end);
        if text.get(equals) != Some(&b'=') {
            return Some(Self { name_end, value: (name_end, name_end), end: name_end });
        }
        let start = skip(equals + 1);
        let until = |from: usize, stop: &dyn Fn(u8) -> bool| {
            text[from..].iter().position(|b| stop(*b)).map_or(text.len(), |at| from + at)
        };
        Some(match text.get(start) {
            Some(quote @ (b'"' | b'\'')) => {
                let end = until(start + 1, &|b| b == *quote);
                Self { name_end, value: (start + 1, end), end: (end + 1).min(text.len()) }
            }
            _ => {
                let end = until(start, &|b| b.is_ascii_whitespace() || b == b'>');
                Self { name_end, value: (start, end), end }
            }
        })
    }
}

/// How a page is packed.
#[derive(Clone, Copy)]
enum Packing {
    Plain,
    Gzip,
    Deflate,
}

impl Packing {
    fn of(encoding: &str) -> Option<Self> {
        match encoding {
            "" => Some(Self::Plain),
            "gzip" => Some(Self::Gzip),
            "deflate" => Some(Self::Deflate),
            _ => None,
        }
    }

    fn unpack(self, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        let reader: Box<dyn std::io::Read + '_> = match self {
            Self::Plain => Box::new(bytes),
            Self::Gzip => Box::new(GzDecoder::new(bytes)),
            Self::Deflate => Box::new(DeflateDecoder::new(bytes)),
        };
        let mut out = Vec::new();
        reader.take(MOST as u64 + 1).read_to_end(&mut out)?;
        if out.len() > MOST { Err(std::io::Error::other("it is too long")) } else { Ok(out) }
    }

    fn pack(self, bytes: Vec<u8>) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Plain => Ok(bytes),
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(&bytes)?;
                encoder.finish()
            }
            Self::Deflate => {
                let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
                encoder.write_all(&bytes)?;
                encoder.finish()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewriter() -> Rewriter {
        Rewriter { base: "/p/proxy".into(), target: "10.0.0.1:80".into(), host: "api:6443".into() }
    }

    #[test]
    fn addresses_of_the_proxied_server_lead_through_the_proxy() {
        let check = |url: &str, want: &str| assert_eq!(rewriter().url(url), want, "{url}");
        check("/x/", "/p/proxy/x/");
        check("/x?a=//b", "/p/proxy/x?a=//b");
        check("x/y", "x/y");
        check("#top", "#top");
        check("http://10.0.0.1:80/x", "/p/proxy/x");
        check("//10.0.0.1:80/x", "/p/proxy/x");
        check("https://api:6443/x", "https://api:6443/p/proxy/x");
        check("https://elsewhere.example/x", "https://elsewhere.example/x");
        check("/p/proxy/x", "/p/proxy/x");
        check("mailto:a@b", "mailto:a@b");
    }

    #[test]
    fn links_of_pages_are_rewritten_and_nothing_else() {
        let page = "<!DOCTYPE html><!-- <a href=\"/c\"> --><A class=x HREF = '/a'>1 < 2</A><img src=/i.png alt>\
            <p href=\"/p\"><script src=\"/s.js\">if (1<a) '<a href=\"/no\">'</script><form action=\"\"><a href='/b";
        let want = "<!DOCTYPE html><!-- <a href=\"/c\"> --><A class=x HREF = '/p/proxy/a'>1 < 2</A>\
            <img src=/p/proxy/i.png alt><p href=\"/p\"><script src=\"/p/proxy/s.js\">if (1<a) '<a href=\"/no\">'\
            </script><form action=\"\"><a href='/p/proxy/b";
        let got = rewriter().html(page.as_bytes());
        assert_eq!(String::from_utf8(got).unwrap(), want);
    }

    #[tokio::test]
    async fn packed_pages_are_rewritten_too() {
        let packed = Packing::Gzip.pack(b"<a href=\"/x\">".to_vec()).unwrap();
        let page = Response::builder()
            .header(CONTENT_TYPE, "text/html; charset=utf-8")
            .header(CONTENT_ENCODING, "gzip")
            .header("access-control-allow-origin", "*")
            .body(Body::Full(packed.into()))
            .unwrap();
        let answer = rewriter().answer(page).await.unwrap();
        assert!(!answer.headers().contains_key("access-control-allow-origin"));
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(Packing::Gzip.unpack(&body).unwrap(), b"<a href=\"/p/proxy/x\">");
    }
}
