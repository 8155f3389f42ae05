//! From source to tree: the grammar, one function per rule.

mod build;
mod lexer;
mod macros;
mod recover;
mod unescape;

use std::sync::Arc;

use self::build::Builder;
use self::lexer::{Kind as Tok, Token};
use self::recover::{Abort, EPSILON, Fail, Point, Recovery, Set, has, of};
use crate::ast::{Expr, FieldEntry, Kind, MapEntry, op};
use crate::issues::{Issues, Location, Source};

/// Characters of an expression.
const MAX_SIZE: usize = 100_000;

/// A parsed expression and where its nodes are.
#[derive(Clone, Debug)]
pub(crate) struct Parsed {
    pub(crate) expr: Expr,
    pub(crate) source: Source,
    /// Offsets by id.
    pub(crate) offsets: Vec<usize>,
    /// An upper bound of the nesting of the tree.
    pub(crate) depth: usize,
}

/// Parses an expression; `bindings` says whether `cel.bind` is known.
///
/// # Errors
/// All that is wrong with its form.
pub(crate) fn parse(text: &str, bindings: bool) -> Result<Parsed, Issues> {
    let source = Source::new(text);
    let mut issues = Issues::new(source.clone());
    if source.chars.len() > MAX_SIZE {
        let message = format!(
            "expression code point size exceeds limit: size: {}, limit {MAX_SIZE}",
            source.chars.len()
        );
        issues.report(Location::NONE, message);
        return Err(issues);
    }
    let tokens = lexer::tokens(&source, &mut issues);
    let nesting = nesting(&tokens);
    crate::deep::run(nesting, || {
        let mut parser = Parser { r: Recovery::new(tokens, issues), b: Builder::new(source), bindings };
        let expr = parser.start();
        let Parser { r, b, .. } = parser;
        let (mut issues, found) = (r.issues, b.found);
        for (location, message) in found {
            issues.report(location, message);
        }
        match expr {
            Ok(expr) if issues.is_empty() => {
                let depth = usize::from(b.heights[expr.id as usize]).max(nesting) + 2;
                Ok(Parsed { expr, source: b.source, offsets: b.offsets, depth })
            }
            _ => Err(issues),
        }
    })
}

