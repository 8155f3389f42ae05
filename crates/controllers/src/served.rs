//! What the API serves: the built-in resources, and those that CustomResourceDefinitions add while the cluster runs.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, LazyLock};

use coracle_client::{Client, ListOptions, Reflected, ResourceId, reflect};
use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use tokio::sync::watch;

use crate::ResourceEntry;

const DEFINITIONS: ResourceId =
    ResourceId { group: "apiextensions.k8s.io", version: "v1", resource: "customresourcedefinitions" };

/// Names of custom resources live as long as the process: they are few, and the same ones come again.
fn interned(text: &str) -> &'static str {
    static KNOWN: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);
    let mut known = KNOWN.lock();
    if let Some(text) = known.get(text) {
        return text;
    }
    let leaked: &'static str = Box::leak(text.to_owned().into_boxed_str());
    known.insert(leaked);
    leaked
}

/// The resource of a definition, once it is served.
fn entry_of(definition: &Value) -> Option<ResourceEntry> {
    let text = |at: &str| definition.pointer(at).and_then(Value::as_str);
    let conditions = definition.pointer("/status/conditions").and_then(Value::as_array);
    let established =
        conditions.into_iter().flatten().any(|c| c["type"] == "Established" && c["status"] == "True");
    let versions = definition.pointer("/spec/versions").and_then(Value::as_array);
    let served = versions.into_iter().flatten().filter(|version| version["served"] == true);
    let mut served: Vec<&Value> = served.collect();
    // Any served version tells of all objects; the stored one costs no conversion.
    served.sort_by_key(|version| version["storage"] != true);
    let version = served.first().and_then(|version| version["name"].as_str())?;
    established.then_some(ResourceEntry {
        id: ResourceId {
            group: interned(text("/spec/group")?),
            version: interned(version),
            resource: interned(text("/spec/names/plural")?),
        },
        namespaced: text("/spec/scope") == Some("Namespaced"),
        kind: interned(text("/spec/names/kind")?),
    })
}

#[derive(Debug)]
struct State {
    builtin: Vec<ResourceEntry>,
    /// By the definition's name.
    custom: RwLock<BTreeMap<String, ResourceEntry>>,
    changes: watch::Sender<u64>,
}

/// The resources served now. Clones share the list.
#[derive(Clone, Debug)]
pub struct Served(Arc<State>);

impl Served {
    /// The built-in resources; [`Served::follow`] adds the others.
    pub fn new(builtin: Vec<ResourceEntry>) -> Self {
        let (custom, changes) = (RwLock::default(), watch::Sender::new(0));
        Self(Arc::new(State { builtin, custom, changes }))
    }

    /// All resources that can be listed, watched and deleted.
    pub fn all(&self) -> Vec<ResourceEntry> {
        let custom = self.0.custom.read();
        self.0.builtin.iter().chain(custom.values()).copied().collect()
    }

    /// The resource of a kind.
    pub fn find(&self, group: &str, kind: &str) -> Option<ResourceEntry> {
        let is = |entry: &ResourceEntry| entry.id.group == group && entry.kind == kind;
        self.all().into_iter().find(is)
    }

    /// Tells when the list changed; the number means nothing.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Keeps the list up to date for as long as it is polled.
    pub async fn follow(&self, client: &Client) {
        let mut sink = |change: Reflected| {
            let (name, entry) = match &change {
                Reflected::Applied(object) => (object.name().to_owned(), entry_of(&object.to_value())),
                Reflected::Deleted(object) => (object.name().to_owned(), None),
                Reflected::Listing | Reflected::Synced(_) | Reflected::Progress(_) => return,
            };
            self.set(name, entry);
        };
        reflect(client, DEFINITIONS, "", &ListOptions::default(), &mut sink).await;
    }

    fn set(&self, name: String, entry: Option<ResourceEntry>) {
        let mut custom = self.0.custom.write();
        let old = match entry {
            Some(entry) => custom.insert(name, entry),
            None => custom.remove(&name),
        };
        drop(custom);
        if old != entry {
            self.0.changes.send_modify(|count| *count += 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_definition_is_served_once_it_is_established() {
        let definition = |established: &str| {
            json!({
                "spec": { "group": "example.com", "scope": "Namespaced",
                    "names": { "plural": "widgets", "kind": "Widget" },
                    "versions": [{ "name": "v1", "served": true, "storage": false },
                        { "name": "v2", "served": true, "storage": true },
                        { "name": "v3", "served": false, "storage": false }] },
                "status": { "conditions": [{ "type": "Established", "status": established }] },
            })
        };
        assert_eq!(entry_of(&definition("False")), None);
        let entry = entry_of(&definition("True")).expect("served");
        assert_eq!((entry.id.group, entry.id.version, entry.id.resource), ("example.com", "v2", "widgets"));
        assert!(entry.namespaced);
        let served = Served::new(Vec::new());
        let changes = served.changes();
        served.set("widgets.example.com".into(), Some(entry));
        assert!(changes.has_changed().expect("alive"));
        assert_eq!(served.find("example.com", "Widget"), Some(entry));
        served.set("widgets.example.com".into(), None);
        assert!(served.all().is_empty());
    }
}
