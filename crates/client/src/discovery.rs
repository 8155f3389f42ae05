//! What a server serves: each resource in the version that its group prefers.

use coracle_meta::Status;
use serde::Deserialize;
use tracing::debug;

use crate::api::Client;

/// A resource that a server serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    /// API group; empty for core.
    pub group: String,
    /// The group's preferred version, or the first that has the resource.
    pub version: String,
    /// Plural.
    pub resource: String,
    /// Kind in CamelCase.
    pub kind: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// What can be done with it.
    pub verbs: Vec<String>,
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    name: String,
    versions: Vec<Version>,
    preferred_version: Option<Version>,
}

#[derive(Deserialize)]
struct Groups {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Resource {
    name: String,
    kind: String,
    namespaced: bool,
    #[serde(default)]
    verbs: Vec<String>,
}

#[derive(Deserialize)]
struct Resources {
    #[serde(default)]
    resources: Vec<Resource>,
}

/// All resources, without subresources. Groups whose server does not answer are left out.
///
/// # Errors
/// The server's Status where it does not tell its groups.
pub async fn discover(client: &Client) -> Result<Vec<Discovered>, Status> {
    let groups: Groups = serde_json::from_value(client.read("/apis", "").await?).map_err(Status::internal)?;
    let mut found: Vec<Discovered> = Vec::new();
    let core = read(client, "/api/v1").await?;
    add(&mut found, "", "v1", core);
    for group in groups.groups {
        let preferred = group.preferred_version.map(|preferred| preferred.version);
        let others = group.versions.into_iter().map(|v| v.version).filter(|v| preferred.as_ref() != Some(v));
        let versions: Vec<String> = preferred.iter().cloned().chain(others).collect();
        for version in versions {
            match read(client, &format!("/apis/{}/{version}", group.name)).await {
                Ok(resources) => add(&mut found, &group.name, &version, resources),
                Err(status) => debug!(group = group.name, version, %status, "not discovered"),
            }
        }
    }
    Ok(found)
}

async fn read(client: &Client, path: &str) -> Result<Resources, Status> {
    serde_json::from_value(client.read(path, "").await?).map_err(Status::internal)
}

fn add(found: &mut Vec<Discovered>, group: &str, version: &str, list: Resources) {
    for resource in list.resources.into_iter().filter(|resource| !resource.name.contains('/')) {
        if found.iter().any(|known| known.group == group && known.resource == resource.name) {
            continue;
        }
        found.push(Discovered {
            group: group.to_owned(),
            version: version.to_owned(),
            resource: resource.name,
            kind: resource.kind,
            namespaced: resource.namespaced,
            verbs: resource.verbs,
        });
    }
}

#[cfg(test)]
mod tests {
    use coracle_stdx::Clock;
    use serde_json::json;

    use super::*;
    use crate::testing::FakeTransport;

    #[tokio::test]
    async fn each_resource_is_found_in_the_version_its_group_prefers() {
        let fake = FakeTransport::new(Clock::system());
        let resource =
            |name: &str| json!({ "name": name, "kind": "K", "namespaced": true, "verbs": ["list"] });
        fake.serve_path("/api/v1", json!({ "resources": [resource("pods"), resource("pods/status")] }));
        fake.serve_path("/apis", json!({ "groups": [
            { "name": "a", "versions": [{ "version": "v1beta1" }, { "version": "v1" }],
              "preferredVersion": { "version": "v1" } },
            { "name": "broken", "versions": [{ "version": "v1" }], "preferredVersion": { "version": "v1" } }] }));
        fake.serve_path("/apis/a/v1", json!({ "resources": [resource("x")] }));
        fake.serve_path("/apis/a/v1beta1", json!({ "resources": [resource("x"), resource("y")] }));
        let found = discover(&fake.client()).await.expect("discovered");
        let names: Vec<_> = found.iter().map(|d| (d.resource.as_str(), d.version.as_str())).collect();
        assert_eq!(names, [("pods", "v1"), ("x", "v1"), ("y", "v1beta1")]);
    }
}
