//! What the server does with definitions of custom resources after they were written: it accepts names, says that
//! they are established, judges schemas and approvals, registers their versions, and cleans up when they go.
//!
//! Upstream has a controller for each of these inside kube-apiserver; here one task takes one definition at a time,
//! when it changed, and decides everything about it at once. Of the others it knows the names only.

mod names;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use coracle_client::{DeleteOptions, ListOptions, WriteOptions};
use coracle_meta::Status;
use coracle_resources::apiextensions::conditions::{self, CLEANUP};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use serde_json::json;
use tokio::sync::mpsc;
use tracing::warn;

use self::names::Names;
use crate::cache::definitions::KIND;
use crate::cache::{Event, EventKind, Filter};
use crate::registry::Resource;
use crate::server::Server;
use crate::verbs::{Input, Part};

/// Label of the APIServices that are made here.
const AUTO_MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// How long to wait for finalizers of instances before looking again.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Pause after a failure.
const PAUSE: Duration = Duration::from_millis(200);

/// Does all that is due, for ever.
pub(crate) async fn run(server: Arc<Server>) {
    let Some(resource) = server.cache.registry.find(KIND.0, KIND.1) else {
        return std::future::pending().await;
    };
    let Some(mut changes) = watch(&server, &resource) else { return std::future::pending().await };
    let mut keeper = Keeper {
        server,
        resource,
        due: BTreeSet::new(),
        waiting: BTreeSet::new(),
        names: Names::default(),
        settled: HashMap::new(),
        registered: HashMap::new(),
    };
    keeper.begin();
    loop {
        while let Some(name) = keeper.due.pop_first() {
            if let Err(status) = keeper.keep(&name).await {
                warn!(name, error = %status, "cannot bring a definition of a custom resource up to date");
                keeper.due.insert(name);
                tokio::time::sleep(PAUSE).await;
            }
            while let Ok((_, event)) = changes.try_recv() {
                keeper.note(&event);
            }
        }
        let event = match keeper.waiting.is_empty() {
            true => Ok(changes.recv().await),
            // Instances have finalizers of their own: look again when a moment has passed.
            false => tokio::time::timeout(LOOK_AGAIN, changes.recv()).await,
        };
        match event {
            Ok(None) => return,
            Ok(Some((_, event))) => keeper.note(&event),
            Err(_) => keeper.due.append(&mut keeper.waiting),
        }
    }
}

fn watch(server: &Server, resource: &Resource) -> Option<mpsc::Receiver<(EventKind, Arc<Event>)>> {
    let filter = Filter { key: resource.prefix.clone(), ..Filter::default() };
    let applied = server.cache.applied();
    Some(resource.cache.subscribe(filter, Some(applied), applied).ok()?.live)
}

/// What the task remembers.
struct Keeper {
    server: Arc<Server>,
    /// The definitions.
    resource: Arc<Resource>,
    /// Definitions to look at.
    due: BTreeSet<String>,
    /// Those whose instances have not all gone yet.
    waiting: BTreeSet<String>,
    /// The names that each has.
    names: Names,
    /// The revisions of definitions about which everything is decided.
    settled: HashMap<String, u64>,
    /// The versions of each group that an APIService was made for.
    registered: HashMap<String, BTreeSet<String>>,
}

impl Keeper {
    /// Everything is due in the beginning.
    fn begin(&mut self) {
        let filter = Filter { key: self.resource.prefix.clone(), ..Filter::default() };
        for entry in self.resource.cache.range(&filter, 0).entries {
            if let Ok(obj) = entry.decoded()
                && let Some(crd) = obj.downcast::<CustomResourceDefinition>()
            {
                self.names.set(entry.tail(), Some(crd));
            }
            entry.let_go();
            self.due.insert(entry.tail().to_owned());
        }
        for service in self.own_services() {
            self.registered.entry(service.0).or_default().insert(service.1);
        }
        // Groups of which no definition is left.
        let groups: Vec<String> = self.registered.keys().cloned().collect();
        self.due.extend(groups.into_iter().filter(|g| !self.names.has_group(g)).map(|g| format!(".{g}")));
    }

