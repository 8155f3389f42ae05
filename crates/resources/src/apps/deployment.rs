//! Deployment: declarative updates of a set of pods.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::Value;

use crate::common::{column, containers_and_images, selector_text, wide_column};
use crate::def::{AGE, Column, NAME, ResourceDef, ScalePaths, Strategy, Subresource, Typed, age};

const COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "string", "", 
        "Number of the pod with ready state"),
    column("Up-to-date", "string", "", 
        "Total number of non-terminating pods targeted by this deployment that have the desired \
         template spec."),
    column("Available", "string", "", 
        "Total number of available non-terminating pods (ready for at least minReadySeconds) targeted \
         by this deployment."),
    AGE,
    wide_column("Containers", "string", "", 
        "Names of each container in the template."),
    wide_column("Images", "string", "", 
        "Images referenced by each container in the template."),
    wide_column("Selector", "string", "", 
        "Label selector for pods. Existing ReplicaSets whose pods are selected by this will be the ones \
         affected by this deployment. It must match the pod template's labels."),
];

pub(super) static DEF: ResourceDef = ResourceDef {
    short_names: &["deploy"],
    categories: &["all"],
    subresources: &[Subresource::Scale, Subresource::Status],
    columns: COLUMNS,
    scale: Some(ScalePaths {
        spec_replicas: "/spec/replicas",
        status_replicas: "/status/replicas",
        selector: "/spec/selector",
    }),
    has_generation: true,
    ..ResourceDef::new::<Deployment>("deployment", &Typed::<Deployment, _>::new(Deployments))
};

struct Deployments;

impl Strategy<Deployment> for Deployments {
    fn row(&self, obj: &Deployment, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (obj.spec.as_ref(), obj.status.as_ref());
        let (containers, images) = containers_and_images(spec.map(|s| &s.template));
        let ready = status.and_then(|s| s.ready_replicas).unwrap_or(0);
        vec![
            obj.metadata.name.clone().into(),
            format!("{ready}/{}", spec.and_then(|s| s.replicas).unwrap_or(0)).into(),
            status.and_then(|s| s.updated_replicas).unwrap_or(0).into(),
            status.and_then(|s| s.available_replicas).unwrap_or(0).into(),
            age(obj.metadata.creation_timestamp.as_ref(), now),
            containers,
            images,
            spec.map_or(String::new(), |s| selector_text(&s.selector)).into(),
        ]
    }
}
