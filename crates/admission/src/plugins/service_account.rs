//! ServiceAccount: gives every pod an account, its token as a volume, and its image pull secrets.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_meta::{Object, Status};
use k8s_openapi::api::core::v1::{
    ConfigMapProjection, Container, DownwardAPIProjection, DownwardAPIVolumeFile, KeyToPath,
    LocalObjectReference, ObjectFieldSelector, Pod, PodSpec, ProjectedVolumeSource,
    ServiceAccount as Account, ServiceAccountTokenProjection, Volume, VolumeMount, VolumeProjection,
};

use crate::{Environment, Operation, Plugin, Request};

const DEFAULT: &str = "default";
const MIRROR: &str = "kubernetes.io/config.mirror";
const ENFORCE: &str = "kubernetes.io/enforce-mountable-secrets";
/// Begin of the name of the token's volume.
const VOLUME_PREFIX: &str = "kube-api-access-";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Lifetime of the token; the odd seconds tell such tokens apart.
const TOKEN_SECONDS: i64 = 3607;
/// The default account of a new namespace is waited for as long as upstream does.
const ATTEMPTS: u32 = 10;
const RETRY: Duration = Duration::from_millis(150);

/// The plugin.
pub(super) struct ServiceAccount;

#[async_trait]
impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn handles(&self, request: &Request<'_>) -> bool {
        request.is("", "pods") && request.operation == Operation::Create
    }

    async fn mutate(&self, env: &Environment, request: &mut Request<'_>) -> Result<(), Status> {
        let Some(pod) = request.object_as::<Pod>() else { return Ok(()) };
        if pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(MIRROR)) {
            return mirror_refusal(pod).map_or(Ok(()), |why| Err(request.forbidden(why)));
        }
        let spec = pod.spec.as_ref();
        let named = spec.and_then(|s| s.service_account_name.as_deref()).filter(|name| !name.is_empty());
        let name = named.unwrap_or(DEFAULT).to_owned();
        let Some(found) = account(env, request.namespace, &name).await else {
            let why = format!(
                "error looking up service account {}/{name}: serviceaccount {name:?} not found",
                request.namespace
            );
            return Err(request.forbidden(&why));
        };
        let Some(account) = found.downcast::<Account>() else { return Ok(()) };
        let refusal = request.object_mut::<Pod>().and_then(|pod| {
            let spec = pod.spec.get_or_insert_default();
            spec.service_account_name = Some(name.clone());
            spec.service_account = Some(name.clone());
            if automount(account, spec) {
                mount_token(spec);
            }
            if spec.image_pull_secrets.as_ref().is_none_or(Vec::is_empty) {
                spec.image_pull_secrets = account.image_pull_secrets.clone().filter(|s| !s.is_empty());
            }
            forbidden_secret(account, spec)
        });
        refusal.map_or(Ok(()), |why| Err(request.forbidden(&why)))
    }
}

/// Why a copy of a static pod is refused.
fn mirror_refusal(pod: &Pod) -> Option<&'static str> {
    let spec = pod.spec.as_ref()?;
    if spec.service_account_name.as_ref().is_some_and(|name| !name.is_empty()) {
        return Some("a mirror pod may not reference service accounts");
    }
    let secret = |volume: &Volume| volume.secret.is_some();
    if spec.volumes.iter().flatten().any(secret) {
        return Some("a mirror pod may not reference secrets");
    }
    let token = |volume: &Volume| {
        let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
        sources.into_iter().any(|source| source.service_account_token.is_some())
    };
    if spec.volumes.iter().flatten().any(token) {
        return Some("a mirror pod may not use ServiceAccountToken volume projections");
    }
    None
}

/// The account. A namespace's default account is made a moment after the namespace, so it is waited for.
async fn account(env: &Environment, namespace: &str, name: &str) -> Option<Arc<dyn Object>> {
    let attempts = if name == DEFAULT && !namespace.is_empty() { ATTEMPTS } else { 1 };
    for attempt in 0..attempts {
        if attempt > 0 {
            tokio::time::sleep(RETRY).await;
        }
        let found = env.reader.get("", "serviceaccounts", namespace, name);
        if found.is_some() {
            return found;
        }
    }
    None
}

/// The pod's word counts before the account's; the default is yes.
fn automount(account: &Account, spec: &PodSpec) -> bool {
    spec.automount_service_account_token.or(account.automount_service_account_token).unwrap_or(true)
}

fn mount_token(spec: &mut PodSpec) {
    let present = spec.volumes.iter().flatten().find(|v| v.name.starts_with(VOLUME_PREFIX));
    let present = present.map(|v| v.name.clone());
    let name =
        present.clone().unwrap_or_else(|| format!("{VOLUME_PREFIX}{}", coracle_stdx::random_suffix(5)));
    let mut needed = false;
    let inits = spec.init_containers.iter_mut().flatten();
    for container in inits.chain(spec.containers.iter_mut()) {
        needed |= mount(container, &name);
    }
    if needed && present.is_none() {
        spec.volumes.get_or_insert_default().push(token_volume(name));
    }
}

