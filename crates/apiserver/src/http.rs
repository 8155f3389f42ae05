//! HTTPS: connections, the request pipeline, content negotiation, encodings.

mod about;
pub(crate) mod authz;
pub(crate) mod body;
mod discovery;
mod dispatch;
pub(crate) mod docs;
mod health;
pub(crate) mod impersonate;
pub(crate) mod info;
pub(crate) mod metrics;
mod misc;
mod negotiate;
pub(crate) mod pipeline;
mod protect;
pub(crate) mod query;
pub(crate) mod respond;
pub(crate) mod serve;
mod stall;
mod table;
pub(crate) mod tls;
mod watch;
pub(crate) mod web_socket;
mod written;
mod yaml;
mod yaml_depth;
mod yaml_scalar;
mod yaml_write;
