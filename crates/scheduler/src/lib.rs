//! Scheduling framework, plugins, queue, cache, cycle.
//!
//! [`Scheduler`] is one task: it takes changes of pods and nodes into the [`cache`] and the [`queue`],
//! decides one pod after the other ([`cycle`], pure), and hands decisions to bindings that run beside it.
//! Pods of the same shape share one evaluation, of which a decision changes one row. Names, scores and
//! messages are those of kube-scheduler 1.36.

pub mod cache;
pub mod cycle;
pub mod devices;
pub mod framework;
pub mod plugins;
pub mod pod_info;
pub mod pod_terms;
pub mod preempt;
pub mod queue;
mod run;
pub mod volumes;
mod watch;

pub use cycle::FitError;
pub use run::{Scheduler, SchedulerConfig};
