//! update: the resource itself and its writable parts (status, finalize, ephemeral containers, resize).

use std::sync::Arc;

use coracle_admission::Operation;
use coracle_auth::{Attributes, Decision};
use coracle_client::WriteOptions;
use coracle_meta::field::ErrorList;
use coracle_meta::go::Empties;
use coracle_meta::object_meta::{NameCheck, Recheck};
use coracle_meta::{Object, Status, object_meta};
use coracle_resources::def::ResourceDef;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde_json::Value;

use super::admit::{Act, Pass};
use super::commit::{Put, Refused};
use super::create::{place, wipe_system_fields};
use super::{Caller, Input, Outcome, Part, check_options};
use crate::cache::CacheEntry;
use crate::codec;
use crate::registry::Resource;
use crate::server::Server;

/// Tries when an unconditional write meets a concurrent one.
pub(crate) const CONFLICT_TRIES: usize = 8;

/// A changed object on its way to the store.
pub(crate) struct Change {
    /// The object as it shall be.
    pub(crate) obj: Box<dyn Object>,
    /// For the client.
    pub(crate) warnings: Vec<String>,
    /// Lists and maps that were sent empty.
    pub(crate) empties: Empties,
}

impl Change {
    /// An object that nobody sent as text.
    pub(crate) fn of(obj: Box<dyn Object>, warnings: Vec<String>) -> Self {
        Self { obj, warnings, empties: Empties::default() }
    }
}

impl Server {
    /// Replaces an object or a part of it.
    #[expect(clippy::too_many_arguments, reason = "the coordinates of a request")]
    pub(crate) async fn update(
        &self,
        caller: &Caller,
        resource: &Arc<Resource>,
        namespace: &str,
        name: &str,
        part: Part,
        input: Input,
        opts: &WriteOptions,
    ) -> Result<Outcome, Status> {
        check_options("UpdateOptions", opts)?;
        let caller = &caller.asking(opts, false);
        let decoded = self.decode(resource, input, &opts.field_validation)?;
        caller.warn(&decoded.warnings);
        let mut obj = decoded.obj;
        check_name(&*obj, name)?;
        place(resource, namespace, &mut *obj)?;
        let sent = Change { obj, warnings: decoded.warnings, empties: decoded.empties };
        self.fresh().await?;
        let Some(mut entry) = self.look(resource, namespace, name).await? else {
            return self.update_absent(caller, resource, namespace, name, part, sent, opts).await;
        };
        let present = entry.decoded()?.meta().uid.clone().unwrap_or_default();
        match sent.obj.meta().uid.as_deref() {
            Some(uid) if !uid.is_empty() && uid != present => {
                return Err(uid_conflict(resource, &entry, (uid, &present), opts.dry_run));
            }
            _ => {}
        }
        // Without a revision every concurrent write is simply replaced.
        let unconditional = unset(sent.obj.meta().resource_version.as_deref());
        for attempt in 1.. {
            let (warnings, empties) = (sent.warnings.clone(), sent.empties.clone());
            let change = Change { obj: sent.obj.clone_object(), warnings, empties };
            match self.replace(caller, resource, namespace, part, &entry, change, opts).await {
                Err(Refused::Condition(..)) if unconditional && attempt < CONFLICT_TRIES => {
                    entry = self.get(resource, namespace, name).await?;
                }
                Err(Refused::Condition(..)) => {
                    return Err(Status::modified(resource.def.group, resource.def.plural, name));
                }
                Err(Refused::Failed(status)) => return Err(status),
                Ok(outcome) => return Ok(outcome),
            }
        }
        Err(Status::modified(resource.def.group, resource.def.plural, name))
    }

    #[expect(clippy::too_many_arguments, reason = "the coordinates of a request")]
    async fn update_absent(
        &self,
        caller: &Caller,
        resource: &Arc<Resource>,
        namespace: &str,
        name: &str,
        part: Part,
        mut sent: Change,
        opts: &WriteOptions,
    ) -> Result<Outcome, Status> {
        if part != Part::Main || !resource.def.create_on_update {
            return Err(Status::not_found(resource.def.group, resource.def.plural, name));
        }
        if !unset(sent.obj.meta().resource_version.as_deref()) {
            return Err(Status::modified(resource.def.group, resource.def.plural, name));
        }
        // To create by PUT takes the right to create.
        let wish = Attributes {
            user: (*caller.user).clone(),
            verb: "create".to_owned(),
            is_resource: true,
            group: resource.def.group.to_owned(),
            version: resource.def.version.to_owned(),
            resource: resource.def.plural.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..Attributes::default()
        };
        if let (Decision::Deny | Decision::NoOpinion, reason) = self.decide(&wish).await {
            return Err(wish.forbidden(&reason));
        }
        wipe_system_fields(sent.obj.meta_mut());
        resource.def.strategy.default(&mut *sent.obj);
        let manager = self.manager(caller, opts);
        self.track(resource, &mut sent, None, &manager, "");
        self.create_object(caller, resource, namespace, sent, opts.dry_run).await
    }

