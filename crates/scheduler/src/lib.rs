//! Scheduling framework, plugins, queue, cache, cycle.
