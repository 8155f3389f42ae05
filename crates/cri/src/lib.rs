//! CRI v1: messages and service traits, after <https://github.com/kubernetes/cri-api> (protobuf package
//! `runtime.v1`), plus what an in-process runtime offers beyond the wire: direct streams and pod networking.

pub mod network;
pub mod service;
pub mod streaming;
pub mod v1;

pub use network::{NetworkError, PodNetwork, PodNetworkRequest, PortMapping, Protocol};
pub use service::{CriError, ImageService, RuntimeService};
pub use streaming::{ExecRequest, ExecSession, LogRequest, Streaming, TerminalSize};
