//! The watch cache: the current objects of every resource, encoded and decoded, and the recent changes.
//!
//! One task applies the store's events in revision order ([`feed`]). Readers take references, never copies.

pub(crate) mod definitions;
pub(crate) mod entry;
mod facts;
pub(crate) mod feed;
mod reader;
mod resource;
mod text;
mod watcher;

pub(crate) use entry::CacheEntry;
pub(crate) use feed::Cache;
pub(crate) use resource::ResourceCache;
pub(crate) use watcher::{Event, EventKind, Filter, Subscription, frame};
