//! Event as events.k8s.io shows it. Stored as core/v1; what is written here must be complete and cannot change.

use coracle_meta::field::ErrorList;
use coracle_meta::names;
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::events::v1 as events;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use crate::common::text;
use crate::core::event::{self as stored, COLUMNS};
use crate::def::ResourceDef;
use crate::go_dump;
use crate::version::{Conversion, ServedVersion};

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::Change,
    short_names: &["ev"],
    columns: COLUMNS,
    create_on_update: true,
    ..ResourceDef::new::<events::Event>("event", &ServedVersion::new(Events))
};

struct Events;

impl Conversion for Events {
    type Served = events::Event;
    type Stored = core::Event;

    fn stored(&self) -> &'static ResourceDef {
        &stored::DEF
    }

    fn to_stored(&self, obj: events::Event) -> core::Event {
        core::Event {
            action: obj.action,
            count: obj.deprecated_count,
            event_time: obj.event_time,
            first_timestamp: obj.deprecated_first_timestamp,
            involved_object: obj.regarding.unwrap_or_default(),
            last_timestamp: obj.deprecated_last_timestamp,
            message: obj.note,
            metadata: obj.metadata,
            reason: obj.reason,
            related: obj.related,
            reporting_component: obj.reporting_controller,
            reporting_instance: obj.reporting_instance,
            series: obj.series.map(|series| core::EventSeries {
                count: Some(series.count),
                // An absent time is the beginning of the clock, see `canonical`.
                last_observed_time: Some(series.last_observed_time).filter(|t| t.0 != Timestamp::UNIX_EPOCH),
            }),
            source: obj.deprecated_source,
            type_: obj.type_,
        }
    }

    fn to_served(&self, obj: &core::Event) -> events::Event {
        let some = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let target = &obj.involved_object;
        events::Event {
            action: obj.action.clone(),
            deprecated_count: obj.count,
            deprecated_first_timestamp: obj.first_timestamp.clone(),
            deprecated_last_timestamp: obj.last_timestamp.clone(),
            deprecated_source: obj.source.clone(),
            event_time: obj.event_time.clone(),
            metadata: obj.metadata.clone(),
            note: obj.message.clone(),
            reason: obj.reason.clone(),
            regarding: Some(target.clone()),
            related: obj.related.clone(),
            reporting_controller: some(&obj.reporting_component),
            reporting_instance: some(&obj.reporting_instance),
            series: obj.series.as_ref().map(|series| events::EventSeries {
                count: series.count.unwrap_or(0),
                last_observed_time: series
                    .last_observed_time
                    .clone()
                    .unwrap_or(MicroTime(Timestamp::UNIX_EPOCH)),
            }),
            type_: obj.type_.clone(),
        }
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Option<Vec<String>> {
        Some(names::maybe_prefix(names::dns1123_subdomain, name, prefix))
    }

    fn validate(&self, obj: &core::Event, errs: &mut ErrorList) {
        stored::validate(obj, "reportingController", errs);
        series(obj, errs);
        if obj.event_time.is_none() {
            errs.required("eventTime", "");
        }
        let kind = text(obj.type_.as_ref());
        if !matches!(kind, "Normal" | "Warning") {
            errs.invalid("type", "", format!("has invalid value: {kind}"));
        }
        let source = obj
            .source
            .as_ref()
            .is_some_and(|s| !text(s.component.as_ref()).is_empty() || !text(s.host.as_ref()).is_empty());
        for (field, set) in [
            ("firstTimestamp", obj.first_timestamp.is_some()),
            ("lastTimestamp", obj.last_timestamp.is_some()),
            ("count", obj.count.unwrap_or(0) != 0),
            ("source", source),
        ] {
            if set {
                errs.invalid(field, "", "needs to be unset");
            }
        }
    }

    fn validate_update(&self, new: &core::Event, old: &core::Event, errs: &mut ErrorList) {
        const REFERENCE: &str = "core.ObjectReference";
        stored::validate(new, "reportingController", errs);
        if new.series != old.series {
            series(new, errs);
        }
        let (is, was) = (Some(&new.involved_object), Some(&old.involved_object));
        go_dump::immutable(errs, "involvedObject", REFERENCE, is, was);
        let mut fixed = |field: &str, is: &Option<String>, was: &Option<String>| {
            let (is, was) = (text(is.as_ref()), text(was.as_ref()));
            errs.immutable(field, &is, &was);
        };
        // Upstream checks the reason twice.
        fixed("reason", &new.reason, &old.reason);
        fixed("reason", &new.reason, &old.reason);
        fixed("message", &new.message, &old.message);
        fixed("type", &new.type_, &old.type_);
        fixed("action", &new.action, &old.action);
        fixed("reportingController", &new.reporting_component, &old.reporting_component);
        fixed("reportingInstance", &new.reporting_instance, &old.reporting_instance);
        go_dump::immutable(errs, "source", "core.EventSource", new.source.as_ref(), old.source.as_ref());
        errs.immutable("firstTimestamp", &new.first_timestamp, &old.first_timestamp);
        errs.immutable("lastTimestamp", &new.last_timestamp, &old.last_timestamp);
        errs.immutable("count", &new.count.unwrap_or(0), &old.count.unwrap_or(0));
        errs.immutable("eventTime", &new.event_time, &old.event_time);
        go_dump::immutable(errs, "related", REFERENCE, new.related.as_ref(), old.related.as_ref());
    }

    fn field_labels(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("reason", "reason"),
            ("regarding.kind", "involvedObject.kind"),
            ("regarding.namespace", "involvedObject.namespace"),
            ("regarding.name", "involvedObject.name"),
            ("regarding.uid", "involvedObject.uid"),
            ("regarding.apiVersion", "involvedObject.apiVersion"),
            ("regarding.resourceVersion", "involvedObject.resourceVersion"),
            ("regarding.fieldPath", "involvedObject.fieldPath"),
            ("reportingController", "reportingComponent"),
            ("type", "type"),
        ]
    }
}

fn series(obj: &core::Event, errs: &mut ErrorList) {
    let Some(series) = &obj.series else { return };
    if series.count.unwrap_or(0) < 2 {
        errs.invalid("series.count", "", "should be at least 2");
    }
    if series.last_observed_time.is_none() {
        errs.required("series.lastObservedTime", "");
    }
}
