//! An in-memory API server for unit tests of components: no admission, no validation, no defaulting.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use coracle_meta::selector::{FieldSelector, LabelSelector};
use coracle_meta::{DynamicObject, GroupVersionKind, Object, Status};
use coracle_stdx::{Clock, random_suffix, uuid};
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::api::Client;
use crate::transport::{
    ApiRequest, ApiResponse, Body, DeleteOptions, ListOptions, PatchKind, ResourceId, Transport, Verb,
    WatchEvent, WatchStream,
};

type Key = (String, String);
type Objects = BTreeMap<Key, Arc<DynamicObject>>;
type Sent = Result<WatchEvent, Status>;

/// A watch in progress.
struct Watcher {
    resource: ResourceId,
    namespace: String,
    options: ListOptions,
    sender: mpsc::UnboundedSender<Sent>,
}

impl Watcher {
    fn wants(&self, resource: ResourceId, object: &DynamicObject) -> bool {
        self.resource == resource && selected(object, &self.namespace, &self.options)
    }
}

struct Logged {
    revision: u64,
    resource: ResourceId,
    old: Option<Arc<DynamicObject>>,
    new: Option<Arc<DynamicObject>>,
}

#[derive(Default)]
struct State {
    revision: u64,
    objects: HashMap<ResourceId, Objects>,
    watchers: Vec<Watcher>,
    log: Vec<Logged>,
    requests: Vec<ApiRequest>,
    failures: Vec<(&'static str, Status)>,
    paths: BTreeMap<String, Value>,
}

/// An API server in memory, of one identity that may do everything.
///
/// It knows: create (with `generateName`), get, list and watch with selectors, update, merge patches (the
/// other patch types are taken as merge patches), delete with finalizers, preconditions and, for bound
/// pods, a grace period; `status`, `binding`, `eviction` and `finalize`; uid, generation and
/// resourceVersion with conflicts. Objects come back as [`DynamicObject`]s.
pub struct FakeTransport {
    state: Mutex<State>,
    clock: Clock,
}

impl std::fmt::Debug for FakeTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FakeTransport")
    }
}

impl FakeTransport {
    /// An empty server.
    pub fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), clock })
    }

    /// A client of this server.
    pub fn client(self: &Arc<Self>) -> Client {
        Client::new(self.clone())
    }

    /// All requests so far, reads included, watches not.
    pub fn requests(&self) -> Vec<ApiRequest> {
        self.state.lock().requests.clone()
    }

    /// Lets the next request to the plural `resource` fail.
    pub fn fail_next(&self, resource: &'static str, status: Status) {
        self.state.lock().failures.push((resource, status));
    }

    /// Answers reads of `path` (without the query) with `value` from now on; with null, no longer.
    pub fn serve_path(&self, path: &str, value: Value) {
        let mut state = self.state.lock();
        match value {
            Value::Null => drop(state.paths.remove(path)),
            value => drop(state.paths.insert(path.to_owned(), value)),
        }
    }

    /// Ends all watches with `status`, as a server that restarts or compacts would.
    pub fn cut_watches(&self, status: &Status) {
        for watcher in self.state.lock().watchers.drain(..) {
            let _ = watcher.sender.send(Err(status.clone()));
        }
    }

    /// Forgets the history: watches from an earlier revision get 410.
    pub fn compact(&self) {
        self.state.lock().log.clear();
    }
}

fn selected(object: &DynamicObject, namespace: &str, options: &ListOptions) -> bool {
    let meta = object.meta();
    let labels = meta.labels.clone().unwrap_or_default();
    let field = |path: &str| {
        let pointer = format!("/{}", path.replace('.', "/"));
        match path {
            "metadata.name" => meta.name.clone(),
            "metadata.namespace" => meta.namespace.clone(),
            _ => Some(object.body().pointer(&pointer).and_then(Value::as_str).unwrap_or("").to_owned()),
        }
    };
    let labels_match = LabelSelector::parse(&options.label_selector).is_ok_and(|s| s.matches(&labels));
    let fields_match = FieldSelector::parse(&options.field_selector).is_ok_and(|s| s.matches(field));
    (namespace.is_empty() || (object as &dyn Object).namespace() == namespace) && labels_match && fields_match
}

