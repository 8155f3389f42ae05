//! The daemon's control socket: one JSON line asks, one JSON line answers. Only root reaches it (mode 0600).

use std::path::{Path, PathBuf};

use coracle_client::Client;
use coracle_cri::v1::ImageSpec;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::error::Failure;
use crate::release;
use crate::runtime::Containers;

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Whether the daemon lives, and its figures.
    Status,
    /// Import an image archive from a path on this machine.
    Import {
        /// Absolute path.
        path: PathBuf,
    },
    /// Write an image into an archive.
    Export {
        /// Reference or id.
        image: String,
        /// Absolute path of the new file.
        path: PathBuf,
    },
    /// Pull an image.
    Pull {
        /// Reference.
        image: String,
    },
    /// Follow or change a rollout.
    Release {
        /// What to do with what.
        order: release::Order,
    },
    /// List images.
    Images,
    /// Remove an image.
    RemoveImage {
        /// Reference or id.
        image: String,
    },
}

/// Serves the socket until the task is dropped.
///
/// # Errors
/// When the socket cannot be made.
pub fn listen(path: &Path) -> Result<UnixListener, Failure> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).map_err(|e| Failure::file("listen on", path, &e))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path, mode).map_err(|e| Failure::file("protect", path, &e))?;
    Ok(listener)
}

/// What answers are made of.
#[derive(Clone)]
pub struct Parts {
    /// The node's containers and images.
    pub containers: Containers,
    /// The administrator's client.
    pub admin: Client,
    /// Where containers' logs are.
    pub logs: PathBuf,
    /// The daemon's figures.
    pub about: Value,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Parts")
    }
}

/// Answers requests.
pub async fn serve(listener: UnixListener, parts: Parts) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let parts = parts.clone();
        tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            let answer = match serde_json::from_str::<Request>(&line) {
                Ok(request) => answer(parts, request).await,
                Err(e) => Err(format!("not a request: {e}")),
            };
            let answer = match answer {
                Ok(value) => json!({ "ok": value }),
                Err(why) => json!({ "error": why }),
            };
            let _ = stream.get_mut().write_all(format!("{answer}\n").as_bytes()).await;
        });
    }
}

async fn answer(parts: Parts, request: Request) -> Result<Value, String> {
    let Parts { containers, admin, logs, mut about } = parts;
    let Containers { own, runtime, images, .. } = containers;
    let spec = |image: String| ImageSpec { image, ..ImageSpec::default() };
    match request {
        Request::Status => {
            let sandboxes = runtime.list_pod_sandbox(<_>::default()).await.map_err(|e| e.to_string())?;
            about["pods"] = sandboxes.iter().filter(|s| s.ready).count().into();
            Ok(about)
        }
        Request::Import { path } => {
            let elsewhere = "images are kept by another container runtime: import them there";
            let own = own.ok_or(elsewhere)?;
            own.import_image(&path).await.map(|names| json!(names)).map_err(|e| e.to_string())
        }
        Request::Export { image, path } => {
            let own = own.ok_or("images are kept by another container runtime: export them there")?;
            own.export_image(&image, &path).await.map(|()| Value::Null).map_err(|e| e.to_string())
        }
        Request::Pull { image } => {
            images.pull_image(&spec(image), None).await.map(|id| json!(id)).map_err(|e| e.to_string())
        }
        Request::Release { order } => release::serve(&admin, &logs, order).await,
        Request::Images => images
            .list_images()
            .await
            .map(|list| serde_json::to_value(list).unwrap_or_default())
            .map_err(|e| e.to_string()),
        Request::RemoveImage { image } => {
            let spec = spec(image);
            match images.image_status(&spec).await {
                Ok(Some(_)) => {}
                Ok(None) => return Err(format!("image {:?} is not present", spec.image)),
                Err(e) => return Err(e.to_string()),
            }
            images.remove_image(&spec).await.map(|()| Value::Null).map_err(|e| e.to_string())
        }
    }
}

/// Asks the daemon.
///
/// # Errors
/// No daemon listens, or it refused.
pub async fn ask(socket: &Path, request: &Request) -> Result<Value, Failure> {
    let mut stream = UnixStream::connect(socket).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::PermissionDenied => Failure::file("reach the daemon at", socket, &e),
        _ => Failure::new("the cluster is not running", "start it with `coracle up`"),
    })?;
    let line = serde_json::to_string(request).unwrap_or_default();
    let broken =
        |e: std::io::Error| Failure::new(format!("the daemon did not answer: {e}"), "see D/coracle.log");
    stream.write_all(format!("{line}\n").as_bytes()).await.map_err(broken)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).await.map_err(broken)?;
    let mut answer: Value = serde_json::from_str(&answer)
        .map_err(|_| Failure::new("the daemon ended while it was asked", "see D/coracle.log"))?;
    match answer["error"].as_str() {
        Some(why) => Err(Failure::new(why, "")),
        None => Ok(answer["ok"].take()),
    }
}