    fn note(&mut self, event: &Event) {
        let Some(entry) = event.after().or(event.before()) else { return };
        let name = entry.tail().to_owned();
        let settled = self.settled.get(&name);
        if event.after().is_none() || settled.is_none_or(|revision| *revision < event.revision) {
            self.due.insert(name);
        }
    }

    /// Does what is due about one definition.
    async fn keep(&mut self, name: &str) -> Result<(), Status> {
        self.waiting.remove(name);
        let Some(entry) = self.resource.cache.get(&self.resource.key("", name)) else {
            self.settled.remove(name);
            self.due.extend(self.names.set(name, None));
            let group = name.split_once('.').map_or("", |(_, group)| group);
            return self.register(group, BTreeSet::new()).await;
        };
        let shared = entry.decoded()?;
        let Some(mut crd) = shared.downcast::<CustomResourceDefinition>().cloned() else { return Ok(()) };
        let mut revision = entry.revision;
        let others = self.names.beside(name, &crd.spec.group);
        if let Some(decided) = conditions::decide(&crd, &others, self.server.clock.now()) {
            match write(&self.server, &self.resource, decided).await? {
                // Someone else changed it meanwhile, and that is an event.
                None => return Ok(()),
                Some((at, written)) => {
                    revision = at;
                    crd = written;
                }
            }
        }
        self.due.extend(self.names.set(name, Some(&crd)));
        if !clean_up(&self.server, &self.resource, &crd).await? {
            self.waiting.insert(name.to_owned());
        }
        self.register(&crd.spec.group, established_versions(&crd)).await?;
        self.settled.insert(name.to_owned(), revision);
        drop(shared);
        entry.let_go();
        if let Some(now) = self.resource.cache.get(&entry.key) {
            now.let_go();
        }
        Ok(())
    }

    /// Group and version of the APIServices that were made here.
    fn own_services(&self) -> Vec<(String, String)> {
        use coracle_meta::ObjectReader;
        let services = self.server.cache.list("apiregistration.k8s.io", "apiservices", "").into_iter();
        let own = services.filter_map(|obj| {
            let service = obj.downcast::<APIService>()?;
            let label = service.metadata.labels.as_ref().and_then(|l| l.get(AUTO_MANAGED));
            let spec = service.spec.as_ref().filter(|_| label.map(String::as_str) == Some("true"))?;
            Some((spec.group.clone()?, spec.version.clone()?))
        });
        own.collect()
    }

    /// Keeps one APIService per served version of a group: those that the registry has, and those `established` just
    /// now, of which it may not have heard yet.
    async fn register(&mut self, group: &str, established: BTreeSet<String>) -> Result<(), Status> {
        let of = "apiregistration.k8s.io";
        let Some(resource) = self.server.cache.registry.find(of, "apiservices") else { return Ok(()) };
        let mut wanted: BTreeSet<String> = self.server.cache.registry.custom_versions(group);
        wanted.extend(established);
        let caller = Server::loopback();
        for version in self.registered.get(group).into_iter().flatten().filter(|v| !wanted.contains(*v)) {
            let name = format!("{version}.{group}");
            let gone = self.server.delete(&caller, &resource, "", &name, &DeleteOptions::default()).await;
            gone.map(drop).or_else(|s| if s.code() == 404 { Ok(()) } else { Err(s) })?;
        }
        for version in &wanted {
            let name = format!("{version}.{group}");
            if resource.cache.get(&resource.key("", &name)).is_some() {
                continue;
            }
            let object = json!({
                "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                "metadata": { "name": name, "labels": { AUTO_MANAGED: "true" } },
                "spec": { "group": group, "version": version, "groupPriorityMinimum": 1000, "versionPriority": 100 },
            });
            let (input, opts) = (Input::Json(object), WriteOptions::default());
            let made = self.server.create(&caller, &resource, "", input, &opts).await;
            made.map(drop).or_else(|s| if s.code() == 409 { Ok(()) } else { Err(s) })?;
        }
        match wanted.is_empty() {
            true => drop(self.registered.remove(group)),
            false => drop(self.registered.insert(group.to_owned(), wanted)),
        }
        Ok(())
    }
}

