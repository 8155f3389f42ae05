//! The cluster's certificates and keys in `D/pki`: made at the first start, renewed when a third of their life
//! is left or the machine's address changed.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use coracle_auth::pki::{CertificateAuthority, Issue, Pem, belong_together, not_after};
use coracle_stdx::Clock;

use crate::cluster::{Cluster, make_dir, write_file};
use crate::error::Failure;

/// Days a leaf certificate is valid.
const LEAF_DAYS: i64 = 365;

/// All of a cluster's certificates.
#[derive(Debug, Default)]
pub struct Pki {
    /// CA certificate (PEM).
    pub ca: String,
    /// The API server's serving certificate.
    pub apiserver: Pem,
    /// The administrator's client certificate.
    pub admin: Pem,
    /// The API server's client certificate towards kubelets.
    pub apiserver_kubelet: Pem,
    /// CA of proxies that say for whom they ask (PEM).
    pub front_proxy_ca: String,
    /// The certificate that the API server shows to extension servers.
    pub front_proxy_client: Pem,
    /// The kubelet's serving certificate.
    pub kubelet: Pem,
    /// Private key that signs service-account tokens (PEM, PKCS#8).
    pub service_account_key: String,
    /// Whether anything was made or renewed now.
    pub renewed: Vec<&'static str>,
}

/// What to do about a CA that cannot be used.
const NEW_CA: &str = "restore ca.crt and ca.key from a backup, or remove both: the next start makes a new CA and \
                      new certificates (kubeconfigs copied elsewhere must be copied again)";

fn failed(what: &str, why: impl std::fmt::Display) -> Failure {
    Failure::new(
        format!("cannot make the certificate {what}: {why}"),
        "try again; if it stays, tell the makers",
    )
}

fn unusable(path: &Path, why: impl std::fmt::Display, hint: &str) -> Failure {
    Failure::new(format!("{} cannot be used: {why}", path.display()), hint)
}

/// Loads or makes the certificates.
///
/// # Errors
/// Files that cannot be read, written or understood, and an expired CA, which cannot be renewed in place.
pub fn establish(dir: &Path, cluster: &Cluster, node_ip: IpAddr, clock: &Clock) -> Result<Pki, Failure> {
    make_dir(dir, 0o700)?;
    let (ca, new) = authority(dir, "ca", clock)?;
    let (proxy_ca, new_proxy) = authority(dir, "front-proxy-ca", clock)?;
    let made = [("ca", new), ("front-proxy-ca", new_proxy)];
    let renewed = made.into_iter().filter(|(_, new)| *new).map(|(name, _)| name).collect();
    let mut keeper = Keeper { dir, ca: &ca, clock, renewed };
    let names = |extra: &[&str]| extra.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let domain = format!("kubernetes.default.svc.{}", cluster.cluster_domain);
    let local: IpAddr = [127, 0, 0, 1].into();
    let apiserver = keeper.leaf(
        "apiserver",
        Issue {
            common_name: "kube-apiserver".into(),
            organizations: Vec::new(),
            dns_names: names(&[
                "localhost",
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                &domain,
                &cluster.node_name,
            ]),
            ip_addresses: vec![local, node_ip, cluster.service_ip(1).into()],
            server: true,
            client: false,
            days: LEAF_DAYS,
        },
    )?;
    let admin = keeper.leaf("admin", client("kubernetes-admin", &["kubeadm:cluster-admins"]))?;
    let apiserver_kubelet = keeper
        .leaf("apiserver-kubelet-client", client("kube-apiserver-kubelet-client", &["system:masters"]))?;
    let kubelet = keeper.leaf(
        "kubelet",
        Issue {
            common_name: format!("system:node:{}", cluster.node_name),
            organizations: names(&["system:nodes"]),
            dns_names: names(&["localhost", &cluster.node_name]),
            ip_addresses: vec![local, node_ip],
            server: true,
            client: true,
            days: LEAF_DAYS,
        },
    )?;
    keeper.ca = &proxy_ca;
    let front_proxy_client = keeper.leaf("front-proxy-client", client("front-proxy-client", &[]))?;
    let renewed = keeper.renewed;
    let service_account_key = signing_key(dir)?;
    Ok(Pki {
        ca: ca.cert_pem().to_owned(),
        apiserver,
        admin,
        apiserver_kubelet,
        kubelet,
        front_proxy_ca: proxy_ca.cert_pem().to_owned(),
        front_proxy_client,
        service_account_key,
        renewed,
    })
}