fn nesting(tokens: &[Token]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for token in tokens {
        match token.kind {
            Tok::LParen | Tok::LBracket | Tok::LBrace | Tok::Question => depth += 1,
            Tok::RParen | Tok::RBracket | Tok::RBrace => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

const EXPR: usize = 0;
const OR: usize = 1;
const AND: usize = 2;
const RELATION: usize = 3;
const CALC: usize = 4;
const UNARY: usize = 5;
const MEMBER: usize = 6;
const PRIMARY: usize = 7;
const LIST: usize = 8;

const RELATIONS: Set =
    of(&[Tok::Equals, Tok::NotEquals, Tok::In, Tok::Less, Tok::LessEquals, Tok::GreaterEquals, Tok::Greater]);
const FACTORS: Set = of(&[Tok::Star, Tok::Slash, Tok::Percent]);
const TERMS: Set = of(&[Tok::Plus, Tok::Minus]);
const FIRST_LITERAL: Set = of(&[
    Tok::Minus,
    Tok::True,
    Tok::False,
    Tok::Null,
    Tok::Float,
    Tok::Int,
    Tok::Uint,
    Tok::String,
    Tok::Bytes,
]);
const FIRST_PRIMARY: Set =
    FIRST_LITERAL | of(&[Tok::LBracket, Tok::LBrace, Tok::LParen, Tok::Dot, Tok::Ident]);
const FIRST: Set = FIRST_PRIMARY | of(&[Tok::Exclam]);
const FIRST_OPTIONAL: Set = FIRST | of(&[Tok::Question]);
const FIRST_FIELD: Set = of(&[Tok::Question, Tok::Ident, Tok::EscapedIdent]);
const AFTER_MEMBER: Set = of(&[Tok::Dot, Tok::LBracket]) | EPSILON;
const COMMA: Set = of(&[Tok::Comma]) | EPSILON;

type Rule = Result<Expr, Fail>;

struct Parser {
    r: Recovery,
    b: Builder,
    bindings: bool,
}

impl Parser {
    fn start(&mut self) -> Result<Expr, Abort> {
        let expr = self.expr(of(&[Tok::Eof]))?;
        if let Err(fail) = self.r.expect(35, Tok::Eof, EPSILON) {
            self.r.recover(&fail)?;
        }
        Ok(expr)
    }

    /// Runs a rule; `follow` is what may come after it where it is used.
    fn rule(
        &mut self,
        rule: usize,
        follow: Set,
        body: &mut dyn FnMut(&mut Self) -> Rule,
    ) -> Result<Expr, Abort> {
        self.r.follow.push(follow);
        self.r.enter(rule)?;
        let result = match body(self) {
            Ok(expr) => expr,
            Err(fail) => {
                self.r.recover(&fail)?;
                self.b.unspecified(self.r.current().start)
            }
        };
        self.r.leave(rule);
        self.r.follow.pop();
        Ok(result)
    }

    fn expr(&mut self, follow: Set) -> Result<Expr, Abort> {
        self.rule(EXPR, follow, &mut |p| {
            let condition = p.or(of(&[Tok::Question]) | EPSILON)?;
            if p.r.la(0) != Tok::Question {
                return Ok(condition);
            }
            let at = p.r.accept().start;
            let yes = p.or(of(&[Tok::Colon]))?;
            p.r.expect(40, Tok::Colon, FIRST)?;
            let no = p.expr(EPSILON)?;
            Ok(p.call(at, op::CONDITIONAL, vec![condition, yes, no])?)
        })
    }

    fn or(&mut self, follow: Set) -> Result<Expr, Abort> {
        self.rule(OR, follow, &mut |p| {
            let after = of(&[Tok::Or]) | EPSILON;
            let (mut terms, mut ops) = (vec![p.and(after)?], Vec::new());
            while p.r.la(0) == Tok::Or {
                ops.push(p.r.accept().start);
                terms.push(p.and(after)?);
            }
            Ok(p.b.balanced(op::OR, terms, &ops))
        })
    }

    fn and(&mut self, follow: Set) -> Result<Expr, Abort> {
        self.rule(AND, follow, &mut |p| {
            let after = of(&[Tok::And]) | EPSILON;
            let (mut terms, mut ops) = (vec![p.relation(false, after)?], Vec::new());
            while p.r.la(0) == Tok::And {
                ops.push(p.r.accept().start);
                terms.push(p.relation(false, after)?);
            }
            Ok(p.b.balanced(op::AND, terms, &ops))
        })
    }

    /// A comparison; as the right side of one (`right`) it takes no further one.
    fn relation(&mut self, right: bool, follow: Set) -> Result<Expr, Abort> {
        self.rule(RELATION, follow, &mut |p| {
            let mut left = p.calc(0, RELATIONS | EPSILON)?;
            while !right && has(RELATIONS, p.r.la(0)) {
                let token = p.r.accept();
                let rhs = p.relation(true, RELATIONS | EPSILON)?;
                left = p.call(token.start, operator(token.kind), vec![left, rhs])?;
            }
            Ok(left)
        })
    }

    fn calc(&mut self, least: u8, follow: Set) -> Result<Expr, Abort> {
        self.rule(CALC, follow, &mut |p| {
            let after = FACTORS | TERMS | EPSILON;
            let mut left = p.unary(after)?;
            loop {
                let binds = match p.r.la(0) {
                    kind if has(FACTORS, kind) => 2,
                    kind if has(TERMS, kind) => 1,
                    _ => break,
                };
                if binds < least {
                    break;
                }
                let token = p.r.accept();
                let rhs = p.calc(binds + 1, after)?;
                left = p.call(token.start, operator(token.kind), vec![left, rhs])?;
            }
            Ok(left)
        })
    }

    fn unary(&mut self, follow: Set) -> Result<Expr, Abort> {
        self.rule(UNARY, follow, &mut |p| {
            p.r.sync(99, Point::Block, FIRST)?;
            match p.r.la(0) {
                Tok::Exclam => p.prefixed(Tok::Exclam, op::NOT),
                Tok::Minus if !matches!(p.r.la(1), Tok::Int | Tok::Float) => {
                    if !has(FIRST_PRIMARY, p.r.la(1)) {
                        return Err(Fail::NoViable(p.r.at, p.r.at + 1));
                    }
                    p.prefixed(Tok::Minus, op::NEGATE)
                }
                kind if has(FIRST_PRIMARY, kind) => Ok(p.member(EPSILON)?),
                _ => Err(Fail::NoViable(p.r.at, p.r.at)),
            }
        })
    }

    fn prefixed(&mut self, sign: Tok, function: &'static str) -> Rule {
        let at = self.r.accept().start;
        let mut count = 1;
        loop {
            let state = if sign == Tok::Exclam { 90 } else { 96 };
            self.r.sync(state, Point::LoopBack, FIRST_PRIMARY | of(&[sign]))?;
            if self.r.la(0) != sign {
                break;
            }
            if sign == Tok::Minus && !has(FIRST_PRIMARY, self.r.la(1)) {
                return Err(Fail::NoViable(self.r.at, self.r.at + 1));
            }
            self.r.accept();
            count += 1;
        }
        if sign == Tok::Minus && !has(FIRST_PRIMARY, self.r.la(0)) {
            return Err(Fail::NoViable(self.r.at, self.r.at));
        }
        let operand = self.member(EPSILON)?;
        Ok(if count % 2 == 0 { operand } else { self.call(at, function, vec![operand])? })
    }

    fn member(&mut self, follow: Set) -> Result<Expr, Abort> {
        self.rule(MEMBER, follow, &mut |p| {
            let mut operand = p.primary(AFTER_MEMBER)?;
            loop {
                operand = match (p.r.la(0), p.r.la(1)) {
                    (Tok::LBracket, _) => p.index(operand)?,
                    (Tok::Dot, Tok::Ident) if p.r.la(2) == Tok::LParen => p.member_call(operand)?,
                    (Tok::Dot, Tok::Ident | Tok::EscapedIdent | Tok::Question) => p.select(operand)?,
                    (Tok::Dot, _) => return Err(Fail::NoViable(p.r.at, p.r.at + 1)),
                    _ => break,
                };
            }
            Ok(operand)
        })
    }

    fn select(&mut self, operand: Expr) -> Rule {
        let at = self.r.accept().start;
        let optional = self.r.la(0) == Tok::Question;
        if optional {
            self.r.accept();
        }
        let start = self.r.current().start;
        let Some((name, name_at)) = self.escape_ident(AFTER_MEMBER)? else {
            self.b.report(start, "unsupported ident kind".to_owned());
            return Ok(self.b.unspecified(at));
        };
        if optional {
            let field = self.b.literal_string(name_at, &name);
            return Ok(self.call(at, op::OPT_SELECT, vec![operand, field])?);
        }
        Ok(self.b.select(at, operand, &name, false)?)
    }

    /// A name after a dot or in a record; escaped ones are not in use.
    fn escape_ident(&mut self, follow: Set) -> Result<Option<(Arc<str>, usize)>, Abort> {
        let mut name = None;
        self.rule(LIST, follow, &mut |p| {
            p.r.sync(235, Point::Block, of(&[Tok::Ident, Tok::EscapedIdent]))?;
            match p.r.la(0) {
                Tok::Ident => {
                    let token = p.r.accept();
                    name = Some((p.b.text(token), token.start));
                }
                Tok::EscapedIdent => {
                    let token = p.r.accept();
                    p.b.report(token.start, "unsupported syntax: '`'".to_owned());
                    name = Some(("".into(), token.start));
                }
                _ => return Err(Fail::NoViable(p.r.at, p.r.at)),
            }
            Ok(p.b.unspecified(0))
        })?;
        Ok(name)
    }

    fn member_call(&mut self, target: Expr) -> Rule {
        self.r.accept();
        let name = self.r.accept();
        let name = self.b.text(name);
        let at = self.r.accept().start;
        let args = self.arguments(115, 117, AFTER_MEMBER)?;
        Ok(self.receiver_call(at, &name, target, args)?)
    }

    fn arguments(&mut self, before: u16, closing: u16, next: Set) -> Result<Vec<Expr>, Fail> {
        self.r.sync(before, Point::Block, FIRST | of(&[Tok::RParen]))?;
        let mut args = Vec::new();
        if has(FIRST, self.r.la(0)) {
            self.rule(LIST, of(&[Tok::RParen]), &mut |p| {
                args.push(p.expr(COMMA)?);
                while p.r.la(0) == Tok::Comma {
                    p.r.accept();
                    args.push(p.expr(COMMA)?);
                }
                Ok(p.b.unspecified(0))
            })?;
        }
        self.r.expect(closing, Tok::RParen, next)?;
        Ok(args)
    }

    fn index(&mut self, operand: Expr) -> Rule {
        let at = self.r.accept().start;
        self.r.sync(121, Point::Block, FIRST_OPTIONAL)?;
        let optional = self.r.la(0) == Tok::Question;
        if optional {
            self.r.accept();
        }
        let index = self.expr(of(&[Tok::RBracket]))?;
        self.r.expect(124, Tok::RBracket, AFTER_MEMBER)?;
        let function = if optional { op::OPT_INDEX } else { op::INDEX };
        Ok(self.call(at, function, vec![operand, index])?)
    }

    fn primary(&mut self, follow: Set) -> Result<Expr, Abort> {
        self.rule(PRIMARY, follow, &mut |p| {
            p.r.sync(184, Point::Block, FIRST_PRIMARY)?;
            match (p.r.la(0), p.r.la(1)) {
                (Tok::Dot, Tok::Ident) | (Tok::Ident, _) => p.named(),
                (Tok::Dot, _) => Err(Fail::NoViable(p.r.at, p.r.at + 1)),
                (Tok::LParen, _) => {
                    p.r.accept();
                    let inner = p.expr(of(&[Tok::RParen]))?;
                    p.r.expect(146, Tok::RParen, EPSILON)?;
                    Ok(inner)
                }
                (Tok::LBracket, _) => p.list(),
                (Tok::LBrace, _) => p.map(),
                (kind, _) if has(FIRST_LITERAL, kind) => p.literal(),
                _ => Err(Fail::NoViable(p.r.at, p.r.at)),
            }
        })
    }

    /// A variable, a function call or a record: all begin with a name.
    fn named(&mut self) -> Rule {
        let dot = self.r.la(0) == Tok::Dot;
        let mut ahead = usize::from(dot) + 1;
        while self.r.la(ahead) == Tok::Dot && self.r.la(ahead + 1) == Tok::Ident {
            ahead += 2;
        }
        if self.r.la(ahead) == Tok::LBrace {
            return self.record(dot);
        }
        if dot {
            self.r.accept();
        }
        let token = self.r.accept();
        let name = self.b.text(token);
        let full: Arc<str> = if dot { format!(".{name}").into() } else { name.clone() };
        if build::is_reserved(&name) {
            let at = if dot { self.r.tokens[self.r.at.saturating_sub(2)].start } else { token.start };
            if self.r.la(0) == Tok::LParen {
                self.r.accept();
                self.arguments(141, 143, EPSILON)?;
            }
            self.b.report(at, format!("reserved identifier: {name}"));
            return Ok(self.b.unspecified(at));
        }
        if self.r.la(0) != Tok::LParen {
            return Ok(self.b.ident(token.start, &full));
        }
        let at = self.r.accept().start;
        let args = self.arguments(141, 143, EPSILON)?;
        Ok(self.call(at, &full, args)?)
    }

    fn record(&mut self, dot: bool) -> Rule {
        let mut name = String::new();
        if dot {
            self.r.accept();
            name.push('.');
        }
        loop {
            let token = self.r.accept();
            name.push_str(&self.b.text(token));
            if self.r.la(0) != Tok::Dot {
                break;
            }
            self.r.accept();
            name.push('.');
        }
        let at = self.r.accept().start;
        self.r.sync(177, Point::Block, FIRST_FIELD | of(&[Tok::Comma, Tok::RBrace]))?;
        let mut fields = Vec::new();
        if has(FIRST_FIELD, self.r.la(0)) {
            self.rule(LIST, of(&[Tok::Comma, Tok::RBrace]), &mut |p| {
                loop {
                    if let Some(field) = p.field()? {
                        fields.push(field);
                    }
                    if p.r.la(0) != Tok::Comma || !has(FIRST_FIELD, p.r.la(1)) {
                        return Ok(p.b.unspecified(0));
                    }
                    p.r.accept();
                }
            })?;
        }
        self.trailing_comma(180, 182, Tok::RBrace)?;
        let values: Vec<_> = fields.iter().map(|f: &FieldEntry| f.value.id).collect();
        Ok(self.b.node(at, Kind::Struct { name: name.into(), fields }, &values, false)?)
    }

    fn field(&mut self) -> Result<Option<FieldEntry>, Fail> {
        let optional = self.r.la(0) == Tok::Question;
        if optional {
            self.r.accept();
        }
        let name = self.escape_ident(of(&[Tok::Colon]))?;
        let at = self.r.expect(203, Tok::Colon, FIRST)?.map_or(0, |token| token.start);
        let value = self.expr(COMMA)?;
        let id = self.b.id(at);
        Ok(name.map(|(name, _)| FieldEntry { id, name, value, optional }))
    }

    /// The comma that may stand before the closing bracket, and that bracket.
    fn trailing_comma(&mut self, before: u16, closing: u16, bracket: Tok) -> Result<(), Fail> {
        self.r.sync(before, Point::Block, of(&[Tok::Comma, bracket]))?;
        if self.r.la(0) == Tok::Comma {
            self.r.accept();
        }
        self.r.expect(closing, bracket, EPSILON)?;
        Ok(())
    }

    fn optional_expr(&mut self, follow: Set) -> Result<(Expr, bool), Abort> {
        let mut optional = false;
        let expr = self.rule(LIST, follow, &mut |p| {
            p.r.sync(238, Point::Block, FIRST_OPTIONAL)?;
            optional = p.r.la(0) == Tok::Question;
            if optional {
                p.r.accept();
            }
            Ok(p.expr(EPSILON)?)
        })?;
        Ok((expr, optional))
    }

    fn list(&mut self) -> Rule {
        let at = self.r.accept().start;
        self.r.sync(150, Point::Block, FIRST_OPTIONAL | of(&[Tok::Comma, Tok::RBracket]))?;
        let (mut elements, mut optional) = (Vec::new(), Vec::new());
        if has(FIRST_OPTIONAL, self.r.la(0)) {
            self.rule(LIST, of(&[Tok::Comma, Tok::RBracket]), &mut |p| {
                loop {
                    let (element, is_optional) = p.optional_expr(COMMA)?;
                    elements.push(element);
                    optional.push(is_optional);
                    if p.r.la(0) != Tok::Comma || !has(FIRST_OPTIONAL, p.r.la(1)) {
                        return Ok(p.b.unspecified(0));
                    }
                    p.r.accept();
                }
            })?;
        }
        self.trailing_comma(153, 155, Tok::RBracket)?;
        let ids: Vec<_> = elements.iter().map(|e: &Expr| e.id).collect();
        Ok(self.b.node(at, Kind::List { elements, optional }, &ids, false)?)
    }

    fn map(&mut self) -> Rule {
        let at = self.r.accept().start;
        self.r.sync(158, Point::Block, FIRST_OPTIONAL | of(&[Tok::Comma, Tok::RBrace]))?;
        let mut entries = Vec::new();
        if has(FIRST_OPTIONAL, self.r.la(0)) {
            self.rule(LIST, of(&[Tok::Comma, Tok::RBrace]), &mut |p| {
                loop {
                    let (key, optional) = p.optional_expr(of(&[Tok::Colon]))?;
                    p.r.expect(221, Tok::Colon, FIRST)?;
                    let value = p.expr(COMMA)?;
                    entries.push(MapEntry { key, value, optional });
                    if p.r.la(0) != Tok::Comma || !has(FIRST_OPTIONAL, p.r.la(1)) {
                        return Ok(p.b.unspecified(0));
                    }
                    p.r.accept();
                }
            })?;
        }
        self.trailing_comma(161, 163, Tok::RBrace)?;
        let ids: Vec<_> = entries.iter().flat_map(|e: &MapEntry| [e.key.id, e.value.id]).collect();
        Ok(self.b.node(at, Kind::Map(entries), &ids, false)?)
    }

    fn literal(&mut self) -> Rule {
        let sign = self.r.la(0) == Tok::Minus;
        if sign && !matches!(self.r.la(1), Tok::Int | Tok::Float) {
            return Err(Fail::NoViable(self.r.at, self.r.at + 1));
        }
        let at = self.r.current().start;
        if sign {
            self.r.accept();
        }
        let token = self.r.accept();
        Ok(self.b.literal(at, sign, token))
    }
}

fn operator(kind: Tok) -> &'static str {
    match kind {
        Tok::Equals => op::EQ,
        Tok::NotEquals => op::NE,
        Tok::In => op::IN,
        Tok::Less => "_<_",
        Tok::LessEquals => "_<=_",
        Tok::GreaterEquals => "_>=_",
        Tok::Greater => "_>_",
        Tok::Plus => op::ADD,
        Tok::Minus => "_-_",
        Tok::Star => "_*_",
        Tok::Slash => "_/_",
        _ => "_%_",
    }
}
