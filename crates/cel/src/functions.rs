//! The declarations of all functions: name, overloads, types. The table is `functions.txt`, one overload a line:
//! id, function, `m` (called on a receiver) or `g`, argument types, `->`, result type.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use crate::types::Type;

/// One overload of a function.
#[derive(Debug)]
pub(crate) struct Overload {
    pub(crate) id: &'static str,
    pub(crate) member: bool,
    pub(crate) args: Vec<Type>,
    pub(crate) result: Type,
    pub(crate) generic: bool,
}

/// A function by its name.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) name: &'static str,
    pub(crate) overloads: Vec<Overload>,
}

static TABLE: LazyLock<HashMap<&'static str, Function>> = LazyLock::new(|| {
    let mut table: HashMap<&'static str, Function> = HashMap::new();
    for line in include_str!("functions.txt").lines() {
        let mut words = line.split(' ').filter(|word| !word.is_empty());
        let (Some(id), Some(name), Some(style)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let mut args: Vec<Type> = words.filter(|word| *word != "->").map(parse_type).collect();
        let Some(result) = args.pop() else { continue };
        let generic = args.iter().chain([&result]).any(has_param);
        let overload = Overload { id, member: style == "m", args, result, generic };
        table
            .entry(name)
            .or_insert_with(|| Function { name, overloads: Vec::new() })
            .overloads
            .push(overload);
    }
    table
});

/// The function `name`, if there is one.
pub(crate) fn find(name: &str) -> Option<&'static Function> {
    TABLE.get(name)
}

fn has_param(t: &Type) -> bool {
    matches!(t, Type::Param(_)) || t.params().into_iter().any(has_param)
}

fn parse_type(text: &str) -> Type {
    if let Some((name, inner)) = text.split_once('(') {
        let inner = inner.strip_suffix(')').unwrap_or(inner);
        let params: Vec<Type> = split(inner).into_iter().map(parse_type).collect();
        return match (name, params.as_slice()) {
            ("list", [element]) => Type::list(element.clone()),
            ("map", [key, value]) => Type::map(key.clone(), value.clone()),
            ("type", [of]) => Type::Type(Some(Arc::new(of.clone()))),
            _ => Type::Opaque(name.into(), params.into()),
        };
    }
    match text {
        "dyn" => Type::Dyn,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "duration" => Type::Duration,
        "timestamp" => Type::Timestamp,
        _ if text.len() == 1 => Type::Param(text.into()),
        _ if text.starts_with("net.") => Type::opaque(text),
        _ => Type::object(text),
    }
}

/// Splits at the commas outside parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_whole() {
        let count: usize = TABLE.values().map(|f| f.overloads.len()).sum();
        assert_eq!(count, include_str!("functions.txt").lines().count());
        let index = find("_[_]").expect("declared");
        assert_eq!(index.overloads[1].args[0].checker_name(), "map(A, B)");
    }
}
