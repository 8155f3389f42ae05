//! Numbers that no float holds (`1e400`). Go looks at a number only where it is wanted; our reader at every one.

/// The numbers of a JSON text that no float holds: where they begin and end. What is no JSON is told elsewhere.
fn places(text: &[u8]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => {
                at += 1;
                while text.get(at).is_some_and(|byte| *byte != b'"') {
                    at += if text[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'-' | b'0'..=b'9' => {
                let length = text[at..]
                    .iter()
                    .position(|b| !matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'));
                let end = length.map_or(text.len(), |length| at + length);
                if number(text, (at, end)).parse::<f64>().is_ok_and(f64::is_infinite) {
                    found.push((at, end));
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    found
}

fn number(text: &[u8], (begin, end): (usize, usize)) -> &str {
    std::str::from_utf8(&text[begin..end]).unwrap_or("")
}

/// The first such number.
pub(crate) fn first(text: &[u8]) -> Option<&str> {
    places(text).first().map(|place| number(text, *place))
}

/// The text with such numbers in quotes; `None` when there are none.
pub(super) fn quoted(text: &[u8]) -> Option<Vec<u8>> {
    let places = places(text);
    if places.is_empty() {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() + 2 * places.len());
    let mut done = 0;
    for (begin, end) in &places {
        out.extend_from_slice(&text[done..*begin]);
        out.push(b'"');
        out.extend_from_slice(&text[*begin..*end]);
        out.push(b'"');
        done = *end;
    }
    out.extend_from_slice(&text[done..]);
    Some(out)
}

/// What Go says of one where anything may stand.
pub(super) fn refusal(number: &str) -> String {
    format!("json: cannot unmarshal number {number} into Go value of type float64")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_beyond_floats_are_found_outside_of_texts() {
        let text = br#"{"a\"1e999":"1e999","b":[1e308,-1E+999 ,2],"c":1e400}"#;
        assert_eq!(first(text), Some("-1E+999"));
        let wanted = br#"{"a\"1e999":"1e999","b":[1e308,"-1E+999" ,2],"c":"1e400"}"#;
        assert_eq!(quoted(text).as_deref(), Some(wanted.as_slice()));
        assert_eq!(quoted(br#"{"a":1.5,"b":"#), None);
        assert_eq!(quoted(b"\"\\"), None);
    }
}
