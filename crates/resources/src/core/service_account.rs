//! ServiceAccount: an identity for pods.

use k8s_openapi::api::core::v1::ServiceAccount;

use crate::def::{ResourceDef, Strategy, Subresource, Typed};

pub(super) static DEF: ResourceDef = ResourceDef {
    short_names: &["sa"],
    subresources: &[Subresource::Token],
    ..ResourceDef::new::<ServiceAccount>("serviceaccount", &Typed::<ServiceAccount, _>::new(ServiceAccounts))
};

struct ServiceAccounts;

impl Strategy<ServiceAccount> for ServiceAccounts {
    fn warnings(&self, new: &ServiceAccount, _: Option<&ServiceAccount>) -> Vec<String> {
        const ENFORCE: &str = "kubernetes.io/enforce-mountable-secrets";
        let annotations = new.metadata.annotations.as_ref();
        if annotations.is_some_and(|a| a.contains_key(ENFORCE)) {
            return vec![format!("metadata.annotations[{ENFORCE}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets")];
        }
        Vec::new()
    }
}
