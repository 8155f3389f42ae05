//! MutatingWebhookConfiguration: webhooks that may change objects on their way in.

use coracle_meta::field::ErrorList;
use coracle_meta::object_meta::Recheck;
use jiff::Timestamp;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use serde_json::Value;

use super::webhook::{Defaults, Strictness, Webhook, check};
use super::{CATEGORIES, name_warnings};
use crate::common::column;
use crate::def::{AGE, Column, NAME, ResourceDef, Scope, Strategy, Typed, age};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Webhooks",
        "integer",
        "",
        "Webhooks indicates the number of webhooks registered in this configuration",
    ),
    AGE,
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::New,
    categories: CATEGORIES,
    scope: Scope::Cluster,
    columns: COLUMNS,
    has_generation: true,
    unconditional_update: false,
    ..ResourceDef::new::<MutatingWebhookConfiguration>(
        "mutatingwebhookconfiguration",
        &Typed::<MutatingWebhookConfiguration, _>::new(Configurations),
    )
};

struct Configurations;

fn hooks(obj: &MutatingWebhookConfiguration) -> Vec<Webhook<'_>> {
    obj.webhooks.iter().flatten().map(Webhook::from).collect()
}

impl Strategy<MutatingWebhookConfiguration> for Configurations {
    fn default(&self, obj: &mut MutatingWebhookConfiguration) {
        for hook in obj.webhooks.iter_mut().flatten() {
            Defaults {
                failure_policy: &mut hook.failure_policy,
                match_policy: &mut hook.match_policy,
                namespace_selector: &mut hook.namespace_selector,
                object_selector: &mut hook.object_selector,
                timeout: &mut hook.timeout_seconds,
                client: &mut hook.client_config,
                rules: &mut hook.rules,
            }
            .apply();
            hook.reinvocation_policy.get_or_insert_with(|| "Never".to_owned());
        }
    }

    fn validate(&self, obj: &MutatingWebhookConfiguration, errs: &mut ErrorList) {
        check(&hooks(obj), Strictness::FULL, errs);
    }

    fn validate_update(
        &self,
        new: &MutatingWebhookConfiguration,
        old: &MutatingWebhookConfiguration,
        errs: &mut ErrorList,
    ) {
        let hooks_now = hooks(new);
        check(&hooks_now, Strictness::towards(&hooks_now, &hooks(old)), errs);
    }

    fn warnings(
        &self,
        new: &MutatingWebhookConfiguration,
        old: Option<&MutatingWebhookConfiguration>,
    ) -> Vec<String> {
        name_warnings(new.metadata.name.as_ref(), old.is_none())
    }

    fn row(&self, obj: &MutatingWebhookConfiguration, now: Timestamp) -> Vec<Value> {
        vec![
            obj.metadata.name.clone().into(),
            obj.webhooks.as_ref().map_or(0, Vec::len).into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
        ]
    }
}
