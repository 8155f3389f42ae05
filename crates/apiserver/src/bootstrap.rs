//! What the server creates itself: system namespaces, bootstrap policy, and what others keep up; and the housekeeping
//! of history and Events.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use coracle_client::{DeleteOptions, PatchKind, WriteOptions};
use coracle_meta::{Object, Status};
use coracle_stdx::pack::Rounds;
use coracle_store::Revision;
use k8s_openapi::api::core::v1::Event;
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::cache::Filter;
use crate::config::StartError;
use crate::masters;
use crate::registry::Resource;
use crate::server::{CLEAN_EVERY, REST_EVERY, Server};
use crate::verbs::patch::Patch;
use crate::verbs::{Input, Part};

/// Namespaces that always exist.
const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];
const TRACKING: &str = "kube-apiserver-legacy-service-account-token-tracking";

/// Creates what must exist before the first request.
pub(crate) async fn run(server: &Arc<Server>, objects: Vec<Box<dyn Object>>) -> Result<(), StartError> {
    let failed = |what: &str, status: &Status| StartError::Bootstrap {
        what: what.to_owned(),
        why: status.message().to_owned(),
    };
    for name in NAMESPACES {
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        let made = ensure(server, "", "namespaces", "", name, namespace).await;
        made.map_err(|s| failed(&format!("Namespace {name}"), &s))?;
    }
    tracking(server).await.map_err(|s| failed(&format!("ConfigMap {TRACKING}"), &s))?;
    for obj in objects {
        let gvk = obj.gvk();
        let resource = server
            .cache
            .registry
            .all()
            .into_iter()
            .find(|r| r.def.group == gvk.group && r.def.version == gvk.version && r.def.kind == gvk.kind);
        let Some(resource) = resource else {
            warn!(kind = gvk.kind, "bootstrap object of a kind that is not served");
            continue;
        };
        let what = format!("{} {}", gvk.kind, obj.name());
        reconcile(server, &resource, &*obj).await.map_err(|s| failed(&what, &s))?;
    }
    for want in coracle_resources::bootstrap() {
        let what = format!("{} {}", want["kind"], want["metadata"]["name"]);
        builtin(server, want).await.map_err(|s| failed(&what, &s))?;
    }
    masters::enter(server).await.map_err(|s| failed("Service default/kubernetes", &s))?;
    crate::upkeep::once(server).await.map_err(|s| failed("status of what the server keeps", &s))?;
    info!(revision = server.store.revision(), "API server ready");
    Ok(())
}

pub(crate) fn find(server: &Server, group: &str, plural: &str) -> Result<Arc<Resource>, Status> {
    server.cache.registry.find(group, plural).ok_or_else(Status::no_such_path)
}

/// Writes down since when the uses of legacy tokens are noted, unless a day stands there already.
async fn tracking(server: &Arc<Server>) -> Result<(), Status> {
    let since = server.clock.now().strftime("%Y-%m-%d").to_string();
    let want = json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": { "since": since },
        "metadata": { "name": TRACKING, "namespace": "kube-system" } });
    let maps = find(server, "", "configmaps")?;
    let Some(entry) = maps.cache.get(&maps.key("kube-system", TRACKING)) else {
        return ensure(server, "", "configmaps", "kube-system", TRACKING, want).await;
    };
    let have: Value = serde_json::from_slice(&entry.encoded()).map_err(Status::internal)?;
    if have["data"]["since"].as_str().is_some_and(|day| day.parse::<jiff::civil::Date>().is_ok()) {
        return Ok(());
    }
    let patch = Patch { kind: PatchKind::Merge, body: &json!({ "data": want["data"] }), twice: &[] };
    let (caller, opts) = (Server::loopback(), WriteOptions::default());
    unless_raced(server.patch(&caller, &maps, "kube-system", TRACKING, Part::Main, patch, &opts).await)
}

/// Creates an object when it is absent.
pub(crate) async fn ensure(
    server: &Arc<Server>,
    group: &str,
    plural: &str,
    namespace: &str,
    name: &str,
    value: Value,
) -> Result<(), Status> {
    let resource = find(server, group, plural)?;
    if resource.cache.get(&resource.key(namespace, name)).is_some() {
        return Ok(());
    }
    let (caller, opts) = (Server::loopback(), WriteOptions::default());
    unless_raced(server.create(&caller, &resource, namespace, Input::Json(value), &opts).await)
}

