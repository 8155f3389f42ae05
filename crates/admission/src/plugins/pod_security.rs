//! PodSecurity: pods must keep to the level that their namespace's labels name; workloads that would not are warned
//! of. Follows <https://kubernetes.io/docs/concepts/security/pod-security-admission/>.

mod baseline;
mod checks;
mod policy;
mod restricted;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use coracle_meta::{Object, Status};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{
    Namespace, Pod, PodSpec, PodTemplate, PodTemplateSpec, ReplicationController,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use checks::{Finding, Subject, details, evaluate, reasons};
use policy::{Level, LevelVersion, Policy};

use crate::{Environment, Operation, Plugin, Request};

/// What the keys of audit annotations begin with.
const AUDIT: &str = "pod-security.kubernetes.io/";
/// Pods of a namespace that are checked when its level changes.
const MAX_PODS: usize = 3000;
/// Subresources of pods through which no container comes.
const HARMLESS: [&str; 8] =
    ["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];

/// The plugin.
pub(super) struct PodSecurity;

#[async_trait]
impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        if !matches!(request.operation, Operation::Create | Operation::Update) {
            return false;
        }
        match (request.resource.group, request.resource.plural) {
            ("", "pods") => !HARMLESS.contains(&request.subresource),
            ("", "namespaces" | "replicationcontrollers" | "podtemplates")
            | ("apps", "replicasets" | "deployments" | "statefulsets" | "daemonsets")
            | ("batch", "jobs" | "cronjobs") => request.subresource.is_empty(),
            _ => false,
        }
    }

    async fn validate(&self, env: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        if let Some(namespace) = request.object_as::<Namespace>() {
            let namespace = namespace.clone();
            return check_namespace(env, request, &namespace);
        }
        let found = env.reader.get("", "namespaces", "", request.namespace);
        let Some(namespace) = found.as_deref().and_then(|obj| obj.downcast::<Namespace>()) else {
            let why = format!("failed to lookup namespace {:?}", request.namespace);
            return if request.is("", "pods") { Err(Status::internal(why)) } else { Ok(()) };
        };
        let (policy, errs) = Policy::of(namespace.metadata.labels.as_ref());
        if errs.is_empty() && policy.is_privileged() {
            request.annotate(&format!("{AUDIT}enforce-policy"), "privileged:latest".to_owned());
            return Ok(());
        }
        if !errs.is_empty() {
            request
                .annotate(&format!("{AUDIT}error"), format!("Failed to parse policy: {}", errs.aggregate()));
        }
        let pod = request.object_as::<Pod>().is_some();
        let insignificant = match (request.object_as::<Pod>(), request.old_as::<Pod>()) {
            (Some(new), Some(old)) => !is_significant(new, old),
            _ => false,
        };
        let Some((meta, spec)) = request.object.as_deref().and_then(|obj| pod_of(&**obj)) else {
            return Ok(());
        };
        if insignificant {
            return Ok(());
        }
        let (meta, spec) = (meta.clone(), spec.clone());
        judge(request, policy, &Subject { annotations: meta.annotations.as_ref(), spec: &spec }, pod)
    }
}

/// Evaluates a pod, or the pods of a workload, which are only warned of.
fn judge(
    request: &mut Request<'_>,
    policy: Policy,
    subject: &Subject<'_>,
    enforce: bool,
) -> Result<(), Status> {
    if enforce {
        request.annotate(&format!("{AUDIT}enforce-policy"), policy.enforce.to_string());
        let findings = evaluate(policy.enforce, subject);
        audit(request, policy.audit, subject);
        if !findings.is_empty() {
            let why = format!("violates PodSecurity \"{}\": {}", policy.enforce, details(&findings));
            let resource = request.resource;
            return Err(Status::forbidden(resource.group, resource.plural, request.name, &why));
        }
    } else {
        audit(request, policy.audit, subject);
    }
    let findings = evaluate(policy.warn, subject);
    if !findings.is_empty() {
        request.warnings.push(would_violate(policy.warn, &findings));
    }
    Ok(())
}

