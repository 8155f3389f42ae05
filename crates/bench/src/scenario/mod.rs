//! The scenarios, one file each kind of work.

pub mod api;
pub mod pod_start;
pub mod schedule;
pub mod watch;

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use crate::http::{Call, Connection};
use crate::target::{Failure, Target};

/// A namespace of a run's own.
pub struct Namespace {
    target: Arc<Target>,
    /// Its name.
    pub name: String,
}

impl Namespace {
    /// Makes `bench-<run>` with its service account `default` (nothing else makes it when no controllers
    /// run).
    ///
    /// # Errors
    /// The server refuses.
    pub async fn make(target: &Arc<Target>, run: &str) -> Result<Self, Failure> {
        let name = format!("bench-{run}");
        let mut connection = Connection::open(target).await?;
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        connection.ensure(Call::post("/api/v1/namespaces", namespace.to_string())).await?;
        let account =
            json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
        let path = format!("/api/v1/namespaces/{name}/serviceaccounts");
        connection.ensure(Call::post(path, account.to_string())).await?;
        Ok(Self { target: target.clone(), name })
    }

    /// The path of a resource in it.
    pub fn path(&self, resource: &str) -> String {
        format!("/api/v1/namespaces/{}/{resource}", self.name)
    }

    /// Deletes what the run made. Best effort: the figures are known by then.
    pub async fn clean(self, resources: &[&str]) {
        let Ok(mut connection) = Connection::open(&self.target).await else { return };
        for resource in resources {
            let call = Call::delete(self.path(resource));
            let _ = tokio::time::timeout(Duration::from_secs(120), connection.send(call, false)).await;
        }
        let call = Call::delete(format!("/api/v1/namespaces/{}", self.name));
        let _ = tokio::time::timeout(Duration::from_secs(10), connection.send(call, false)).await;
    }
}

/// The newest resourceVersion of a list that should be short.
///
/// # Errors
/// The server refuses.
pub async fn resource_version(connection: &mut Connection, path: &str) -> Result<String, Failure> {
    let list = connection.json(Call::get(format!("{path}?limit=1"))).await?;
    let version = list["metadata"]["resourceVersion"].as_str();
    version.map(str::to_owned).ok_or_else(|| format!("the list at {path} has no resourceVersion"))
}
