//! JSON text that is not quite Unicode, as Go reads it.

/// The text with U+FFFD in the place of every byte that is not UTF-8 and of every surrogate escape without
/// its other half; `None` when there is none of these.
pub fn legible(text: &[u8]) -> Option<Vec<u8>> {
    const REPLACEMENT: &str = "\u{fffd}";
    let mut out = Vec::with_capacity(text.len() + 8);
    for chunk in text.utf8_chunks() {
        surrogates(chunk.valid().as_bytes(), &mut out);
        for _ in chunk.invalid() {
            out.extend_from_slice(REPLACEMENT.as_bytes());
        }
    }
    (out != text).then_some(out)
}

/// Copies text, lone surrogate escapes replaced. Escapes occur in strings only, so quotes need no care.
fn surrogates(mut text: &[u8], out: &mut Vec<u8>) {
    while let Some(at) = text.iter().position(|b| *b == b'\\') {
        out.extend_from_slice(&text[..at]);
        text = &text[at..];
        let length = match (code(text), code(text.get(6..).unwrap_or_default())) {
            (Some(0xd800..0xdc00), Some(0xdc00..0xe000)) => 12,
            (Some(0xd800..0xe000), _) => {
                out.extend_from_slice(b"\\ufffd");
                text = &text[6..];
                continue;
            }
            (Some(_), _) => 6,
            (None, _) => text.len().min(2),
        };
        out.extend_from_slice(&text[..length]);
        text = &text[length..];
    }
    out.extend_from_slice(text);
}

/// The number of a `\u` escape at the start.
fn code(text: &[u8]) -> Option<u16> {
    let digits = text.strip_prefix(b"\\u")?.get(..4)?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::legible;

    #[test]
    fn only_what_is_no_unicode_is_replaced() {
        assert_eq!(legible(br#""a \n \\ud800 \u00e9 \ud83d\ude00""#), None);
        assert_eq!(legible(br#""\ud800""#).as_deref(), Some(&br#""\ufffd""#[..]));
        assert_eq!(legible(br#""\ude00\ud83dx""#).as_deref(), Some(&br#""\ufffd\ufffdx""#[..]));
        assert_eq!(legible(b"\"\xff\xfe\"").as_deref(), Some("\"\u{fffd}\u{fffd}\"".as_bytes()));
    }
}
