//! Whether the server behind an APIService is available: what Service and endpoints say, and the condition.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::{APIService, APIServiceCondition};

const AVAILABLE: &str = "Available";

/// What was found out about an APIService.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    available: bool,
    reason: &'static str,
    message: String,
}

impl Finding {
    /// This server answers the group and version itself.
    pub(super) fn local() -> Self {
        let message = "Local APIServices are always available".to_owned();
        Self { available: true, reason: "Local", message }
    }

    /// The server has answered.
    pub(super) fn passed() -> Self {
        Self { available: true, reason: "Passed", message: "all checks passed".to_owned() }
    }

    /// The server has not answered as it should.
    pub(super) fn failed(message: String) -> Self {
        Self { available: false, reason: "FailedDiscoveryCheck", message }
    }

    /// Whether the condition is that it is available.
    pub(super) fn available(&self) -> bool {
        self.available
    }

    /// The reason of the condition.
    pub(super) fn reason(&self) -> &'static str {
        self.reason
    }
}

/// Whether the APIService says that its server is available.
pub(super) fn is_available(service: &APIService) -> bool {
    let mut conditions = service.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.any(|c| c.type_ == AVAILABLE && c.status == "True")
}

/// What can be said without asking the server; `None`: it has to be asked.
pub(super) fn judge(
    api: &APIService,
    service: Option<&Service>,
    slices: &[&EndpointSlice],
) -> Option<Finding> {
    let Some(to) = api.spec.as_ref().and_then(|s| s.service.as_ref()) else { return Some(Finding::local()) };
    let (name, namespace) = (to.name.as_deref().unwrap_or(""), to.namespace.as_deref().unwrap_or(""));
    let no = |reason, message| Some(Finding { available: false, reason, message });
    let Some(service) = service else {
        return no("ServiceNotFound", format!("service/{name} in {namespace:?} is not present"));
    };
    let spec = service.spec.as_ref();
    if spec.and_then(|s| s.type_.as_deref()) != Some("ClusterIP") {
        return None;
    }
    let port = to.port.unwrap_or(443);
    let found = spec.into_iter().flat_map(|s| s.ports.iter().flatten()).find(|p| p.port == port);
    let Some(found) = found else {
        let why = format!("service/{name} in {namespace:?} is not listening on port {port}");
        return no("ServicePortError", why);
    };
    if slices.is_empty() {
        let why = format!("cannot find endpointslices for service/{name} in {namespace:?}");
        return no("EndpointsNotFound", why);
    }
    let port_name = found.name.as_deref().unwrap_or("");
    let ready = |slice: &&EndpointSlice| {
        let is_ready = |e: &k8s_openapi::api::discovery::v1::Endpoint| {
            e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
        };
        let has_port = |p: &k8s_openapi::api::discovery::v1::EndpointPort| {
            p.name.as_deref() == Some(port_name) && p.port.is_some()
        };
        slice.endpoints.iter().flatten().any(is_ready) && slice.ports.iter().flatten().any(has_port)
    };
    if !slices.iter().any(ready) {
        let why = format!(
            "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
        );
        return no("MissingEndpoints", why);
    }
    None
}

/// The APIService with the finding as its condition; `None` when it says so already.
pub(super) fn noted(api: &APIService, finding: &Finding, now: Timestamp) -> Option<APIService> {
    let mut api = api.clone();
    let conditions = api.status.get_or_insert_default().conditions.get_or_insert_default();
    let status = if finding.available { "True" } else { "False" };
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let (reason, message) = (Some(finding.reason.to_owned()), Some(finding.message.clone()));
    match conditions.iter_mut().find(|c| c.type_ == AVAILABLE) {
        Some(c) if c.status == status && c.reason == reason && c.message == message => return None,
        Some(c) => {
            if c.status != status {
                c.status = status.to_owned();
                c.last_transition_time = Some(now);
            }
            (c.reason, c.message) = (reason, message);
        }
        None => conditions.push(APIServiceCondition {
            type_: AVAILABLE.to_owned(),
            status: status.to_owned(),
            reason,
            message,
            last_transition_time: Some(now),
        }),
    }
    Some(api)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn api() -> APIService {
        serde_json::from_value(json!({ "metadata": { "name": "v1.x" }, "spec": {
            "group": "x", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1,
            "service": { "namespace": "n", "name": "s", "port": 443 } } }))
        .expect("an APIService")
    }

    fn reason(service: Option<serde_json::Value>, slices: &[serde_json::Value]) -> Option<&'static str> {
        let service: Option<Service> = service.map(|s| serde_json::from_value(s).expect("a Service"));
        let slices: Vec<EndpointSlice> =
            slices.iter().map(|s| serde_json::from_value(s.clone()).expect("a slice")).collect();
        let slices: Vec<&EndpointSlice> = slices.iter().collect();
        judge(&api(), service.as_ref(), &slices).map(|f| f.reason())
    }

    #[test]
    fn service_port_and_endpoints_are_looked_at_before_the_server_is_asked() {
        let service = |port: i32| json!({ "metadata": {}, "spec": { "type": "ClusterIP", "ports": [{ "name": "h", "port": port }] } });
        let slice = |ready: bool, name: &str| {
            json!({ "metadata": {}, "addressType": "IPv4",
                "endpoints": [{ "addresses": ["10.0.0.1"], "conditions": { "ready": ready } }],
                "ports": [{ "name": name, "port": 8443 }] })
        };
        assert_eq!(reason(None, &[]), Some("ServiceNotFound"));
        assert_eq!(reason(Some(service(80)), &[]), Some("ServicePortError"));
        assert_eq!(reason(Some(service(443)), &[]), Some("EndpointsNotFound"));
        assert_eq!(reason(Some(service(443)), &[slice(false, "h")]), Some("MissingEndpoints"));
        assert_eq!(reason(Some(service(443)), &[slice(true, "other")]), Some("MissingEndpoints"));
        assert_eq!(reason(Some(service(443)), &[slice(true, "h")]), None);
        let alias = json!({ "metadata": {}, "spec": { "type": "ExternalName", "externalName": "h" } });
        assert_eq!(reason(Some(alias), &[]), None);
    }

    #[test]
    fn a_condition_moves_its_time_only_with_its_status() {
        let at = |s| Timestamp::from_second(s).expect("a time");
        let first = noted(&api(), &Finding::passed(), at(10)).expect("a change");
        assert!(noted(&first, &Finding::passed(), at(20)).is_none());
        let second = noted(&first, &Finding::local(), at(20)).expect("another reason");
        let third = noted(&second, &Finding::failed("x".into()), at(30)).expect("another status");
        let time = |api: &APIService| {
            let conditions = api.status.as_ref().and_then(|s| s.conditions.as_ref()).expect("conditions");
            conditions[0].last_transition_time.as_ref().expect("a time").0.as_second()
        };
        assert_eq!((time(&second), time(&third)), (10, 30));
        assert!(is_available(&second) && !is_available(&third));
    }
}
