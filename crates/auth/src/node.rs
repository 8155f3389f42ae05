//! The node authorizer: a kubelet reaches its own Node and Lease, its pods, and what these refer to.

use std::sync::{Arc, LazyLock};

use coracle_meta::ObjectReader;
use coracle_meta::selector::FieldSelector;
use k8s_openapi::api::core::v1::{PersistentVolume, Pod, PodSpec};
use k8s_openapi::api::rbac::v1::PolicyRule;
use k8s_openapi::api::storage::v1::VolumeAttachment;

use crate::rbac::rule_allows;
use crate::user::{Attributes, Authorizer, Decision, NonResourceRule, ResourceRule, UserInfo};

const PREFIX: &str = "system:node:";
const GROUP: &str = "system:nodes";
const LEASES: &str = "kube-node-lease";

static NODE_RULES: LazyLock<Vec<PolicyRule>> =
    LazyLock::new(|| crate::bootstrap::cluster_role_rules("system:node"));

/// Allows kubelets (`system:node:<name>` in `system:nodes`) what concerns their node; has no opinion on
/// anything else.
pub struct NodeAuthorizer {
    objects: Arc<dyn ObjectReader>,
}

impl std::fmt::Debug for NodeAuthorizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeAuthorizer")
    }
}

/// The node a user is the kubelet of.
pub fn node_name(user: &UserInfo) -> Option<&str> {
    let name = user.name.strip_prefix(PREFIX)?;
    user.in_group(GROUP).then_some(name)
}

/// Allowed, or why not.
type Verdict = Result<(), String>;

fn require(holds: bool, why: &str) -> Verdict {
    if holds { Ok(()) } else { Err(why.to_owned()) }
}

impl NodeAuthorizer {
    /// Decides by the pods and volumes of `objects`.
    pub fn new(objects: Arc<dyn ObjectReader>) -> Self {
        Self { objects }
    }

    fn decide(&self, node: &str, a: &Attributes) -> Verdict {
        match (a.group.as_str(), a.resource.as_str()) {
            ("", "secrets" | "configmaps") => self.read_namespaced(node, a),
            ("", "persistentvolumeclaims") if a.subresource == "status" => {
                let verb = matches!(a.verb.as_str(), "get" | "update" | "patch");
                require(verb, "can only get/update/patch this type")?;
                self.related(node, a)
            }
            ("", "persistentvolumeclaims" | "persistentvolumes")
            | ("resource.k8s.io", "resourceclaims")
            | ("storage.k8s.io", "volumeattachments") => self.get_one(node, a),
            ("", "serviceaccounts") => self.service_account(node, a),
            ("coordination.k8s.io", "leases") => lease(node, a),
            ("storage.k8s.io", "csinodes") => csi_node(node, a),
            ("", "nodes") => own_node(node, a),
            ("", "pods") => self.pod(node, a),
            _ => require(NODE_RULES.iter().any(|rule| rule_allows(a, rule)), ""),
        }
    }

    fn read_namespaced(&self, node: &str, a: &Attributes) -> Verdict {
        let read = matches!(a.verb.as_str(), "get" | "list" | "watch");
        require(read, "can only read resources of this type")?;
        require(a.subresource.is_empty(), "cannot read subresource")?;
        require(!a.namespace.is_empty(), "can only read namespaced object of this type")?;
        self.related(node, a)
    }

    fn get_one(&self, node: &str, a: &Attributes) -> Verdict {
        require(a.verb == "get", "can only get individual resources of this type")?;
        require(a.subresource.is_empty(), "cannot get subresource")?;
        self.related(node, a)
    }

    fn service_account(&self, node: &str, a: &Attributes) -> Verdict {
        if a.subresource.is_empty() && a.verb == "get" {
            return self.related(node, a);
        }
        require(
            a.verb == "create" && !a.name.is_empty(),
            "can only create tokens for individual service accounts",
        )?;
        require(a.subresource == "token", "can only create token subresource of service account")?;
        self.related(node, a)
    }

    fn pod(&self, node: &str, a: &Attributes) -> Verdict {
        match (a.subresource.as_str(), a.verb.as_str()) {
            ("", "get") => self.get_one(node, a),
            ("", "list" | "watch" | "deletecollection") => {
                let selector = FieldSelector::parse(&a.field_selector).ok();
                let own = selector.is_some_and(|s| s.required_value("spec.nodeName") == Some(node));
                require(own, "can only list/watch pods with spec.nodeName field selector")
            }
            // The NodeRestriction plugin holds these to the node's own pods.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => Ok(()),
            _ => Err(String::new()),
        }
    }