fn client(name: &str, groups: &[&str]) -> Issue {
    Issue {
        common_name: name.into(),
        organizations: groups.iter().map(|g| (*g).to_owned()).collect(),
        dns_names: Vec::new(),
        ip_addresses: Vec::new(),
        server: false,
        client: true,
        days: LEAF_DAYS,
    }
}

/// A file's text; what is not text comes out as something that no certificate or key is.
fn read(path: &Path) -> Result<Option<String>, Failure> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Failure::file("read", path, &e)),
    }
}

/// A CA of the cluster; `true` when it was made now.
fn authority(dir: &Path, name: &str, clock: &Clock) -> Result<(CertificateAuthority, bool), Failure> {
    let (cert_path, key_path) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
    let (cert_file, key_file) = (format!("{name}.crt"), format!("{name}.key"));
    let (cert, key) = match (read(&cert_path)?, read(&key_path)?) {
        (Some(cert), Some(key)) => (cert, key),
        (None, Some(_)) => {
            return Err(unusable(&key_path, format!("{cert_file} is missing beside it"), NEW_CA));
        }
        (Some(_), None) => {
            return Err(unusable(&cert_path, format!("{key_file} is missing beside it"), NEW_CA));
        }
        (None, None) => {
            let ca = CertificateAuthority::create(&format!("coracle-{name}"), clock)
                .map_err(|e| failed(&cert_file, e))?;
            write_file(&key_path, ca.key_pem().as_bytes(), 0o600)?;
            write_file(&cert_path, ca.cert_pem().as_bytes(), 0o644)?;
            return Ok((ca, true));
        }
    };
    let ca = CertificateAuthority::load(&cert, &key).map_err(|e| unusable(&cert_path, e, NEW_CA))?;
    let expires = not_after(&cert).map_err(|e| unusable(&cert_path, e, NEW_CA))?;
    if expires <= clock.now() {
        let what = format!("the cluster's CA certificate {} expired at {expires}", cert_path.display());
        return Err(Failure::new(what, format!("check the machine's clock; if it is right, {NEW_CA}")));
    }
    Ok((ca, false))
}

struct Keeper<'a> {
    dir: &'a Path,
    ca: &'a CertificateAuthority,
    clock: &'a Clock,
    renewed: Vec<&'static str>,
}

impl Keeper<'_> {
    fn path(&self, name: &str, end: &str) -> PathBuf {
        self.dir.join(format!("{name}.{end}"))
    }

    /// The kept certificate if it was made for the same subject and names and has a third of its life left.
    fn leaf(&mut self, name: &'static str, issue: Issue) -> Result<Pem, Failure> {
        let (cert, key, made_for) = (self.path(name, "crt"), self.path(name, "key"), self.path(name, "for"));
        let wanted = format!("{issue:?} by {}", self.ca.cert_pem());
        if let (Some(c), Some(k), Some(f)) = (read(&cert)?, read(&key)?, read(&made_for)?) {
            let left = not_after(&c).map_or(0, |t| t.as_second() - self.clock.now().as_second());
            if f == wanted && belong_together(&c, &k) && left > LEAF_DAYS * 86_400 / 3 {
                return Ok(Pem { cert: c, key: k });
            }
        }
        let pem = self.ca.issue(issue, self.clock).map_err(|e| failed(name, e))?;
        write_file(&key, pem.key.as_bytes(), 0o600)?;
        write_file(&cert, pem.cert.as_bytes(), 0o644)?;
        write_file(&made_for, wanted.as_bytes(), 0o600)?;
        self.renewed.push(name);
        Ok(pem)
    }
}

