//! Secrets of a cluster that `coracle up` makes are encrypted from the beginning, with a key of its own.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_yaml_ng::Value;

use crate::cluster::write_file;
use crate::error::Failure;

/// The configuration of encryption at `path`, made when it is absent and `wanted`. Not wanted any more, what is
/// encrypted stays readable, and is written plainly from then on.
///
/// # Errors
/// A file that cannot be read, written or understood.
pub fn own(path: &Path, wanted: bool) -> Result<Option<String>, Failure> {
    match std::fs::read_to_string(path) {
        Ok(text) if wanted => Ok(Some(text)),
        Ok(text) => plain_first(&text).map(Some).map_err(|why| {
            Failure::new(format!("{}: {why}", path.display()), "restore the file from a backup")
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && wanted => {
            let text = new(&rand::random());
            write_file(path, text.as_bytes(), 0o600)?;
            Ok(Some(text))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Failure::file("read", path, &e)),
    }
}

/// Secrets by AES-GCM with this key; what is there from before is read as it is.
fn new(key: &[u8; 32]) -> String {
    format!(
        "# Keep this file: without it the cluster's Secrets are lost. To change the key, add one in front of the list.\n\
         apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  \
         providers:\n  - aesgcm:\n      keys:\n      - name: key1\n        secret: {}\n  - identity: {{}}\n",
        STANDARD.encode(key)
    )
}

/// The configuration with `identity` as every first provider.
fn plain_first(text: &str) -> Result<String, serde_yaml_ng::Error> {
    let mut file: Value = serde_yaml_ng::from_str(text)?;
    let entries = file.get_mut("resources").and_then(Value::as_sequence_mut);
    for entry in entries.into_iter().flatten() {
        let providers = entry.get_mut("providers").and_then(Value::as_sequence_mut);
        providers.into_iter().for_each(|list| list.sort_by_key(|p| p.get("identity").is_none()));
    }
    serde_yaml_ng::to_string(&file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use bytes::Bytes;
    use coracle_apiserver::Encryption;
    use coracle_store::Seal as _;

    use super::*;

    #[test]
    fn the_key_is_made_once_and_readable_by_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("encryption-config.yaml");
        assert_eq!(own(&path, false).unwrap(), None);
        let made = own(&path, true).unwrap().unwrap();
        assert_eq!(own(&path, true).unwrap(), Some(made.clone()));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let other = dir.path().join("other");
        assert_ne!(own(&other, true).unwrap(), Some(made));
    }

    #[test]
    fn switched_off_it_still_reads_what_is_encrypted_and_writes_plainly() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("encryption-config.yaml");
        let key = "/registry/core/secrets/a/b";
        let on = Encryption::new(&own(&path, true).unwrap().unwrap()).unwrap();
        let sealed = on.seal(key, b"{}").unwrap().unwrap();
        assert!(on.open(key, &Bytes::from_static(b"{}")).unwrap().stale, "from before");
        let off = Encryption::new(&own(&path, false).unwrap().unwrap()).unwrap();
        assert_eq!(off.open(key, &sealed).unwrap().value, "{}");
        assert_eq!(off.seal(key, b"{}").unwrap(), None);
    }
}
