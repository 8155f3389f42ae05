//! The KMS v2 plugin at a Unix socket: the three calls of `k8s.io/kms/apis/v2`, as gRPC over HTTP/2.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;

use crate::protobuf::wire;

/// The version that a plugin must speak.
const VERSION: &str = "v2";

/// What a plugin says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) version: String,
    pub(super) healthz: String,
    /// Changes with the key that the plugin encrypts by.
    pub(super) key_id: String,
}

/// A secret as the plugin encrypted it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sealed {
    pub(super) ciphertext: Vec<u8>,
    pub(super) key_id: String,
    /// The plugin's own, to be shown to it again.
    pub(super) annotations: BTreeMap<String, Vec<u8>>,
}

/// The way to a plugin; connects when it is needed.
pub(super) struct Plugin {
    socket: PathBuf,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Plugin {
    pub(super) fn at(socket: PathBuf) -> Self {
        Self { socket, sender: None }
    }

    /// Asks how it does.
    pub(super) async fn status(&mut self) -> Result<Status, String> {
        let answer = self.call("Status", Vec::new()).await?;
        let mut out = Status::default();
        for (number, value) in fields(&answer)? {
            match number {
                1 => out.version = text(value),
                2 => out.healthz = text(value),
                3 => out.key_id = text(value),
                _ => {}
            }
        }
        // Early plugins said v2beta1.
        if out.version != VERSION && out.version != "v2beta1" {
            return Err(format!("expected KMSv2 API version {VERSION}, got {}", out.version));
        }
        if out.healthz != "ok" {
            return Err(format!("expected healthz status ok, got {}", out.healthz));
        }
        if out.key_id.is_empty() {
            return Err("expected KMSv2 KeyID to be set, got empty".to_owned());
        }
        Ok(out)
    }

    /// Has a secret encrypted; `uid` names the call in logs.
    pub(super) async fn encrypt(&mut self, uid: &str, plain: &[u8]) -> Result<Sealed, String> {
        let mut message = Vec::new();
        wire::bytes(&mut message, 1, plain);
        wire::text(&mut message, 2, uid);
        let answer = self.call("Encrypt", message).await?;
        let mut out = Sealed::default();
        for (number, value) in fields(&answer)? {
            match number {
                1 => out.ciphertext = value.to_vec(),
                2 => out.key_id = text(value),
                3 => out.annotations.extend(entry(value)?),
                _ => {}
            }
        }
        Ok(out)
    }

    /// Has a secret decrypted.
    pub(super) async fn decrypt(&mut self, uid: &str, sealed: &Sealed) -> Result<Vec<u8>, String> {
        let mut message = Vec::new();
        wire::bytes(&mut message, 1, &sealed.ciphertext);
        wire::text(&mut message, 2, uid);
        wire::text(&mut message, 3, &sealed.key_id);
        write_annotations(&mut message, 4, &sealed.annotations);
        let answer = self.call("Decrypt", message).await?;
        let plain = fields(&answer)?.into_iter().find(|(number, _)| *number == 1);
        Ok(plain.map(|(_, value)| value.to_vec()).unwrap_or_default())
    }

    async fn call(&mut self, method: &str, message: Vec<u8>) -> Result<Bytes, String> {
        let mut sender = self.connected().await?;
        let mut framed = BytesMut::with_capacity(message.len() + 5);
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.len()).map_err(|e| e.to_string())?);
        framed.put_slice(&message);
        let request = Request::post(format!("http://localhost/v2.KeyManagementService/{method}"))
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .body(Full::new(framed.freeze()))
            .map_err(|e| e.to_string())?;
        let response = match sender.send_request(request).await {
            Ok(response) => response,
            Err(e) => {
                self.sender = None;
                return Err(format!("rpc error: code = Unavailable desc = {e}"));
            }
        };
        answer_of(response).await
    }

    async fn connected(&mut self) -> Result<SendRequest<Full<Bytes>>, String> {
        if let Some(sender) = self.sender.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let unreachable = |e: &dyn std::fmt::Display| {
            let socket = self.socket.display();
            format!("rpc error: code = Unavailable desc = connection error: dial unix {socket}: {e}")
        };
        let stream = UnixStream::connect(&self.socket).await.map_err(|e| unreachable(&e))?;
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(|e| unreachable(&e))?;
        tokio::spawn(connection);
        self.sender = Some(sender.clone());
        Ok(sender)
    }
}

/// The message of a gRPC answer.
async fn answer_of(response: Response<Incoming>) -> Result<Bytes, String> {
    refused(response.headers())?;
    let body = response.into_body().collect().await.map_err(|e| format!("rpc error: {e}"))?;
    if let Some(trailers) = body.trailers() {
        refused(trailers)?;
    }
    let mut bytes = body.to_bytes();
    if bytes.len() < 5 {
        return Err("rpc error: code = Internal desc = the answer has no message".to_owned());
    }
    let compressed = bytes.get_u8() != 0;
    let length = bytes.get_u32() as usize;
    if compressed || length > bytes.len() {
        return Err("rpc error: code = Internal desc = malformed message".to_owned());
    }
    Ok(bytes.split_to(length))
}

fn refused(headers: &HeaderMap) -> Result<(), String> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    match text("grpc-status") {
        None | Some("0") => Ok(()),
        Some(code) => {
            Err(format!("rpc error: code = {code} desc = {}", text("grpc-message").unwrap_or_default()))
        }
    }
}

/// Writes a map of bytes.
pub(super) fn write_annotations(out: &mut Vec<u8>, number: u32, annotations: &BTreeMap<String, Vec<u8>>) {
    for (key, value) in annotations {
        wire::nested(out, number, |out| {
            wire::text(out, 1, key);
            wire::bytes(out, 2, value);
        });
    }
}

/// An entry of a map of bytes.
pub(super) fn entry(message: &[u8]) -> Result<Option<(String, Vec<u8>)>, String> {
    let (mut key, mut bytes) = (String::new(), Vec::new());
    for (number, value) in fields(message)? {
        match number {
            1 => key = text(value),
            2 => bytes = value.to_vec(),
            _ => {}
        }
    }
    Ok(Some((key, bytes)))
}

/// A field's bytes as text.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The fields of a message by number; those that are numbers are given as their one varint's bytes.
pub(super) fn fields(mut message: &[u8]) -> Result<Vec<(u64, &[u8])>, String> {
    let mut out = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let before = message;
        let value = match tag & 7 {
            0 => {
                varint(&mut message)?;
                &before[..before.len() - message.len()]
            }
            2 => {
                let length = usize::try_from(varint(&mut message)?).map_err(|e| e.to_string())?;
                let (value, rest) = message.split_at_checked(length).ok_or("unexpected EOF")?;
                message = rest;
                value
            }
            other => return Err(format!("proto: illegal wireType {other}")),
        };
        out.push((tag >> 3, value));
    }
    Ok(out)
}

fn varint(message: &mut &[u8]) -> Result<u64, String> {
    let mut out = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first().ok_or("unexpected EOF")?;
        *message = rest;
        out |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(out);
        }
    }
    Err("proto: integer overflow".to_owned())
}
