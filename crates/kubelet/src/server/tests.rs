//! Tests of the HTTPS server with real sockets and certificates.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::*;
use crate::testing::context;
use coracle_cri::remote::{spdy, websocket};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

struct Identity {
    cert: String,
    key: String,
}

fn authority() -> Authority {
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "kubernetes");
    let pem = params.self_signed(&key).expect("certificate").pem();
    Authority { issuer: Issuer::new(params, key), pem }
}

impl Authority {
    fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> Identity {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let cert = params.signed_by(&key, &self.issuer).expect("certificate").pem();
        Identity { cert, key: key.serialize_pem() }
    }
}

struct Served {
    authority: Authority,
    address: std::net::SocketAddr,
    _directory: tempfile::TempDir,
    runtime: Arc<crate::testing::FakeRuntime>,
}

/// A server with the running pod `default/web`, container `a`.
async fn serve() -> Served {
    let directory = tempfile::tempdir().expect("directory");
    let authority = authority();
    let (cx, api, runtime, informers) = context(directory.path());
    let own = authority.issue("system:node:n1", ExtendedKeyUsagePurpose::ServerAuth);
    let mut config = cx.config.clone();
    config.server_cert_pem = own.cert;
    config.server_key_pem = own.key;
    config.client_ca_pem = authority.pem.clone();
    let acceptor = tls::acceptor(&config).expect("tls");
    let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.expect("listener"));
    let address = listener.local_addr().expect("address");
    let pods = Pods::default();
    tokio::spawn(Arc::new(Server::new(cx.clone(), pods.clone())).serve(listener, acceptor));
    let options =
        coracle_client::ListOptions { field_selector: "spec.nodeName=n1".into(), ..Default::default() };
    let informer = informers.filtered::<Pod>("", options);
    let worker = cx.clone();
    tokio::spawn(async move { pods.run(worker, informer).await });
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"nodeName": "n1", "containers": [{"name": "a", "image": "i:1"}]}}))
    .expect("pod");
    let pods = api.client().api::<Pod>();
    pods.create("default", pod).await.expect("created");
    for _ in 0..500 {
        let pod = pods.get("default", "web").await.expect("pod");
        if coracle_meta::pod::phase(&pod) == "Running" {
            let uid = crate::names::uid(&pod);
            let folder = crate::names::log_directory(&cx.config.log_root, "default", "web", uid).join("a");
            let text = "2026-11-21T10:00:00Z stdout F one\n2026-11-21T10:00:01Z stderr F two\n";
            std::fs::write(folder.join("0.log"), text).expect("log");
            return Served { authority, address, _directory: directory, runtime };
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the pod never ran");
}

impl Served {
    async fn connect(&self, name: Option<&str>) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        let certs = |pem: &str| {
            rustls::pki_types::CertificateDer::pem_slice_iter(pem.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .expect("certificates")
        };
        roots.add(certs(&self.authority.pem).remove(0)).expect("root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match name {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let id = self.authority.issue(name, ExtendedKeyUsagePurpose::ClientAuth);
                let key = PrivateKeyDer::from_pem_slice(id.key.as_bytes()).expect("key");
                builder.with_client_auth_cert(certs(&id.cert), key).expect("identity")
            }
        };
        let tcp = TcpStream::connect(self.address).await.expect("connected");
        let name = ServerName::try_from("localhost").expect("name");
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("tls")
    }

    /// A GET: the whole answer as text.
    async fn get(&self, name: Option<&str>, path: &str) -> String {
        let mut stream = self.connect(name).await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = Vec::new();
        // The server may close without a TLS goodbye.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).expect("text")
    }
}

const API: Option<&str> = Some("kube-apiserver-kubelet-client");