    /// One try to put `change` in the place of `entry`: fields are tracked here.
    #[expect(clippy::too_many_arguments, reason = "the coordinates of a request")]
    pub(crate) async fn replace(
        &self,
        caller: &Caller,
        resource: &Resource,
        namespace: &str,
        part: Part,
        entry: &Arc<CacheEntry>,
        mut change: Change,
        opts: &WriteOptions,
    ) -> Result<Outcome, Refused> {
        let old = entry.decode_full().map_err(Refused::Failed)?;
        resource.def.strategy.default(&mut *change.obj);
        self.check_preconditions(resource, &*change.obj, &*old, entry.revision).map_err(Refused::Failed)?;
        let manager = self.manager(caller, opts);
        let live = Some(&entry.encoded()[..]);
        self.track(resource, &mut change, live, &manager, part.path());
        self.finish(caller, resource, namespace, part, entry, &*old, change, opts.dry_run).await
    }

    /// Everything behind field tracking: admission, preparation, validation, commit.
    #[expect(clippy::too_many_arguments, reason = "the coordinates of a request")]
    pub(crate) async fn finish(
        &self,
        caller: &Caller,
        resource: &Resource,
        namespace: &str,
        part: Part,
        entry: &Arc<CacheEntry>,
        old: &dyn Object,
        change: Change,
        dry_run: bool,
    ) -> Result<Outcome, Refused> {
        let Change { mut obj, mut warnings, empties } = change;
        let (operation, name) = (Operation::Update, old.name());
        let act = Act { operation, resource, subresource: part.path(), namespace, name, dry_run };
        let more = self.admit(caller, Pass::Mutate, act, Some(&mut obj), Some(old)).await;
        warnings.extend(more.map_err(Refused::Failed)?);
        self.forbid_escalation(caller, resource, &*obj, Some(old)).map_err(Refused::Failed)?;
        self.forbid_signing(caller, resource, part, &*obj, old).map_err(Refused::Failed)?;
        keep_system_fields(&mut *obj, old);
        let allocation = if part == Part::Main {
            self.services.allocate(&mut *obj, Some(old), dry_run).map_err(Refused::Failed)?
        } else {
            crate::services::Allocation::none()
        };
        self.prepare_change(caller, resource, part, &mut *obj, old);
        self.validate_change(resource, part, &*obj, old, &empties).map_err(Refused::Failed)?;
        if part == Part::Main {
            warnings.extend(resource.def.strategy.warnings(&*obj, Some(old)));
        }
        let valid = self.admit(caller, Pass::Validate, act, Some(&mut obj), Some(old)).await;
        warnings.extend(valid.map_err(Refused::Failed)?);
        if is_gone(&*obj, old) {
            return self.finish_deletion(resource, entry, obj, dry_run, warnings).await;
        }
        let unsettled = resource.def.strategy.settle(&mut *obj);
        if !dry_run {
            // Never stored.
            obj.meta_mut().self_link = None;
        }
        let times =
            !entry.stale && self.only_times_differ(resource, entry, &*obj, old).map_err(Refused::Failed)?;
        if times && !self.out_of_date(entry).await? {
            return Ok(Outcome { entry: entry.clone(), warnings, created: false });
        }
        let size = entry.size();
        let value = self.fields.encode(resource.def, &mut *obj, size).map_err(Refused::Failed)?;
        let same = codec::splice(&value, entry.revision) == entry.encoded();
        if same && !self.out_of_date(entry).await? {
            return Ok(Outcome { entry: entry.clone(), warnings, created: false });
        }
        if dry_run {
            let entry = self.imagined(resource, entry.key.clone(), &mut *obj, Some(entry.revision));
            return Ok(Outcome { entry: entry.map_err(Refused::Failed)?, warnings, created: false });
        }
        let put = Put { expected: Some(entry.revision), unsettled };
        let written = self.put(resource, entry.key.clone(), obj, put).await?;
        allocation.keep();
        Ok(Outcome { entry: written, warnings, created: false })
    }

