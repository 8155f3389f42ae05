//! Where Go's base64 decoder stops.

/// The offset that Go's `illegal base64 data at input byte …` names; `None` when the text is valid.
pub(super) fn corrupt_at(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    let newline = |b: u8| b == b'\n' || b == b'\r';
    loop {
        let mut quantum = 0;
        while quantum < 4 {
            let Some(&b) = text.get(at) else { return (quantum > 0).then(|| at - quantum) };
            at += 1;
            match b {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'+' | b'/' => quantum += 1,
                b if newline(b) => {}
                b'=' if quantum >= 2 => return after_padding(text, at, quantum),
                _ => return Some(at - 1),
            }
        }
    }
}

/// Behind the first `=`: a second one after two characters, and then nothing but line ends.
fn after_padding(text: &[u8], mut at: usize, quantum: usize) -> Option<usize> {
    let skip = |mut at: usize| {
        while text.get(at).is_some_and(|b| matches!(b, b'\n' | b'\r')) {
            at += 1;
        }
        at
    };
    if quantum == 2 {
        at = skip(at);
        match text.get(at) {
            None => return Some(text.len()),
            Some(b'=') => at += 1,
            Some(_) => return Some(at - 1),
        }
    }
    at = skip(at);
    (at < text.len()).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::corrupt_at;

    #[test]
    fn fault_is_found_where_go_finds_it() {
        assert_eq!(corrupt_at(b"AAEC"), None);
        assert_eq!(corrupt_at(b"AAE="), None);
        assert_eq!(corrupt_at(b"AA==\n"), None);
        assert_eq!(corrupt_at(b"-a"), Some(0));
        assert_eq!(corrupt_at(b"AAECAw"), Some(4));
        assert_eq!(corrupt_at(b"AAECAw==x"), Some(8));
        assert_eq!(corrupt_at(b"A==="), Some(1));
        assert_eq!(corrupt_at(b"AA="), Some(3));
    }
}
