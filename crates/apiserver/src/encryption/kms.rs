//! Envelope encryption with a KMS v2 plugin (<https://kubernetes.io/docs/tasks/administer-cluster/kms-provider/>).
//!
//! The plugin encrypts one random seed, not the values: each value has a key of its own, derived from the seed and
//! 32 random bytes in front of the value. What is stored is upstream's `EncryptedObject`, which carries the encrypted
//! seed. A new seed is made at the start and whenever the plugin says that its key changed; it may be used for three
//! minutes after the plugin was last seen well.
//!
//! A thread per plugin talks to it and asks every minute how it does, since no event tells that its key changed.
//! Stores are opened synchronously: who reads a value with a seed not seen before waits for the plugin, at most for
//! the configured timeout; seeds are remembered.

mod plugin;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use coracle_grpc::Message as _;
use coracle_store::Opened;
use parking_lot::{Condvar, Mutex};
use rand::RngCore;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use self::plugin::{EncryptedObject, Plugin, Sealed};
use super::ciphers::Cipher;

/// What stored values begin with, before the provider's name.
const PREFIX: &str = "k8s:enc:kms:v2:";
/// How long a seed may be used without word from the plugin.
const SEED_TTL: Duration = Duration::from_secs(180);
/// How often a plugin that is well is asked, and one that is not.
const WELL: Duration = Duration::from_secs(60);
const UNWELL: Duration = Duration::from_secs(10);
const SEED: usize = 32;
/// Random bytes in front of a value, from which its key is derived.
const INFO: usize = 32;
/// Seeds that are remembered.
const REMEMBERED: usize = 1000;
/// `EncryptedObject.encryptedDEKSourceType`: a seed.
const HKDF_SHA256_XNONCE_AES_GCM_SEED: i32 = 1;

type Seed = [u8; SEED];

/// What a configuration says of a plugin.
#[derive(Clone, Debug)]
pub(super) struct KmsConfig {
    pub(super) name: String,
    pub(super) socket: PathBuf,
    pub(super) timeout: Duration,
}

/// The seed in use.
#[derive(Clone)]
struct Current {
    seed: Seed,
    sealed: Arc<Sealed>,
    until: Instant,
}

#[derive(Default)]
struct State {
    current: Option<Current>,
    /// What was wrong when the plugin was asked last; `None` before that and when nothing was.
    trouble: Option<String>,
    asked: bool,
    seeds: HashMap<[u8; 32], Seed>,
}

/// A provider of the configuration.
pub(super) struct Kms {
    config: KmsConfig,
    prefix: String,
    state: Mutex<State>,
    /// The state is no longer that before the plugin was asked first.
    asked: Condvar,
    /// To the thread that talks to the plugin, which ends when this is dropped.
    wishes: mpsc::UnboundedSender<Wish>,
}

/// A secret to be decrypted, and where to.
struct Wish {
    sealed: Sealed,
    reply: SyncSender<Result<Bytes, String>>,
}

