//! The RBAC objects a cluster starts with: upstream's, from a table of facts, and the few of Coracle's own.

use std::collections::BTreeMap;

use coracle_meta::Object;
use k8s_openapi::api::rbac::v1::{
    AggregationRule, ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

const POLICY: &str = include_str!("bootstrap/policy.txt");
const GROUP: &str = "rbac.authorization.k8s.io";

/// What `coracle up` adds to upstream's: the administrators' group and the rights of the DNS server.
const CLUSTER: &str = "
clusterrolebinding kubeadm:cluster-admins
  to cluster-admin
  group kubeadm:cluster-admins
clusterrole system:coredns
  list,watch core endpoints,namespaces,pods,services
  list,watch discovery.k8s.io endpointslices
clusterrolebinding system:coredns
  to system:coredns
  user system:coredns
";

/// Upstream's ClusterRoles, ClusterRoleBindings, Roles and RoleBindings.
pub fn objects() -> Vec<Box<dyn Object>> {
    blocks(POLICY).map(|block| block.object(true)).collect()
}

/// What a cluster made by `coracle up` has beside [`objects`].
pub fn cluster_objects() -> Vec<Box<dyn Object>> {
    blocks(CLUSTER).map(|block| block.object(false)).collect()
}

/// The rules of an upstream ClusterRole; empty when there is no such role.
pub fn cluster_role_rules(name: &str) -> Vec<PolicyRule> {
    blocks(POLICY).find(|b| b.kind == "clusterrole" && b.name == name).map(|b| b.rules()).unwrap_or_default()
}

/// One object of the table.
struct Block<'a> {
    kind: &'a str,
    namespace: &'a str,
    name: &'a str,
    lines: Vec<&'a str>,
}

fn blocks(text: &str) -> impl Iterator<Item = Block<'_>> {
    let mut blocks: Vec<Block<'_>> = Vec::new();
    for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some(line) = line.strip_prefix("  ") {
            if let Some(block) = blocks.last_mut() {
                block.lines.push(line);
            }
        } else if let Some((kind, name)) = line.split_once(' ') {
            let (namespace, name) = match kind {
                "role" | "rolebinding" => name.split_once('/').unwrap_or(("", name)),
                _ => ("", name),
            };
            blocks.push(Block { kind, namespace, name, lines: Vec::new() });
        }
    }
    blocks.into_iter()
}

impl<'a> Block<'a> {
    /// The rest of the lines that begin with `word`.
    fn values(&self, word: &'static str) -> impl Iterator<Item = &'a str> {
        self.lines.iter().filter_map(move |l| l.strip_prefix(word)?.strip_prefix(' '))
    }

    fn meta(&self, upstream: bool) -> ObjectMeta {
        let pair = |(k, v): (&str, &str)| (k.to_owned(), v.to_owned());
        let mut labels: BTreeMap<String, String> =
            self.values("label").filter_map(|l| l.split_once('=')).map(pair).collect();
        let mut annotations = BTreeMap::new();
        if upstream {
            labels.insert("kubernetes.io/bootstrapping".into(), "rbac-defaults".into());
            annotations.insert("rbac.authorization.kubernetes.io/autoupdate".into(), "true".into());
        }
        ObjectMeta {
            name: Some(self.name.to_owned()),
            namespace: (!self.namespace.is_empty()).then(|| self.namespace.to_owned()),
            labels: (!labels.is_empty()).then_some(labels),
            annotations: (!annotations.is_empty()).then_some(annotations),
            ..ObjectMeta::default()
        }
    }

    fn rules(&self) -> Vec<PolicyRule> {
        let list = |text: &str| -> Vec<String> {
            text.split(',').map(|i| if i == "core" { "" } else { i }.to_owned()).collect()
        };
        let rule = |line: &&str| {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["label" | "aggregate", ..] => None,
                [verbs, "url", paths] => Some(PolicyRule {
                    verbs: list(verbs),
                    non_resource_urls: Some(list(paths)),
                    ..PolicyRule::default()
                }),
                [verbs, groups, resources, ref names @ ..] => Some(PolicyRule {
                    verbs: list(verbs),
                    api_groups: Some(list(groups)),
                    resources: Some(list(resources)),
                    resource_names: names.first().map(|names| list(names)),
                    ..PolicyRule::default()
                }),
                _ => None,
            }
        };
        self.lines.iter().filter_map(rule).collect()
    }

