//! delete and deletecollection: grace, finalizers, propagation, preconditions.

use std::sync::Arc;

use coracle_admission::Operation;
use coracle_client::{DeleteOptions, ListOptions};
use coracle_meta::field::ErrorList;
use coracle_meta::{Object, Status};
use coracle_resources::apiextensions::conditions;
use futures::FutureExt as _;
use futures::future::{BoxFuture, try_join_all};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::admit::{Act, Pass};
use super::commit::{Put, Refused};
use super::create::whole_seconds;
use super::list::Page;
use super::update::CONFLICT_TRIES;
use super::{Caller, Outcome};
use crate::cache::CacheEntry;
use crate::registry::Resource;
use crate::server::Server;

/// So many objects of a collection are deleted at a time.
const AT_A_TIME: usize = 64;
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What a deletion answers.
#[derive(Debug)]
pub(crate) enum Deleted {
    /// The object: still there, or of a kind that returns it.
    Object(Outcome),
    /// A success Status.
    Status(Value),
}

/// What is to be done to an object that a client wants deleted.
enum Step {
    /// Remove it from the store now.
    Remove,
    /// Write it with its deletion marks; it stays.
    Mark(Box<dyn Object>),
    /// Write it with its deletion marks, then remove it: nothing holds it.
    MarkAndRemove(Box<dyn Object>),
    /// Its deletion is under way; nothing to write.
    Pending,
}

impl Server {
    /// Deletes an object.
    pub(crate) async fn delete(
        &self,
        caller: &Caller,
        resource: &Resource,
        namespace: &str,
        name: &str,
        opts: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        self.delete_as(caller, resource, namespace, (name, name), opts).await
    }

    /// Deletes the object of the first name; admission is told the second.
    async fn delete_as(
        &self,
        caller: &Caller,
        resource: &Resource,
        namespace: &str,
        (name, told): (&str, &str),
        opts: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        check_delete_options(opts)?;
        warn_of_orphans(caller, resource, opts);
        let caller = &caller.deleting(opts);
        for _ in 0..CONFLICT_TRIES {
            let entry = self.get(resource, namespace, name).await?;
            match self.delete_once(caller, resource, (namespace, told), &entry, opts).await {
                Err(Some(status)) => return Err(status),
                Err(None) => {}
                Ok(deleted) => return Ok(deleted),
            }
        }
        Err(Status::modified(resource.def.group, resource.def.plural, name))
    }

    /// One try; `Err(None)` means that the object changed meanwhile.
    async fn delete_once(
        &self,
        caller: &Caller,
        resource: &Resource,
        (namespace, told): (&str, &str),
        entry: &Arc<CacheEntry>,
        opts: &DeleteOptions,
    ) -> Result<Deleted, Option<Status>> {
        let old = entry.decode_full()?;
        check_delete_preconditions(resource, &*old, entry.revision, opts)?;
        self.admit_delete(caller, resource, (namespace, told), &*old, opts.dry_run).await?;
        let step = if let Some(ns) = old.downcast::<Namespace>() {
            self.namespace_step(ns)
        } else if let Some(crd) = old.downcast::<CustomResourceDefinition>()
            && crd.metadata.deletion_timestamp.is_none()
        {
            let mut crd = crd.clone();
            conditions::begin_deletion(&mut crd, self.clock.now());
            Step::Mark(Box::new(crd))
        } else {
            self.step(resource, &*old, opts)
        };
        match step {
            Step::Pending => Ok(answer(resource, entry.clone(), &*old)),
            Step::Remove => self.remove_and_answer(resource, entry, &*old, opts.dry_run).await,
            Step::Mark(mut obj) => {
                if opts.dry_run {
                    let entry =
                        self.imagined(resource, entry.key.clone(), &mut *obj, Some(entry.revision))?;
                    return Ok(Deleted::Object(Outcome::of(entry)));
                }
                let entry = self.mark(resource, entry, obj).await?;
                Ok(Deleted::Object(Outcome::of(entry)))
            }
            Step::MarkAndRemove(mut obj) => {
                if opts.dry_run {
                    let entry =
                        self.imagined(resource, entry.key.clone(), &mut *obj, Some(entry.revision))?;
                    return Ok(answer(resource, entry, &*old));
                }
                let entry = self.mark(resource, entry, obj).await?;
                match self.remove_and_answer(resource, &entry, &*old, false).await {
                    // Who saw the mark, such as the kubelet, was faster: that is what was wanted.
                    Err(None) if !self.exists(resource, namespace, &*old).await => {
                        Ok(answer(resource, entry, &*old))
                    }
                    other => other,
                }
            }
        }
    }

