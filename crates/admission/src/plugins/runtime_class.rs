//! RuntimeClass: pods get the overhead, node labels and tolerations of their runtime class.

use async_trait::async_trait;
use coracle_meta::{Object, Reason, Status, names};
use k8s_openapi::api::core::v1::{Pod, PodSpec, Toleration};
use k8s_openapi::api::node::v1::RuntimeClass as Class;
use std::sync::Arc;

use crate::{Environment, Operation, Plugin, Request};

const MISMATCH: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
const UNDEFINED: &str = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";

/// The plugin.
pub(super) struct RuntimeClass;

/// Why a pod is turned away.
enum Refusal {
    /// The name could not even be asked for.
    Name(String),
    /// Forbidden, for this reason.
    Class(String),
}

impl Refusal {
    fn status(self, request: &Request<'_>) -> Status {
        match self {
            Self::Name(why) => Status::new(500, Reason::Unknown, why, None),
            Self::Class(why) => request.forbidden(&why),
        }
    }
}

/// The class that the pod names, if it names one.
fn class_of(env: &Environment, spec: Option<&PodSpec>) -> Result<Option<Arc<dyn Object>>, Refusal> {
    let Some(name) = spec.and_then(|s| s.runtime_class_name.as_deref()) else { return Ok(None) };
    match env.reader.get("node.k8s.io", "runtimeclasses", "", name) {
        Some(class) => Ok(Some(class)),
        None => Err(match names::path_segment(name).as_slice() {
            [] => Refusal::Class(format!("pod rejected: RuntimeClass {name:?} not found")),
            wrong => Refusal::Name(format!("invalid resource name {name:?}: [{}]", wrong.join(" "))),
        }),
    }
}

#[async_trait]
impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.operation == Operation::Create && request.is("", "pods")
    }

    async fn mutate(&self, env: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        let outcome = match request.object_mut::<Pod>() {
            None => Ok(()),
            Some(pod) => class_of(env, pod.spec.as_ref()).and_then(|class| {
                let class = class.as_deref().and_then(|obj| obj.downcast::<Class>());
                match (class, pod.spec.as_mut()) {
                    (Some(class), Some(spec)) => apply(class, spec).map_err(Refusal::Class),
                    _ => Ok(()),
                }
            }),
        };
        outcome.map_err(|refusal| refusal.status(request))
    }

    async fn validate(&self, env: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        let spec = request.object_as::<Pod>().and_then(|pod| pod.spec.as_ref());
        let outcome = class_of(env, spec).and_then(|class| {
            let class = class.as_deref().and_then(|obj| obj.downcast::<Class>());
            let set = spec.and_then(|s| s.overhead.as_ref());
            match class.and_then(|c| c.overhead.as_ref()) {
                Some(overhead) if overhead.pod_fixed.as_ref() != set => {
                    Err(Refusal::Class(MISMATCH.to_owned()))
                }
                None if set.is_some() => Err(Refusal::Class(UNDEFINED.to_owned())),
                _ => Ok(()),
            }
        });
        outcome.map_err(|refusal| refusal.status(request))
    }
}

/// Gives the pod what its class says.
fn apply(class: &Class, spec: &mut PodSpec) -> Result<(), String> {
    if let Some(overhead) = &class.overhead {
        let set = spec.overhead.as_ref().filter(|o| !o.is_empty());
        if set.is_some() && set != overhead.pod_fixed.as_ref() {
            return Err(MISMATCH.to_owned());
        }
        spec.overhead.clone_from(&overhead.pod_fixed);
    }
    let Some(scheduling) = &class.scheduling else { return Ok(()) };
    for (key, wanted) in scheduling.node_selector.iter().flatten() {
        let labels = spec.node_selector.get_or_insert_default();
        match labels.get(key) {
            Some(own) if own != wanted => {
                return Err(format!(
                    "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {wanted}; \
                     pod.spec.nodeSelector[{key}] = {own}"
                ));
            }
            _ => drop(labels.insert(key.clone(), wanted.clone())),
        }
    }
    let all: Vec<Toleration> = spec
        .tolerations
        .take()
        .into_iter()
        .flatten()
        .chain(scheduling.tolerations.clone().into_iter().flatten())
        .collect();
    spec.tolerations = Some(merged(&all)).filter(|t| !t.is_empty());
    Ok(())
}

