//! Reports the images that each node of a cluster stores, and every change of them: a controller of the kind that one
//! writes first, on the kube crate.
//!
//! It finds the cluster by itself: inside a pod by the service account, elsewhere by `$KUBECONFIG` or `~/.kube/config`.
//! A shared informer keeps a copy of the nodes; changes are told as they come, and the sum of each node is told again
//! every so often, read from the copy: the API server is not asked for it.

mod report;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::reflector::Store;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::time::MissedTickBehavior;

use report::{Images, changes, images_of, summary};

/// Where the time between two full reports is given, in seconds.
const RESYNC: &str = "RESYNC_SECONDS";
/// The same, unless given.
const EVERY: Duration = Duration::from_secs(300);

/// Writes a line; a reader that has gone is no reason to fail.
fn say(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Tells the sum of every node in the informer's copy.
fn resync(nodes: &Store<Node>) {
    let mut all = nodes.state();
    all.sort_by_key(|node| node.name_any());
    for node in all {
        say(&summary(&node.name_any(), &images_of(&node)));
    }
}

/// What is known of each node, to tell changes from what was told already.
#[derive(Default)]
struct Told(BTreeMap<String, Images>);

impl Told {
    /// Tells what is new of a node. The first sight of one is its sum.
    fn seen(&mut self, node: &Node) {
        let (name, now) = (node.name_any(), images_of(node));
        match self.0.get(&name) {
            None => say(&summary(&name, &now)),
            Some(before) => changes(&name, before, &now).iter().for_each(|line| say(line)),
        }
        self.0.insert(name, now);
    }

    fn gone(&mut self, name: &str) {
        if self.0.remove(name).is_some() {
            say(&format!("{name}: gone"));
        }
    }
}

/// Works until it is asked to end. Broken watches are taken up again, with back-off.
async fn run(every: Duration) -> Result<(), Box<dyn std::error::Error>> {
    let client = Client::try_default().await?;
    let (nodes, writer) = reflector::store();
    let events = watcher(Api::<Node>::all(client), watcher::Config::default());
    let events = reflector(writer, events).default_backoff();
    let mut events = std::pin::pin!(events);
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let (mut told, mut listed) = (Told::default(), Vec::new());
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(node))) => {
                    listed.push(node.name_any());
                    told.seen(&node);
                }
                // Nodes that went while nobody watched are missing in the list.
                Some(Ok(watcher::Event::InitDone)) => {
                    let missing: Vec<_> = told.0.keys().filter(|name| !listed.contains(name)).cloned().collect();
                    missing.iter().for_each(|name| told.gone(name));
                }
                Some(Ok(watcher::Event::Apply(node))) => told.seen(&node),
                Some(Ok(watcher::Event::Delete(node))) => told.gone(&node.name_any()),
                Some(Err(why)) => eprintln!("watch: {why}"),
                None => return Err("the watch ended".into()),
            },
            _ = tick.tick() => resync(&nodes),
            _ = terminate.recv() => return Ok(()),
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let every = match std::env::var(RESYNC).map(|text| text.parse::<u64>()) {
        Err(_) => EVERY,
        Ok(Ok(seconds)) if seconds > 0 => Duration::from_secs(seconds),
        Ok(_) => {
            eprintln!("{RESYNC} is no number of seconds");
            return ExitCode::from(2);
        }
    };
    match run(every).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("node-images: {why}");
            ExitCode::FAILURE
        }
    }
}
