//! Pulls from registries that fail, hide behind TLS or mirrors, or want to know who asks. All are real servers of this
//! process.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// How a registry behaves, and what it was asked.
#[derive(Default)]
struct Behaviour {
    /// So many answers with the layer end in its middle.
    cuts: AtomicUsize,
    /// It knows ranges.
    ranges: bool,
    /// It has nothing.
    empty: bool,
    /// `authorization` that it wants.
    wants: Option<&'static str>,
    /// It gives tokens for that, and takes only these.
    tokens: bool,
    /// It sends those who ask for layers on to an address of its own, which is signed, and has nothing there.
    sends_on: bool,
    /// Its tags name lists of manifests, one for each kind of machine.
    lists: bool,
    /// Its image's parts are known by sha512.
    sha512: bool,
    /// A text in the manifest that another takes the place of.
    rewrite: Option<[&'static str; 2]>,
    /// Path, range and authorization of each request.
    asked: Mutex<Vec<(String, String, String)>>,
}

/// An image of one layer.
struct Image {
    blobs: BTreeMap<String, Vec<u8>>,
    manifest: Vec<u8>,
    layer: String,
}

fn digest(bytes: &[u8]) -> String {
    Digest::of(Algorithm::Sha256, bytes).to_string()
}

fn image() -> Image {
    image_by(Algorithm::Sha256)
}

fn image_by(algorithm: Algorithm) -> Image {
    let digest = |bytes: &[u8]| Digest::of(algorithm, bytes).to_string();
    let mut tar = tar::Builder::new(Vec::new());
    // Not to be compressed: the layer is larger than all buffers on its way.
    let content: Vec<u8> = (0u32..1 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "file", content.as_slice()).unwrap();
    let layer = tar.into_inner().unwrap();
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]}})
    .to_string();
    let manifest = serde_json::json!({"schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest(config.as_bytes()), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": digest(&layer), "size": layer.len()}]})
    .to_string();
    let name = digest(&layer);
    Image {
        blobs: [(digest(config.as_bytes()), config.into_bytes()), (name.clone(), layer)].into(),
        manifest: manifest.into_bytes(),
        layer: name,
    }
}

/// A list with the image for this machine behind one for another.
fn list(image: &Image) -> Vec<u8> {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let entry = |architecture: &str, digest: String| {
        serde_json::json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1,
            "digest": digest, "platform": {"os": "linux", "architecture": architecture}})
    };
    let manifests = [entry("m68k", digest(b"another")), entry(architecture, digest(&image.manifest))];
    serde_json::json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests})
    .to_string()
    .into_bytes()
}

/// The value of a header.
fn header(head: &str, name: &str) -> String {
    let line = head.lines().find_map(|l| l.split_once(": ").filter(|(k, _)| k.eq_ignore_ascii_case(name)));
    line.map(|(_, value)| value.to_owned()).unwrap_or_default()
}

