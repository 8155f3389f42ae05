//! StatefulSet: pods with stable names and storage of their own.

use std::collections::BTreeSet;

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use coracle_meta::object_meta::Recheck;
use coracle_meta::selector::LabelSelector;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    RollingUpdateStatefulSetStrategy, StatefulSet, StatefulSetSpec, StatefulSetStatus,
    StatefulSetUpdateStrategy,
};
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, PodTemplateSpec, Volume};
use serde_json::{Value, json};

use super::rolling;
use super::selector::is_absent;
use crate::check::{has_selector, int_or_percent, label_selector, named, non_negative, one_of};
use crate::common::{column, containers_and_images, text, wide_column};
use crate::core::persistent_volume_claim as claim;
use crate::def::{AGE, Column, Context, NAME, ResourceDef, ScalePaths, Strategy, Subresource, Typed, age};
use crate::go_dump;
use crate::podspec::{defaults, validation, warnings};

const COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "string", "", "Number of the pod with ready state"),
    AGE,
    wide_column("Containers", "string", "", "Names of each container in the template."),
    wide_column("Images", "string", "", "Images referenced by each container in the template."),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    recheck: Recheck::Change,
    short_names: &["sts"],
    categories: &["all"],
    subresources: &[Subresource::Scale, Subresource::Status],
    columns: COLUMNS,
    scale: Some(ScalePaths {
        spec_replicas: "/spec/replicas",
        status_replicas: "/status/replicas",
        selector: "/spec/selector",
    }),
    has_generation: true,
    ..ResourceDef::new::<StatefulSet>("statefulset", &Typed::<StatefulSet, _>::new(StatefulSets))
};

struct StatefulSets;

const ROLLING: &str = "RollingUpdate";
const RETENTION: &[&str] = &["Retain", "Delete"];

/// What an update may skip: the rest cannot be changed, so that old faults in it do not matter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    Create,
    Update,
    /// An update of an object whose template was not valid before.
    KeepTemplate,
}

impl Strategy<StatefulSet> for StatefulSets {
    fn drop_disabled(&self, obj: &mut StatefulSet) {
        crate::podspec::defaults::drop_disabled(obj.spec.as_mut().and_then(|s| s.template.spec.as_mut()));
    }

    fn default(&self, obj: &mut StatefulSet) {
        let spec = obj.spec.get_or_insert_default();
        defaults::string(&mut spec.pod_management_policy, "OrderedReady");
        let strategy = spec.update_strategy.get_or_insert_default();
        if text(strategy.type_.as_ref()).is_empty() {
            defaults::string(&mut strategy.type_, ROLLING);
            strategy.rolling_update.get_or_insert_default();
        }
        if text(strategy.type_.as_ref()) == ROLLING
            && let Some(rolling) = &mut strategy.rolling_update
        {
            rolling.partition.get_or_insert(0);
        }
        let retention = spec.persistent_volume_claim_retention_policy.get_or_insert_default();
        defaults::string(&mut retention.when_deleted, "Retain");
        defaults::string(&mut retention.when_scaled, "Retain");
        spec.replicas.get_or_insert(1);
        // Go encodes the empty name, too.
        spec.service_name.get_or_insert_default();
        spec.revision_history_limit.get_or_insert(10);
        spec.volume_claim_templates.iter_mut().flatten().for_each(claim::defaults);
        defaults::template(&mut spec.template);
        obj.status.get_or_insert_default();
    }

    fn prepare_create(&self, _: Context<'_>, obj: &mut StatefulSet) {
        obj.status = Some(StatefulSetStatus::default());
        drop_max_unavailable(obj);
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut StatefulSet, old: &StatefulSet) {
        new.status.clone_from(&old.status);
        let rolling = old.spec.as_ref().and_then(|s| s.update_strategy.as_ref()?.rolling_update.as_ref());
        if rolling.is_none_or(|rolling| rolling.max_unavailable.is_none()) {
            drop_max_unavailable(new);
        }
    }

