//! Images.

use crate::{v1, wire};

impl From<wire::ImageSpec> for v1::ImageSpec {
    fn from(i: wire::ImageSpec) -> Self {
        Self { image: i.image, annotations: i.annotations }
    }
}

impl From<v1::ImageSpec> for wire::ImageSpec {
    fn from(i: v1::ImageSpec) -> Self {
        Self {
            user_specified_image: i.image.clone(),
            image: i.image,
            annotations: i.annotations,
            ..Self::default()
        }
    }
}

impl From<v1::Image> for wire::Image {
    fn from(i: v1::Image) -> Self {
        Self {
            id: i.id,
            repo_tags: i.repo_tags,
            repo_digests: i.repo_digests,
            size: i.size,
            uid: i.uid.map(|value| wire::Int64Value { value }),
            username: i.username,
            spec: None,
            pinned: i.pinned,
        }
    }
}

impl From<wire::Image> for v1::Image {
    fn from(i: wire::Image) -> Self {
        Self {
            id: i.id,
            repo_tags: i.repo_tags,
            repo_digests: i.repo_digests,
            size: i.size,
            uid: i.uid.map(|v| v.value),
            username: i.username,
            pinned: i.pinned,
        }
    }
}

impl From<wire::AuthConfig> for v1::AuthConfig {
    fn from(a: wire::AuthConfig) -> Self {
        Self {
            username: a.username,
            password: a.password,
            auth: a.auth,
            server_address: a.server_address,
            identity_token: a.identity_token,
            registry_token: a.registry_token,
        }
    }
}

impl From<v1::AuthConfig> for wire::AuthConfig {
    fn from(a: v1::AuthConfig) -> Self {
        Self {
            username: a.username,
            password: a.password,
            auth: a.auth,
            server_address: a.server_address,
            identity_token: a.identity_token,
            registry_token: a.registry_token,
        }
    }
}
