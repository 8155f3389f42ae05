//! How deep brackets stand in each other in a YAML text, before a reader is let in whose time grows with the square
//! of it.

/// How deep lists and mappings in brackets may stand in each other, as in Go's reader.
const MAX_DEPTH: usize = 10_000;
/// How deep our reader is let in; in the end it gives up at a hundred and some.
const READ_DEPTH: usize = 1000;

/// Whether the text can be read.
///
/// # Errors
/// Why not: Go's words where Go refuses, too.
pub(super) fn check(text: &[u8]) -> Result<(), String> {
    if let Some(line) = too_deep(text, MAX_DEPTH) {
        let place = if line > 0 { format!("line {}: ", line + 1) } else { String::new() };
        return Err(format!("{place}exceeded max depth of {MAX_DEPTH}"));
    }
    match too_deep(text, READ_DEPTH) {
        Some(_) => Err("recursion limit exceeded".to_owned()),
        None => Ok(()),
    }
}

/// The line, counted from 0, in which more than so many brackets stand in each other. A bracket counts where a value
/// may begin, outside quotes and comments; the text of a block scalar is taken for values, which is more than enough
/// for every text that has not ten thousand open brackets in it.
fn too_deep(text: &[u8], limit: usize) -> Option<usize> {
    if text.iter().filter(|b| matches!(b, b'[' | b'{')).count() <= limit {
        return None;
    }
    let (mut depth, mut line, mut at, mut begins) = (0_usize, 0, 0, true);
    while let Some(byte) = text.get(at).copied() {
        at += 1;
        match byte {
            b'\n' => (line, begins) = (line + 1, true),
            b' ' | b'\t' | b'\r' => {}
            b'[' | b'{' if begins => {
                depth += 1;
                if depth > limit {
                    return Some(line);
                }
            }
            b']' | b'}' if depth > 0 => (depth, begins) = (depth - 1, false),
            b'"' | b'\'' if begins => {
                let rest = &text[at..];
                let mut escaped = false;
                let end = rest.iter().position(|b| {
                    let ends = *b == byte && !escaped;
                    escaped = byte == b'"' && *b == b'\\' && !escaped;
                    ends
                });
                let quoted = &rest[..end.unwrap_or(rest.len())];
                line += quoted.iter().filter(|b| **b == b'\n').count();
                (at, begins) = (at + quoted.len() + 1, false);
            }
            b'#' if at < 2 || matches!(text[at - 2], b' ' | b'\t' | b'\n') => {
                at += text[at..].iter().position(|b| *b == b'\n').unwrap_or(text.len() - at);
            }
            // After these a value begins; in a block only with a space behind them.
            b',' => begins = depth > 0,
            b':' | b'-' | b'?' => {
                begins = depth > 0 && byte == b':' || matches!(text.get(at), Some(b' ' | b'\t' | b'\n'));
            }
            _ => begins = false,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_that_stand_too_deep_are_refused_before_they_cost_time() {
        let why = |text: String| check(text.as_bytes()).err();
        let deep = "exceeded max depth of 10000";
        assert_eq!(why("[".repeat(1_000_000)).as_deref(), Some(deep));
        assert_eq!(why("{\"a\": ".repeat(10_001)).as_deref(), Some(deep));
        assert_eq!(why(format!("a: 1\nb: {}", "{a: [".repeat(6_000))), Some(format!("line 2: {deep}")));
        assert_eq!(why("[".repeat(5_000)).as_deref(), Some("recursion limit exceeded"));
        let side_by_side = format!("[{}]", "[1],".repeat(20_000));
        assert_eq!(why(side_by_side), None);
        let texts =
            format!("a: 'x{}'\nb: x{}\n# {}\n", "[".repeat(20_000), "{".repeat(20_000), "[".repeat(9));
        assert_eq!(why(texts), None);
    }
}
