//! Clock (injected everywhere), back-off, ids, supervised tasks, changes of files, packed texts, TLS to anyone; nothing
//! of Kubernetes.

mod any_certificate;
mod backoff;
mod clock;
pub mod files;
mod id;
pub mod pack;
mod task;

pub use any_certificate::AnyCertificate;
pub use backoff::Backoff;
pub use clock::Clock;
pub use id::{hex, random_hex, random_suffix, uuid};
pub use task::Tasks;