impl Kms {
    /// Starts to talk to a plugin.
    ///
    /// # Errors
    /// No thread can be had.
    pub(super) fn start(config: KmsConfig) -> Result<Arc<Self>, String> {
        let (wishes, asked) = mpsc::unbounded_channel();
        let prefix = [PREFIX, &config.name, ":"].concat();
        let kms = Arc::new(Self {
            prefix,
            state: Mutex::default(),
            asked: Condvar::new(),
            wishes,
            config: config.clone(),
        });
        let weak = Arc::downgrade(&kms);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| e.to_string())?;
        let thread = std::thread::Builder::new().name(format!("kms-{}", config.name));
        thread.spawn(move || runtime.block_on(talk(weak, config, asked))).map_err(|e| e.to_string())?;
        Ok(kms)
    }

    /// What values begin with.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What is wrong with the plugin, if anything. Waits for the first word from it.
    pub(super) fn trouble(&self) -> Option<String> {
        let mut state = self.state.lock();
        if !state.asked {
            self.asked.wait_for(&mut state, self.config.timeout);
        }
        match (&state.trouble, state.asked) {
            (None, false) => Some("the plugin has not answered yet".to_owned()),
            (trouble, _) => trouble.clone(),
        }
    }

    fn current(&self) -> Result<Current, String> {
        let mut state = self.state.lock();
        if state.current.is_none() && !state.asked {
            self.asked.wait_for(&mut state, self.config.timeout);
        }
        state.current.clone().ok_or_else(|| {
            let why = state.trouble.clone().unwrap_or_else(|| "the plugin has not answered yet".to_owned());
            format!("got unexpected nil transformer: {why}")
        })
    }

    /// The stored form of a value.
    pub(super) fn seal(&self, key: &str, value: &[u8]) -> Result<Bytes, String> {
        let current = self.current()?;
        if current.until < Instant::now() {
            let hash = hash_of(&current.sealed.key_id);
            return Err(format!("EDEK with keyID hash {hash:?} expired"));
        }
        let mut info = [0; INFO];
        rand::rng().fill_bytes(&mut info);
        let data = cipher(&current.seed, &info)?.seal(info.to_vec(), value, key.as_bytes())?;
        let Sealed { ciphertext, key_id, annotations } = Sealed::clone(&current.sealed);
        let source = HKDF_SHA256_XNONCE_AES_GCM_SEED;
        let object = EncryptedObject { data: data.into(), key_id, ciphertext, annotations, source };
        Ok([self.prefix.as_bytes(), &object.encode()].concat().into())
    }

    /// A value from its stored form without the prefix; it is stale when the plugin's key is another by now.
    pub(super) fn open(&self, key: &str, stored: &[u8]) -> Result<Opened, String> {
        let object = EncryptedObject::decode(Bytes::copy_from_slice(stored)).map_err(|e| e.to_string())?;
        let EncryptedObject { data, key_id, ciphertext, annotations, source } = object;
        let sealed = Sealed { ciphertext, key_id, annotations };
        if source != HKDF_SHA256_XNONCE_AES_GCM_SEED {
            return Err(format!("unknown encryptedDEKSourceType: {source}"));
        }
        let (info, _) =
            data.split_at_checked(INFO).ok_or("the stored data was shorter than the required size")?;
        let seed = self.seed_of(sealed.clone())?;
        let value = cipher(&seed, info)?.open(&data[INFO..], key.as_bytes())?;
        let newest = self.state.lock().current.as_ref().map(|current| current.sealed.key_id.clone());
        Ok(Opened { value: value.into(), stale: newest.is_some_and(|newest| newest != sealed.key_id) })
    }

    /// The seed behind an encrypted one.
    fn seed_of(&self, sealed: Sealed) -> Result<Seed, String> {
        let id = identity(&sealed);
        if let Some(seed) = self.state.lock().seeds.get(&id) {
            return Ok(*seed);
        }
        let (reply, answer) = sync_channel(1);
        let gone = || "the plugin's thread is gone".to_owned();
        self.wishes.send(Wish { sealed, reply }).map_err(|_| gone())?;
        // The thread itself gives up after the timeout.
        let plain = match answer.recv_timeout(self.config.timeout * 2 + Duration::from_secs(1)) {
            Ok(plain) => plain.map_err(|why| format!("failed to decrypt DEK, error: {why}"))?,
            Err(RecvTimeoutError::Timeout) => {
                return Err("failed to decrypt DEK, error: timed out".to_owned());
            }
            Err(RecvTimeoutError::Disconnected) => return Err(gone()),
        };
        let seed =
            Seed::try_from(&plain[..]).map_err(|_| "the decrypted seed has a wrong length".to_owned())?;
        self.state.lock().remember(id, seed);
        Ok(seed)
    }

    /// Takes in what the plugin said; yields how long to wait before it is asked again.
    fn heard(&self, heard: Result<Option<(Seed, Sealed)>, String>) -> Duration {
        let mut state = self.state.lock();
        let until = Instant::now() + SEED_TTL;
        state.asked = true;
        let wait = match heard {
            Ok(fresh) => {
                if let Some((seed, sealed)) = fresh {
                    state.remember(identity(&sealed), seed);
                    state.current = Some(Current { seed, sealed: Arc::new(sealed), until });
                }
                state.current.iter_mut().for_each(|current| current.until = until);
                state.trouble = None;
                WELL
            }
            Err(why) => {
                tracing::warn!(provider = self.config.name, why, "KMS plugin is not well");
                state.trouble = Some(why);
                UNWELL
            }
        };
        self.asked.notify_all();
        wait
    }
}

