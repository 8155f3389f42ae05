//! What an expression may cost, estimated from its form and the sizes that schemas bound.

mod calls;
mod library;

use std::collections::HashMap;
use std::sync::Arc;

use crate::ast::{Expr, Fold, Id, Kind, Literal, op};
use crate::checker::Checked;
use crate::schema::DeclType;
use crate::types::Type;

pub(crate) use self::library::selector_cost;

pub(crate) const STRING_FACTOR: f64 = 0.1;
pub(crate) const REGEX_FACTOR: f64 = 0.25;
pub(crate) const LIST_COST: u64 = 10;
pub(crate) const MAP_COST: u64 = 30;
pub(crate) const RECORD_COST: u64 = 40;

/// Library functions that cost one unit whatever they are called on.
const UNIT_COST: &[&str] = &[
    "serviceAccount",
    "path",
    "group",
    "resource",
    "subresource",
    "namespace",
    "name",
    "allowed",
    "reason",
    "error",
    "errored",
    "masked",
    "prefixLength",
    "family",
    "isUnspecified",
    "isLoopback",
    "isLinkLocalMulticast",
    "isLinkLocalUnicast",
    "isGlobalUnicast",
    "format.named",
    "sign",
    "asInteger",
    "isInteger",
    "asApproximateFloat",
    "isGreaterThan",
    "isLessThan",
    "compareTo",
    "add",
    "sub",
    "major",
    "minor",
    "patch",
    "getScheme",
    "getHostname",
    "getHost",
    "getPort",
    "getEscapedPath",
    "getQuery",
];

/// Overloads that look at both operands until they differ.
const COMPARING: &[&str] = &[
    "less_string",
    "greater_string",
    "less_equals_string",
    "greater_equals_string",
    "less_bytes",
    "greater_bytes",
    "less_equals_bytes",
    "greater_equals_bytes",
    "equals",
    "not_equals",
];

/// Whether a library function costs one unit, estimated and in fact.
pub(crate) fn is_unit(function: &str) -> bool {
    UNIT_COST.contains(&function)
}

/// Whether an overload compares its operands piece by piece.
pub(crate) fn is_comparing(overload: &str) -> bool {
    COMPARING.contains(&overload)
}

/// Between `min` and `max`: a size or a cost. Sums and products saturate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// At least.
    pub min: u64,
    /// At most.
    pub max: u64,
}

impl Estimate {
    pub(crate) const UNKNOWN: Self = Self { min: 0, max: u64::MAX };

    pub(crate) fn fixed(value: u64) -> Self {
        Self { min: value, max: value }
    }

    fn add(self, other: Self) -> Self {
        Self { min: self.min.saturating_add(other.min), max: self.max.saturating_add(other.max) }
    }

    fn times(self, other: Self) -> Self {
        Self { min: self.min.saturating_mul(other.min), max: self.max.saturating_mul(other.max) }
    }

    fn scaled(self, factor: f64) -> Self {
        Self { min: scale(self.min, factor), max: scale(self.max, factor) }
    }

    fn union(self, other: Self) -> Self {
        Self { min: self.min.min(other.min), max: self.max.max(other.max) }
    }
}

/// `ceil(value * factor)`, saturating.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "as upstream; the cast of floats saturates"
)]
pub(crate) fn scale(value: u64, factor: f64) -> u64 {
    (value as f64 * factor).ceil() as u64
}

/// Bounds of the size of what is at a path, such as `["self", "items", "@items", "name"]`.
pub trait SizeHints {
    /// The largest size, if it is known.
    fn max_size(&self, path: &[Arc<str>]) -> Option<u64>;
}

/// Nothing is known of sizes.
impl SizeHints for () {
    fn max_size(&self, _: &[Arc<str>]) -> Option<u64> {
        None
    }
}

/// Whatever the first name of the path, the rest is looked up in this type.
impl SizeHints for Arc<DeclType> {
    fn max_size(&self, path: &[Arc<str>]) -> Option<u64> {
        let mut at = self;
        for name in path.get(1..)? {
            at = match &**name {
                "@items" | "@values" => at.element.as_ref()?,
                "@keys" => at.key.as_ref()?,
                name => at.fields.as_ref()?.get(name)?,
            };
        }
        Some(u64::try_from(at.max).unwrap_or(u64::MAX))
    }
}

