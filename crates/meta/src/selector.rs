//! Label and field selectors: the string grammar, the API form, matching.
//!
//! The grammar and its error texts are those of `k8s.io/apimachinery/pkg/labels` and `pkg/fields`.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as api;

use crate::field::{ErrorList, Path};
use crate::names;

mod lexer;
use lexer::{Parser, Token};

/// How a requirement compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are upstream's operators")]
pub enum Operator {
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// One term of a label selector; the selector is their conjunction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// How to compare.
    pub operator: Operator,
    /// Sorted values, without repetition.
    pub values: Vec<String>,
}

impl Requirement {
    /// Checks key and values as upstream's `NewRequirement` does.
    ///
    /// # Errors
    /// The text of the field errors found.
    pub fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Self, String> {
        let mut errs = ErrorList::new();
        let at = Path::new("values");
        let key_errors = names::qualified_name(key);
        if !key_errors.is_empty() {
            errs.invalid(Path::new(""), key, key_errors.join("; "));
        }
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                errs.invalid(&at, values.clone(), "for 'in', 'notin' operators, values set can't be empty");
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => {
                errs.invalid(&at, values.clone(), "exact-match compatibility requires one single value");
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                errs.invalid(&at, values.clone(), "values set must be empty for exists and does not exist");
            }
            Operator::GreaterThan | Operator::LessThan => {
                if values.len() != 1 {
                    let detail = "for 'Gt', 'Lt' operators, exactly one value is required";
                    errs.invalid(&at, values.clone(), detail);
                }
                for (i, value) in values.iter().enumerate().filter(|(_, v)| v.parse::<i64>().is_err()) {
                    let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
                    errs.invalid(at.index(i), value.as_str(), detail);
                }
            }
            _ => {}
        }
        for (i, value) in values.iter().enumerate() {
            let messages = names::label_value(value);
            if !messages.is_empty() {
                errs.invalid(at.index(i).key(key), value.as_str(), messages.join("; "));
            }
        }
        if !errs.is_empty() {
            return Err(errs.aggregate());
        }
        values.sort();
        values.dedup();
        Ok(Self { key: key.to_owned(), operator, values })
    }

    /// Whether a set of labels fulfils the requirement.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_value(labels.get(&self.key).map(String::as_str))
    }

    /// Whether the key's value, if it has one, fulfils the requirement.
    pub fn matches_value(&self, value: Option<&str>) -> bool {
        let contained = || value.is_some_and(|v| self.values.iter().any(|mine| mine == v));
        let compare = |test: fn(i64, i64) -> bool| {
            let bound = self.values.first().and_then(|v| v.parse().ok());
            match (value.and_then(|v| v.parse().ok()), bound) {
                (Some(value), Some(bound)) => test(value, bound),
                _ => false,
            }
        };
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => contained(),
            Operator::NotIn | Operator::NotEquals => !contained(),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => compare(|a, b| a > b),
            Operator::LessThan => compare(|a, b| a < b),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

/// A label selector: a conjunction of requirements, or one that matches nothing at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// Matches every set of labels.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches no set of labels.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Parses the query-parameter form: `app=x,tier in (a,b),!legacy`.
    ///
    /// # Errors
    /// Upstream's message, e.g. `found ',', expected: identifier after ','`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser::new(text);
        let mut requirements = Vec::new();
        loop {
            let (token, literal) = parser.lookahead();
            match token {
                Token::Identifier | Token::DoesNotExist => {
                    let requirement = parse_requirement(&mut parser)
                        .map_err(|e| format!("unable to parse requirement: {e}"))?;
                    requirements.push(requirement);
                    let (token, literal) = parser.consume();
                    match token {
                        Token::End => break,
                        Token::Comma => {
                            let (next, literal) = parser.lookahead();
                            if !matches!(next, Token::Identifier | Token::DoesNotExist) {
                                return Err(format!("found '{literal}', expected: identifier after ','"));
                            }
                        }
                        _ => return Err(format!("found '{literal}', expected: ',' or 'end of string'")),
                    }
                }
                Token::End => break,
                _ => return Err(format!("found '{literal}', expected: !, identifier, or 'end of string'")),
            }
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// From the API type. An empty selector matches everything.
    ///
    /// # Errors
    /// Upstream's message for a bad operator, key or value.
    pub fn from_api(selector: &api::LabelSelector) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            requirements.push(Requirement::new(key, Operator::Equals, vec![value.clone()])?);
        }
        for expression in selector.match_expressions.iter().flatten() {
            let operator = match expression.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(format!("{other:?} is not a valid label selector operator")),
            };
            let values = expression.values.clone().unwrap_or_default();
            requirements.push(Requirement::new(&expression.key, operator, values)?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// From an optional API selector, where absence means "selects nothing" (`LabelSelectorAsSelector`).
    ///
    /// # Errors
    /// As [`LabelSelector::from_api`].
    pub fn from_optional_api(selector: Option<&api::LabelSelector>) -> Result<Self, String> {
        selector.map_or_else(|| Ok(Self::nothing()), Self::from_api)
    }

    /// Every entry of the map must be present; values are not checked for syntax.
    pub fn from_map(map: &BTreeMap<String, String>) -> Self {
        let requirement = |(key, value): (&String, &String)| Requirement {
            key: key.clone(),
            operator: Operator::Equals,
            values: vec![value.clone()],
        };
        Self { requirements: map.iter().map(requirement).collect(), nothing: false }
    }

    /// The requirements, sorted by key.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether the labels fulfil every requirement.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_by(|name| labels.get(name).map(String::as_str))
    }

    /// Like [`LabelSelector::matches`], on labels of which `value` gives each by its name.
    pub fn matches_by<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches_value(value(&r.key)))
    }

    /// Like [`LabelSelector::matches`], on labels that may be absent.
    pub fn matches_option(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.matches_by(|name| labels?.get(name).map(String::as_str))
    }

    /// Whether it has no requirement and so selects everything.
    pub fn is_empty(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

fn parse_requirement(parser: &mut Parser) -> Result<Requirement, String> {
    let (mut token, mut key) = parser.consume();
    let negated = token == Token::DoesNotExist;
    if negated {
        (token, key) = parser.consume();
    }
    if token != Token::Identifier {
        return Err(format!("found '{key}', expected: identifier"));
    }
    let key_errors = names::qualified_name(&key);
    if !key_errors.is_empty() {
        let mut errs = ErrorList::new();
        errs.invalid(Path::new(""), key.as_str(), key_errors.join("; "));
        return Err(errs.aggregate());
    }
    if negated {
        return Requirement::new(&key, Operator::DoesNotExist, Vec::new());
    }
    if matches!(parser.lookahead().0, Token::End | Token::Comma) {
        return Requirement::new(&key, Operator::Exists, Vec::new());
    }
    let (token, literal) = parser.consume_operator();
    let operator = match token {
        Token::In => Operator::In,
        Token::NotIn => Operator::NotIn,
        Token::Equals => Operator::Equals,
        Token::DoubleEquals => Operator::DoubleEquals,
        Token::NotEquals => Operator::NotEquals,
        Token::GreaterThan => Operator::GreaterThan,
        Token::LessThan => Operator::LessThan,
        _ => return Err(format!("found '{literal}', expected: in, notin, =, ==, !=, gt, lt")),
    };
    let values = match operator {
        Operator::In | Operator::NotIn => parse_values(parser)?,
        _ => vec![parse_exact_value(parser)?],
    };
    Requirement::new(&key, operator, values)
}

fn parse_values(parser: &mut Parser) -> Result<Vec<String>, String> {
    let (token, literal) = parser.consume();
    if token != Token::OpenPar {
        return Err(format!("found '{literal}' expected: '('"));
    }
    let (token, literal) = parser.lookahead();
    match token {
        Token::Identifier | Token::Comma => {
            let values = parse_identifiers(parser)?;
            if parser.consume().0 != Token::ClosedPar {
                return Err(format!("found '{literal}', expected: ')'"));
            }
            Ok(values)
        }
        Token::ClosedPar => {
            parser.consume();
            Ok(vec![String::new()])
        }
        _ => Err(format!("found '{literal}', expected: ',', ')' or identifier")),
    }
}

fn parse_identifiers(parser: &mut Parser) -> Result<Vec<String>, String> {
    let mut values: Vec<String> = Vec::new();
    loop {
        let (token, literal) = parser.consume();
        match token {
            Token::Identifier => {
                values.push(literal);
                let (next, literal) = parser.lookahead();
                match next {
                    Token::Comma => {}
                    Token::ClosedPar => break,
                    _ => return Err(format!("found '{literal}', expected: ',' or ')'")),
                }
            }
            Token::Comma => {
                if values.is_empty() {
                    values.push(String::new());
                }
                match parser.lookahead().0 {
                    Token::ClosedPar => {
                        values.push(String::new());
                        break;
                    }
                    Token::Comma => {
                        parser.consume();
                        values.push(String::new());
                    }
                    _ => {}
                }
            }
            _ => return Err(format!("found '{literal}', expected: ',', or identifier")),
        }
    }
    values.sort();
    values.dedup();
    Ok(values)
}

fn parse_exact_value(parser: &mut Parser) -> Result<String, String> {
    if matches!(parser.lookahead().0, Token::End | Token::Comma) {
        return Ok(String::new());
    }
    match parser.consume() {
        (Token::Identifier, literal) => Ok(literal),
        (_, literal) => Err(format!("found '{literal}', expected: identifier")),
    }
}

/// One term of a field selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    /// e.g. `spec.nodeName`.
    pub path: String,
    /// `=` and `==` (true) or `!=` (false).
    pub equals: bool,
    /// The value compared with, unescaped.
    pub value: String,
}

