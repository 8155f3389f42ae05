//! ReplicaSet: keeps a number of identical pods.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use serde_json::Value;

use crate::common::{column, containers_and_images, or_else, selector_text, wide_column};
use crate::def::{AGE, Column, NAME, ResourceDef, ScalePaths, Strategy, Subresource, Typed, age};

const COLUMNS: &[Column] = &[
    NAME,
    column("Desired", "integer", "", 
        "Replicas is the number of desired pods. This is a pointer to distinguish between explicit zero \
         and unspecified. Defaults to 1. More info: \
         https://kubernetes.io/docs/concepts/workloads/controllers/replicaset"),
    column("Current", "integer", "", 
        "Replicas is the most recently observed number of non-terminating pods. More info: \
         https://kubernetes.io/docs/concepts/workloads/controllers/replicaset"),
    column("Ready", "integer", "", 
        "The number of non-terminating pods targeted by this ReplicaSet with a Ready Condition."),
    AGE,
    wide_column("Containers", "string", "", 
        "Names of each container in the template."),
    wide_column("Images", "string", "", 
        "Images referenced by each container in the template."),
    wide_column("Selector", "string", "", 
        "Selector is a label query over pods that should match the replica count. Label keys and values \
         that must match in order to be controlled by this replica set. It must match the pod \
         template's labels. More info: \
         https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors"),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    short_names: &["rs"],
    categories: &["all"],
    subresources: &[Subresource::Scale, Subresource::Status],
    columns: COLUMNS,
    scale: Some(ScalePaths {
        spec_replicas: "/spec/replicas",
        status_replicas: "/status/replicas",
        selector: "/spec/selector",
    }),
    has_generation: true,
    ..ResourceDef::new::<ReplicaSet>("replicaset", &Typed::<ReplicaSet, _>::new(ReplicaSets))
};

struct ReplicaSets;

impl Strategy<ReplicaSet> for ReplicaSets {
    fn row(&self, obj: &ReplicaSet, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (obj.spec.as_ref(), obj.status.as_ref());
        let (containers, images) = containers_and_images(spec.and_then(|s| s.template.as_ref()));
        vec![
            obj.metadata.name.clone().into(),
            spec.and_then(|s| s.replicas).unwrap_or(0).into(),
            status.map_or(0, |s| s.replicas).into(),
            status.and_then(|s| s.ready_replicas).unwrap_or(0).into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
            containers,
            images,
            or_else(&spec.map_or(String::new(), |s| selector_text(&s.selector)), "<none>"),
        ]
    }
}
