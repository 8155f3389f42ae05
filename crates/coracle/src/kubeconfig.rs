//! Kubeconfig files: the administrator's own, and a context in the user's.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde_yaml_ng::{Mapping, Value};

use crate::cluster::write_file;
use crate::error::Failure;

/// What a kubeconfig needs to know.
#[derive(Clone, Debug)]
pub struct Access {
    /// Name of cluster, user and context.
    pub name: String,
    /// `https://…`.
    pub server: String,
    /// CA certificate (PEM).
    pub ca: String,
    /// Client certificate (PEM).
    pub cert: String,
    /// Its key (PEM).
    pub key: String,
}

fn b64(text: &str) -> Value {
    Value::String(base64::engine::general_purpose::STANDARD.encode(text))
}

fn map(pairs: Vec<(&str, Value)>) -> Value {
    Value::Mapping(pairs.into_iter().map(|(k, v)| (Value::from(k), v)).collect::<Mapping>())
}

impl Access {
    fn entries(&self) -> [(&'static str, &'static str, Value); 3] {
        let cluster =
            map(vec![("certificate-authority-data", b64(&self.ca)), ("server", self.server.as_str().into())]);
        let user =
            map(vec![("client-certificate-data", b64(&self.cert)), ("client-key-data", b64(&self.key))]);
        let context = map(vec![("cluster", self.name.as_str().into()), ("user", self.name.as_str().into())]);
        [("clusters", "cluster", cluster), ("users", "user", user), ("contexts", "context", context)]
    }

    /// Writes a kubeconfig with only this cluster, mode 0600.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        let text = merged(Value::Null, self).map_err(|e| Failure::new(e, ""))?;
        write_file(path, text.as_bytes(), 0o600)
    }

    /// Adds (or renews) this cluster in the user's kubeconfig and makes it the current context.
    ///
    /// # Errors
    /// The file exists but is not a kubeconfig: it is left as it is.
    pub fn merge_into(&self, path: &Path) -> Result<(), Failure> {
        let old = read(path)?;
        let text = merged(old, self).map_err(|e| not_a_kubeconfig(path, &e))?;
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|e| Failure::file("create directory", dir, &e))?;
        }
        write_file(path, text.as_bytes(), 0o600)
    }
}

fn not_a_kubeconfig(path: &Path, why: &str) -> Failure {
    Failure::new(
        format!("{} is not a kubeconfig: {why}", path.display()),
        "mend it, or use --no-user-kubeconfig; it was left as it is",
    )
}

fn read(path: &Path) -> Result<Value, Failure> {
    match std::fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(e) => Err(Failure::file("read", path, &e)),
        Ok(text) => serde_yaml_ng::from_str(&text).map_err(|e| not_a_kubeconfig(path, &e.to_string())),
    }
}

fn list<'a>(root: &'a mut Mapping, key: &str) -> Result<&'a mut Vec<Value>, String> {
    let slot = root.entry(key.into()).or_insert(Value::Null);
    if slot.is_null() {
        *slot = Value::Sequence(Vec::new());
    }
    slot.as_sequence_mut().ok_or_else(|| format!("{key:?} is not a list"))
}

fn merged(old: Value, access: &Access) -> Result<String, String> {
    let mut root = match old {
        Value::Null => Mapping::new(),
        Value::Mapping(m) => m,
        _ => return Err("it is not a mapping".into()),
    };
    root.insert("apiVersion".into(), "v1".into());
    root.insert("kind".into(), "Config".into());
    for (key, field, value) in access.entries() {
        let entries = list(&mut root, key)?;
        let entry = map(vec![("name", access.name.as_str().into()), (field, value)]);
        match entries.iter_mut().find(|e| e.get("name").and_then(Value::as_str) == Some(&access.name)) {
            Some(old) => *old = entry,
            None => entries.push(entry),
        }
    }
    root.insert("current-context".into(), access.name.as_str().into());
    serde_yaml_ng::to_string(&root).map_err(|e| e.to_string())
}

/// Takes a cluster out of the user's kubeconfig; a file that then holds nothing is removed. Silent when the
/// file is absent or not understood.
pub fn remove_from(path: &Path, name: &str) {
    let Ok(Value::Mapping(mut root)) = read(path) else { return };
    let mut left = 0;
    let mut changed = false;
    for key in ["clusters", "users", "contexts"] {
        let Ok(entries) = list(&mut root, key) else { return };
        let before = entries.len();
        entries.retain(|e| e.get("name").and_then(Value::as_str) != Some(name));
        changed |= entries.len() != before;
        left += entries.len();
    }
    if !changed {
        return;
    }
    if left == 0 {
        let _ = std::fs::remove_file(path);
        return;
    }
    if root.get("current-context").and_then(Value::as_str) == Some(name) {
        root.insert("current-context".into(), "".into());
    }
    if let Ok(text) = serde_yaml_ng::to_string(&root) {
        let _ = write_file(path, text.as_bytes(), 0o600);
    }
}

/// The kubeconfig that kubectl would use: first of `$KUBECONFIG`, else `~/.kube/config`.
pub fn user_path() -> Option<PathBuf> {
    if let Some(list) = std::env::var_os("KUBECONFIG")
        && let Some(first) = std::env::split_paths(&list).find(|p| !p.as_os_str().is_empty())
    {
        return Some(first);
    }
    std::env::var_os("HOME").map(|home| Path::new(&home).join(".kube/config"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(name: &str) -> Access {
        let text = |s: &str| s.to_owned();
        Access { name: text(name), server: text("https://x"), ca: text("a"), cert: text("b"), key: text("c") }
    }

    #[test]
    fn merging_keeps_other_clusters_and_removing_restores_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        access("one").merge_into(&path).unwrap();
        access("two").merge_into(&path).unwrap();
        access("two").merge_into(&path).unwrap();
        let root = read(&path).unwrap();
        assert_eq!(root["clusters"].as_sequence().unwrap().len(), 2);
        assert_eq!(root["current-context"], Value::from("two"));
        remove_from(&path, "two");
        assert_eq!(read(&path).unwrap()["users"].as_sequence().unwrap().len(), 1);
        remove_from(&path, "one");
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_no_kubeconfig_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        std::fs::write(&path, "clusters: 5\n").unwrap();
        let error = access("x").merge_into(&path).unwrap_err().to_string();
        assert!(error.contains("clusters"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "clusters: 5\n");
    }
}
