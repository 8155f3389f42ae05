//! The estimated cost of calls of the libraries.

use super::calls::{Call, Costed, known};
use super::{Coster, Estimate, LIST_COST, Node, RECORD_COST, REGEX_FACTOR, STRING_FACTOR, is_unit};
use crate::ast::{Kind, Literal};
use crate::types::Type;

/// Characters of the longest pattern of a named format.
const FORMAT_PATTERN: f64 = 128.0;
const FORMAT_SIZE: u64 = 64;

impl Coster<'_> {
    /// Lists and sets, whose libraries bring estimates of their own.
    pub(super) fn list_cost(&self, call: &Call<'_, '_>) -> Option<Costed> {
        let list = |factor: f64, size: Estimate| {
            let cost = size.scaled(factor).add(Estimate::fixed(1 + LIST_COST));
            Some((cost, Some(size)))
        };
        let sorted = |node: &Node<'_>| {
            let text = call.overload.starts_with("list_string_") || call.overload.starts_with("list_bytes_");
            let size = self.known_or_hint(node);
            list(if text { 2.0 + STRING_FACTOR } else { 2.0 }, size.times(size))
        };
        match (call.overload, call.target, call.args) {
            ("list_slice", Some(target), [start, end]) => {
                let size = self.known_or_hint(target);
                let len = int(end, size.max).wrapping_sub(int(start, 0));
                list(1.0, Estimate::fixed(len))
            }
            ("lists_range", None, [len]) => list(1.0, Estimate::fixed(int(len, u64::MAX))),
            ("list_reverse", Some(target), []) => list(1.0, self.known_or_hint(target)),
            ("list_flatten" | "list_flatten_int", Some(target), args) => {
                let depth = args.first().map_or(1, |arg| int(arg, u64::MAX));
                #[expect(clippy::cast_precision_loss, reason = "as upstream")]
                list(depth as f64, self.known_or_hint(target))
            }
            ("list_distinct", Some(target), []) => {
                let size = self.known_or_hint(target);
                list(2.0, size.times(size))
            }
            (id, Some(target), []) if id.ends_with("_sort") => sorted(target),
            (id, Some(_), [keys]) if id.ends_with("_sortByAssociatedKeys") => sorted(keys),
            (
                "list_sets_contains_list" | "list_sets_intersects_list" | "list_sets_equivalent_list",
                _,
                [left, right],
            ) => {
                let factor = if call.overload == "list_sets_equivalent_list" { 2.0 } else { 1.0 };
                let size = self.known_or_hint(left).times(self.known_or_hint(right));
                Some((size.scaled(factor).add(Estimate::fixed(1)), None))
            }
            _ => None,
        }
    }

    /// The functions of Kubernetes and of the strings library.
    pub(super) fn library_cost(&self, call: &Call<'_, '_>) -> Option<Costed> {
        let traversal =
            |node: &Node<'_>, factor: f64| self.known_or_hint(node).scaled(factor * STRING_FACTOR);
        let one = Some((Estimate::fixed(1), None));
        match (call.function, call.target, call.args) {
            ("check", ..) => Some((Estimate::fixed(350_000), None)),
            (function, ..) if is_unit(function) => one,
            ("fieldSelector" | "labelSelector", _, [arg]) => Some((selector(self.known_or_hint(arg)), None)),
            ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf", Some(target), _) => {
                Some((self.elements_cost(target), None))
            }
            ("url" | "jsonpatch.escapeKey", _, [arg]) => {
                Some((traversal(arg, 1.0), Some(self.known_or_hint(arg))))
            }
            ("lowerAscii" | "upperAscii" | "substring" | "trim", Some(target), _) => {
                Some((traversal(target, 1.0), Some(self.known_or_hint(target))))
            }
            ("replace", Some(target), [old, new, ..]) => {
                let (size, old, new) =
                    (self.known_or_hint(target), self.known_or_hint(old), self.known_or_hint(new));
                Some((traversal(target, 2.0), Some(replaced(size, old, new))))
            }
            ("split", Some(target), args) => {
                let size = self.known_or_hint(target);
                let max = args.get(1).map_or(size.max, |limit| int_or(limit, size.max));
                Some((traversal(target, 2.0), Some(Estimate { min: 0, max })))
            }
            ("join", Some(target), args) => Some(self.join_cost(target, args.first())),
            ("find" | "findAll", Some(target), [pattern, ..]) => {
                let size = self.known_or_hint(target);
                let text = size.add(Estimate::fixed(1)).scaled(STRING_FACTOR);
                let pattern = self.known_or_hint(pattern).scaled(REGEX_FACTOR);
                Some((text.times(pattern), Some(Estimate { min: 0, max: size.max })))
            }
            ("ip", ..) if call.overload == "cidr_ip" => one,
            (
                "cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity" | "semver" | "isSemver",
                _,
                [arg, ..],
            ) => Some((traversal(arg, 1.0), None)),
            ("ip.isCanonical", _, [arg]) => Some((traversal(arg, 2.0), None)),
            ("containsIP" | "containsCIDR", _, [arg]) => Some((self.contains_cost(call, arg), None)),
            ("validate", _, [arg]) => Some((traversal(arg, 1.0).scaled(FORMAT_PATTERN * REGEX_FACTOR), None)),
            ("includes", Some(_), _) => Some((Estimate { min: 0, max: 64 }, None)),
            ("_==_", _, [left, right]) if left.of == right.of => equality(left, right),
            _ => None,
        }
    }

    fn known_or_hint(&self, node: &Node<'_>) -> Estimate {
        node.size.or_else(|| self.hint(&node.path)).unwrap_or(Estimate::UNKNOWN)
    }

    /// The elements of a list as a node.
    fn elements(&self, list: &Node<'_>) -> Option<(Type, Estimate)> {
        let of = (*list.of.params().first()?).clone();
        let mut path = list.path.clone();
        if !path.is_empty() {
            path.push("@items".into());
        }
        Some((of, self.hint(&path).unwrap_or(Estimate::UNKNOWN)))
    }

    fn elements_cost(&self, target: &Node<'_>) -> Estimate {
        let size = self.known_or_hint(target);
        match self.elements(target) {
            Some((Type::String | Type::Bytes, element)) => {
                size.times(Estimate::fixed(1).add(element.scaled(STRING_FACTOR)))
            }
            Some(_) => size,
            None => size.scaled(STRING_FACTOR),
        }
    }

    fn join_cost(&self, target: &Node<'_>, separator: Option<&Node<'_>>) -> Costed {
        let list = self.known_or_hint(target);
        let mut size = self.elements(target).map_or(Estimate::fixed(0), |(_, element)| list.times(element));
        if let Some(separator) = separator {
            let count = Estimate { min: list.min.saturating_sub(1), max: list.max.saturating_sub(1) };
            size = size.add(self.known_or_hint(separator).times(count));
        }
        (size.scaled(STRING_FACTOR), Some(size))
    }

    fn contains_cost(&self, call: &Call<'_, '_>, arg: &Node<'_>) -> Estimate {
        let size = Estimate { min: 4, max: 16 };
        let mut cost = size.add(size).scaled(STRING_FACTOR);
        if call.function == "containsCIDR" {
            cost = cost.add(size.scaled(STRING_FACTOR)).add(Estimate::fixed(1));
        }
        if call.overload.ends_with("_string") {
            cost = cost.add(self.known_or_hint(arg).scaled(STRING_FACTOR));
        }
        cost
    }
}

