//! create: decode, default, admit, prepare, validate, commit.

use std::sync::Arc;

use coracle_admission::Operation;
use coracle_client::WriteOptions;
use coracle_meta::field::ErrorList;
use coracle_meta::go::Empties;
use coracle_meta::object_meta::{self, Recheck};
use coracle_meta::{Object, Status};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::admit::{Act, Pass};
use super::commit::{Put, Refused};
use super::decode::Decoded;
use super::update::Change;
use super::{Caller, Input, Outcome, Part, check_options};
use crate::registry::Resource;
use crate::server::Server;

/// Tries with a fresh suffix when a generated name is taken.
const NAME_TRIES: usize = 8;
/// Longest generateName prefix that is kept.
const MAX_PREFIX: usize = 58;

impl Server {
    /// Creates an object.
    pub(crate) async fn create(
        &self,
        caller: &Caller,
        resource: &Arc<Resource>,
        namespace: &str,
        input: Input,
        opts: &WriteOptions,
    ) -> Result<Outcome, Status> {
        check_options("CreateOptions", opts)?;
        let caller = &caller.asking(opts, false);
        let Decoded { obj, warnings, empties } = self.decode(resource, input, &opts.field_validation)?;
        caller.warn(&warnings);
        let mut sent = Change { obj, warnings, empties };
        place(resource, namespace, &mut *sent.obj)?;
        wipe_system_fields(sent.obj.meta_mut());
        resource.def.strategy.default(&mut *sent.obj);
        let manager = self.manager(caller, opts);
        self.track(resource, &mut sent, None, &manager, "");
        if !resource.stored() {
            return self.review(caller, resource, namespace, sent.obj, sent.warnings).await;
        }
        self.create_object(caller, resource, namespace, sent, opts.dry_run).await
    }

    /// The part of create behind decoding and field tracking: also for applied and PUT objects.
    pub(crate) async fn create_object(
        &self,
        caller: &Caller,
        resource: &Arc<Resource>,
        namespace: &str,
        sent: Change,
        dry_run: bool,
    ) -> Result<Outcome, Status> {
        let Change { mut obj, mut warnings, empties } = sent;
        let said = obj.meta().resource_version.clone().filter(|version| !version.is_empty());
        let asked = said.as_deref().and_then(|v| v.parse::<u64>().ok());
        if asked.unwrap_or(0) != 0 && !dry_run {
            let why = "resourceVersion should not be set on objects to be created";
            return Err(Status::new(500, coracle_meta::Reason::Unknown, why, None));
        }
        let name = obj.name().to_owned();
        // Admission reads namespaces, service accounts … as of all acknowledged writes.
        self.fresh().await?;
        let operation = Operation::Create;
        let act = Act { operation, resource, subresource: "", namespace, name: &name, dry_run };
        warnings.extend(self.admit(caller, Pass::Mutate, act, Some(&mut obj), None).await?);
        self.forbid_escalation(caller, resource, &*obj, None)?;
        let now = self.clock.now();
        fill_system_fields(obj.meta_mut(), now);
        let generated = obj.name().is_empty() && generate_prefix(obj.meta()).is_some();
        if generated {
            generate_name(obj.meta_mut());
        }
        let allocation = self.services.allocate(&mut *obj, None, dry_run)?;
        let cx = caller.context(now);
        if resource.def.has_generation {
            obj.meta_mut().generation = Some(1);
        }
        resource.def.strategy.drop_disabled(&mut *obj);
        resource.def.strategy.prepare_create(cx, &mut *obj);
        self.validate_new(resource, &*obj, &empties)?;
        warnings.extend(resource.def.strategy.warnings(&*obj, None));
        caller.warn(&warnings);
        let name = obj.name().to_owned();
        let act = Act { name: &name, ..act };
        warnings.extend(self.admit(caller, Pass::Validate, act, Some(&mut obj), None).await?);
        let unsettled = resource.def.strategy.settle(&mut *obj);
        for attempt in 1.. {
            let key: Arc<str> = resource.key(namespace, obj.name()).into();
            let taken = |name: &str| self.taken(resource, namespace, name);
            if dry_run {
                self.fresh().await?;
                if resource.cache.get(&key).is_some() {
                    return Err(taken(obj.name()));
                }
                let entry = self.imagined(resource, key, &mut *obj, asked)?;
                return Ok(Outcome { entry, warnings, created: true });
            }
            match self.put(resource, key, obj, Put { expected: None, unsettled }).await {
                Ok(entry) => {
                    allocation.keep();
                    return Ok(Outcome { entry, warnings, created: true });
                }
                Err(Refused::Condition(mut back)) if generated && attempt < NAME_TRIES => {
                    back.meta_mut().name = None;
                    generate_name(back.meta_mut());
                    obj = back;
                }
                Err(Refused::Condition(back)) => return Err(taken(back.name())),
                Err(Refused::Failed(status)) => return Err(status),
            }
        }
        Err(Status::internal("no name could be generated"))
    }

