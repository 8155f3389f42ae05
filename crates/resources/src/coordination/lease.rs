//! Lease: who holds a lock, and until when.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use serde_json::Value;

use crate::check::non_negative;
use crate::common::{column, text};
use crate::def::{AGE, Column, Context, NAME, ResourceDef, Strategy, Typed, age};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Holder",
        "string",
        "",
        "holderIdentity contains the identity of the holder of a current lease. If Coordinated Leader \
         Election is used, the holder identity must be equal to the elected \
         LeaseCandidate.metadata.name field.",
    ),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    columns: COLUMNS,
    create_on_update: true,
    unconditional_update: false,
    recheck: Recheck::Change,
    ..ResourceDef::new::<Lease>("lease", &Typed::<Lease, _>::new(Leases))
};

struct Leases;

impl Strategy<Lease> for Leases {
    fn default(&self, obj: &mut Lease) {
        obj.spec.get_or_insert_default();
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut Lease) {
        without_coordination(obj);
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut Lease, _: &Lease) {
        without_coordination(new);
    }

    fn validate(&self, obj: &Lease, errs: &mut ErrorList) {
        let Some(spec) = &obj.spec else { return };
        let path = Path::new("spec");
        if let Some(seconds) = spec.lease_duration_seconds.filter(|s| *s <= 0) {
            errs.invalid(path.child("leaseDurationSeconds"), seconds, "must be greater than 0");
        }
        if let Some(count) = spec.lease_transitions {
            non_negative(errs, &path.child("leaseTransitions"), i64::from(count));
        }
    }

    fn row(&self, obj: &Lease, now: Timestamp) -> Vec<Value> {
        let holder = text(obj.spec.as_ref().and_then(|s| s.holder_identity.as_ref()));
        let meta = &obj.metadata;
        vec![meta.name.clone().into(), holder.into(), age(meta.creation_timestamp.as_ref(), now)]
    }
}

/// Coordinated leader election is off, as by default upstream, so its fields are not kept.
fn without_coordination(obj: &mut Lease) {
    if let Some(spec) = &mut obj.spec {
        spec.strategy = None;
        spec.preferred_holder = None;
    }
}
