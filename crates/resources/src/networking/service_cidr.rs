//! ServiceCIDR: address blocks that services get their addresses from.

use coracle_meta::field::{ErrorKind, ErrorList, Path};
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{ServiceCIDR, ServiceCIDRStatus};
use serde_json::{Value, json};

use crate::address::{self, Block};
use crate::check::{about_struct, named};
use crate::common::{column, keep_metadata};
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Scope, Strategy, Subresource, Typed, age};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "CIDRs",
        "string",
        "",
        "CIDRs defines the IP blocks in CIDR notation (e.g. \"192.168.0.0/24\" or \"2001:db8::/64\") \
         from which to assign service cluster IPs. Max of two CIDRs is allowed, one of each IP \
         family. This field is immutable.",
    ),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::Change,
    scope: Scope::Cluster,
    subresources: &[Subresource::Status],
    columns: COLUMNS,
    ..ResourceDef::new::<ServiceCIDR>("servicecidr", &Typed::<ServiceCIDR, _>::new(ServiceCidrs))
};

struct ServiceCidrs;

fn cidrs(obj: &ServiceCIDR) -> &[String] {
    obj.spec.as_ref().and_then(|s| s.cidrs.as_deref()).unwrap_or_default()
}

impl Strategy<ServiceCIDR> for ServiceCidrs {
    fn default(&self, obj: &mut ServiceCIDR) {
        obj.spec.get_or_insert_default();
        obj.status.get_or_insert_default();
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut ServiceCIDR) {
        obj.status = Some(ServiceCIDRStatus::default());
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut ServiceCIDR, old: &ServiceCIDR) {
        new.status.clone_from(&old.status);
    }

    fn prepare_status_update(&self, _: Context<'_>, new: &mut ServiceCIDR, old: &ServiceCIDR) {
        new.spec.clone_from(&old.spec);
        keep_metadata(&mut new.metadata, &old.metadata);
    }

    fn validate(&self, obj: &ServiceCIDR, errs: &mut ErrorList) {
        check(cidrs(obj), errs);
    }

    fn validate_update(&self, new: &ServiceCIDR, old: &ServiceCIDR, errs: &mut ErrorList) {
        let path = Path::new("spec").child("cidrs");
        let immutable = "field is immutable";
        match (cidrs(new), cidrs(old)) {
            (new, old) if new.len() == old.len() => {
                for (i, (new, old)) in new.iter().zip(old).enumerate() {
                    if new != old {
                        errs.invalid(path.index(i), new.as_str(), immutable);
                    }
                }
            }
            // A second family may be added.
            (both @ [first, _], [only]) => {
                if first != only {
                    errs.invalid(path.index(0), first.as_str(), immutable);
                }
                check(both, errs);
            }
            (new, _) => errs.invalid(path, new.to_vec(), immutable),
        }
    }

    fn row(&self, obj: &ServiceCIDR, now: Timestamp) -> Vec<Value> {
        let meta = &obj.metadata;
        vec![
            meta.name.clone().into(),
            cidrs(obj).join(",").into(),
            age(meta.creation_timestamp.as_ref(), now),
        ]
    }
}

fn check(cidrs: &[String], errs: &mut ErrorList) {
    let path = Path::new("spec").child("cidrs");
    if cidrs.is_empty() {
        return errs.required(path, "at least one CIDR required");
    }
    if cidrs.len() > 2 {
        let shown = &[("CIDRs", json!(cidrs))];
        return about_struct(errs, ErrorKind::Invalid, &path, shown, "may only hold up to 2 values");
    }
    for (i, text) in cidrs.iter().enumerate() {
        named(errs, &path.index(i), text, address::canonical_cidr);
    }
    let families: Vec<bool> =
        cidrs.iter().filter_map(|c| Block::parse(c)).map(|b| b.network.is_ipv4()).collect();
    if let [one, other] = families.as_slice()
        && one == other
    {
        let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errs.invalid(path, cidrs.to_vec(), why);
    }
}