impl Checked {
    /// Between which bounds the cost of evaluating the expression is.
    pub fn cost(&self, hints: &(dyn SizeHints + Sync)) -> Estimate {
        crate::deep::run(self.depth, || {
            let mut coster = Coster {
                checked: self,
                hints,
                paths: HashMap::new(),
                locals: Vec::new(),
                sizes: HashMap::new(),
                entries: HashMap::new(),
            };
            coster.cost(&self.expr)
        })
    }
}

type Path = Vec<Arc<str>>;

/// Sizes of the keys and values of what is looped over.
#[derive(Clone, Copy)]
struct Entries {
    list: bool,
    key: Estimate,
    value: Estimate,
}

impl Entries {
    fn union(self, other: Self) -> Self {
        Self { list: self.list, key: self.key.union(other.key), value: self.value.union(other.value) }
    }
}

struct Local {
    name: Arc<str>,
    path: Path,
    size: Option<Estimate>,
    entries: Option<Entries>,
}

/// What the cost of a call looks at: an argument, or the elements of one.
struct Node<'a> {
    path: Path,
    of: Type,
    expr: Option<&'a Expr>,
    size: Option<Estimate>,
}

struct Coster<'a> {
    checked: &'a Checked,
    hints: &'a (dyn SizeHints + Sync),
    paths: HashMap<Id, Path>,
    /// Variables of loops, innermost last.
    locals: Vec<Local>,
    sizes: HashMap<Id, Estimate>,
    entries: HashMap<Id, Entries>,
}

impl<'a> Coster<'a> {
    fn cost(&mut self, expr: &'a Expr) -> Estimate {
        match &expr.kind {
            Kind::Unspecified | Kind::Literal(_) => Estimate::fixed(0),
            Kind::Ident(name) => {
                let path = match self.local(name) {
                    Some(local) => local.path.clone(),
                    None => vec![name.clone()],
                };
                self.paths.insert(expr.id, path);
                Estimate::fixed(1)
            }
            Kind::Select { operand, test_only: true, .. } => self.cost(operand),
            Kind::Select { operand, field, .. } => {
                let mut sum = self.cost(operand);
                if matches!(self.type_of(operand), Type::Map(..) | Type::Object(_) | Type::Param(_)) {
                    sum = sum.add(Estimate::fixed(1));
                }
                let mut path = self.path(operand);
                path.push(field.clone());
                self.paths.insert(expr.id, path);
                sum
            }
            Kind::Call { .. } => self.call(expr),
            Kind::List { elements, .. } => self.list(expr, elements),
            Kind::Map(entries) => {
                let (mut sum, mut keys, mut values) = (Estimate::fixed(MAP_COST), None, None);
                for entry in entries {
                    sum = sum.add(self.cost(&entry.key)).add(self.cost(&entry.value));
                    keys = Some(widen(keys, self.size_or_unknown(&entry.key)));
                    values = Some(widen(values, self.size_or_unknown(&entry.value)));
                }
                let zero = Estimate::fixed(0);
                let sizes = Entries { list: false, key: keys.unwrap_or(zero), value: values.unwrap_or(zero) };
                self.entries.insert(expr.id, sizes);
                sum
            }
            Kind::Struct { fields, .. } => {
                let costs: Vec<Estimate> = fields.iter().map(|field| self.cost(&field.value)).collect();
                costs.into_iter().fold(Estimate::fixed(RECORD_COST), Estimate::add)
            }
            Kind::Fold(fold) if fold.is_bind() => self.bind(expr, fold),
            Kind::Fold(fold) => self.fold(expr, fold),
        }
    }

    fn list(&mut self, expr: &Expr, elements: &'a [Expr]) -> Estimate {
        let (mut sum, mut sizes) = (Estimate::fixed(LIST_COST), None);
        for element in elements {
            sum = sum.add(self.cost(element));
            sizes = Some(widen(sizes, self.size_or_unknown(element)));
        }
        let value = sizes.unwrap_or(Estimate::fixed(0));
        self.entries.insert(expr.id, Entries { list: true, key: Estimate::fixed(1), value });
        sum
    }

