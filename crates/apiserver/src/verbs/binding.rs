//! Binding of pods to nodes, and bodies of subresources with effects of their own.

use std::sync::Arc;

use coracle_admission::Operation;
use coracle_client::{DeleteOptions, WriteOptions};
use coracle_meta::{DynamicObject, GroupVersionKind, Object, Status};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::admit::{Act, Pass};
use super::commit::{Put, Refused};
use super::create::whole_seconds;
use super::update::{CONFLICT_TRIES, uid_conflict};
use super::{Caller, Input, sent};
use crate::registry::Resource;
use crate::server::Server;

/// The Status of a created Binding or Eviction.
pub(super) fn created() -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 })
}

impl Server {
    /// Binds a pod to a node: sets `spec.nodeName` and the PodScheduled condition.
    pub(crate) async fn bind(
        &self,
        caller: &Caller,
        resource: &Arc<Resource>,
        namespace: &str,
        name: &str,
        input: Input,
        opts: &WriteOptions,
    ) -> Result<Value, Status> {
        let binding = self.sent(caller, &sent::BINDING, input, &opts.field_validation)?;
        let text = |at: &str| binding.pointer(at).and_then(Value::as_str).unwrap_or("").to_owned();
        let own = text("/metadata/name");
        if !name.is_empty() && own != name {
            let why = "name in URL does not match name in Binding object";
            return Err(Status::bad_request(why));
        }
        let name = if name.is_empty() { own } else { name.to_owned() };
        let target_kind = text("/target/kind");
        if !matches!(target_kind.as_str(), "" | "Node") {
            let shown = coracle_meta::field::show(target_kind);
            let why =
                format!("target.kind: Unsupported value: {shown}: supported values: \"Node\", \"<empty>\"");
            return Err(Status::new(500, coracle_meta::Reason::Unknown, why, None));
        }
        let node = text("/target/name");
        if node.is_empty() {
            let why = "target.name: Required value";
            return Err(Status::new(500, coracle_meta::Reason::Unknown, why, None));
        }
        let caller = &caller.asking(opts, false);
        let binding = self.admit_binding(caller, resource, namespace, &name, &binding, opts.dry_run).await?;
        let uid = text("/metadata/uid");
        for _ in 0..CONFLICT_TRIES {
            let entry = self.get(resource, namespace, &name).await?;
            let mut obj = entry.decode_full()?;
            let conflict = |why: &str| Status::conflict("", "pods/binding", &name, why);
            let Some(pod) = obj.downcast_mut::<Pod>() else { return Err(Status::internal("not a pod")) };
            let own = pod.metadata.uid.as_deref().unwrap_or("");
            if !uid.is_empty() && uid != own {
                return Err(uid_conflict(resource, &entry, (&uid, own), opts.dry_run));
            }
            self.assign(pod, &node, &binding, &conflict)?;
            if opts.dry_run {
                return Ok(created());
            }
            match self.put(resource, entry.key.clone(), obj, Put::over(entry.revision)).await {
                Ok(_) => return Ok(created()),
                Err(Refused::Condition(..)) => {}
                Err(Refused::Failed(status)) => return Err(status),
            }
        }
        Err(Status::modified("", "pods", &name))
    }

    fn assign(
        &self,
        pod: &mut Pod,
        node: &str,
        binding: &Value,
        conflict: &dyn Fn(&str) -> Status,
    ) -> Result<(), Status> {
        let pod_name = pod.metadata.name.clone().unwrap_or_default();
        if pod.metadata.deletion_timestamp.is_some() {
            return Err(conflict(&format!("pod {pod_name} is being deleted, cannot be assigned to a host")));
        }
        let spec = pod.spec.get_or_insert_default();
        if let Some(assigned) = spec.node_name.as_deref().filter(|n| !n.is_empty()) {
            return Err(conflict(&format!("pod {pod_name} is already assigned to node {assigned:?}")));
        }
        if spec.scheduling_gates.as_ref().is_some_and(|g| !g.is_empty()) {
            return Err(conflict(&format!("pod {pod_name} has non-empty .spec.schedulingGates")));
        }
        spec.node_name = Some(node.to_owned());
        if let Some(annotations) = binding.pointer("/metadata/annotations").and_then(Value::as_object) {
            let own = pod.metadata.annotations.get_or_insert_default();
            own.extend(annotations.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))));
        }
        if let Some(labels) = binding.pointer("/metadata/labels").and_then(Value::as_object) {
            let own = pod.metadata.labels.get_or_insert_default();
            for (key, value) in labels {
                own.entry(key.clone()).or_insert_with(|| value.as_str().unwrap_or("").to_owned());
            }
        }
        let now = Time(whole_seconds(self.clock.now()));
        let status = pod.status.get_or_insert_default();
        let conditions = status.conditions.get_or_insert_default();
        match conditions.iter_mut().find(|c| c.type_ == "PodScheduled") {
            Some(condition) => {
                if condition.status != "True" {
                    condition.last_transition_time = Some(now);
                }
                condition.status = "True".into();
                (condition.reason, condition.message) = (None, None);
            }
            None => conditions.push(PodCondition {
                type_: "PodScheduled".into(),
                status: "True".into(),
                last_transition_time: Some(now),
                ..PodCondition::default()
            }),
        }
        Ok(())
    }

    async fn admit_binding(
        &self,
        caller: &Caller,
        resource: &Resource,
        namespace: &str,
        name: &str,
        binding: &Value,
        dry_run: bool,
    ) -> Result<Value, Status> {
        let gvk = GroupVersionKind::new("", "v1", "Binding");
        let mut obj: Box<dyn Object> =
            Box::new(DynamicObject::from_value(gvk, binding.clone()).map_err(Status::internal)?);
        let operation = Operation::Create;
        let act = Act { operation, resource, subresource: "binding", namespace, name, dry_run };
        self.admit(caller, Pass::Both, act, Some(&mut obj), None).await?;
        Ok(obj.to_value())
    }
}

/// Reads a DeleteOptions object.
pub(crate) fn delete_options_of(value: &Value) -> DeleteOptions {
    let text = |at: &str| value.pointer(at).and_then(Value::as_str).map(str::to_owned);
    let mut propagation_policy = text("/propagationPolicy");
    if propagation_policy.is_none()
        && let Some(orphan) = value.get("orphanDependents").and_then(Value::as_bool)
    {
        propagation_policy = Some(if orphan { "Orphan" } else { "Background" }.to_owned());
    }
    DeleteOptions {
        grace_period_seconds: value.get("gracePeriodSeconds").and_then(Value::as_i64),
        uid: text("/preconditions/uid"),
        resource_version: text("/preconditions/resourceVersion"),
        propagation_policy,
        dry_run: value.get("dryRun").and_then(Value::as_array).is_some_and(|d| !d.is_empty()),
    }
}
