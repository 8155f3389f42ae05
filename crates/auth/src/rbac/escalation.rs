//! Nobody gives away more than they have: the checks for writing roles and bindings.

use std::collections::{BTreeMap, BTreeSet};

use coracle_meta::{Object, Status};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef};

use super::rules::{items, url_matches};
use super::{GROUP, RbacAuthorizer};
use crate::SYSTEM_MASTERS;
use crate::user::{Attributes, UserInfo};

/// Whether the owner's rules include all the servant's; else the parts that are missing.
///
/// # Errors
/// The servant's rights, one verb of one resource each, that no rule of the owner covers.
pub fn covers(owner: &[PolicyRule], servant: &[PolicyRule]) -> Result<(), Vec<PolicyRule>> {
    let parts = servant.iter().flat_map(break_down);
    let missing: Vec<PolicyRule> = parts.filter(|p| !owner.iter().any(|rule| rule_covers(rule, p))).collect();
    if missing.is_empty() { Ok(()) } else { Err(missing) }
}

/// One rule per verb, group, resource and name, or per verb and path.
fn break_down(rule: &PolicyRule) -> Vec<PolicyRule> {
    let mut parts = Vec::new();
    let one = |item: &String| vec![item.clone()];
    for group in items(rule.api_groups.as_ref()) {
        for resource in items(rule.resources.as_ref()) {
            for verb in &rule.verbs {
                let part = PolicyRule {
                    api_groups: Some(one(group)),
                    resources: Some(one(resource)),
                    verbs: one(verb),
                    ..PolicyRule::default()
                };
                match items(rule.resource_names.as_ref()) {
                    [] => parts.push(part),
                    names => parts.extend(
                        names.iter().map(|n| PolicyRule { resource_names: Some(one(n)), ..part.clone() }),
                    ),
                }
            }
        }
    }
    for url in items(rule.non_resource_urls.as_ref()) {
        for verb in &rule.verbs {
            let non_resource_urls = Some(one(url));
            parts.push(PolicyRule { non_resource_urls, verbs: one(verb), ..PolicyRule::default() });
        }
    }
    parts
}

fn rule_covers(owner: &PolicyRule, part: &PolicyRule) -> bool {
    let includes = |owner: &[String], part: &[String]| {
        owner.iter().any(|o| o == "*") || part.iter().all(|p| owner.contains(p))
    };
    let resources = |owner: &[String], part: &[String]| {
        includes(owner, part)
            || part.iter().all(|p| {
                let any = p.split_once('/').map(|(_, sub)| format!("*/{sub}"));
                owner.contains(p) || any.is_some_and(|any| owner.contains(&any))
            })
    };
    let names = items(owner.resource_names.as_ref());
    let part_names = items(part.resource_names.as_ref());
    let names_cover = match part_names {
        [] => names.is_empty(),
        wanted => names.is_empty() || wanted.iter().all(|n| names.contains(n)),
    };
    let urls = items(owner.non_resource_urls.as_ref());
    includes(&owner.verbs, &part.verbs)
        && includes(items(owner.api_groups.as_ref()), items(part.api_groups.as_ref()))
        && resources(items(owner.resources.as_ref()), items(part.resources.as_ref()))
        && names_cover
        && items(part.non_resource_urls.as_ref()).iter().all(|p| urls.iter().any(|o| url_matches(o, p)))
}

/// Puts the verbs of the same resource together again.
fn compact(parts: Vec<PolicyRule>) -> Vec<PolicyRule> {
    let mut resources: BTreeMap<[Vec<String>; 3], PolicyRule> = BTreeMap::new();
    let mut compacted = Vec::new();
    for part in parts {
        if part.non_resource_urls.is_some() {
            compacted.push(part);
            continue;
        }
        let list = |l: &Option<Vec<String>>| l.clone().unwrap_or_default();
        let key = [list(&part.api_groups), list(&part.resources), list(&part.resource_names)];
        match resources.get_mut(&key) {
            Some(rule) => rule.verbs.extend(part.verbs),
            None => {
                resources.insert(key, part);
            }
        }
    }
    compacted.extend(resources.into_values());
    compacted
}

/// `{APIGroups:[""], Resources:["pods"], Verbs:["get" "list"]}`.
fn describe(rule: &PolicyRule) -> String {
    let parts = [
        ("APIGroups", items(rule.api_groups.as_ref())),
        ("Resources", items(rule.resources.as_ref())),
        ("NonResourceURLs", items(rule.non_resource_urls.as_ref())),
        ("ResourceNames", items(rule.resource_names.as_ref())),
        ("Verbs", rule.verbs.as_slice()),
    ];
    let shown: Vec<String> = parts
        .iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(name, list)| format!("{name}:{}", quoted(list)))
        .collect();
    format!("{{{}}}", shown.join(", "))
}

/// A list as Go prints it with %q: `["a" "b"]`.
fn quoted(list: &[String]) -> String {
    let items: Vec<String> = list.iter().map(|i| format!("{i:?}")).collect();
    format!("[{}]", items.join(" "))
}

