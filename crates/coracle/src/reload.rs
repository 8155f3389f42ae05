//! Files that may change while the server runs: certificates, and the configuration of encryption.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_apiserver::{ApiServer, Encryption, Tls};
use coracle_stdx::files::{Watch, Watcher};

use crate::followed::{Followed, Refused};

/// Files whose content is compared when something happens where they are.
///
/// Directories are watched, as files are replaced by renaming, and mounted ones by a link beside them.
pub struct Files {
    files: Vec<PathBuf>,
    watches: Vec<Watch>,
    known: Vec<Option<Vec<u8>>>,
}

impl Files {
    /// Changes from now on.
    ///
    /// # Errors
    /// They cannot be watched.
    pub fn watch(files: Vec<PathBuf>) -> std::io::Result<Self> {
        let watches = watch(&files)?;
        let known = read(&files);
        Ok(Self { files, watches, known })
    }

    /// Changes from this content of the only file on, whenever it had it.
    #[must_use]
    pub fn since(self, content: &str) -> Self {
        Self { known: vec![Some(content.into())], ..self }
    }

    /// Waits until one of them has other content than before.
    pub async fn changed(&mut self) {
        loop {
            let now = read(&self.files);
            if now != self.known {
                self.known = now;
                return;
            }
            let next = self.watches.iter().map(|w| Box::pin(w.changed()));
            futures::future::select_all(next).await;
        }
    }
}

fn read(files: &[PathBuf]) -> Vec<Option<Vec<u8>>> {
    files.iter().map(|f| std::fs::read(f).ok()).collect()
}

/// Calls `changed` whenever one of the files has other content than before; never returns.
pub async fn follow<F: Future<Output = ()>>(files: Vec<PathBuf>, mut changed: impl FnMut() -> F) {
    let mut files = match Files::watch(files) {
        Ok(files) => files,
        Err(e) => {
            tracing::warn!(error = %e, "changes of files are not noticed before the next start");
            return std::future::pending().await;
        }
    };
    loop {
        files.changed().await;
        changed().await;
    }
}

fn watch(files: &[PathBuf]) -> std::io::Result<Vec<Watch>> {
    let watcher = Watcher::new()?;
    let folders: BTreeSet<&Path> = files
        .iter()
        .map(|f| f.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
        .collect();
    folders.into_iter().map(|folder| watcher.folder(folder)).collect()
}

/// Where certificates come from.
#[derive(Clone, Debug)]
pub struct CertificateFiles {
    /// Certificate and key; none when the server made its own.
    pub serving: Option<(PathBuf, PathBuf)>,
    /// CA of client certificates.
    pub client_ca: Option<PathBuf>,
}

/// Takes up certificates when their files change: connections made from then on get them.
pub async fn certificates(server: Arc<ApiServer>, files: CertificateFiles) {
    let serving = files.serving.iter().flat_map(|(cert, key)| [cert.clone(), key.clone()]);
    let all: Vec<PathBuf> = serving.chain(files.client_ca.clone()).collect();
    if all.is_empty() {
        return std::future::pending().await;
    }
    follow(all, || {
        match renew(&server, &files) {
            Ok(()) => tracing::info!("certificates taken up from their files"),
            // A pair is written file by file: the other half is on its way.
            Err(why) => tracing::warn!(%why, "certificates not taken up; those in force stay"),
        }
        std::future::ready(())
    })
    .await;
}

fn renew(server: &ApiServer, files: &CertificateFiles) -> Result<(), String> {
    let read = |path: &PathBuf| std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()));
    let serving = files.serving.as_ref();
    let tls = serving.map(|(cert, key)| Ok::<_, String>(Tls { cert_pem: read(cert)?, key_pem: read(key)? }));
    let client_ca = files.client_ca.as_ref().map(read).transpose()?;
    server.renew(tls.transpose()?, client_ca).map_err(|e| e.to_string())
}

/// Takes up the configuration of encryption when its file changes.
pub async fn encryption(encryption: Arc<Encryption>, followed: Followed) {
    followed
        .run(|text| {
            let encryption = encryption.clone();
            async move {
                // Plugins are waited for.
                let replaced = tokio::task::spawn_blocking(move || encryption.replace(&text)).await;
                let replaced = replaced.map_err(|e| e.to_string()).and_then(|result| result);
                replaced.map(|()| true).map_err(Refused::NotYet)
            }
        })
        .await;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_file_that_is_replaced_or_rewritten_is_noticed_and_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tls.crt");
        std::fs::write(&file, "one").unwrap();
        let (told, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let watched = file.clone();
        let follower = tokio::spawn(follow(vec![file.clone()], move || {
            told.send(std::fs::read_to_string(&watched).unwrap()).unwrap();
            std::future::ready(())
        }));
        // The follower has begun once a change reaches it.
        let mut number = 0;
        let first = loop {
            number += 1;
            std::fs::write(&file, format!("begun {number}")).unwrap();
            if let Ok(first) = tokio::time::timeout(Duration::from_millis(100), seen.recv()).await {
                break first.unwrap();
            }
            assert!(number < 600, "never noticed");
        };
        assert!(first.starts_with("begun"));
        while tokio::time::timeout(Duration::from_millis(100), seen.recv()).await.is_ok() {}
        std::fs::write(dir.path().join("other"), "x").unwrap();
        let new = dir.path().join("new");
        std::fs::write(&new, "two").unwrap();
        std::fs::rename(&new, &file).unwrap();
        let next = tokio::time::timeout(Duration::from_secs(60), seen.recv()).await.unwrap().unwrap();
        assert_eq!(next, "two");
        follower.abort();
    }
}
