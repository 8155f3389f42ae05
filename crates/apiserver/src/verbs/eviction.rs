//! Eviction: a deletion of a pod that its disruption budget allows. Follows
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/api-eviction/>.

use std::sync::Arc;

use coracle_admission::Operation;
use coracle_client::{DeleteOptions, WriteOptions};
use coracle_meta::field::ErrorList;
use coracle_meta::selector::LabelSelector;
use coracle_meta::{DynamicObject, GroupVersionKind, Object, Reason, Status, pod};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::{Value, json};

use super::admit::{Act, Pass};
use super::binding::{created, delete_options_of};
use super::commit::{Put, Refused};
use super::create::whole_seconds;
use super::update::CONFLICT_TRIES;
use super::{Caller, Input, Part, sent};
use crate::http::query::check_dry_run;
use crate::registry::Resource;
use crate::server::Server;

/// Evictions that a budget's controller may have yet to confirm.
const MAX_DISRUPTED: usize = 2000;
const REFUSED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

/// What a budget says to an eviction.
enum Verdict {
    /// No budget, or one that does not guard the pod as it is: its revision must hold.
    Free { guarded: bool },
    /// The budget with one disruption less.
    Charged(Box<PodDisruptionBudget>),
}

impl Server {
    /// Evicts a pod.
    pub(crate) async fn evict(
        &self,
        caller: &Caller,
        resource: &Arc<Resource>,
        namespace: &str,
        name: &str,
        input: Input,
        opts: &WriteOptions,
    ) -> Result<Value, Status> {
        let eviction = self.sent(caller, &sent::EVICTION, input, &opts.field_validation)?;
        let own = eviction.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("");
        if own != name {
            let why = "name in URL does not match name in Eviction object";
            return Err(Status::bad_request(why));
        }
        let asked = eviction.get("deleteOptions").unwrap_or(&Value::Null);
        if asked.get("ignoreStoreReadErrorWithClusterBreakingPotential") == Some(&true.into()) {
            let mut errs = ErrorList::new();
            let path = "deleteOptions.ignoreStoreReadErrorWithClusterBreakingPotential";
            errs.invalid(path, true, "can not be set for pod eviction, try after removing the option");
            return Err(Status::invalid("policy", "Eviction", name, &errs));
        }
        let dry: Vec<&str> = asked
            .get("dryRun")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        check_dry_run("DeleteOptions", &dry)?;
        let mut options = delete_options_of(asked);
        options.dry_run |= opts.dry_run;
        let caller = &caller.asking(opts, false);
        self.admit_eviction(caller, resource, namespace, name, &eviction, options.dry_run).await?;
        self.fresh().await?;
        let locked = options.resource_version.is_some();
        for _ in 0..CONFLICT_TRIES {
            let entry = self.present(resource, namespace, name)?;
            let obj = entry.decoded()?;
            let Some(pod) = obj.downcast::<Pod>() else { return Err(Status::internal("not a pod")) };
            if !may_ignore(pod) {
                break;
            }
            let mut options = options.clone();
            if pod::phase(pod) == "Pending" && pod.metadata.deletion_timestamp.is_none() && !locked {
                options.resource_version = Some(entry.revision.to_string());
            }
            match self.mark_and_delete(caller, resource, namespace, name, options).await {
                Err(status) if status.code() == 409 && !locked => {}
                other => return other,
            }
        }
        let (revision, guarded) = self.charge_budget(resource, namespace, name, options.dry_run).await?;
        let mut final_options = options.clone();
        if let Some(budget) = &guarded {
            final_options.resource_version.get_or_insert_with(|| revision.to_string());
            let deleted = self.mark_and_delete(caller, resource, namespace, name, final_options).await;
            return deleted.map_err(|e| if e.code() == 409 && !locked { too_busy(budget) } else { e });
        }
        self.mark_and_delete(caller, resource, namespace, name, final_options).await
    }

