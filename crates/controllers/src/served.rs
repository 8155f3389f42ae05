//! What the API serves: the built-in resources, and custom ones that come and go while the cluster runs.

use tokio::sync::watch;

use crate::ResourceEntry;

/// The resources served now. Clones share the list.
#[derive(Clone, Debug)]
pub struct Served {
    builtin: Vec<ResourceEntry>,
    customs: watch::Receiver<Vec<ResourceEntry>>,
}

impl Served {
    /// The built-in resources, and what the channel tells of the others.
    pub fn new(builtin: Vec<ResourceEntry>, customs: watch::Receiver<Vec<ResourceEntry>>) -> Self {
        Self { builtin, customs }
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
    }
}
