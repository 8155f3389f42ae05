//! Which store the API server keeps its objects in: the embedded one, or etcd by upstream's flags; and whether it
//! encrypts them there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use coracle_apiserver::{Encryption, Reload};
use coracle_stdx::{Clock, Tasks};
use coracle_store::{
    EmbeddedConfig, EmbeddedStore, EtcdConfig, EtcdStore, SealedStore, ShiftedStore, Store, StoreError,
};

use crate::error::Failure;
use crate::followed::Followed;
use crate::{reload, snapshot};

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
    /// Which resources are encrypted in the store, and how (apiserver.config.k8s.io/v1 EncryptionConfiguration).
    #[arg(long, env = "CORACLE_ENCRYPTION_PROVIDER_CONFIG", value_name = "FILE")]
    pub encryption_provider_config: Option<PathBuf>,
    /// Take up changes of that file without a restart.
    #[arg(
        long,
        default_value_t = false,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        requires = "encryption_provider_config"
    )]
    pub encryption_provider_config_automatic_reload: bool,
}

/// An opened store.
pub struct Opened {
    /// Encrypts what is to be encrypted.
    pub store: Arc<dyn Store>,
    /// As things lie on the disk, or in etcd.
    pub raw: Arc<dyn Store>,
    /// What is encrypted, and how.
    pub encryption: Option<Arc<Encryption>>,
    /// The configuration of that, and what it said, if it is to be followed.
    followed: Option<(PathBuf, String)>,
    /// Where the embedded store is.
    dir: Option<PathBuf>,
}

impl Opened {
    /// Hands out snapshots from now on, and takes up changes of the encryption's configuration, if that is wanted.
    pub fn serve(&self, tasks: &mut Tasks, reload: &Arc<Reload>, clock: &Clock) {
        if let Some(dir) = &self.dir {
            tasks.spawn(snapshot::serve(self.raw.clone(), dir.clone()));
        }
        if let (Some(encryption), Some((file, text))) = (&self.encryption, &self.followed) {
            let followed = Followed::new(file.clone(), text.clone(), reload.clone(), clock.clone());
            tasks.spawn(reload::encryption(encryption.clone(), followed));
        }
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|e| Failure::file("read", path, &e))
}

impl StoreArgs {
    /// Opens the store; the embedded one lives in `dir`. Without a configuration given, `own` says what is encrypted.
    ///
    /// # Errors
    /// What is wrong with the flags, the files, etcd or the directory, and what to do about it.
    pub async fn open(&self, dir: PathBuf, own: Option<String>) -> Result<Opened, Failure> {
        let embedded = self.etcd_servers.is_empty().then(|| dir.clone());
        let text = self.encryption_provider_config.as_deref().map(read).transpose()?;
        let Some(text) = text.or(own) else {
            let raw = self.raw(dir).await?;
            return Ok(Opened { store: raw.clone(), raw, encryption: None, followed: None, dir: embedded });
        };
        let hint = "see https://kubernetes.io/docs/tasks/administer-cluster/encrypt-data/";
        let encryption = Encryption::new(&text)
            .map_err(|why| Failure::new(format!("--encryption-provider-config: {why}"), hint))?;
        let raw = self.raw(dir).await?;
        let store = SealedStore::new(raw.clone(), encryption.clone());
        let file = self.encryption_provider_config.clone();
        let file = file.filter(|_| self.encryption_provider_config_automatic_reload);
        let followed = file.map(|file| (file, text));
        Ok(Opened { store, raw, encryption: Some(encryption), followed, dir: embedded })
    }

    /// Opens the store as it is.
    ///
    /// # Errors
    /// As [`StoreArgs::open`].
    pub async fn raw(&self, dir: PathBuf) -> Result<Arc<dyn Store>, Failure> {
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
        let etcd = EtcdStore::connect(config).await.map_err(|e| Failure::new(e, hint))?;
        ShiftedStore::over(etcd).await.map_err(|e| Failure::new(e, hint))
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