impl Behaviour {
    /// Status, further headers and body of an answer, and how much of that is sent.
    fn answer(&self, image: &Image, head: &str, port: u16) -> (String, Vec<u8>, usize) {
        let target = head.split(' ').nth(1).unwrap_or("").to_owned();
        let path = target.split('?').next().unwrap_or_default();
        let (range, who) = (header(head, "range"), header(head, "authorization"));
        self.asked.lock().push((target.clone(), range.clone(), who.clone()));
        let whole = |status: &str, body: Vec<u8>| (status.to_owned(), body.clone(), body.len());
        if path.starts_with("/token") {
            let token = br#"{"token":"good"}"#.to_vec();
            return if Some(who.as_str()) == self.wants {
                whole("200 OK", token)
            } else {
                whole("401 No", Vec::new())
            };
        }
        let wanted = if self.tokens { Some("Bearer good") } else { self.wants };
        if wanted.is_some_and(|wanted| wanted != who) {
            let how = if self.tokens {
                format!("Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"test\"")
            } else {
                "Basic realm=\"test\"".to_owned()
            };
            let refusal = br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
            return whole(&format!("401 Unauthorized\r\nwww-authenticate: {how}"), refusal.to_vec());
        }
        let last = path.rsplit('/').next().unwrap_or_default();
        if self.sends_on && last == image.layer {
            let other = format!("http://127.0.0.1:{port}/other/place?signature=secret");
            return whole(&format!("307 Elsewhere\r\nlocation: {other}"), Vec::new());
        }
        if path.starts_with("/other/place") {
            return whole("500 Broken", Vec::new());
        }
        let found = match last {
            _ if self.empty => None,
            "" => Some(Vec::new()),
            _ if path.contains("/manifests/") && self.lists && !last.contains(':') => Some(list(image)),
            _ if path.contains("/manifests/") => {
                let [from, to] = self.rewrite.unwrap_or_default();
                let text = String::from_utf8_lossy(&image.manifest);
                Some(text.replacen(from, to, 1).into_bytes())
            }
            _ => image.blobs.get(last).cloned(),
        };
        let Some(body) = found else {
            return whole("404 No", br#"{"errors":[{"code":"NAME_UNKNOWN","message":"unknown"}]}"#.to_vec());
        };
        let from = range.strip_prefix("bytes=").and_then(|r| r.trim_end_matches('-').parse::<usize>().ok());
        let (status, body) = match from.filter(|_| self.ranges) {
            Some(from) => {
                let (end, size) = (body.len() - 1, body.len());
                let status = format!("206 Partial\r\ncontent-range: bytes {from}-{end}/{size}");
                (status, body[from..].to_vec())
            }
            None => ("200 OK".to_owned(), body),
        };
        let cut = last == image.layer
            && self.cuts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
        let sent = if cut { body.len() / 2 } else { body.len() };
        (status, body, sent)
    }

    /// What it was asked for, by the last part of the path.
    fn asked(&self, last: &str) -> Vec<(String, String)> {
        let asked = self.asked.lock();
        asked.iter().filter(|(p, ..)| p.ends_with(last)).map(|(_, r, w)| (r.clone(), w.clone())).collect()
    }
}

async fn converse<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    image: &Image,
    behaviour: &Behaviour,
    port: u16,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let (status, body, sent) = behaviour.answer(image, &String::from_utf8_lossy(&head), port);
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body[..sent]).await?;
    stream.shutdown().await
}

/// A registry that runs until the test ends.
struct Registry {
    port: u16,
    behaviour: Arc<Behaviour>,
}

impl Registry {
    async fn new(behaviour: Behaviour, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let algorithm = if behaviour.sha512 { Algorithm::Sha512 } else { Algorithm::Sha256 };
        let (behaviour, image) = (Arc::new(behaviour), Arc::new(image_by(algorithm)));
        let shared = behaviour.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (image, behaviour, tls) = (image.clone(), shared.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => converse(tls.accept(stream).await?, &image, &behaviour, port).await,
                        None => converse(stream, &image, &behaviour, port).await,
                    }
                });
            }
        });
        Self { port, behaviour }
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// An image store, and a file that says how registries are reached.
struct Lab {
    dir: tempfile::TempDir,
    store: Arc<ImageStore>,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(ImageStore::open(&dir.path().join("store")).unwrap());
        Self { dir, store }
    }

    fn registries(&self, text: &str) {
        std::fs::write(self.dir.path().join("registries.yaml"), text).unwrap();
    }

    async fn pull(&self, registry: &str, auth: Option<AuthConfig>) -> Result<String, String> {
        self.pull_name(&format!("{registry}/test/image:1"), auth).await
    }

    async fn pull_name(&self, name: &str, auth: Option<AuthConfig>) -> Result<String, String> {
        let file = self.dir.path().join("registries.yaml");
        pull(&self.store, name, auth, &file).await.map_err(|e| e.to_string())
    }

    #[track_caller]
    fn has_it(&self, id: &str) {
        let record = self.store.find(id).expect("the image");
        let file = self.store.layer_dir(&record.layers[0]).join("file");
        assert_eq!(std::fs::metadata(&file).map(|m| m.len()).ok(), Some(1 << 20), "{}", file.display());
    }
}

fn login() -> AuthConfig {
    AuthConfig { username: "user".into(), password: "pass".into(), ..AuthConfig::default() }
}

