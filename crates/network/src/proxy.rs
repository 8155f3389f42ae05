//! The service proxy: Services and EndpointSlices become elements of flat nf_tables maps.
//!
//! [`desired`] says what a set of Services needs, [`Maps`] turns the difference to what stands into
//! [`Changes`], and [`ServiceProxy`] carries them out, a few milliseconds after the change, in one
//! transaction. Nothing else wakes it.

mod changes;
mod guard;
mod program;
mod ruleset;
mod run;

pub use changes::{Changes, Maps, diff};
pub use guard::Guard;
pub use ruleset::{Action, Backend, Frontend, RuleSet, desired, service_rules};
pub use run::ServiceProxy;
