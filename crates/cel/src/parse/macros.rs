//! Macros: calls that are rewritten while parsing, such as `has(a.b)` and `list.all(x, …)`.

use std::sync::Arc;

use super::recover::Abort;
use super::{Builder, Parser};
use crate::ast::{ACCUMULATOR, Expr, Fold, Kind, Literal, MapEntry, op};

/// What is wrong with a macro's arguments, and where.
type Misuse = (usize, String);
type Expansion = Result<Expr, Misuse>;

impl Parser {
    /// A call of a function, or what the macro of this name makes of it.
    pub(super) fn call(&mut self, at: usize, function: &str, mut args: Vec<Expr>) -> Result<Expr, Abort> {
        if function == "has" && args.len() == 1 {
            let argument = args.remove(0);
            return match argument.kind {
                Kind::Select { operand, field, .. } => self.b.select(at, *operand, &field, true),
                _ => {
                    let offset = self.b.offset(&argument);
                    self.b.report(offset, "invalid argument to has() macro".to_owned());
                    Ok(self.b.unspecified(offset))
                }
            };
        }
        let ids: Vec<_> = args.iter().map(|arg| arg.id).collect();
        let counted =
            function == op::IN || function.starts_with('_') && !matches!(function, op::AND | op::OR);
        let kind = Kind::Call { target: None, function: function.into(), args };
        self.b.node(at, kind, &ids, counted)
    }

    /// A call on a receiver, or what the macro of this name makes of it.
    pub(super) fn receiver_call(
        &mut self,
        at: usize,
        function: &Arc<str>,
        target: Expr,
        args: Vec<Expr>,
    ) -> Result<Expr, Abort> {
        let ids: Vec<_> = args.iter().map(|arg| arg.id).chain([target.id]).collect();
        type Make = fn(&mut Maker<'_>, Expr, Vec<Expr>) -> Expansion;
        let make: Option<Make> = match (&**function, args.len()) {
            ("all", 2 | 3) => Some(all),
            ("exists", 2 | 3) => Some(exists),
            ("exists_one", 2 | 3) | ("existsOne", 3) => Some(exists_one),
            ("map", 2 | 3) => Some(map),
            ("filter", 2) => Some(filter),
            ("transformList", 3 | 4) => Some(transform_list),
            ("transformMap", 3 | 4) => Some(transform_map),
            ("transformMapEntry", 3 | 4) => Some(transform_map_entry),
            ("optMap", 2) => Some(opt_map),
            ("optFlatMap", 2) => Some(opt_flat_map),
            ("sortBy", 2) => Some(sort_by),
            ("bind", 3) if self.bindings && is_cel(&target) => Some(bind),
            _ => None,
        };
        let Some(make) = make else {
            let kind = Kind::Call { target: Some(Box::new(target)), function: function.clone(), args };
            return self.b.node(at, kind, &ids, true);
        };
        let expr = match make(&mut Maker { b: &mut self.b, at }, target, args) {
            Ok(expr) => expr,
            Err((offset, message)) => {
                self.b.report(offset, message);
                self.b.unspecified(offset)
            }
        };
        let below = ids.iter().map(|id| self.b.heights[*id as usize]).max().unwrap_or(0);
        let height = &mut self.b.heights[expr.id as usize];
        *height = (*height).max(below + 1);
        Ok(expr)
    }
}

/// Makes nodes that stand where the macro stands.
struct Maker<'a> {
    b: &'a mut Builder,
    at: usize,
}