fn audit(request: &mut Request<'_>, policy: LevelVersion, subject: &Subject<'_>) {
    let findings = evaluate(policy, subject);
    if !findings.is_empty() {
        request.annotate(&format!("{AUDIT}audit-violations"), would_violate(policy, &findings));
    }
}

fn would_violate(policy: LevelVersion, findings: &[Finding]) -> String {
    format!("would violate PodSecurity \"{policy}\": {}", details(findings))
}

/// Metadata and spec of a pod, or of the pods that a workload makes.
fn pod_of(obj: &dyn Object) -> Option<(&ObjectMeta, &PodSpec)> {
    if let Some(pod) = obj.downcast::<Pod>() {
        return Some((&pod.metadata, pod.spec.as_ref()?));
    }
    let template: Option<&PodTemplateSpec> = if let Some(o) = obj.downcast::<PodTemplate>() {
        o.template.as_ref()
    } else if let Some(o) = obj.downcast::<ReplicationController>() {
        o.spec.as_ref()?.template.as_ref()
    } else if let Some(o) = obj.downcast::<ReplicaSet>() {
        o.spec.as_ref()?.template.as_ref()
    } else if let Some(o) = obj.downcast::<Deployment>() {
        Some(&o.spec.as_ref()?.template)
    } else if let Some(o) = obj.downcast::<StatefulSet>() {
        Some(&o.spec.as_ref()?.template)
    } else if let Some(o) = obj.downcast::<DaemonSet>() {
        Some(&o.spec.as_ref()?.template)
    } else if let Some(o) = obj.downcast::<Job>() {
        Some(&o.spec.as_ref()?.template)
    } else if let Some(o) = obj.downcast::<CronJob>() {
        Some(&o.spec.job_template.spec.as_ref()?.template)
    } else {
        None
    };
    static NONE: ObjectMeta = ObjectMeta {
        annotations: None,
        creation_timestamp: None,
        deletion_grace_period_seconds: None,
        deletion_timestamp: None,
        finalizers: None,
        generate_name: None,
        generation: None,
        labels: None,
        managed_fields: None,
        name: None,
        namespace: None,
        owner_references: None,
        resource_version: None,
        self_link: None,
        uid: None,
    };
    let template = template?;
    Some((template.metadata.as_ref().unwrap_or(&NONE), template.spec.as_ref()?))
}

/// Whether a change of a pod can matter: a container came, went or got another image.
fn is_significant(new: &Pod, old: &Pod) -> bool {
    let (Some(new), Some(old)) = (&new.spec, &old.spec) else { return true };
    let images = |containers: Option<&Vec<k8s_openapi::api::core::v1::Container>>| -> Vec<Option<String>> {
        containers.into_iter().flatten().map(|c| c.image.clone()).collect()
    };
    let debuggers = |spec: &PodSpec| -> Vec<(String, Option<String>)> {
        let all = spec.ephemeral_containers.iter().flatten();
        all.map(|c| (c.name.clone(), c.image.clone())).collect()
    };
    let before = debuggers(old);
    images(Some(&new.containers)) != images(Some(&old.containers))
        || images(new.init_containers.as_ref()) != images(old.init_containers.as_ref())
        || debuggers(new).iter().any(|one| !before.contains(one))
}

/// Labels of a namespace must be right, and who makes them stricter learns which pods do not keep to them.
fn check_namespace(
    env: &Environment,
    request: &mut Request<'_>,
    namespace: &Namespace,
) -> Result<(), Status> {
    let (new, errs) = Policy::of(namespace.metadata.labels.as_ref());
    let invalid = || Status::invalid("", "Namespace", request.name, &errs);
    let Some(old) = request.old_as::<Namespace>() else {
        return if errs.is_empty() { Ok(()) } else { Err(invalid()) };
    };
    let (old, old_errs) = Policy::of(old.metadata.labels.as_ref());
    if !errs.is_empty() && (old_errs.is_empty() || errs.aggregate() != old_errs.aggregate()) {
        return Err(invalid());
    }
    let (now, before) = (new.enforce, old.enforce);
    let relaxed = now.version == before.version && now.level <= before.level;
    if now == before || now.level == Level::Privileged || relaxed {
        return Ok(());
    }
    let name = namespace.metadata.name.as_deref().unwrap_or("");
    let pods = env.reader.list("", "pods", name);
    request.warnings.extend(warnings_of(name, now, &pods));
    Ok(())
}

