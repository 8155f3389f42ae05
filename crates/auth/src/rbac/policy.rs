//! The cluster's bindings, compiled into tables by subject.

use std::collections::HashMap;
use std::sync::Arc;

use coracle_meta::{Object, ObjectReader};
use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
};

use super::GROUP;
use crate::service_account::user_name;
use crate::user::UserInfo;

const RESOURCES: [&str; 4] = ["clusterroles", "clusterrolebindings", "roles", "rolebindings"];

/// What one binding gives to one subject.
pub(super) struct Grant {
    /// `ClusterRoleBinding "x" of ClusterRole "y" to Group "z"`.
    pub(super) description: String,
    /// The role's rules, or why there are none.
    pub(super) rules: Result<Arc<[PolicyRule]>, String>,
}

#[derive(Default)]
struct Grants {
    users: HashMap<String, Vec<Grant>>,
    groups: HashMap<String, Vec<Grant>>,
}

/// The objects a policy was compiled from.
enum Source {
    Generations([u64; 4]),
    Objects([Vec<Arc<dyn Object>>; 4]),
}

/// Compiled bindings.
pub(super) struct Policy {
    source: Source,
    cluster: Grants,
    namespaces: HashMap<String, Grants>,
}

impl Grants {
    fn add(&mut self, subject: &Subject, binding_namespace: &str, binding: &str, rules: Rules) {
        let mut description = format!("{binding} to ");
        let (table, name) = match subject.kind.as_str() {
            "User" => (&mut self.users, subject.name.clone()),
            "Group" => (&mut self.groups, subject.name.clone()),
            "ServiceAccount" => {
                let namespace = subject.namespace.as_deref().filter(|n| !n.is_empty());
                let namespace = namespace.unwrap_or(binding_namespace);
                if namespace.is_empty() {
                    return;
                }
                description
                    .push_str(&format!("ServiceAccount {:?}", format!("{}/{namespace}", subject.name)));
                (&mut self.users, user_name(namespace, &subject.name))
            }
            _ => return,
        };
        if subject.kind != "ServiceAccount" {
            description.push_str(&format!("{} {:?}", subject.kind, subject.name));
        }
        table.entry(name).or_default().push(Grant { description, rules });
    }

    /// False when `visit` said to stop.
    fn visit(&self, user: &UserInfo, visit: &mut impl FnMut(&Grant) -> bool) -> bool {
        let of_groups = user.groups.iter().filter_map(|group| self.groups.get(group));
        self.users.get(&user.name).into_iter().chain(of_groups).flatten().all(visit)
    }
}

type Rules = Result<Arc<[PolicyRule]>, String>;

/// The rules that all roles hold: one that aggregates has them from its controller, as upstream.
struct Roles {
    cluster: HashMap<String, Arc<[PolicyRule]>>,
    namespaced: HashMap<(String, String), Arc<[PolicyRule]>>,
}

impl Policy {
    pub(super) fn compile(objects: &dyn ObjectReader) -> Self {
        // Generations are read first: what changes while the lists are read shows at the next check.
        let generations = generations(objects);
        let lists = RESOURCES.map(|resource| objects.list(GROUP, resource, ""));
        let roles = Roles::new(&lists[0], &lists[2]);
        let mut cluster = Grants::default();
        for binding in lists[1].iter().filter_map(|o| o.downcast::<ClusterRoleBinding>()) {
            let name = binding.metadata.name.as_deref().unwrap_or_default();
            let text = describe("ClusterRoleBinding", name, &binding.role_ref);
            let rules = roles.resolve(&binding.role_ref, "");
            for subject in binding.subjects.iter().flatten() {
                cluster.add(subject, "", &text, rules.clone());
            }
        }
        let mut namespaces: HashMap<String, Grants> = HashMap::new();
        for binding in lists[3].iter().filter_map(|o| o.downcast::<RoleBinding>()) {
            let name = binding.metadata.name.as_deref().unwrap_or_default();
            let namespace = binding.metadata.namespace.as_deref().unwrap_or_default();
            let text = describe("RoleBinding", &format!("{name}/{namespace}"), &binding.role_ref);
            let rules = roles.resolve(&binding.role_ref, namespace);
            let grants = namespaces.entry(namespace.to_owned()).or_default();
            for subject in binding.subjects.iter().flatten() {
                grants.add(subject, namespace, &text, rules.clone());
            }
        }
        let source = generations.map_or(Source::Objects(lists), Source::Generations);
        Self { source, cluster, namespaces }
    }

    /// Whether nothing has changed since this was compiled.
    pub(super) fn is_current(&self, objects: &dyn ObjectReader) -> bool {
        match &self.source {
            Source::Generations(known) => generations(objects).as_ref() == Some(known),
            Source::Objects(known) => RESOURCES.iter().zip(known).all(|(resource, known)| {
                let now = objects.list(GROUP, resource, "");
                now.len() == known.len() && now.iter().zip(known).all(|(a, b)| same(a, b))
            }),
        }
    }

    /// Calls `visit` with each grant that applies to the user, cluster-wide ones first, until it returns
    /// false.
    pub(super) fn visit(&self, user: &UserInfo, namespace: &str, mut visit: impl FnMut(&Grant) -> bool) {
        if self.cluster.visit(user, &mut visit)
            && !namespace.is_empty()
            && let Some(grants) = self.namespaces.get(namespace)
        {
            grants.visit(user, &mut visit);
        }
    }
}

/// Shared objects are never changed, so the same address is the same content.
fn same(a: &Arc<dyn Object>, b: &Arc<dyn Object>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b))
}

fn generations(objects: &dyn ObjectReader) -> Option<[u64; 4]> {
    let mut all = [0; 4];
    for (slot, resource) in all.iter_mut().zip(RESOURCES) {
        *slot = objects.generation(GROUP, resource)?;
    }
    Some(all)
}

fn describe(kind: &str, name: &str, role: &RoleRef) -> String {
    format!("{kind} {name:?} of {} {:?}", role.kind, role.name)
}

impl Roles {
    fn new(cluster_roles: &[Arc<dyn Object>], roles: &[Arc<dyn Object>]) -> Self {
        let cluster = cluster_roles
            .iter()
            .filter_map(|o| o.downcast::<ClusterRole>())
            .map(|role| {
                let rules = role.rules.clone().unwrap_or_default();
                (role.metadata.name.clone().unwrap_or_default(), rules.into())
            })
            .collect();
        let namespaced = roles
            .iter()
            .filter_map(|o| o.downcast::<Role>())
            .map(|role| {
                let key = (
                    role.metadata.namespace.clone().unwrap_or_default(),
                    role.metadata.name.clone().unwrap_or_default(),
                );
                (key, role.rules.clone().unwrap_or_default().into())
            })
            .collect();
        Self { cluster, namespaced }
    }

    fn resolve(&self, role: &RoleRef, namespace: &str) -> Rules {
        match role.kind.as_str() {
            "ClusterRole" => self
                .cluster
                .get(&role.name)
                .cloned()
                .ok_or_else(|| format!("clusterrole.{GROUP} {:?} not found", role.name)),
            "Role" => self
                .namespaced
                .get(&(namespace.to_owned(), role.name.clone()))
                .cloned()
                .ok_or_else(|| format!("role.{GROUP} {:?} not found", role.name)),
            other => Err(format!("unsupported role reference kind: {other:?}")),
        }
    }
}
