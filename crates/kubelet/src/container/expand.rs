//! `$(NAME)` expansion in commands, arguments and environment values.

/// Replaces every `$(NAME)` whose name `lookup` knows; `$$` stands for one dollar sign, all else stays.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        if let Some(after) = tail.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = tail.strip_prefix('(').and_then(|t| t.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
            rest = tail;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_are_replaced_and_the_rest_stays() {
        let check = |text: &str, expected: &str| {
            let got = expand(text, |n| (n == "A").then(|| "x".to_owned()));
            assert_eq!(got, expected, "{text}");
        };
        check("$(A)-$(A)", "x-x");
        check("$$(A)", "$(A)");
        check("$(B)", "$(B)");
        check("$A $ $(A", "$A $ $(A");
        check("100$", "100$");
        check("$$$(A)", "$x");
    }
}