/// What the present pods of a namespace would violate.
fn warnings_of(namespace: &str, policy: LevelVersion, pods: &[Arc<dyn Object>]) -> Vec<String> {
    let mut owners = HashSet::new();
    let all = pods.iter().filter_map(|obj| obj.downcast::<Pod>());
    // One pod of each owner first: they are alike.
    let (mut first, again): (Vec<&Pod>, Vec<&Pod>) = all.partition(|pod| {
        let owner = pod.metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true));
        owner.is_none_or(|owner| owners.insert(owner.uid.clone()))
    });
    first.extend(again);
    let (total, checked) = (first.len(), first.len().min(MAX_PODS));
    let mut bad: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for pod in &first[..checked] {
        let Some(spec) = &pod.spec else { continue };
        let findings = evaluate(policy, &Subject { annotations: pod.metadata.annotations.as_ref(), spec });
        if !findings.is_empty() {
            bad.entry(reasons(&findings)).or_default().push(pod.metadata.name.as_deref().unwrap_or(""));
        }
    }
    let mut out = Vec::new();
    if checked < total {
        out.push(format!(
            "new PodSecurity enforce level only checked against the first {checked} of {total} existing pods"
        ));
    }
    if !bad.is_empty() {
        out.push(format!(
            "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{policy}\""
        ));
    }
    let mut lines: Vec<String> = bad
        .into_iter()
        .map(|(why, names)| {
            let name = names.iter().min().copied().unwrap_or("");
            match names.len() {
                1 => format!("{name}: {why}"),
                2 => format!("{name} (and 1 other pod): {why}"),
                n => format!("{name} (and {} other pods): {why}", n - 1),
            }
        })
        .collect();
    lines.sort();
    out.extend(lines);
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::validate;
    use super::*;

    fn namespace(level: &str) -> Arc<dyn Object> {
        let labels = json!({ "pod-security.kubernetes.io/enforce": level });
        let ns: Namespace =
            serde_json::from_value(json!({ "metadata": { "name": "ns", "labels": labels } })).unwrap();
        Arc::new(ns)
    }

    #[track_caller]
    fn check(level: &str, spec: serde_json::Value, want: Option<&str>) {
        let meta = json!({ "name": "p", "namespace": "ns" });
        let pod: Pod = serde_json::from_value(json!({ "metadata": meta, "spec": spec })).unwrap();
        let mut pod: Box<dyn Object> = Box::new(pod);
        let refused = validate(&PodSecurity, &[namespace(level)], &mut pod).err();
        let prefix = format!("pods \"p\" is forbidden: violates PodSecurity \"{level}:latest\": ");
        assert_eq!(refused.map(|s| s.message().replace(&prefix, "")).as_deref(), want);
    }

    #[test]
    fn baseline_refuses_host_access_and_lets_plain_pods_pass() {
        check("baseline", json!({ "containers": [{ "name": "c" }] }), None);
        let spec = json!({ "hostPID": true, "containers": [
            { "name": "a", "securityContext": { "privileged": true } },
            { "name": "b", "ports": [{ "containerPort": 1, "hostPort": 8080 }] } ] });
        let why = "host namespaces (hostPID=true), hostPort (container \"b\" uses hostPort 8080), privileged \
                   (container \"a\" must not set securityContext.privileged=true)";
        check("baseline", spec.clone(), Some(why));
        check("privileged", spec, None);
    }

    #[test]
    fn restricted_demands_a_hardened_pod() {
        let why = "allowPrivilegeEscalation != false (container \"c\" must set \
                   securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must \
                   set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"c\" \
                   must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must set \
                   securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")";
        check("restricted", json!({ "containers": [{ "name": "c" }] }), Some(why));
        let hard = json!({ "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" },
            "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } });
        check("restricted", json!({ "containers": [{ "name": "c", "securityContext": hard }] }), None);
    }
}
