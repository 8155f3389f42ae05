//! `coracle apiserver`: the API server alone, with upstream's flags, to stand in for upstream's program.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coracle_apiserver::{
    ApiServer, AuditConfig, AuditPolicy, AuditSink, KubeletClient, Reloads, RequestLimits, Tls,
};
use coracle_auth::pki::{CertificateAuthority, Issue};
use coracle_auth::service_account::TokenIssuer;
use coracle_stdx::{Clock, Tasks};

use crate::audit_file::{AuditFile, Limits};
use crate::cli::ApiserverArgs;
use crate::cluster::{make_dir, node_ip};
use crate::error::Failure;
use crate::node::{ServerParts, server_config};
use crate::pki;
use crate::process::Signals;
use crate::reload::{self, CertificateFiles};
use crate::up::bind;

/// A file's text.
pub(crate) fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|e| Failure::file("read", path, &e))
}

/// Serves until SIGTERM or Ctrl-C. `flags` are shown to those who ask how it was started.
///
/// # Errors
/// A flag, file or port that cannot be used.
pub async fn run(args: ApiserverArgs, flags: BTreeMap<String, String>) -> Result<(), Failure> {
    let clock = Clock::system();
    // What others gave comes first, so that nothing is made when it cannot be used.
    let advertise = args.advertise_address.or_else(node_ip).unwrap_or(IpAddr::from([127, 0, 0, 1]));
    let tls = serving(&args, advertise, &clock)?;
    let issuer_url = &args.service_account_issuer;
    let audiences = match args.api_audiences.as_slice() {
        [] => vec![issuer_url.clone()],
        given => given.to_vec(),
    };
    let reloads = Arc::new(Reloads::default());
    let followed = &reloads.authentication;
    let authentication = args.authentication.read(&audiences, issuer_url, &clock, followed)?;
    let authorizers = args.authorization.authorizers(&reloads.authorization, &clock)?;
    let client_ca = args.client_ca_file.as_deref().map(read).transpose()?;
    let node_ports = port_range(&args.service_node_port_range)?;
    let given = args.service_account_signing_key_file.as_deref().map(read).transpose()?;
    let audit = audit(&args, &clock)?;
    let front_proxy = args.front_proxy.proxies()?;
    let proxy_client = args.front_proxy.own()?;
    let kubelet_client = kubelet_client(&args)?;
    let admission =
        coracle_admission::chosen(&args.enable_admission_plugins, &args.disable_admission_plugins);
    let admission = admission.map_err(Failure::usage)?;
    let keys: Vec<String> =
        args.service_account_key_file.iter().map(|f| read(f)).collect::<Result<_, _>>()?;
    let limits = limits(&args)?;
    let delay = duration("shutdown-delay-duration", &args.shutdown_delay_duration)?;
    let compaction = duration("etcd-compaction-interval", &args.etcd_compaction_interval)?;
    let address = SocketAddr::new(args.bind_address, args.secure_port);
    let listener = bind(args.bind_address, args.secure_port, "secure-port").await?;
    make_dir(&args.data_dir, 0o700)?;
    let opened = args.store.open(args.data_dir.join("store"), None).await?;
    let mut tasks = Tasks::new();
    opened.serve(&mut tasks, &reloads.encryption, &clock);
    let (store, encryption) = (opened.store, opened.encryption);
    let key = given.map_or_else(|| pki::signing_key(&args.data_dir), Ok)?;
    let issuer = TokenIssuer::new(&key, issuer_url, audiences)
        .and_then(|issuer| issuer.with_keys(&keys))
        .map_err(|e| Failure::new(format!("service-account key: {e}"), "give a PEM private key"))?;
    let mut config = server_config(ServerParts {
        store,
        encryption,
        reloads,
        flags,
        clock,
        tls,
        client_ca,
        authentication,
        authorizers,
        issuer,
        service_cidr: &args.service_cluster_ip_range,
        node_ports,
        advertise: SocketAddr::new(advertise, args.secure_port),
        admission,
        kubelet_client,
        front_proxy,
        proxy_client,
        bootstrap: coracle_auth::bootstrap::objects(),
        limits,
        audit,
    });
    config.compaction_interval = compaction;
    let server = ApiServer::start(config)
        .await
        .map_err(|e| Failure::new(format!("API server: {e}"), "check the flags"))?;
    let files = CertificateFiles {
        serving: args.tls_cert_file.clone().zip(args.tls_private_key_file.clone()),
        client_ca: args.client_ca_file.clone(),
    };
    tasks.spawn(reload::certificates(server.clone(), files));
    tracing::info!(%address, "serving");
    let mut signals = Signals::listen()?;
    tasks.spawn(server.clone().serve(listener));
    signals.recv().await;
    tracing::info!("ending; a second signal ends at once");
    tokio::select! {
        () = server.end(delay, limits.timeout) => {}
        () = signals.recv() => {}
    }
    Ok(())
}

