//! State files of resource managers in upstream's form: JSON with a checksum over Go's way of showing the value.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A state file's content.
pub trait Checkpoint: Serialize + DeserializeOwned {
    /// Whose it is: `CPU` or `memory`, as messages say.
    const MANAGER: &'static str;
    /// The value as Go shows it (`%#v` of go-spew, with sorted keys), the checksum being 0.
    fn shown(&self) -> String;
    /// The checksum.
    fn checksum(&mut self) -> &mut u64;
    /// Name of the policy that it was written under.
    fn policy(&self) -> &str;
}

/// The checksum of a value that is shown so: FNV-1a of 32 bits.
pub fn fnv(text: &str) -> u64 {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    text.bytes().fold(0x811c_9dc5, step).into()
}

/// Reads what an earlier kubelet wrote under this policy; nothing if there is no file.
///
/// # Errors
/// It cannot be used; upstream's text.
pub fn load<C: Checkpoint>(path: &Path, policy: &str) -> Result<Option<C>, String> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unusable::<C>(path, &e.to_string())),
    };
    let mut found: C = serde_json::from_slice(&text).map_err(|e| unusable::<C>(path, &e.to_string()))?;
    let checksum = std::mem::take(found.checksum());
    // Files of before there were checksums have none.
    if checksum != 0 && checksum != fnv(&found.shown()) {
        return Err(unusable::<C>(path, "checkpoint is corrupted"));
    }
    if found.policy() != policy {
        let old = found.policy();
        let why = format!("configured policy {policy:?} differs from state checkpoint policy {old:?}");
        return Err(unusable::<C>(path, &why));
    }
    Ok(Some(found))
}

fn unusable<C: Checkpoint>(path: &Path, why: &str) -> String {
    format!(
        "could not restore state from checkpoint: {why}, please drain this node and delete the {} manager \
         checkpoint file {path:?} before restarting Kubelet",
        C::MANAGER
    )
}

/// Writes it, whole or not at all.
///
/// # Errors
/// The file system's.
pub fn save<C: Checkpoint>(path: &Path, mut content: C) -> std::io::Result<()> {
    *content.checksum() = 0;
    *content.checksum() = fnv(&content.shown());
    write(path, &serde_json::to_vec(&content).map_err(std::io::Error::other)?)
}

/// Replaces a file's content, whole or not at all.
///
/// # Errors
/// The file system's.
pub fn write(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, content)?;
    std::fs::rename(temporary, path)
}

/// A map as Go shows it, the keys being in order.
pub fn shown_map<K: std::fmt::Display, V>(
    entries: impl IntoIterator<Item = (K, V)>,
    value: impl Fn(V) -> String,
) -> String {
    let parts: Vec<String> = entries.into_iter().map(|(k, v)| format!("{k}:{}", value(v))).collect();
    format!("map[{}]", parts.join(" "))
}
