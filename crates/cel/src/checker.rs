//! The type checker: finds what names stand for and which overloads calls mean, with upstream's messages.

mod assign;
mod literals;

use std::collections::HashMap;
use std::sync::Arc;

use self::assign::Mapping;
use crate::ast::{Expr, FieldEntry, Fold, Id, Kind, Literal, MapEntry, op};
use crate::env::Env;
use crate::functions::{self, Function};
use crate::issues::{Issues, Location, Source};
use crate::parse::Parsed;
use crate::types::Type;

/// An expression whose names and types are settled.
#[derive(Clone, Debug)]
pub struct Checked {
    pub(crate) expr: Expr,
    /// Types by id.
    pub(crate) types: Vec<Type>,
    /// What identifiers and calls mean, by id.
    pub(crate) references: HashMap<Id, Reference>,
    pub(crate) depth: usize,
}

/// What a node refers to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Reference {
    /// A variable or type, by its full name.
    Ident(Arc<str>),
    /// The overloads that may be meant.
    Overloads(Vec<&'static str>),
}

impl Checked {
    /// The type of the expression's value.
    pub fn output_type(&self) -> &Type {
        self.type_of(&self.expr)
    }

    /// Whether the expression names the variable.
    pub fn uses(&self, variable: &str) -> bool {
        self.references.values().any(|r| matches!(r, Reference::Ident(name) if &**name == variable))
    }

    /// Whether the expression looks at a field of the variable, as `variable.field` or `variable.?field`.
    pub fn selects(&self, variable: &str, field: &str) -> bool {
        let is_variable = |e: &Expr| matches!(&e.kind, Kind::Ident(name) if &**name == variable);
        let is_field = |e: &Expr| matches!(&e.kind, Kind::Literal(Literal::String(text)) if &**text == field);
        let mut found = false;
        self.expr.walk(&mut |e| {
            found |= match &e.kind {
                Kind::Select { operand, field: name, .. } => is_variable(operand) && &**name == field,
                Kind::Call { target: None, function, args } if &**function == op::OPT_SELECT => {
                    matches!(args.as_slice(), [of, name] if is_variable(of) && is_field(name))
                }
                _ => false,
            };
        });
        found
    }

    pub(crate) fn type_of(&self, expr: &Expr) -> &Type {
        self.types.get(expr.id as usize).unwrap_or(&Type::Dyn)
    }

    pub(crate) fn overloads(&self, expr: &Expr) -> &[&'static str] {
        match self.references.get(&expr.id) {
            Some(Reference::Overloads(list)) => list,
            _ => &[],
        }
    }
}

/// Checks a parsed expression.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check(parsed: Parsed, env: &Env) -> Result<Checked, Issues> {
    let Parsed { mut expr, source, offsets, depth } = parsed;
    crate::deep::run(depth, move || {
        let mut checker = Checker {
            env,
            issues: Issues::new(source.clone()),
            types: vec![None; offsets.len()],
            references: HashMap::new(),
            mapping: Mapping::default(),
            scopes: Vec::new(),
            free: 0,
            source,
            offsets,
        };
        checker.check(&mut expr);
        let Checker { mut issues, types, references, mapping, source, offsets, .. } = checker;
        let settled = |t: Option<Type>| mapping.substitute(&t.unwrap_or(Type::Dyn), true);
        let types: Vec<Type> = types.into_iter().map(settled).collect();
        let checked = Checked { expr, types, references, depth };
        if issues.is_empty() {
            let at = |id: Id| source.location(offsets[id as usize]);
            literals::validate(&checked, &mut |id, message| issues.report(at(id), message));
        }
        if issues.is_empty() { Ok(checked) } else { Err(issues) }
    })
}

struct Checker<'a> {
    env: &'a Env,
    source: Source,
    offsets: Vec<usize>,
    issues: Issues,
    types: Vec<Option<Type>>,
    references: HashMap<Id, Reference>,
    mapping: Mapping,
    /// Variables of loops, innermost last.
    scopes: Vec<(Arc<str>, Type)>,
    free: usize,
}

