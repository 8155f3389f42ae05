//! The pods that a Job makes: pure.

use coracle_meta::owner::controller_ref;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};

use super::policy::{Effect, effect};
use super::tally::{FAILURES, FINALIZER, IGNORED, INDEX, earlier_failures};
use crate::pods::of_template;
use crate::runtime::name_of;

const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// Longest prefix of a generated name.
const LONGEST_PREFIX: usize = 58;

fn prefix(job: &str, index: i32) -> String {
    let suffix = format!("-{index}-");
    let stem: String = job.chars().take(LONGEST_PREFIX - suffix.len()).collect();
    format!("{stem}{suffix}")
}

fn tell_index(container: &mut Container) {
    let env = container.env.get_or_insert_default();
    if env.iter().any(|variable| variable.name == INDEX_VARIABLE) {
        return;
    }
    let field = ObjectFieldSelector {
        field_path: format!("metadata.labels['{INDEX}']"),
        ..ObjectFieldSelector::default()
    };
    env.push(EnvVar {
        name: INDEX_VARIABLE.to_owned(),
        value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
        ..EnvVar::default()
    });
}

/// A pod, for an index if the Job has them. `replaced` is the failed pod of the index, where failures are
/// counted per index.
pub(super) fn new_pod(job: &Job, index: Option<i32>, replaced: Option<&Pod>) -> Pod {
    let spec = job.spec.as_ref();
    let template = spec.map(|spec| &spec.template);
    let mut pod = of_template(template, job.metadata.namespace.as_ref(), controller_ref(job));
    let meta = &mut pod.metadata;
    meta.generate_name = Some(format!("{}-", name_of(job)));
    let finalizers = meta.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        finalizers.push(FINALIZER.to_owned());
    }
    let Some(index) = index else { return pod };
    meta.generate_name = Some(prefix(name_of(job), index));
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(INDEX.to_owned(), index.to_string());
    if let Some(spec) = spec.filter(|spec| spec.backoff_limit_per_index.is_some()) {
        let (mut counting, mut ignored) = replaced.map_or((0, 0), earlier_failures);
        match replaced.map(|pod| effect(spec, pod)) {
            None => {}
            Some(Effect::Ignored) => ignored += 1,
            Some(_) => counting += 1,
        }
        annotations.insert(FAILURES.to_owned(), counting.to_string());
        if ignored > 0 {
            annotations.insert(IGNORED.to_owned(), ignored.to_string());
        }
    }
    meta.labels.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(format!("{}-{index}", name_of(job)));
    spec.containers.iter_mut().for_each(tell_index);
    spec.init_containers.iter_mut().flatten().for_each(tell_index);
    pod
}