impl Maker<'_> {
    fn expr(&mut self, kind: Kind) -> Expr {
        Expr { id: self.b.id(self.at), kind }
    }
    fn literal(&mut self, literal: Literal) -> Expr {
        self.expr(Kind::Literal(literal))
    }
    fn truth(&mut self, value: bool) -> Expr {
        self.literal(Literal::Bool(value))
    }
    fn ident(&mut self, name: &str) -> Expr {
        self.expr(Kind::Ident(name.into()))
    }
    fn result(&mut self) -> Expr {
        self.ident(ACCUMULATOR)
    }
    fn call(&mut self, function: &str, args: Vec<Expr>) -> Expr {
        self.expr(Kind::Call { target: None, function: function.into(), args })
    }
    fn member_call(&mut self, function: &str, target: Expr, args: Vec<Expr>) -> Expr {
        self.expr(Kind::Call { target: Some(Box::new(target)), function: function.into(), args })
    }
    fn list(&mut self, elements: Vec<Expr>) -> Expr {
        let optional = vec![false; elements.len()];
        self.expr(Kind::List { elements, optional })
    }
    fn misuse<T>(&self, of: &Expr, message: impl Into<String>) -> Result<T, Misuse> {
        Err((self.b.offset(of), message.into()))
    }

    fn fold(&mut self, range: Expr, vars: Vars, parts: Parts) -> Expr {
        let Parts { init, condition, step, result } = parts;
        let fold = Fold {
            range,
            var: vars.first,
            var2: vars.second,
            accumulator: vars.accumulator,
            init,
            condition,
            step,
            result,
        };
        self.expr(Kind::Fold(Box::new(fold)))
    }

    /// Binds `name` to `value` in `body`.
    fn bind(&mut self, name: &str, value: Expr, body: Expr) -> Expr {
        let range = self.list(Vec::new());
        let parts = Parts { init: value, condition: self.truth(false), step: self.ident(name), result: body };
        let vars = Vars { first: "#unused".into(), second: None, accumulator: name.into() };
        self.fold(range, vars, parts)
    }

    /// The same tree with ids of its own.
    fn copy(&mut self, expr: &Expr) -> Expr {
        let id = self.b.id(self.b.offset(expr));
        self.b.heights[id as usize] = self.b.heights[expr.id as usize];
        let kind = match &expr.kind {
            Kind::Select { operand, field, test_only } => Kind::Select {
                operand: Box::new(self.copy(operand)),
                field: field.clone(),
                test_only: *test_only,
            },
            Kind::Call { target, function, args } => Kind::Call {
                target: target.as_ref().map(|target| Box::new(self.copy(target))),
                function: function.clone(),
                args: args.iter().map(|arg| self.copy(arg)).collect(),
            },
            Kind::List { elements, optional } => Kind::List {
                elements: elements.iter().map(|e| self.copy(e)).collect(),
                optional: optional.clone(),
            },
            Kind::Map(entries) => Kind::Map(
                entries
                    .iter()
                    .map(|e| MapEntry {
                        key: self.copy(&e.key),
                        value: self.copy(&e.value),
                        optional: e.optional,
                    })
                    .collect(),
            ),
            Kind::Struct { name, fields } => {
                let mut copies = fields.clone();
                for (copy, field) in copies.iter_mut().zip(fields) {
                    copy.id = self.b.id(self.b.offsets[field.id as usize]);
                    copy.value = self.copy(&field.value);
                }
                Kind::Struct { name: name.clone(), fields: copies }
            }
            Kind::Fold(fold) => Kind::Fold(Box::new(Fold {
                range: self.copy(&fold.range),
                init: self.copy(&fold.init),
                condition: self.copy(&fold.condition),
                step: self.copy(&fold.step),
                result: self.copy(&fold.result),
                ..(**fold).clone()
            })),
            leaf => leaf.clone(),
        };
        Expr { id, kind }
    }
}

struct Vars {
    first: Arc<str>,
    second: Option<Arc<str>>,
    accumulator: Arc<str>,
}

struct Parts {
    init: Expr,
    condition: Expr,
    step: Expr,
    result: Expr,
}

fn overwrites(name: &str) -> bool {
    name == ACCUMULATOR || name == "__result__"
}

