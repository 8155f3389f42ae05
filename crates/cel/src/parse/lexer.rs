//! Tokens of an expression. What no token begins with is reported and skipped, as upstream's lexer does.

use crate::issues::{Issues, Source};

/// Kinds of tokens, numbered as messages list them (sets of expected tokens are shown in this order).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Eof = 0,
    Equals,
    NotEquals,
    In,
    Less,
    LessEquals,
    GreaterEquals,
    Greater,
    And,
    Or,
    LBracket,
    RBracket,
    LBrace,
    RBrace,
    LParen,
    RParen,
    Dot,
    Comma,
    Minus,
    Exclam,
    Question,
    Colon,
    Plus,
    Star,
    Slash,
    Percent,
    True,
    False,
    Null,
    Float,
    Int,
    Uint,
    String,
    Bytes,
    Ident,
    EscapedIdent,
}

/// How messages show a kind, by its number.
pub(super) const NAMES: &[&str] = &[
    "<EOF>",
    "'=='",
    "'!='",
    "'in'",
    "'<'",
    "'<='",
    "'>='",
    "'>'",
    "'&&'",
    "'||'",
    "'['",
    "']'",
    "'{'",
    "'}'",
    "'('",
    "')'",
    "'.'",
    "','",
    "'-'",
    "'!'",
    "'?'",
    "':'",
    "'+'",
    "'*'",
    "'/'",
    "'%'",
    "'true'",
    "'false'",
    "'null'",
    "NUM_FLOAT",
    "NUM_INT",
    "NUM_UINT",
    "STRING",
    "BYTES",
    "IDENTIFIER",
    "ESC_IDENTIFIER",
];

/// A token: its kind and the characters it takes, `start..end`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// The tokens of `source`, the last is the end.
pub(super) fn tokens(source: &Source, issues: &mut Issues) -> Vec<Token> {
    let chars = &source.chars;
    let mut list = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        if let Some(end) = hidden(chars, at) {
            at = end;
            continue;
        }
        match longest(chars, at) {
            Ok((kind, end)) => {
                list.push(Token { kind, start: at, end });
                at = end;
            }
            Err(failed) => {
                let end = (failed + 1).min(chars.len());
                let text: String = chars[at..end].iter().collect();
                let message = format!("Syntax error: token recognition error at: '{text}'");
                issues.report(source.location(at), message);
                at = end;
            }
        }
    }
    list.push(Token { kind: Kind::Eof, start: chars.len(), end: chars.len() });
    list
}

fn hidden(chars: &[char], at: usize) -> Option<usize> {
    let mut end = at;
    while chars.get(end).is_some_and(|c| matches!(c, '\t' | ' ' | '\r' | '\n' | '\u{c}')) {
        end += 1;
    }
    if end == at && chars[at] == '/' && chars.get(at + 1) == Some(&'/') {
        while chars.get(end).is_some_and(|c| *c != '\n') {
            end += 1;
        }
    }
    (end > at).then_some(end)
}

/// The longest token at `at`, or the offset of the character that no token can have there.
fn longest(chars: &[char], at: usize) -> Result<(Kind, usize), usize> {
    let (first, second) = (chars[at], chars.get(at + 1).copied());
    let double = |kind, other: char, or: Option<Kind>| match or {
        _ if second == Some(other) => Ok((kind, at + 2)),
        Some(single) => Ok((single, at + 1)),
        None => Err(at + 1),
    };
    let single = |kind| Ok((kind, at + 1));
    match first {
        '=' => double(Kind::Equals, '=', None),
        '!' => double(Kind::NotEquals, '=', Some(Kind::Exclam)),
        '<' => double(Kind::LessEquals, '=', Some(Kind::Less)),
        '>' => double(Kind::GreaterEquals, '=', Some(Kind::Greater)),
        '&' => double(Kind::And, '&', None),
        '|' => double(Kind::Or, '|', None),
        '[' => single(Kind::LBracket),
        ']' => single(Kind::RBracket),
        '{' => single(Kind::LBrace),
        '}' => single(Kind::RBrace),
        '(' => single(Kind::LParen),
        ')' => single(Kind::RParen),
        ',' => single(Kind::Comma),
        '-' => single(Kind::Minus),
        '?' => single(Kind::Question),
        ':' => single(Kind::Colon),
        '+' => single(Kind::Plus),
        '*' => single(Kind::Star),
        '/' => single(Kind::Slash),
        '%' => single(Kind::Percent),
        '.' if !second.is_some_and(|c| c.is_ascii_digit()) => single(Kind::Dot),
        '.' | '0'..='9' => Ok(number(chars, at)),
        '"' | '\'' => string(chars, at, false).map(|end| (Kind::String, end)),
        '`' => escaped(chars, at),
        c if c.is_ascii_alphabetic() || c == '_' => word(chars, at),
        _ => Err(at),
    }
}

