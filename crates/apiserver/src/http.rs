//! HTTPS: connections, the request pipeline, content negotiation, encodings.

pub(crate) mod authz;
pub(crate) mod body;
mod discovery;
mod dispatch;
pub(crate) mod docs;
pub(crate) mod info;
mod misc;
mod negotiate;
pub(crate) mod pipeline;
pub(crate) mod query;
pub(crate) mod respond;
pub(crate) mod serve;
mod table;
pub(crate) mod tls;
mod watch;
