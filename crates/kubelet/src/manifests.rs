//! Where manifests of static pods are: files of a directory, and a URL.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_stdx::Clock;
use coracle_stdx::files::Watch;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;
use tracing::warn;

use crate::context::Context;
use crate::statics::{Origin, parse, parse_all};

/// Files in one burst of changes are read together.
const SETTLE: Duration = Duration::from_millis(100);
/// The longest a server of manifests may take, as upstream's kubelet waits.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest document that is read from it.
const LONGEST: usize = 10 << 20;

/// A server of manifests: `staticPodURL`, `staticPodURLHeader` and `httpCheckFrequency` of the kubelet's
/// configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestUrl {
    /// Answers with a Pod or a PodList, in JSON or YAML.
    pub url: String,
    /// Sent with each request.
    pub headers: Vec<(String, String)>,
    /// Between two requests.
    pub every: Duration,
}

/// The pods of the URL; `None` until it has answered once.
pub type Fetched = watch::Receiver<Option<Vec<Arc<Pod>>>>;

/// All manifests of a node.
pub struct Source {
    /// Or one file, as upstream allows.
    directory: PathBuf,
    /// How often it is looked at even if nothing tells of a change (it may be mounted over).
    look: Duration,
    node: String,
    watch: Option<Watch>,
    /// By file; the text, to see whether it changed.
    known: BTreeMap<PathBuf, (String, Option<Arc<Pod>>)>,
    fetched: Option<Fetched>,
}

impl Source {
    /// The node's manifests; the directory need not exist. Call within a tokio runtime: what the URL says is fetched
    /// by a task that ends with this.
    pub fn new(cx: &Context) -> Self {
        let node = cx.config.node_name.clone();
        let fetched = cx.config.static_pod_url.clone().map(|from| {
            let (sender, receiver) = watch::channel(None);
            tokio::spawn(fetch_always(from, node.clone(), cx.clock.clone(), sender));
            receiver
        });
        let (directory, look) = (cx.config.static_pods.clone(), cx.config.static_pods_check);
        Self { directory, look, node, watch: None, known: BTreeMap::new(), fetched }
    }

    /// The pods of the URL, if there is one.
    pub fn fetched(&self) -> Option<Fetched> {
        self.fetched.clone()
    }

    /// The pods that are described now.
    pub fn read(&mut self, cx: &Context) -> Vec<Arc<Pod>> {
        let fetched = self.fetched.as_mut().and_then(|f| f.borrow_and_update().clone());
        let mut pods = self.read_directory(cx);
        pods.extend(fetched.into_iter().flatten());
        pods
    }

    fn read_directory(&mut self, cx: &Context) -> Vec<Arc<Pod>> {
        if self.watch.is_none() {
            self.watch = cx.files.folder(&self.directory).ok();
        }
        let mut found = BTreeMap::new();
        for path in manifests(&self.directory) {
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            let known = self.known.remove(&path).filter(|(old, _)| *old == text);
            let pod = known.map(|(_, pod)| pod).unwrap_or_else(|| {
                let origin =
                    Origin { source: "file", place: &path.to_string_lossy(), node: self.node.as_str() };
                match parse(&text, origin, cx.clock.now()) {
                    Ok(pod) => Some(Arc::new(pod)),
                    Err(e) => {
                        warn!(file = %path.display(), error = e, "manifest left out");
                        None
                    }
                }
            });
            found.insert(path, (text, pod));
        }
        self.known = found;
        self.known.values().filter_map(|(_, pod)| pod.clone()).collect()
    }

