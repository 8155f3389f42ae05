//! ClusterRole aggregation: a role with an aggregation rule has the rules of all roles that it selects.

use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::{Api, Change, Informer};
use coracle_meta::Status;
use coracle_meta::selector::LabelSelector;
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};

use crate::runtime::{Action, Context, Controller, Descriptor, ObjectKey, Reconciler};

pub(crate) const DESCRIPTOR: Descriptor =
    Descriptor { name: "clusterrole-aggregation-controller", workers: 1 };

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let roles = cx.informers.get::<ClusterRole>();
    let reconciler = Arc::new(Reconcile { roles: roles.clone(), api: cx.client(DESCRIPTOR.name).api() });
    let all = roles.clone();
    Controller::new(DESCRIPTOR)
        .watch(&roles, move |change, enqueue| {
            let mut states = vec![change.object()];
            if let Change::Modified { old, .. } = change {
                states.push(old);
            }
            for role in all.list().iter().filter(|role| role.aggregation_rule.is_some()) {
                let itself = role.metadata.name == change.object().metadata.name;
                if itself || states.iter().any(|state| selects(role, state)) {
                    enqueue(ObjectKey::of(&role.metadata));
                }
            }
        })
        .run(reconciler)
        .boxed()
}

struct Reconcile {
    roles: Informer<ClusterRole>,
    api: Api<ClusterRole>,
}

#[async_trait]
impl Reconciler for Reconcile {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let Some(role) = self.roles.get("", &key.name) else { return Ok(Action::AwaitChange) };
        if let Some(changed) = decide(&role, &self.roles.list()) {
            self.api.update("", changed).await?;
        }
        Ok(Action::AwaitChange)
    }
}

/// Whether `role` takes the rules of `other`.
fn selects(role: &ClusterRole, other: &ClusterRole) -> bool {
    let selectors = role.aggregation_rule.as_ref().and_then(|rule| rule.cluster_role_selectors.as_ref());
    role.metadata.name != other.metadata.name
        && selectors.into_iter().flatten().any(|selector| {
            LabelSelector::from_api(selector).is_ok_and(|s| s.matches_option(other.metadata.labels.as_ref()))
        })
}

/// The role to write, unless it has the right rules. `all` are ordered by name.
fn decide(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<ClusterRole> {
    role.aggregation_rule.as_ref()?;
    let mut rules: Vec<PolicyRule> = Vec::new();
    for rule in all.iter().filter(|other| selects(role, other)).flat_map(|other| other.rules.iter().flatten())
    {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    if role.rules.as_deref().unwrap_or(&[]) == rules {
        return None;
    }
    Some(ClusterRole { rules: (!rules.is_empty()).then_some(rules), ..role.clone() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rules_of_selected_roles_are_gathered_once() {
        let role = |name: &str, label: &str, verb: &str| {
            Arc::new(
                serde_json::from_value::<ClusterRole>(json!({
                    "metadata": { "name": name, "labels": { "to": label } },
                    "rules": [{ "apiGroups": [""], "resources": ["pods"], "verbs": [verb] }],
                }))
                .expect("a role"),
            )
        };
        let aggregate: ClusterRole = serde_json::from_value(json!({
            "metadata": { "name": "sum" },
            "aggregationRule": { "clusterRoleSelectors": [{ "matchLabels": { "to": "sum" } }] },
        }))
        .expect("a role");
        let all = [role("a", "sum", "get"), role("b", "sum", "get"), role("c", "other", "list")];
        let changed = decide(&aggregate, &all).expect("changed");
        assert_eq!(changed.rules.as_ref().map(Vec::len), Some(1));
        assert!(decide(&changed, &all).is_none());
    }
}