impl State {
    /// Stores (or, with `None`, removes) an object under the next revision and tells the watchers.
    fn commit(
        &mut self,
        resource: ResourceId,
        key: Key,
        new: Option<DynamicObject>,
    ) -> Option<Arc<DynamicObject>> {
        self.revision += 1;
        let objects = self.objects.entry(resource).or_default();
        let old = objects.get(&key).cloned();
        let new = new.map(|mut object| {
            object.meta_mut().resource_version = Some(self.revision.to_string());
            Arc::new(object)
        });
        match &new {
            Some(object) => objects.insert(key, object.clone()),
            None => objects.remove(&key),
        };
        let logged = Logged { revision: self.revision, resource, old, new };
        self.watchers.retain(|watcher| {
            let event = event_for(&logged, watcher);
            event.is_none_or(|event| watcher.sender.send(Ok(event)).is_ok())
        });
        let result = logged.new.clone().or(logged.old.clone());
        self.log.push(logged);
        result
    }

    fn find(&self, request: &ApiRequest) -> Result<Arc<DynamicObject>, Status> {
        let key = (request.namespace.clone(), request.name.clone());
        let found = self.objects.get(&request.resource).and_then(|objects| objects.get(&key)).cloned();
        let ResourceId { group, resource, .. } = request.resource;
        found.ok_or_else(|| Status::not_found(group, resource, &request.name))
    }
}

/// What a change looks like to a watcher whose selectors the object may enter or leave.
fn event_for(logged: &Logged, watcher: &Watcher) -> Option<WatchEvent> {
    let wants = |object: &&Arc<DynamicObject>| watcher.wants(logged.resource, object);
    let old = logged.old.as_ref().filter(wants);
    let new = logged.new.as_ref().filter(wants);
    match (old, new) {
        (None, None) => None,
        (None, Some(new)) => Some(WatchEvent::Added(new.clone())),
        (Some(_), Some(new)) => Some(WatchEvent::Modified(new.clone())),
        (Some(old), None) => {
            let mut last = (**old).clone();
            last.meta_mut().resource_version = Some(logged.revision.to_string());
            Some(WatchEvent::Deleted(Arc::new(last)))
        }
    }
}

fn value_of(body: &Body) -> Value {
    match body {
        Body::Object(object) => object.to_value(),
        Body::Json(value) => value.clone(),
    }
}

fn dynamic(value: Value) -> Result<DynamicObject, Status> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let gvk = GroupVersionKind::new(group, version, &kind);
    DynamicObject::from_value(gvk, value).map_err(|e| Status::bad_request(e.to_string()))
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        // The one directive of strategic patches that is known here.
        if let Some(list) = key.strip_prefix("$deleteFromPrimitiveList/") {
            if let Some(known) = target.get_mut(list).and_then(Value::as_array_mut) {
                known.retain(|item| !value.as_array().is_some_and(|gone| gone.contains(item)));
            }
            continue;
        }
        match (value, target.as_object_mut()) {
            (Value::Null, Some(map)) => drop(map.remove(key)),
            (value, Some(map)) => merge(map.entry(key.clone()).or_insert(Value::Null), value),
            (_, None) => {}
        }
    }
}

impl FakeTransport {
    fn create(&self, state: &mut State, request: &ApiRequest, body: &Body) -> Result<ApiResponse, Status> {
        match request.subresource {
            "binding" => {
                let node = value_of(body).pointer("/target/name").cloned().unwrap_or_default();
                let patch = json!({ "spec": { "nodeName": node } });
                return self.patch(state, request, &patch);
            }
            "eviction" => return self.delete(state, request, &DeleteOptions::default()),
            _ => {}
        }
        let mut object = dynamic(value_of(body))?;
        let meta = object.meta_mut();
        if !request.namespace.is_empty() {
            meta.namespace = Some(request.namespace.clone());
        }
        if meta.name.as_deref().unwrap_or("").is_empty() {
            let base = meta.generate_name.clone().unwrap_or_default();
            meta.name = Some(format!("{base}{}", random_suffix(5)));
        }
        meta.uid = Some(uuid());
        meta.generation = Some(1);
        meta.creation_timestamp = Some(Time(self.clock.now()));
        let key = (request.namespace.clone(), (&object as &dyn Object).name().to_owned());
        let ResourceId { group, resource, .. } = request.resource;
        if state.objects.get(&request.resource).is_some_and(|objects| objects.contains_key(&key)) {
            return Err(Status::already_exists(group, resource, &key.1));
        }
        answer(state.commit(request.resource, key, Some(object)))
    }

