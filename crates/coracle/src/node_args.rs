//! Options of a node: who runs containers, and who connects pods.

use std::path::PathBuf;

use clap::Args;

/// Options of `up` about its node.
#[derive(Args, Clone, Debug, Default)]
pub struct NodeArgs {
    /// Socket of another container runtime (CRI v1) in place of the built-in one, e.g.
    /// `unix:///run/containerd/containerd.sock`. Pods' cgroups and network are then its business.
    #[arg(
        long,
        env = "CORACLE_CONTAINER_RUNTIME_ENDPOINT",
        value_parser = socket,
        conflicts_with = "cni_conf_dir"
    )]
    pub container_runtime_endpoint: Option<PathBuf>,
    /// Socket of another keeper of images; default the container runtime's.
    #[arg(
        long,
        env = "CORACLE_IMAGE_SERVICE_ENDPOINT",
        value_parser = socket,
        requires = "container_runtime_endpoint"
    )]
    pub image_service_endpoint: Option<PathBuf>,
    /// CNI plug-ins in place of the built-in pod network.
    #[command(flatten)]
    pub cni: CniArgs,
    /// The kubelet's configuration: a KubeletConfiguration file, as upstream's `--config` takes it.
    #[arg(long, env = "CORACLE_KUBELET_CONFIG")]
    pub kubelet_config: Option<PathBuf>,
    /// Directory of files (`*.conf`, in lexical order, also those of directories below) that change parts of the
    /// kubelet's configuration, as upstream's `--config-dir` takes them.
    #[arg(long, env = "CORACLE_KUBELET_CONFIG_DIR")]
    pub kubelet_config_dir: Option<PathBuf>,
    /// Programs that know the credentials of images: a CredentialProviderConfig file.
    #[arg(
        long,
        env = "CORACLE_IMAGE_CREDENTIAL_PROVIDER_CONFIG",
        requires = "image_credential_provider_bin_dir"
    )]
    pub image_credential_provider_config: Option<PathBuf>,
    /// Where these programs are.
    #[arg(
        long,
        env = "CORACLE_IMAGE_CREDENTIAL_PROVIDER_BIN_DIR",
        requires = "image_credential_provider_config"
    )]
    pub image_credential_provider_bin_dir: Option<PathBuf>,
}

/// Options about CNI plug-ins.
#[derive(Args, Clone, Debug, Default)]
pub struct CniArgs {
    /// Directory of CNI configurations (`*.conflist`, `*.conf`): the first by name connects the pods, in place of the
    /// built-in pod network.
    #[arg(long, env = "CORACLE_CNI_CONF_DIR")]
    pub cni_conf_dir: Option<PathBuf>,
    /// Directories of CNI plug-ins.
    #[arg(
        long,
        env = "CORACLE_CNI_BIN_DIR",
        value_delimiter = ',',
        default_values = ["/opt/cni/bin", "/usr/lib/cni"]
    )]
    pub cni_bin_dir: Vec<PathBuf>,
}

/// The path of a socket given as `unix:///path` or `/path`.
///
/// # Errors
/// Another kind of address.
pub fn socket(text: &str) -> Result<PathBuf, String> {
    let path = text.strip_prefix("unix://").unwrap_or(text);
    if path.starts_with('/') {
        return Ok(path.into());
    }
    Err(format!("{text:?} is not of the form unix:///path/to.sock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_absolute_paths() {
        assert_eq!(socket("unix:///run/x.sock"), Ok("/run/x.sock".into()));
        assert_eq!(socket("/run/x.sock"), Ok("/run/x.sock".into()));
        assert!(socket("tcp://127.0.0.1:1").is_err());
        assert!(socket("unix://x.sock").is_err());
    }
}
