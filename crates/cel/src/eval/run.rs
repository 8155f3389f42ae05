//! The machine: evaluates nodes and counts what that costs.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Activation;
use super::plan::{Call, Node};
use crate::cost::{LIST_COST, MAP_COST, RECORD_COST};
use crate::library::{self, actual};
use crate::value::{Fault, Fuel, List, Map, Record, Value, equal};

/// Elements that one evaluation may look at beyond what its cost bounds.
const FUEL: u64 = 20_000_000;

pub(crate) struct Machine<'a> {
    variables: &'a (dyn Activation + 'a),
    limit: u64,
    cost: u64,
    fuel: Fuel,
    /// Values of the variables of loops: accumulator, first, second.
    slots: Vec<Option<Result<Value, Fault>>>,
    stop: Option<&'a AtomicBool>,
}

impl<'a> Machine<'a> {
    pub(crate) fn new(
        variables: &'a (dyn Activation + 'a),
        limit: u64,
        slots: usize,
        stop: Option<&'a AtomicBool>,
    ) -> Self {
        Self { variables, limit, cost: 0, fuel: Fuel::new(FUEL), slots: vec![None; slots], stop }
    }

    pub(crate) fn cost(&self) -> u64 {
        self.cost
    }

    /// Counts `cost`.
    ///
    /// # Errors
    /// `OverBudget` beyond the limit.
    pub(super) fn charge(&mut self, cost: u64) -> Result<(), Fault> {
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.limit { Err(Fault::OverBudget) } else { Ok(()) }
    }

    pub(super) fn interrupted(&self) -> bool {
        self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }

    pub(super) fn variable(&self, name: &str) -> Option<Result<Value, String>> {
        self.variables.resolve(name)
    }

    /// The value of a loop's variable.
    pub(super) fn slot(&mut self, slot: usize) -> Result<Value, Fault> {
        match &self.slots[slot] {
            Some(value) => value.clone()?.valid(),
            None => Err(Fault::new("no such attribute(s): @result")),
        }
    }

    pub(super) fn set_slot(&mut self, slot: usize, value: Option<Result<Value, Fault>>) {
        self.slots[slot] = value;
    }

    pub(super) fn take_slot(&mut self, slot: usize) -> Option<Result<Value, Fault>> {
        self.slots[slot].take()
    }

    /// The value of a node.
    pub(crate) fn eval(&mut self, node: &Node) -> Result<Value, Fault> {
        match node {
            Node::Const(value) => Ok(value.clone()),
            Node::Attribute(attribute) => self.read(attribute),
            Node::Test(attribute) => self.test(attribute),
            Node::And(terms) => self.logical(terms, false),
            Node::Or(terms) => self.logical(terms, true),
            Node::Equal(pair) => self.equality(pair, true),
            Node::NotEqual(pair) => self.equality(pair, false),
            Node::Call(call) => self.call(call),
            Node::OptionalOr(pair) => match self.eval(&pair[0])? {
                Value::Optional(None) => self.eval(&pair[1]),
                other => Ok(other),
            },
            Node::OptionalOrValue(pair) => match self.eval(&pair[0])? {
                Value::Optional(None) => self.eval(&pair[1]),
                Value::Optional(Some(value)) => Ok((*value).clone()),
                other => Ok(other),
            },
            Node::Member(member) => {
                let value = self.eval(&member.value)?;
                Ok(Value::Bool(member.has(&value)))
            }
            Node::List { elements, optional } => {
                let list = self.list(elements, optional);
                self.charge(LIST_COST)?;
                list
            }
            Node::Map(entries) => {
                let map = self.map(entries);
                self.charge(MAP_COST)?;
                map
            }
            Node::Record { name, fields } => {
                let record = self.record(fields);
                self.charge(RECORD_COST)?;
                let fields = record?;
                library::patch::check_record(name, &fields)?;
                Ok(Value::Record(std::sync::Arc::new(Record { name: name.clone(), fields })))
            }
            Node::Fold(fold) => self.fold(fold),
        }
    }

    /// `&&` and `||`: the value that decides wins over errors, wherever it stands.
    fn logical(&mut self, terms: &[Node], decides: bool) -> Result<Value, Fault> {
        let mut error = None;
        for term in terms {
            match self.eval(term) {
                Ok(Value::Bool(value)) if value == decides => return Ok(Value::Bool(decides)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => {
                    error.get_or_insert_with(Fault::no_overload);
                }
                Err(Fault::OverBudget) => return Err(Fault::OverBudget),
                Err(fault) => {
                    error.get_or_insert(fault);
                }
            }
        }
        error.map_or(Ok(Value::Bool(!decides)), Err)
    }

    /// Evaluates an argument; errors are kept, for its siblings are evaluated as well.
    fn argument(&mut self, node: &Node) -> Result<Result<Value, String>, Fault> {
        match self.eval(node) {
            Ok(value) => Ok(Ok(value)),
            Err(Fault::Error(why)) => Ok(Err(why)),
            Err(Fault::OverBudget) => Err(Fault::OverBudget),
        }
    }

    fn equality(&mut self, pair: &[Node; 2], wanted: bool) -> Result<Value, Fault> {
        let (left, right) = (self.argument(&pair[0])?, self.argument(&pair[1])?);
        let (name, overload) = if wanted { ("_==_", "equals") } else { ("_!=_", "not_equals") };
        let args = [stand_in(&left), stand_in(&right)];
        let result = match (left, right) {
            (Err(why), _) | (_, Err(why)) => Err(Fault::Error(why)),
            (Ok(left), Ok(right)) => equal(&left, &right, &self.fuel),
        };
        let result = match (result, wanted) {
            (Err(Fault::OverBudget), _) => return Err(Fault::OverBudget),
            (Ok(same), _) => Ok(Value::Bool(same == wanted)),
            (Err(fault), true) => Err(fault),
            (Err(fault), false) if matches!(args, [Value::Invalid(_), _] | [_, Value::Invalid(_)]) => {
                Err(fault)
            }
            (Err(_), false) => Ok(Value::Bool(true)),
        };
        self.charge(actual::cost(name, Some(overload), &args, &Value::Null))?;
        result
    }

    fn call(&mut self, call: &Call) -> Result<Value, Fault> {
        if let Some(value) = self.append(call)? {
            return value;
        }
        let mut args = Vec::with_capacity(call.args.len());
        let mut failed = None;
        for (i, node) in call.args.iter().enumerate() {
            match self.argument(node)? {
                Ok(value) => args.push(value),
                Err(why) => {
                    args.push(Value::Invalid(why.as_str().into()));
                    failed.get_or_insert(why);
                    if call.args.len() > 2 && i + 1 < call.args.len() {
                        return Err(Fault::Error(failed.unwrap_or_default()));
                    }
                }
            }
        }
        let lenient = call.function == "@not_strictly_false";
        let result = match failed {
            Some(_) if lenient => Ok(Value::Bool(true)),
            Some(why) => Err(Fault::Error(why)),
            None => {
                let left = self.limit.saturating_sub(self.cost);
                let host = library::Host { fuel: &self.fuel, left };
                library::call(call.function, &args, call.pattern.as_ref(), &host)
            }
        };
        if matches!(result, Err(Fault::OverBudget)) {
            self.cost = self.limit.saturating_add(1);
            return Err(Fault::OverBudget);
        }
        let shown = result.clone().unwrap_or(Value::Null);
        self.charge(actual::cost(call.function, call.overload, &args, &shown))?;
        result
    }

    /// `@result + [x]` in place: loops that collect would copy their list in every round otherwise.
    fn append(&mut self, call: &Call) -> Result<Option<Result<Value, Fault>>, Fault> {
        if call.function == "cel.@mapInsert" {
            return self.insert(call);
        }
        let ("_+_", [Node::Attribute(before), Node::List { elements, optional }]) =
            (call.function, call.args.as_slice())
        else {
            return Ok(None);
        };
        let ([element], [false], Some(slot)) = (elements.as_slice(), optional.as_slice(), before.slot())
        else {
            return Ok(None);
        };
        if slot % 3 != 0 || !matches!(self.slots[slot], Some(Ok(Value::List(_)))) {
            return Ok(None);
        }
        self.charge(1)?;
        let element = self.argument(element)?;
        self.charge(LIST_COST + 1)?;
        Ok(Some(match (element, self.slots[slot].take()) {
            (Ok(element), Some(Ok(Value::List(list)))) => Ok(Value::List(List::push(list, element))),
            (Err(why), _) => Err(Fault::Error(why)),
            _ => Err(Fault::no_overload()),
        }))
    }

    /// `cel.@mapInsert(@result, …)` in place.
    fn insert(&mut self, call: &Call) -> Result<Option<Result<Value, Fault>>, Fault> {
        let Some((Node::Attribute(before), rest)) = call.args.split_first() else { return Ok(None) };
        let Some(slot) = before.slot().filter(|slot| slot % 3 == 0) else { return Ok(None) };
        if !matches!(self.slots[slot], Some(Ok(Value::Map(_)))) {
            return Ok(None);
        }
        self.charge(1)?;
        let mut args = Vec::with_capacity(rest.len());
        for node in rest {
            match self.argument(node)? {
                Ok(value) => args.push(value),
                Err(why) => return Ok(Some(Err(Fault::Error(why)))),
            }
        }
        self.charge(1)?;
        let Some(Ok(Value::Map(map))) = self.slots[slot].take() else { return Ok(None) };
        Ok(Some(library::insert(map, &args)))
    }

    fn list(&mut self, elements: &[Node], optional: &[bool]) -> Result<Value, Fault> {
        let mut items = Vec::with_capacity(elements.len());
        for (element, optional) in elements.iter().zip(optional) {
            let value = self.eval(element)?;
            match value {
                Value::Optional(None) if *optional => {}
                Value::Optional(Some(value)) if *optional => items.push((*value).clone()),
                value if *optional => {
                    let why =
                        format!("cannot initialize optional list element from non-optional value {value}");
                    return Err(Fault::new(why));
                }
                value => items.push(value),
            }
        }
        Ok(Value::list(items))
    }

    fn map(&mut self, entries: &[(Node, Node, bool)]) -> Result<Value, Fault> {
        let mut map = Map::new();
        for (key, value, optional) in entries {
            let key = self.eval(key)?;
            let value = self.eval(value)?;
            let Some(slot) = key.as_key() else {
                let name = key.type_of();
                return Err(Fault::new(format!("unsupported key type: {}", name.type_name())));
            };
            match entry(&key, value, *optional)? {
                Some(value) => map.insert(slot, value),
                None => map.remove(&slot),
            };
        }
        Ok(Value::Map(std::sync::Arc::new(map)))
    }

    fn record(
        &mut self,
        fields: &[(std::sync::Arc<str>, Node, bool)],
    ) -> Result<std::collections::BTreeMap<std::sync::Arc<str>, Value>, Fault> {
        let mut record = std::collections::BTreeMap::new();
        for (name, value, optional) in fields {
            let value = self.eval(value)?;
            match entry(&Value::String(name.clone()), value, *optional)? {
                Some(value) => record.insert(name.clone(), value),
                None => record.remove(name),
            };
        }
        Ok(record)
    }
}

/// An argument as costs see it: errors have the size 1.
fn stand_in(argument: &Result<Value, String>) -> Value {
    match argument {
        Ok(value) => value.clone(),
        Err(why) => Value::Invalid(why.as_str().into()),
    }
}

fn entry(key: &Value, value: Value, optional: bool) -> Result<Option<Value>, Fault> {
    match value {
        Value::Optional(inner) if optional => Ok(inner.map(|value| (*value).clone())),
        value if optional => Err(Fault::new(format!(
            "cannot initialize optional entry '{key}' from non-optional value {value}"
        ))),
        value => Ok(Some(value)),
    }
}
