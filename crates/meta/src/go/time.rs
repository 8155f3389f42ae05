//! What Go's `time.Parse` says of a malformed time.

/// One piece of a layout.
enum Piece {
    /// Text as it stands.
    Plain(&'static str),
    /// Digits: as the layout writes them, the least, the greatest value, and the name of the range.
    Digits(&'static str, u32, u32, &'static str),
    /// Six digits behind a point.
    Micros,
    /// `Z` or an offset.
    Zone,
}

const DATE_AND_TIME: [Piece; 11] = [
    Piece::Digits("2006", 0, 9999, ""),
    Piece::Plain("-"),
    Piece::Digits("01", 1, 12, "month"),
    Piece::Plain("-"),
    Piece::Digits("02", 0, 31, "day"),
    Piece::Plain("T"),
    Piece::Digits("15", 0, 23, "hour"),
    Piece::Plain(":"),
    Piece::Digits("04", 0, 59, "minute"),
    Piece::Plain(":"),
    Piece::Digits("05", 0, 59, "second"),
];

/// Go's message for a text that is no time of the layout; `None` when it is one. `micros`: exactly six digits
/// of a second, as in MicroTime; else as many as there are.
pub(super) fn parse_error(text: &str, micros: bool) -> Option<String> {
    let layout = if micros { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
    let shown = quote(text);
    let bad = |rest: &str, wanted: &str| {
        Some(format!("parsing time {shown} as \"{layout}\": cannot parse {} as \"{wanted}\"", quote(rest)))
    };
    let out_of_range = |what: &str| Some(format!("parsing time {shown}: {what} out of range"));
    let mut rest = text;
    let mut date = [0_u32; 3];
    let tail = if micros { &[Piece::Micros, Piece::Zone][..] } else { &[Piece::Zone][..] };
    for (i, piece) in DATE_AND_TIME.iter().chain(tail).enumerate() {
        match piece {
            Piece::Plain(wanted) => match rest.strip_prefix(wanted) {
                Some(after) => rest = after,
                None => return bad(rest, wanted),
            },
            Piece::Digits(wanted, least, most, name) => {
                let Some(value) = digits(rest, wanted.len()) else { return bad(rest, wanted) };
                if !(*least..=*most).contains(&value) {
                    return out_of_range(name);
                }
                rest = &rest[wanted.len()..];
                if i < 6 {
                    date[i / 2] = value;
                }
                if *wanted == "05" && !micros {
                    rest = skip_fraction(rest);
                }
            }
            Piece::Micros => match rest.strip_prefix('.').and_then(|r| digits(r, 6)) {
                Some(_) => rest = &rest[7..],
                None => return bad(rest, ".000000"),
            },
            Piece::Zone => match zone(rest) {
                Some(after) => rest = after,
                None => return bad(rest, "Z07:00"),
            },
        }
    }
    if !rest.is_empty() {
        return Some(format!("parsing time {shown}: extra text: {}", quote(rest)));
    }
    let [year, month, day] = date;
    if day < 1 || day > days_of(month, year) { out_of_range("day") } else { None }
}

/// The number that `count` digits at the start make.
fn digits(text: &str, count: usize) -> Option<u32> {
    let head = text.get(..count)?;
    head.bytes().all(|b| b.is_ascii_digit()).then(|| head.parse().ok())?
}

/// A point or comma and digits behind the seconds.
fn skip_fraction(text: &str) -> &str {
    let Some(after) = text.strip_prefix(['.', ',']) else { return text };
    let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
    if end == 0 { text } else { &after[end..] }
}

fn zone(text: &str) -> Option<&str> {
    if let Some(after) = text.strip_prefix('Z') {
        return Some(after);
    }
    let after = text.strip_prefix(['+', '-'])?;
    let hours = digits(after, 2)?;
    let minutes = digits(after.get(2..)?.strip_prefix(':')?, 2)?;
    (hours <= 24 && minutes < 60).then(|| &after[5..])
}

fn days_of(month: u32, year: u32) -> u32 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// As the `time` package quotes: quotes, backslashes and what is not printable ASCII are escaped.
fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            ' '..='~' => out.push(c),
            _ => {
                let mut bytes = [0; 4];
                for b in c.encode_utf8(&mut bytes).bytes() {
                    out.push_str(&format!("\\x{b:02x}"));
                }
            }
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::parse_error;

    #[track_caller]
    fn check(text: &str, micros: bool, expected: Option<&str>) {
        assert_eq!(parse_error(text, micros).as_deref(), expected);
    }

    #[test]
    fn faults_are_worded_as_go_words_them() {
        check("2020-01-02T03:04:05Z", false, None);
        check("2020-01-02T03:04:05.123+02:00", false, None);
        check("2020-01-02T03:04:05.123456Z", true, None);
        let why = r#"parsing time "x" as "2006-01-02T15:04:05Z07:00": cannot parse "x" as "2006""#;
        check("x", false, Some(why));
        check(
            "2020-13-01T00:00:00Z",
            false,
            Some(r#"parsing time "2020-13-01T00:00:00Z": month out of range"#),
        );
        check(
            "2021-02-29T00:00:00Z",
            false,
            Some(r#"parsing time "2021-02-29T00:00:00Z": day out of range"#),
        );
        let why =
            r#"parsing time "2020-01-01" as "2006-01-02T15:04:05.000000Z07:00": cannot parse "" as "T""#;
        check("2020-01-01", true, Some(why));
        let why = r#"parsing time "2020-01-01T00:00:00Zx": extra text: "x""#;
        check("2020-01-01T00:00:00Zx", false, Some(why));
    }
}