    /// Whether the change is one of nothing but times in managedFields: then it is none.
    fn only_times_differ(
        &self,
        resource: &Resource,
        entry: &CacheEntry,
        new: &dyn Object,
        old: &dyn Object,
    ) -> Result<bool, Status> {
        let (now, before) = (&new.meta().managed_fields, &old.meta().managed_fields);
        let (Some(now), Some(before)) = (now, before) else { return Ok(false) };
        let timeless = |e: &ManagedFieldsEntry| ManagedFieldsEntry { time: None, ..e.clone() };
        let same = now != before
            && now.len() == before.len()
            && now.iter().all(|e| before.iter().any(|b| timeless(b) == timeless(e)));
        if !same {
            return Ok(false);
        }
        let mut kept = new.clone_object();
        kept.meta_mut().managed_fields = Some(before.clone());
        let value = self.fields.encode(resource.def, &mut *kept, entry.size())?;
        Ok(codec::splice(&value, entry.revision) == entry.encoded())
    }

    /// uid and resourceVersion that the client sent must be those of the object.
    fn check_preconditions(
        &self,
        resource: &Resource,
        new: &dyn Object,
        old: &dyn Object,
        revision: u64,
    ) -> Result<(), Status> {
        let (group, plural) = (resource.def.group, resource.def.plural);
        let asked = new.meta().resource_version.as_deref();
        if unset(asked) {
            if !resource.def.unconditional_update {
                let mut errs = ErrorList::new();
                errs.invalid("metadata.resourceVersion", 0, "must be specified for an update");
                return Err(Status::invalid(group, plural, old.name(), &errs));
            }
        } else if asked.and_then(|v| v.parse::<u64>().ok()) != Some(revision) {
            if asked.is_some_and(|v| v.parse::<u64>().is_err()) {
                let why = format!("strconv.ParseUint: parsing {:?}: invalid syntax", asked.unwrap_or(""));
                return Err(Status::new(500, coracle_meta::Reason::Unknown, why, None));
            }
            return Err(Status::modified(group, plural, old.name()));
        }
        Ok(())
    }

    /// Checks metadata and the rules of the kind for a change of this part.
    fn validate_change(
        &self,
        resource: &Resource,
        part: Part,
        new: &dyn Object,
        old: &dyn Object,
        empties: &Empties,
    ) -> Result<(), Status> {
        let mut errs = ErrorList::new();
        let recheck = match part {
            Part::Status | Part::Approval => resource.def.recheck_status,
            Part::Finalize | Part::Scale => Recheck::Change,
            Part::Main | Part::EphemeralContainers | Part::Resize => resource.def.recheck,
        };
        let strategy = resource.def.strategy;
        let name_check = |name: &str, prefix: bool| strategy.validate_name(name, prefix);
        let again = (recheck, &name_check as NameCheck<'_>);
        object_meta::validate_change(new.meta(), old.meta(), resource.namespaced(), again, &mut errs);
        if resource.def.of_core() {
            // Each of upstream's two checks of metadata looks at the names of finalizers, too.
            let times = recheck.as_new() + usize::from(recheck.as_change());
            (0..times).for_each(|_| object_meta::validate_standard_finalizers(new.meta(), &mut errs));
        }
        self.check_admin_access(resource, part, (new, Some(old)), &mut errs);
        match part {
            Part::Status => resource.def.strategy.validate_status_update(new, old, &mut errs),
            Part::Main | Part::Scale => resource.def.strategy.validate_update(new, old, &mut errs),
            Part::EphemeralContainers | Part::Resize | Part::Finalize | Part::Approval => {
                resource.def.strategy.validate_part_update(part.subresource(), new, old, &mut errs);
            }
        }
        if errs.is_empty() {
            return Ok(());
        }
        empties.show(&mut errs);
        let stored = resource.def.stored();
        Err(Status::invalid(stored.group, stored.kind, new.name(), &errs))
    }

    fn prepare_change(
        &self,
        caller: &Caller,
        resource: &Resource,
        part: Part,
        obj: &mut dyn Object,
        old: &dyn Object,
    ) {
        let cx = caller.context(self.clock.now());
        resource.def.strategy.drop_disabled(obj);
        match part {
            Part::Status => resource.def.strategy.prepare_status_update(cx, obj, old),
            Part::Main | Part::Scale => resource.def.strategy.prepare_update(cx, obj, old),
            Part::EphemeralContainers | Part::Resize | Part::Finalize | Part::Approval => {
                resource.def.strategy.prepare_part_update(part.subresource(), cx, obj, old);
            }
        }
        // A strategy with a rule of its own has raised it already.
        let raised = obj.meta().generation != old.meta().generation;
        if resource.def.has_generation && part != Part::Status && !raised && essence(obj) != essence(old) {
            obj.meta_mut().generation = Some(old.meta().generation.unwrap_or(0) + 1);
        }
    }
}

/// Whether a resourceVersion is absent for the purpose of locking.
pub(crate) fn unset(version: Option<&str>) -> bool {
    matches!(version, None | Some("" | "0"))
}

/// The name in the body must be the one in the URL.
fn check_name(obj: &dyn Object, name: &str) -> Result<(), Status> {
    let own = obj.name();
    if own.is_empty() {
        let why =
            format!("the name of the object ({name} based on URL) was undeterminable: name must be provided");
        return Err(Status::bad_request(why));
    }
    if own != name {
        let why = format!("the name of the object ({own}) does not match the name on the URL ({name})");
        return Err(Status::bad_request(why));
    }
    Ok(())
}

/// The folder that upstream keeps a resource in, where it is not named like the resource.
fn upstream_folder(def: &ResourceDef) -> &'static str {
    match (def.group, def.plural) {
        ("", "replicationcontrollers") => "controllers",
        (_, plural) => plural,
    }
}

