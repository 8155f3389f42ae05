//! Windows host processes: all containers of a pod are, or none is.

use coracle_meta::field::{ErrorList, Path};
use k8s_openapi::api::core::v1::{Container, PodSpec};

/// Checks `hostProcess` of the pod and its containers against each other.
pub(super) fn host_process(spec: &PodSpec, path: &Path, errs: &mut ErrorList) {
    let options = spec.security_context.as_ref().and_then(|c| c.windows_options.as_ref());
    let pod = options.and_then(|o| o.host_process);
    let list = |field: &str, list: Option<&[Container]>| -> Vec<(Path, Option<bool>)> {
        let path = path.child(field);
        let own = |c: &Container| c.security_context.as_ref()?.windows_options.as_ref()?.host_process;
        list.unwrap_or_default().iter().enumerate().map(|(i, c)| (path.index(i), own(c))).collect()
    };
    let mut all = list("initContainers", spec.init_containers.as_deref());
    all.extend(list("containers", Some(&spec.containers)));
    for (i, container) in spec.ephemeral_containers.iter().flatten().enumerate() {
        let options = container.security_context.as_ref().and_then(|c| c.windows_options.as_ref());
        all.push((path.child("ephemeralContainers").index(i), options.and_then(|o| o.host_process)));
    }
    for (at, own) in &all {
        if let (Some(pod), Some(own)) = (pod, *own)
            && pod != own
        {
            let at = at.child("securityContext").child("windowsOptions").child("hostProcess");
            let why = format!("pod hostProcess value must be identical if both are specified, was {pod}");
            errs.invalid(at, own, why);
        }
    }
    let hosts = all.iter().filter(|(_, own)| own.or(pod) == Some(true)).count();
    if hosts == 0 {
        return;
    }
    if hosts != all.len() {
        let why =
            "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        errs.invalid(path, "", why);
    }
    if spec.host_network != Some(true) {
        let why = "hostNetwork must be true if pod contains any hostProcess containers";
        errs.invalid(path.child("hostNetwork"), false, why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(spec: serde_json::Value, expected: &str) {
        let spec: PodSpec = serde_json::from_value(spec).expect("a spec");
        let mut errs = ErrorList::new();
        host_process(&spec, &Path::new("spec"), &mut errs);
        assert_eq!(if errs.is_empty() { String::new() } else { errs.aggregate() }, expected);
    }

    #[test]
    fn host_processes_are_all_or_none_and_use_the_hosts_network() {
        let process = |own: bool| json!({ "windowsOptions": { "hostProcess": own } });
        let container = |own: bool| json!({ "name": "c", "securityContext": process(own) });
        check(json!({ "containers": [container(false)] }), "");
        check(json!({ "hostNetwork": true, "containers": [container(true)] }), "");
        let mixed = json!({ "hostNetwork": true, "containers": [container(true), container(false)] });
        let why = "spec: Invalid value: \"\": If pod contains any hostProcess containers then all \
                   containers must be HostProcess containers";
        check(mixed, why);
        let why = "spec.hostNetwork: Invalid value: false: hostNetwork must be true if pod contains any \
                   hostProcess containers";
        check(json!({ "securityContext": process(true), "containers": [{ "name": "c" }] }), why);
    }
}