/// `authorization` of that login.
const BASIC: &str = "Basic dXNlcjpwYXNz";

#[tokio::test]
async fn a_layer_that_is_cut_off_is_resumed_where_it_ended() {
    let (lab, cuts) = (Lab::new(), AtomicUsize::new(2));
    let registry = Registry::new(Behaviour { cuts, ranges: true, ..Behaviour::default() }, None).await;
    let id = lab.pull(&registry.host(), None).await.expect("pulled");
    lab.has_it(&id);
    let asked = registry.behaviour.asked(&image().layer);
    let from =
        |range: &str| range.strip_prefix("bytes=").map_or(0, |r| r.trim_end_matches('-').parse().unwrap());
    let starts: Vec<usize> = asked.iter().map(|(range, _)| from(range)).collect();
    assert_eq!(starts.len(), 3, "{starts:?}");
    assert!(starts[0] == 0 && starts[1] > 0 && starts[2] > starts[1], "{starts:?}");
}

#[tokio::test]
async fn where_ranges_are_not_known_a_layer_starts_again() {
    let (lab, cuts) = (Lab::new(), AtomicUsize::new(1));
    let registry = Registry::new(Behaviour { cuts, ..Behaviour::default() }, None).await;
    let id = lab.pull(&registry.host(), None).await.expect("pulled");
    lab.has_it(&id);
    let asked = registry.behaviour.asked(&image().layer);
    assert!(asked.len() == 2 && asked[1].0.starts_with("bytes="), "{asked:?}");
}

/// A certificate authority.
struct Authority {
    pem: String,
    der: rustls::pki_types::CertificateDer<'static>,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let own = params.self_signed(&key).unwrap();
        let (pem, der) = (own.pem(), own.der().clone());
        Self { pem, der, issuer: rcgen::Issuer::new(params, key) }
    }

    fn sign(&self, name: &str) -> (rcgen::Certificate, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }
}

/// A registry behind TLS whose certificate `authority` has signed, for those that `clients` has signed for.
async fn behind_tls(authority: &Authority, clients: Option<&Authority>) -> Registry {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (own, key) = authority.sign("127.0.0.1");
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(clients.der.clone()).unwrap();
            let verifier =
                rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let config = builder.with_single_cert(vec![own.der().clone()], key).unwrap();
    Registry::new(Behaviour::default(), Some(TlsAcceptor::from(Arc::new(config)))).await
}

#[tokio::test]
async fn a_registry_that_wants_certificates_of_its_clients_is_shown_the_configured_one() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let registry = behind_tls(&authority, Some(&clients)).await;
    let (lab, host) = (Lab::new(), registry.host());
    let file = |name: &str, text: &str| {
        let path = lab.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let ca = file("ca.pem", &authority.pem);
    let pair = |name: &str, by: &Authority| {
        let (cert, key) = by.sign("node");
        (file(&format!("{name}.pem"), &cert.pem()), file(&format!("{name}.key"), &key.serialize_pem()))
    };
    let ((cert, key), (strange, its_key)) = (pair("node", &clients), pair("strange", &authority));
    let with = |more: &str| {
        lab.registries(&format!(
            "mirrors: {{\"{host}\": {{endpoint: [\"https://{host}\"]}}}}\n\
             configs: {{\"{host}\": {{tls: {{ca_file: {ca}{more}}}}}}}\n"
        ));
    };
    with("");
    lab.pull(&host, None).await.expect_err("nobody without a certificate");
    with(&format!(", cert_file: {strange}, key_file: {its_key}"));
    lab.pull(&host, None).await.expect_err("nor with one of another authority");
    assert!(registry.behaviour.asked.lock().is_empty(), "no request came through");
    with(&format!(", cert_file: {cert}"));
    let half = lab.pull(&host, None).await.unwrap_err();
    assert!(half.contains("was specified, but no corresponding key file was specified"), "{half}");
    with(&format!(", key_file: {key}"));
    let half = lab.pull(&host, None).await.unwrap_err();
    assert!(half.contains("was specified, but no corresponding cert file was specified"), "{half}");
    with(&format!(", cert_file: {cert}, key_file: {cert}"));
    let keyless = lab.pull(&host, None).await.unwrap_err();
    assert!(keyless.contains("failed to load cert file"), "{keyless}");
    with(&format!(", cert_file: {cert}, key_file: {key}"));
    lab.has_it(&lab.pull(&host, None).await.expect("known to the registry"));
}