/// The certificate files given, or a self-signed pair of our own in memory.
fn serving(args: &ApiserverArgs, advertise: IpAddr, clock: &Clock) -> Result<Tls, Failure> {
    if let (Some(cert), Some(key)) = (&args.tls_cert_file, &args.tls_private_key_file) {
        return Ok(Tls { cert_pem: read(cert)?, key_pem: read(key)? });
    }
    let names = ["localhost", "kubernetes.default.svc"];
    self_signed("kube-apiserver", &names, &[[127, 0, 0, 1].into(), advertise], clock)
}

/// How kubelets are reached, where their certificate is given.
fn kubelet_client(args: &ApiserverArgs) -> Result<Option<KubeletClient>, Failure> {
    let (Some(cert), Some(key)) = (&args.kubelet_client_certificate, &args.kubelet_client_key) else {
        return Ok(None);
    };
    let ca_pem = args.kubelet_certificate_authority.as_deref().map(read).transpose()?;
    Ok(Some(KubeletClient { cert_pem: read(cert)?, key_pem: read(key)?, ca_pem }))
}

/// A certificate of a server that was given none, in memory.
pub(crate) fn self_signed(
    name: &str,
    dns_names: &[&str],
    ip_addresses: &[IpAddr],
    clock: &Clock,
) -> Result<Tls, Failure> {
    let fail = |e: &dyn std::fmt::Display| Failure::new(format!("serving certificate: {e}"), "");
    let ca = CertificateAuthority::create(&format!("coracle-{name}-ca"), clock).map_err(|e| fail(&e))?;
    let issue = Issue {
        common_name: name.into(),
        organizations: Vec::new(),
        dns_names: dns_names.iter().map(|name| (*name).to_owned()).collect(),
        ip_addresses: ip_addresses.to_vec(),
        server: true,
        client: false,
        days: 365,
    };
    let pem = ca.issue(issue, clock).map_err(|e| fail(&e))?;
    Ok(Tls { cert_pem: pem.cert, key_pem: pem.key })
}

/// The limits that the flags set, checked as upstream checks them.
fn limits(args: &ApiserverArgs) -> Result<RequestLimits, Failure> {
    let positive = |value: i64, flag: &str| {
        usize::try_from(value).map_err(|_| Failure::usage(format!("--{flag} can not be negative value")))
    };
    if !(0.0..=0.02).contains(&args.goaway_chance) {
        let why = "--goaway-chance can not be less than 0 or greater than 0.02";
        return Err(Failure::usage(why.to_owned()));
    }
    Ok(RequestLimits {
        goaway_chance: args.goaway_chance,
        in_flight: positive(args.max_requests_inflight, "max-requests-inflight")?,
        mutating_in_flight: positive(args.max_mutating_requests_inflight, "max-mutating-requests-inflight")?,
        fair: args.enable_priority_and_fairness,
        timeout: duration("request-timeout", &args.request_timeout)?,
    })
}

/// A duration as Go writes it.
fn duration(flag: &str, text: &str) -> Result<Duration, Failure> {
    let nanos =
        coracle_cel::go_duration(text).map_err(|why| Failure::usage(format!("--{flag}: time: {why}")))?;
    let nanos =
        u64::try_from(nanos).map_err(|_| Failure::usage(format!("--{flag} can not be negative value")))?;
    Ok(Duration::from_nanos(nanos))
}

/// The audit log that the flags ask for: it takes a policy and a file (`-` for the standard output).
fn audit(args: &ApiserverArgs, clock: &Clock) -> Result<Option<AuditConfig>, Failure> {
    let (Some(policy), Some(log)) = (&args.audit_policy_file, &args.audit_log_path) else { return Ok(None) };
    let parsed = AuditPolicy::parse(&read(policy)?);
    let policy = parsed.map_err(|e| {
        Failure::new(format!("{}: {e}", policy.display()), "give an audit.k8s.io/v1 Policy with rules")
    })?;
    let sink: AuditSink = if log.as_os_str() == "-" {
        Box::new(std::io::stdout())
    } else {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        let limits = Limits {
            size: args.audit_log_maxsize.saturating_mul(1 << 20),
            files: args.audit_log_maxbackup,
            age: DAY.saturating_mul(args.audit_log_maxage),
        };
        let file = AuditFile::open(log.clone(), limits, clock.clone());
        Box::new(file.map_err(|e| Failure::file("open", log, &e))?)
    };
    Ok(Some(AuditConfig { policy, sink }))
}

fn port_range(text: &str) -> Result<(u16, u16), Failure> {
    let parsed = text.split_once('-').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    match parsed {
        Some((a, b)) if a <= b => Ok((a, b)),
        _ => Err(Failure::usage(format!(
            "--service-node-port-range {text:?} is not a range such as 30000-32767"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::port_range;

    #[test]
    fn node_port_range_must_be_two_rising_ports() {
        assert_eq!(port_range("30000-32767").unwrap(), (30000, 32767));
        for bad in ["", "5", "9-8", "1-70000", "a-b"] {
            assert!(port_range(bad).is_err(), "{bad}");
        }
    }
}