/// The tolerations without those that another one covers.
fn merged(all: &[Toleration]) -> Vec<Toleration> {
    let mut out: Vec<Toleration> = Vec::new();
    for (i, one) in all.iter().enumerate() {
        let before = out.iter().any(|other| covers(other, one));
        let behind = all[i + 1..].iter().any(|other| other != one && covers(other, one));
        if !before && !behind {
            out.push(one.clone());
        }
    }
    out
}

/// Whether everything that `one` tolerates, `wide` tolerates too.
fn covers(wide: &Toleration, one: &Toleration) -> bool {
    fn text(value: Option<&String>) -> &str {
        value.map_or("", String::as_str)
    }
    let (key, operator) = (text(wide.key.as_ref()), text(wide.operator.as_ref()));
    let effect = text(wide.effect.as_ref());
    if wide == one {
        return true;
    }
    if text(one.key.as_ref()) != key && !(key.is_empty() && operator == "Exists") {
        return false;
    }
    if text(one.effect.as_ref()) != effect && !effect.is_empty() {
        return false;
    }
    if let (true, Some(limit)) = (effect == "NoExecute", wide.toleration_seconds)
        && one.toleration_seconds.is_none_or(|seconds| seconds > limit)
    {
        return false;
    }
    match operator {
        "Equal" | "" => {
            matches!(text(one.operator.as_ref()), "Equal" | "")
                && text(one.value.as_ref()) == text(wide.value.as_ref())
        }
        "Exists" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::node::v1::{Overhead, Scheduling};
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    use super::*;
    use crate::plugins::testing::{admit, pod};

    fn class() -> Arc<dyn Object> {
        let mut class = Class { handler: "kata".to_owned(), ..Class::default() };
        class.metadata.name = Some("kata".to_owned());
        class.overhead =
            Some(Overhead { pod_fixed: Some([("cpu".to_owned(), Quantity("100m".to_owned()))].into()) });
        class.scheduling = Some(Scheduling {
            node_selector: Some([("a".to_owned(), "b".to_owned())].into()),
            tolerations: Some(vec![Toleration {
                operator: Some("Exists".to_owned()),
                ..Toleration::default()
            }]),
        });
        Arc::new(class)
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut PodSpec), expected: Result<(), &str>) -> Box<dyn Object> {
        let mut object = pod("p", change);
        let outcome = admit(&RuntimeClass, &[class()], &mut object).map_err(|e| e.message().to_owned());
        assert_eq!(outcome, expected.map_err(|why| format!("pods \"p\" is forbidden: {why}")));
        object
    }

    #[test]
    fn a_pod_gets_what_its_class_says() {
        let object = check(
            |spec| {
                spec.runtime_class_name = Some("kata".to_owned());
                let narrow = Toleration { key: Some("k".to_owned()), ..Toleration::default() };
                spec.tolerations = Some(vec![narrow]);
            },
            Ok(()),
        );
        let spec = object.downcast::<Pod>().and_then(|p| p.spec.as_ref()).expect("a spec");
        assert!(spec.overhead.as_ref().is_some_and(|o| o.contains_key("cpu")));
        assert_eq!(spec.node_selector.as_ref().and_then(|n| n.get("a")).map(String::as_str), Some("b"));
        assert_eq!(
            spec.tolerations.as_ref().map(Vec::len),
            Some(1),
            "the wide toleration covers the narrow one"
        );
    }

    #[test]
    fn a_pod_that_contradicts_its_class_is_refused() {
        let named = |name: &str| Some(name.to_owned());
        check(
            |spec| spec.runtime_class_name = named("nosuch"),
            Err("pod rejected: RuntimeClass \"nosuch\" not found"),
        );
        check(
            |spec| {
                spec.runtime_class_name = named("kata");
                spec.node_selector = Some([("a".to_owned(), "z".to_owned())].into());
            },
            Err("conflict: runtimeClass.scheduling.nodeSelector[a] = b; pod.spec.nodeSelector[a] = z"),
        );
    }
}
