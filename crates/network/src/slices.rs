//! Finding the EndpointSlices of a Service.

use std::sync::Arc;

use coracle_client::{Index, Informer};
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// The label that names a slice's Service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Namespace and name of the Service that a slice belongs to.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<(&str, &str)> {
    let labels = slice.metadata.labels.as_ref()?;
    Some((slice.metadata.namespace.as_deref()?, labels.get(SERVICE_NAME)?))
}

fn keys(slice: &EndpointSlice) -> Vec<String> {
    service_of(slice).map(|(namespace, name)| format!("{namespace}/{name}")).into_iter().collect()
}

/// Slices by Service.
#[derive(Clone, Debug)]
pub(crate) struct Slices(Index<EndpointSlice>);

impl Slices {
    pub fn new(informer: &Informer<EndpointSlice>) -> Self {
        Self(informer.index("network/service", keys))
    }

    pub fn of(&self, namespace: &str, name: &str) -> Vec<Arc<EndpointSlice>> {
        self.0.get(&format!("{namespace}/{name}"))
    }
}
