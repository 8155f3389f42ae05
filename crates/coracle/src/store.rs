//! Which store the API server keeps its objects in: the embedded one, or etcd by upstream's flags.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use coracle_store::{EmbeddedConfig, EmbeddedStore, EtcdConfig, EtcdStore, Store, StoreError};

use crate::error::Failure;

/// Upstream's flags for etcd. Without servers the embedded store is used.
#[derive(Args, Clone, Debug)]
pub struct StoreArgs {
    /// etcd servers, e.g. `https://10.0.0.1:2379,https://10.0.0.2:2379`, in place of the embedded store.
    #[arg(long, env = "CORACLE_ETCD_SERVERS", value_delimiter = ',', value_name = "URL")]
    pub etcd_servers: Vec<String>,
    /// Certificates (PEM) that vouch for the etcd servers.
    #[arg(long, env = "CORACLE_ETCD_CAFILE", value_name = "FILE", requires = "etcd_servers")]
    pub etcd_cafile: Option<PathBuf>,
    /// Client certificate (PEM) for etcd.
    #[arg(long, env = "CORACLE_ETCD_CERTFILE", value_name = "FILE", requires = "etcd_keyfile")]
    pub etcd_certfile: Option<PathBuf>,
    /// Its key.
    #[arg(long, env = "CORACLE_ETCD_KEYFILE", value_name = "FILE", requires = "etcd_certfile")]
    pub etcd_keyfile: Option<PathBuf>,
    /// What all keys in etcd begin with. Not upstream's layout: give each kind of cluster a prefix of its own.
    #[arg(long, env = "CORACLE_ETCD_PREFIX", default_value = "/coracle")]
    pub etcd_prefix: String,
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|e| Failure::file("read", path, &e))
}

impl StoreArgs {
    /// Opens the store; the embedded one lives in `dir`.
    ///
    /// # Errors
    /// What is wrong with the flags, the files, etcd or the directory, and what to do about it.
    pub async fn open(&self, dir: PathBuf) -> Result<Arc<dyn Store>, Failure> {
        if self.etcd_servers.is_empty() {
            return Ok(EmbeddedStore::open(EmbeddedConfig { dir }).map_err(|e| failure(&e))?);
        }
        let pair = self.etcd_certfile.as_deref().zip(self.etcd_keyfile.as_deref());
        let config = EtcdConfig {
            endpoints: self.etcd_servers.clone(),
            ca_pem: self.etcd_cafile.as_deref().map(read).transpose()?,
            client_pem: pair.map(|(cert, key)| Ok::<_, Failure>((read(cert)?, read(key)?))).transpose()?,
            prefix: self.etcd_prefix.clone(),
        };
        let hint = "check that etcd runs, --etcd-servers, and the files of its certificates";
        Ok(EtcdStore::connect(config).await.map_err(|e| Failure::new(e, hint))?)
    }
}

/// What to do about an embedded store that does not open.
fn failure(why: &StoreError) -> Failure {
    use StoreError::{Corrupted, DiskFull, Format, InUse};
    let hint = match why {
        DiskFull { .. } => "free some disk space and start again; nothing acknowledged is lost",
        Corrupted { .. } => "restore the directory from a backup, or start anew with `coracle down --purge`",
        Format { .. } => "use the version of coracle that made it, or another --data-dir",
        InUse { .. } => "stop the other one first, or choose another --data-dir",
        _ => "check the data directory",
    };
    Failure::new(why, hint)
}
