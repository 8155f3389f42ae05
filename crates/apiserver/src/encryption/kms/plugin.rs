//! The KMS v2 plugin at a Unix socket: the three calls of `k8s.io/kms/apis/v2`, and upstream's `EncryptedObject`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use coracle_grpc::{Channel, Message, messages};

/// The version that a plugin must speak.
const VERSION: &str = "v2";
/// Where the calls are.
pub(super) const SERVICE: &str = "v2.KeyManagementService";

messages! {
    /// Asks a plugin how it does.
    StatusRequest {}
    /// What a plugin says of itself; `key_id` changes with the key that it encrypts by.
    StatusResponse { version: String = 1, healthz: String = 2, key_id: String = 3 }
    /// Has a secret encrypted; `uid` names the call in logs.
    EncryptRequest { plaintext: Bytes = 1, uid: String = 2 }
    /// A secret as the plugin encrypted it; the annotations are the plugin's own, to be shown to it again.
    EncryptResponse { ciphertext: Bytes = 1, key_id: String = 2, annotations: BTreeMap<String, Bytes> = 3 }
    /// Has a secret decrypted.
    DecryptRequest {
        ciphertext: Bytes = 1, uid: String = 2, key_id: String = 3, annotations: BTreeMap<String, Bytes> = 4,
    }
    /// A secret.
    DecryptResponse { plaintext: Bytes = 1 }
    /// A value as it is stored: `data` is encrypted by a key that comes of the seed in `ciphertext`.
    EncryptedObject {
        data: Bytes = 1, key_id: String = 2, ciphertext: Bytes = 3, annotations: BTreeMap<String, Bytes> = 4,
        source: i32 = 5,
    }
}

/// A secret as the plugin encrypted it.
pub(super) type Sealed = EncryptResponse;

/// The way to a plugin; connects when it is needed.
pub(super) struct Plugin {
    channel: Channel,
    timeout: Duration,
}

impl Plugin {
    /// The plugin at a socket; no call takes longer than `timeout`.
    pub(super) fn at(socket: &Path, timeout: Duration) -> Self {
        Self { channel: Channel::unix(socket), timeout }
    }

    /// Asks how it does.
    pub(super) async fn status(&self) -> Result<StatusResponse, String> {
        let out: StatusResponse = self.call("Status", &StatusRequest {}).await?;
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
    pub(super) async fn encrypt(&self, uid: String, plaintext: Bytes) -> Result<Sealed, String> {
        self.call("Encrypt", &EncryptRequest { plaintext, uid }).await
    }

    /// Has a secret decrypted.
    pub(super) async fn decrypt(&self, uid: String, sealed: Sealed) -> Result<Bytes, String> {
        let Sealed { ciphertext, key_id, annotations } = sealed;
        let request = DecryptRequest { ciphertext, uid, key_id, annotations };
        self.call("Decrypt", &request).await.map(|answer: DecryptResponse| answer.plaintext)
    }

    async fn call<Q: Message, A: Message>(&self, method: &str, request: &Q) -> Result<A, String> {
        let answer = self.channel.call(&format!("{SERVICE}/{method}"), request, Some(self.timeout)).await;
        answer.map_err(|e| format!("rpc error: code = {:?} desc = {}", e.code, e.message))
    }
}
