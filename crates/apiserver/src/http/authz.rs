//! Authorization of HTTP requests.

use std::sync::Arc;

use coracle_auth::{Attributes, Decision, UserInfo};
use coracle_meta::Status;

use super::info::Info;
use crate::server::Server;

/// Checks that the user may do what the request asks; yields why.
///
/// # Errors
/// 403 with upstream's text.
pub(crate) async fn check(
    server: &Server,
    user: &Arc<UserInfo>,
    info: &Info<'_>,
    path: &str,
    (field_selector, label_selector): (&str, &str),
) -> Result<String, Status> {
    if user.in_group(coracle_auth::SYSTEM_MASTERS) {
        return Ok(String::new());
    }
    let attributes = attributes(user, info, path, (field_selector, label_selector));
    match server.decide(&attributes).await {
        (Decision::Allow, reason) => Ok(reason),
        (_, reason) => Err(attributes.forbidden(&reason)),
    }
}

/// What the request asks, as authorizers see it.
pub(crate) fn attributes(
    user: &UserInfo,
    info: &Info<'_>,
    path: &str,
    (field_selector, label_selector): (&str, &str),
) -> Attributes {
    let collection = matches!(info.verb.as_str(), "list" | "watch" | "deletecollection");
    let field_selector = if collection { field_selector } else { "" };
    let label_selector = if collection { label_selector } else { "" };
    let name = if info.name.is_empty() { name_in(field_selector) } else { info.name };
    // Paths of discovery are no resources, though they name a group.
    let (group, version) = if info.is_resource { (info.group, info.version) } else { ("", "") };
    Attributes {
        user: user.clone(),
        verb: info.verb.clone(),
        is_resource: info.is_resource,
        group: group.to_owned(),
        version: version.to_owned(),
        resource: info.resource.to_owned(),
        subresource: info.subresource.to_owned(),
        namespace: info.namespace.to_owned(),
        name: name.to_owned(),
        path: path.to_owned(),
        field_selector: field_selector.to_owned(),
        label_selector: label_selector.to_owned(),
    }
}

/// The name that a selector of `metadata.name` alone asks for; else empty.
pub(crate) fn name_in(field_selector: &str) -> &str {
    let name = field_selector.strip_prefix("metadata.name=").unwrap_or("");
    if name.contains([',', '=', '!']) { "" } else { name }
}