    /// Whether this very object, not only one of its name, is still there.
    async fn exists(&self, resource: &Resource, namespace: &str, obj: &dyn Object) -> bool {
        let present = self.get(resource, namespace, obj.name()).await.and_then(|entry| entry.decoded());
        present.is_ok_and(|present| present.meta().uid == obj.meta().uid)
    }

    async fn mark(
        &self,
        resource: &Resource,
        entry: &Arc<CacheEntry>,
        mut obj: Box<dyn Object>,
    ) -> Result<Arc<CacheEntry>, Option<Status>> {
        let same = self.imagined(resource, entry.key.clone(), &mut *obj, Some(entry.revision))?;
        if same.encoded() == entry.encoded() {
            return Ok(entry.clone());
        }
        match self.put(resource, entry.key.clone(), obj, Put::over(entry.revision)).await {
            Ok(entry) => Ok(entry),
            Err(Refused::Condition(..)) => Err(None),
            Err(Refused::Failed(status)) => Err(Some(status)),
        }
    }

    async fn remove_and_answer(
        &self,
        resource: &Resource,
        entry: &Arc<CacheEntry>,
        old: &dyn Object,
        dry_run: bool,
    ) -> Result<Deleted, Option<Status>> {
        let mut gone = entry.clone();
        if !dry_run {
            let revision = self.remove(entry).await?;
            self.services.release(old);
            gone = Arc::new(entry.at_revision(revision));
        }
        Ok(answer(resource, gone, old))
    }

    /// An update took the last thing that held an object under deletion: it goes, and the update answers
    /// with its last state.
    pub(crate) async fn finish_deletion(
        &self,
        resource: &Resource,
        entry: &Arc<CacheEntry>,
        mut obj: Box<dyn Object>,
        dry_run: bool,
        warnings: Vec<String>,
    ) -> Result<Outcome, Refused> {
        if !dry_run {
            match self.remove(entry).await {
                Ok(_) => self.services.release(&*obj),
                Err(None) => return Err(Refused::Condition(obj)),
                Err(Some(status)) => return Err(Refused::Failed(status)),
            }
        }
        let entry = self.imagined(resource, entry.key.clone(), &mut *obj, Some(entry.revision));
        Ok(Outcome { entry: entry.map_err(Refused::Failed)?, warnings, created: false })
    }

    async fn admit_delete(
        &self,
        caller: &Caller,
        resource: &Resource,
        (namespace, name): (&str, &str),
        old: &dyn Object,
        dry_run: bool,
    ) -> Result<(), Status> {
        let operation = Operation::Delete;
        let act = Act { operation, resource, subresource: "", namespace, name, dry_run };
        self.admit(caller, Pass::Both, act, None, Some(old)).await.map(drop)
    }

    fn step(&self, resource: &Resource, old: &dyn Object, opts: &DeleteOptions) -> Step {
        let now = whole_seconds(self.clock.now());
        let mut obj = old.clone_object();
        let asked = opts.grace_period_seconds.map(|s| if s < 0 { 1 } else { s });
        let graceful = match begin_grace(resource, &mut *obj, asked, now) {
            Grace::Pending => return Step::Pending,
            Grace::None => None,
            Grace::Given(seconds) => Some(seconds),
        };
        let finalizers = finalizers_for(resource, old, opts);
        obj.meta_mut().finalizers = (!finalizers.is_empty()).then_some(finalizers);
        let held = obj.meta().finalizers.is_some();
        match graceful {
            None if held => {
                mark_deleting(&mut *obj, now);
                Step::Mark(obj)
            }
            None => Step::Remove,
            Some(seconds) if held || seconds > 0 => Step::Mark(obj),
            Some(_) => Step::MarkAndRemove(obj),
        }
    }

