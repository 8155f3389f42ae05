//! How components talk to the API: a typed client over a [`Transport`], shared informers, a work queue,
//! leases, elections and events. In-process the transport hands over shared objects: no socket, no codec; to a
//! server elsewhere [`remote`] speaks HTTP/2.

pub mod api;
pub mod discovery;
pub mod election;
pub mod event;
pub mod informer;
pub mod lease;
pub mod queue;
pub mod reflector;
pub mod remote;
pub mod testing;
pub mod transport;

pub use api::{Api, Client};
pub use discovery::{Catalogue, Discovered, discover};
pub use election::{Election, ElectionTimes};
pub use event::{EventRecorder, EventType};
pub use informer::{Change, Index, Informer, Informers, Subscription};
pub use lease::LeaseKeeper;
pub use queue::WorkQueue;
pub use reflector::{Reflected, reflect};
pub use remote::{AccountToken, Credential, Dial, Io, RemoteServer};
pub use transport::{
    ApiRequest, ApiResponse, Body, DeleteOptions, ListOptions, PatchKind, ResourceId, Transport, Verb,
    WatchEvent, WatchStream, WriteOptions,
};