#[tokio::test]
async fn a_private_certificate_authority_is_trusted_only_if_the_configuration_says_so() {
    let (lab, authority) = (Lab::new(), Authority::new());
    let registry = behind_tls(&authority, None).await;
    let host = registry.host();
    let mirror = format!("mirrors: {{\"{host}\": {{endpoint: [\"https://{host}\"]}}}}\n");
    lab.registries(&mirror);
    let unknown = lab.pull(&host, None).await.unwrap_err();
    assert!(unknown.contains("certificate"), "{unknown}");
    let file = lab.dir.path().join("ca.pem");
    lab.registries(&format!("{mirror}configs: {{\"{host}\": {{tls: {{ca_file: {}}}}}}}\n", file.display()));
    let missing = lab.pull(&host, None).await.unwrap_err();
    assert!(missing.contains("cannot read"), "{missing}");
    std::fs::write(&file, &authority.pem).unwrap();
    lab.has_it(&lab.pull(&host, None).await.expect("trusted"));

    let careless = Lab::new();
    careless
        .registries(&format!("{mirror}configs: {{\"{host}\": {{tls: {{insecure_skip_verify: true}}}}}}\n"));
    careless.has_it(&careless.pull(&host, None).await.expect("anybody is trusted"));
}

#[tokio::test]
async fn mirrors_are_tried_in_order_and_the_registry_last() {
    let lab = Lab::new();
    let (empty, has) = (
        Registry::new(Behaviour { empty: true, ..Behaviour::default() }, None).await,
        Registry::new(Behaviour::default(), None).await,
    );
    let last = Registry::new(Behaviour::default(), None).await;
    let mirrors = |list: &[String]| {
        let list: Vec<String> = list.iter().map(|host| format!("\"http://{host}\"")).collect();
        lab.registries(&format!("mirrors: {{\"{}\": {{endpoint: [{}]}}}}\n", last.host(), list.join(", ")));
    };
    // Nobody listens at the first.
    mirrors(&["127.0.0.1:1".into(), empty.host(), has.host()]);
    let id = lab.pull(&last.host(), Some(login())).await.expect("pulled");
    lab.has_it(&id);
    // They may mirror others, too: each request says whose image it means.
    let manifest = format!("/manifests/1?ns=127.0.0.1%3A{}", last.port);
    assert_eq!(empty.behaviour.asked(&manifest).len(), 1);
    let blob = format!("/blobs/{}?ns=127.0.0.1%3A{}", image().layer, last.port);
    assert_eq!(has.behaviour.asked(&blob).len(), 1);
    let asked = has.behaviour.asked(&manifest);
    assert!(asked.len() == 1 && asked[0].1.is_empty(), "credentials are the registry's alone: {asked:?}");
    assert!(last.behaviour.asked.lock().is_empty(), "it was not needed");
    let record = lab.store.find(&id).expect("the image");
    assert_eq!(record.tags.iter().collect::<Vec<_>>(), [&format!("{}/test/image:1", last.host())]);

    let other = Lab::new();
    other.registries(&format!("mirrors: {{\"*\": {{endpoint: [\"http://{}\"]}}}}\n", empty.host()));
    other.has_it(&other.pull(&last.host(), None).await.expect("the registry has it"));
    assert_eq!(last.behaviour.asked("/manifests/1").len(), 1, "it is no mirror");
}

#[tokio::test]
async fn an_image_that_nobody_has_is_not_found_and_one_not_reached_is_not_there() {
    let lab = Lab::new();
    let empty = Registry::new(Behaviour { empty: true, ..Behaviour::default() }, None).await;
    let missing = lab.pull(&empty.host(), None).await.unwrap_err();
    assert!(missing.ends_with("/test/image:1: not found"), "{missing}");
    let unreachable = lab.pull("127.0.0.1:1", None).await.unwrap_err();
    assert!(unreachable.contains("onnection refused"), "{unreachable}");
}

