//! How components talk to the API: a typed client over a [`Transport`], shared informers, a work queue,
//! leases and events. In-process the transport hands over shared objects: no socket, no codec.

pub mod transport;

pub use transport::{
    ApiRequest, ApiResponse, Body, DeleteOptions, ListOptions, PatchKind, ResourceId, Transport, Verb,
    WatchEvent, WatchStream, WriteOptions,
};