fn selector(length: Estimate) -> Estimate {
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let requirement = (LIST_COST + RECORD_COST) as f64;
    let requirements = length.scaled(0.5).scaled(requirement);
    Estimate::fixed(LIST_COST).add(length.scaled(STRING_FACTOR)).add(requirements)
}

/// The cost of parsing a selector of this many characters.
pub(crate) fn selector_cost(length: u64) -> u64 {
    selector(Estimate::fixed(length)).max
}

fn replaced(size: Estimate, old: Estimate, new: Estimate) -> Estimate {
    let (mut count, mut kept) = (Estimate::fixed(0), Estimate::fixed(0));
    if old.min == 0 {
        count.max = size.max.saturating_add(1);
        kept.max = size.max;
    } else if new.max <= old.min {
        kept.max = size.max;
    } else {
        count.max = ratio(size.max, old.min);
    }
    if old.max == 0 {
        count.min = size.min.saturating_add(1);
        kept.min = size.min;
    } else if old.max <= new.min {
        kept.min = size.min;
    } else {
        count.min = ratio(size.min, old.max);
    }
    count.times(new).add(kept)
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as upstream"
)]
fn ratio(size: u64, by: u64) -> u64 {
    (size as f64 / by as f64).ceil() as u64
}

fn equality(left: &Node<'_>, right: &Node<'_>) -> Option<Costed> {
    let unit = Some((Estimate::fixed(1), None));
    match left.of.type_name() {
        "net.IP" | "net.CIDR" | "kubernetes.Quantity" | "kubernetes.Semver" => unit,
        "kubernetes.NamedFormat" => Some((Estimate { min: 1, max: FORMAT_SIZE }.scaled(STRING_FACTOR), None)),
        "kubernetes.URL" => {
            let max = if right.size.is_some() { known(right).max } else { 1 };
            Some((Estimate { min: 1, max }.scaled(STRING_FACTOR), None))
        }
        name if name.starts_with("kubernetes.authorization.") => unit,
        _ => None,
    }
}

/// The value of a literal integer; 0 for negative ones.
fn int(node: &Node<'_>, default: u64) -> u64 {
    match node.expr.map(|expr| &expr.kind) {
        Some(Kind::Literal(Literal::Int(value))) => u64::try_from(*value).unwrap_or(0),
        _ => default,
    }
}

#[expect(clippy::cast_sign_loss, reason = "as upstream")]
fn int_or(node: &Node<'_>, default: u64) -> u64 {
    match node.expr.map(|expr| &expr.kind) {
        Some(Kind::Literal(Literal::Int(value))) => *value as u64,
        _ => default,
    }
}