/// A field selector: a conjunction of (in)equalities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    /// Matches everything.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Parses the query-parameter form: `metadata.name=x,spec.nodeName!=y`.
    ///
    /// # Errors
    /// Upstream's message, e.g. `invalid selector: 'a'; can't understand 'a'`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = split_terms(text);
        parts.sort_unstable();
        let mut requirements = Vec::new();
        for part in parts.into_iter().filter(|p| !p.is_empty()) {
            let Some((path, operator, value)) = split_term(part) else {
                return Err(format!("invalid selector: '{text}'; can't understand '{part}'"));
            };
            let value = unescape(value)?;
            // As upstream: what compares nothing with nothing asks for nothing.
            if path.is_empty() && value.is_empty() {
                continue;
            }
            requirements.push(FieldRequirement { path: path.to_owned(), equals: operator != "!=", value });
        }
        Ok(Self { requirements })
    }

    /// The terms, in text order of the terms.
    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }

    /// Calls fields by the name that `name` gives them, where it gives one.
    pub fn rename(&mut self, name: impl Fn(&str) -> Option<&'static str>) {
        for requirement in &mut self.requirements {
            if let Some(name) = name(&requirement.path) {
                name.clone_into(&mut requirement.path);
            }
        }
    }

    /// Whether it has no term and so selects everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether the fields that `lookup` yields fulfil every term; an absent field counts as empty.
    pub fn matches(&self, lookup: impl Fn(&str) -> Option<String>) -> bool {
        self.requirements.iter().all(|r| (lookup(&r.path).unwrap_or_default() == r.value) == r.equals)
    }

    /// The value that `path` must equal, if the selector says so.
    pub fn required_value(&self, path: &str) -> Option<&str> {
        self.requirements.iter().find(|r| r.equals && r.path == path).map(|r| r.value.as_str())
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            let (comma, operator) = (if i > 0 { "," } else { "" }, if r.equals { "=" } else { "!=" });
            let value = r.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{comma}{}{operator}{value}", r.path)?;
        }
        Ok(())
    }
}