/// Creates an object that every cluster has. One that is annotated to be kept up to date gets its spec back.
async fn builtin(server: &Arc<Server>, want: Value) -> Result<(), Status> {
    const AUTO_UPDATE: &str = "/metadata/annotations/apf.kubernetes.io~1autoupdate-spec";
    let text = |pointer: &str| want.pointer(pointer).and_then(Value::as_str).unwrap_or("").to_owned();
    let (api_version, kind, name) = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    let mut all = server.cache.registry.all().into_iter();
    let Some(resource) = all.find(|r| r.def.group == group && r.def.kind == kind) else {
        return Ok(());
    };
    let Some(entry) = resource.cache.get(&resource.key("", &name)) else {
        return ensure(server, group, resource.def.plural, "", &name, want).await;
    };
    let mut have: Value = serde_json::from_slice(&entry.encoded()).map_err(Status::internal)?;
    let kept = have.pointer(AUTO_UPDATE).and_then(Value::as_str) == Some("true");
    if !kept || covers(have.get("spec"), want.get("spec")) {
        return Ok(());
    }
    have["spec"] = want["spec"].clone();
    let (caller, opts) = (Server::loopback(), WriteOptions::default());
    unless_raced(server.update(&caller, &resource, "", &name, Part::Main, Input::Json(have), &opts).await)
}

/// A conflict means that another API server on the same store has done it.
pub(crate) fn unless_raced<T>(done: Result<T, Status>) -> Result<(), Status> {
    match done {
        Err(status) if status.code() != 409 => Err(status),
        _ => Ok(()),
    }
}

/// Creates a bootstrap object, or brings back what of it has been taken away, as upstream's reconciliation
/// of RBAC policy. Objects annotated `rbac.authorization.kubernetes.io/autoupdate: "false"` are left alone.
async fn reconcile(server: &Arc<Server>, resource: &Arc<Resource>, obj: &dyn Object) -> Result<(), Status> {
    let (namespace, name) = (obj.namespace(), obj.name());
    let Some(entry) = resource.cache.get(&resource.key(namespace, name)) else {
        let plural = resource.def.plural;
        return ensure(server, resource.def.group, plural, namespace, name, obj.to_value()).await;
    };
    let mut value: Value = serde_json::from_slice(&entry.encoded()).map_err(Status::internal)?;
    let auto = value.pointer("/metadata/annotations/rbac.authorization.kubernetes.io~1autoupdate");
    if auto.and_then(Value::as_str) == Some("false") || !complete(&mut value, &obj.to_value()) {
        return Ok(());
    }
    let (caller, opts) = (Server::loopback(), WriteOptions::default());
    let input = Input::Json(value);
    unless_raced(server.update(&caller, resource, namespace, name, Part::Main, input, &opts).await)
}

/// Adds to `have` the rules, subjects and labels of `want` that are missing; whether anything was.
fn complete(have: &mut Value, want: &Value) -> bool {
    let mut changed = false;
    for list in ["rules", "subjects"] {
        let Some(wanted) = want.get(list).and_then(Value::as_array) else { continue };
        let missing: Vec<Value> = {
            let present = have.get(list).and_then(Value::as_array);
            wanted.iter().filter(|w| !present.is_some_and(|p| p.contains(w))).cloned().collect()
        };
        if missing.is_empty() {
            continue;
        }
        changed = true;
        match have.get_mut(list).and_then(Value::as_array_mut) {
            Some(present) => present.extend(missing),
            None => have[list] = missing.into(),
        }
    }
    for map in ["labels", "annotations"] {
        let Some(wanted) = want["metadata"].get(map).and_then(Value::as_object) else { continue };
        for (key, value) in wanted {
            if have["metadata"][map].get(key).is_none() {
                have["metadata"][map][key] = value.clone();
                changed = true;
            }
        }
    }
    changed
}

