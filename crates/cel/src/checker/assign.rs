//! Which type may stand for which, and what the variables of generic types are bound to.

use std::collections::HashMap;

use crate::types::Type;

/// What type variables stand for.
#[derive(Clone, Debug, Default)]
pub(super) struct Mapping(HashMap<Type, Type>);

impl Mapping {
    pub(super) fn add(&mut self, from: &Type, to: Type) {
        self.0.insert(from.clone(), to);
    }

    pub(super) fn find(&self, from: &Type) -> Option<&Type> {
        if matches!(from, Type::Param(_)) { self.0.get(from) } else { None }
    }

    /// `of` with its variables replaced; unbound ones become `dyn` where `to_dyn`.
    pub(super) fn substitute(&self, of: &Type, to_dyn: bool) -> Type {
        if let Some(bound) = self.find(of) {
            return self.substitute(bound, to_dyn);
        }
        let inner = |t: &Type| self.substitute(t, to_dyn);
        match of {
            Type::Param(_) if to_dyn => Type::Dyn,
            Type::List(element) => Type::list(inner(element)),
            Type::Map(key, value) => Type::map(inner(key), inner(value)),
            Type::Opaque(name, params) => Type::Opaque(name.clone(), params.iter().map(inner).collect()),
            Type::Type(Some(of)) => Type::Type(Some(inner(of).into())),
            other => other.clone(),
        }
    }

    /// Whether each of `from` may stand for its like in `to`; binds variables. Leaves a mess where it fails.
    pub(super) fn assign_list(&mut self, first: &[Type], second: &[Type]) -> bool {
        first.len() == second.len() && first.iter().zip(second).all(|(a, b)| self.assign(a, b))
    }

    /// Whether two types agree; binds variables. Leaves a mess where it fails.
    pub(super) fn assign(&mut self, first: &Type, second: &Type) -> bool {
        if matches!(second, Type::Param(_)) {
            let (valid, bound) = self.bind(first, second);
            if valid || bound {
                return valid;
            }
        }
        if matches!(first, Type::Param(_)) {
            return self.bind(second, first).0;
        }
        if first.is_dyn_or_error() || second.is_dyn_or_error() {
            return true;
        }
        if *first == Type::Null {
            return nullable(second);
        }
        if *second == Type::Null {
            return nullable(first);
        }
        match (first, second) {
            (Type::Type(_), Type::Type(_)) => true,
            (Type::List(a), Type::List(b)) => self.assign(a, b),
            (Type::Map(a, x), Type::Map(b, y)) => self.assign(a, b) && self.assign(x, y),
            (Type::Opaque(a, x), Type::Opaque(b, y)) => a == b && self.assign_list(x, y),
            _ => first == second,
        }
    }

    /// Whether `value` may be what the variable stands for, and whether it was bound before.
    fn bind(&mut self, value: &Type, variable: &Type) -> (bool, bool) {
        if value == variable {
            return (true, true);
        }
        if let Some(bound) = self.find(variable).cloned() {
            if *value == bound {
                return (true, true);
            }
            if !self.assign(value, &bound) {
                return (false, true);
            }
            let general = most_general(value.clone(), bound);
            if self.not_within(variable, &general) {
                self.add(variable, general);
            }
            return (true, true);
        }
        let free = self.not_within(variable, value);
        if free {
            self.add(variable, value.clone());
        }
        (free, false)
    }

    fn not_within(&self, variable: &Type, of: &Type) -> bool {
        if variable == of {
            return false;
        }
        match of {
            Type::Param(_) => self.find(of).is_none_or(|bound| self.not_within(variable, bound)),
            _ => of.params().into_iter().all(|param| self.not_within(variable, param)),
        }
    }
}

fn nullable(of: &Type) -> bool {
    matches!(
        of,
        Type::Null | Type::Opaque(..) | Type::Object(_) | Type::Any | Type::Duration | Type::Timestamp
    )
}

/// The less specific of two types that agree.
pub(super) fn most_general(first: Type, second: Type) -> Type {
    if less_specific(&first, &second) { first } else { second }
}

fn less_specific(first: &Type, second: &Type) -> bool {
    if first.is_dyn() || matches!(first, Type::Param(_)) {
        return true;
    }
    if second.is_dyn() || matches!(second, Type::Param(_)) {
        return false;
    }
    match (first, second) {
        (Type::List(a), Type::List(b)) => less_specific(a, b),
        (Type::Map(a, x), Type::Map(b, y)) => less_specific(a, b) && less_specific(x, y),
        (Type::Opaque(a, x), Type::Opaque(b, y)) => {
            a == b && x.len() == y.len() && x.iter().zip(y.iter()).all(|(p, q)| less_specific(p, q))
        }
        (Type::Type(_), Type::Type(_)) => true,
        _ => first == second,
    }
}