/// 409 for a uid (`asked`) that is another object's. Upstream's store is not asked in a dry run, and knows the key
/// by another name then.
pub(crate) fn uid_conflict(
    resource: &Resource,
    entry: &CacheEntry,
    (asked, present): (&str, &str),
    dry_run: bool,
) -> Status {
    let (_, name) = entry.namespace_name();
    let root = if dry_run { "" } else { "/registry" };
    let key = format!("{root}/{}/{}", upstream_folder(resource.def), entry.tail());
    let why = format!(
        "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: \
         Precondition failed: UID in precondition: {asked}, UID in object meta: {present}"
    );
    Status::conflict(resource.def.group, resource.def.plural, name, &why)
}

/// Metadata that only the server sets.
fn keep_system_fields(obj: &mut dyn Object, old: &dyn Object) {
    let (new, old) = (obj.meta_mut(), old.meta());
    // What the client sent stays: validation then says that it cannot be changed.
    if new.uid.as_ref().is_none_or(String::is_empty) {
        new.uid = old.uid.clone();
    }
    new.creation_timestamp = old.creation_timestamp.clone();
    if new.deletion_timestamp.is_none() {
        new.deletion_timestamp = old.deletion_timestamp.clone();
    }
    if new.deletion_grace_period_seconds.is_none() {
        new.deletion_grace_period_seconds = old.deletion_grace_period_seconds;
    }
    new.generation = old.generation;
    new.resource_version = old.resource_version.clone();
}

/// What counts for the generation: all but metadata and status, empty lists like absent ones.
fn essence(obj: &dyn Object) -> Value {
    let mut value = obj.to_value();
    if let Value::Object(map) = &mut value {
        map.remove("metadata");
        map.remove("status");
        map.retain(|_, field| field.as_array().is_none_or(|items| !items.is_empty()));
    }
    value
}

/// Whether nothing holds an object under deletion any more, so that this update is its last: no finalizer is
/// left, and it was granted no grace (or none is left to wait for).
fn is_gone(new: &dyn Object, old: &dyn Object) -> bool {
    let empty = |f: &Option<Vec<String>>| f.as_ref().is_none_or(Vec::is_empty);
    let namespace_done = new
        .downcast::<k8s_openapi::api::core::v1::Namespace>()
        .is_none_or(|ns| ns.spec.as_ref().is_none_or(|s| s.finalizers.as_ref().is_none_or(Vec::is_empty)));
    empty(&new.meta().finalizers)
        && namespace_done
        && old.meta().deletion_timestamp.is_some()
        && old.meta().deletion_grace_period_seconds.unwrap_or(0) == 0
}
