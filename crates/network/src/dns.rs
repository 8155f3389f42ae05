//! Cluster DNS: answers names of Services and pods, forwards all others to the node's name servers.
//!
//! Follows <https://github.com/kubernetes/dns/blob/master/docs/specification.md> (version 1.1.0). Answers
//! are made from the informers' stores at the moment of the query: there is no cache and no second copy of
//! the cluster.

mod answer;
mod forward;
mod server;
mod zone;

pub use server::DnsServer;
