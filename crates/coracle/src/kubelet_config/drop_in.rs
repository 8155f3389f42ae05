//! A directory of files that each say a part of the kubelet's configuration, as upstream's `--config-dir` takes it:
//! `*.conf`, in lexical order, also those of directories below. A file's fields replace those of the files before it,
//! maps are merged, lists are replaced, `null` brings the default back.

use std::path::Path;

use serde_json::Value;

use super::{KIND, VERSION};

/// Merges what the files below `dir` say into `config`.
///
/// # Errors
/// The directory or one of the files cannot be read or is not of the kind; upstream's words.
pub fn merge(dir: &Path, config: &mut Value) -> Result<(), String> {
    walk(dir, config).map_err(|why| {
        let shown = dir.display().to_string();
        format!("failed to merge kubelet configs: failed to walk through kubelet dropin directory {shown:?}: {why}")
    })
}

fn walk(dir: &Path, config: &mut Value) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("{}: {e}", dir.display());
    let entries = std::fs::read_dir(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut entries = entries.map_err(failed)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_type().map_err(failed)?.is_dir() {
            walk(&path, config)?;
        } else if entry.file_name().as_encoded_bytes().ends_with(b".conf") {
            let shown = path.display();
            let part = load(&path)
                .map_err(|why| format!("failed to load kubelet dropin file, path: {shown}, {why}"))?;
            coracle_meta::patch::merge_patch(config, &part);
        } else {
            tracing::debug!(file = %path.display(), "no .conf, so it is no part of the configuration");
        }
    }
    Ok(())
}

/// One file.
fn load(path: &Path) -> Result<Value, String> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|e| format!("error: failed to read drop-in kubelet config file {shown:?}, error: {e}"))?;
    if text.is_empty() {
        return Err(format!("error: kubelet config file {shown:?} was empty"));
    }
    let part: Value = serde_yaml_ng::from_str(&text).map_err(|e| format!("error: {e}"))?;
    let Some(kind) = part["kind"].as_str().filter(|kind| !kind.is_empty()) else {
        return Err(format!("error: Object 'Kind' is missing in '{text}'"));
    };
    let version = part["apiVersion"].as_str().unwrap_or_default();
    if kind == KIND && version == VERSION {
        return Ok(part);
    }
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    Err(format!("unknown apiVersion/kind: {group}/{version}, Kind={kind}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const HEAD: &str = "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\n";

    fn write(dir: &Path, name: &str, fields: &str) {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        std::fs::write(path, format!("{HEAD}{fields}")).expect("written");
    }

    #[test]
    fn files_are_merged_by_name_maps_key_by_key_and_lists_as_a_whole() {
        let dir = tempfile::tempdir().expect("a directory");
        write(dir.path(), "20-b.conf", "maxPods: 20\nenforceNodeAllocatable: [none]\npodPidsLimit: null\n");
        write(dir.path(), "10-a.conf", "maxPods: 10\nevictionHard: {memory.available: 1Gi}\n");
        write(dir.path(), "15-more/1.conf", "evictionHard: {nodefs.available: 5%}\nkubeReserved: {cpu: 1}\n");
        write(dir.path(), "30-c.yaml", "maxPods: 30\n");
        let mut config = json!({"maxPods": 5, "podPidsLimit": 7, "kubeReserved": {"memory": "1Gi"},
            "enforceNodeAllocatable": ["pods"]});
        merge(dir.path(), &mut config).expect("merged");
        config.as_object_mut().expect("a map").retain(|key, _| key != "kind" && key != "apiVersion");
        let want = json!({"maxPods": 20, "enforceNodeAllocatable": ["none"],
            "evictionHard": {"memory.available": "1Gi", "nodefs.available": "5%"},
            "kubeReserved": {"memory": "1Gi", "cpu": 1}});
        assert_eq!(config, want);
    }

    #[test]
    fn what_is_no_configuration_is_refused_in_upstreams_words() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("10.conf");
        let refused = |text: &str| {
            std::fs::write(&path, text).expect("written");
            let why = merge(dir.path(), &mut json!({})).unwrap_err();
            let begin = format!(
                "failed to merge kubelet configs: failed to walk through kubelet dropin directory {:?}: failed to \
                 load kubelet dropin file, path: {}, ",
                dir.path().display().to_string(),
                path.display()
            );
            why.strip_prefix(&begin).unwrap_or(&why).to_owned()
        };
        assert_eq!(refused(""), format!("error: kubelet config file \"{}\" was empty", path.display()));
        assert_eq!(refused("maxPods: 3\n"), "error: Object 'Kind' is missing in 'maxPods: 3\n'");
        let other = "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1\n";
        let unknown = "unknown apiVersion/kind: kubelet.config.k8s.io/v1, Kind=KubeletConfiguration";
        assert_eq!(refused(other), unknown);
        assert_eq!(refused("kind: Pod\napiVersion: v1\n"), "unknown apiVersion/kind: /v1, Kind=Pod");
        let absent = merge(&dir.path().join("none"), &mut json!({})).unwrap_err();
        assert!(absent.contains("No such file"), "{absent}");
    }
}