impl Checker<'_> {
    fn report(&mut self, id: Id, message: String) {
        let at = self.offsets.get(id as usize).map_or(Location::NONE, |o| self.source.location(*o));
        self.issues.report(at, message);
    }

    fn set(&mut self, expr: &Expr, of: Type) {
        self.types[expr.id as usize] = Some(of);
    }

    fn get(&self, expr: &Expr) -> Type {
        self.types[expr.id as usize].clone().unwrap_or(Type::Dyn)
    }

    fn substituted(&self, of: &Type) -> Type {
        self.mapping.substitute(of, false)
    }

    fn fresh(&mut self) -> Type {
        self.free += 1;
        Type::Param(format!("_var{}", self.free - 1).into())
    }

    fn lookup(&self, name: &str) -> Option<Type> {
        let local = self.scopes.iter().rev().find(|(var, _)| &**var == name);
        local.map(|(_, of)| of.clone()).or_else(|| self.env.ident(name))
    }

    fn function(&self, name: &str) -> Option<&'static Function> {
        let name = name.strip_prefix('.').unwrap_or(name);
        functions::find(name).filter(|_| self.env.has_function(name))
    }

    fn assignable(&mut self, to: &Type, from: &Type) -> bool {
        let mut trial = self.mapping.clone();
        let fits = trial.assign(to, from);
        if fits {
            self.mapping = trial;
        }
        fits
    }

    fn mismatch(&mut self, id: Id, expected: &Type, found: &Type) {
        let message =
            format!("expected type '{}' but found '{}'", expected.checker_name(), found.checker_name());
        self.report(id, message);
    }

    fn undeclared(&mut self, expr: &Expr, name: &str) {
        self.report(expr.id, format!("undeclared reference to '{name}' (in container '')"));
        self.set(expr, Type::Error);
    }

    fn check(&mut self, expr: &mut Expr) {
        let id = expr.id;
        match &mut expr.kind {
            Kind::Unspecified => {}
            Kind::Literal(literal) => {
                let of = literal_type(literal);
                self.set(expr, of);
            }
            Kind::Ident(name) => {
                let name = name.clone();
                match self.lookup(&name) {
                    Some(of) => self.refer(expr, &name, of),
                    None => self.undeclared(expr, &name),
                }
            }
            Kind::Select { .. } => self.select(expr),
            Kind::Call { .. } => self.call(expr),
            Kind::List { elements, optional } => {
                let of = self.list(elements, optional);
                self.types[id as usize] = Some(of);
            }
            Kind::Map(entries) => {
                let of = self.map(entries);
                self.types[id as usize] = Some(of);
            }
            Kind::Struct { name, fields } => {
                let of = self.record(id, name, fields);
                self.types[id as usize] = Some(of);
            }
            Kind::Fold(fold) => {
                let of = self.fold(fold);
                self.types[id as usize] = Some(of);
            }
        }
    }

    fn refer(&mut self, expr: &mut Expr, name: &str, of: Type) {
        let name: Arc<str> = name.strip_prefix('.').unwrap_or(name).into();
        self.set(expr, of);
        self.references.insert(expr.id, Reference::Ident(name.clone()));
        expr.kind = Kind::Ident(name);
    }

    fn select(&mut self, expr: &mut Expr) {
        if let Some(name) = expr.qualified_name()
            && let Some(of) = self.lookup(&name)
        {
            self.refer(expr, &name, of);
            return;
        }
        let id = expr.id;
        let Kind::Select { operand, field, test_only } = &mut expr.kind else { return };
        let test = *test_only;
        let result = self.select_field(id, operand, field, false);
        let result = if test { Type::Bool } else { self.substituted(&result) };
        self.set(expr, result);
    }

    fn select_field(&mut self, id: Id, operand: &mut Expr, field: &str, optional: bool) -> Type {
        self.check(operand);
        let operand_type = self.substituted(&self.get(operand));
        let inner = operand_type.optional_inner();
        let target = inner.unwrap_or(&operand_type);
        let result = match target {
            Type::Map(_, value) => (**value).clone(),
            Type::Object(record) => self.field_type(id, record, field),
            Type::Param(_) => {
                self.assignable(&Type::Dyn, target);
                Type::Dyn
            }
            _ => {
                if !target.is_dyn_or_error() {
                    let name = target.checker_name();
                    self.report(id, format!("type '{name}' does not support field selection"));
                }
                Type::Dyn
            }
        };
        if inner.is_some() || optional { Type::optional(result) } else { result }
    }

    fn field_type(&mut self, id: Id, record: &str, field: &str) -> Type {
        match self.env.field(record, field) {
            Some(Some(found)) => return found,
            Some(None) => self.report(id, format!("undefined field '{field}'")),
            None => self.report(id, format!("unexpected failed resolution of '{record}'")),
        }
        Type::Error
    }

    fn call(&mut self, expr: &mut Expr) {
        let Kind::Call { target, function, args } = &mut expr.kind else { return };
        if &**function == op::OPT_SELECT {
            self.optional_select(expr);
            return;
        }
        args.iter_mut().for_each(|arg| self.check(arg));
        let name = function.clone();
        let Some(receiver) = target else {
            match self.function(&name) {
                Some(found) => self.resolve(expr, found),
                None => self.undeclared(expr, &name),
            }
            return;
        };
        if let Some(prefix) = receiver.qualified_name()
            && let Some(found) = self.function(&format!("{prefix}.{name}"))
        {
            *target = None;
            *function = found.name.into();
            self.resolve(expr, found);
            return;
        }
        self.check(receiver);
        match self.function(&name) {
            Some(found) => self.resolve(expr, found),
            None => self.undeclared(expr, &name),
        }
    }

    fn optional_select(&mut self, expr: &mut Expr) {
        let id = expr.id;
        let Kind::Call { args, .. } = &mut expr.kind else { return };
        let [operand, field] = args.as_mut_slice() else { return };
        let Kind::Literal(Literal::String(name)) = &field.kind else { return };
        let name = name.clone();
        let result = self.select_field(id, operand, &name, true);
        let result = self.substituted(&result);
        self.set(expr, result);
        self.references.insert(id, Reference::Overloads(vec!["select_optional_field"]));
    }

    fn resolve(&mut self, expr: &mut Expr, function: &'static Function) {
        let Kind::Call { target, function: name, args } = &mut expr.kind else { return };
        *name = function.name.into();
        let member = target.is_some();
        let nodes: Vec<&Expr> = target.as_deref().into_iter().chain(args.iter()).collect();
        let mut types: Vec<Type> = nodes.iter().map(|node| self.get(node)).collect();
        if function.name == op::AND || function.name == op::OR {
            let ids: Vec<Id> = nodes.iter().map(|node| node.id).collect();
            return self.logical(expr, function, &ids, &types);
        }
        let (mut result, mut found): (Option<Type>, Vec<&'static str>) = (None, Vec::new());
        for overload in function.overloads.iter().filter(|o| o.member == member) {
            let (mut wanted, mut returns) = (overload.args.clone(), overload.result.clone());
            if overload.generic {
                let mut fresh = Mapping::default();
                self.instantiate(overload.args.iter().chain([&overload.result]), &mut fresh);
                wanted = wanted.iter().map(|t| fresh.substitute(t, false)).collect();
                returns = fresh.substitute(&returns, false);
            }
            let mut trial = self.mapping.clone();
            if types.len() != wanted.len() || !trial.assign_list(&types, &wanted) {
                continue;
            }
            self.mapping = trial;
            found.push(overload.id);
            let returns = self.substituted(&returns);
            result = Some(match result {
                None => returns,
                Some(before) if !before.is_dyn() && returns != before => Type::Dyn,
                Some(before) => before,
            });
        }
        match result {
            Some(of) => {
                self.set(expr, of);
                self.references.insert(expr.id, Reference::Overloads(found));
            }
            None => {
                types.iter_mut().for_each(|t| *t = self.mapping.substitute(t, true));
                let shown: Vec<String> = types.iter().map(Type::checker_name).collect();
                let signature = match shown.split_first() {
                    Some((receiver, rest)) if member => format!("{receiver}.({})", rest.join(", ")),
                    _ => format!("({})", shown.join(", ")),
                };
                let name = function.name;
                let message = format!("found no matching overload for '{name}' applied to '{signature}'");
                self.report(expr.id, message);
                self.set(expr, Type::Error);
            }
        }
    }

    fn instantiate<'t>(&mut self, types: impl Iterator<Item = &'t Type>, fresh: &mut Mapping) {
        for of in types {
            if matches!(of, Type::Param(_)) && fresh.find(of).is_none() {
                let var = self.fresh();
                fresh.add(of, var);
            }
            self.instantiate(of.params().into_iter().collect::<Vec<_>>().into_iter(), fresh);
        }
    }

    fn logical(&mut self, expr: &Expr, function: &Function, ids: &[Id], types: &[Type]) {
        let mut failed = false;
        for (id, of) in ids.iter().zip(types) {
            if !self.assignable(of, &Type::Bool) {
                self.mismatch(*id, &Type::Bool, of);
                failed = true;
            }
        }
        self.set(expr, if failed { Type::Error } else { Type::Bool });
        if !failed {
            let overload = function.overloads.first().map(|o| o.id);
            self.references.insert(expr.id, Reference::Overloads(overload.into_iter().collect()));
        }
    }

    /// The type of an optional entry's value.
    fn unwrapped(&mut self, expr: &Expr, optional: bool) -> Type {
        let of = self.get(expr);
        if !optional {
            return of;
        }
        match of.optional_inner() {
            Some(inner) => inner.clone(),
            None => {
                if !of.is_dyn() {
                    self.mismatch(expr.id, &Type::optional(of.clone()), &of);
                }
                of
            }
        }
    }

    fn join(&mut self, before: Option<Type>, of: Type) -> Option<Type> {
        let Some(before) = before else { return Some(of) };
        if self.assignable(&before, &of) {
            return Some(assign::most_general(before, of));
        }
        Some(Type::Dyn)
    }

    fn list(&mut self, elements: &mut [Expr], optional: &[bool]) -> Type {
        let mut joined = None;
        for (element, optional) in elements.iter_mut().zip(optional) {
            self.check(element);
            let of = self.unwrapped(element, *optional);
            joined = self.join(joined, of);
        }
        let element = joined.unwrap_or_else(|| self.fresh());
        Type::list(element)
    }

    fn map(&mut self, entries: &mut [MapEntry]) -> Type {
        let (mut key, mut value) = (None, None);
        for entry in entries {
            self.check(&mut entry.key);
            let of = self.get(&entry.key);
            key = self.join(key, of);
            self.check(&mut entry.value);
            let of = self.unwrapped(&entry.value, entry.optional);
            value = self.join(value, of);
        }
        let key = key.unwrap_or_else(|| self.fresh());
        let value = value.unwrap_or_else(|| self.fresh());
        Type::map(key, value)
    }

    fn record(&mut self, id: Id, name: &mut Arc<str>, fields: &mut [FieldEntry]) -> Type {
        let plain = name.strip_prefix('.').unwrap_or(name).to_owned();
        let Some(found) = self.lookup(&plain) else {
            self.report(id, format!("undeclared reference to '{name}' (in container '')"));
            return Type::Error;
        };
        *name = plain.into();
        self.references.insert(id, Reference::Ident(name.clone()));
        let result = match &found {
            Type::Type(Some(of)) => match &**of {
                object @ Type::Object(_) => object.clone(),
                other => {
                    self.report(id, format!("'{}' is not a message type", other.type_name()));
                    Type::Error
                }
            },
            Type::Error => Type::Error,
            other => {
                self.report(id, format!("'{}' is not a type", other.type_name()));
                Type::Error
            }
        };
        for field in fields {
            self.check(&mut field.value);
            let wanted = self.field_type(field.id, name, &field.name);
            let of = self.unwrapped(&field.value, field.optional);
            if !self.assignable(&wanted, &of) {
                let message = format!(
                    "expected type of field '{}' is '{}' but provided type is '{}'",
                    field.name,
                    wanted.checker_name(),
                    of.checker_name()
                );
                self.report(field.id, message);
            }
        }
        result
    }

    fn fold(&mut self, fold: &mut Fold) -> Type {
        self.check(&mut fold.range);
        self.check(&mut fold.init);
        let range = self.substituted(&self.get(&fold.range));
        let accumulated = self.get(&fold.init);
        let depth = self.scopes.len();
        self.scopes.push((fold.accumulator.clone(), accumulated.clone()));
        let (first, second) = match &range {
            Type::List(element) if fold.var2.is_some() => (Type::Int, (**element).clone()),
            Type::List(element) => ((**element).clone(), Type::Dyn),
            Type::Map(key, value) => ((**key).clone(), (**value).clone()),
            Type::Dyn | Type::Error | Type::Param(_) => {
                self.assignable(&Type::Dyn, &range);
                (Type::Dyn, Type::Dyn)
            }
            _ => {
                let message = format!(
                    "expression of type '{}' cannot be range of a comprehension (must be list, map, or dynamic)",
                    range.checker_name()
                );
                self.report(fold.range.id, message);
                (Type::Error, Type::Error)
            }
        };
        self.scopes.push((fold.var.clone(), first));
        if let Some(var2) = &fold.var2 {
            self.scopes.push((var2.clone(), second));
        }
        self.check(&mut fold.condition);
        self.assert(&fold.condition, &Type::Bool);
        self.check(&mut fold.step);
        self.assert(&fold.step, &accumulated);
        self.scopes.truncate(depth + 1);
        self.check(&mut fold.result);
        self.scopes.truncate(depth);
        self.substituted(&self.get(&fold.result))
    }

    fn assert(&mut self, expr: &Expr, wanted: &Type) {
        let of = self.get(expr);
        if !self.assignable(wanted, &of) {
            self.mismatch(expr.id, wanted, &of);
        }
    }
}

fn literal_type(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::String(_) => Type::String,
        Literal::Bytes(_) => Type::Bytes,
    }
}