    fn prepare_status_update(&self, _: Context<'_>, new: &mut StatefulSet, old: &StatefulSet) {
        new.spec.clone_from(&old.spec);
    }

    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        names::maybe_prefix(names::dns1123_label, name, prefix)
    }

    fn validate(&self, obj: &StatefulSet, errs: &mut ErrorList) {
        if let Some(spec) = &obj.spec {
            validate_spec(spec, Rules::Create, errs);
        }
    }

    fn validate_update(&self, new: &StatefulSet, old: &StatefulSet, errs: &mut ErrorList) {
        let (Some(new), Some(old)) = (&new.spec, &old.spec) else { return };
        let mut before = ErrorList::new();
        validate_spec(old, Rules::Update, &mut before);
        let rules = if before.is_empty() { Rules::Update } else { Rules::KeepTemplate };
        validate_spec(new, rules, errs);
        let fixed = StatefulSetSpec {
            replicas: old.replicas,
            template: old.template.clone(),
            update_strategy: old.update_strategy.clone(),
            min_ready_seconds: old.min_ready_seconds,
            ordinals: old.ordinals.clone(),
            revision_history_limit: old.revision_history_limit,
            persistent_volume_claim_retention_policy: old.persistent_volume_claim_retention_policy.clone(),
            ..new.clone()
        };
        if fixed != *old {
            let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                       'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                       'minReadySeconds' are forbidden";
            errs.forbidden("spec", why);
        }
    }

    fn validate_status_update(&self, new: &StatefulSet, old: &StatefulSet, errs: &mut ErrorList) {
        let empty = StatefulSetStatus::default();
        validate_status(new.status.as_ref().unwrap_or(&empty), old.status.as_ref().unwrap_or(&empty), errs);
    }

    fn warnings(&self, new: &StatefulSet, old: Option<&StatefulSet>) -> Vec<String> {
        let Some(spec) = &new.spec else { return Vec::new() };
        let mut out = Vec::new();
        let path = Path::new("spec");
        if old.is_none_or(|old| old.spec != new.spec)
            && let Some(pod) = &spec.template.spec
        {
            let at = path.child("template").child("spec");
            out.extend(warnings::of(pod, spec.template.metadata.as_ref(), &at));
        }
        for (i, template) in spec.volume_claim_templates.iter().flatten().enumerate() {
            let at = path.child("volumeClaimTemplates").index(i);
            // Upstream names the field so on updates.
            let at = if old.is_some() { at.child("Spec") } else { at };
            out.extend(
                template.spec.as_ref().map(|spec| claim::spec_warnings(spec, &at)).unwrap_or_default(),
            );
        }
        if spec.revision_history_limit.is_some_and(|limit| limit < 0) {
            let why = "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value \
                       >= 0 is recommended";
            out.push(why.to_owned());
        }
        out
    }

    fn row(&self, obj: &StatefulSet, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (obj.spec.as_ref(), obj.status.as_ref());
        let (containers, images) = containers_and_images(spec.map(|s| &s.template));
        let ready = status.and_then(|s| s.ready_replicas).unwrap_or(0);
        vec![
            obj.metadata.name.clone().into(),
            format!("{ready}/{}", spec.and_then(|s| s.replicas).unwrap_or(0)).into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
            containers,
            images,
        ]
    }
}

/// Several unavailable pods at a time are off, as by default upstream, so the field is not kept.
fn drop_max_unavailable(obj: &mut StatefulSet) {
    let strategy = obj.spec.as_mut().and_then(|s| s.update_strategy.as_mut());
    if let Some(rolling) = strategy.and_then(|s| s.rolling_update.as_mut()) {
        rolling.max_unavailable = None;
    }
}

fn validate_spec(spec: &StatefulSetSpec, rules: Rules, errs: &mut ErrorList) {
    let path = Path::new("spec");
    match text(spec.pod_management_policy.as_ref()) {
        "" => errs.required(path.child("podManagementPolicy"), ""),
        "OrderedReady" | "Parallel" => {}
        other => {
            let why = "must be 'OrderedReady' or 'Parallel'";
            errs.invalid(path.child("podManagementPolicy"), other, why);
        }
    }
    if let Some(strategy) = &spec.update_strategy {
        validate_strategy(strategy, &path.child("updateStrategy"), errs);
    }
    if let Some(policy) = &spec.persistent_volume_claim_retention_policy {
        let at = path.child("persistentVolumeClaimRetentionPolicy");
        one_of(errs, &at.child("whenDeleted"), text(policy.when_deleted.as_ref()), RETENTION);
        one_of(errs, &at.child("whenScaled"), text(policy.when_scaled.as_ref()), RETENTION);
    }
    if rules == Rules::Create {
        for (i, template) in spec.volume_claim_templates.iter().flatten().enumerate() {
            let at = path.child("volumeClaimTemplates").index(i).child("spec");
            claim::validate_spec(template.spec.as_ref(), false, &at, errs);
        }
    }
    non_negative(errs, &path.child("replicas"), i64::from(spec.replicas.unwrap_or(0)));
    non_negative(errs, &path.child("minReadySeconds"), i64::from(spec.min_ready_seconds.unwrap_or(0)));
    if let Some(ordinals) = &spec.ordinals {
        non_negative(errs, &path.child("ordinals.start"), i64::from(ordinals.start.unwrap_or(0)));
    }
    let service = text(spec.service_name.as_ref());
    if rules == Rules::Create && !service.is_empty() {
        named(errs, &path.child("serviceName"), service, names::dns1123_label);
    }
    validate_selector(spec, rules, &path, errs);
    let Some(pod) = &spec.template.spec else { return };
    let at = path.child("template").child("spec");
    one_of(errs, &at.child("restartPolicy"), text(pod.restart_policy.as_ref()), &["Always"]);
    if pod.active_deadline_seconds.is_some() {
        let why = "activeDeadlineSeconds in StatefulSet is not Supported";
        errs.forbidden(at.child("activeDeadlineSeconds"), why);
    }
}

