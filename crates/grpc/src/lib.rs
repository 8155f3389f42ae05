//! gRPC: protocol buffers as plain structs, framing, a client and a server on Unix sockets.
//!
//! What Kubernetes' node interfaces need (CRI, device plug-ins, plug-in registration) and no more: no compression, no
//! interceptors, no code made at build time. Messages are declared by [`messages!`].

mod client;
mod frame;
mod message;
mod server;
mod status;
mod wire;

pub use bytes::Bytes;
pub use client::{Channel, MessageStream};
pub use frame::{framed, unframed};
pub use message::{Element, Field, Map, Message};
pub use server::{Answer, Service, listen, serve};
pub use status::{Code, Status, failure};
pub use wire::{DecodeError, Value, Writer, read};
