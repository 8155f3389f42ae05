//! Evaluation: programs, what they are given, what they yield and cost.

mod attribute;
mod fold;
mod plan;
mod run;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::checker::Checked;
use crate::types::Type;
use crate::value::{Fault, Value};

/// What most expressions may cost when they run.
pub const PER_CALL_LIMIT: u64 = 1_000_000;

/// The variables of an evaluation.
pub trait Activation {
    /// The value of a variable: `None` if it has none, an error's text if it cannot be had.
    fn resolve(&self, name: &str) -> Option<Result<Value, String>>;
}

/// Variables as pairs.
impl Activation for [(&str, Value)] {
    fn resolve(&self, name: &str) -> Option<Result<Value, String>> {
        self.iter().find(|(key, _)| *key == name).map(|(_, value)| Ok(value.clone()))
    }
}

impl<const N: usize> Activation for [(&str, Value); N] {
    fn resolve(&self, name: &str) -> Option<Result<Value, String>> {
        self.as_slice().resolve(name)
    }
}

/// What an evaluation came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The value, or why there is none.
    pub result: Result<Value, Fault>,
    /// The actual cost; where the limit was hit, a little more than that.
    pub cost: u64,
}

/// An expression ready to run, any number of times and at the same time.
#[derive(Clone, Debug)]
pub struct Program {
    root: Arc<plan::Node>,
    slots: usize,
    depth: usize,
    output: Type,
}

impl Checked {
    /// Makes the program.
    ///
    /// # Errors
    /// Constant parts that have no value, such as a pattern that is none.
    pub fn program(&self) -> Result<Program, Fault> {
        crate::deep::run(self.depth, || {
            let (root, slots) = plan::plan(self)?;
            Ok(Program { root: Arc::new(root), slots, depth: self.depth, output: self.output_type().clone() })
        })
    }
}

impl Program {
    /// The type of the value.
    pub fn output_type(&self) -> &Type {
        &self.output
    }

    /// Runs the program; what costs more than `limit` is stopped.
    pub fn eval(&self, variables: &(impl Activation + Sync + ?Sized), limit: u64) -> Outcome {
        self.eval_interruptible(variables, limit, None)
    }

    /// Runs the program until it ends, costs more than `limit`, or `stop` is set.
    pub fn eval_interruptible(
        &self,
        variables: &(impl Activation + Sync + ?Sized),
        limit: u64,
        stop: Option<&AtomicBool>,
    ) -> Outcome {
        crate::deep::run(self.depth, || {
            let variables = ByRef(variables);
            let mut machine = run::Machine::new(&variables, limit, self.slots, stop);
            let result = machine.eval(&self.root);
            Outcome { result, cost: machine.cost() }
        })
    }
}

/// Makes a reference to any activation one of a sized type.
struct ByRef<'a, A: ?Sized>(&'a A);

impl<A: Activation + ?Sized> Activation for ByRef<'_, A> {
    fn resolve(&self, name: &str) -> Option<Result<Value, String>> {
        self.0.resolve(name)
    }
}