/// Mounts the volume unless the container has something at that path; tells whether it did.
fn mount(container: &mut Container, volume: &str) -> bool {
    let mounts = container.volume_mounts.get_or_insert_default();
    if mounts.iter().any(|m| m.mount_path == MOUNT_PATH) {
        return false;
    }
    mounts.push(VolumeMount {
        name: volume.to_owned(),
        read_only: Some(true),
        mount_path: MOUNT_PATH.to_owned(),
        ..VolumeMount::default()
    });
    true
}

fn token_volume(name: String) -> Volume {
    let token = VolumeProjection {
        service_account_token: Some(ServiceAccountTokenProjection {
            path: "token".to_owned(),
            expiration_seconds: Some(TOKEN_SECONDS),
            audience: None,
        }),
        ..VolumeProjection::default()
    };
    let authority = VolumeProjection {
        config_map: Some(ConfigMapProjection {
            name: "kube-root-ca.crt".to_owned(),
            items: Some(vec![KeyToPath { key: "ca.crt".to_owned(), path: "ca.crt".to_owned(), mode: None }]),
            optional: None,
        }),
        ..VolumeProjection::default()
    };
    let namespace = VolumeProjection {
        downward_api: Some(DownwardAPIProjection {
            items: Some(vec![DownwardAPIVolumeFile {
                path: "namespace".to_owned(),
                field_ref: Some(ObjectFieldSelector {
                    api_version: Some("v1".to_owned()),
                    field_path: "metadata.namespace".to_owned(),
                }),
                ..DownwardAPIVolumeFile::default()
            }]),
        }),
        ..VolumeProjection::default()
    };
    let sources = Some(vec![token, authority, namespace]);
    let projected = ProjectedVolumeSource { sources, default_mode: Some(0o644) };
    Volume { name, projected: Some(projected), ..Volume::default() }
}

/// Why a pod is refused by an account that limits the secrets of its pods (an old annotation).
fn forbidden_secret(account: &Account, spec: &PodSpec) -> Option<String> {
    let limited = account.metadata.annotations.as_ref().and_then(|a| a.get(ENFORCE));
    if limited.is_none_or(|value| value != "true") {
        return None;
    }
    let owner = account.metadata.name.as_deref().unwrap_or("");
    let listed = |name: &str| account.secrets.iter().flatten().any(|s| s.name.as_deref() == Some(name));
    for secret in spec.volumes.iter().flatten().filter_map(|v| v.secret.as_ref()) {
        let name = secret.secret_name.as_deref().unwrap_or("");
        if !listed(name) {
            return Some(format!(
                "volume with secret.secretName={name:?} is not allowed because service account {owner} \
                 does not reference that secret"
            ));
        }
    }
    let inits = spec.init_containers.iter().flatten().map(|c| ("init container", c));
    for (what, container) in inits.chain(spec.containers.iter().map(|c| ("container", c))) {
        for var in container.env.iter().flatten() {
            let secret = var.value_from.as_ref().and_then(|f| f.secret_key_ref.as_ref());
            if let Some(secret) = secret.filter(|s| !listed(&s.name)) {
                return Some(format!(
                    "{what} {} with envVar {} referencing secret.secretName={:?} is not allowed because \
                     service account {owner} does not reference that secret",
                    container.name, var.name, secret.name
                ));
            }
        }
    }
    let allowed =
        |pull: &LocalObjectReference| account.image_pull_secrets.iter().flatten().any(|p| p == pull);
    let refused = spec.image_pull_secrets.iter().flatten().find(|pull| !allowed(pull));
    refused.map(|pull| {
        format!(
            "imagePullSecrets.name={:?} is not allowed because service account {owner} does not reference \
             that imagePullSecret",
            pull.name
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::testing::{admit, pod};

    fn object(name: &str) -> Arc<dyn Object> {
        let mut account = Account::default();
        account.metadata.name = Some(name.to_owned());
        account.metadata.namespace = Some("ns".to_owned());
        Arc::new(account)
    }

    #[test]
    fn missing_account_is_named() {
        let mut pod = pod("a", |spec| spec.service_account_name = Some("nosuch".to_owned()));
        let refusal = admit(&ServiceAccount, &[], &mut pod).expect_err("there is no such account");
        let why = "pods \"a\" is forbidden: error looking up service account ns/nosuch: serviceaccount \
                   \"nosuch\" not found";
        assert_eq!(refusal.message(), why);
    }

    #[test]
    fn token_is_mounted_into_every_container() {
        let mut object_ = pod("a", |_| {});
        admit(&ServiceAccount, &[object(DEFAULT)], &mut object_).expect("no refusal");
        let spec = object_.downcast::<Pod>().and_then(|p| p.spec.as_ref()).expect("a pod");
        assert_eq!(spec.service_account_name.as_deref(), Some(DEFAULT));
        let volume = &spec.volumes.as_ref().expect("a volume")[0];
        assert!(volume.name.starts_with(VOLUME_PREFIX) && volume.name.len() == VOLUME_PREFIX.len() + 5);
        let mount = &spec.containers[0].volume_mounts.as_ref().expect("a mount")[0];
        assert_eq!((mount.name.as_str(), mount.mount_path.as_str()), (volume.name.as_str(), MOUNT_PATH));
    }
}
