//! Attributes: a variable or value and the fields and elements selected from it, one after the other.

use std::sync::Arc;

use super::plan::Node;
use super::run::Machine;
use crate::value::{Fault, Value, find};

#[derive(Debug)]
pub(super) enum Base {
    Variable(Arc<str>),
    /// A variable of a loop.
    Slot(usize),
    Value(Node),
    Conditional {
        condition: Node,
        yes: Box<Attribute>,
        no: Box<Attribute>,
    },
}

#[derive(Debug)]
pub(super) struct Attribute {
    base: Base,
    qualifiers: Vec<Qualifier>,
}

#[derive(Clone, Debug)]
pub(super) struct Qualifier {
    step: Step,
    optional: bool,
}

#[derive(Clone, Debug)]
enum Step {
    Constant(Value),
    Computed(Arc<Attribute>),
}

impl Qualifier {
    pub(super) fn constant(value: Value, optional: bool) -> Self {
        Self { step: Step::Constant(value), optional }
    }

    pub(super) fn computed(attribute: Attribute, optional: bool) -> Self {
        Self { step: Step::Computed(Arc::new(attribute)), optional }
    }
}

impl Attribute {
    pub(super) fn new(base: Base) -> Self {
        Self { base, qualifiers: Vec::new() }
    }

    /// Selects from what is selected so far; of a conditional, from both branches.
    pub(super) fn push(&mut self, qualifier: Qualifier) {
        match &mut self.base {
            Base::Conditional { yes, no, .. } => {
                yes.push(qualifier.clone());
                no.push(qualifier);
            }
            _ => self.qualifiers.push(qualifier),
        }
    }

    /// The slot it reads, if it is a loop's variable and nothing is selected.
    pub(super) fn slot(&self) -> Option<usize> {
        match self.base {
            Base::Slot(slot) if self.qualifiers.is_empty() => Some(slot),
            _ => None,
        }
    }

    /// Whether reading it counts for more than its parts.
    fn has_base_cost(&self) -> bool {
        !matches!(self.base, Base::Conditional { .. })
    }
}

/// Whether something is there, and what.
enum Found {
    Value(Value),
    Missing(Fault),
}

impl Machine<'_> {
    /// The value of an attribute, counted as one read.
    pub(super) fn read(&mut self, attribute: &Attribute) -> Result<Value, Fault> {
        let value = self.resolve(attribute, false);
        if attribute.has_base_cost() {
            self.charge(1)?;
        }
        value
    }

    /// Whether the last qualifier of an attribute finds something.
    pub(super) fn test(&mut self, attribute: &Attribute) -> Result<Value, Fault> {
        match self.resolve(attribute, true)? {
            Value::Optional(value) => Ok(Value::Bool(value.is_some())),
            value => Ok(value),
        }
    }

    fn resolve(&mut self, attribute: &Attribute, test: bool) -> Result<Value, Fault> {
        let base = match &attribute.base {
            Base::Variable(name) => match self.variable(name) {
                Some(value) => value.map_err(Fault::Error)?.valid()?,
                None => return Err(Fault::new(format!("no such attribute(s): {name}"))),
            },
            Base::Slot(slot) => self.slot(*slot)?,
            Base::Value(node) => self.eval(node)?,
            Base::Conditional { condition, yes, no } => {
                return match self.eval(condition)? {
                    Value::Bool(true) => self.resolve(yes, test),
                    Value::Bool(false) => self.resolve(no, test),
                    _ => Err(Fault::no_overload()),
                };
            }
        };
        self.qualify(base, &attribute.qualifiers, test)
    }

    fn qualify(&mut self, base: Value, qualifiers: &[Qualifier], test: bool) -> Result<Value, Fault> {
        let (mut at, mut optional) = match base {
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(value)) => ((*value).clone(), true),
            value => (value, false),
        };
        for (i, qualifier) in qualifiers.iter().enumerate() {
            let tested = test && i + 1 == qualifiers.len();
            optional |= qualifier.optional;
            let found = match &qualifier.step {
                Step::Constant(index) => select(&at, index),
                Step::Computed(inner) => {
                    let index = self.resolve(inner, false)?;
                    select(&at, &index)
                }
            };
            if tested {
                self.charge(1)?;
                let found = matches!(found?, Found::Value(_));
                return Ok(if optional { Value::some(Value::Bool(found)) } else { Value::Bool(found) });
            }
            match found {
                Ok(Found::Missing(_)) if optional => return Ok(Value::Optional(None)),
                Ok(Found::Value(value)) => {
                    self.charge(1)?;
                    at = value.valid()?;
                }
                Ok(Found::Missing(fault)) | Err(fault) => {
                    if !optional {
                        self.charge(1)?;
                    }
                    return Err(fault);
                }
            }
        }
        Ok(if optional { Value::some(at) } else { at })
    }
}

/// What is at `index` of a value.
fn select(of: &Value, index: &Value) -> Result<Found, Fault> {
    let missing_key = || Found::Missing(Fault::new(format!("no such key: {index}")));
    Ok(match of {
        Value::Map(map) => find(map, index).cloned().map_or_else(missing_key, Found::Value),
        Value::List(list) => {
            let at = match index {
                Value::Int(at) => i128::from(*at),
                Value::Uint(at) => i128::from(*at),
                #[expect(clippy::cast_possible_truncation, reason = "whole, and bounded by the cast")]
                Value::Double(at) if at.fract() == 0.0 => *at as i128,
                Value::Double(_) => {
                    return Err(Fault::new(format!("unsupported index value {index} in list")));
                }
                other => {
                    let name = other.type_of();
                    return Err(Fault::new(format!("unsupported index type '{}' in list", name.type_name())));
                }
            };
            let found = u64::try_from(at).ok().and_then(|at| list.get(at).cloned());
            let missing = || Found::Missing(Fault::new(format!("index out of bounds: {index}")));
            found.map_or_else(missing, Found::Value)
        }
        Value::Record(record) => {
            let found = index.as_str().and_then(|name| record.fields.get(name)).cloned();
            found.map_or_else(missing_key, Found::Value)
        }
        Value::Lookup(lookup) => match index.as_str().and_then(|name| lookup.get(name)) {
            Some(Ok(value)) => Found::Value(value),
            Some(Err(why)) => return Err(Fault::new(why)),
            None => missing_key(),
        },
        _ => missing_key(),
    })
}
