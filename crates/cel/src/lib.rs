//! CEL, the Common Expression Language, as Kubernetes 1.36 uses it: the language with its type checker and cost
//! limits, the libraries of Kubernetes, and the rules of schemas (`x-kubernetes-validations`). Pure: no I/O, no clock.
//!
//! An expression goes [`Env::compile`] (parse, check) → [`Checked::program`] → [`Program::eval`]; messages equal those
//! of upstream's cel-go. [`Checked::cost`] estimates what it may cost.
//!
//! Guarantees for hostile input: nesting is bounded (deep expressions run on a stack of their own), work is bounded by
//! the cost limit and by a bound of the elements looked at, and results of functions by the bytes they may take.

mod ast;
mod checker;
mod cost;
mod deep;
pub mod device;
mod env;
mod escape;
mod eval;
mod functions;
mod issues;
mod library;
mod parse;
pub mod policy;
pub mod rules;
mod schema;
mod time;
mod types;
mod value;

pub use checker::Checked;
pub use cost::{Estimate, SizeHints};
pub use env::Env;
pub use escape::escape;
pub use eval::{Activation, Outcome, PER_CALL_LIMIT, Program};
pub use issues::Issues;
pub use library::authz::{Access, Authorizer, Decision, Question};
pub use library::patch::misnamed;
pub use schema::{DeclType, to_value};
pub use time::go_duration;
pub use types::Type;
pub use value::{Cidr, Fault, Key, List, Lookup, Map, Record, Value};
