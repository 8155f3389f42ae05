//! `coracle snapshot`: the embedded store (or etcd's part) in one file, saved while it runs, and restored from it.
//!
//! Whoever has the embedded store open hands out snapshots at a socket beside it, as it lets nobody else in.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_store::snapshot::{SnapshotError, SnapshotReader, load, save};
use coracle_store::{EmbeddedStore, Store};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{UnixListener, UnixStream};

use crate::cli::{SnapshotArgs, SnapshotCommand};
use crate::cluster::{Paths, make_dir};
use crate::error::Failure;
use crate::store::StoreArgs;

const SOCKET: &str = "snapshot.sock";

/// The socket in a store's directory, by a path that is short however long the directory's is.
fn socket(dir: &Path) -> std::io::Result<(File, PathBuf)> {
    let dir = File::open(dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()));
    Ok((dir, path))
}

/// Hands out snapshots of the store in `dir` until dropped.
pub async fn serve(store: Arc<dyn Store>, dir: PathBuf) {
    let listen = || {
        let _ = std::fs::remove_file(dir.join(SOCKET));
        let (_dir, path) = socket(&dir)?;
        let listener = UnixListener::bind(path)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(dir.join(SOCKET), mode)?;
        std::io::Result::Ok(listener)
    };
    let listener = match listen() {
        Ok(listener) => listener,
        Err(e) => {
            tracing::warn!(error = %e, "no snapshots while this runs");
            return std::future::pending().await;
        }
    };
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        let store = store.clone();
        tokio::spawn(async move {
            match save(&*store, &mut stream).await {
                Ok(info) => tracing::info!(revision = info.revision, keys = info.keys, "snapshot saved"),
                Err(e) => tracing::warn!(error = %e, "snapshot not saved"),
            }
            let _ = stream.shutdown().await;
        });
    }
}

/// Runs a subcommand.
///
/// # Errors
/// What is wrong with the file, the store, or the directory, and what to do about it.
pub async fn run(args: SnapshotArgs) -> Result<(), Failure> {
    let paths = Paths::new(&args.data.data_dir)?;
    match args.command {
        SnapshotCommand::Save { file } => {
            let reader = save_to(&args.store, &paths.file("store"), &file).await?;
            let revision = reader.revision();
            println!("saved {} keys at revision {revision} to {}", reader.count(), file.display());
            println!(
                "the certificates and keys in {} are not in it: keep a copy of them too",
                paths.file("pki").display()
            );
            Ok(())
        }
        SnapshotCommand::Status { file } => {
            let reader = read(&file)?;
            let revision = reader.revision();
            println!("{}: whole, {} keys at revision {revision}", file.display(), reader.count());
            Ok(())
        }
        SnapshotCommand::Restore { file, bump_revision } => {
            restore(&args.store, &paths, &file, bump_revision).await
        }
    }
}

fn failure(file: &Path) -> impl Fn(SnapshotError) -> Failure {
    let file = file.display().to_string();
    move |why| match why {
        SnapshotError::NotEmpty(_) => {
            Failure::new(why, "restore into a new --data-dir, or another --etcd-prefix")
        }
        SnapshotError::Foreign | SnapshotError::Checksum => {
            Failure::new(format!("{file}: {why}"), "take another snapshot")
        }
        _ => Failure::new(why, "check the disk and the store, and try again"),
    }
}

fn read(file: &Path) -> Result<SnapshotReader<File>, Failure> {
    let opened = File::open(file).map_err(|e| Failure::file("read", file, &e))?;
    SnapshotReader::open(opened).map_err(failure(file))
}

/// Saves to a file, which appears when it is whole; yields it for reading.
async fn save_to(store: &StoreArgs, dir: &Path, file: &Path) -> Result<SnapshotReader<File>, Failure> {
    let temp = file.with_extension(format!("tmp-{}", std::process::id()));
    let saved = write(store, dir, &temp).await.and_then(|()| read(&temp));
    let moved = saved.and_then(|reader| {
        std::fs::rename(&temp, file).map_err(|e| Failure::file("write", file, &e))?;
        Ok(reader)
    });
    if moved.is_err() {
        let _ = std::fs::remove_file(&temp);
    }
    moved
}

async fn write(store: &StoreArgs, dir: &Path, temp: &Path) -> Result<(), Failure> {
    let fail = |e: &std::io::Error| Failure::file("write", temp, e);
    let mut options = tokio::fs::OpenOptions::new();
    let mut out =
        options.write(true).create(true).truncate(true).mode(0o600).open(temp).await.map_err(|e| fail(&e))?;
    let running = match socket(dir) {
        Ok((_dir, path)) if store.etcd_servers.is_empty() => UnixStream::connect(path).await.ok(),
        _ => None,
    };
    match running {
        Some(mut stream) => {
            tokio::io::copy(&mut stream, &mut out).await.map_err(|e| fail(&e))?;
        }
        None if store.etcd_servers.is_empty() && !dir.is_dir() => {
            let what = format!("{} has no store", dir.parent().unwrap_or(dir).display());
            return Err(Failure::new(what, "name the cluster's --data-dir"));
        }
        None => {
            let store = store.raw(dir.to_owned()).await?;
            save(&*store, &mut out).await.map_err(failure(temp))?;
        }
    }
    out.sync_all().await.map_err(|e| fail(&e))
}

async fn restore(store: &StoreArgs, paths: &Paths, file: &Path, bump: u64) -> Result<(), Failure> {
    let mut sealed = false;
    let reader = read(file)?;
    let revision = reader.revision() + bump;
    let entries = reader.inspect(|e| sealed |= e.as_ref().is_ok_and(|e| e.value.starts_with(b"k8s:enc:")));
    let info = if store.etcd_servers.is_empty() {
        make_dir(&paths.data, 0o700)?;
        EmbeddedStore::restore(&paths.file("store"), revision, entries)
    } else {
        load(store.raw(paths.file("store")).await?, revision, entries).await
    };
    let info = info.map_err(failure(file))?;
    println!("restored {} keys; the store is at revision {}", info.keys, info.revision);
    if sealed
        && store.encryption_provider_config.is_none()
        && !paths.file("pki/encryption-config.yaml").exists()
    {
        println!(
            "some are encrypted: copy the old cluster's pki directory to {} before the start",
            paths.file("pki").display()
        );
    }
    Ok(())
}