#[tokio::test]
async fn credentials_are_the_pods_or_the_nodes() {
    let basic = Behaviour { wants: Some(BASIC), ..Behaviour::default() };
    let tokens = Behaviour { wants: Some(BASIC), tokens: true, ..Behaviour::default() };
    for behaviour in [basic, tokens] {
        let registry = Registry::new(behaviour, None).await;
        let host = registry.host();
        let (lab, node) = (Lab::new(), Lab::new());
        let refused = lab.pull(&host, None).await.unwrap_err();
        assert!(refused.contains("uthoriz") || refused.contains("uthentic"), "{refused}");
        let wrong = AuthConfig { password: "other".into(), ..login() };
        assert!(lab.pull(&host, Some(wrong)).await.is_err());
        lab.has_it(&lab.pull(&host, Some(login())).await.expect("the pod's"));
        let packed = "dXNlcjpwYXNz";
        node.registries(&format!("configs: {{\"{host}\": {{auth: {{auth: {packed}}}}}}}\n"));
        node.has_it(&node.pull(&host, None).await.expect("the node's"));
    }
}

#[tokio::test]
async fn of_a_list_the_image_for_this_machine_is_taken_and_known_by_the_lists_digest() {
    let lab = Lab::new();
    let registry = Registry::new(Behaviour { lists: true, ..Behaviour::default() }, None).await;
    let id = lab.pull(&registry.host(), None).await.expect("pulled");
    lab.has_it(&id);
    let known = format!("{}/test/image@{}", registry.host(), digest(&list(&image())));
    assert_eq!(lab.store.find(&id).expect("the image").digests.iter().collect::<Vec<_>>(), [&known]);
}

#[tokio::test]
async fn what_is_known_by_sha512_is_checked_by_it() {
    let lab = Lab::new();
    let registry = Registry::new(Behaviour { sha512: true, ..Behaviour::default() }, None).await;
    let name =
        |content: &[u8]| format!("{}/test/image@{}", registry.host(), Digest::of(Algorithm::Sha512, content));
    let right = name(&image_by(Algorithm::Sha512).manifest);
    let id = lab.pull_name(&right, None).await.expect("pulled");
    lab.has_it(&id);
    let record = lab.store.find(&right).expect("known by the name it was pulled by");
    assert_eq!((&record.id, record.layers[0].len()), (&id, 128));
    let wrong = lab.pull_name(&name(b"another"), None).await.unwrap_err();
    assert!(wrong.contains(": manifest has digest sha512:"), "{wrong}");
}

#[tokio::test]
async fn digests_of_unknown_kinds_are_refused() {
    let rewrite = Some(["sha256:", "md5:"]);
    let registry = Registry::new(Behaviour { rewrite, ..Behaviour::default() }, None).await;
    let why = Lab::new().pull(&registry.host(), None).await.unwrap_err();
    assert!(why.contains("\"md5:") && why.ends_with("unsupported digest algorithm"), "{why}");
}

#[tokio::test]
async fn an_identity_is_changed_for_a_token() {
    let registry =
        Registry::new(Behaviour { wants: Some(""), tokens: true, ..Behaviour::default() }, None).await;
    let identity = AuthConfig { identity_token: "me".into(), ..AuthConfig::default() };
    let lab = Lab::new();
    lab.has_it(&lab.pull(&registry.host(), Some(identity)).await.expect("pulled"));
    let asked = registry.behaviour.asked.lock();
    assert!(asked.iter().any(|(path, ..)| path == "/token"), "a POST, without a query: {asked:?}");
}

#[tokio::test]
async fn signatures_of_addresses_are_not_told() {
    let registry = Registry::new(Behaviour { sends_on: true, ..Behaviour::default() }, None).await;
    let why = Lab::new().pull(&registry.host(), None).await.unwrap_err();
    assert!(why.contains("/other/place: 500 Internal Server Error"), "{why}");
    assert!(!why.contains("secret"), "{why}");
    assert_eq!(registry.behaviour.asked("place?signature=secret").len(), 1, "it was asked there");
}