    fn related(&self, node: &str, a: &Attributes) -> Verdict {
        require(!a.name.is_empty(), "No Object name found")?;
        let found = match a.resource.as_str() {
            "persistentvolumes" => self.volume_in_use(node, &a.name),
            "volumeattachments" => self.attachment_here(node, &a.name),
            "pods" => self
                .objects
                .get("", "pods", &a.namespace, &a.name)
                .is_some_and(|o| o.downcast::<Pod>().is_some_and(|pod| bound_to(pod, node))),
            _ => self.any_pod(node, &a.namespace, |pod| refers(pod, &a.resource, &a.name)),
        };
        let why = || format!("no relationship found between node '{node}' and this object");
        if found { Ok(()) } else { Err(why()) }
    }

    fn any_pod(&self, node: &str, namespace: &str, wanted: impl Fn(&Pod) -> bool) -> bool {
        let pods = self.objects.list("", "pods", namespace);
        pods.iter().filter_map(|o| o.downcast::<Pod>()).any(|pod| bound_to(pod, node) && wanted(pod))
    }

    fn volume_in_use(&self, node: &str, name: &str) -> bool {
        let Some(volume) = self.objects.get("", "persistentvolumes", "", name) else { return false };
        let claim = volume.downcast::<PersistentVolume>().and_then(|v| v.spec.as_ref()?.claim_ref.as_ref());
        let Some(claim) = claim else { return false };
        let (Some(namespace), Some(name)) = (&claim.namespace, &claim.name) else { return false };
        self.any_pod(node, namespace, |pod| refers(pod, "persistentvolumeclaims", name))
    }

    fn attachment_here(&self, node: &str, name: &str) -> bool {
        let found = self.objects.get("storage.k8s.io", "volumeattachments", "", name);
        found.is_some_and(|o| o.downcast::<VolumeAttachment>().is_some_and(|a| a.spec.node_name == node))
    }
}

fn lease(node: &str, a: &Attributes) -> Verdict {
    let verb = matches!(a.verb.as_str(), "get" | "create" | "update" | "patch" | "delete");
    require(verb, "can only get, create, update, patch, or delete a node lease")?;
    if a.namespace != LEASES {
        return Err(format!("can only access leases in the {LEASES:?} system namespace"));
    }
    // A creation bears no name in its path; the NodeRestriction plugin checks the one in the body.
    let own = a.verb == "create" || a.name == node;
    require(own, "can only access node lease with the same name as the requesting node")
}

fn csi_node(node: &str, a: &Attributes) -> Verdict {
    let verb = matches!(a.verb.as_str(), "get" | "create" | "update" | "patch" | "delete");
    require(verb, "can only get, create, update, patch, or delete a CSINode")?;
    require(a.subresource.is_empty(), "cannot authorize CSINode subresources")?;
    let own = a.verb == "create" || a.name == node;
    require(own, "can only access CSINode with the same name as the requesting node")
}

fn own_node(node: &str, a: &Attributes) -> Verdict {
    match (a.subresource.as_str(), a.verb.as_str()) {
        // The NodeRestriction plugin holds writes to the node's own object.
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
        ("", "get" | "list" | "watch") if a.name == node => Ok(()),
        ("", "get" | "list" | "watch") => {
            Err(format!("node '{node}' cannot read '{}', only its own Node object", a.name))
        }
        _ => Err(String::new()),
    }
}

fn bound_to(pod: &Pod, node: &str) -> bool {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(node)
}