/// The loop's variables off the front of the arguments: one, or two where `two`.
fn variables(m: &Maker<'_>, args: &mut Vec<Expr>, two: bool, plain: &str) -> Result<Vars, Misuse> {
    let clash = "iteration variable overwrites accumulator variable";
    let name = |expr: &Expr| match &expr.kind {
        Kind::Ident(name) => Ok(name.clone()),
        _ => m.misuse(expr, plain),
    };
    let first_arg = args.remove(0);
    let first = name(&first_arg)?;
    if !two {
        if overwrites(&first) {
            return m.misuse(&first_arg, clash);
        }
        return Ok(Vars { first, second: None, accumulator: ACCUMULATOR.into() });
    }
    let second_arg = args.remove(0);
    let second = name(&second_arg)?;
    if first == second {
        return m.misuse(&second_arg, format!("duplicate variable name: {first}"));
    }
    for (name, arg) in [(&first, &first_arg), (&second, &second_arg)] {
        if overwrites(name) {
            return m.misuse(arg, clash);
        }
    }
    Ok(Vars { first, second: Some(second), accumulator: ACCUMULATOR.into() })
}

const SIMPLE: &str = "argument must be a simple name";

fn all(m: &mut Maker<'_>, target: Expr, mut args: Vec<Expr>) -> Expansion {
    let two = args.len() == 3;
    let vars = variables(m, &mut args, two, SIMPLE)?;
    let (init, so_far, before) = (m.truth(true), m.result(), m.result());
    args.insert(0, before);
    let parts = Parts {
        init,
        condition: m.call(op::NOT_STRICTLY_FALSE, vec![so_far]),
        step: m.call(op::AND, args),
        result: m.result(),
    };
    Ok(m.fold(target, vars, parts))
}

fn exists(m: &mut Maker<'_>, target: Expr, mut args: Vec<Expr>) -> Expansion {
    let two = args.len() == 3;
    let vars = variables(m, &mut args, two, SIMPLE)?;
    let (init, so_far, before) = (m.truth(false), m.result(), m.result());
    args.insert(0, before);
    let not = m.call(op::NOT, vec![so_far]);
    let parts = Parts {
        init,
        condition: m.call(op::NOT_STRICTLY_FALSE, vec![not]),
        step: m.call(op::OR, args),
        result: m.result(),
    };
    Ok(m.fold(target, vars, parts))
}

fn exists_one(m: &mut Maker<'_>, target: Expr, mut args: Vec<Expr>) -> Expansion {
    let two = args.len() == 3;
    let vars = variables(m, &mut args, two, SIMPLE)?;
    let (before, one) = (m.result(), m.literal(Literal::Int(1)));
    let more = m.call(op::ADD, vec![before, one]);
    let same = m.result();
    args.extend([more, same]);
    let (end, one) = (m.result(), m.literal(Literal::Int(1)));
    let parts = Parts {
        init: m.literal(Literal::Int(0)),
        condition: m.truth(true),
        step: m.call(op::CONDITIONAL, args),
        result: m.call(op::EQ, vec![end, one]),
    };
    Ok(m.fold(target, vars, parts))
}

/// A loop that appends `[transform]` where the filter holds.
fn collect(m: &mut Maker<'_>, target: Expr, vars: Vars, filter: Option<Expr>, transform: Expr) -> Expr {
    let (before, element) = (m.result(), m.list(vec![transform]));
    let step = m.call(op::ADD, vec![before, element]);
    let step = when(m, filter, step);
    let parts = Parts { init: m.list(Vec::new()), condition: m.truth(true), step, result: m.result() };
    m.fold(target, vars, parts)
}

/// `filter ? step : @result`.
fn when(m: &mut Maker<'_>, filter: Option<Expr>, step: Expr) -> Expr {
    let Some(filter) = filter else { return step };
    let same = m.result();
    m.call(op::CONDITIONAL, vec![filter, step, same])
}

fn map(m: &mut Maker<'_>, target: Expr, mut args: Vec<Expr>) -> Expansion {
    let vars = variables(m, &mut args, false, "argument is not an identifier")?;
    let filter = (args.len() == 2).then(|| args.remove(0));
    let transform = args.remove(0);
    Ok(collect(m, target, vars, filter, transform))
}

