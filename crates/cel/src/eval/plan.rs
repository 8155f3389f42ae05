//! From the checked tree to what runs: names resolved, constants folded, patterns compiled.

use std::collections::HashMap;
use std::sync::Arc;

use super::attribute::{Attribute, Base, Qualifier};
use super::run;
use crate::ast::{Expr, Fold, Kind, Literal, op};
use crate::checker::{Checked, Reference};
use crate::env::type_by_name;
use crate::library::regex::{self, Regex};
use crate::types::Type;
use crate::value::{Fault, Key, Map, Value};

#[derive(Debug)]
pub(super) enum Node {
    Const(Value),
    Attribute(Box<Attribute>),
    /// `has(…)`: whether the last qualifier finds something.
    Test(Box<Attribute>),
    And(Vec<Node>),
    Or(Vec<Node>),
    Equal(Box<[Node; 2]>),
    NotEqual(Box<[Node; 2]>),
    Call(Box<Call>),
    OptionalOr(Box<[Node; 2]>),
    OptionalOrValue(Box<[Node; 2]>),
    Member(Box<Member>),
    List {
        elements: Vec<Node>,
        optional: Vec<bool>,
    },
    Map(Vec<(Node, Node, bool)>),
    Record {
        name: Arc<str>,
        fields: Vec<(Arc<str>, Node, bool)>,
    },
    Fold(Box<FoldNode>),
}

#[derive(Debug)]
pub(super) struct Call {
    pub(super) function: &'static str,
    /// The overload, where only one is meant.
    pub(super) overload: Option<&'static str>,
    pub(super) args: Vec<Node>,
    /// The pattern, where it is constant.
    pub(super) pattern: Option<Regex>,
}

/// `x in [constants]`.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) value: Node,
    keys: HashMap<Key, ()>,
    doubles: Vec<f64>,
}

#[derive(Debug)]
pub(super) struct FoldNode {
    pub(super) range: Node,
    pub(super) init: Node,
    pub(super) condition: Node,
    pub(super) step: Node,
    pub(super) result: Node,
    /// Where the accumulator and the variables are kept.
    pub(super) slot: usize,
    pub(super) two: bool,
}

/// Slots a loop takes: accumulator, first and second variable.
const SLOTS: usize = 3;

/// The program of a checked expression and the number of slots it needs.
///
/// # Errors
/// Constants without a value.
pub(super) fn plan(checked: &Checked) -> Result<(Node, usize), Fault> {
    let mut planner = Planner { checked, scopes: Vec::new(), slots: 0 };
    let root = planner.plan(&checked.expr)?;
    Ok((root, planner.slots))
}

struct Planner<'a> {
    checked: &'a Checked,
    /// Variables of loops and their slots, innermost last.
    scopes: Vec<(Arc<str>, usize)>,
    slots: usize,
}

