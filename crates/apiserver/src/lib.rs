//! The API server: request pipeline, generic verbs, watch cache, discovery, tables, proxying to kubelets.
//!
//! The only crate that sees the store. One path for every kind: a kind contributes its definition and strategy
//! (crate `resources`), never a handler. HTTP requests and in-process requests meet in the same verbs.

mod aggregation;
mod audit;
mod authn;
mod bootstrap;
mod cache;
mod codec;
mod config;
mod conversion;
mod definitions;
mod encryption;
mod fields;
mod flow;
mod hooks;
mod http;
mod kubelet;
mod masters;
mod metrics_api;
mod openapi;
mod outbound;
mod protobuf;
mod registry;
mod reloads;
mod server;
mod services;
mod transport;
mod trust_map;
mod upkeep;
mod verbs;
mod views;

pub use audit::{AuditConfig, AuditPolicy, AuditSink, PolicyError};
pub use config::{
    Anonymous, Config, KubeletClient, MakeAuthenticators, MakeAuthorizers, RequestLimits, StartError, Tls,
};
pub use encryption::Encryption;
pub use outbound::{RemoteClient, RemoteConfig};
pub use reloads::{Reload, Reloads};
pub use server::ApiServer;