fn filter(m: &mut Maker<'_>, target: Expr, mut args: Vec<Expr>) -> Expansion {
    let element = args[0].clone();
    let vars = variables(m, &mut args, false, "argument is not an identifier")?;
    let filter = Some(args.remove(0));
    Ok(collect(m, target, vars, filter, element))
}

fn transform_list(m: &mut Maker<'_>, target: Expr, mut args: Vec<Expr>) -> Expansion {
    let vars = variables(m, &mut args, true, SIMPLE)?;
    let filter = (args.len() == 2).then(|| args.remove(0));
    let transform = args.remove(0);
    Ok(collect(m, target, vars, filter, transform))
}

fn insert(m: &mut Maker<'_>, target: Expr, mut args: Vec<Expr>, with_key: bool) -> Expansion {
    let vars = variables(m, &mut args, true, SIMPLE)?;
    let filter = (args.len() == 2).then(|| args.remove(0));
    let mut call = vec![m.result()];
    if with_key {
        call.push(m.ident(&vars.first));
    }
    call.append(&mut args);
    let step = m.call("cel.@mapInsert", call);
    let step = when(m, filter, step);
    let parts =
        Parts { init: m.expr(Kind::Map(Vec::new())), condition: m.truth(true), step, result: m.result() };
    Ok(m.fold(target, vars, parts))
}

fn transform_map(m: &mut Maker<'_>, target: Expr, args: Vec<Expr>) -> Expansion {
    insert(m, target, args, true)
}

fn transform_map_entry(m: &mut Maker<'_>, target: Expr, args: Vec<Expr>) -> Expansion {
    insert(m, target, args, false)
}

fn optional(m: &mut Maker<'_>, target: Expr, args: &mut Vec<Expr>, name: &str, wrap: bool) -> Expansion {
    let var = match &args[0].kind {
        Kind::Ident(name) => name.clone(),
        _ => return m.misuse(&args[0], format!("{name}() variable name must be a simple identifier")),
    };
    let body = args.remove(1);
    let copy = m.copy(&target);
    let value = m.member_call("value", copy, Vec::new());
    let mut bound = m.bind(&var, value, body);
    if wrap {
        bound = m.call("optional.of", vec![bound]);
    }
    let present = m.member_call("hasValue", target, Vec::new());
    let none = m.call("optional.none", Vec::new());
    Ok(m.call(op::CONDITIONAL, vec![present, bound, none]))
}

fn opt_map(m: &mut Maker<'_>, target: Expr, mut args: Vec<Expr>) -> Expansion {
    optional(m, target, &mut args, "optMap", true)
}

fn opt_flat_map(m: &mut Maker<'_>, target: Expr, mut args: Vec<Expr>) -> Expansion {
    optional(m, target, &mut args, "optFlatMap", false)
}

fn sort_by(m: &mut Maker<'_>, target: Expr, args: Vec<Expr>) -> Expansion {
    const INPUT: &str = "@__sortBy_input__";
    let sortable = matches!(
        target.kind,
        Kind::List { .. } | Kind::Select { .. } | Kind::Ident(_) | Kind::Fold(_) | Kind::Call { .. }
    );
    if !sortable {
        let message =
            "sortBy can only be applied to a list, identifier, comprehension, call or select expression";
        return m.misuse(&target, message);
    }
    let (range, receiver) = (m.ident(INPUT), m.ident(INPUT));
    let keys = map(m, range, args)?;
    let sorted = m.member_call("@sortByAssociatedKeys", receiver, vec![keys]);
    Ok(m.bind(INPUT, target, sorted))
}

fn is_cel(target: &Expr) -> bool {
    matches!(&target.kind, Kind::Ident(name) if &**name == "cel")
}

fn bind(m: &mut Maker<'_>, _: Expr, mut args: Vec<Expr>) -> Expansion {
    let name = match &args[0].kind {
        Kind::Ident(name) => name.clone(),
        _ => return m.misuse(&args[0], "cel.bind() variable names must be simple identifiers"),
    };
    let body = args.remove(2);
    let value = args.remove(1);
    Ok(m.bind(&name, value, body))
}