/// The key for service-account tokens: made once, kept for ever.
///
/// # Errors
/// Files that cannot be read or written, or a damaged key.
pub fn signing_key(dir: &Path) -> Result<String, Failure> {
    let path = dir.join("sa.key");
    if let Some(key) = read(&path)? {
        return match coracle_auth::private_key::pkcs8(&key) {
            Ok(_) => Ok(key),
            Err(e) => Err(unusable(
                &path,
                format!("it is no private key ({e})"),
                "restore it from a backup, or remove it: a new one is made, and tokens of service accounts \
                 given out so far are no longer accepted",
            )),
        };
    }
    let key = rcgen::KeyPair::generate().map_err(|e| failed("sa.key", e))?.serialize_pem();
    write_file(&path, key.as_bytes(), 0o600)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_kept_until_a_third_of_their_life_is_left_or_the_address_changes() {
        let dir = tempfile::tempdir().unwrap();
        let cluster: Cluster = serde_json::from_value(serde_json::json!({
            "id": "0", "slot": 0, "api_port": 1, "kubelet_port": 2, "node_name": "n",
            "pod_cidr": "10.1.0.0/16", "service_cidr": "10.2.0.0/16", "cluster_domain": "cluster.local"
        }))
        .unwrap();
        let ip: IpAddr = [192, 0, 2, 1].into();
        let now = jiff::Timestamp::now();
        let at = |days: i64| {
            let t = now.checked_add(jiff::SignedDuration::from_hours(24 * days)).unwrap();
            Clock::from_fn(move || t)
        };
        let first = establish(dir.path(), &cluster, ip, &at(0)).unwrap();
        assert_eq!(first.renewed.len(), 7);
        let second = establish(dir.path(), &cluster, ip, &at(200)).unwrap();
        assert_eq!((second.renewed.len(), &second.admin.cert), (0, &first.admin.cert));
        let moved = establish(dir.path(), &cluster, [192, 0, 2, 2].into(), &at(0)).unwrap();
        assert_eq!(moved.renewed, ["apiserver", "kubelet"]);
        assert_eq!(establish(dir.path(), &cluster, ip, &at(300)).unwrap().renewed.len(), 5);
        assert_eq!(first.service_account_key, second.service_account_key);
    }

    #[test]
    fn damaged_leaf_is_made_anew_and_damaged_ca_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let cluster: Cluster = serde_json::from_value(serde_json::json!({
            "id": "0", "slot": 0, "api_port": 1, "kubelet_port": 2, "node_name": "n",
            "pod_cidr": "10.1.0.0/16", "service_cidr": "10.2.0.0/16", "cluster_domain": "cluster.local"
        }))
        .unwrap();
        let clock = Clock::system();
        let again = || establish(dir.path(), &cluster, [192, 0, 2, 1].into(), &clock);
        again().unwrap();
        fs::write(dir.path().join("apiserver.key"), b"\xff\xfe").unwrap();
        fs::copy(dir.path().join("kubelet.key"), dir.path().join("admin.key")).unwrap();
        assert_eq!(again().unwrap().renewed, ["apiserver", "admin"]);
        fs::write(dir.path().join("sa.key"), "nonsense").unwrap();
        assert!(again().unwrap_err().to_string().contains("sa.key"));
        fs::remove_file(dir.path().join("sa.key")).unwrap();
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        let error = again().unwrap_err().to_string();
        assert!(error.contains("ca.crt") && error.contains("ca.key is missing"), "{error}");
        fs::remove_file(dir.path().join("ca.crt")).unwrap();
        assert_eq!(again().unwrap().renewed[0], "ca");
    }
}
