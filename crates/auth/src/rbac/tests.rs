//! Decisions, reasons, aggregation and escalation.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, Role, RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::*;
use crate::testing::Objects;
use crate::user::UserInfo;

fn ask(user: &UserInfo, verb: &str, resource: &str, namespace: &str, name: &str) -> Attributes {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let (group, resource) = resource.split_once(':').unwrap_or(("", resource));
    Attributes {
        user: user.clone(),
        verb: verb.into(),
        is_resource: true,
        group: group.into(),
        version: "v1".into(),
        resource: resource.into(),
        subresource: subresource.into(),
        namespace: namespace.into(),
        name: name.into(),
        ..Attributes::default()
    }
}

fn meta(namespace: &str, name: &str) -> ObjectMeta {
    let namespace = (!namespace.is_empty()).then(|| namespace.to_owned());
    ObjectMeta { name: Some(name.into()), namespace, ..ObjectMeta::default() }
}

fn bind(objects: &Objects, name: &str, kind: &str, role: &str, subject_kind: &str, subject: &str) {
    objects.put(RoleBinding {
        metadata: meta("dev", name),
        role_ref: RoleRef { api_group: Some(GROUP.into()), kind: kind.into(), name: role.into() },
        subjects: Some(vec![Subject {
            kind: subject_kind.into(),
            name: subject.into(),
            ..Subject::default()
        }]),
    });
}

fn rule(verbs: &[&str], group: &str, resources: &[&str], names: &[&str]) -> PolicyRule {
    let list = |l: &[&str]| l.iter().map(|i| (*i).to_owned()).collect::<Vec<_>>();
    PolicyRule {
        verbs: list(verbs),
        api_groups: Some(vec![group.into()]),
        resources: Some(list(resources)),
        resource_names: (!names.is_empty()).then(|| list(names)),
        ..PolicyRule::default()
    }
}

#[test]
fn bootstrap_policy_allows_components_with_upstreams_reason() {
    let rbac = RbacAuthorizer::new(Objects::bootstrapped());
    let scheduler = UserInfo::authenticated("system:kube-scheduler", &[]);
    assert_eq!(
        rbac.authorize(&ask(&scheduler, "update", "pods/status", "", "")),
        (
            Decision::Allow,
            "RBAC: allowed by ClusterRoleBinding \"system:kube-scheduler\" of ClusterRole \
             \"system:kube-scheduler\" to User \"system:kube-scheduler\""
                .into()
        )
    );
    let sa = crate::service_account::user("kube-system", "deployment-controller", "");
    let (decision, reason) = rbac.authorize(&ask(&sa, "create", "apps:replicasets", "x", ""));
    assert_eq!(decision, Decision::Allow);
    assert!(reason.ends_with("to ServiceAccount \"deployment-controller/kube-system\""), "{reason}");
    let anyone = UserInfo::authenticated("jane", &[]);
    let denied = (Decision::NoOpinion, String::new());
    assert_eq!(rbac.authorize(&ask(&anyone, "get", "pods", "x", "p")), denied);
    let path = |path: &str| Attributes {
        user: UserInfo::anonymous(),
        verb: "get".into(),
        path: path.into(),
        ..Attributes::default()
    };
    assert_eq!(rbac.authorize(&path("/version")).0, Decision::Allow);
    assert_eq!(rbac.authorize(&path("/apis/apps")), denied);
    let known = Attributes { user: anyone, ..path("/apis/apps") };
    assert_eq!(rbac.authorize(&known).0, Decision::Allow);
    let admin = UserInfo::authenticated("admin", &[SYSTEM_MASTERS]);
    assert_eq!(rbac.authorize(&ask(&admin, "delete", "nodes", "", "n")), (Decision::Allow, String::new()));
}

