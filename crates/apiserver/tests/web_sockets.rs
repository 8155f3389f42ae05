//! Watches over WebSocket, with a real WebSocket client.

#[allow(dead_code, reason = "shared by test programs, of which none uses all of it")]
mod support;

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::StreamExt;
use http::StatusCode;
use serde_json::{Value, json};
use support::{ADMIN, Cluster};
use tokio_tungstenite::tungstenite::{Error, Message};

const WATCH: &str = "/api/v1/namespaces/default/configmaps?watch=1&resourceVersion=0";
const LIMIT: Duration = Duration::from_secs(60);

type Socket = tokio_tungstenite::WebSocketStream<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>;

async fn dial(cluster: &Cluster, headers: &[(&str, &str)]) -> Result<(Socket, http::HeaderMap), Error> {
    let mut request = http::Request::builder()
        .uri(format!("wss://127.0.0.1{WATCH}"))
        .header("host", "127.0.0.1")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", tokio_tungstenite::tungstenite::handshake::client::generate_key());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let dialled = tokio_tungstenite::client_async(request.body(()).unwrap(), cluster.tls().await).await;
    dialled.map(|(socket, response)| (socket, response.headers().clone()))
}

async fn next(socket: &mut Socket) -> Message {
    tokio::time::timeout(LIMIT, socket.next()).await.expect("a message in time").unwrap().unwrap()
}

async fn make(cluster: &Cluster, name: &str) {
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name } });
    let made = cluster.post("/api/v1/namespaces/default/configmaps", &map).await;
    assert_eq!(made.code, StatusCode::CREATED);
}

#[tokio::test]
async fn events_of_a_watch_come_as_messages() {
    let cluster = Cluster::start().await;
    make(&cluster, "a").await;
    let token = format!("Bearer {ADMIN}");
    let headers =
        [("authorization", token.as_str()), ("origin", "http://here"), ("sec-websocket-protocol", "x")];
    let (mut socket, answered) = dial(&cluster, &headers).await.unwrap();
    assert_eq!(answered["sec-websocket-protocol"], "x");
    for name in ["a", "b"] {
        let Message::Text(text) = next(&mut socket).await else { panic!("JSON comes as text") };
        let event: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&json!("ADDED"), &json!(name)));
        if name == "a" {
            make(&cluster, "b").await;
        }
    }
}

#[tokio::test]
async fn protobuf_comes_as_bytes_without_a_length_in_front() {
    let cluster = Cluster::start().await;
    make(&cluster, "a").await;
    let token = format!("Bearer {ADMIN}");
    let mime = "application/vnd.kubernetes.protobuf";
    let headers = [("authorization", token.as_str()), ("origin", "http://here"), ("accept", mime)];
    let (mut socket, _) = dial(&cluster, &headers).await.unwrap();
    let Message::Binary(bytes) = next(&mut socket).await else { panic!("protobuf comes as bytes") };
    assert_eq!(bytes[..7], [0x0a, 5, b'A', b'D', b'D', b'E', b'D'], "{bytes:?}");
}

#[tokio::test]
async fn a_browser_shows_its_token_as_a_sub_protocol() {
    let cluster = Cluster::start().await;
    let token = format!("base64url.bearer.authorization.k8s.io.{}", URL_SAFE_NO_PAD.encode(ADMIN));
    let protocols = format!("{token}, base64.binary.k8s.io");
    let origin = ("origin", "http://here");
    let (_socket, answered) =
        dial(&cluster, &[origin, ("sec-websocket-protocol", &protocols)]).await.unwrap();
    assert_eq!(answered["sec-websocket-protocol"], "base64.binary.k8s.io");
    let refused = |e: Error| match e {
        Error::Http(response) => response.status(),
        other => panic!("{other}"),
    };
    let alone = dial(&cluster, &[origin, ("sec-websocket-protocol", &token)]).await;
    assert_eq!(refused(alone.err().unwrap()), StatusCode::UNAUTHORIZED);
    let nowhere = dial(&cluster, &[("sec-websocket-protocol", &protocols)]).await;
    assert_eq!(refused(nowhere.err().unwrap()), StatusCode::FORBIDDEN, "no origin");
    let many = dial(&cluster, &[origin, ("sec-websocket-protocol", &format!("{token},a,b"))]).await;
    assert_eq!(refused(many.err().unwrap()), StatusCode::BAD_REQUEST, "one of them has to be meant");
}