impl Planner<'_> {
    fn plan(&mut self, expr: &Expr) -> Result<Node, Fault> {
        match &expr.kind {
            Kind::Unspecified => Err(Fault::new("unsupported expr")),
            Kind::Literal(literal) => Ok(Node::Const(constant(literal))),
            Kind::Ident(name) => self.ident(expr, name),
            Kind::Select { operand, field, test_only } => {
                let mut attribute = self.attribute(operand)?;
                attribute.push(Qualifier::constant(Value::String(field.clone()), false));
                let node = Box::new(attribute);
                Ok(if *test_only { Node::Test(node) } else { Node::Attribute(node) })
            }
            Kind::Call { .. } => self.call(expr),
            Kind::List { elements, optional } => {
                let elements: Vec<Node> = self.all(elements)?;
                let constants = elements.iter().map(as_const).collect::<Option<Vec<_>>>();
                if let Some(items) = constants.filter(|_| !optional.contains(&true)) {
                    return Ok(Node::Const(Value::list(items)));
                }
                Ok(Node::List { elements, optional: optional.clone() })
            }
            Kind::Map(entries) => {
                let mut planned = Vec::with_capacity(entries.len());
                for entry in entries {
                    planned.push((self.plan(&entry.key)?, self.plan(&entry.value)?, entry.optional));
                }
                let folded: Option<Map> = planned
                    .iter()
                    .map(|(key, value, optional)| {
                        let key = as_const(key)?.as_key()?;
                        as_const(value).filter(|_| !optional).map(|value| (key, value))
                    })
                    .collect();
                match folded.filter(|map| map.len() == planned.len()) {
                    Some(map) => Ok(Node::Const(Value::Map(Arc::new(map)))),
                    None => Ok(Node::Map(planned)),
                }
            }
            Kind::Struct { name, fields } => {
                let mut planned = Vec::with_capacity(fields.len());
                for field in fields {
                    planned.push((field.name.clone(), self.plan(&field.value)?, field.optional));
                }
                Ok(Node::Record { name: name.clone(), fields: planned })
            }
            Kind::Fold(fold) => self.fold(fold),
        }
    }

    fn all(&mut self, exprs: &[Expr]) -> Result<Vec<Node>, Fault> {
        exprs.iter().map(|expr| self.plan(expr)).collect()
    }

    fn ident(&mut self, expr: &Expr, name: &Arc<str>) -> Result<Node, Fault> {
        let slot = self.scopes.iter().rev().find(|(var, _)| var == name).map(|(_, slot)| *slot);
        if slot.is_none()
            && matches!(self.checked.type_of(expr), Type::Type(_))
            && matches!(self.checked.references.get(&expr.id), Some(Reference::Ident(_)))
        {
            let undefined = || Fault::new(format!("reference to undefined type: {name}"));
            return type_by_name(name).map(|of| Node::Const(Value::Type(of))).ok_or_else(undefined);
        }
        let base = slot.map_or_else(|| Base::Variable(name.clone()), Base::Slot);
        Ok(Node::Attribute(Box::new(Attribute::new(base))))
    }

    /// The operand of a selection as an attribute that qualifiers can be added to.
    fn attribute(&mut self, operand: &Expr) -> Result<Attribute, Fault> {
        Ok(match self.plan(operand)? {
            Node::Attribute(attribute) => *attribute,
            other => Attribute::new(Base::Value(other)),
        })
    }

    fn fold(&mut self, fold: &Fold) -> Result<Node, Fault> {
        let slot = self.slots;
        self.slots += SLOTS;
        let init = self.plan(&fold.init)?;
        let range = self.plan(&fold.range)?;
        let depth = self.scopes.len();
        self.scopes.push((fold.accumulator.clone(), slot));
        self.scopes.push((fold.var.clone(), slot + 1));
        if let Some(var2) = &fold.var2 {
            self.scopes.push((var2.clone(), slot + 2));
        }
        let condition = self.plan(&fold.condition)?;
        let step = self.plan(&fold.step)?;
        self.scopes.truncate(depth + 1);
        let result = self.plan(&fold.result)?;
        self.scopes.truncate(depth);
        let two = fold.var2.is_some();
        Ok(Node::Fold(Box::new(FoldNode { range, init, condition, step, result, slot, two })))
    }

    fn call(&mut self, expr: &Expr) -> Result<Node, Fault> {
        let Kind::Call { target, function, args } = &expr.kind else {
            return Err(Fault::new("unsupported expr"));
        };
        let mut nodes = Vec::with_capacity(args.len() + 1);
        if let Some(target) = target {
            nodes.push(self.plan(target)?);
        }
        nodes.extend(self.all(args)?);
        match &**function {
            op::AND => return Ok(Node::And(nodes)),
            op::OR => return Ok(Node::Or(nodes)),
            op::EQ => return Ok(Node::Equal(pair(nodes)?)),
            op::NE => return Ok(Node::NotEqual(pair(nodes)?)),
            op::INDEX => return index(*pair(nodes)?, false),
            op::OPT_INDEX | op::OPT_SELECT => return index(*pair(nodes)?, true),
            op::CONDITIONAL => return conditional(nodes),
            _ => {}
        }
        let overload = match self.checked.overloads(expr) {
            [one] => Some(*one),
            _ => None,
        };
        match (&**function, overload) {
            ("or", Some("optional_or_optional") | None) => return Ok(Node::OptionalOr(pair(nodes)?)),
            ("orValue", Some("optional_orValue_value") | None) => {
                return Ok(Node::OptionalOrValue(pair(nodes)?));
            }
            (op::IN, Some("in_list")) => {
                if let [_, Node::Const(list)] = nodes.as_slice()
                    && let Some((keys, doubles)) = members(list)
                {
                    if keys.is_empty() && doubles.is_empty() {
                        return Ok(Node::Const(Value::Bool(false)));
                    }
                    let [value, _] = *pair(nodes)?;
                    return Ok(Node::Member(Box::new(Member { value, keys, doubles })));
                }
            }
            _ => {}
        }
        let name = crate::functions::find(function).map_or("", |function| function.name);
        let pattern = match (name, nodes.get(1)) {
            ("matches" | "find" | "findAll", Some(Node::Const(Value::String(pattern)))) => {
                Some(regex::compile(pattern).map_err(Fault::new)?)
            }
            _ => None,
        };
        let call = Call { function: name, overload, args: nodes, pattern };
        if is_conversion(name) && matches!(call.args.as_slice(), [Node::Const(_)]) {
            let none: [(&str, Value); 0] = [];
            let mut machine = run::Machine::new(&none, u64::MAX, 0, None);
            return Ok(Node::Const(machine.eval(&Node::Call(Box::new(call)))?));
        }
        Ok(Node::Call(Box::new(call)))
    }
}

