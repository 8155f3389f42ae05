//! Clock (injected everywhere), back-off, ids and supervised tasks; nothing of Kubernetes.

mod backoff;
mod clock;
mod id;
mod task;

pub use backoff::Backoff;
pub use clock::Clock;
pub use id::{random_hex, random_suffix, uuid};
pub use task::Tasks;
