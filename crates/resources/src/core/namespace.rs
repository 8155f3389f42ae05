//! Namespace: a scope for names.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceStatus};
use serde_json::Value;

use crate::check::each;
use crate::common::{column, text};
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Scope, Strategy, Subresource, Typed, age};

const COLUMNS: &[Column] = &[NAME, column("Status", "string", "", "The status of the namespace"), AGE];

pub(super) static DEF: ResourceDef = ResourceDef {
    short_names: &["ns"],
    scope: Scope::Cluster,
    subresources: &[Subresource::Finalize, Subresource::Status],
    columns: COLUMNS,
    ..ResourceDef::new::<Namespace>("namespace", &Typed::<Namespace, _>::new(Namespaces))
};

struct Namespaces;

fn phase(obj: &Namespace) -> &str {
    text(obj.status.as_ref().and_then(|s| s.phase.as_ref()))
}

const KUBERNETES: &str = "kubernetes";
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

impl Strategy<Namespace> for Namespaces {
    fn default(&self, obj: &mut Namespace) {
        if let Some(name) = obj.metadata.name.clone().filter(|n| !n.is_empty()) {
            obj.metadata.labels.get_or_insert_default().insert(NAME_LABEL.to_owned(), name);
        }
        obj.spec.get_or_insert_default();
        let status = obj.status.get_or_insert_default();
        if text(status.phase.as_ref()).is_empty() {
            status.phase = Some("Active".to_owned());
        }
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut Namespace) {
        obj.status = Some(NamespaceStatus { phase: Some("Active".to_owned()), ..NamespaceStatus::default() });
        if let Some(name) = obj.metadata.name.clone() {
            obj.metadata.labels.get_or_insert_default().insert(NAME_LABEL.to_owned(), name);
        }
        let finalizers = obj.spec.get_or_insert_default().finalizers.get_or_insert_default();
        if !finalizers.iter().any(|f| f == KUBERNETES) {
            finalizers.push(KUBERNETES.to_owned());
        }
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut Namespace, old: &Namespace) {
        let finalizers = old.spec.as_ref().and_then(|s| s.finalizers.clone());
        new.spec.get_or_insert_default().finalizers = finalizers;
        new.status.clone_from(&old.status);
    }

    fn prepare_status_update(&self, _: Context<'_>, new: &mut Namespace, old: &Namespace) {
        new.spec.clone_from(&old.spec);
    }

    fn prepare_part_update(&self, _: Subresource, _: Context<'_>, new: &mut Namespace, old: &Namespace) {
        new.status.clone_from(&old.status);
        if let Some(spec) = &mut new.spec {
            spec.finalizers = spec.finalizers.take().filter(|f| !f.is_empty());
        }
    }

    fn validate(&self, obj: &Namespace, errs: &mut ErrorList) {
        finalizers(obj, |path, _| path.clone(), errs);
    }

    fn validate_update(&self, _: &Namespace, _: &Namespace, _: &mut ErrorList) {}

    fn validate_part_update(&self, _: Subresource, new: &Namespace, _: &Namespace, errs: &mut ErrorList) {
        finalizers(new, Path::index, errs);
    }

    fn validate_status_update(&self, new: &Namespace, _: &Namespace, errs: &mut ErrorList) {
        let (phase, deleted) = (phase(new), new.metadata.deletion_timestamp.is_some());
        let path = Path::new("status").child("Phase");
        if !deleted && phase != "Active" {
            errs.invalid(path, phase, "may only be 'Active' if `deletionTimestamp` is empty");
        } else if deleted && phase != "Terminating" {
            errs.invalid(path, phase, "may only be 'Terminating' if `deletionTimestamp` is not empty");
        }
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        names::maybe_prefix(names::dns1123_label, name, prefix)
    }

    fn row(&self, obj: &Namespace, now: Timestamp) -> Vec<Value> {
        let meta = &obj.metadata;
        vec![meta.name.clone().into(), phase(obj).into(), age(meta.creation_timestamp.as_ref(), now)]
    }

    fn selectable(&self, obj: &Namespace) -> Vec<(&'static str, String)> {
        vec![("status.phase", phase(obj).to_owned())]
    }
}

/// Checks `spec.finalizers`; `place` says where one of them is told to be.
fn finalizers(obj: &Namespace, place: impl Fn(&Path, usize) -> Path, errs: &mut ErrorList) {
    if let Some(finalizers) = obj.spec.as_ref().and_then(|s| s.finalizers.as_ref()) {
        let all = Path::new("spec").child("finalizers");
        for (i, name) in finalizers.iter().enumerate().filter(|(_, name)| *name != KUBERNETES) {
            let path = place(&all, i);
            let messages = names::qualified_name(name);
            if !name.contains('/') {
                let why = "name is neither a standard finalizer name nor is it fully qualified";
                errs.invalid(&path, name.as_str(), why);
            }
            each(errs, &path, name.as_str(), messages);
        }
    }
}
