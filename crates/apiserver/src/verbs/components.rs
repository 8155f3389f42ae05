//! ComponentStatus: deprecated, made up at each request. The store is asked whether it answers, the scheduler and the
//! controllers whether they are well: at upstream's ports, unless they run in this process.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_client::ListOptions;
use coracle_meta::{Object, Status};
use http::{HeaderMap, Method};
use k8s_openapi::api::core::v1::{ComponentCondition, ComponentStatus};

use super::Outcome;
use super::list::{Page, filter};
use crate::cache::CacheEntry;
use crate::outbound::{Question, Reply, Trust, ask};
use crate::registry::Resource;
use crate::server::Server;

/// What the store is called there.
const STORE: &str = "etcd-0";
/// The others, and the ports at which upstream's are well or not.
const OTHERS: [(&str, u16); 2] = [("controller-manager", 10257), ("scheduler", 10259)];
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Most bytes that are taken of an answer.
const MOST: usize = 10 << 10;

/// How a component is: its condition's status, and a message or an error.
struct Health {
    status: &'static str,
    message: String,
    error: Option<String>,
}

impl Health {
    fn good(message: impl Into<String>) -> Self {
        Self { status: "True", message: message.into(), error: None }
    }
    fn bad(message: impl Into<String>) -> Self {
        Self { status: "False", message: message.into(), error: None }
    }

    /// What upstream's prober makes of the answer to a question, or of its absence.
    fn of(url: &str, answer: Result<Reply, String>) -> Self {
        match answer {
            Ok(reply) if (200..400).contains(&reply.code) => Self::good(String::from_utf8_lossy(&reply.body)),
            Ok(reply) => Self::bad(format!("HTTP probe failed with statuscode: {}", reply.code)),
            Err(why) => Self::bad(format!("Get {url:?}: {why}")),
        }
    }
}

impl Server {
    /// All components.
    pub(crate) async fn list_components(
        &self,
        resource: &Resource,
        opts: &ListOptions,
    ) -> Result<Page, Status> {
        let filter = filter(resource, "", "", opts)?;
        let others = OTHERS.map(|(name, port)| self.other(name, port));
        let (store, others) = futures::join!(self.store_health(), futures::future::join_all(others));
        let names = OTHERS.iter().map(|(name, _)| *name).chain([STORE]);
        let healths = others.into_iter().chain([store]);
        let mut entries: Vec<_> =
            names.zip(healths).map(|(name, health)| component(resource, name, health)).collect();
        entries.retain(|entry| filter.selects(entry));
        Ok(Page { entries, revision: 0, continue_token: String::new(), remaining: None })
    }

    /// One component, or 404.
    pub(crate) async fn get_component(&self, resource: &Resource, name: &str) -> Result<Outcome, Status> {
        if name == STORE {
            return Ok(Outcome::of(component(resource, STORE, self.store_health().await)));
        }
        let Some((name, port)) = OTHERS.iter().find(|(other, _)| *other == name) else {
            return Err(Status::not_found("", resource.def.singular, name));
        };
        Ok(Outcome::of(component(resource, name, self.other(name, *port).await)))
    }

    /// The store is in order when it answers a read.
    async fn store_health(&self) -> Health {
        let range = coracle_store::Range { start: "/".to_owned(), limit: 1, ..Default::default() };
        match self.store.range(range).await {
            Ok(_) => Health::good("ok"),
            Err(e) => Health { status: "False", message: String::new(), error: Some(e.to_string()) },
        }
    }

    /// Another component, here or at its port.
    async fn other(&self, name: &str, port: u16) -> Health {
        if self.components.contains(&name) {
            return Health::good("ok");
        }
        let url = format!("https://127.0.0.1:{port}/healthz");
        let answer = tokio::time::timeout(PATIENCE, question(&url)).await.unwrap_or_else(|_| {
            Err("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned())
        });
        Health::of(&url, answer)
    }
}

/// Asks, whatever certificate the other side shows.
async fn question(url: &str) -> Result<Reply, String> {
    let tls = Trust { insecure: true, ..Trust::default() }.config()?;
    let (method, headers, body) = (Method::GET, HeaderMap::new(), Bytes::new());
    ask(Question { method, url, at: None, name: None, tls, headers, body, most: MOST }).await
}

fn component(resource: &Resource, name: &str, health: Health) -> Arc<CacheEntry> {
    let mut component = ComponentStatus::default();
    component.metadata.name = Some(name.to_owned());
    component.conditions = Some(vec![ComponentCondition {
        type_: "Healthy".to_owned(),
        status: health.status.to_owned(),
        message: Some(health.message).filter(|text| !text.is_empty()),
        error: health.error,
    }]);
    let mut encoded = Vec::with_capacity(256);
    component.write_json(&mut encoded);
    Arc::new(CacheEntry::new(Arc::from(name), 0, 0, Bytes::from(encoded), resource.def))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_is_as_its_answer_is() {
        let url = "https://127.0.0.1:1/healthz";
        let reply = |code| Reply { code, headers: HeaderMap::new(), body: Bytes::from_static(b"ok") };
        let told = |answer| {
            let health = Health::of(url, answer);
            (health.status, health.message)
        };
        assert_eq!(told(Ok(reply(200))), ("True", "ok".to_owned()));
        assert_eq!(told(Ok(reply(500))), ("False", "HTTP probe failed with statuscode: 500".to_owned()));
        let refused = "dial tcp 127.0.0.1:1: connect: connection refused".to_owned();
        assert_eq!(told(Err(refused.clone())), ("False", format!("Get {url:?}: {refused}")));
    }
}
