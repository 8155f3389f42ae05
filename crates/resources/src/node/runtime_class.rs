//! RuntimeClass: how the containers of a pod are run, and what that costs.

use coracle_meta::field::{ErrorKind, ErrorList, Path};
use coracle_meta::names;
use coracle_meta::object_meta::validate_labels;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::api::node::v1::RuntimeClass;
use serde_json::{Value, json};

use crate::check::{about_struct, named};
use crate::common::{column, text};
use crate::def::{AGE, Column, NAME, ResourceDef, Scope, Strategy, Typed, age};
use crate::podspec::{defaults, requirements, scheduling, warnings};

const COLUMNS: &[Column] = &[NAME, column("Handler", "string", "", ""), AGE];

pub(super) static DEF: ResourceDef = ResourceDef {
    scope: Scope::Cluster,
    columns: COLUMNS,
    create_on_update: true,
    unconditional_update: false,
    ..ResourceDef::new::<RuntimeClass>("runtimeclass", &Typed::<RuntimeClass, _>::new(RuntimeClasses))
};

struct RuntimeClasses;

impl Strategy<RuntimeClass> for RuntimeClasses {
    fn default(&self, obj: &mut RuntimeClass) {
        if let Some(overhead) = &mut obj.overhead {
            overhead.pod_fixed.iter_mut().flatten().for_each(|(_, amount)| defaults::canonical(amount));
        }
    }

    fn validate(&self, obj: &RuntimeClass, errs: &mut ErrorList) {
        if obj.handler.is_empty() {
            errs.required("handler", "");
        } else {
            named(errs, &Path::new("handler"), &obj.handler, names::dns1123_label);
        }
        if let Some(fixed) = obj.overhead.as_ref().and_then(|o| o.pod_fixed.as_ref()) {
            requirements::overhead(fixed, &Path::new("overhead"), errs);
        }
        let Some(placing) = &obj.scheduling else { return };
        let path = Path::new("scheduling");
        if let Some(labels) = &placing.node_selector {
            validate_labels(labels, &path.child("nodeSelector"), errs);
        }
        tolerations(placing.tolerations.as_deref().unwrap_or_default(), &path.child("tolerations"), errs);
    }

    fn validate_update(&self, new: &RuntimeClass, old: &RuntimeClass, errs: &mut ErrorList) {
        self.validate(new, errs);
        errs.immutable("handler", &new.handler, &old.handler);
    }

    fn warnings(&self, new: &RuntimeClass, _: Option<&RuntimeClass>) -> Vec<String> {
        let labels = new.scheduling.as_ref().and_then(|s| s.node_selector.as_ref());
        let found = labels.into_iter().flatten().filter_map(|(key, _)| warnings::deprecated_label(key));
        found.map(|why| format!("scheduling.nodeSelector: {why}")).collect()
    }

    fn row(&self, obj: &RuntimeClass, now: Timestamp) -> Vec<Value> {
        let meta = &obj.metadata;
        vec![meta.name.clone().into(), obj.handler.clone().into(), age(meta.creation_timestamp.as_ref(), now)]
    }
}

/// Checks tolerations, each of which may stand once.
fn tolerations(list: &[Toleration], path: &Path, errs: &mut ErrorList) {
    scheduling::tolerations(list, path, errs);
    let key = |t: &Toleration| {
        [&t.key, &t.operator, &t.value, &t.effect].map(|field| text(field.as_ref()).to_owned())
    };
    for (i, one) in list.iter().enumerate() {
        if list[..i].iter().any(|other| key(other) == key(one)) {
            let shown: &[(&str, Value)] = &[
                ("Key", json!(text(one.key.as_ref()))),
                ("Operator", json!(text(one.operator.as_ref()))),
                ("Value", json!(text(one.value.as_ref()))),
                ("Effect", json!(text(one.effect.as_ref()))),
                ("TolerationSeconds", json!(one.toleration_seconds)),
            ];
            about_struct(errs, ErrorKind::Duplicate, &path.index(i), shown, "");
        }
    }
}
