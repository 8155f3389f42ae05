//! What a server serves: each resource in the version that its group prefers.

use std::collections::BTreeMap;

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

/// What a server serves, as far as it tells.
#[derive(Debug, Default)]
pub struct Catalogue {
    /// All resources, without subresources.
    pub found: Vec<Discovered>,
    /// Groups and versions of which it does not tell, by `group/version`.
    pub failed: BTreeMap<String, Status>,
}

impl Catalogue {
    /// Whether it does not tell of a part of a group.
    pub fn is_incomplete(&self, group: &str) -> bool {
        self.failed.keys().any(|failed| failed.split('/').next() == Some(group))
    }

    /// All of it, or in upstream's words what is missing.
    ///
    /// # Errors
    /// Some group or version did not answer.
    pub fn complete(&self) -> Result<(), Status> {
        if self.failed.is_empty() {
            return Ok(());
        }
        let each: Vec<String> =
            self.failed.iter().map(|(name, status)| format!("{name}: {status}")).collect();
        let (count, each) = (each.len(), each.join(", "));
        Err(Status::unavailable(format!(
            "Discovery failed for some groups, {count} failing: unable to retrieve the complete list of server APIs: {each}"
        )))
    }
}

/// All that a server serves. Who must not miss anything looks at what failed.
///
/// # Errors
/// The server's Status where it does not tell its groups.
pub async fn discover(client: &Client) -> Result<Catalogue, Status> {
    let groups: Groups = serde_json::from_value(client.read("/apis", "").await?).map_err(Status::internal)?;
    let mut catalogue = Catalogue::default();
    let found = &mut catalogue.found;
    let core = read(client, "/api/v1").await?;
    add(found, "", "v1", core);
    for group in groups.groups {
        let preferred = group.preferred_version.map(|preferred| preferred.version);
        let others = group.versions.into_iter().map(|v| v.version).filter(|v| preferred.as_ref() != Some(v));
        let versions: Vec<String> = preferred.iter().cloned().chain(others).collect();
        for version in versions {
            match read(client, &format!("/apis/{}/{version}", group.name)).await {
                Ok(resources) => add(found, &group.name, &version, resources),
                Err(status) => {
                    debug!(group = group.name, version, %status, "not discovered");
                    catalogue.failed.insert(format!("{}/{version}", group.name), status);
                }
            }
        }
    }
    Ok(catalogue)
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
        let catalogue = discover(&fake.client()).await.expect("discovered");
        assert!(catalogue.is_incomplete("broken") && !catalogue.is_incomplete("a"));
        assert!(catalogue.complete().is_err_and(|status| status.to_string().contains("broken/v1: ")));
        let names: Vec<_> =
            catalogue.found.iter().map(|d| (d.resource.as_str(), d.version.as_str())).collect();
        assert_eq!(names, [("pods", "v1"), ("x", "v1"), ("y", "v1beta1")]);
    }
}
