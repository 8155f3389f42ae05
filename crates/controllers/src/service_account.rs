//! ServiceAccount: every namespace has the account `default`.

use std::sync::Arc;

use async_trait::async_trait;
use coracle_client::{Api, Change, Informer, ListOptions};
use coracle_meta::{Reason, Status};
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::namespace::is_terminating;
use crate::runtime::{
    Action, Context, Controller, Descriptor, ObjectKey, Reconciler, is_namespace_terminating,
};

pub(crate) const DESCRIPTOR: Descriptor = Descriptor { name: "service-account-controller", workers: 1 };

const NAME: &str = "default";

/// Starts the controller.
pub(crate) fn run(cx: &Context) -> BoxFuture<'static, ()> {
    let namespaces = cx.informers.get::<Namespace>();
    let only = ListOptions { field_selector: format!("metadata.name={NAME}"), ..ListOptions::default() };
    let accounts = cx.informers.filtered::<ServiceAccount>("", only);
    let reconciler = Arc::new(Reconcile {
        namespaces: namespaces.clone(),
        accounts: accounts.clone(),
        api: cx.client(DESCRIPTOR.name).api(),
    });
    Controller::new(DESCRIPTOR)
        .watch_primary(&namespaces)
        .watch(&accounts, |change, enqueue| {
            if let (Change::Deleted(account), Some(namespace)) = (change, &change.object().metadata.namespace)
            {
                debug_assert_eq!(account.metadata.name.as_deref(), Some(NAME));
                enqueue(ObjectKey::new("", namespace));
            }
        })
        .run(reconciler)
        .boxed()
}

struct Reconcile {
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
    api: Api<ServiceAccount>,
}

#[async_trait]
impl Reconciler for Reconcile {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, Status> {
        let exists = self.accounts.get(&key.name, NAME).is_some();
        let namespace = self.namespaces.get("", &key.name);
        if exists || namespace.is_none_or(|namespace| is_terminating(&namespace)) {
            return Ok(Action::AwaitChange);
        }
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                namespace: Some(key.name.clone()),
                ..ObjectMeta::default()
            },
            ..ServiceAccount::default()
        };
        match self.api.create(&key.name, account).await {
            Err(status) if status.reason() == Reason::AlreadyExists => {}
            Err(status) if is_namespace_terminating(&status) => {}
            outcome => drop(outcome?),
        }
        Ok(Action::AwaitChange)
    }
}