/// Whether `have` says at least what `want` says (defaults may have been added).
pub(crate) fn covers(have: Option<&Value>, want: Option<&Value>) -> bool {
    match (have, want) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(Value::Object(have)), Some(Value::Object(want))) => {
            want.iter().all(|(key, value)| covers(have.get(key), Some(value)))
        }
        (Some(Value::Array(have)), Some(Value::Array(want))) => {
            have.len() == want.len() && have.iter().zip(want).all(|(h, w)| covers(Some(h), Some(w)))
        }
        (Some(have), Some(want)) => have == want,
    }
}

/// Lets the cache and the store give back what only a burst of changes needed.
pub(crate) async fn rest(server: Arc<Server>) {
    loop {
        tokio::time::sleep(REST_EVERY).await;
        server.cache.trim();
        if let Err(e) = server.store.rest().await {
            warn!(error = %e, "the store cannot move its newest entries from memory to the disk");
        }
    }
}

/// Packs what nobody reads.
pub(crate) async fn pack(server: Arc<Server>) {
    let mut rounds = Rounds::default();
    loop {
        let only_new = rounds.next().await;
        server.cache.pack(only_new).await;
    }
}

/// Which revision was the newest when, to tell from where history is kept.
#[derive(Debug, Default)]
struct Marks(VecDeque<(Instant, Revision)>);

impl Marks {
    /// Notes the newest revision. Returns the newest of those that are at least `keep` old.
    fn pass(&mut self, now: Instant, newest: Revision, keep: Duration) -> Option<Revision> {
        self.0.push_back((now, newest));
        let mut due = None;
        while let Some((at, revision)) = self.0.front()
            && now.duration_since(*at) >= keep
        {
            due = Some(*revision);
            self.0.pop_front();
        }
        due
    }
}

/// Compacts history that is older than `keep` (0: none) and deletes expired Events.
pub(crate) async fn housekeeping(server: Arc<Server>, keep: Duration, event_ttl: Duration) {
    // A fifth: a client that reads on at an old revision is told soon after that it is gone, not up to twice as late.
    let every = (keep / 5).clamp(Duration::from_secs(1), CLEAN_EVERY);
    let (mut marks, mut cleaned) = (Marks::default(), Instant::now());
    marks.pass(cleaned, server.store.revision(), keep.max(every));
    loop {
        tokio::time::sleep(if keep.is_zero() { CLEAN_EVERY } else { every }).await;
        let due = marks.pass(Instant::now(), server.store.revision(), keep.max(every));
        if let Some(from) = due.filter(|from| !keep.is_zero() && *from > server.store.compacted())
            && let Err(e) = server.store.compact(from).await
        {
            warn!(error = %e, "compaction failed");
        }
        if cleaned.elapsed() >= keep.min(CLEAN_EVERY) {
            cleaned = Instant::now();
            expire_events(&server, event_ttl).await;
        }
    }
}

/// Deletes Events that are older than `ttl`.
async fn expire_events(server: &Arc<Server>, ttl: Duration) {
    let Ok(resource) = find(server, "", "events") else { return };
    let now = server.clock.now().as_second();
    let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
    let filter = Filter { key: resource.prefix.clone(), ..Filter::default() };
    let caller = Server::loopback();
    for entry in resource.cache.range(&filter, 0).entries {
        let Ok(obj) = entry.decode_full() else { continue };
        let Some(event) = obj.downcast::<Event>() else { continue };
        let last = event.last_timestamp.as_ref().or(event.metadata.creation_timestamp.as_ref());
        if last.is_some_and(|t| now.saturating_sub(t.0.as_second()) > ttl) {
            let (namespace, name) = entry.namespace_name();
            let _ = server.delete(&caller, &resource, namespace, name, &DeleteOptions::default()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_kept_as_long_as_asked_and_a_fifth_more_at_most() {
        let (mut marks, start, keep) = (Marks::default(), Instant::now(), Duration::from_secs(300));
        let due: Vec<Option<Revision>> =
            (0..8).map(|i| marks.pass(start + keep / 5 * i, 100 + u64::from(i), keep)).collect();
        assert_eq!(due, [None, None, None, None, None, Some(100), Some(101), Some(102)]);
        // After a pause the newest of those that are old enough counts.
        assert_eq!(marks.pass(start + 3 * keep, 200, keep), Some(107));
    }
}