fn word(chars: &[char], at: usize) -> Result<(Kind, usize), usize> {
    let quote = |offset: usize| chars.get(at + offset).is_some_and(|c| matches!(c, '"' | '\''));
    let raw = |offset: usize| chars.get(at + offset).is_some_and(|c| matches!(c, 'r' | 'R'));
    let prefixed = match chars[at] {
        'b' | 'B' if raw(1) && quote(2) => Some((Kind::Bytes, 2, true)),
        'b' | 'B' if quote(1) => Some((Kind::Bytes, 1, false)),
        'r' | 'R' if quote(1) => Some((Kind::String, 1, true)),
        _ => None,
    };
    let mut end = at;
    while chars.get(end).is_some_and(|c| c.is_ascii_alphanumeric() || *c == '_') {
        end += 1;
    }
    if let Some((kind, skip, raw)) = prefixed
        && let Ok(closed) = string(chars, at + skip, raw)
    {
        return Ok((kind, closed));
    }
    let text: String = chars[at..end].iter().collect();
    let kind = match text.as_str() {
        "in" => Kind::In,
        "true" => Kind::True,
        "false" => Kind::False,
        "null" => Kind::Null,
        _ => Kind::Ident,
    };
    Ok((kind, end))
}

fn escaped(chars: &[char], at: usize) -> Result<(Kind, usize), usize> {
    let mut end = at + 1;
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/' | ' ');
    while chars.get(end).is_some_and(allowed) {
        end += 1;
    }
    let closed = end > at + 1 && chars.get(end) == Some(&'`');
    if closed { Ok((Kind::EscapedIdent, end + 1)) } else { Err(end) }
}

fn number(chars: &[char], at: usize) -> (Kind, usize) {
    let digits = |mut end: usize, ok: fn(&char) -> bool| {
        while chars.get(end).is_some_and(ok) {
            end += 1;
        }
        end
    };
    let unsigned = |end: usize| {
        let marked = chars.get(end).is_some_and(|c| matches!(c, 'u' | 'U'));
        if marked { (Kind::Uint, end + 1) } else { (Kind::Int, end) }
    };
    if chars[at] == '0' && chars.get(at + 1) == Some(&'x') {
        let end = digits(at + 2, char::is_ascii_hexdigit);
        if end > at + 2 {
            return unsigned(end);
        }
    }
    let mut end = digits(at, char::is_ascii_digit);
    let mut float = false;
    if chars.get(end) == Some(&'.') && chars.get(end + 1).is_some_and(char::is_ascii_digit) {
        end = digits(end + 1, char::is_ascii_digit);
        float = true;
    }
    if chars.get(end).is_some_and(|c| matches!(c, 'e' | 'E')) {
        let signed = chars.get(end + 1).is_some_and(|c| matches!(c, '+' | '-'));
        let start = end + 1 + usize::from(signed);
        let exponent = digits(start, char::is_ascii_digit);
        if exponent > start {
            return (Kind::Float, exponent);
        }
    }
    if float { (Kind::Float, end) } else { unsigned(end) }
}

/// The end of the string whose quote is at `at`, or where it goes wrong.
fn string(chars: &[char], at: usize, raw: bool) -> Result<usize, usize> {
    let quote = chars[at];
    let triple = chars.get(at + 1) == Some(&quote) && chars.get(at + 2) == Some(&quote);
    if triple && let Ok(end) = long_string(chars, at, raw) {
        return Ok(end);
    }
    let mut end = at + 1;
    loop {
        match chars.get(end) {
            Some(c) if *c == quote => return Ok(end + 1),
            None | Some('\n' | '\r') => return Err(end),
            Some('\\') if !raw => end = escape(chars, end)?,
            Some(_) => end += 1,
        }
    }
}

fn long_string(chars: &[char], at: usize, raw: bool) -> Result<usize, usize> {
    let quote = chars[at];
    let mut end = at + 3;
    loop {
        match chars.get(end) {
            None => return Err(end),
            Some(c) if *c == quote && chars[end..].iter().take(3).filter(|c| **c == quote).count() == 3 => {
                return Ok(end + 3);
            }
            Some('\\') if !raw => end = escape(chars, end)?,
            Some(_) => end += 1,
        }
    }
}

/// The end of the escape sequence at `at`.
fn escape(chars: &[char], at: usize) -> Result<usize, usize> {
    let hex = |from: usize, count: usize| {
        (from..from + count)
            .find(|i| !chars.get(*i).is_some_and(char::is_ascii_hexdigit))
            .map_or(Ok(from + count), Err)
    };
    match chars.get(at + 1) {
        Some('a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '"' | '\'' | '\\' | '?' | '`') => Ok(at + 2),
        Some('x' | 'X') => hex(at + 2, 2),
        Some('u') => hex(at + 2, 4),
        Some('U') => hex(at + 2, 8),
        Some('0'..='3') => (at + 2..at + 4)
            .find(|i| !chars.get(*i).is_some_and(|c| matches!(c, '0'..='7')))
            .map_or(Ok(at + 4), Err),
        _ => Err(at + 1),
    }
}