    /// Completes when something may have changed.
    pub async fn changed(&mut self) {
        let files = async {
            match &self.watch {
                Some(watch) => {
                    let _ = tokio::time::timeout(self.look, watch.changed()).await;
                    tokio::time::sleep(SETTLE).await;
                }
                None => tokio::time::sleep(self.look).await,
            }
        };
        let url = async {
            let changed = match &mut self.fetched {
                Some(fetched) => fetched.changed().await.is_ok(),
                None => false,
            };
            if !changed {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = files => {}
            () = url => {}
        }
    }
}

/// Files of a directory, those left out whose names begin with a dot; of a file itself.
fn manifests(place: &Path) -> Vec<PathBuf> {
    if place.is_file() {
        return vec![place.to_owned()];
    }
    let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
    let seen = entries.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    seen.map(|entry| entry.path()).filter(|path| path.is_file()).collect()
}

/// Asks the server again and again. What it said last counts until it says something else: a server that is down or
/// talks nonsense ends no pod.
async fn fetch_always(
    from: ManifestUrl,
    node: String,
    clock: Clock,
    tell: watch::Sender<Option<Vec<Arc<Pod>>>>,
) {
    let mut last = None;
    while !tell.is_closed() {
        let origin = Origin { source: "http", place: &from.url, node: &node };
        match fetch(&from).await {
            Ok(text) if last.as_ref() == Some(&text) => {}
            Ok(text) => match parse_all(&text, origin, clock.now()) {
                Ok(pods) => {
                    last = Some(text);
                    tell.send_replace(Some(pods.into_iter().map(Arc::new).collect()));
                }
                Err(e) => warn!(url = from.url, error = e, "manifests left out"),
            },
            Err(e) => warn!(url = from.url, error = e, "no manifests"),
        }
        tokio::select! {
            () = tokio::time::sleep(from.every) => {}
            () = tell.closed() => return,
        }
    }
}

async fn fetch(from: &ManifestUrl) -> Result<String, String> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().timeout(PATIENCE).build().map_err(|e| chain(&e))?;
    let request = from.headers.iter().fold(client.get(&from.url), |r, (name, value)| r.header(name, value));
    let mut response = request.send().await.map_err(|e| chain(&e))?;
    if response.status() != http::StatusCode::OK {
        return Err(format!("the server answers {}", response.status()));
    }
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|e| chain(&e))? {
        body.extend_from_slice(&piece);
        if body.len() > LONGEST {
            return Err(format!("the document is longer than {LONGEST} bytes"));
        }
    }
    if body.is_empty() {
        return Err("the document is empty".to_owned());
    }
    String::from_utf8(body).map_err(|e| e.to_string())
}

/// An error and what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::names;

    #[test]
    fn a_path_of_manifests_is_a_directory_or_one_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str| dir.path().join(name);
        std::fs::write(file("a.yaml"), ONE).expect("written");
        std::fs::write(file(".hidden"), ONE).expect("written");
        std::fs::create_dir(file("below")).expect("made");
        assert_eq!(manifests(dir.path()), [file("a.yaml")]);
        assert_eq!(manifests(&file("a.yaml")), [file("a.yaml")]);
        assert!(manifests(&file("absent")).is_empty());
    }

    /// Answers each connection with the next of `answers`, then no more; the heads of the requests.
    async fn serve(listener: TcpListener, answers: Vec<(u16, &'static str)>) -> Vec<String> {
        let mut heads = Vec::new();
        for (code, body) in answers {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a head"));
            }
            let answer = format!(
                "HTTP/1.1 {code} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.expect("written");
            heads.push(String::from_utf8(head).expect("text"));
        }
        heads
    }

    const ONE: &str = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"one"},
        "spec":{"containers":[{"name":"a","image":"i"}]}}"#;
    const NONE: &str = r#"{"kind":"PodList","apiVersion":"v1","items":[]}"#;

    #[tokio::test]
    async fn what_a_url_said_last_counts_until_it_says_something_else() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let from = ManifestUrl {
            url: format!("http://{}/pods", listener.local_addr().expect("address")),
            headers: vec![("X-Token".into(), "t".into())],
            every: Duration::from_millis(1),
        };
        let answers =
            vec![(500, "no"), (200, ONE), (200, ""), (200, "nonsense"), (404, "no"), (200, ONE), (200, NONE)];
        let server = tokio::spawn(serve(listener, answers));
        let (sender, mut fetched) = watch::channel(None);
        let node = "n".to_owned();
        let task = tokio::spawn(fetch_always(from, node, Clock::system(), sender));
        let seen = |pods: &Option<Vec<Arc<Pod>>>| {
            pods.as_ref().map(|p| p.iter().map(|p| names::name(p).to_owned()).collect::<Vec<_>>())
        };
        fetched.changed().await.expect("told");
        assert_eq!(seen(&fetched.borrow_and_update()), Some(vec!["one-n".to_owned()]));
        fetched.changed().await.expect("told");
        assert_eq!(seen(&fetched.borrow_and_update()), Some(Vec::new()), "nothing in between was news");
        let heads = server.await.expect("served");
        assert!(
            heads.iter().all(|head| head.starts_with("GET /pods HTTP/1.1") && head.contains("x-token: t"))
        );
        drop(fetched);
        task.await.expect("it ends when nobody listens");
    }
}
