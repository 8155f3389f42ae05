//! Heartbeats: keeps a Lease renewed for one fixed holder. For elections see [`crate::election`].

use std::time::Duration;

use coracle_meta::{Reason, Status};
use coracle_stdx::Clock;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use tracing::warn;

use crate::api::{Api, Client};

/// Renews the Lease `namespace/name` in the name of `holder`.
///
/// Guarantees: the first renewal happens at once, the others every quarter of `duration`; a failed one is
/// retried after 200 ms, doubling up to 7 s. A Lease that is gone is made again.
pub struct LeaseKeeper {
    api: Api<Lease>,
    clock: Clock,
    namespace: String,
    name: String,
    holder: String,
    duration: Duration,
    owner: Option<OwnerReference>,
}

impl std::fmt::Debug for LeaseKeeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LeaseKeeper({}/{})", self.namespace, self.name)
    }
}

impl LeaseKeeper {
    /// A keeper for the Lease `namespace/name` of `holder`, valid for `duration` after each renewal.
    pub fn new(
        client: &Client,
        clock: Clock,
        namespace: &str,
        name: &str,
        holder: &str,
        duration: Duration,
    ) -> Self {
        Self {
            api: client.api(),
            clock,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            holder: holder.to_owned(),
            duration,
            owner: None,
        }
    }

    /// The object with which the Lease goes away, e.g. the Node.
    #[must_use]
    pub fn owned_by(mut self, owner: OwnerReference) -> Self {
        self.owner = Some(owner);
        self
    }

    /// Renews for as long as it is polled.
    pub async fn run(self) {
        let mut known: Option<Lease> = None;
        let mut wait = Duration::from_millis(200);
        loop {
            match self.renew(known.take()).await {
                Ok(lease) => {
                    known = Some(lease);
                    wait = Duration::from_millis(200);
                    tokio::time::sleep(self.duration / 4).await;
                }
                Err(status) => {
                    warn!(lease = self.name, %status, "lease not renewed");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(7));
                }
            }
        }
    }

    /// One renewal, on top of the state known from the last one.
    ///
    /// # Errors
    /// The server's Status; the caller then forgets what it knew.
    pub async fn renew(&self, known: Option<Lease>) -> Result<Lease, Status> {
        let known = match known {
            Some(lease) => Some(lease),
            None => match self.api.get(&self.namespace, &self.name).await {
                Ok(lease) => Some((*lease).clone()),
                Err(status) if status.reason() == Reason::NotFound => None,
                Err(status) => return Err(status),
            },
        };
        let exists = known.is_some();
        let lease = self.renewed(known.unwrap_or_default());
        let stored = if exists {
            self.api.update(&self.namespace, lease).await?
        } else {
            self.api.create(&self.namespace, lease).await?
        };
        Ok((*stored).clone())
    }

    fn renewed(&self, mut lease: Lease) -> Lease {
        lease.metadata = ObjectMeta {
            name: Some(self.name.clone()),
            namespace: Some(self.namespace.clone()),
            ..lease.metadata
        };
        if let Some(owner) = &self.owner {
            lease.metadata.owner_references.get_or_insert_with(|| vec![owner.clone()]);
        }
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        spec.holder_identity = Some(self.holder.clone());
        spec.lease_duration_seconds = i32::try_from(self.duration.as_secs()).ok();
        spec.renew_time = Some(MicroTime(self.clock.now()));
        lease
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeTransport;

    #[tokio::test(start_paused = true)]
    async fn the_lease_is_made_and_renewed_every_quarter_and_made_again_when_it_is_gone() {
        let start = tokio::time::Instant::now();
        let clock = Clock::from_fn(move || {
            jiff::Timestamp::UNIX_EPOCH.checked_add(start.elapsed()).unwrap_or_default()
        });
        let fake = FakeTransport::new(clock.clone());
        let api = fake.client().api::<Lease>();
        let keeper = LeaseKeeper::new(&fake.client(), clock, "ns", "n1", "n1", Duration::from_secs(40));
        let task = tokio::spawn(keeper.run());
        let renewed = async || {
            let lease = api.get("ns", "n1").await.expect("there");
            lease.spec.as_ref().and_then(|s| s.renew_time.as_ref()).map(|t| t.0.as_second())
        };
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(renewed().await, Some(0));
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(renewed().await, Some(10));
        api.delete("ns", "n1", crate::DeleteOptions::default()).await.expect("deleted");
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(renewed().await, Some(20));
        task.abort();
    }
}
