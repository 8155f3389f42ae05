//! Checks of literals after types are settled: durations, timestamps, patterns, formats, one type in a list.

use std::collections::HashSet;

use crate::ast::{Expr, Id, Kind, Literal};
use crate::checker::Checked;
use crate::library::{format_string, regex};
use crate::time;
use crate::types::Type;

/// Reports what upstream's validators of syntax trees report, in their order.
pub(super) fn validate(checked: &Checked, report: &mut dyn FnMut(Id, String)) {
    let mut nodes = Vec::new();
    checked.expr.walk(&mut |node| nodes.push(node));
    let arguments = |function: &'static str| {
        nodes.iter().filter_map(move |node| match &node.kind {
            Kind::Call { function: name, args, .. } if &**name == function => args.first(),
            _ => None,
        })
    };
    for arg in arguments("duration") {
        if let Kind::Literal(literal) = &arg.kind
            && matches!(literal, Literal::String(text) if time::parse_duration(text).is_none())
        {
            report(arg.id, "invalid duration argument".to_owned());
        }
    }
    for arg in arguments("timestamp") {
        let wrong = match &arg.kind {
            Kind::Literal(Literal::String(text)) => time::parse_timestamp(text).is_err(),
            Kind::Literal(Literal::Int(seconds)) => time::from_seconds(*seconds).is_err(),
            _ => false,
        };
        if wrong {
            report(arg.id, "invalid timestamp argument".to_owned());
        }
    }
    for arg in arguments("matches") {
        if let Kind::Literal(Literal::String(pattern)) = &arg.kind
            && regex::compile(pattern).is_err()
        {
            report(arg.id, "invalid matches argument".to_owned());
        }
    }
    homogeneous(checked, &nodes, report);
    for node in &nodes {
        if let Kind::Call { target: Some(target), function, args } = &node.kind
            && &**function == "format"
            && let Kind::Literal(Literal::String(format)) = &target.kind
            && let [arg] = args.as_slice()
            && let Kind::List { elements, .. } = &arg.kind
        {
            let types: Vec<(Id, &Type, Option<&Literal>)> =
                elements.iter().map(|e| (e.id, checked.type_of(e), literal(e))).collect();
            if let Err((id, message)) = format_string::check(format, &types) {
                report(id.unwrap_or(node.id), message);
            }
        }
    }
}

fn literal(expr: &Expr) -> Option<&Literal> {
    match &expr.kind {
        Kind::Literal(literal) => Some(literal),
        _ => None,
    }
}

fn homogeneous(checked: &Checked, nodes: &[&Expr], report: &mut dyn FnMut(Id, String)) {
    let mut mismatch = |id: Id, expected: &Type, found: &Type| {
        report(
            id,
            format!("expected type '{}' but found '{}'", expected.checker_name(), found.checker_name()),
        );
    };
    let inner = |of: &Type, optional: bool| match of.optional_inner() {
        Some(inner) if optional => inner.clone(),
        _ => of.clone(),
    };
    let formatted = below_format(nodes);
    for node in nodes {
        let Kind::List { elements, optional } = &node.kind else { continue };
        if formatted.contains(&node.id) {
            continue;
        }
        let mut first: Option<Type> = None;
        for (element, optional) in elements.iter().zip(optional) {
            let of = inner(checked.type_of(element), *optional);
            match &first {
                None => first = Some(of),
                Some(expected) if !expected.is_equivalent(&of) => {
                    mismatch(element.id, expected, &of);
                    break;
                }
                Some(_) => {}
            }
        }
    }
    for node in nodes {
        let Kind::Map(entries) = &node.kind else { continue };
        if formatted.contains(&node.id) {
            continue;
        }
        let mut first: Option<(Type, Type)> = None;
        for entry in entries {
            let key = checked.type_of(&entry.key).clone();
            let value = inner(checked.type_of(&entry.value), entry.optional);
            match &first {
                None => first = Some((key, value)),
                Some((expected_key, expected_value)) => {
                    if !expected_key.is_equivalent(&key) {
                        mismatch(entry.key.id, expected_key, &key);
                    }
                    if !expected_value.is_equivalent(&value) {
                        mismatch(entry.value.id, expected_value, &value);
                    }
                }
            }
        }
    }
}

/// What is below calls of `format`, whose arguments may be of many types.
fn below_format(nodes: &[&Expr]) -> HashSet<Id> {
    let mut found = HashSet::new();
    for node in nodes {
        let formats = matches!(&node.kind, Kind::Call { function, .. } if &**function == "format");
        if formats && !found.contains(&node.id) {
            node.walk(&mut |below| {
                found.insert(below.id);
            });
        }
    }
    found
}
