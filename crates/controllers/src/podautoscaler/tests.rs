//! The autoscaler: its arithmetic, its rules and the whole, on an API server in memory.

mod arithmetic;
mod rules;
mod whole;
