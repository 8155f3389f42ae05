//! ResourceQuota: what would use more than a quota of its namespace leaves is refused; what fits is charged. Follows
//! <https://kubernetes.io/docs/concepts/policy/resource-quotas/>.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use coracle_meta::Status;
use coracle_meta::pod::Resources;
use coracle_meta::quantity::Quantity;
use coracle_meta::quota::{Evaluator, is_terminating};
use coracle_resources::def::Storage;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota as Quota};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Api;

use crate::{Environment, Operation, Plugin, Request};

/// Tries when a quota's status changes under our hands.
const TRIES: usize = 4;

/// The plugin.
#[derive(Default)]
pub(super) struct ResourceQuota {
    /// One charge at a time per namespace.
    busy: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

#[async_trait]
impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        matches!(request.operation, Operation::Create | Operation::Update)
            && !request.namespace.is_empty()
            && request.resource.plural != "namespaces"
            && request.resource.storage == Storage::Stored
            && request.resource.plural != "events"
            && charges(&Evaluator::of(request.resource.group, request.resource.plural), request)
    }

    async fn validate(&self, env: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        if env.reader.list("", "resourcequotas", request.namespace).is_empty() {
            return Ok(());
        }
        let turn = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            busy.retain(|_, lock| Arc::strong_count(lock) > 1);
            busy.entry(request.namespace.to_owned()).or_default().clone()
        };
        let _turn = turn.lock().await;
        let mut left: Option<Vec<String>> = None;
        let mut failure = None;
        for _ in 0..TRIES {
            let all = env.reader.list("", "resourcequotas", request.namespace);
            let quotas = all.iter().filter_map(|obj| obj.downcast::<Quota>());
            let quotas: Vec<Quota> = quotas
                .filter(|q| {
                    left.as_ref()
                        .is_none_or(|names| names.iter().any(|n| Some(n) == q.metadata.name.as_ref()))
                })
                .cloned()
                .collect();
            let charged = check(&quotas, request, env.clock.now())?;
            if request.dry_run || charged.is_empty() {
                return Ok(());
            }
            let Some(host) = env.host() else { return Ok(()) };
            let mut failed = Vec::new();
            for quota in charged {
                let name = quota.metadata.name.clone().unwrap_or_default();
                if let Err(status) = host.update_status("", "resourcequotas", Box::new(quota)).await {
                    failed.push(name);
                    failure = Some(status);
                }
            }
            if failed.is_empty() {
                return Ok(());
            }
            left = Some(failed);
        }
        Err(failure.unwrap_or_else(|| Status::internal("resource quota evaluation timed out")))
    }
}

/// Whether such a request can change what is used.
fn charges(evaluator: &Evaluator, request: &Request<'_>) -> bool {
    let update = request.operation == Operation::Update;
    match (evaluator, request.subresource) {
        (Evaluator::Pods, "resize") => update,
        (Evaluator::Pods, "") if update => match (request.object_as::<Pod>(), request.old_as::<Pod>()) {
            (Some(new), Some(old)) => is_terminating(new) != is_terminating(old),
            _ => false,
        },
        (Evaluator::Claims, "status") => {
            let (new, old) =
                (request.object_as::<PersistentVolumeClaim>(), request.old_as::<PersistentVolumeClaim>());
            new.zip(old).is_some_and(|(new, old)| new.status != old.status)
        }
        (Evaluator::Claims | Evaluator::Services | Evaluator::DeviceClaims, "") => true,
        (_, "") => !update,
        _ => false,
    }
}

