//! What the API serves: the built-in resources, and custom ones that come and go while the cluster runs.

use std::fmt;
use std::sync::Arc;

use coracle_meta::Status;
use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::ResourceEntry;

/// Asks a server elsewhere what it serves, and tells the list of it before it returns.
pub type Refresh = Arc<dyn Fn() -> BoxFuture<'static, Result<(), Status>> + Send + Sync>;

/// The resources served now. Clones share the list.
#[derive(Clone)]
pub struct Served {
    builtin: Vec<ResourceEntry>,
    customs: watch::Receiver<Vec<ResourceEntry>>,
    refresh: Option<Refresh>,
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Served({} resources)", self.all().len())
    }
}

impl Served {
    /// The built-in resources, and what the channel tells of the others.
    pub fn new(builtin: Vec<ResourceEntry>, customs: watch::Receiver<Vec<ResourceEntry>>) -> Self {
        Self { builtin, customs, refresh: None }
    }

    /// The same, where the channel only tells late.
    #[must_use]
    pub fn with_refresh(self, refresh: Option<Refresh>) -> Self {
        Self { refresh, ..self }
    }

    /// All resources that are served when this is asked, for those who must not miss any.
    ///
    /// # Errors
    /// What the server said that does not tell.
    pub async fn all_now(&self) -> Result<Vec<ResourceEntry>, Status> {
        if let Some(refresh) = &self.refresh {
            refresh().await?;
        }
        Ok(self.all())
    }

    /// All resources that can be listed, watched and deleted.
    pub fn all(&self) -> Vec<ResourceEntry> {
        let customs = self.customs.borrow();
        self.builtin.iter().chain(customs.iter()).copied().collect()
    }

    /// The resource of a kind.
    pub fn find(&self, group: &str, kind: &str) -> Option<ResourceEntry> {
        let is = |entry: &ResourceEntry| entry.id.group == group && entry.kind == kind;
        self.all().into_iter().find(is)
    }

    /// Tells, by [`Served::next`], when the list changed.
    pub fn changes(&self) -> watch::Receiver<Vec<ResourceEntry>> {
        self.customs.clone()
    }

    /// Waits for the next change; for ever where nobody tells of any.
    pub async fn next(changes: &mut watch::Receiver<Vec<ResourceEntry>>) {
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use coracle_client::ResourceId;

    use super::*;

    #[tokio::test]
    async fn custom_resources_are_found_while_they_are_served() {
        let (tell, customs) = watch::channel(Vec::new());
        let served = Served::new(Vec::new(), customs);
        let mut changes = served.changes();
        let id = ResourceId { group: "example.com", version: "v1", resource: "widgets" };
        let entry = ResourceEntry { id, namespaced: true, kind: "Widget" };
        tell.send_replace(vec![entry]);
        Served::next(&mut changes).await;
        assert_eq!(served.find("example.com", "Widget"), Some(entry));
        tell.send_replace(Vec::new());
        Served::next(&mut changes).await;
        assert!(served.all().is_empty());
        let late = served.with_refresh(Some(Arc::new(move || {
            tell.send_replace(vec![entry]);
            Box::pin(async { Ok(()) })
        })));
        assert_eq!(late.all_now().await.expect("told"), [entry]);
    }
}