    async fn admit_eviction(
        &self,
        caller: &Caller,
        resource: &Resource,
        namespace: &str,
        name: &str,
        eviction: &Value,
        dry_run: bool,
    ) -> Result<(), Status> {
        let gvk = GroupVersionKind::new("policy", "v1", "Eviction");
        let mut obj: Box<dyn Object> =
            Box::new(DynamicObject::from_value(gvk, eviction.clone()).map_err(Status::internal)?);
        let operation = Operation::Create;
        let act = Act { operation, resource, subresource: "eviction", namespace, name, dry_run };
        self.admit(caller, Pass::Both, act, Some(&mut obj), None).await.map(drop)
    }

    /// Charges the pod's budget. Yields the pod's revision, and the budget's name when the pod is free because it
    /// is not ready, which must still hold when it is deleted.
    async fn charge_budget(
        &self,
        resource: &Arc<Resource>,
        namespace: &str,
        name: &str,
        dry_run: bool,
    ) -> Result<(u64, Option<String>), Status> {
        let budgets =
            self.cache.registry.find("policy", "poddisruptionbudgets").ok_or_else(Status::no_such_path)?;
        let budgets = budgets.clone();
        let mut failure = None;
        for _ in 0..CONFLICT_TRIES {
            let entry = self.present(resource, namespace, name)?;
            let obj = entry.decoded()?;
            let Some(pod) = obj.downcast::<Pod>() else { return Err(Status::internal("not a pod")) };
            let Some(budget) = self.budget_of(&budgets, namespace, pod)? else {
                return Ok((entry.revision, None));
            };
            let budget_name = budget.metadata.name.clone().unwrap_or_default();
            let now = Time(whole_seconds(self.clock.now()));
            match judge(pod, &budget, name, &now)? {
                Verdict::Free { guarded } => return Ok((entry.revision, guarded.then_some(budget_name))),
                Verdict::Charged(_) if dry_run => return Ok((entry.revision, None)),
                Verdict::Charged(budget) => {
                    let own = Server::loopback();
                    let input = Input::Object(Arc::from(budget as Box<dyn Object>));
                    let (part, opts) = (Part::Status, WriteOptions::default());
                    match self.update(&own, &budgets, namespace, &budget_name, part, input, &opts).await {
                        Ok(_) => return Ok((entry.revision, None)),
                        Err(status) if status.code() == 409 => failure = Some(status),
                        Err(status) => return Err(status),
                    }
                }
            }
        }
        Err(failure.unwrap_or_else(|| Status::internal("the disruption budget kept changing")))
    }

    /// The budget that guards a pod.
    fn budget_of(
        &self,
        budgets: &Resource,
        namespace: &str,
        pod: &Pod,
    ) -> Result<Option<PodDisruptionBudget>, Status> {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        if labels.is_empty() {
            return Ok(None);
        }
        let filter = crate::cache::Filter { key: budgets.key_prefix(namespace), ..Default::default() };
        let mut found = Vec::new();
        for entry in budgets.cache.range(&filter, 0).entries {
            let obj = entry.decoded()?;
            let Some(budget) = obj.downcast::<PodDisruptionBudget>() else { continue };
            let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
            let selects = selector.map(LabelSelector::from_api).and_then(Result::ok);
            if selects.is_some_and(|s| s.matches(&labels)) {
                found.push(budget.clone());
            }
        }
        if found.len() > 1 {
            let why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(Status::new(500, Reason::Unknown, why, None));
        }
        Ok(found.pop())
    }

    /// Says in the pod's status why it goes, and deletes it.
    async fn mark_and_delete(
        &self,
        caller: &Caller,
        resource: &Arc<Resource>,
        namespace: &str,
        name: &str,
        mut options: DeleteOptions,
    ) -> Result<Value, Status> {
        if !options.dry_run {
            let revision = self.mark_evicted(resource, namespace, name, &options).await?;
            if options.resource_version.is_some() {
                options.resource_version = Some(revision.to_string());
            }
        }
        self.delete(caller, resource, namespace, name, &options).await?;
        Ok(created())
    }

