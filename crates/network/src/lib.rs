//! Pod network, service proxy, DNS.
//!
//! [`PodLinks`] gives sandboxes addresses and links, [`ServiceProxy`] turns Services into nf_tables maps,
//! and [`DnsServer`] answers names. They share a [`NetworkConfig`] and nothing else: each may run alone. No
//! program is called and no bridge, iptables or IPVS is used; see `docs/adr/0004-network.md`.

pub mod cni;
mod config;
mod conntrack;
mod dns;
mod foreign;
mod ipam;
mod links;
pub mod nft;
mod pods;
pub mod proxy;
mod purge;
mod slices;
mod sysctl;

use std::time::Duration;

pub use cni::{CniConfig, CniNetwork};
pub use config::{Cidr, NetworkConfig};
pub use coracle_cri::NetworkError;
pub use dns::DnsServer;
pub use pods::{PodLinks, prepare};
pub use proxy::ServiceProxy;
pub use purge::{preflight, purge};

/// Wraps what the kernel said.
fn failed<E: std::fmt::Display>(what: impl Into<String>) -> impl FnOnce(E) -> NetworkError {
    let what = what.into();
    move |cause| NetworkError::Kernel { what, cause: cause.to_string() }
}

/// Serves until it is dropped. Failures are logged and tried again.
async fn again<F: Future<Output = Result<(), NetworkError>>>(what: &str, serve: impl Fn() -> F) {
    let mut wait = Duration::from_millis(100);
    loop {
        if let Err(e) = serve().await {
            tracing::error!(error = %e, "{what} failed; starting again");
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(30));
    }
}
