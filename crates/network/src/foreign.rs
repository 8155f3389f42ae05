//! Other programs' packet filters: where a base chain drops by policy (Docker, ufw, `iptables -P FORWARD
//! DROP`), a rule at its head lets pods' packets pass.
//!
//! An accept in a table of ours cannot overrule a drop in another table, so the rule has to stand there. It
//! bears the tag `coracle-<cluster id>` and goes with the cluster. Out of reach: chains that drop by rule
//! after accepting by policy (firewalld), filters of the legacy iptables kind (not in nf_tables), and rules
//! that their owner rewrites afterwards.

use coracle_cri::NetworkError;
use tracing::warn;

use crate::config::NetworkConfig;
use crate::failed;
use crate::nft::{Batch, Expr, ForeignChain, Hook, NftError, Rule, Socket, Verdict};

fn tag(config: &NetworkConfig) -> String {
    config.service_table()
}

/// Filter chains of IPv4 packets at the hooks that pods' packets pass.
fn chains(nft: &Socket) -> Result<Vec<ForeignChain>, NftError> {
    let mut all = nft.base_chains()?;
    let hooks = [Hook::Forward as u32, Hook::Input as u32];
    all.retain(|c| matches!(c.family, 1 | 2) && c.kind == "filter" && hooks.contains(&c.hook));
    all.retain(|c| !c.table.starts_with("coracle-"));
    Ok(all)
}

fn remove_ours(nft: &Socket, chain: &ForeignChain, tag: &str, batch: &mut Batch) -> Result<(), NftError> {
    for handle in nft.tagged_rules(chain, tag)? {
        batch.delete_foreign_rule(chain.family, &chain.table, &chain.name, &handle);
    }
    Ok(())
}

/// Lets pods' packets through; called again it renews the rules.
pub(crate) fn admit(nft: &Socket, config: &NetworkConfig) -> Result<(), NetworkError> {
    let (tag, prefix) = (tag(config), config.link_prefix());
    for chain in chains(nft).map_err(failed("list packet filters"))? {
        let mut batch = Batch::new(&tag);
        let result = remove_ours(nft, &chain, &tag, &mut batch).and_then(|()| {
            if chain.drops {
                let mut ways = vec![Expr::InputInterfacePrefix(prefix.clone())];
                if chain.hook == Hook::Forward as u32 {
                    ways.push(Expr::OutputInterfacePrefix(prefix.clone()));
                }
                for way in ways {
                    let rule = Rule::new(vec![way, Expr::Verdict(Verdict::Accept)]).tagged(&tag);
                    batch.insert_foreign_rule(chain.family, &chain.table, &chain.name, &rule);
                }
            }
            nft.commit(batch)
        });
        if let Err(e) = result {
            warn!(table = chain.table, chain = chain.name, error = %e, "this filter may drop pods' packets");
        }
    }
    Ok(())
}

/// Takes the rules back.
pub(crate) fn withdraw(nft: &Socket, config: &NetworkConfig) -> Result<(), NetworkError> {
    let tag = tag(config);
    for chain in chains(nft).map_err(failed("list packet filters"))? {
        let mut batch = Batch::new(&tag);
        remove_ours(nft, &chain, &tag, &mut batch)
            .and_then(|()| nft.commit(batch))
            .map_err(failed(format!("remove our rules from {} {}", chain.table, chain.name)))?;
    }
    Ok(())
}
