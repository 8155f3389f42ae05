//! Event: something that happened to an object, for people.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use serde_json::Value;

use crate::check::named;
use crate::common::{age_micro, column, text, wide_column};
use crate::def::{Column, ResourceDef, Strategy, Typed, age};

pub(crate) const COLUMNS: &[Column] = &[
    column(
        "Last Seen",
        "string",
        "",
        "The time at which the most recent occurrence of this event was recorded.",
    ),
    column(
        "Type",
        "string",
        "",
        "Type of this event (Normal, Warning), new types could be added in the future",
    ),
    column(
        "Reason",
        "string",
        "",
        "This should be a short, machine understandable string that gives the reason for the transition \
         into the object's current status.",
    ),
    column("Object", "string", "", "The object that this event is about."),
    wide_column(
        "Subobject",
        "string",
        "",
        "If referring to a piece of an object instead of an entire object, this string should contain a \
         valid JSON/Go field access statement, such as desiredState.manifest.containers[2]. For \
         example, if the object reference is to a container within a pod, this would take on a value \
         like: \"spec.containers{name}\" (where \"name\" refers to the name of the container that \
         triggered the event) or if no container name is specified \"spec.containers[2]\" (container \
         with index 2 in this pod). This syntax is chosen only to have some well-defined way of \
         referencing a part of an object.",
    ),
    wide_column(
        "Source",
        "string",
        "",
        "The component reporting this event. Should be a short machine understandable string.",
    ),
    column("Message", "string", "", "A human-readable description of the status of this operation."),
    wide_column(
        "First Seen",
        "string",
        "",
        "The time at which the event was first recorded. (Time of server receipt is in TypeMeta.)",
    ),
    wide_column("Count", "string", "", "The number of times this event has occurred."),
    wide_column(
        "Name",
        "string",
        "name",
        "Name must be unique within a namespace. Is required when creating resources, although some \
         resources may allow a client to request the generation of an appropriate name automatically. \
         Name is primarily intended for creation idempotence and configuration definition. Cannot be \
         updated. More info: \
         https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names",
    ),
];

pub(crate) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::Never,
    short_names: &["ev"],
    columns: COLUMNS,
    create_on_update: true,
    ..ResourceDef::new::<Event>("event", &Typed::<Event, _>::new(Events))
};

struct Events;

impl Strategy<Event> for Events {
    fn default(&self, obj: &mut Event) {
        obj.source.get_or_insert_default();
        obj.reporting_component.get_or_insert_default();
        obj.reporting_instance.get_or_insert_default();
    }

    fn validate_name(&self, name: &str, _: bool) -> Vec<String> {
        names::path_segment(name)
    }

    fn validate(&self, obj: &Event, errs: &mut ErrorList) {
        validate(obj, "reportingComponent", errs);
    }

    fn row(&self, obj: &Event, now: Timestamp) -> Vec<Value> {
        let first = match &obj.first_timestamp {
            Some(time) => age(Some(time), now),
            None => age_micro(obj.event_time.as_ref(), now),
        };
        let mut last = match &obj.last_timestamp {
            Some(time) => age(Some(time), now),
            None => first.clone(),
        };
        let mut count = obj.count.unwrap_or(0);
        if let Some(series) = &obj.series {
            last = age_micro(series.last_observed_time.as_ref(), now);
            count = series.count.unwrap_or(0);
        } else if count == 0 {
            count = 1;
        }
        let target = &obj.involved_object;
        let kind = text(target.kind.as_ref()).to_lowercase();
        let object = match text(target.name.as_ref()) {
            "" => kind,
            name => format!("{kind}/{name}"),
        };
        vec![
            last,
            text(obj.type_.as_ref()).into(),
            text(obj.reason.as_ref()).into(),
            object.into(),
            text(target.field_path.as_ref()).into(),
            source(obj).into(),
            text(obj.message.as_ref()).trim().into(),
            first,
            count.into(),
            text(obj.metadata.name.as_ref()).into(),
        ]
    }

    fn selectable(&self, obj: &Event) -> Vec<(&'static str, String)> {
        let target = &obj.involved_object;
        let own = |value: Option<&String>| text(value).to_owned();
        let component = obj.source.as_ref().and_then(|s| s.component.as_ref());
        let component = text(component.filter(|c| !c.is_empty()).or(obj.reporting_component.as_ref()));
        vec![
            ("involvedObject.kind", own(target.kind.as_ref())),
            ("involvedObject.namespace", own(target.namespace.as_ref())),
            ("involvedObject.name", own(target.name.as_ref())),
            ("involvedObject.uid", own(target.uid.as_ref())),
            ("involvedObject.apiVersion", own(target.api_version.as_ref())),
            ("involvedObject.resourceVersion", own(target.resource_version.as_ref())),
            ("involvedObject.fieldPath", own(target.field_path.as_ref())),
            ("reason", own(obj.reason.as_ref())),
            ("reportingComponent", own(obj.reporting_component.as_ref())),
            ("source", component.to_owned()),
            ("type", own(obj.type_.as_ref())),
        ]
    }
}

fn source(obj: &Event) -> String {
    let from = obj.source.as_ref();
    let pick = |a: Option<&String>, b: Option<&String>| match text(a) {
        "" => text(b).to_owned(),
        set => set.to_owned(),
    };
    let component = pick(from.and_then(|s| s.component.as_ref()), obj.reporting_component.as_ref());
    let instance = pick(from.and_then(|s| s.host.as_ref()), obj.reporting_instance.as_ref());
    if instance.is_empty() { component } else { format!("{component}, {instance}") }
}

/// Checks an event. `controller` is the field that names the reporting controller in the version of the request.
pub(crate) fn validate(obj: &Event, controller: &str, errs: &mut ErrorList) {
    let own = text(obj.metadata.namespace.as_ref());
    let target = text(obj.involved_object.namespace.as_ref());
    let fits = match (target, obj.event_time.is_some()) {
        ("", false) => matches!(own, "" | "default"),
        ("", true) => matches!(own, "default" | "kube-system"),
        (_, true) => true,
        _ => own == target,
    };
    if !fits {
        let path = Path::new("involvedObject").child("namespace");
        errs.invalid(path, target, "does not match event.namespace");
    }
    if obj.event_time.is_some() {
        new_style(obj, controller, errs);
    }
}

/// What events with an `eventTime` must say.
fn new_style(obj: &Event, field: &str, errs: &mut ErrorList) {
    const SHORT: usize = 128;
    const LONG: usize = 1024;
    let controller = text(obj.reporting_component.as_ref());
    if controller.is_empty() {
        errs.required(field, "");
    }
    named(errs, &Path::new(field), controller, names::qualified_name);
    for (field, value) in
        [("reportingInstance", &obj.reporting_instance), ("action", &obj.action), ("reason", &obj.reason)]
    {
        let value = text(value.as_ref());
        if value.is_empty() {
            errs.required(field, "");
        }
        if value.len() > SHORT {
            errs.invalid(field, "", format!("can have at most {SHORT} characters"));
        }
    }
    if text(obj.message.as_ref()).len() > LONG {
        errs.invalid("message", "", format!("can have at most {LONG} characters"));
    }
}
