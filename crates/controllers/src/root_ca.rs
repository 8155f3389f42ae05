//! Root CA publisher: every namespace has the ConfigMap `kube-root-ca.crt` with the cluster's CA.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::{Api, Informer, ListOptions};
use coracle_meta::{Reason, Status};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::namespace::is_terminating;
use crate::runtime::{
    Action, Context, Controller, Descriptor, ObjectKey, Reconciler, is_namespace_terminating,
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "root-ca-cert-publisher", workers: 1 };

const NAME: &str = "kube-root-ca.crt";
const KEY: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const DESCRIPTION_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when \
    using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is \
    guaranteed across distributions of Kubernetes clusters.";

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let namespaces = cx.informers.get::<Namespace>();
    let only = ListOptions { field_selector: format!("metadata.name={NAME}"), ..ListOptions::default() };
    let maps = cx.informers.filtered::<ConfigMap>("", only);
    let reconciler = Arc::new(Reconcile {
        namespaces: namespaces.clone(),
        maps: maps.clone(),
        api: cx.client(DESCRIPTOR.name).api(),
        root_ca: cx.config.root_ca_pem.clone(),
    });
    Controller::new(DESCRIPTOR)
        .watch_primary(&namespaces)
        .watch(&maps, |change, enqueue| {
            if let Some(namespace) = &change.object().metadata.namespace {
                enqueue(ObjectKey::new("", namespace));
            }
        })
        .run(reconciler)
        .boxed()
}

struct Reconcile {
    namespaces: Informer<Namespace>,
    maps: Informer<ConfigMap>,
    api: Api<ConfigMap>,
    root_ca: String,
}

#[async_trait]
impl Reconciler for Reconcile {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        if self.namespaces.get("", &key.name).is_none_or(|namespace| is_terminating(&namespace)) {
            return Ok(Action::AwaitChange);
        }
        let current = self.maps.get(&key.name, NAME);
        match decide(&key.name, current.as_deref(), &self.root_ca) {
            None => {}
            Some(map) if current.is_some() => drop(self.api.update(&key.name, map).await?),
            Some(map) => match self.api.create(&key.name, map).await {
                Err(status) if status.reason() == Reason::AlreadyExists => {}
                Err(status) if is_namespace_terminating(&status) => {}
                outcome => drop(outcome?),
            },
        }
        Ok(Action::AwaitChange)
    }
}

/// The ConfigMap to write, unless the present one is right.
fn decide(namespace: &str, current: Option<&ConfigMap>, root_ca: &str) -> Option<ConfigMap> {
    let data = Some(BTreeMap::from([(KEY.to_owned(), root_ca.to_owned())]));
    let mut wanted = current.cloned().unwrap_or_else(|| ConfigMap {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    });
    let annotations = wanted.metadata.annotations.get_or_insert_default();
    annotations.insert(DESCRIPTION.to_owned(), DESCRIPTION_TEXT.to_owned());
    wanted.data = data;
    (Some(&wanted) != current).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_bundle_is_put_right_and_a_right_one_left_alone() {
        let mut map = decide("ns", None, "pem").expect("created");
        assert!(decide("ns", Some(&map), "pem").is_none());
        map.data.get_or_insert_default().insert("x".into(), "y".into());
        let mended = decide("ns", Some(&map), "pem").expect("updated");
        assert_eq!(mended.data.map(|data| data.len()), Some(1));
    }
}
