//! Loops: over the elements of a list, the keys of a map, or both with what is there.

use super::plan::{FoldNode, Node};
use super::run::Machine;
use crate::value::{Fault, Value};

/// Rounds between looks at the interrupt flag.
const CHECK_EVERY: u64 = 100;

impl Machine<'_> {
    pub(super) fn fold(&mut self, fold: &FoldNode) -> Result<Value, Fault> {
        let range = self.eval(&fold.range)?;
        let result = self.rounds(fold, &range).and_then(|()| self.eval_result(fold));
        for slot in fold.slot..fold.slot + 3 {
            self.set_slot(slot, None);
        }
        result
    }

    fn rounds(&mut self, fold: &FoldNode, range: &Value) -> Result<(), Fault> {
        let mut count = 0;
        let mut round = |machine: &mut Self, first: Value, second: Option<Value>| {
            count += 1;
            if count % CHECK_EVERY == 0 && machine.interrupted() {
                return Err(Fault::new("operation interrupted"));
            }
            machine.round(fold, first, second)
        };
        match range {
            Value::List(list) => {
                for (i, value) in list.iter().enumerate() {
                    let go_on = if fold.two {
                        let index = Value::Int(i64::try_from(i).unwrap_or(i64::MAX));
                        round(self, index, Some(value.clone()))?
                    } else {
                        round(self, value.clone(), None)?
                    };
                    if !go_on {
                        break;
                    }
                }
            }
            Value::Map(map) => {
                for (key, value) in &**map {
                    if !round(self, key.value(), fold.two.then(|| value.clone()))? {
                        break;
                    }
                }
            }
            other => {
                let name = other.type_of();
                let why = if fold.two {
                    format!("unsupported comprehension range type: {}", name.type_name())
                } else {
                    format!("got '{}', expected iterable type", name.type_name())
                };
                return Err(Fault::new(why));
            }
        }
        Ok(())
    }

    /// One round; whether to go on.
    fn round(&mut self, fold: &FoldNode, first: Value, second: Option<Value>) -> Result<bool, Fault> {
        self.set_slot(fold.slot + 1, Some(Ok(first)));
        self.set_slot(fold.slot + 2, second.map(Ok));
        match self.eval_in(fold, &fold.condition) {
            Ok(Value::Bool(false)) => return Ok(false),
            Err(Fault::OverBudget) => return Err(Fault::OverBudget),
            _ => {}
        }
        let step = match self.eval_in(fold, &fold.step) {
            Err(Fault::OverBudget) => return Err(Fault::OverBudget),
            step => step,
        };
        self.set_slot(fold.slot, Some(step));
        Ok(true)
    }

    fn eval_result(&mut self, fold: &FoldNode) -> Result<Value, Fault> {
        self.eval_in(fold, &fold.result)
    }

    /// Evaluates a part of the loop; the accumulator gets its first value when it is first needed.
    fn eval_in(&mut self, fold: &FoldNode, node: &Node) -> Result<Value, Fault> {
        let present = self.take_slot(fold.slot);
        if let Some(value) = present {
            self.set_slot(fold.slot, Some(value));
        } else if reads(node, fold.slot) {
            let init = match self.eval(&fold.init) {
                Err(Fault::OverBudget) => return Err(Fault::OverBudget),
                init => init,
            };
            self.set_slot(fold.slot, Some(init));
        }
        self.eval(node)
    }
}

/// Whether evaluating the node may read the slot. Loops of macros read it always, so this need not be exact.
fn reads(node: &Node, slot: usize) -> bool {
    match node {
        Node::Const(_) => false,
        Node::Attribute(attribute) => attribute.slot().is_none_or(|read| read == slot),
        _ => true,
    }
}
