//! The token stream of a label selector.

/// Kinds of token; `in` and `notin` are words of their own only where an operator may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    ClosedPar,
    Comma,
    DoesNotExist,
    DoubleEquals,
    Equals,
    GreaterThan,
    Identifier,
    In,
    LessThan,
    NotEquals,
    NotIn,
    OpenPar,
    End,
    Error,
}

/// Hands out tokens with one token of lookahead.
pub(super) struct Parser {
    items: Vec<(Token, String)>,
    position: usize,
}

fn keyword(text: &str) -> Option<Token> {
    Some(match text {
        ")" => Token::ClosedPar,
        "," => Token::Comma,
        "!" => Token::DoesNotExist,
        "==" => Token::DoubleEquals,
        "=" => Token::Equals,
        ">" => Token::GreaterThan,
        "in" => Token::In,
        "<" => Token::LessThan,
        "!=" => Token::NotEquals,
        "notin" => Token::NotIn,
        "(" => Token::OpenPar,
        _ => return None,
    })
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

fn is_special(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

impl Parser {
    pub(super) fn new(text: &str) -> Self {
        let (mut items, mut rest) = (Vec::new(), text.trim_start_matches(is_space));
        while let Some(first) = rest.chars().next() {
            let (item, length) = if is_special(first) { special(rest) } else { word(rest) };
            items.push(item);
            rest = rest[length..].trim_start_matches(is_space);
        }
        items.push((Token::End, String::new()));
        Self { items, position: 0 }
    }

    fn at(&self) -> (Token, String) {
        self.items.get(self.position).cloned().unwrap_or((Token::End, String::new()))
    }

    /// The next token where a key or value may stand.
    pub(super) fn lookahead(&self) -> (Token, String) {
        let (token, literal) = self.at();
        let token = if matches!(token, Token::In | Token::NotIn) { Token::Identifier } else { token };
        (token, literal)
    }

    /// Takes the next token where a key or value may stand.
    pub(super) fn consume(&mut self) -> (Token, String) {
        let item = self.lookahead();
        self.position += 1;
        item
    }

    /// Takes the next token where an operator may stand.
    pub(super) fn consume_operator(&mut self) -> (Token, String) {
        let item = self.at();
        self.position += 1;
        item
    }
}

/// No token of special characters is longer.
const LONGEST: usize = 2;

/// The longest run of special characters that is a token.
fn special(rest: &str) -> ((Token, String), usize) {
    let run = rest.chars().take(LONGEST).take_while(|c| is_special(*c)).count();
    let found = (1..=run).rev().find_map(|end| Some((keyword(&rest[..end])?, end)));
    match found {
        Some((token, end)) => ((token, rest[..end].to_owned()), end),
        None => ((Token::Error, format!("error expected: keyword found '{}'", &rest[..run])), run),
    }
}

fn word(rest: &str) -> ((Token, String), usize) {
    let end = rest.find(|c| is_special(c) || is_space(c)).unwrap_or(rest.len());
    let text = &rest[..end];
    ((keyword(text).unwrap_or(Token::Identifier), text.to_owned()), end)
}
