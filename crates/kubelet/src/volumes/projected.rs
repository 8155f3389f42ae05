//! projected: several sources in one directory, service account tokens among them.

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ProjectedVolumeSource, ServiceAccountTokenProjection, Volume, VolumeProjection,
};

use super::atomic_writer::{self, File, Payload};
use super::config_map::DEFAULT_MODE;
use super::{Mounted, SetUp, VolumeContext, VolumeKind, config_map, downward_api, mount_tmpfs, secret};
use crate::objects::Reference;
use crate::pod::{earliest, spec};

pub(super) struct Projected;

/// Whole seconds a token lives when nothing is said.
const TOKEN_LIFE: i64 = 3607;

async fn token(
    cx: &VolumeContext,
    source: &ServiceAccountTokenProjection,
    mode: i32,
) -> Result<(Payload, Timestamp), String> {
    let life = source.expiration_seconds.unwrap_or(TOKEN_LIFE);
    let audience = source.audience.as_deref().filter(|a| !a.is_empty());
    let issued =
        cx.tokens.get(&cx.pod, audience, life).await.map_err(|s| format!("failed to fetch token: {s}"))?;
    // A token is for one user: when the pod's containers share one, the file is theirs, else the group's.
    let user = common_user(cx);
    let mode = match (cx.fs_group(), user) {
        (Some(_), _) => 0o600,
        (None, Some(_)) => 0o600,
        (None, None) => mode.unsigned_abs(),
    };
    let file = File { data: issued.token.clone().into_bytes(), mode, uid: user };
    Ok((Payload::from([(source.path.clone(), file)]), issued.renew_at))
}

/// The user that all containers run as, if they say so and agree.
fn common_user(cx: &VolumeContext) -> Option<u32> {
    let shared = spec(&cx.pod).security_context.as_ref().and_then(|s| s.run_as_user);
    let mut users = crate::pod::containers(&cx.pod)
        .map(|(c, _)| c.security_context.as_ref().and_then(|s| s.run_as_user).or(shared));
    let first = users.next()??;
    users.all(|u| u == Some(first)).then_some(u32::try_from(first).ok()?)
}

async fn one(
    cx: &VolumeContext,
    source: &VolumeProjection,
    mode: i32,
) -> Result<(Payload, Option<Timestamp>), String> {
    if let Some(s) = &source.config_map {
        let files = config_map::payload(cx, &s.name, s.items.as_ref(), mode, s.optional == Some(true));
        return Ok((files.await?, None));
    }
    if let Some(s) = &source.secret {
        let files = secret::payload(cx, &s.name, s.items.as_ref(), mode, s.optional == Some(true));
        return Ok((files.await?, None));
    }
    if let Some(s) = &source.downward_api {
        return Ok((downward_api::payload(cx, s.items.as_ref(), mode)?, None));
    }
    if let Some(s) = &source.service_account_token {
        let (files, renew) = token(cx, s, mode).await?;
        return Ok((files, Some(renew)));
    }
    Err("this projected source is not supported".to_owned())
}

async fn all(
    cx: &VolumeContext,
    source: &ProjectedVolumeSource,
) -> Result<(Payload, Option<Timestamp>), String> {
    let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
    let mut files = Payload::new();
    let mut renew = None;
    let sources = source.sources.as_deref().unwrap_or_default();
    for result in futures::future::join_all(sources.iter().map(|s| one(cx, s, mode))).await {
        let (payload, at) = result?;
        files.extend(payload);
        renew = earliest(renew, at);
    }
    Ok((files, renew))
}

#[async_trait]
impl VolumeKind for Projected {
    fn is(&self, volume: &Volume) -> bool {
        volume.projected.is_some()
    }

    async fn set_up(&self, cx: &VolumeContext, volume: &Volume) -> Result<SetUp, String> {
        let source = volume.projected.as_ref().ok_or("not projected")?;
        let (files, renew_at) = all(cx, source).await?;
        atomic_writer::check_paths(&files)?;
        let path = cx.path("projected", &volume.name);
        mount_tmpfs(&path, None)?;
        atomic_writer::write(&path, &files, cx.fs_group()).map_err(|e| e.to_string())?;
        Ok(SetUp { mounted: Mounted { path, read_only: true, group: None }, renew_at })
    }

    fn references(&self, namespace: &str, volume: &Volume) -> Vec<Reference> {
        let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
        sources
            .filter_map(|s| {
                let map = s.config_map.as_ref().map(|c| Reference::config_map(namespace, &c.name));
                map.or_else(|| s.secret.as_ref().map(|c| Reference::secret(namespace, &c.name)))
            })
            .collect()
    }

    fn is_live(&self) -> bool {
        true
    }
}
