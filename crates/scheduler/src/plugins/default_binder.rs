//! DefaultBinder: writes the decision through the `pods/binding` subresource.

use coracle_client::Client;
use coracle_meta::Status;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::framework::{Bind, PluginDef};
use crate::pod_info::PodInfo;

pub(super) const DEF: PluginDef =
    PluginDef { bind: Some(&DefaultBinder), ..PluginDef::named("DefaultBinder") };

pub(super) struct DefaultBinder;

impl Bind for DefaultBinder {
    fn bind<'a>(
        &'a self,
        client: &'a Client,
        pod: &'a PodInfo,
        node: &'a str,
    ) -> BoxFuture<'a, Result<(), Status>> {
        async move {
            let binding = json!({
                "apiVersion": "v1", "kind": "Binding",
                "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
                "target": {"kind": "Node", "name": node},
            });
            let pods = client.api::<Pod>();
            pods.create_subresource(&pod.namespace, &pod.name, "binding", binding).await.map(|_| ())
        }
        .boxed()
    }
}