impl RbacAuthorizer {
    /// Whether the user holds all of `rules` in the namespace; else upstream's message.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn confirm_no_escalation(
        &self,
        user: &UserInfo,
        namespace: &str,
        rules: &[PolicyRule],
    ) -> Result<(), String> {
        let (held, errors) = self.rules(user, namespace);
        let Err(missing) = covers(&held, rules) else { return Ok(()) };
        let lines: BTreeSet<String> = compact(missing).iter().map(describe).collect();
        let lines: Vec<String> = lines.into_iter().collect();
        let mut message = format!(
            "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
            user.name,
            quoted(&user.groups),
            lines.join("\n")
        );
        if !errors.is_empty() {
            message.push_str(&format!("; resolution errors: [{}]", errors.join(", ")));
        }
        Err(message)
    }

    /// Whether the user may create this Role or ClusterRole (`old` absent), or change it to this.
    /// `allowed` asks all authorizers, for the verb `escalate`. A write that changes nothing but owner
    /// references and finalizers is the garbage collector's and needs no check.
    ///
    /// # Errors
    /// 403 with upstream's message.
    pub fn may_write_role(
        &self,
        user: &UserInfo,
        role: &dyn Object,
        old: Option<&dyn Object>,
        allowed: &dyn Fn(&Attributes) -> bool,
    ) -> Result<(), Status> {
        let cluster = |role: &dyn Object| role.downcast::<ClusterRole>().cloned();
        let (resource, rules, aggregates) = match (cluster(role), role.downcast::<Role>()) {
            (Some(role), _) => {
                let before = old.and_then(cluster).is_some_and(|old| old.aggregation_rule.is_some());
                ("clusterroles", role.rules, before || role.aggregation_rule.is_some())
            }
            (None, Some(role)) => ("roles", role.rules.clone(), false),
            (None, None) => return Ok(()),
        };
        if old.is_some_and(|old| only_gc_fields_differ(role, old))
            || has_verb(user, "escalate", resource, role.namespace(), role.name(), allowed)
        {
            return Ok(());
        }
        let refused = |why: &str| Status::forbidden(GROUP, resource, role.name(), why);
        if aggregates && self.confirm_no_escalation(user, "", &everything()).is_err() {
            return Err(refused("must have cluster-admin privileges to use the aggregationRule"));
        }
        self.confirm_no_escalation(user, role.namespace(), &rules.unwrap_or_default())
            .map_err(|e| refused(&e))
    }

    /// Whether the user may write this RoleBinding or ClusterRoleBinding; `old` and `allowed` as for roles,
    /// the verb is `bind` on the role.
    ///
    /// # Errors
    /// 403 with upstream's message; 404 when the role does not exist.
    pub fn may_bind(
        &self,
        user: &UserInfo,
        binding: &dyn Object,
        old: Option<&dyn Object>,
        allowed: &dyn Fn(&Attributes) -> bool,
    ) -> Result<(), Status> {
        let parts = (binding.downcast::<ClusterRoleBinding>(), binding.downcast::<RoleBinding>());
        let (resource, role) = match parts {
            (Some(binding), _) => ("clusterrolebindings", &binding.role_ref),
            (None, Some(binding)) => ("rolebindings", &binding.role_ref),
            (None, None) => return Ok(()),
        };
        let namespace = binding.namespace();
        let roles = if role.kind == "Role" { "roles" } else { "clusterroles" };
        if old.is_some_and(|old| only_gc_fields_differ(binding, old))
            || has_verb(user, "bind", roles, namespace, &role.name, allowed)
        {
            return Ok(());
        }
        let rules = self.role_rules(role, namespace)?;
        self.confirm_no_escalation(user, namespace, &rules)
            .map_err(|why| Status::forbidden(GROUP, resource, binding.name(), &why))
    }

    /// The rules that a role holds.
    ///
    /// # Errors
    /// 404 when it does not exist.
    pub fn role_rules(&self, role: &RoleRef, namespace: &str) -> Result<Vec<PolicyRule>, Status> {
        if role.kind == "Role" {
            let found = self.objects.get(GROUP, "roles", namespace, &role.name);
            let found = found.ok_or_else(|| Status::not_found(GROUP, "roles", &role.name))?;
            return Ok(found.downcast::<Role>().and_then(|r| r.rules.clone()).unwrap_or_default());
        }
        let found = self.objects.get(GROUP, "clusterroles", "", &role.name);
        let found = found.ok_or_else(|| Status::not_found(GROUP, "clusterroles", &role.name))?;
        Ok(found.downcast::<ClusterRole>().and_then(|r| r.rules.clone()).unwrap_or_default())
    }
}

fn has_verb(
    user: &UserInfo,
    verb: &str,
    resource: &str,
    namespace: &str,
    name: &str,
    allowed: &dyn Fn(&Attributes) -> bool,
) -> bool {
    user.in_group(SYSTEM_MASTERS)
        || allowed(&Attributes {
            user: user.clone(),
            verb: verb.into(),
            is_resource: true,
            group: GROUP.into(),
            version: "*".into(),
            resource: resource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Attributes::default()
        })
}

/// Whether two forms of an object differ in nothing but owner references, finalizers and bookkeeping.
fn only_gc_fields_differ(new: &dyn Object, old: &dyn Object) -> bool {
    let mut new = new.clone_object();
    let (meta, before) = (new.meta_mut(), old.meta());
    meta.owner_references = before.owner_references.clone();
    meta.finalizers = before.finalizers.clone();
    meta.managed_fields = before.managed_fields.clone();
    meta.resource_version = before.resource_version.clone();
    meta.generation = before.generation;
    meta.self_link = before.self_link.clone();
    new.to_value() == old.to_value()
}

fn everything() -> [PolicyRule; 2] {
    let all = || vec!["*".to_owned()];
    [
        PolicyRule { api_groups: Some(all()), resources: Some(all()), verbs: all(), ..PolicyRule::default() },
        PolicyRule { non_resource_urls: Some(all()), verbs: all(), ..PolicyRule::default() },
    ]
}