/// Checks the request against the quotas; those that it changes come back charged.
fn check(quotas: &[Quota], request: &Request<'_>, now: jiff::Timestamp) -> Result<Vec<Quota>, Status> {
    let evaluator = Evaluator::of(request.resource.group, request.resource.plural);
    let Some(obj) = request.object.as_deref().map(|obj| &**obj) else { return Ok(Vec::new()) };
    let mut concerned = Vec::new();
    for quota in quotas.iter().filter(|q| evaluator.matches(q, obj)) {
        let status = quota.status.as_ref();
        let name = quota.metadata.name.as_deref().unwrap_or("");
        let hard = read(status.and_then(|s| s.hard.as_ref()));
        let used = read(status.and_then(|s| s.used.as_ref()));
        let limited: Vec<&str> = hard.keys().map(String::as_str).filter(|n| evaluator.covers(n)).collect();
        if let Err(why) = evaluator.constraints(&limited, obj) {
            return Err(request.forbidden(&format!("failed quota: {name}: {why}")));
        }
        if limited.iter().any(|n| !used.contains_key(*n)) {
            let names = limited.join(",");
            return Err(request.forbidden(&format!("status unknown for quota: {name}, resources: {names}")));
        }
        concerned.push((quota, name, hard, used));
    }
    let usage = evaluator.usage(obj, now);
    let negative: Vec<&str> = usage.iter().filter(|(_, q)| q.sign() < 0).map(|(n, _)| n.as_str()).collect();
    if !negative.is_empty() {
        let names = negative.join(",");
        return Err(request.forbidden(&format!("quota usage is negative for resource(s): {names}")));
    }
    let before = request.old.map(|old| evaluator.usage(old, now));
    let mut charged = Vec::new();
    for (quota, name, hard, used) in concerned {
        let delta = match (&before, request.old) {
            (Some(before), Some(old)) if evaluator.matches(quota, old) => minus(&usage, before),
            _ => usage.clone(),
        };
        let delta: Resources =
            delta.into_iter().filter(|(n, q)| !q.is_zero() && hard.contains_key(n)).collect();
        if delta.is_empty() {
            continue;
        }
        let mut total = used.clone();
        for (name, amount) in &delta {
            *total.entry(name.clone()).or_default() += *amount;
        }
        let over = |n: &String| delta.contains_key(n) && total.get(n) > hard.get(n);
        if request.subresource != "status" && delta.keys().any(over) {
            let shown = |all: &Resources| {
                let all = all.iter().filter(|(n, _)| over(n)).map(|(n, q)| format!("{n}={q}"));
                all.collect::<Vec<_>>().join(",")
            };
            let (asked, used, limit) = (shown(&delta), shown(&used), shown(&hard));
            let why = format!("exceeded quota: {name}, requested: {asked}, used: {used}, limited: {limit}");
            return Err(request.forbidden(&why));
        }
        let mut quota = quota.clone();
        let total: BTreeMap<String, Api> = total.into_iter().map(|(n, q)| (n, q.to_api())).collect();
        quota.status.get_or_insert_default().used = Some(total);
        charged.push(quota);
    }
    Ok(charged)
}

fn read(amounts: Option<&BTreeMap<String, Api>>) -> Resources {
    amounts.into_iter().flatten().map(|(name, amount)| (name.clone(), Quantity::from_api(amount))).collect()
}

/// What is used more than before; never negative.
fn minus(now: &Resources, before: &Resources) -> Resources {
    let more = |name: &String, amount: Quantity| {
        let left = amount - before.get(name).copied().unwrap_or_default();
        if left.sign() > 0 { left } else { Quantity::ZERO }
    };
    now.iter().map(|(name, amount)| (name.clone(), more(name, *amount))).collect()
}

#[cfg(test)]
mod tests {
    use coracle_meta::Object;
    use serde_json::json;

    use super::super::testing::{pod, validate};
    use super::*;

    fn quota(hard: serde_json::Value, used: serde_json::Value) -> Arc<dyn Object> {
        let meta = json!({ "name": "q", "namespace": "ns" });
        let quota: Quota =
            serde_json::from_value(json!({ "metadata": meta, "status": { "hard": hard, "used": used } }))
                .unwrap();
        Arc::new(quota)
    }

    #[track_caller]
    fn check(hard: serde_json::Value, used: serde_json::Value, want: Option<&str>) {
        let mut pod = pod("p", |s| {
            let own = json!({ "requests": { "cpu": "500m" } });
            s.containers[0].resources = serde_json::from_value(own).unwrap();
        });
        let refused = validate(&ResourceQuota::default(), &[quota(hard, used)], &mut pod).err();
        let why = refused.map(|s| s.message().replace("pods \"p\" is forbidden: ", ""));
        assert_eq!(why.as_deref(), want);
    }

    #[test]
    fn pods_must_fit_into_what_the_quota_leaves() {
        check(
            json!({ "pods": "1", "requests.cpu": "1" }),
            json!({ "pods": "0", "requests.cpu": "500m" }),
            None,
        );
        let why = "exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: \
                   requests.cpu=1";
        check(
            json!({ "pods": "5", "requests.cpu": "1" }),
            json!({ "pods": "1", "requests.cpu": "600m" }),
            Some(why),
        );
    }

    #[test]
    fn what_is_limited_must_be_named_and_its_use_known() {
        let why = "failed quota: q: must specify limits.cpu for: c";
        check(json!({ "limits.cpu": "1" }), json!({ "limits.cpu": "0" }), Some(why));
        check(json!({ "pods": "1" }), json!({}), Some("status unknown for quota: q, resources: pods"));
        check(json!({ "configmaps": "0" }), json!({ "configmaps": "0" }), None);
    }
}
