//! Role-based access control: who is bound to which rules, and whether a rule allows a request.

mod escalation;
mod policy;
mod rules;

use std::sync::Arc;

use coracle_meta::ObjectReader;
use k8s_openapi::api::rbac::v1::PolicyRule;
use parking_lot::RwLock;

pub use escalation::covers;
pub use rules::rule_allows;

use self::policy::{Grant, Policy};
use crate::SYSTEM_MASTERS;
use crate::user::{Attributes, Authorizer, Decision, NonResourceRule, ResourceRule, UserInfo};

/// API group of the RBAC kinds.
pub const GROUP: &str = "rbac.authorization.k8s.io";

/// Decides by the cluster's Roles and bindings.
///
/// The bindings are compiled into tables by subject once, and again when an object of theirs changes; a
/// decision then costs a few lookups and string comparisons.
pub struct RbacAuthorizer {
    objects: Arc<dyn ObjectReader>,
    policy: RwLock<Option<Arc<Policy>>>,
}

impl std::fmt::Debug for RbacAuthorizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RbacAuthorizer")
    }
}

impl RbacAuthorizer {
    /// Decides by the RBAC objects of `objects`.
    pub fn new(objects: Arc<dyn ObjectReader>) -> Self {
        Self { objects, policy: RwLock::new(None) }
    }

    fn policy(&self) -> Arc<Policy> {
        if let Some(policy) = self.policy.read().as_ref()
            && policy.is_current(&*self.objects)
        {
            return policy.clone();
        }
        let policy = Arc::new(Policy::compile(&*self.objects));
        *self.policy.write() = Some(policy.clone());
        policy
    }

    /// All rules a user has in a namespace (empty: cluster-wide only), and what could not be resolved.
    pub fn rules(&self, user: &UserInfo, namespace: &str) -> (Vec<PolicyRule>, Vec<String>) {
        let policy = self.policy();
        let mut rules = Vec::new();
        let mut errors = Vec::new();
        policy.visit(user, namespace, |grant| {
            match &grant.rules {
                Ok(found) => rules.extend_from_slice(found),
                Err(e) => errors.push(e.clone()),
            }
            true
        });
        (rules, errors)
    }
}

impl Authorizer for RbacAuthorizer {
    fn authorize(&self, attributes: &Attributes) -> (Decision, String) {
        let user = &attributes.user;
        if user.in_group(SYSTEM_MASTERS) {
            return (Decision::Allow, String::new());
        }
        let policy = self.policy();
        let request = rules::Request::new(attributes);
        let mut allowed: Option<String> = None;
        let mut errors: Vec<String> = Vec::new();
        policy.visit(user, &attributes.namespace, |grant: &Grant| {
            match &grant.rules {
                Ok(rules) if rules.iter().any(|rule| request.allowed_by(rule)) => {
                    allowed = Some(format!("RBAC: allowed by {}", grant.description));
                }
                Ok(_) => {}
                Err(e) if !errors.contains(e) => errors.push(e.clone()),
                Err(_) => {}
            }
            allowed.is_none()
        });
        match (allowed, errors.as_slice()) {
            (Some(reason), _) => (Decision::Allow, reason),
            (None, []) => (Decision::NoOpinion, String::new()),
            (None, [one]) => (Decision::NoOpinion, format!("RBAC: {one}")),
            (None, many) => (Decision::NoOpinion, format!("RBAC: [{}]", many.join(", "))),
        }
    }

    fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<ResourceRule>, Vec<NonResourceRule>, bool) {
        let (rules, errors) = self.rules(user, namespace);
        let mut resource = Vec::new();
        let mut non_resource = Vec::new();
        for rule in rules {
            if let Some(resources) = rule.resources.filter(|r| !r.is_empty()) {
                resource.push(ResourceRule {
                    verbs: rule.verbs.clone(),
                    api_groups: rule.api_groups.unwrap_or_default(),
                    resources,
                    resource_names: rule.resource_names.unwrap_or_default(),
                });
            }
            if let Some(paths) = rule.non_resource_urls.filter(|u| !u.is_empty()) {
                non_resource.push(NonResourceRule { verbs: rule.verbs, paths });
            }
        }
        (resource, non_resource, !errors.is_empty())
    }
}

#[cfg(test)]
mod tests;