    fn replace(&self, state: &mut State, request: &ApiRequest, value: Value) -> Result<ApiResponse, Status> {
        let old = state.find(request)?;
        let mut new = dynamic(value)?;
        let (group, resource) = (request.resource.group, request.resource.resource);
        let version = new.meta().resource_version.as_deref().unwrap_or("");
        if !version.is_empty() && old.meta().resource_version.as_deref() != Some(version) {
            return Err(Status::modified(group, resource, &request.name));
        }
        if new.meta().uid.as_ref().is_some_and(|uid| old.meta().uid.as_ref() != Some(uid)) {
            return Err(Status::conflict(
                group,
                resource,
                &request.name,
                "the UID in the precondition differs",
            ));
        }
        if request.subresource == "status" {
            // Annotations may come with a status, as with most kinds.
            let status = new.body().get("status").cloned().unwrap_or(json!({}));
            let annotations = new.meta().annotations.clone();
            new = (*old).clone();
            new.meta_mut().annotations = annotations;
            new.body_mut()["status"] = status;
        } else {
            // As the strategies of kinds with a status subresource do; kinds without one have no `status`.
            if let Some(status) = old.body().get("status") {
                new.body_mut()["status"] = status.clone();
            }
            let changed = old.body().get("spec") != new.body().get("spec");
            let generation = old.meta().generation.unwrap_or(1) + i64::from(changed);
            let meta = new.meta_mut();
            meta.uid.clone_from(&old.meta().uid);
            meta.namespace.clone_from(&old.meta().namespace);
            meta.creation_timestamp.clone_from(&old.meta().creation_timestamp);
            meta.deletion_timestamp.clone_from(&old.meta().deletion_timestamp);
            meta.deletion_grace_period_seconds = old.meta().deletion_grace_period_seconds;
            meta.generation = Some(generation);
        }
        let key = (request.namespace.clone(), request.name.clone());
        let meta = new.meta();
        let waits = meta.deletion_grace_period_seconds.unwrap_or(0) > 0;
        let held = meta.finalizers.as_ref().is_some_and(|f| !f.is_empty())
            || new
                .body()
                .pointer("/spec/finalizers")
                .and_then(Value::as_array)
                .is_some_and(|f| !f.is_empty());
        let gone = meta.deletion_timestamp.is_some() && !waits && !held;
        answer(state.commit(request.resource, key, (!gone).then_some(new)))
    }

    fn patch(&self, state: &mut State, request: &ApiRequest, patch: &Value) -> Result<ApiResponse, Status> {
        let mut value = state.find(request)?.to_value();
        merge(&mut value, patch);
        self.replace(state, request, value)
    }

    fn delete(
        &self,
        state: &mut State,
        request: &ApiRequest,
        options: &DeleteOptions,
    ) -> Result<ApiResponse, Status> {
        let old = state.find(request)?;
        let meta = old.meta();
        let ResourceId { group, resource, .. } = request.resource;
        let differs = |want: &Option<String>, have: &Option<String>| want.is_some() && want != have;
        if differs(&options.uid, &meta.uid) || differs(&options.resource_version, &meta.resource_version) {
            return Err(Status::conflict(group, resource, &request.name, "a precondition failed"));
        }
        let policy = options.propagation_policy.as_deref().unwrap_or("");
        let mut new = (*old).clone();
        let finalizer = match policy {
            "Foreground" => Some("foregroundDeletion"),
            "Orphan" => Some("orphan"),
            _ => None,
        };
        if let Some(finalizer) = finalizer {
            let finalizers = new.meta_mut().finalizers.get_or_insert_default();
            if !finalizers.iter().any(|f| f == finalizer) {
                finalizers.push(finalizer.to_owned());
            }
        }
        let bound = resource == "pods"
            && old.body().pointer("/spec/nodeName").and_then(Value::as_str).is_some_and(|n| !n.is_empty());
        let grace = if bound { options.grace_period_seconds.unwrap_or(30) } else { 0 };
        let has = |list: Option<&Vec<String>>| list.is_some_and(|f| !f.is_empty());
        let held = has(new.meta().finalizers.as_ref()) || resource == "namespaces";
        let key = (request.namespace.clone(), request.name.clone());
        if grace == 0 && !held {
            return answer(state.commit(request.resource, key, None));
        }
        if resource == "namespaces" {
            new.body_mut()["status"]["phase"] = "Terminating".into();
        }
        new.meta_mut().deletion_timestamp.get_or_insert(Time(self.clock.now()));
        new.meta_mut().deletion_grace_period_seconds = Some(grace);
        answer(state.commit(request.resource, key, Some(new)))
    }

