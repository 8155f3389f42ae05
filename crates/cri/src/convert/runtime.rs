//! The runtime's own state, and its events.

use crate::v1::ContainerEventType;
use crate::{v1, wire};

/// Kinds of events by number.
pub(crate) const EVENTS: [ContainerEventType; 4] = [
    ContainerEventType::Created,
    ContainerEventType::Started,
    ContainerEventType::Stopped,
    ContainerEventType::Deleted,
];

impl From<v1::VersionResponse> for wire::VersionResponse {
    fn from(v: v1::VersionResponse) -> Self {
        Self {
            // The version of the kubelet's interface that this answers; it has never changed.
            version: "0.1.0".into(),
            runtime_name: v.runtime_name,
            runtime_version: v.runtime_version,
            runtime_api_version: v.runtime_api_version,
        }
    }
}

impl From<wire::VersionResponse> for v1::VersionResponse {
    fn from(v: wire::VersionResponse) -> Self {
        Self {
            runtime_name: v.runtime_name,
            runtime_version: v.runtime_version,
            runtime_api_version: v.runtime_api_version,
        }
    }
}

fn condition(kind: &str, reason: &str, problem: Option<String>) -> wire::RuntimeCondition {
    wire::RuntimeCondition {
        kind: kind.to_owned(),
        status: problem.is_none(),
        reason: if problem.is_some() { reason.to_owned() } else { String::new() },
        message: problem.unwrap_or_default(),
    }
}

impl From<v1::RuntimeStatus> for wire::StatusResponse {
    fn from(s: v1::RuntimeStatus) -> Self {
        let handler = |h: v1::RuntimeHandler| wire::RuntimeHandler {
            name: h.name,
            features: Some(wire::RuntimeHandlerFeatures {
                recursive_read_only_mounts: h.recursive_read_only_mounts,
                user_namespaces: h.user_namespaces,
            }),
        };
        Self {
            status: Some(wire::RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady", "ContainerRuntimeNotReady", s.runtime_not_ready),
                    condition("NetworkReady", "NetworkPluginNotReady", s.network_not_ready),
                ],
            }),
            info: Default::default(),
            runtime_handlers: s.handlers.into_iter().map(handler).collect(),
            features: Some(wire::RuntimeFeatures {
                supplemental_groups_policy: s.supplemental_groups_policy,
                user_namespaces_host_network: false,
            }),
        }
    }
}

impl From<wire::StatusResponse> for v1::RuntimeStatus {
    fn from(s: wire::StatusResponse) -> Self {
        let conditions = s.status.unwrap_or_default().conditions;
        let problem = |kind: &str| match conditions.iter().find(|c| c.kind == kind) {
            Some(c) if c.status => None,
            Some(c) if c.message.is_empty() => Some(c.reason.clone()),
            Some(c) => Some(c.message.clone()),
            None => Some(format!("the runtime does not tell {kind}")),
        };
        let handler = |h: wire::RuntimeHandler| {
            let features = h.features.unwrap_or_default();
            v1::RuntimeHandler {
                name: h.name,
                recursive_read_only_mounts: features.recursive_read_only_mounts,
                user_namespaces: features.user_namespaces,
            }
        };
        Self {
            runtime_not_ready: problem("RuntimeReady"),
            network_not_ready: problem("NetworkReady"),
            supplemental_groups_policy: s.features.is_some_and(|f| f.supplemental_groups_policy),
            handlers: s.runtime_handlers.into_iter().map(handler).collect(),
        }
    }
}

impl From<wire::ContainerEventResponse> for v1::ContainerEventResponse {
    fn from(e: wire::ContainerEventResponse) -> Self {
        let sandbox = e.pod_sandbox_status.unwrap_or_default();
        let kind = usize::try_from(e.container_event_type).ok().and_then(|n| EVENTS.get(n).copied());
        // An event about the sandbox itself names it twice.
        let container_id = if e.container_id == sandbox.id { String::new() } else { e.container_id };
        Self {
            container_id,
            pod_sandbox_id: sandbox.id,
            kind: kind.unwrap_or_default(),
            created_at: e.created_at,
            pod: sandbox.metadata.map(Into::into).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_hold_is_told_with_its_reason() {
        let status = v1::RuntimeStatus { network_not_ready: Some("no range".into()), ..Default::default() };
        let back = v1::RuntimeStatus::from(wire::StatusResponse::from(status));
        assert_eq!(back.runtime_not_ready, None);
        assert_eq!(back.network_not_ready.as_deref(), Some("no range"));
        let untold = v1::RuntimeStatus::from(wire::StatusResponse::default());
        assert!(untold.runtime_not_ready.is_some());
    }

    #[test]
    fn events_of_sandboxes_have_no_container() {
        let sandbox = wire::PodSandboxStatus { id: "s".into(), ..Default::default() };
        let mut event = wire::ContainerEventResponse {
            container_id: "s".into(),
            container_event_type: 2,
            pod_sandbox_status: Some(sandbox),
            ..Default::default()
        };
        let got = v1::ContainerEventResponse::from(event.clone());
        assert_eq!((got.container_id.as_str(), got.kind), ("", ContainerEventType::Stopped));
        event.container_id = "c".into();
        assert_eq!(v1::ContainerEventResponse::from(event).container_id, "c");
    }
}
