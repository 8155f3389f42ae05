//! APIService: a group and version of the API, and the server behind it.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::{
    APIService, APIServiceCondition, APIServiceSpec, APIServiceStatus,
};
use serde_json::Value;

use crate::check::{named, one_of};
use crate::common::{column, keep_metadata, text};
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Scope, Strategy, Subresource, Typed, age};

const COLUMNS: &[Column] = &[
    NAME,
    column("Service", "string", "", "The reference to the service that hosts this API endpoint."),
    column("Available", "string", "", "Whether this service is available."),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    categories: &["api-extensions"],
    scope: Scope::Cluster,
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    unconditional_update: false,
    ..ResourceDef::new::<APIService>("apiservice", &Typed::<APIService, _>::new(ApiServices))
};

struct ApiServices;

impl Strategy<APIService> for ApiServices {
    fn default(&self, obj: &mut APIService) {
        if let Some(service) = &mut obj.spec.get_or_insert_default().service {
            service.port.get_or_insert(443);
        }
        obj.status.get_or_insert_default();
    }

    fn prepare_create(&self, cx: Context<'_>, obj: &mut APIService) {
        let local = obj.spec.as_ref().is_none_or(|spec| spec.service.is_none());
        let now = Timestamp::from_second(cx.now.as_second()).unwrap_or(cx.now);
        let available = APIServiceCondition {
            type_: "Available".to_owned(),
            status: "True".to_owned(),
            reason: Some("Local".to_owned()),
            message: Some("Local APIServices are always available".to_owned()),
            last_transition_time: Some(Time(now)),
        };
        obj.status = Some(APIServiceStatus { conditions: local.then(|| vec![available]) });
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut APIService, old: &APIService) {
        new.status.clone_from(&old.status);
    }

    fn prepare_status_update(&self, _: Context<'_>, new: &mut APIService, old: &APIService) {
        new.spec.clone_from(&old.spec);
        keep_metadata(&mut new.metadata, &old.metadata);
    }

    fn validate(&self, obj: &APIService, errs: &mut ErrorList) {
        let empty = APIServiceSpec::default();
        let spec = obj.spec.as_ref().unwrap_or(&empty);
        let (group, version) = (text(spec.group.as_ref()), text(spec.version.as_ref()));
        let wanted = format!("{version}.{group}");
        let meta = &obj.metadata;
        for (field, name) in [("name", &meta.name), ("generateName", &meta.generate_name)] {
            let name = text(name.as_ref());
            if !name.is_empty() && name != wanted && names::path_segment(name).is_empty() {
                let why = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
                errs.invalid(Path::new("metadata").child(field), name, why);
            }
        }
        check(spec, group, version, errs);
    }

    fn validate_status_update(&self, new: &APIService, _: &APIService, errs: &mut ErrorList) {
        let conditions = new.status.iter().flat_map(|s| s.conditions.iter().flatten());
        for (i, condition) in conditions.enumerate() {
            let at = Path::new("status").child("conditions").index(i).child("status");
            one_of(errs, &at, &condition.status, &["True", "False", "Unknown"]);
        }
    }

    fn validate_name(&self, name: &str, _: bool) -> Vec<String> {
        names::path_segment(name)
    }

    fn row(&self, obj: &APIService, now: Timestamp) -> Vec<Value> {
        let service = obj.spec.as_ref().and_then(|s| s.service.as_ref());
        let service = service.map_or("Local".to_owned(), |s| {
            format!("{}/{}", text(s.namespace.as_ref()), text(s.name.as_ref()))
        });
        let mut conditions = obj.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let available = match conditions.find(|c| c.type_ == "Available") {
            None => "Unknown".to_owned(),
            Some(c) => match text(c.reason.as_ref()) {
                reason if c.status != "True" && !reason.is_empty() => format!("{} ({reason})", c.status),
                _ => c.status.clone(),
            },
        };
        vec![
            obj.metadata.name.clone().into(),
            service.into(),
            available.into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}

fn check(spec: &APIServiceSpec, group: &str, version: &str, errs: &mut ErrorList) {
    let path = Path::new("spec");
    if !group.is_empty() {
        named(errs, &path.child("group"), group, names::dns1123_subdomain);
    } else if version != "v1" {
        let why = "only v1 may have an empty group and it better be legacy kube";
        errs.required(path.child("group"), why);
    }
    named(errs, &path.child("version"), version, names::dns1035_label);
    for (field, value, max) in [
        ("groupPriorityMinimum", spec.group_priority_minimum, 20000),
        ("versionPriority", spec.version_priority, 1000),
    ] {
        if !(1..=max).contains(&value) {
            errs.invalid(path.child(field), value, format!("must be positive and less than {max}"));
        }
    }
    let bundle = spec.ca_bundle.as_ref().map_or(0, |bytes| bytes.0.len());
    let insecure = spec.insecure_skip_tls_verify.unwrap_or(false);
    let at = path.child("insecureSkipTLSVerify");
    let Some(service) = &spec.service else {
        if bundle > 0 {
            let why = "local APIServices may not have a caBundle";
            errs.invalid(path.child("caBundle"), format!("{bundle} bytes"), why);
        }
        if insecure {
            errs.invalid(at, true, "local APIServices may not have insecureSkipTLSVerify");
        }
        return;
    };
    let of = path.child("service");
    for (field, value) in [("namespace", &service.namespace), ("name", &service.name)] {
        if text(value.as_ref()).is_empty() {
            errs.required(of.child(field), "");
        }
    }
    let port = service.port.unwrap_or(0);
    let messages = names::port_number(i64::from(port));
    if !messages.is_empty() {
        errs.invalid(of.child("port"), port, format!("port is not valid: {}", messages.join(", ")));
    }
    if insecure && bundle > 0 {
        errs.invalid(at, true, "may not be true if caBundle is present");
    }
}