    /// Namespaces go through a phase of their own, which the namespace controller ends.
    fn namespace_step(&self, ns: &Namespace) -> Step {
        let held = ns.spec.as_ref().is_some_and(|s| s.finalizers.as_ref().is_some_and(|f| !f.is_empty()));
        let finalized = ns.metadata.finalizers.as_ref().is_some_and(|f| !f.is_empty());
        if ns.metadata.deletion_timestamp.is_some() {
            if held {
                return Step::Mark(Box::new(ns.clone()));
            }
            return if finalized { Step::Mark(Box::new(ns.clone())) } else { Step::Remove };
        }
        if !held && !finalized {
            return Step::Remove;
        }
        let mut ns = ns.clone();
        ns.metadata.deletion_timestamp = Some(Time(whole_seconds(self.clock.now())));
        ns.status.get_or_insert_default().phase = Some("Terminating".into());
        Step::Mark(Box::new(ns))
    }

    /// Deletes all objects that a list selects; answers with them as they were.
    pub(crate) async fn delete_collection(
        &self,
        caller: &Caller,
        resource: &Resource,
        namespace: &str,
        opts: &DeleteOptions,
        list: &ListOptions,
    ) -> Result<Page, Status> {
        check_delete_options(opts)?;
        warn_of_orphans(caller, resource, opts);
        let page = self.list(resource, namespace, "", list).await?;
        // Several at a time, so that they share flushes of the store.
        for entries in page.entries.chunks(AT_A_TIME) {
            let each = entries.iter().map(|entry| self.delete_one(caller, resource, entry, opts));
            try_join_all(each).await?;
        }
        Ok(page)
    }

    /// Deletes an object of a collection, unless it is gone already.
    fn delete_one<'a>(
        &'a self,
        caller: &'a Caller,
        resource: &'a Resource,
        entry: &'a CacheEntry,
        opts: &'a DeleteOptions,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let (ns, name) = entry.namespace_name();
        // As upstream: admission hears no names when a collection is deleted.
        let deleted = self.delete_as(caller, resource, ns, (name, ""), opts);
        deleted
            .map(|deleted| match deleted {
                Err(status) if status.code() != 404 => Err(status),
                _ => Ok(()),
            })
            .boxed()
    }
}

/// How graceful deletion begins.
enum Grace {
    /// The kind has none.
    None,
    /// Under way, and not shortened.
    Pending,
    /// Marks were set; seconds granted.
    Given(i64),
}

fn begin_grace(resource: &Resource, obj: &mut dyn Object, asked: Option<i64>, now: jiff::Timestamp) -> Grace {
    let Some(period) = resource.def.strategy.graceful_deletion(obj, asked) else { return Grace::None };
    let meta = obj.meta_mut();
    if let Some(Time(at)) = &meta.deletion_timestamp {
        // Granted nothing and still here: a write came between the mark and the removal, so remove it now.
        let Some(granted) = meta.deletion_grace_period_seconds.filter(|g| *g > 0) else {
            return Grace::None;
        };
        return match asked {
            Some(asked) if asked < granted => {
                let shorter = jiff::SignedDuration::from_secs(granted - asked);
                meta.deletion_timestamp = Some(Time(at.checked_sub(shorter).unwrap_or(now)));
                meta.deletion_grace_period_seconds = Some(asked);
                Grace::Given(asked)
            }
            _ => Grace::Pending,
        };
    }
    let at = now.checked_add(jiff::SignedDuration::from_secs(period)).unwrap_or(now);
    meta.deletion_timestamp = Some(Time(at));
    meta.deletion_grace_period_seconds = Some(period);
    if let Some(generation) = meta.generation.filter(|g| *g > 0) {
        meta.generation = Some(generation + 1);
    }
    Grace::Given(period)
}

