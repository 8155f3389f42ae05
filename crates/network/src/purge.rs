//! Whether this machine can have a pod network, and removing every trace of one.

use coracle_cri::NetworkError;
use nix::errno::Errno;

use crate::config::NetworkConfig;
use crate::links::Links;
use crate::nft::{Batch, NftError, Socket};
use crate::{failed, foreign, sysctl};

/// What this machine lacks for a pod network; empty when it lacks nothing. One line each, saying what to do.
pub fn preflight() -> Vec<String> {
    if !nix::unistd::geteuid().is_root() {
        return vec!["root: network links and nf_tables rules need it; run with sudo".into()];
    }
    let probed = Socket::open().and_then(|socket| socket.probe());
    let forwarding = std::path::Path::new("/proc/sys/net/ipv4/ip_forward").exists();
    lacks(probed.err(), forwarding)
}

/// What follows from the probes.
fn lacks(nf_tables: Option<NftError>, forwarding: bool) -> Vec<String> {
    let mut missing = Vec::new();
    match nf_tables {
        None => {}
        Some(e) if e.cause() == Errno::EPERM => missing.push(
            "root without CAP_NET_ADMIN: this looks like an unprivileged container; \
             run on the machine itself or in a privileged container"
                .to_owned(),
        ),
        Some(e) => missing.push(format!(
            "the kernel has no nf_tables (CONFIG_NF_TABLES and CONFIG_NFT_NAT), which services need: {e}"
        )),
    }
    if !forwarding {
        missing.push("IPv4 forwarding: /proc/sys/net/ipv4/ip_forward is not there; mount /proc".into());
    }
    missing
}

/// Removes a cluster's tables, links, routes, addresses, kernel settings and state from this network
/// namespace. What is not there is no error. Other clusters stay untouched; the last one restores IPv4
/// forwarding.
///
/// # Errors
/// When the kernel refuses; call again.
pub async fn purge(config: &NetworkConfig) -> Result<(), NetworkError> {
    let nft = Socket::open().map_err(failed("use nf_tables"))?;
    for table in [config.service_table(), config.pod_table()] {
        // Made and removed: so it need not exist.
        let mut batch = Batch::new(&table);
        batch.add_table();
        batch.delete_table();
        nft.commit(batch).map_err(failed(format!("remove table {table}")))?;
    }
    foreign::withdraw(&nft, config)?;
    let links = Links::here()?;
    for name in links.names(&config.link_prefix()).await? {
        links.remove(&name).await?;
    }
    if config.has_services() {
        let services = config.service_range()?;
        links.unroute_here(services.network(), services.length()).await?;
        links.remove_local(config.dns_address()?).await?;
    }
    sysctl::release_forwarding(config)?;
    match std::fs::remove_dir_all(&config.state) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(failed(format!("remove {}", config.state.display()))(e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_without_nf_tables_and_container_without_rights_are_told_apart() {
        assert!(lacks(None, true).is_empty());
        let absent = lacks(Some(NftError::Open(Errno::EPROTONOSUPPORT)), true);
        assert!(absent[0].contains("CONFIG_NF_TABLES"), "{absent:?}");
        let refused = NftError::Refused { command: "list chains", cause: Errno::EPERM };
        assert!(lacks(Some(refused), true)[0].contains("CAP_NET_ADMIN"));
        assert!(lacks(None, false)[0].contains("ip_forward"));
    }
}