    fn type_of(&self, expr: &Expr) -> &Type {
        self.checked.type_of(expr)
    }

    fn local(&self, name: &str) -> Option<&Local> {
        self.locals.iter().rev().find(|local| &*local.name == name)
    }

    fn path(&self, expr: &Expr) -> Path {
        if let Kind::Ident(name) = &expr.kind
            && let Some(local) = self.local(name)
        {
            return local.path.clone();
        }
        self.paths.get(&expr.id).cloned().unwrap_or_default()
    }

    fn node(&mut self, expr: &'a Expr) -> Node<'a> {
        let mut path = self.path(expr);
        if path.first().is_some_and(|name| matches!(&**name, "@result" | "__result__")) {
            path.clear();
        }
        Node { path, of: self.type_of(expr).clone(), size: self.size(expr), expr: Some(expr) }
    }

    fn hint(&self, path: &[Arc<str>]) -> Option<Estimate> {
        if path.is_empty() {
            return None;
        }
        self.hints.max_size(path).map(|max| Estimate { min: 0, max })
    }

    fn size(&mut self, expr: &Expr) -> Option<Estimate> {
        if let Some(known) = self.sizes.get(&expr.id) {
            return Some(*known);
        }
        if let Some(size) = literal_size(expr) {
            return Some(Estimate::fixed(size));
        }
        if let Some(hint) = self.hint(&self.path(expr)) {
            self.sizes.insert(expr.id, hint);
            return Some(hint);
        }
        if is_scalar(self.type_of(expr)) {
            return Some(Estimate::fixed(1));
        }
        match &expr.kind {
            Kind::Ident(name) => self.local(name).and_then(|local| local.size),
            _ => None,
        }
    }

    fn size_or_unknown(&mut self, expr: &Expr) -> Estimate {
        self.size(expr).unwrap_or(Estimate::UNKNOWN)
    }

    fn entries(&self, expr: &Expr) -> Option<Entries> {
        if let Some(known) = self.entries.get(&expr.id) {
            return Some(*known);
        }
        match &expr.kind {
            Kind::Ident(name) => self.local(name).and_then(|local| local.entries),
            _ => None,
        }
    }

    fn copy_sizes(&mut self, to: &Expr, from: &Expr) {
        if let Some(size) = self.size(from) {
            self.sizes.insert(to.id, size);
        }
        if let Some(entries) = self.entries(from) {
            self.entries.insert(to.id, entries);
        }
    }

    fn push(&mut self, name: &Arc<str>, expr: &Expr) {
        let (path, size, entries) = (self.path(expr), self.size(expr), self.entries(expr));
        self.locals.push(Local { name: name.clone(), path, size, entries });
    }

    /// Enters the variables of a loop.
    fn push_iteration(&mut self, fold: &Fold) {
        let entries = self.entries(&fold.range);
        let list = match entries {
            Some(entries) => entries.list,
            None => matches!(self.type_of(&fold.range), Type::List(_)),
        };
        let path = |part: &str, of: &Self| {
            let mut path = of.path(&fold.range);
            path.push(part.into());
            path
        };
        let (key, value) = (entries.map(|e| e.key), entries.map(|e| e.value));
        let (first, size) = match &fold.var2 {
            None if list => ("@items", value),
            None => ("@keys", key),
            Some(_) if list => ("@indices", key),
            Some(_) => ("@keys", key),
        };
        let local = Local { name: fold.var.clone(), path: path(first, self), size, entries: None };
        self.locals.push(local);
        if let Some(var2) = &fold.var2 {
            let second = if list { "@items" } else { "@values" };
            let path = path(second, self);
            self.locals.push(Local { name: var2.clone(), path, size: value, entries: None });
        }
    }

    fn fold(&mut self, expr: &Expr, fold: &'a Fold) -> Estimate {
        let mut sum = self.cost(&fold.range).add(self.cost(&fold.init));
        let depth = self.locals.len();
        self.push(&fold.accumulator, &fold.init);
        self.push_iteration(fold);
        let round = self.cost(&fold.condition);
        let round = self.cost(&fold.step).add(round);
        self.locals.truncate(depth + 1);
        sum = sum.add(self.cost(&fold.result));
        self.locals.truncate(depth);
        let count = self.size_or_unknown(&fold.range);
        sum = sum.add(count.times(round));
        match &fold.init.kind {
            Kind::Literal(_) => {
                if let Some(size) = self.size(&fold.init) {
                    self.sizes.insert(expr.id, size);
                }
            }
            Kind::List { .. } | Kind::Map(_) => {
                self.sizes.insert(expr.id, count);
                if let Some(entries) = self.entries(&fold.step) {
                    self.entries.insert(expr.id, entries);
                }
            }
            _ => {}
        }
        sum
    }

    fn bind(&mut self, expr: &Expr, fold: &'a Fold) -> Estimate {
        let sum = self.cost(&fold.range).add(self.cost(&fold.init));
        self.push(&fold.accumulator, &fold.init);
        let sum = sum.add(self.cost(&fold.result));
        self.locals.pop();
        self.copy_sizes(expr, &fold.result);
        sum
    }

    fn call(&mut self, expr: &'a Expr) -> Estimate {
        let Kind::Call { target, function, args } = &expr.kind else { return Estimate::fixed(0) };
        if let ("dyn", [arg]) = (&**function, args.as_slice()) {
            let cost = self.cost(arg).add(Estimate::fixed(1));
            self.copy_sizes(expr, arg);
            return cost;
        }
        let mut costs = Vec::with_capacity(args.len());
        let mut nodes = Vec::with_capacity(args.len());
        for arg in args {
            costs.push(self.cost(arg));
            nodes.push(self.node(arg));
        }
        let overloads = self.checked.overloads(expr);
        if overloads.is_empty() {
            return Estimate::fixed(0);
        }
        let mut sum = Estimate::fixed(0);
        let target = target.as_deref().map(|target| {
            sum = self.cost(target);
            self.node(target)
        });
        let mut total: Option<Estimate> = None;
        let mut result: Option<Estimate> = None;
        for overload in overloads {
            let call = calls::Call { function, overload, target: target.as_ref(), args: &nodes };
            let (cost, size) = self.call_cost(expr, &call, &costs);
            total = Some(widen(total, cost));
            result = match (result, size) {
                (Some(before), Some(size)) => Some(before.union(size)),
                (before, size) => before.or(size),
            };
            let part = match *overload {
                "index_list" => Some("@items"),
                "index_map" => Some("@values"),
                _ => None,
            };
            if let (Some(part), Some(of)) = (part, args.first()) {
                result = self.entries(of).map(|entries| entries.value);
                let mut path = self.path(of);
                path.push(part.into());
                self.paths.insert(expr.id, path);
            }
            if result.is_none() {
                result = self.size(expr);
            }
        }
        if let Some(size) = result {
            self.sizes.insert(expr.id, size);
        }
        sum.add(total.unwrap_or(Estimate::fixed(0)))
    }
}

fn widen(before: Option<Estimate>, size: Estimate) -> Estimate {
    before.map_or(size, |before| before.union(size))
}

fn literal_size(expr: &Expr) -> Option<u64> {
    Some(match &expr.kind {
        Kind::Literal(Literal::String(text)) => text.chars().count() as u64,
        Kind::Literal(Literal::Bytes(bytes)) => bytes.len() as u64,
        Kind::Literal(_) => 1,
        Kind::List { elements, .. } => elements.len() as u64,
        Kind::Map(entries) => entries.len() as u64,
        _ => return None,
    })
}

fn is_scalar(of: &Type) -> bool {
    match of {
        Type::Bool | Type::Double | Type::Duration | Type::Int | Type::Timestamp | Type::Uint => true,
        _ => of.optional_inner().is_some_and(is_scalar),
    }
}

/// Operators whose estimate is that of the language, not of a library.
fn is_logical(function: &str) -> bool {
    matches!(function, op::AND | op::OR | op::CONDITIONAL)
}