    async fn mark_evicted(
        &self,
        resource: &Arc<Resource>,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<u64, Status> {
        for _ in 0..CONFLICT_TRIES {
            let entry = self.present(resource, namespace, name)?;
            let mut obj = entry.decode_full()?;
            super::delete::check_delete_preconditions(resource, &*obj, entry.revision, options)?;
            let now = Time(whole_seconds(self.clock.now()));
            let Some(pod) = obj.downcast_mut::<Pod>() else { return Err(Status::internal("not a pod")) };
            if !add_condition(pod, now) {
                return Ok(entry.revision);
            }
            match self.put(resource, entry.key.clone(), obj, Put::over(entry.revision)).await {
                Ok(written) => return Ok(written.revision),
                Err(Refused::Condition(..)) => self.fresh().await?,
                Err(Refused::Failed(status)) => return Err(status),
            }
        }
        Err(Status::modified("", "pods", name))
    }
}

/// Whether a pod goes without a look at its budget.
fn may_ignore(pod: &Pod) -> bool {
    matches!(pod::phase(pod), "Succeeded" | "Failed" | "Pending") || pod.metadata.deletion_timestamp.is_some()
}

/// Adds the condition; false when it is there already.
fn add_condition(pod: &mut Pod, now: Time) -> bool {
    let kind = "DisruptionTarget";
    let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
    let mut new = PodCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some("EvictionByEvictionAPI".to_owned()),
        message: Some("Eviction API: evicting".to_owned()),
        last_transition_time: Some(now),
        ..PodCondition::default()
    };
    match conditions.iter_mut().find(|c| c.type_ == kind) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time.clone_from(&old.last_transition_time);
            }
            let changed = *old != new;
            *old = new;
            changed
        }
        None => {
            conditions.push(new);
            true
        }
    }
}

/// Whether the budget lets the pod go.
fn judge(pod: &Pod, budget: &PodDisruptionBudget, pod_name: &str, now: &Time) -> Result<Verdict, Status> {
    let name = budget.metadata.name.as_deref().unwrap_or("");
    let status = budget.status.clone().unwrap_or_default();
    if !pod::is_ready(pod) {
        let policy = budget.spec.as_ref().and_then(|s| s.unhealthy_pod_eviction_policy.as_deref());
        let wanted = status.desired_healthy.unwrap_or(0);
        let healthy = status.current_healthy.unwrap_or(0) >= wanted && wanted > 0;
        if policy == Some("AlwaysAllow") || healthy {
            return Ok(Verdict::Free { guarded: true });
        }
    }
    if status.observed_generation.unwrap_or(0) < budget.metadata.generation.unwrap_or(0) {
        return Err(too_busy(name));
    }
    let forbidden = |why: &str| Status::forbidden("policy", "poddisruptionbudget", name, why);
    let allowed = status.disruptions_allowed.unwrap_or(0);
    if allowed < 0 {
        return Err(forbidden("pdb disruptions allowed is negative"));
    }
    if status.disrupted_pods.as_ref().is_some_and(|pods| pods.len() > MAX_DISRUPTED) {
        let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(forbidden(why));
    }
    if allowed == 0 {
        return Err(exhausted(budget, name));
    }
    let mut budget = budget.clone();
    let generation = budget.metadata.generation;
    let status = budget.status.get_or_insert_default();
    status.disruptions_allowed = Some(allowed - 1);
    if allowed == 1 {
        let conditions = status.conditions.get_or_insert_default();
        disallow(conditions, generation, now);
    }
    status.disrupted_pods.get_or_insert_default().insert(pod_name.to_owned(), now.clone());
    Ok(Verdict::Charged(Box::new(budget)))
}

/// The condition of a budget that allows no further disruption.
fn disallow(conditions: &mut Vec<Condition>, generation: Option<i64>, now: &Time) {
    let kind = "DisruptionAllowed";
    let mut new = Condition {
        type_: kind.to_owned(),
        status: "False".to_owned(),
        reason: "InsufficientPods".to_owned(),
        message: String::new(),
        observed_generation: generation,
        last_transition_time: now.clone(),
    };
    match conditions.iter_mut().find(|c| c.type_ == kind) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time.clone_from(&old.last_transition_time);
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}