/// Splits at commas that no backslash precedes.
fn split_terms(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn split_term(term: &str) -> Option<(&str, &'static str, &str)> {
    let at = |i: usize| {
        ["!=", "==", "="]
            .into_iter()
            .find(|operator| term.get(i..).is_some_and(|rest| rest.starts_with(operator)))
    };
    let (i, operator) = (0..term.len()).find_map(|i| at(i).map(|operator| (i, operator)))?;
    Some((&term[..i], operator, &term[i + operator.len()..]))
}

fn unescape(value: &str) -> Result<String, String> {
    if !value.contains(['\\', ',', '=']) {
        return Ok(value.to_owned());
    }
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(next @ ('\\' | ',' | '=')) => out.push(next),
                Some(next) => {
                    return Err(format!("invalid field selector: invalid escape sequence: \\{next}"));
                }
                None => return Err("invalid field selector: invalid escape sequence: \\".to_owned()),
            },
            ',' | '=' => {
                let code = u32::from(c);
                return Err(format!("invalid field selector: unescaped character in value: {code}"));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[track_caller]
    fn check(selector: &str, pairs: &[(&str, &str)], expected: bool) {
        let parsed = LabelSelector::parse(selector).expect(selector);
        assert_eq!(parsed.matches(&labels(pairs)), expected, "{selector}");
    }

    #[test]
    fn a_run_of_special_characters_is_read_but_once() {
        // With the square of its length this would take minutes.
        for text in [",".repeat(300_000), "!".repeat(300_000)] {
            assert!(LabelSelector::parse(&text).is_err());
        }
    }

    #[test]
    fn selector_matches_as_upstream() {
        check("", &[], true);
        check("a=1, b in (x, y),!c", &[("a", "1"), ("b", "y")], true);
        check("a=1,b in (x,y),!c", &[("a", "1"), ("b", "y"), ("c", "")], false);
        check("a!=1", &[], true);
        check("a notin (1,2)", &[("a", "2")], false);
        check("a>3", &[("a", "4")], true);
        check("a<3", &[("a", "x")], false);
        check("a", &[("a", "")], true);
        check("a=", &[("a", "")], true);
        check("in in (notin)", &[("in", "notin")], true);
        check("a in (,x)", &[("a", "")], true);
    }

    #[test]
    fn parse_error_texts_equal_upstream() {
        let message = |s: &str| LabelSelector::parse(s).expect_err(s);
        assert_eq!(message("a=1,"), "found '', expected: identifier after ','");
        assert_eq!(message("a=1=2"), "found '=', expected: ',' or 'end of string'");
        assert_eq!(message("=x"), "found '=', expected: !, identifier, or 'end of string'");
        assert_eq!(message("a in x"), "unable to parse requirement: found 'x' expected: '('");
        assert_eq!(message("a in (x"), "unable to parse requirement: found '', expected: ',' or ')'");
        assert_eq!(
            message("a key"),
            "unable to parse requirement: found 'key', expected: in, notin, =, ==, !=, gt, lt"
        );
        assert_eq!(
            message("a>x"),
            "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the \
                value \
             must be an integer"
        );
    }

    #[test]
    fn field_selector_reads_escapes_and_inequality() {
        let selector = FieldSelector::parse("spec.nodeName!=n1,metadata.name==a\\,b").expect("valid");
        assert!(selector.matches(|path| (path == "metadata.name").then(|| "a,b".to_owned())));
        assert!(
            !selector.matches(|path| Some(if path == "metadata.name" { "a,b" } else { "n1" }.to_owned()))
        );
        assert_eq!(selector.required_value("metadata.name"), Some("a,b"));
        let message = FieldSelector::parse("abc").expect_err("no operator");
        assert_eq!(message, "invalid selector: 'abc'; can't understand 'abc'");
        let message = FieldSelector::parse("a=b=c").expect_err("not escaped");
        assert_eq!(message, "invalid field selector: unescaped character in value: 61");
        assert!(FieldSelector::parse("=,!=").expect("valid").is_empty());
    }
}
