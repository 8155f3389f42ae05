//! Lease: who holds a lock, and until when.

use coracle_meta::field::{ErrorList, Path};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use serde_json::Value;

use crate::check::non_negative;
use crate::common::{column, text};
use crate::def::{AGE, Column, NAME, ResourceDef, Strategy, Typed, age};

const COLUMNS: &[Column] = &[
    NAME,
    column("Holder", "string", "", 
        "holderIdentity contains the identity of the holder of a current lease. If Coordinated Leader \
         Election is used, the holder identity must be equal to the elected \
         LeaseCandidate.metadata.name field."),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    columns: COLUMNS,
    create_on_update: true,
    unconditional_update: false,
    ..ResourceDef::new::<Lease>("lease", &Typed::<Lease, _>::new(Leases))
};

struct Leases;

impl Strategy<Lease> for Leases {
    fn default(&self, obj: &mut Lease) {
        obj.spec.get_or_insert_default();
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
        if spec.preferred_holder.as_ref().is_some_and(|h| !h.is_empty())
            && spec.strategy.as_ref().is_none_or(String::is_empty)
        {
            errs.forbidden(path.child("preferredHolder"), "may only be specified if `strategy` is defined");
        }
        if let Some(strategy) = spec.strategy.as_deref() {
            crate::check::named(errs, &path.child("strategy"), strategy, coordination_strategy);
        }
    }

    fn row(&self, obj: &Lease, now: Timestamp) -> Vec<Value> {
        let holder = text(obj.spec.as_ref().and_then(|s| s.holder_identity.as_ref()));
        let meta = &obj.metadata;
        vec![meta.name.clone().into(), holder.into(), age(meta.creation_timestamp.as_ref(), now)]
    }
}

/// Names of strategies are one of upstream's, or qualified.
fn coordination_strategy(name: &str) -> Vec<String> {
    match name {
        "OldestEmulationVersion" => Vec::new(),
        name if name.contains('/') => coracle_meta::names::qualified_name(name),
        _ => vec!["must be a qualified name, or \"OldestEmulationVersion\"".to_owned()],
    }
}