#[tokio::test]
async fn only_the_api_server_is_served() {
    let s = serve().await;
    assert!(s.get(None, "/healthz").await.starts_with("HTTP/1.1 401"));
    assert!(s.get(Some("mallory"), "/healthz").await.starts_with("HTTP/1.1 403"));
    assert!(s.get(API, "/healthz").await.ends_with("ok"));
    assert!(s.get(API, "/pods").await.contains("\"PodList\""));
    assert!(s.get(API, "/exec/default/none/a").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn logs_are_served_with_options() {
    let s = serve().await;
    let path = "/containerLogs/default/web/a";
    let all = s.get(API, path).await;
    assert!(all.contains("one\n") && all.contains("two\n"), "{all}");
    let tail = s.get(API, &format!("{path}?tailLines=1&timestamps=true")).await;
    assert!(tail.contains("2026-11-21T10:00:01Z two\n") && !tail.contains("one"), "{tail}");
    let missing = s.get(API, &format!("{path}?previous=true")).await;
    assert!(missing.contains("previous terminated container \"a\" in pod \"web\" not found"), "{missing}");
    let wrong = s.get(API, "/containerLogs/default/web/b").await;
    assert!(wrong.contains("container \"b\" not found in pod \"web\""), "{wrong}");
    assert_eq!(s.runtime.count().0, 1);
}

#[tokio::test]
async fn exec_over_websocket_carries_input_resize_output_and_the_exit_code() {
    let s = serve().await;
    let path = "/exec/default/web/a?command=cat&input=1&output=1&tty=1";
    let mut request = format!("wss://localhost{path}").into_client_request().expect("request");
    let protocol = http::HeaderValue::from_static("v5.channel.k8s.io");
    request.headers_mut().insert("sec-websocket-protocol", protocol);
    let stream = s.connect(API).await;
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.expect("upgraded");
    let send = |channel: u8, data: &[u8]| Message::Binary([&[channel], data].concat().into());
    socket.send(send(4, b"{\"Width\":80,\"Height\":24}")).await.expect("resize");
    socket.send(send(0, b"hello")).await.expect("stdin");
    socket.send(send(255, &[0])).await.expect("close");
    let mut channels: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(data) = message {
            channels.entry(data[0]).or_default().extend(&data[1..]);
        }
    }
    assert_eq!(String::from_utf8_lossy(&channels[&1]), "80x24\nhello");
    let status: Value = serde_json::from_slice(&channels[&3]).expect("status");
    assert_eq!(status["details"]["causes"][0]["message"], "3");
}

/// The client's side of SPDY, as far as the tests need it.
struct SpdyClient<S> {
    io: S,
    encoder: spdy::frame::Encoder,
    decoder: spdy::frame::Decoder,
    buffer: bytes::BytesMut,
}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> SpdyClient<S> {
    fn new(io: S) -> Self {
        let (encoder, decoder) = (spdy::frame::Encoder::default(), spdy::frame::Decoder::default());
        Self { io, encoder, decoder, buffer: bytes::BytesMut::new() }
    }
    async fn send(&mut self, frame: spdy::frame::Frame) {
        let mut out = bytes::BytesMut::new();
        self.encoder.encode(frame, &mut out);
        self.io.write_all(&out).await.expect("written");
    }
    async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
        let headers = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        self.send(spdy::frame::Frame::SynStream { id, fin: false, headers }).await;
    }
    async fn data(&mut self, id: u32, fin: bool, data: &'static [u8]) {
        self.send(spdy::frame::Frame::Data { id, fin, data: Bytes::from_static(data) }).await;
    }
    /// All data of the streams until each of `ids` has ended.
    async fn read(&mut self, ids: &[u32]) -> BTreeMap<u32, Vec<u8>> {
        let mut all: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        let mut ended = Vec::new();
        while !ids.iter().all(|id| ended.contains(id)) {
            while let Some(frame) = self.decoder.decode(&mut self.buffer).expect("frame") {
                if let spdy::frame::Frame::Data { id, fin, data } = frame {
                    all.entry(id).or_default().extend(&data);
                    if fin {
                        ended.push(id);
                    }
                }
            }
            if ids.iter().all(|id| ended.contains(id))
                || self.io.read_buf(&mut self.buffer).await.unwrap_or(0) == 0
            {
                break;
            }
        }
        all
    }
}

#[tokio::test]
async fn exec_over_spdy_carries_input_output_and_the_exit_code() {
    let s = serve().await;
    let mut stream = s.connect(API).await;
    let request = "POST /exec/default/web/a?command=cat&input=1&output=1 HTTP/1.1\r\nHost: localhost\r\n\
        Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\
        X-Stream-Protocol-Version: v3.channel.k8s.io\r\nContent-Length: 0\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("answer"));
    }
    let head = String::from_utf8(head).expect("text").to_lowercase();
    assert!(head.starts_with("http/1.1 101") && head.contains("v4.channel.k8s.io"), "{head}");
    let mut client = SpdyClient::new(stream);
    for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
        client.open(id, &[("streamType", kind)]).await;
    }
    client.data(3, false, b"hello ").await;
    client.data(3, true, b"world").await;
    let got = client.read(&[1, 5]).await;
    assert_eq!(got[&5], b"hello world");
    let status: Value = serde_json::from_slice(&got[&1]).expect("status");
    assert_eq!(status["details"]["causes"][0]["message"], "3");
}

#[tokio::test]
async fn port_forward_works_through_a_websocket_tunnel_and_reports_refused_ports() {
    let echo = TcpListener::bind("127.0.0.1:0").await.expect("listener");
    let port = echo.local_addr().expect("address").port().to_string();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = echo.accept().await {
            let (mut from, mut to) = tcp.split();
            tokio::io::copy(&mut from, &mut to).await.expect("echo");
        }
    });
    let s = serve().await;
    let mut request = "wss://localhost/portForward/default/web".into_client_request().expect("request");
    let protocol = http::HeaderValue::from_static("SPDY/3.1+portforward.k8s.io");
    request.headers_mut().insert("sec-websocket-protocol", protocol);
    let stream = s.connect(API).await;
    let (socket, _) = tokio_tungstenite::client_async(request, stream).await.expect("upgraded");
    let mut client = SpdyClient::new(websocket::tunnel(socket));
    client.open(1, &[("streamType", "error"), ("port", &port), ("requestID", "0")]).await;
    client.data(1, true, b"").await;
    client.open(3, &[("streamType", "data"), ("port", &port), ("requestID", "0")]).await;
    client.data(3, true, b"ping").await;
    let got = client.read(&[1, 3]).await;
    assert_eq!((got[&3].as_slice(), got[&1].len()), (&b"ping"[..], 0));
    client.open(5, &[("streamType", "error"), ("port", "1"), ("requestID", "1")]).await;
    client.open(7, &[("streamType", "data"), ("port", "1"), ("requestID", "1")]).await;
    let got = client.read(&[5, 7]).await;
    assert!(String::from_utf8_lossy(&got[&5]).starts_with("error forwarding port 1 to pod "), "{got:?}");
}
