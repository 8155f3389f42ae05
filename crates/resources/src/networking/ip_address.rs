//! IPAddress: an address in use, and what uses it. Its name is the address.

use coracle_meta::field::{ErrorKind, ErrorList, Path};
use coracle_meta::names;
use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{IPAddress, ParentReference};
use serde_json::{Value, json};

use super::segment;
use crate::address;
use crate::check::{about_struct, named};
use crate::common::{column, text};
use crate::def::{Column, NAME, ResourceDef, Scope, Strategy, Typed, age};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "ParentRef",
        "string",
        "",
        "ParentRef references the resource that an IPAddress is attached to. An IPAddress must \
         reference a parent object.",
    ),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    short_names: &["ip"],
    scope: Scope::Cluster,
    columns: COLUMNS,
    ..ResourceDef::new::<IPAddress>("ipaddress", &Typed::<IPAddress, _>::new(IpAddresses))
};

struct IpAddresses;

impl Strategy<IPAddress> for IpAddresses {
    fn validate(&self, obj: &IPAddress, errs: &mut ErrorList) {
        let path = Path::new("spec").child("parentRef");
        let parent = &obj.spec.parent_ref;
        // The decoder gives a reference that is there, but empty, an empty group.
        if *parent == ParentReference::default() {
            return errs.required(path, "");
        }
        let group = text(parent.group.as_ref());
        if !group.is_empty() {
            named(errs, &path.child("group"), group, names::dns1123_subdomain);
        }
        segment(&parent.resource, &path.child("resource"), errs);
        segment(&parent.name, &path.child("name"), errs);
        let namespace = text(parent.namespace.as_ref());
        named(errs, &path.child("namespace"), namespace, names::path_segment);
    }

    fn validate_update(&self, new: &IPAddress, old: &IPAddress, errs: &mut ErrorList) {
        self.validate(new, errs);
        let fields = |p: &ParentReference| {
            let (group, namespace) =
                (text(p.group.as_ref()).to_owned(), text(p.namespace.as_ref()).to_owned());
            (group, p.resource.clone(), namespace, p.name.clone())
        };
        let (group, resource, namespace, name) = fields(&new.spec.parent_ref);
        if fields(&new.spec.parent_ref) != fields(&old.spec.parent_ref) {
            let path = Path::new("spec").child("parentRef");
            if new.spec.parent_ref == ParentReference::default() {
                return errs.invalid(path, Value::Null, "field is immutable");
            }
            let shown: &[(&str, Value)] = &[
                ("Group", json!(group)),
                ("Resource", json!(resource)),
                ("Namespace", json!(namespace)),
                ("Name", json!(name)),
            ];
            about_struct(errs, ErrorKind::Invalid, &path, shown, "field is immutable");
        }
    }

    fn validate_name(&self, name: &str, _: bool) -> Vec<String> {
        address::canonical_ip(name)
    }

    // Upstream's table has the age as a cell without a column.
    fn row(&self, obj: &IPAddress, now: Timestamp) -> Vec<Value> {
        let parent = &obj.spec.parent_ref;
        let mut shown = match text(parent.group.as_ref()) {
            "" => parent.resource.to_lowercase(),
            group => format!("{}.{group}", parent.resource).to_lowercase(),
        };
        for part in [text(parent.namespace.as_ref()), &parent.name].into_iter().filter(|p| !p.is_empty()) {
            shown.push('/');
            shown.push_str(part);
        }
        vec![
            obj.metadata.name.clone().into(),
            shown.into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}
