//! Clock (injected everywhere), back-off, ids, supervised tasks and changes of files; nothing of Kubernetes.

mod backoff;
mod clock;
pub mod files;
mod id;
mod task;

pub use backoff::Backoff;
pub use clock::Clock;
pub use id::{random_hex, random_suffix, uuid};
pub use task::Tasks;
