//! The value of a string or bytes literal: quotes off, escapes replaced, line ends as `\n`.

/// The bytes that `text` (with its quotes and `r`, without `b`) stands for.
///
/// # Errors
/// Upstream's message.
pub(super) fn unescape(text: &str, bytes: bool) -> Result<Vec<u8>, &'static str> {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let raw = text.starts_with(['r', 'R']);
    let body = if raw { &text[1..] } else { text.as_str() };
    let triple = body.len() >= 6 && (body.starts_with("'''") || body.starts_with("\"\"\""));
    let trim = if triple { 3 } else { 1 };
    let inner = body.get(trim..body.len().saturating_sub(trim)).ok_or("unable to unescape string")?;
    if raw || !inner.contains('\\') {
        return Ok(inner.as_bytes().to_vec());
    }
    let mut out = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        rest = escape(&rest[at + 1..], bytes, &mut out)?;
    }
    out.extend_from_slice(rest.as_bytes());
    Ok(out)
}

const UNABLE: &str = "unable to unescape string";

fn escape<'a>(text: &'a str, bytes: bool, out: &mut Vec<u8>) -> Result<&'a str, &'static str> {
    let first = text.chars().next().ok_or("unable to unescape string, found '\\' as last character")?;
    let rest = &text[first.len_utf8()..];
    let simple = match first {
        'a' => 7,
        'b' => 8,
        'f' => 12,
        'n' => 10,
        'r' => 13,
        't' => 9,
        'v' => 11,
        '\\' | '\'' | '"' | '`' | '?' => first as u8,
        'x' | 'X' => return number(rest, 2, 16, bytes, out),
        'u' | 'U' if bytes => return Err(UNABLE),
        'u' => return number(rest, 4, 16, bytes, out),
        'U' => return number(rest, 8, 16, bytes, out),
        '0'..='3' => return number(text, 3, 8, bytes, out),
        _ => return Err(UNABLE),
    };
    out.push(simple);
    Ok(rest)
}

fn number<'a>(
    text: &'a str,
    len: usize,
    radix: u32,
    bytes: bool,
    out: &mut Vec<u8>,
) -> Result<&'a str, &'static str> {
    let digits = text.get(..len).ok_or(UNABLE)?;
    let value = u32::from_str_radix(digits, radix).map_err(|_| UNABLE)?;
    if bytes {
        out.push(u8::try_from(value).map_err(|_| UNABLE)?);
    } else {
        let c = char::from_u32(value).ok_or("invalid unicode code point")?;
        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    }
    Ok(&text[len..])
}