#[test]
fn role_binding_counts_in_its_namespace_and_change_is_seen_at_once() {
    let objects = Objects::bootstrapped();
    let rbac = RbacAuthorizer::new(objects.clone());
    let jane = UserInfo::authenticated("jane", &["team"]);
    let get = |ns: &str, resource: &str, name: &str| rbac.authorize(&ask(&jane, "get", resource, ns, name));
    assert_eq!(get("dev", "configmaps", "a").0, Decision::NoOpinion);
    bind(&objects, "b", "Role", "r", "Group", "team");
    let missing = "RBAC: role.rbac.authorization.k8s.io \"r\" not found";
    assert_eq!(get("dev", "configmaps", "a"), (Decision::NoOpinion, missing.into()));
    let rules = vec![rule(&["get"], "", &["configmaps"], &["a"]), rule(&["get"], "", &["*/scale"], &[])];
    objects.put(Role { metadata: meta("dev", "r"), rules: Some(rules) });
    let reason = "RBAC: allowed by RoleBinding \"b/dev\" of Role \"r\" to Group \"team\"";
    assert_eq!(get("dev", "configmaps", "a"), (Decision::Allow, reason.into()));
    assert_eq!(get("dev", "configmaps", "b").0, Decision::NoOpinion);
    assert_eq!(get("dev", "configmaps", "").0, Decision::NoOpinion);
    assert_eq!(get("other", "configmaps", "a").0, Decision::NoOpinion);
    assert_eq!(get("dev", "replicationcontrollers/scale", "x").0, Decision::Allow);
    assert_eq!(get("dev", "replicationcontrollers/status", "x").0, Decision::NoOpinion);
    objects.remove(GROUP, "rolebindings", "dev", "b");
    assert_eq!(get("dev", "configmaps", "a").0, Decision::NoOpinion);
}

/// What the controller for aggregation writes into `admin`, `edit` and `view`.
fn aggregate(objects: &Objects) {
    for name in ["view", "edit", "admin"] {
        let all = objects.list(GROUP, "clusterroles", "");
        let all: Vec<&ClusterRole> = all.iter().filter_map(|o| o.downcast::<ClusterRole>()).collect();
        let label = format!("rbac.authorization.k8s.io/aggregate-to-{name}");
        let selected = all.iter().filter(|r| r.metadata.labels.iter().any(|l| l.contains_key(&label)));
        let rules = selected.flat_map(|r| r.rules.iter().flatten().cloned()).collect();
        let role =
            all.iter().find(|r| r.metadata.name.as_deref() == Some(name)).expect("a role of the start");
        objects.put(ClusterRole { rules: Some(rules), ..(**role).clone() });
    }
}

#[test]
fn a_role_counts_with_the_rules_that_it_holds_whatever_it_would_aggregate() {
    let objects = Objects::bootstrapped();
    let rbac = RbacAuthorizer::new(objects.clone());
    bind(&objects, "b", "ClusterRole", "admin", "User", "jane");
    let jane = UserInfo::authenticated("jane", &[]);
    let may = |verb: &str, resource: &str| rbac.authorize(&ask(&jane, verb, resource, "dev", "")).0;
    assert_eq!(may("list", "pods"), Decision::NoOpinion, "the controller has not filled it");
    let label = BTreeMap::from([("rbac.authorization.k8s.io/aggregate-to-admin".into(), "true".into())]);
    objects.put(ClusterRole {
        metadata: ObjectMeta { labels: Some(label), ..meta("", "crontabs") },
        rules: Some(vec![rule(&["create"], "stable.example.com", &["crontabs"], &[])]),
        ..ClusterRole::default()
    });
    assert_eq!(may("create", "stable.example.com:crontabs"), Decision::NoOpinion);
    aggregate(&objects);
    assert_eq!(may("list", "pods"), Decision::Allow, "from view, through edit");
    assert_eq!(may("create", "pods"), Decision::Allow, "from edit");
    assert_eq!(may("create", "rbac.authorization.k8s.io:roles"), Decision::Allow);
    assert_eq!(may("create", "stable.example.com:crontabs"), Decision::Allow);
}

