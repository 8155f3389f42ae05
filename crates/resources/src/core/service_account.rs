//! ServiceAccount: an identity for pods.

use k8s_openapi::api::core::v1::{ObjectReference, ServiceAccount};

use crate::def::{Context, ResourceDef, Strategy, Subresource, Typed};

pub(super) static DEF: ResourceDef = ResourceDef {
    short_names: &["sa"],
    subresources: &[Subresource::Token],
    returns_deleted: true,
    ..ResourceDef::new::<ServiceAccount>("serviceaccount", &Typed::<ServiceAccount, _>::new(ServiceAccounts))
};

struct ServiceAccounts;

impl Strategy<ServiceAccount> for ServiceAccounts {
    fn prepare_create(&self, _: Context<'_>, obj: &mut ServiceAccount) {
        only_names(obj);
    }

    fn prepare_update(&self, _: Context<'_>, new: &mut ServiceAccount, _: &ServiceAccount) {
        only_names(new);
    }

    fn warnings(&self, new: &ServiceAccount, old: Option<&ServiceAccount>) -> Vec<String> {
        const ENFORCE: &str = "kubernetes.io/enforce-mountable-secrets";
        let set = |account: &ServiceAccount| {
            account.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(ENFORCE))
        };
        if set(new) && !old.is_some_and(set) {
            return vec![format!(
                "metadata.annotations[{ENFORCE}]: deprecated in v1.32+; prefer separate namespaces to \
                 isolate access to mounted secrets"
            )];
        }
        Vec::new()
    }
}

/// Of the secrets only the names are kept.
fn only_names(account: &mut ServiceAccount) {
    for secret in account.secrets.iter_mut().flatten() {
        *secret = ObjectReference { name: secret.name.take(), ..ObjectReference::default() };
    }
}