impl State {
    fn remember(&mut self, id: [u8; 32], seed: Seed) {
        if self.seeds.len() >= REMEMBERED {
            self.seeds.clear();
        }
        self.seeds.insert(id, seed);
    }
}

/// The thread's work: asks the plugin how it does, makes seeds, and has others decrypted; until nobody uses it.
async fn talk(kms: Weak<Kms>, config: KmsConfig, mut wishes: mpsc::UnboundedReceiver<Wish>) {
    let plugin = Plugin::at(&config.socket, config.timeout);
    let mut next = tokio::time::Instant::now();
    loop {
        tokio::select! {
            wish = wishes.recv() => {
                let Some(Wish { sealed, reply }) = wish else { return };
                let _ = reply.send(plugin.decrypt(coracle_stdx::uuid(), sealed).await);
            }
            () = tokio::time::sleep_until(next) => {
                let Some(kms) = kms.upgrade() else { return };
                let known = kms.state.lock().current.as_ref().map(|current| current.sealed.key_id.clone());
                let heard = ask(&plugin, known.as_deref()).await;
                next = tokio::time::Instant::now() + kms.heard(heard);
            }
        }
    }
}

/// Asks for the plugin's key; a new seed when that is not the `known` one.
async fn ask(plugin: &Plugin, known: Option<&str>) -> Result<Option<(Seed, Sealed)>, String> {
    let status = plugin.status().await?;
    if known == Some(&status.key_id) {
        return Ok(None);
    }
    let mut seed = [0; SEED];
    rand::rng().fill_bytes(&mut seed);
    let sealed = plugin.encrypt(coracle_stdx::uuid(), Bytes::copy_from_slice(&seed)).await;
    let sealed = sealed.map_err(|why| format!("failed to encrypt DEK, error: {why}"))?;
    if sealed.ciphertext.is_empty() || sealed.ciphertext == seed[..] {
        return Err("encrypted DEK source is empty or not encrypted".to_owned());
    }
    Ok(Some((seed, sealed)))
}

/// The cipher of one value: its key is HKDF-Expand (SHA-256) of the seed.
fn cipher(seed: &Seed, info: &[u8]) -> Result<Cipher, String> {
    let prk = ring::hkdf::Prk::new_less_safe(ring::hkdf::HKDF_SHA256, seed);
    let mut key = [0; 32];
    let parts = [info];
    let made = prk.expand(&parts, ring::hkdf::HKDF_SHA256).and_then(|okm| okm.fill(&mut key));
    made.map_err(|_| "no key can be derived".to_owned())?;
    Cipher::gcm(&key).ok_or_else(|| "no key can be derived".to_owned())
}

fn identity(sealed: &Sealed) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [sealed.key_id.as_bytes(), &sealed.ciphertext[..]] {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    for (key, value) in &sealed.annotations {
        hash.update(key.as_bytes());
        hash.update(value);
    }
    hash.finalize().into()
}

fn hash_of(key_id: &str) -> String {
    format!("sha256:{}", coracle_stdx::hex(&Sha256::digest(key_id)))
}

#[cfg(test)]
#[path = "kms/tests.rs"]
mod tests;