fn mark_deleting(obj: &mut dyn Object, now: jiff::Timestamp) {
    let meta = obj.meta_mut();
    if meta.deletion_timestamp.is_none()
        && let Some(generation) = meta.generation.filter(|g| *g > 0)
    {
        meta.generation = Some(generation + 1);
    }
    if meta.deletion_timestamp.as_ref().is_none_or(|Time(at)| *at > now) {
        meta.deletion_timestamp = Some(Time(now));
    }
    meta.deletion_grace_period_seconds = Some(0);
}

/// Jobs leave their pods behind unless asked otherwise, which few expect.
fn warn_of_orphans(caller: &Caller, resource: &Resource, opts: &DeleteOptions) {
    if (resource.def.group, resource.def.kind) != ("batch", "Job") || opts.propagation_policy.is_some() {
        return;
    }
    let text = "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to \
                remove them or set propagationPolicy=Orphan to suppress this warning";
    caller.warn(&[text.to_owned()]);
}

/// The finalizers with those of the garbage collector set as the propagation policy says.
fn finalizers_for(resource: &Resource, old: &dyn Object, opts: &DeleteOptions) -> Vec<String> {
    let present = old.meta().finalizers.clone().unwrap_or_default();
    if resource.def.kind == "Event" {
        return present;
    }
    let has = |name: &str| present.iter().any(|f| f == name);
    let policy = opts.propagation_policy.as_deref();
    let orphan = match policy {
        Some(policy) => policy == "Orphan",
        None => has(ORPHAN) || (!has(FOREGROUND) && resource.def.orphan_by_default),
    };
    let foreground = match policy {
        Some(policy) => policy == "Foreground",
        None => has(FOREGROUND) && !has(ORPHAN),
    };
    let mut out: Vec<String> = present.into_iter().filter(|f| f != ORPHAN && f != FOREGROUND).collect();
    out.extend(orphan.then(|| ORPHAN.to_owned()));
    out.extend(foreground.then(|| FOREGROUND.to_owned()));
    out
}

fn answer(resource: &Resource, entry: Arc<CacheEntry>, old: &dyn Object) -> Deleted {
    if resource.def.returns_deleted {
        return Deleted::Object(Outcome::of(entry));
    }
    let mut details = json!({ "name": old.name(), "kind": resource.def.plural });
    if !resource.def.group.is_empty() {
        details["group"] = resource.def.group.into();
    }
    if let Some(uid) = &old.meta().uid {
        details["uid"] = uid.clone().into();
    }
    Deleted::Status(json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
    }))
}

pub(super) fn check_delete_preconditions(
    resource: &Resource,
    old: &dyn Object,
    revision: u64,
    opts: &DeleteOptions,
) -> Result<(), Status> {
    let present = old.meta().uid.as_deref().unwrap_or("");
    if let Some(asked) = opts.uid.as_deref().filter(|asked| *asked != present) {
        let why = format!(
            "the UID in the precondition ({asked}) does not match the UID in record ({present}). \
             The object might have been deleted and then recreated"
        );
        return Err(Status::conflict(resource.def.group, resource.def.kind, old.name(), &why));
    }
    if let Some(asked) = opts.resource_version.as_deref().filter(|asked| *asked != revision.to_string()) {
        let why = format!(
            "the ResourceVersion in the precondition ({asked}) does not match the ResourceVersion in record \
             ({revision}). The object might have been modified"
        );
        return Err(Status::conflict(resource.def.group, resource.def.kind, old.name(), &why));
    }
    Ok(())
}

fn check_delete_options(opts: &DeleteOptions) -> Result<(), Status> {
    let mut errs = ErrorList::new();
    if let Some(policy) = opts.propagation_policy.as_deref()
        && !matches!(policy, "Orphan" | "Background" | "Foreground")
    {
        errs.not_supported("propagationPolicy", policy, &["Foreground", "Background", "Orphan", "nil"]);
    }
    if errs.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &errs)) }
}
