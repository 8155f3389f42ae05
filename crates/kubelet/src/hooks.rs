//! Lifecycle hooks: exec, httpGet, sleep.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::context::Context;
use crate::http_get;

/// How long an `httpGet` hook may take.
const HTTP_LIMIT: Duration = Duration::from_secs(30);

/// Runs a hook to its end.
///
/// # Errors
/// Why it counts as failed.
pub async fn run(
    cx: &Context,
    container: &Container,
    id: &str,
    pod_ip: &str,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let shown = format!("[{}]", command.join(" "));
        let result = cx.runtime.exec_sync(id, command, 0).await.map_err(|e| e.to_string())?;
        if result.exit_code == 0 {
            return Ok(());
        }
        let output = String::from_utf8_lossy(&[result.stdout, result.stderr].concat()).into_owned();
        return Err(format!(
            "Exec lifecycle hook ({shown}) for Container {:?} failed - error: command '{}' exited with {}: \
             {output}",
            container.name,
            shown.trim_matches(['[', ']']),
            result.exit_code
        ));
    }
    if let Some(action) = &hook.http_get {
        let answer = http_get::get(container, action, pod_ip, "kube-lifecycle/1.36", HTTP_LIMIT).await?;
        return if answer.code >= 400 {
            Err(format!("HTTP lifecycle hook failed with statuscode: {}", answer.code))
        } else {
            Ok(())
        };
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs())).await;
        return Ok(());
    }
    Err("invalid handler: no action given".to_owned())
}