fn is_conversion(function: &str) -> bool {
    matches!(
        function,
        "bool" | "bytes" | "double" | "duration" | "dyn" | "int" | "string" | "timestamp" | "type" | "uint"
    )
}

fn pair(nodes: Vec<Node>) -> Result<Box<[Node; 2]>, Fault> {
    let pair: [Node; 2] = nodes.try_into().map_err(|_| Fault::no_overload())?;
    Ok(Box::new(pair))
}

fn index([operand, index]: [Node; 2], optional: bool) -> Result<Node, Fault> {
    let mut attribute = match operand {
        Node::Attribute(attribute) => *attribute,
        other => Attribute::new(Base::Value(other)),
    };
    let qualifier = match index {
        Node::Const(value) => Qualifier::constant(value, optional),
        Node::Attribute(inner) => Qualifier::computed(*inner, optional),
        other => Qualifier::computed(Attribute::new(Base::Value(other)), optional),
    };
    attribute.push(qualifier);
    Ok(Node::Attribute(Box::new(attribute)))
}

fn conditional(nodes: Vec<Node>) -> Result<Node, Fault> {
    let [condition, yes, no]: [Node; 3] = nodes.try_into().map_err(|_| Fault::no_overload())?;
    let branch = |node| match node {
        Node::Attribute(attribute) => *attribute,
        other => Attribute::new(Base::Value(other)),
    };
    let base = Base::Conditional { condition, yes: Box::new(branch(yes)), no: Box::new(branch(no)) };
    Ok(Node::Attribute(Box::new(Attribute::new(base))))
}

fn as_const(node: &Node) -> Option<Value> {
    match node {
        Node::Const(value) => Some(value.clone()),
        _ => None,
    }
}

fn constant(literal: &Literal) -> Value {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(value) => Value::Bool(*value),
        Literal::Int(value) => Value::Int(*value),
        Literal::Uint(value) => Value::Uint(*value),
        Literal::Double(value) => Value::Double(*value),
        Literal::String(text) => Value::String(text.clone()),
        Literal::Bytes(bytes) => Value::Bytes(bytes.clone()),
    }
}

/// A number as the key that all numbers equal to it have.
fn number_key(value: &Value) -> Option<Key> {
    match value {
        Value::Uint(value) => Some(i64::try_from(*value).map_or(Key::Uint(*value), Key::Int)),
        #[expect(clippy::cast_possible_truncation, reason = "bounded before")]
        Value::Double(value) if value.fract() == 0.0 && value.abs() < 9e18 => Some(Key::Int(*value as i64)),
        other => other.as_key(),
    }
}

/// The elements of a constant list, if all can be looked up.
fn members(list: &Value) -> Option<(HashMap<Key, ()>, Vec<f64>)> {
    let Value::List(list) = list else { return None };
    let (mut keys, mut doubles) = (HashMap::new(), Vec::new());
    for value in list {
        match (number_key(value), value) {
            (Some(key), _) => {
                keys.insert(key, ());
            }
            (None, Value::Double(double)) => doubles.push(*double),
            _ => return None,
        }
    }
    Some((keys, doubles))
}

impl Member {
    pub(super) fn has(&self, value: &Value) -> bool {
        match (number_key(value), value) {
            (Some(key), _) => self.keys.contains_key(&key),
            (None, Value::Double(double)) => self.doubles.contains(double),
            _ => false,
        }
    }
}
