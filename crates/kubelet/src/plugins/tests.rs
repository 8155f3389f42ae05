//! Plug-ins that come and go: real servers on real sockets.

use coracle_grpc::{Answer, Bytes, Service, Status};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::*;

/// A plug-in that says this of itself.
struct Plugin {
    info: PluginInfo,
    told: mpsc::UnboundedSender<RegistrationStatus>,
}

impl Service for Plugin {
    fn call(self: Arc<Self>, method: String, q: Bytes) -> BoxFuture<'static, Answer> {
        Box::pin(async move {
            match method.as_str() {
                "pluginregistration.Registration/GetInfo" => {
                    Answer::unary(q, |_: InfoRequest| async move { Ok::<_, Status>(self.info.clone()) }).await
                }
                "pluginregistration.Registration/NotifyRegistrationStatus" => {
                    Answer::unary(q, |status: RegistrationStatus| async move {
                        self.told.send(status).expect("the test listens");
                        Ok::<_, Status>(RegistrationStatusResponse {})
                    })
                    .await
                }
                _ => Answer::unimplemented(&method),
            }
        })
    }
}

/// Writes down what it is told.
#[derive(Default)]
struct Taker(Mutex<Vec<String>>);

#[async_trait]
impl PluginHandler for Taker {
    fn validate(&self, plugin: &PluginInfo) -> Result<(), String> {
        let known = plugin.supported_versions.iter().any(|v| v == "v1");
        if known { Ok(()) } else { Err("too old".into()) }
    }
    async fn register(&self, plugin: &PluginInfo) -> Result<(), String> {
        self.0.lock().push(format!("+{}", plugin.name));
        if plugin.name == "broken" { Err("it is broken".into()) } else { Ok(()) }
    }
    fn deregister(&self, plugin: &PluginInfo) {
        self.0.lock().push(format!("-{}", plugin.name));
    }
}

/// A registry that is watched.
struct Lab {
    dir: tempfile::TempDir,
    taker: Arc<Taker>,
    _task: tokio_util::task::AbortOnDropHandle<()>,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let taker = Arc::new(Taker::default());
        let handler: Arc<dyn PluginHandler> = taker.clone();
        let registry = dir.path().join("registry");
        let task = tokio::spawn(async move {
            watch(&registry, &Watcher::new().expect("inotify"), &[("Test", handler)].into()).await;
        });
        Self { dir, taker, _task: tokio_util::task::AbortOnDropHandle::new(task) }
    }

    /// A plug-in's server, and what it hears.
    fn plugin(
        &self,
        socket: &str,
        kind: &str,
        name: &str,
        version: &str,
    ) -> (tokio_util::task::AbortOnDropHandle<()>, mpsc::UnboundedReceiver<RegistrationStatus>) {
        let (told, hears) = mpsc::unbounded_channel();
        let supported_versions = vec![version.to_owned()];
        let info =
            PluginInfo { kind: kind.into(), name: name.into(), endpoint: String::new(), supported_versions };
        let listener = coracle_grpc::listen(&self.path(socket)).expect("a socket");
        let server = tokio::spawn(coracle_grpc::serve(listener, Arc::new(Plugin { info, told })));
        (tokio_util::task::AbortOnDropHandle::new(server), hears)
    }

    fn path(&self, socket: &str) -> PathBuf {
        self.dir.path().join("registry").join(socket)
    }

    async fn wait_for(&self, log: &[&str]) {
        let seen = async {
            while *self.taker.0.lock() != log {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let limit = tokio::time::timeout(Duration::from_secs(60), seen).await;
        assert!(limit.is_ok(), "{:?} instead of {log:?}", self.taker.0.lock());
    }
}

#[tokio::test]
async fn plugins_are_registered_when_their_socket_appears_and_no_more_when_it_goes() {
    let lab = Lab::new();
    let (_a, mut hears) = lab.plugin("a.sock", "Test", "a", "v1");
    let status = hears.recv().await.expect("told");
    assert!(status.plugin_registered && status.error.is_empty(), "{status:?}");
    lab.wait_for(&["+a"]).await;
    // A directory of its own, as CSI drivers have.
    let (_b, mut hears) = lab.plugin("deep/b.sock", "Test", "b", "v1");
    assert!(hears.recv().await.expect("told").plugin_registered);
    // Another takes the place of the first.
    std::fs::remove_file(lab.path("a.sock")).expect("removed");
    lab.wait_for(&["+a", "+b", "-a"]).await;
    let (_c, mut hears) = lab.plugin("a.sock", "Test", "c", "v1");
    assert!(hears.recv().await.expect("told").plugin_registered);
    lab.wait_for(&["+a", "+b", "-a", "+c"]).await;
    std::fs::remove_dir_all(lab.path("deep")).expect("removed");
    lab.wait_for(&["+a", "+b", "-a", "+c", "-b"]).await;
}

#[tokio::test]
async fn plugins_hear_why_they_are_not_taken() {
    let lab = Lab::new();
    let socket = |name: &str| lab.path(name).display().to_string();
    let (_x, mut hears) = lab.plugin("x.sock", "Other", "x", "v1");
    let why = format!(
        "RegisterPlugin error -- no handler registered for plugin type: Other at socket {}",
        socket("x.sock")
    );
    assert_eq!(hears.recv().await, Some(RegistrationStatus { plugin_registered: false, error: why }));
    let (_y, mut hears) = lab.plugin("y.sock", "Test", "y", "v0");
    let why = "RegisterPlugin error -- plugin validation failed with err: too old".to_owned();
    assert_eq!(hears.recv().await, Some(RegistrationStatus { plugin_registered: false, error: why }));
    let (_z, mut hears) = lab.plugin("z.sock", "Test", "broken", "v1");
    let why = "RegisterPlugin error -- plugin registration failed with err: it is broken".to_owned();
    assert_eq!(hears.recv().await.expect("told").error, why);
    assert_eq!(hears.recv().await.expect("told again").error, why, "it is tried again");
    let (_hidden, mut silent) = lab.plugin(".hidden.sock", "Test", "hidden", "v1");
    let (_last, mut hears) = lab.plugin("last.sock", "Test", "last", "v1");
    assert!(hears.recv().await.expect("told").plugin_registered);
    assert!(silent.try_recv().is_err(), "a name with a dot before it is nobody's");
}
