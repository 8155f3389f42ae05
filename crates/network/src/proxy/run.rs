//! The proxy at work: waits for changes, gathers a burst, commits it.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use coracle_client::{Change, Informer, Informers};
use coracle_cri::NetworkError;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};

use super::changes::{Changes, Key, Maps};
use super::program::{self, SharedChain};
use super::ruleset::{RuleSet, service_rules};
use crate::config::NetworkConfig;
use crate::links::Links;
use crate::nft::{Batch, Socket};
use crate::slices::{Slices, service_of};
use crate::{again, failed};

/// How long a burst is gathered after its first change.
const GATHER: Duration = Duration::from_millis(4);

/// Keeps the node's nf_tables equal to what Services and EndpointSlices say.
///
/// Guarantees: every change is one transaction, so no packet meets a half-made Service; at the start the
/// table of an earlier daemon is replaced in one transaction too, and connections live on in conntrack.
#[derive(Debug)]
pub struct ServiceProxy {
    config: NetworkConfig,
    informers: Informers,
}

struct Running {
    config: NetworkConfig,
    nft: Arc<Socket>,
    services: Informer<Service>,
    slices: Slices,
    maps: Maps,
    known: HashSet<SharedChain>,
}

impl ServiceProxy {
    /// A proxy for the network namespace in which [`ServiceProxy::run`] is called.
    pub fn new(config: NetworkConfig, informers: Informers) -> Self {
        Self { config, informers }
    }

    /// Works until it is dropped. Failures are logged and tried again.
    pub async fn run(self) {
        again("service proxy", || self.serve()).await;
    }

    async fn serve(&self) -> Result<(), NetworkError> {
        let nft = Arc::new(Socket::open().map_err(failed("use nf_tables"))?);
        let links = Links::here()?;
        let range = self.config.service_range()?;
        links.route_here(range.network(), range.length(), self.config.own_source()?).await?;
        let services = self.informers.get::<Service>();
        let endpoints = self.informers.get::<EndpointSlice>();
        services.wait_synced().await;
        endpoints.wait_synced().await;
        let (mut service_changes, mut slice_changes) = (services.subscribe(), endpoints.subscribe());
        let slices = Slices::new(&endpoints);
        let config = self.config.clone();
        let mut running =
            Running { config, nft, services, slices, maps: Maps::default(), known: HashSet::new() };
        running.replace().await?;
        let mut dirty = BTreeSet::new();
        loop {
            // The first change of a burst, then whatever else comes within a few milliseconds.
            let mut deadline = None;
            loop {
                let next = async {
                    tokio::select! {
                        change = service_changes.next() => change.map(|c| service_keys(&c)),
                        change = slice_changes.next() => change.map(|c| slice_keys(&c)),
                    }
                };
                let keys = match deadline {
                    None => next.await,
                    Some(at) => match timeout_at(at, next).await {
                        Ok(keys) => keys,
                        Err(_) => break,
                    },
                };
                let Some(keys) = keys else { return Ok(()) };
                dirty.extend(keys);
                deadline.get_or_insert_with(|| Instant::now() + GATHER);
            }
            running.apply(std::mem::take(&mut dirty)).await?;
        }
    }
}

fn service_keys(change: &Change<Service>) -> Vec<Key> {
    let meta = &change.object().metadata;
    vec![(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())]
}

fn slice_keys(change: &Change<EndpointSlice>) -> Vec<Key> {
    let key = |slice: &EndpointSlice| service_of(slice).map(|(ns, name)| (ns.to_owned(), name.to_owned()));
    let old = if let Change::Modified { old, .. } = change { key(old) } else { None };
    key(change.object()).into_iter().chain(old).collect()
}

impl Running {
    fn rules(&self, (namespace, name): &Key) -> RuleSet {
        let Some(service) = self.services.get(namespace, name) else { return RuleSet::default() };
        let mut rules = service_rules(&self.config.node_name, &service, &self.slices.of(namespace, name));
        // DNS answers on its address without translation.
        if let Ok(dns) = self.config.dns_address() {
            rules.frontends.retain(|frontend, _| frontend.address != Some(dns));
            rules.cluster_ips.remove(&dns);
        }
        rules
    }

    fn gather(&mut self, mut dirty: BTreeSet<Key>) -> Changes {
        let mut changes = Changes::default();
        // A Service that gives a frontend up comes before one that takes it over only by chance: hence the
        // second look.
        let mut looked = HashSet::new();
        while let Some(key) = dirty.pop_first() {
            let rules = self.rules(&key);
            let again = self.maps.update(&key, rules, &mut changes);
            looked.insert(key);
            dirty.extend(again);
            if looked.len() > 1_000_000 {
                break;
            }
        }
        changes
    }

    /// Replaces the whole table.
    async fn replace(&mut self) -> Result<(), NetworkError> {
        self.maps = Maps::default();
        let all = self.services.list();
        let key = |s: &Arc<Service>| {
            (s.metadata.namespace.clone().unwrap_or_default(), s.metadata.name.clone().unwrap_or_default())
        };
        let changes = self.gather(all.iter().map(key).collect());
        let batch = program::table(&self.config, &changes, &mut self.known)?;
        self.commit(batch).await.map_err(failed("make the table of services"))?;
        info!(services = all.len(), "services are in place");
        Ok(())
    }

    /// Brings these Services up to date.
    async fn apply(&mut self, dirty: BTreeSet<Key>) -> Result<(), NetworkError> {
        let changes = self.gather(dirty);
        if changes.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new(&self.config.service_table());
        changes.encode(&mut batch, &mut self.known);
        if let Err(e) = self.commit(batch).await {
            warn!(error = %e, "the table differs from what was expected; replacing it");
            return self.replace().await;
        }
        debug!(size = ?changes.size(), "services changed");
        if !changes.stale.is_empty() {
            let nft = self.nft.clone();
            let forgotten =
                tokio::task::spawn_blocking(move || crate::conntrack::forget(&nft, &changes.stale));
            if let Ok(Err(e)) = forgotten.await {
                warn!(error = %e, "UDP flows to endpoints that are gone could not be ended");
            }
        }
        Ok(())
    }

    async fn commit(&self, batch: Batch) -> Result<(), String> {
        let nft = self.nft.clone();
        let done = tokio::task::spawn_blocking(move || nft.commit(batch)).await;
        done.map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    }
}