#[test]
fn nobody_grants_what_they_do_not_hold() {
    let objects = Objects::bootstrapped();
    aggregate(&objects);
    let rbac = RbacAuthorizer::new(objects.clone());
    bind(&objects, "b", "ClusterRole", "admin", "User", "jane");
    let jane = UserInfo::authenticated("jane", &[]);
    let ask = |a: &Attributes| rbac.authorize(a).0 == Decision::Allow;
    let role = |rules| Role { metadata: meta("dev", "new"), rules: Some(rules) };
    let modest = role(vec![rule(&["get", "list"], "", &["pods"], &[])]);
    assert!(rbac.may_write_role(&jane, &modest, None, &ask).is_ok());
    let greedy = role(vec![rule(&["get", "bite"], "", &["nodes", "pods"], &[])]);
    let status = rbac.may_write_role(&jane, &greedy, Some(&modest), &ask).expect_err("refused");
    assert_eq!(status.code(), 403);
    assert_eq!(
        status.message(),
        "roles.rbac.authorization.k8s.io \"new\" is forbidden: user \"jane\" \
         (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n\
         {APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\" \"bite\"]}\n\
         {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"bite\"]}"
    );
    let mut finalized = greedy.clone();
    finalized.metadata.finalizers = Some(vec!["a/b".into()]);
    assert!(rbac.may_write_role(&jane, &finalized, Some(&greedy), &ask).is_ok());
    let binding = |name: &str| RoleBinding {
        metadata: meta("dev", "mine"),
        role_ref: RoleRef { api_group: Some(GROUP.into()), kind: "ClusterRole".into(), name: name.into() },
        subjects: None,
    };
    let cluster_admin = binding("cluster-admin");
    let status = rbac.may_bind(&jane, &cluster_admin, None, &ask).expect_err("refused");
    assert!(status.message().contains("rolebindings.rbac.authorization.k8s.io \"mine\" is forbidden"));
    assert!(rbac.may_bind(&jane, &binding("view"), None, &ask).is_ok());
    assert_eq!(rbac.may_bind(&jane, &binding("none"), None, &ask).expect_err("none").code(), 404);
    let admin = UserInfo::authenticated("admin", &[SYSTEM_MASTERS]);
    assert!(rbac.may_bind(&admin, &cluster_admin, None, &ask).is_ok());
}

#[test]
fn names_and_wildcards_decide_what_covers() {
    let all = rule(&["*"], "*", &["*"], &[]);
    let named = rule(&["get"], "", &["pods"], &["a"]);
    assert!(covers(std::slice::from_ref(&all), std::slice::from_ref(&named)).is_ok());
    assert!(covers(std::slice::from_ref(&named), &[rule(&["get"], "", &["pods"], &[])]).is_err());
    assert!(
        covers(&[rule(&["get"], "", &["*/log"], &[])], &[rule(&["get"], "", &["pods/log"], &[])]).is_ok()
    );
    let urls = |url: &str| PolicyRule {
        verbs: vec!["get".into()],
        non_resource_urls: Some(vec![url.into()]),
        ..PolicyRule::default()
    };
    assert!(covers(&[urls("/logs/*")], &[urls("/logs/a")]).is_ok());
    assert!(covers(&[urls("/logs/a")], &[urls("/logs/*")]).is_err());
    assert!(covers(&[all], &[urls("/x")]).is_err(), "resources do not cover paths");
}

#[test]
fn rules_review_lists_what_the_golden_record_lists_for_admin() {
    let rbac = RbacAuthorizer::new(Objects::bootstrapped());
    let admin = UserInfo::authenticated("admin", &[SYSTEM_MASTERS]);
    let (resource, non_resource, incomplete) = rbac.rules_for(&admin, "default");
    assert_eq!((resource.len(), non_resource.len(), incomplete), (3, 3, false));
}

/// Not a benchmark, a guard: a decision must not list and compile again.
#[test]
fn hot_decision_is_cheap() {
    struct Counted(Arc<Objects>);
    impl coracle_meta::ObjectReader for Counted {
        fn get(&self, g: &str, r: &str, ns: &str, n: &str) -> Option<Arc<dyn coracle_meta::Object>> {
            self.0.get(g, r, ns, n)
        }
        fn list(&self, g: &str, r: &str, ns: &str) -> Vec<Arc<dyn coracle_meta::Object>> {
            self.0.list(g, r, ns)
        }
        fn generation(&self, _: &str, _: &str) -> Option<u64> {
            Some(1)
        }
    }
    let rbac = RbacAuthorizer::new(Arc::new(Counted(Objects::bootstrapped())));
    let user = UserInfo::authenticated("system:kube-controller-manager", &[]);
    let request = ask(&user, "watch", "apps:deployments", "", "");
    rbac.authorize(&request);
    let start = std::time::Instant::now();
    for _ in 0..10_000 {
        assert_eq!(rbac.authorize(&request).0, Decision::Allow);
    }
    let each = start.elapsed() / 10_000;
    assert!(each < std::time::Duration::from_micros(50), "{each:?} per decision");
}