/// Whether a pod refers to an object of its namespace. Mirror pods cannot refer to anything: a node makes
/// them itself and could name what it likes.
fn refers(pod: &Pod, resource: &str, name: &str) -> bool {
    let mirror =
        pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key("kubernetes.io/config.mirror"));
    let Some(spec) = pod.spec.as_ref().filter(|_| !mirror) else { return false };
    match resource {
        "secrets" => secrets(spec, name),
        "configmaps" => config_maps(spec, name),
        "serviceaccounts" => spec.service_account_name.as_deref() == Some(name),
        "persistentvolumeclaims" => spec.volumes.iter().flatten().any(|v| {
            v.persistent_volume_claim.as_ref().is_some_and(|c| c.claim_name == name)
                || (v.ephemeral.is_some()
                    && pod.metadata.name.as_ref().is_some_and(|pod| format!("{pod}-{}", v.name) == name))
        }),
        "resourceclaims" => {
            let named = |c: &k8s_openapi::api::core::v1::PodResourceClaim| {
                c.resource_claim_name.as_deref() == Some(name)
            };
            let made = pod.status.iter().flat_map(|s| s.resource_claim_statuses.iter().flatten());
            spec.resource_claims.iter().flatten().any(named)
                || made.into_iter().any(|c| c.resource_claim_name.as_deref() == Some(name))
        }
        _ => false,
    }
}

/// Environment references of all containers: (env valueFrom, envFrom) of one kind.
fn environment(spec: &PodSpec, wanted: impl Fn(&EnvRef<'_>) -> bool) -> bool {
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| (&c.env, &c.env_from));
    let normal = spec.init_containers.iter().flatten().chain(&spec.containers).map(|c| (&c.env, &c.env_from));
    normal.chain(ephemeral).any(|(env, env_from)| {
        let values = env.iter().flatten().filter_map(|e| e.value_from.as_ref()).map(|v| EnvRef {
            secret: v.secret_key_ref.as_ref().map(|r| r.name.as_str()),
            config_map: v.config_map_key_ref.as_ref().map(|r| r.name.as_str()),
        });
        let sources = env_from.iter().flatten().map(|s| EnvRef {
            secret: s.secret_ref.as_ref().map(|r| r.name.as_str()),
            config_map: s.config_map_ref.as_ref().map(|r| r.name.as_str()),
        });
        values.chain(sources).any(|r| wanted(&r))
    })
}

struct EnvRef<'a> {
    secret: Option<&'a str>,
    config_map: Option<&'a str>,
}

fn secrets(spec: &PodSpec, name: &str) -> bool {
    let is = |found: Option<&str>| found == Some(name);
    let local = |r: &Option<k8s_openapi::api::core::v1::LocalObjectReference>| {
        is(r.as_ref().map(|r| r.name.as_str()))
    };
    spec.image_pull_secrets.iter().flatten().any(|r| r.name == name)
        || environment(spec, |r| is(r.secret))
        || spec.volumes.iter().flatten().any(|v| {
            v.secret.as_ref().is_some_and(|s| is(s.secret_name.as_deref()))
                || v.projected.as_ref().is_some_and(|p| {
                    let sources = p.sources.iter().flatten();
                    sources.filter_map(|s| s.secret.as_ref()).any(|s| s.name == name)
                })
                || v.csi.as_ref().is_some_and(|c| local(&c.node_publish_secret_ref))
                || v.azure_file.as_ref().is_some_and(|f| f.secret_name == name)
                || v.cephfs.as_ref().is_some_and(|c| local(&c.secret_ref))
                || v.cinder.as_ref().is_some_and(|c| local(&c.secret_ref))
                || v.flex_volume.as_ref().is_some_and(|c| local(&c.secret_ref))
                || v.iscsi.as_ref().is_some_and(|c| local(&c.secret_ref))
                || v.rbd.as_ref().is_some_and(|c| local(&c.secret_ref))
                || v.scale_io.as_ref().is_some_and(|c| c.secret_ref.name == name)
                || v.storageos.as_ref().is_some_and(|c| local(&c.secret_ref))
        })
}

fn config_maps(spec: &PodSpec, name: &str) -> bool {
    environment(spec, |r| r.config_map == Some(name))
        || spec.volumes.iter().flatten().any(|v| {
            v.config_map.as_ref().is_some_and(|c| c.name == name)
                || v.projected.as_ref().is_some_and(|p| {
                    let sources = p.sources.iter().flatten();
                    sources.filter_map(|s| s.config_map.as_ref()).any(|c| c.name == name)
                })
        })
}

impl Authorizer for NodeAuthorizer {
    fn authorize(&self, attributes: &Attributes) -> (Decision, String) {
        let Some(node) = node_name(&attributes.user) else { return (Decision::NoOpinion, String::new()) };
        if node.is_empty() {
            let user = &attributes.user.name;
            return (Decision::NoOpinion, format!("unknown node for user {user:?}"));
        }
        let verdict = if attributes.is_resource {
            self.decide(node, attributes)
        } else {
            require(NODE_RULES.iter().any(|rule| rule_allows(attributes, rule)), "")
        };
        match verdict {
            Ok(()) => (Decision::Allow, String::new()),
            Err(why) => (Decision::NoOpinion, why),
        }
    }