/// The versions that an established definition serves.
fn established_versions(crd: &CustomResourceDefinition) -> BTreeSet<String> {
    let mut conditions = crd.status.iter().flat_map(|status| status.conditions.iter().flatten());
    if !conditions.any(|c| c.type_ == "Established" && c.status == "True") {
        return BTreeSet::new();
    }
    crd.spec.versions.iter().filter(|version| version.served).map(|version| version.name.clone()).collect()
}

/// Writes a status (and, as upstream, finalizers); yields what is stored then, with its revision. `None` when someone
/// else changed it meanwhile.
async fn write(
    server: &Arc<Server>,
    resource: &Arc<Resource>,
    crd: CustomResourceDefinition,
) -> Result<Option<(u64, CustomResourceDefinition)>, Status> {
    let (caller, opts) = (Server::loopback(), WriteOptions::default());
    let name = crd.metadata.name.clone().unwrap_or_default();
    let input = Input::Object(Arc::new(crd));
    match server.update(&caller, resource, "", &name, Part::Status, input, &opts).await {
        Ok(outcome) => {
            let stored = outcome.entry.decoded()?.downcast::<CustomResourceDefinition>().cloned();
            Ok(stored.map(|crd| (outcome.entry.revision, crd)))
        }
        Err(status) if matches!(status.code(), 404 | 409) => Ok(None),
        Err(status) => Err(status),
    }
}

/// Deletes the instances of a definition that is being deleted, and lets it go when none is left. Whether
/// nothing is left to be done.
async fn clean_up(
    server: &Arc<Server>,
    resource: &Arc<Resource>,
    crd: &CustomResourceDefinition,
) -> Result<bool, Status> {
    let held = crd.metadata.finalizers.iter().flatten().any(|f| f == CLEANUP);
    if crd.metadata.deletion_timestamp.is_none() || !held {
        return Ok(true);
    }
    let told = "InstanceDeletionInProgress";
    let mut crd = crd.clone();
    let noted = crd.status.iter().flat_map(|s| s.conditions.iter().flatten());
    if !noted.clone().any(|c| c.type_ == "Terminating" && c.reason.as_deref() == Some(told)) {
        let why = "CustomResource deletion is in progress";
        conditions::set(&mut crd, ("Terminating", "True", told, why), server.clock.now());
        let Some((_, written)) = write(server, resource, crd).await? else { return Ok(false) };
        crd = written;
        server.fresh().await?;
    }
    let done = if conditions::is_true(&crd, "Established") {
        if !delete_instances(server, &crd).await? {
            return Ok(false);
        }
        ("InstanceDeletionCompleted", "removed all instances")
    } else {
        ("NeverEstablished", "resource was never established")
    };
    conditions::set(&mut crd, ("Terminating", "False", done.0, done.1), server.clock.now());
    crd.metadata.finalizers.get_or_insert_default().retain(|f| f != CLEANUP);
    let name = crd.metadata.name.clone().unwrap_or_default();
    let gone = write(server, resource, crd).await?;
    server.fresh().await?;
    Ok(gone.is_some() || server.present(resource, "", &name).is_err())
}

/// Asks for the deletion of all instances; whether all are gone.
async fn delete_instances(server: &Arc<Server>, crd: &CustomResourceDefinition) -> Result<bool, Status> {
    let names = crd.status.as_ref().and_then(|s| s.accepted_names.as_ref()).unwrap_or(&crd.spec.names);
    let Some(resource) = server.cache.registry.find(&crd.spec.group, &names.plural) else { return Ok(true) };
    if resource.custom().is_none() {
        return Ok(true);
    }
    let caller = Server::loopback();
    let (opts, list) = (DeleteOptions::default(), ListOptions::default());
    server.delete_collection(&caller, &resource, "", &opts, &list).await?;
    server.fresh().await?;
    Ok(resource.cache.len() == 0)
}
