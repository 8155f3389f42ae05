//! Priority: turns the class a pod names into its priority and preemption policy.

use async_trait::async_trait;
use coracle_meta::Status;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1::PriorityClass;

use crate::{Environment, Operation, Plugin, Request};

const GROUP: &str = "scheduling.k8s.io";
const PREEMPT: &str = "PreemptLowerPriority";

/// The plugin.
pub(super) struct Priority;

/// What a class says.
struct Class {
    name: String,
    value: i32,
    policy: String,
}

impl Class {
    fn of(class: &PriorityClass) -> Self {
        Self {
            name: class.metadata.name.clone().unwrap_or_default(),
            value: class.value.unwrap_or(0),
            policy: class.preemption_policy.clone().unwrap_or_else(|| PREEMPT.to_owned()),
        }
    }

    /// The classes every cluster has.
    fn built_in(name: &str) -> Option<Self> {
        let value = match name {
            "system-node-critical" => 2_000_001_000,
            "system-cluster-critical" => 2_000_000_000,
            _ => return None,
        };
        Some(Self { name: name.to_owned(), value, policy: PREEMPT.to_owned() })
    }

    fn find(env: &Environment, name: &str) -> Option<Self> {
        let found = env.reader.get(GROUP, "priorityclasses", "", name);
        found.as_deref().and_then(|obj| obj.downcast()).map(Self::of).or_else(|| Self::built_in(name))
    }

    /// The class of pods that name none: the global default of lowest value, else priority 0.
    fn default_of(env: &Environment) -> Self {
        let all = env.reader.list(GROUP, "priorityclasses", "");
        all.iter()
            .filter_map(|obj| obj.downcast::<PriorityClass>())
            .filter(|class| class.global_default == Some(true))
            .min_by_key(|class| class.value)
            .map_or_else(|| Self { name: String::new(), value: 0, policy: PREEMPT.to_owned() }, Self::of)
    }
}

#[async_trait]
impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.is("", "pods") && matches!(request.operation, Operation::Create | Operation::Update)
    }

    async fn mutate(&self, env: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        if request.operation == Operation::Update {
            keep(request);
            return Ok(());
        }
        let refusal = match request.object_mut::<Pod>() {
            Some(pod) => resolve(env, pod),
            None => None,
        };
        refusal.map_or(Ok(()), |why| Err(request.forbidden(&why)))
    }
}

/// An update that leaves the priority out keeps it.
fn keep(request: &mut Request<'_>) {
    let old = request.old_as::<Pod>().and_then(|pod| pod.spec.as_ref());
    let (priority, policy) = (old.and_then(|s| s.priority), old.and_then(|s| s.preemption_policy.clone()));
    if let Some(spec) = request.object_mut::<Pod>().and_then(|pod| pod.spec.as_mut()) {
        spec.priority = spec.priority.or(priority);
        if spec.preemption_policy.is_none() {
            spec.preemption_policy = policy;
        }
    }
}

/// Fills in the pod; yields the reason of a refusal.
fn resolve(env: &Environment, pod: &mut Pod) -> Option<String> {
    let spec = pod.spec.as_mut()?;
    let class = match spec.priority_class_name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => match Class::find(env, name) {
            Some(class) => class,
            None => return Some(format!("no PriorityClass with name {name} was found")),
        },
        None => Class::default_of(env),
    };
    if !class.name.is_empty() {
        spec.priority_class_name = Some(class.name);
    }
    if let Some(given) = spec.priority.filter(|given| *given != class.value) {
        return Some(format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission \
             controller computed {} from the given PriorityClass name",
            class.value
        ));
    }
    spec.priority = Some(class.value);
    if let Some(given) = spec.preemption_policy.as_deref().filter(|given| *given != class.policy) {
        return Some(format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority \
             admission controller computed {} from the given PriorityClass name",
            class.policy
        ));
    }
    spec.preemption_policy = Some(class.policy);
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::testing::{admit, pod};

    #[track_caller]
    fn check(class: &str, priority: Option<i32>, expected: Result<i32, &str>) {
        let mut object = pod("a", |spec| {
            spec.priority = priority;
            spec.priority_class_name = Some(class.to_owned());
        });
        let outcome = admit(&Priority, &[], &mut object);
        let outcome = outcome.map(|()| {
            let pod = object.downcast::<Pod>().and_then(|p| p.spec.as_ref());
            pod.and_then(|s| s.priority).unwrap_or(-1)
        });
        let outcome = outcome.map_err(|e| e.message().to_owned());
        let expected = expected.map_err(|why| format!("pods \"a\" is forbidden: {why}"));
        assert_eq!(outcome, expected);
    }

    #[test]
    fn priority_comes_from_the_class() {
        check("", None, Ok(0));
        check("system-node-critical", None, Ok(2_000_001_000));
        check("nosuch", None, Err("no PriorityClass with name nosuch was found"));
        let why = "the integer value of priority (5) must not be provided in pod spec; priority admission \
                   controller computed 0 from the given PriorityClass name";
        check("", Some(5), Err(why));
    }
}