    fn rules_for(
        &self,
        user: &UserInfo,
        _namespace: &str,
    ) -> (Vec<ResourceRule>, Vec<NonResourceRule>, bool) {
        (Vec::new(), Vec::new(), node_name(user).is_some())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::Objects;

    fn setup() -> NodeAuthorizer {
        let objects = Objects::new();
        let pod = |name: &str, node: &str, volume: serde_json::Value| -> Pod {
            serde_json::from_value(json!({
                "metadata": { "name": name, "namespace": "ns" },
                "spec": {
                    "nodeName": node, "serviceAccountName": "sa",
                    "containers": [{ "name": "c", "envFrom": [{ "secretRef": { "name": "env" } }] }],
                    "volumes": [
                        { "name": "v", "projected": { "sources": [{ "configMap": { "name": "ca" } }] } },
                        volume,
                    ],
                },
            }))
            .expect("a pod")
        };
        objects.put(pod("mine", "n1", json!({ "name": "s", "secret": { "secretName": "mine" } })));
        objects.put(pod("theirs", "n2", json!({ "name": "s", "secret": { "secretName": "theirs" } })));
        NodeAuthorizer::new(objects)
    }

    fn ask(
        a: &NodeAuthorizer,
        verb: &str,
        resource: &str,
        ns: &str,
        name: &str,
        selector: &str,
    ) -> (bool, String) {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let (group, resource) = resource.split_once(':').unwrap_or(("", resource));
        let attributes = Attributes {
            user: UserInfo::authenticated("system:node:n1", &[GROUP]),
            verb: verb.into(),
            is_resource: true,
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: ns.into(),
            name: name.into(),
            field_selector: selector.into(),
            ..Attributes::default()
        };
        let (decision, why) = a.authorize(&attributes);
        (decision == Decision::Allow, why)
    }

    #[test]
    fn node_reads_what_its_pods_refer_to_and_nothing_else() {
        let a = setup();
        let may = |verb: &str, resource: &str, name: &str| ask(&a, verb, resource, "ns", name, "").0;
        assert!(may("get", "secrets", "mine") && may("watch", "secrets", "env"));
        assert!(may("get", "configmaps", "ca"));
        assert!(may("create", "serviceaccounts/token", "sa"));
        assert!(!may("create", "serviceaccounts/token", "other"));
        assert!(!may("update", "secrets", "mine"));
        let (allowed, why) = ask(&a, "get", "secrets", "ns", "theirs", "");
        assert!(!allowed);
        assert_eq!(why, "no relationship found between node 'n1' and this object");
        assert!(!ask(&a, "list", "secrets", "ns", "", "").0);
        assert!(may("get", "pods", "mine") && !may("get", "pods", "theirs"));
        assert!(ask(&a, "watch", "pods", "", "", "spec.nodeName=n1").0);
        assert!(!ask(&a, "watch", "pods", "", "", "spec.nodeName=n2").0);
        assert!(!ask(&a, "list", "pods", "", "", "").0);
    }

    #[test]
    fn node_has_its_own_node_object_and_lease() {
        let a = setup();
        assert!(ask(&a, "get", "nodes", "", "n1", "").0);
        assert_eq!(
            ask(&a, "get", "nodes", "", "n2", "").1,
            "node 'n1' cannot read 'n2', only its own Node object"
        );
        assert!(ask(&a, "patch", "nodes/status", "", "n1", "").0);
        assert!(ask(&a, "update", "coordination.k8s.io:leases", LEASES, "n1", "").0);
        assert!(!ask(&a, "update", "coordination.k8s.io:leases", LEASES, "n2", "").0);
        assert!(!ask(&a, "update", "coordination.k8s.io:leases", "default", "n1", "").0);
        assert!(ask(&a, "list", "services", "", "", "").0, "from the system:node rules");
        assert!(!ask(&a, "list", "namespaces", "", "", "").0);
        let person =
            Attributes { user: UserInfo::authenticated("system:node:n1", &[]), ..Attributes::default() };
        assert_eq!(a.authorize(&person).0, Decision::NoOpinion);
    }
}
