//! The estimated cost of calls of the language's own functions.

use super::{Coster, Estimate, Node, REGEX_FACTOR, STRING_FACTOR, is_comparing, is_logical};
use crate::ast::Expr;

/// A call and one of its overloads.
pub(super) struct Call<'c, 'a> {
    pub(super) function: &'c str,
    pub(super) overload: &'c str,
    pub(super) target: Option<&'c Node<'a>>,
    pub(super) args: &'c [Node<'a>],
}

/// A cost, and the size of the result where it is known.
pub(super) type Costed = (Estimate, Option<Estimate>);

pub(super) fn known(node: &Node<'_>) -> Estimate {
    node.size.unwrap_or(Estimate::UNKNOWN)
}

impl<'a> Coster<'a> {
    /// The cost of a call without its receiver; `costs` are those of the arguments.
    pub(super) fn call_cost(&mut self, expr: &Expr, call: &Call<'_, 'a>, costs: &[Estimate]) -> Costed {
        if is_logical(call.function) {
            return self.branches(expr, call, costs);
        }
        let (cost, size) = self
            .list_cost(call)
            .or_else(|| self.library_cost(call))
            .or_else(|| self.standard_cost(expr, call))
            .unwrap_or((Estimate::fixed(1), None));
        (costs.iter().fold(cost, |sum, cost| sum.add(*cost)), size)
    }

    fn branches(&mut self, expr: &Expr, call: &Call<'_, 'a>, costs: &[Estimate]) -> Costed {
        match (call.args, costs) {
            ([_, yes, no], [condition, yes_cost, no_cost]) => {
                let size = known(yes).union(known(no));
                let entries = |node: &Node<'a>, of: &Self| node.expr.and_then(|expr| of.entries(expr));
                if let (Some(a), Some(b)) = (entries(yes, self), entries(no, self)) {
                    self.entries.insert(expr.id, a.union(b));
                }
                (condition.add(yes_cost.union(*no_cost)), Some(size))
            }
            (_, [left, right]) => (Estimate { min: left.min, max: left.add(*right).max }, None),
            _ => (Estimate::fixed(1), None),
        }
    }

    fn standard_cost(&mut self, expr: &Expr, call: &Call<'_, 'a>) -> Option<Costed> {
        let scaled = |node: &Node<'_>| known(node).scaled(STRING_FACTOR);
        Some(match (call.overload, call.target, call.args) {
            ("string_format", Some(target), _) => (scaled(target), None),
            ("string_to_bytes", _, [arg]) => {
                let size = known(arg);
                (scaled(arg), Some(Estimate { min: size.min, max: size.max.wrapping_mul(4) }))
            }
            ("bytes_to_string", _, [arg]) => {
                let size = known(arg);
                (scaled(arg), Some(Estimate { min: size.min / 4, max: size.max }))
            }
            ("strings_quote", _, [arg]) => {
                let size = known(arg);
                let quoted =
                    Estimate { min: size.min.wrapping_add(2), max: size.max.wrapping_mul(2).wrapping_add(2) };
                (scaled(arg), Some(quoted))
            }
            ("starts_with_string" | "ends_with_string", _, [arg]) => (scaled(arg), None),
            ("in_list", _, [_, list]) => (known(list), None),
            ("matches_string", Some(target), [pattern]) => {
                let text = known(target).add(Estimate::fixed(1)).scaled(STRING_FACTOR);
                (text.times(known(pattern).scaled(REGEX_FACTOR)), None)
            }
            ("contains_string", Some(target), [part]) => (scaled(target).times(scaled(part)), None),
            ("add_string" | "add_bytes" | "add_list", _, [left, right]) => {
                let size = known(left).add(known(right));
                let entries = |node: &Node<'a>| node.expr.and_then(|expr| self.entries(expr));
                if let (Some(a), Some(b)) = (entries(left), entries(right)) {
                    self.entries.insert(expr.id, a.union(b));
                }
                let cost = match call.overload {
                    "add_list" => Estimate::fixed(1),
                    _ => size.scaled(STRING_FACTOR),
                };
                (cost, Some(size))
            }
            (overload, _, [left, right]) if is_comparing(overload) => {
                let max = known(left).max.min(known(right).max);
                (Estimate { min: u64::from(max > 0), max }.scaled(STRING_FACTOR), None)
            }
            _ => return None,
        })
    }
}