    fn list(state: &State, request: &ApiRequest, options: &ListOptions) -> Vec<Arc<DynamicObject>> {
        let objects = state.objects.get(&request.resource).into_iter().flat_map(BTreeMap::values);
        objects.filter(|o| selected(o, &request.namespace, options)).cloned().collect()
    }
}

fn answer(object: Option<Arc<DynamicObject>>) -> Result<ApiResponse, Status> {
    object.map(|o| ApiResponse::Object(o)).ok_or_else(|| Status::internal("nothing was stored"))
}

#[async_trait]
impl Transport for FakeTransport {
    async fn request(&self, request: ApiRequest) -> Result<ApiResponse, Status> {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.requests.push(request.clone());
        let planned = state.failures.iter().position(|(resource, _)| *resource == request.resource.resource);
        if let Some(position) = planned {
            return Err(state.failures.remove(position).1);
        }
        match &request.verb {
            Verb::Get => state.find(&request).map(|o| ApiResponse::Object(o)),
            Verb::List(options) => {
                let found = Self::list(state, &request, options);
                Ok(ApiResponse::List {
                    items: found.into_iter().map(|o| o as Arc<dyn Object>).collect(),
                    resource_version: state.revision.to_string(),
                    continue_token: String::new(),
                })
            }
            Verb::Create(body, _) => self.create(state, &request, body),
            Verb::Update(body, _) => self.replace(state, &request, value_of(body)),
            Verb::Patch(PatchKind::Json, ..) => Err(Status::unsupported_media_type("JSON patches")),
            Verb::Patch(_, patch, _) => self.patch(state, &request, patch),
            Verb::Delete(options) => self.delete(state, &request, options),
            Verb::DeleteCollection(delete, list) => {
                for object in Self::list(state, &request, list) {
                    let object: Arc<dyn Object> = object;
                    let namespace = object.namespace().to_owned();
                    let one = ApiRequest { namespace, name: object.name().to_owned(), ..request.clone() };
                    self.delete(state, &one, delete)?;
                }
                Ok(ApiResponse::Status(json!({ "kind": "Status", "status": "Success" })))
            }
        }
    }

    async fn watch(
        &self,
        resource: ResourceId,
        namespace: &str,
        options: ListOptions,
        send_initial_events: bool,
    ) -> Result<WatchStream, Status> {
        let mut state = self.state.lock();
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let from = options.resource_version.parse::<u64>().ok();
        let watcher = Watcher { resource, namespace: namespace.to_owned(), options, sender };
        let send = |event: WatchEvent| drop(watcher.sender.send(Ok(event)));
        if send_initial_events {
            let objects = state.objects.get(&resource).into_iter().flat_map(BTreeMap::values);
            objects.filter(|o| watcher.wants(resource, o)).for_each(|o| send(WatchEvent::Added(o.clone())));
            let resource_version = state.revision.to_string();
            send(WatchEvent::Bookmark { resource_version, initial_events_end: true });
        } else if let Some(from) = from {
            let oldest = state.log.first().map_or(state.revision + 1, |logged| logged.revision);
            if from + 1 < oldest {
                return Err(Status::expired(format!("too old resource version: {from} ({oldest})")));
            }
            let later = state.log.iter().filter(|logged| logged.revision > from);
            later.filter_map(|logged| event_for(logged, &watcher)).for_each(send);
        }
        state.watchers.push(watcher);
        drop(state);
        Ok(futures::stream::poll_fn(move |cx| receiver.poll_recv(cx)).boxed())
    }

    async fn read(&self, path: &str, _query: &str) -> Result<Value, Status> {
        self.state.lock().paths.get(path).cloned().ok_or_else(Status::no_such_path)
    }
}