    fn aggregation(&self) -> Option<AggregationRule> {
        let selectors: Vec<LabelSelector> = self
            .values("aggregate")
            .filter_map(|l| l.split_once('='))
            .map(|(k, v)| LabelSelector {
                match_labels: Some(BTreeMap::from([(k.to_owned(), v.to_owned())])),
                ..LabelSelector::default()
            })
            .collect();
        (!selectors.is_empty()).then_some(AggregationRule { cluster_role_selectors: Some(selectors) })
    }

    fn subjects(&self) -> Option<Vec<Subject>> {
        let subject = |kind: &str, name: &str| Subject {
            api_group: Some(GROUP.into()),
            kind: kind.into(),
            name: name.into(),
            namespace: None,
        };
        let mut subjects: Vec<Subject> = Vec::new();
        subjects.extend(self.values("group").map(|n| subject("Group", n)));
        subjects.extend(self.values("user").map(|n| subject("User", n)));
        subjects.extend(self.values("serviceaccount").filter_map(|l| l.split_once('/')).map(
            |(namespace, name)| Subject {
                api_group: None,
                kind: "ServiceAccount".into(),
                name: name.into(),
                namespace: Some(namespace.into()),
            },
        ));
        (!subjects.is_empty()).then_some(subjects)
    }

    fn role_ref(&self, kind: &str) -> RoleRef {
        RoleRef {
            api_group: Some(GROUP.into()),
            kind: kind.into(),
            name: self.values("to").next().unwrap_or_default().into(),
        }
    }

    fn object(&self, upstream: bool) -> Box<dyn Object> {
        let metadata = self.meta(upstream);
        match self.kind {
            "clusterrole" => {
                let aggregation_rule = self.aggregation();
                let rules = aggregation_rule.is_none().then(|| self.rules());
                Box::new(ClusterRole { metadata, aggregation_rule, rules })
            }
            "role" => Box::new(Role { metadata, rules: Some(self.rules()) }),
            "rolebinding" => {
                let role_ref = self.role_ref("Role");
                Box::new(RoleBinding { metadata, role_ref, subjects: self.subjects() })
            }
            _ => {
                let role_ref = self.role_ref("ClusterRole");
                Box::new(ClusterRoleBinding { metadata, role_ref, subjects: self.subjects() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_becomes_part_of_an_object() {
        let all = objects();
        assert_eq!(all.len(), 135);
        for block in blocks(POLICY).chain(blocks(CLUSTER)) {
            let words = ["label", "aggregate", "to", "user", "group", "serviceaccount"];
            let known = words.iter().map(|w| block.values(w).count()).sum::<usize>();
            let rules = if block.kind.ends_with("role") { block.rules().len() } else { 0 };
            assert_eq!(known + rules, block.lines.len(), "{}", block.name);
            if block.kind.ends_with("binding") {
                assert_eq!(block.values("to").count(), 1, "{}", block.name);
            }
        }
    }

    #[test]
    fn table_yields_names_labels_and_rules() {
        let all = objects();
        let find = |name: &str| all.iter().find(|o| o.name() == name).expect("present").to_value();
        let admin = find("admin");
        assert_eq!(admin["rules"], serde_json::Value::Null);
        let role = find("extension-apiserver-authentication-reader");
        assert_eq!(role["metadata"]["namespace"], "kube-system");
        assert_eq!(role["rules"][0]["resourceNames"][0], "extension-apiserver-authentication");
        assert_eq!(role["rules"][0]["apiGroups"][0], "");
        assert_eq!(
            find("edit")["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-admin"],
            "true"
        );
    }
}