fn validate_selector(spec: &StatefulSetSpec, rules: Rules, path: &Path, errs: &mut ErrorList) {
    const SELECTOR: &str = "metav1.LabelSelector";
    let (selector, at) = (&spec.selector, path.child("selector"));
    let absent = is_absent(selector);
    if absent {
        errs.required(&at, "");
    } else {
        label_selector(Some(selector), &at, errs);
        if !has_selector(selector) {
            let why = "empty selector is invalid for statefulset";
            go_dump::invalid(errs, &at, SELECTOR, Some(selector), why);
        }
    }
    // An absent selector selects nothing, an empty one everything.
    let compiled = if absent { Ok(LabelSelector::nothing()) } else { LabelSelector::from_api(selector) };
    let Ok(compiled) = compiled else {
        return go_dump::invalid(errs, &at, SELECTOR, Some(selector), "");
    };
    validate_template(spec, &compiled, rules, &path.child("template"), errs);
}

fn validate_template(
    spec: &StatefulSetSpec,
    selector: &LabelSelector,
    rules: Rules,
    path: &Path,
    errs: &mut ErrorList,
) {
    let template = as_the_controller_makes_it(spec);
    let labels = template.metadata.as_ref().and_then(|m| m.labels.as_ref());
    if !selector.is_empty() && !selector.matches_option(labels) {
        let why = "`selector` does not match template `labels`";
        errs.invalid(path.child("metadata").child("labels"), json!(labels), why);
    }
    if rules != Rules::KeepTemplate {
        validation::template(&template, path, errs);
    }
    validation::template_metadata(&template, path, errs);
}

/// The template with what the controller overwrites: host name and subdomain, and the volumes of the claims.
fn as_the_controller_makes_it(spec: &StatefulSetSpec) -> PodTemplateSpec {
    let mut template = spec.template.clone();
    let Some(pod) = &mut template.spec else { return template };
    (pod.subdomain, pod.hostname) = (None, None);
    let claims: BTreeSet<&str> = spec
        .volume_claim_templates
        .iter()
        .flatten()
        .map(|claim| text(claim.metadata.name.as_ref()))
        .collect();
    if claims.is_empty() {
        return template;
    }
    let volume = |name: &&str| Volume {
        name: (*name).to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: (*name).to_owned(),
            read_only: None,
        }),
        ..Volume::default()
    };
    let own = pod.volumes.take().unwrap_or_default();
    let own = own.into_iter().filter(|volume| !claims.contains(volume.name.as_str()));
    pod.volumes = Some(claims.iter().map(volume).chain(own).collect());
    template
}

fn validate_strategy(strategy: &StatefulSetUpdateStrategy, path: &Path, errs: &mut ErrorList) {
    match (text(strategy.type_.as_ref()), &strategy.rolling_update) {
        ("", _) => errs.required(path, ""),
        ("OnDelete", None) | (ROLLING, None) => {}
        ("OnDelete", rolling) => {
            let why = "only allowed for updateStrategy 'RollingUpdate'";
            let name = "apps.RollingUpdateStatefulSetStrategy";
            go_dump::invalid(errs, path.child("rollingUpdate"), name, rolling.as_ref(), why);
        }
        (ROLLING, Some(rolling)) => validate_rolling(rolling, &path.child("rollingUpdate"), errs),
        _ => {
            let why = "must be 'RollingUpdate' or 'OnDelete'";
            go_dump::invalid(errs, path, "apps.StatefulSetUpdateStrategy", Some(strategy), why);
        }
    }
}

fn validate_rolling(rolling: &RollingUpdateStatefulSetStrategy, path: &Path, errs: &mut ErrorList) {
    non_negative(errs, &path.child("partition"), i64::from(rolling.partition.unwrap_or(0)));
    let Some(limit) = &rolling.max_unavailable else { return };
    let at = path.child("maxUnavailable");
    int_or_percent(errs, &at, limit);
    if rolling::amount(Some(limit)) == 0 {
        errs.invalid(&at, json!(limit), "cannot be 0");
    }
    rolling::at_most_all(Some(limit), &at, errs);
}

fn validate_status(status: &StatefulSetStatus, old: &StatefulSetStatus, errs: &mut ErrorList) {
    let path = Path::new("status");
    let number = |value: Option<i32>| i64::from(value.unwrap_or(0));
    let total = i64::from(status.replicas);
    let (ready, available) = (number(status.ready_replicas), number(status.available_replicas));
    let parts = [
        ("readyReplicas", ready),
        ("currentReplicas", number(status.current_replicas)),
        ("updatedReplicas", number(status.updated_replicas)),
        ("availableReplicas", available),
    ];
    non_negative(errs, &path.child("replicas"), total);
    for (field, value) in parts {
        non_negative(errs, &path.child(field), value);
    }
    non_negative(errs, &path.child("observedGeneration"), status.observed_generation.unwrap_or(0));
    non_negative(errs, &path.child("collisionCount"), number(status.collision_count));
    for (field, value) in parts.into_iter().filter(|(_, value)| *value > total) {
        errs.invalid(path.child(field), value, "cannot be greater than status.replicas");
    }
    if available > ready {
        let why = "cannot be greater than status.readyReplicas";
        errs.invalid(path.child("availableReplicas"), available, why);
    }
    rolling::not_decremented(status.collision_count, old.collision_count, errs);
}
