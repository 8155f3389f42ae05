//! CRI v1: messages and service traits, after <https://github.com/kubernetes/cri-api> (protobuf package
//! `runtime.v1`), plus what an in-process runtime offers beyond the wire: direct streams and pod networking.
//!
//! The same traits stand on both sides of a socket: [`CriServer`] serves whoever implements them, [`CriClient`]
//! implements them over a socket (ADR 14).

mod client;
mod convert;
mod counters;
pub mod network;
mod pods_cgroup;
mod poll;
pub mod remote;
mod server;
pub mod service;
mod stream_server;
pub mod streaming;
pub mod v1;
mod wire;

pub use client::CriClient;
pub use counters::{Counters, DeviceIo, Packets};
pub use network::{NetworkError, PodNetwork, PodNetworkRequest, PortMapping, Protocol};
pub use pods_cgroup::{MemoryOf, PodsCgroup, PodsLimits, PodsMemory};
pub use server::CriServer;
pub use service::{CriError, ImageService, RuntimeService};
pub use stream_server::StreamServer;
pub use streaming::{ExecRequest, ExecSession, LogRequest, StreamUrls, Streaming, Streams, TerminalSize};