fn cause(message: String) -> Value {
    json!([{ "reason": "DisruptionBudget", "message": message }])
}

/// 429: the budget's controller is behind.
fn too_busy(budget: &str) -> Status {
    let causes = cause(format!("The disruption budget {budget} is still being processed by the server."));
    let details = json!({ "retryAfterSeconds": 10, "causes": causes });
    Status::new(429, Reason::TooManyRequests, REFUSED, Some(details))
}

/// 429: the budget is used up.
fn exhausted(budget: &PodDisruptionBudget, name: &str) -> Status {
    let status = budget.status.clone().unwrap_or_default();
    let conditions = status.conditions.iter().flatten();
    let said = conditions
        .filter(|c| c.type_ == "DisruptionAllowed" && c.status == "False" && !c.message.is_empty())
        .map(|c| (c.reason.as_str(), c.message.as_str()))
        .next();
    let (wanted, have) = (status.desired_healthy.unwrap_or(0), status.current_healthy.unwrap_or(0));
    let start = format!("The disruption budget {name}");
    let message = match said {
        Some(("SyncFailed", why)) => {
            format!("{start} does not allow evicting pods currently because it failed sync: {why}")
        }
        _ if have <= wanted => format!("{start} needs {wanted} healthy pods and has {have} currently"),
        Some((reason, why)) => format!("{start} does not allow evicting pods currently ({reason}): {why}"),
        None => format!("{start} does not allow evicting pods currently"),
    };
    Status::new(429, Reason::TooManyRequests, REFUSED, Some(json!({ "causes": cause(message) })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(ready: &str) -> Pod {
        let status = json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": ready }] });
        serde_json::from_value(json!({ "metadata": { "name": "p" }, "status": status })).unwrap()
    }

    fn budget(allowed: i32, have: i32, want: i32) -> PodDisruptionBudget {
        let status = json!({ "disruptionsAllowed": allowed, "currentHealthy": have, "desiredHealthy": want,
            "expectedPods": 2, "observedGeneration": 1 });
        serde_json::from_value(json!({ "metadata": { "name": "b", "generation": 1 }, "status": status }))
            .unwrap()
    }

    fn now() -> Time {
        Time(jiff::Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_budget_is_charged_and_closes_with_its_last_disruption() {
        let Ok(Verdict::Charged(charged)) = judge(&pod("True"), &budget(1, 2, 1), "p", &now()) else {
            panic!("the budget allows it");
        };
        let status = charged.status.unwrap();
        assert_eq!(status.disruptions_allowed, Some(0));
        assert!(status.disrupted_pods.unwrap().contains_key("p"));
        assert_eq!(status.conditions.unwrap()[0].reason, "InsufficientPods");
    }

    #[test]
    fn a_used_up_or_stale_budget_refuses() {
        let refused = judge(&pod("True"), &budget(0, 1, 1), "p", &now()).err().unwrap();
        let why = "The disruption budget b needs 1 healthy pods and has 1 currently";
        assert_eq!(
            (refused.code(), refused.details().unwrap()["causes"][0]["message"].as_str()),
            (429, Some(why))
        );
        let mut stale = budget(1, 2, 1);
        stale.metadata.generation = Some(2);
        let refused = judge(&pod("True"), &stale, "p", &now()).err().unwrap();
        assert_eq!(refused.details().unwrap()["retryAfterSeconds"], 10);
    }

    #[test]
    fn pods_that_are_not_ready_go_when_enough_others_are() {
        assert!(matches!(
            judge(&pod("False"), &budget(0, 1, 1), "p", &now()),
            Ok(Verdict::Free { guarded: true })
        ));
        assert!(judge(&pod("False"), &budget(0, 0, 1), "p", &now()).is_err());
    }
}
