//! Makes the nodes of the tree: ids, positions, heights, and what is wrong with literals and names.

use std::sync::Arc;

use super::lexer::{Kind as Tok, Token};
use super::recover::Abort;
use super::unescape::unescape;
use crate::ast::{Expr, Id, Kind, Literal};
use crate::issues::{Location, Source};

const MAX_HEIGHT: u16 = 250;

const RESERVED: &[&str] = &[
    "as",
    "break",
    "const",
    "continue",
    "else",
    "false",
    "for",
    "function",
    "if",
    "import",
    "in",
    "let",
    "loop",
    "package",
    "namespace",
    "null",
    "return",
    "true",
    "var",
    "void",
    "while",
];

pub(super) fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name)
}

pub(super) struct Builder {
    pub(super) source: Source,
    pub(super) offsets: Vec<usize>,
    /// The nesting below each node, by id.
    pub(super) heights: Vec<u16>,
    /// What was found wrong beside the form.
    pub(super) found: Vec<(Location, String)>,
}

impl Builder {
    pub(super) fn new(source: Source) -> Self {
        Self { source, offsets: Vec::new(), heights: Vec::new(), found: Vec::new() }
    }

    /// A new id for what is at the offset `at`.
    pub(super) fn id(&mut self, at: usize) -> Id {
        self.offsets.push(at);
        self.heights.push(0);
        Id::try_from(self.offsets.len() - 1).unwrap_or(Id::MAX)
    }

    pub(super) fn offset(&self, expr: &Expr) -> usize {
        self.offsets[expr.id as usize]
    }

    pub(super) fn text(&self, token: Token) -> Arc<str> {
        self.source.chars[token.start..token.end].iter().collect::<String>().into()
    }

    pub(super) fn report(&mut self, at: usize, message: String) {
        self.found.push((self.source.location(at), message));
    }

    pub(super) fn unspecified(&mut self, at: usize) -> Expr {
        Expr { id: self.id(at), kind: Kind::Unspecified }
    }

    /// A node above `children`; `counted` ones count for the limit of nesting.
    pub(super) fn node(
        &mut self,
        at: usize,
        kind: Kind,
        children: &[Id],
        counted: bool,
    ) -> Result<Expr, Abort> {
        let id = self.id(at);
        let below = children.iter().map(|child| self.heights[*child as usize]).max().unwrap_or(0);
        let height = below + u16::from(counted);
        if height > MAX_HEIGHT {
            self.found.push((Location::NONE, "max recursion depth exceeded".to_owned()));
            return Err(Abort);
        }
        self.heights[id as usize] = height;
        Ok(Expr { id, kind })
    }

    pub(super) fn ident(&mut self, at: usize, name: &Arc<str>) -> Expr {
        Expr { id: self.id(at), kind: Kind::Ident(name.clone()) }
    }

    pub(super) fn select(
        &mut self,
        at: usize,
        operand: Expr,
        field: &Arc<str>,
        test_only: bool,
    ) -> Result<Expr, Abort> {
        let below = [operand.id];
        let kind = Kind::Select { operand: Box::new(operand), field: field.clone(), test_only };
        self.node(at, kind, &below, true)
    }

    pub(super) fn literal_string(&mut self, at: usize, text: &Arc<str>) -> Expr {
        Expr { id: self.id(at), kind: Kind::Literal(Literal::String(text.clone())) }
    }

    /// Logical operators as a balanced tree, so that long chains are not deep.
    pub(super) fn balanced(&mut self, function: &str, terms: Vec<Expr>, ops: &[usize]) -> Expr {
        let mut terms: Vec<Option<Expr>> = terms.into_iter().map(Some).collect();
        self.balance(&function.into(), &mut terms, ops)
    }

    fn balance(&mut self, function: &Arc<str>, terms: &mut [Option<Expr>], ops: &[usize]) -> Expr {
        if ops.is_empty() {
            return terms[0].take().unwrap_or_else(|| self.unspecified(0));
        }
        let mid = ops.len() / 2;
        let (before, after) = terms.split_at_mut(mid + 1);
        let left = self.balance(function, before, &ops[..mid]);
        let right = self.balance(function, after, &ops[mid + 1..]);
        let id = self.id(ops[mid]);
        let height = |e: &Expr, heights: &[u16]| heights[e.id as usize];
        self.heights[id as usize] = height(&left, &self.heights).max(height(&right, &self.heights));
        let kind = Kind::Call { target: None, function: function.clone(), args: vec![left, right] };
        Expr { id, kind }
    }

    pub(super) fn literal(&mut self, at: usize, sign: bool, token: Token) -> Expr {
        let text = self.text(token);
        let literal = match token.kind {
            Tok::Int => int(&text, sign).ok_or("invalid int literal"),
            Tok::Uint => uint(&text).ok_or("invalid uint literal"),
            Tok::Float => float(&text, sign).ok_or("invalid double literal"),
            Tok::String => unescape(&text, false).and_then(|bytes| {
                let text = String::from_utf8(bytes).map_err(|_| "unable to unescape string")?;
                Ok(Literal::String(text.into()))
            }),
            Tok::Bytes => unescape(&text[1..], true).map(|bytes| Literal::Bytes(bytes.into())),
            Tok::True => Ok(Literal::Bool(true)),
            Tok::False => Ok(Literal::Bool(false)),
            _ => Ok(Literal::Null),
        };
        match literal {
            Ok(literal) => Expr { id: self.id(at), kind: Kind::Literal(literal) },
            Err(why) => {
                self.report(at, why.to_owned());
                self.unspecified(at)
            }
        }
    }
}

fn int(text: &str, sign: bool) -> Option<Literal> {
    let (radix, digits) = text.strip_prefix("0x").map_or((10, text), |hex| (16, hex));
    let digits = if sign { format!("-{digits}") } else { digits.to_owned() };
    i64::from_str_radix(&digits, radix).ok().map(Literal::Int)
}

fn uint(text: &str) -> Option<Literal> {
    let text = &text[..text.len() - 1];
    let (radix, digits) = text.strip_prefix("0x").map_or((10, text), |hex| (16, hex));
    u64::from_str_radix(digits, radix).ok().map(Literal::Uint)
}

fn float(text: &str, sign: bool) -> Option<Literal> {
    let value: f64 = text.parse().ok()?;
    value.is_finite().then_some(Literal::Double(if sign { -value } else { value }))
}
