//! IngressClass: names the controller that implements Ingresses of this class.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{IngressClass, IngressClassParametersReference};
use serde_json::Value;

use super::reference;
use crate::check::{named, one_of_texts};
use crate::common::{column, text};
use crate::def::{AGE, Column, NAME, ResourceDef, Scope, Strategy, Typed, age};

const COLUMNS: &[Column] = &[
    NAME,
    column("Controller", "string", "", "Controller that is responsible for handling this class"),
    column("Parameters", "string", "", "A reference to a resource with additional parameters"),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    scope: Scope::Cluster,
    columns: COLUMNS,
    has_generation: true,
    ..ResourceDef::new::<IngressClass>("ingressclass", &Typed::<IngressClass, _>::new(IngressClasses))
};

struct IngressClasses;

/// Annotation of the class that Ingresses get by default.
const DEFAULT_MARK: &str = "ingressclass.kubernetes.io/is-default-class";
/// Bytes of a controller's name.
const MAX_CONTROLLER: usize = 250;

fn controller(obj: &IngressClass) -> &str {
    text(obj.spec.as_ref().and_then(|s| s.controller.as_ref()))
}

impl Strategy<IngressClass> for IngressClasses {
    fn default(&self, obj: &mut IngressClass) {
        if let Some(parameters) = &mut obj.spec.get_or_insert_default().parameters {
            parameters.scope.get_or_insert_with(|| "Cluster".to_owned());
        }
    }

    fn validate(&self, obj: &IngressClass, errs: &mut ErrorList) {
        let path = Path::new("spec");
        let (name, at) = (controller(obj), path.child("controller"));
        if name.len() > MAX_CONTROLLER {
            errs.too_long(&at, MAX_CONTROLLER);
        }
        names::check_prefixed_path(name, &at, errs);
        if let Some(of) = obj.spec.as_ref().and_then(|s| s.parameters.as_ref()) {
            parameters(of, &path.child("parameters"), errs);
        }
    }

    fn validate_update(&self, new: &IngressClass, old: &IngressClass, errs: &mut ErrorList) {
        errs.immutable(Path::new("spec").child("controller"), &controller(new), &controller(old));
        self.validate(new, errs);
    }

    fn row(&self, obj: &IngressClass, now: Timestamp) -> Vec<Value> {
        let meta = &obj.metadata;
        let mark = meta.annotations.as_ref().and_then(|a| a.get(DEFAULT_MARK));
        let suffix = if mark.is_some_and(|v| v == "true") { " (default)" } else { "" };
        let parameters = obj.spec.as_ref().and_then(|s| s.parameters.as_ref()).map(|p| {
            let group = p.api_group.as_ref().map_or(String::new(), |group| format!(".{group}"));
            format!("{}{group}/{}", p.kind, p.name)
        });
        vec![
            format!("{}{suffix}", text(meta.name.as_ref())).into(),
            controller(obj).into(),
            parameters.unwrap_or_else(|| "<none>".to_owned()).into(),
            age(meta.creation_timestamp.as_ref(), now),
        ]
    }
}

fn parameters(of: &IngressClassParametersReference, path: &Path, errs: &mut ErrorList) {
    reference(of.api_group.as_ref(), &of.kind, &of.name, path, errs);
    let at = path.child("namespace");
    match (of.scope.as_deref(), &of.namespace) {
        (None, _) => errs.required(path.child("scope"), ""),
        (Some("Namespace"), None) => errs.required(at, "`parameters.scope` is set to 'Namespace'"),
        (Some("Namespace"), Some(name)) => named(errs, &at, name, names::dns1123_label),
        (Some("Cluster"), Some(_)) => errs.forbidden(at, "`parameters.scope` is set to 'Cluster'"),
        (Some(scope), _) => one_of_texts(errs, &path.child("scope"), scope, &["Cluster", "Namespace"]),
    }
}