    /// 409 for a name that an object has.
    fn taken(&self, resource: &Resource, namespace: &str, name: &str) -> Status {
        let status = Status::already_exists(resource.def.group, resource.def.plural, name);
        let present = self.present(resource, namespace, name).and_then(|entry| entry.decoded());
        if !present.is_ok_and(|obj| obj.meta().deletion_timestamp.is_some()) {
            return status;
        }
        let message = format!("object is being deleted: {}", status.message());
        Status::new(409, status.reason(), message, status.details().cloned())
    }

    /// Checks metadata and the kind's own rules.
    pub(crate) fn validate_new(
        &self,
        resource: &Resource,
        obj: &dyn Object,
        empties: &Empties,
    ) -> Result<(), Status> {
        let strategy = resource.def.strategy;
        let mut errs = ErrorList::new();
        let check = |name: &str, prefix: bool| strategy.validate_name(name, prefix);
        object_meta::validate(obj.meta(), resource.namespaced(), &check, &mut errs);
        if resource.def.of_core() && resource.def.recheck != Recheck::Never {
            object_meta::validate_standard_finalizers(obj.meta(), &mut errs);
        }
        self.check_admin_access(resource, Part::Main, (obj, None), &mut errs);
        strategy.validate(obj, &mut errs);
        if errs.is_empty() {
            return Ok(());
        }
        empties.show(&mut errs);
        let stored = resource.def.stored();
        Err(Status::invalid(stored.group, stored.kind, obj.name(), &errs))
    }
}

/// Puts the object into the request's namespace, or refuses one that names another.
pub(crate) fn place(resource: &Resource, namespace: &str, obj: &mut dyn Object) -> Result<(), Status> {
    let own = obj.namespace();
    if !resource.namespaced() {
        obj.meta_mut().namespace = None;
        return Ok(());
    }
    if own.is_empty() {
        obj.meta_mut().namespace = Some(namespace.to_owned());
        return Ok(());
    }
    if own == namespace {
        return Ok(());
    }
    let why = "the namespace of the provided object does not match the namespace sent on the request";
    Err(Status::bad_request(why))
}

/// Forgets what a creator may not say.
pub(crate) fn wipe_system_fields(meta: &mut ObjectMeta) {
    meta.creation_timestamp = None;
    meta.uid = None;
    meta.self_link = None;
    meta.deletion_timestamp = None;
    meta.deletion_grace_period_seconds = None;
}

fn fill_system_fields(meta: &mut ObjectMeta, now: jiff::Timestamp) {
    wipe_system_fields(meta);
    meta.creation_timestamp = Some(Time(whole_seconds(now)));
    meta.uid = Some(coracle_stdx::uuid());
    meta.resource_version = None;
}

/// Times of the API have whole seconds.
pub(crate) fn whole_seconds(now: jiff::Timestamp) -> jiff::Timestamp {
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now)
}

fn generate_prefix(meta: &ObjectMeta) -> Option<&str> {
    meta.generate_name.as_deref().filter(|p| !p.is_empty())
}

fn generate_name(meta: &mut ObjectMeta) {
    if let Some(prefix) = generate_prefix(meta) {
        let mut end = prefix.len().min(MAX_PREFIX);
        while !prefix.is_char_boundary(end) {
            end -= 1;
        }
        meta.name = Some(format!("{}{}", &prefix[..end], coracle_stdx::random_suffix(5)));
    }
}
