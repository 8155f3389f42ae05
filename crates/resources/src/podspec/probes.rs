//! Checks of probes and lifecycle handlers.

use coracle_meta::field::{ErrorList, Path};
use coracle_meta::names;
use k8s_openapi::api::core::v1::{
    ExecAction, GRPCAction, HTTPGetAction, Lifecycle, LifecycleHandler, Probe, SleepAction, TCPSocketAction,
};

use crate::check::{named, non_negative, one_of, port, port_or_name};
use crate::common::text;

/// Checks a liveness or startup probe.
pub(crate) fn strict(probe: Option<&Probe>, path: &Path, errs: &mut ErrorList) {
    let Some(probe) = probe else { return };
    common(probe, path, errs);
    if probe.success_threshold.unwrap_or(0) != 1 {
        errs.invalid(path.child("successThreshold"), probe.success_threshold.unwrap_or(0), "must be 1");
    }
}

/// Checks a readiness probe.
pub(crate) fn readiness(probe: Option<&Probe>, path: &Path, errs: &mut ErrorList) {
    let Some(probe) = probe else { return };
    common(probe, path, errs);
    if let Some(seconds) = probe.termination_grace_period_seconds {
        let at = path.child("terminationGracePeriodSeconds");
        errs.invalid(at, seconds, "must not be set for readinessProbes");
    }
}

fn common(probe: &Probe, path: &Path, errs: &mut ErrorList) {
    let handler = Handler {
        exec: probe.exec.as_ref(),
        http_get: probe.http_get.as_ref(),
        tcp_socket: probe.tcp_socket.as_ref(),
        grpc: probe.grpc.as_ref(),
        sleep: None,
    };
    handler.check(0, path, errs);
    for (name, value) in [
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("periodSeconds", probe.period_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        non_negative(errs, &path.child(name), i64::from(value.unwrap_or(0)));
    }
    if let Some(seconds) = probe.termination_grace_period_seconds.filter(|s| *s <= 0) {
        errs.invalid(path.child("terminationGracePeriodSeconds"), seconds, "must be greater than 0");
    }
}

/// Checks lifecycle hooks of a pod with a grace period.
pub(crate) fn lifecycle(lifecycle: Option<&Lifecycle>, grace: i64, path: &Path, errs: &mut ErrorList) {
    let Some(lifecycle) = lifecycle else { return };
    for (name, hook) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
        if let Some(hook) = hook {
            Handler::of(hook).check(grace, &path.child(name), errs);
        }
    }
}

/// One action out of several.
struct Handler<'a> {
    exec: Option<&'a ExecAction>,
    http_get: Option<&'a HTTPGetAction>,
    tcp_socket: Option<&'a TCPSocketAction>,
    grpc: Option<&'a GRPCAction>,
    sleep: Option<&'a SleepAction>,
}

impl<'a> Handler<'a> {
    fn of(hook: &'a LifecycleHandler) -> Self {
        Self {
            exec: hook.exec.as_ref(),
            http_get: hook.http_get.as_ref(),
            tcp_socket: hook.tcp_socket.as_ref(),
            grpc: None,
            sleep: hook.sleep.as_ref(),
        }
    }

    fn check(&self, grace: i64, path: &Path, errs: &mut ErrorList) {
        let mut handlers = 0;
        let mut first = |name: &str, errs: &mut ErrorList| {
            handlers += 1;
            if handlers > 1 {
                errs.forbidden(path.child(name), "may not specify more than 1 handler type");
            }
            handlers == 1
        };
        if let Some(action) = self.exec
            && first("exec", errs)
            && action.command.as_ref().is_none_or(Vec::is_empty)
        {
            errs.required(path.child("exec").child("command"), "");
        }
        if let Some(action) = self.http_get
            && first("httpGet", errs)
        {
            http_get(action, &path.child("httpGet"), errs);
        }
        if let Some(action) = self.tcp_socket
            && first("tcpSocket", errs)
        {
            port_or_name(errs, &path.child("tcpSocket").child("port"), &action.port);
        }
        if let Some(action) = self.grpc
            && first("grpc", errs)
        {
            port(errs, &path.child("grpc").child("port"), action.port);
        }
        if let Some(action) = self.sleep
            && first("sleep", errs)
            && !(0..=grace).contains(&action.seconds)
        {
            let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
            errs.invalid(path.child("sleep"), action.seconds, why);
        }
        if handlers == 0 {
            errs.required(path, "must specify a handler type");
        }
    }
}

fn http_get(action: &HTTPGetAction, path: &Path, errs: &mut ErrorList) {
    if text(action.path.as_ref()).is_empty() {
        errs.required(path.child("path"), "");
    }
    port_or_name(errs, &path.child("port"), &action.port);
    one_of(errs, &path.child("scheme"), text(action.scheme.as_ref()), &["HTTP", "HTTPS"]);
    for header in action.http_headers.iter().flatten() {
        named(errs, &path.child("httpHeaders"), &header.name, names::http_header_name);
    }
}
