//! Schedules 3,000 pods on 1,000 nodes and prints pods per second: decisions alone, then all of it through
//! the fake transport (whose JSON costs more than the scheduler).

use std::sync::Arc;
use std::time::Instant;

use coracle_client::Informers;
use coracle_client::testing::FakeTransport;
use coracle_scheduler::cache::Cache;
use coracle_scheduler::cycle::Cycle;
use coracle_scheduler::plugins;
use coracle_scheduler::pod_info::PodInfo;
use coracle_scheduler::{Scheduler, SchedulerConfig};
use coracle_stdx::Clock;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;

fn node(n: usize) -> Node {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node-{n}")},
        "status": {"allocatable": {"cpu": "4", "memory": "32Gi", "pods": "110"}}});
    serde_json::from_value(node).expect("node")
}

fn pod(n: usize) -> Pod {
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod-{n}"), "namespace": "default", "uid": n.to_string()},
        "spec": {"schedulerName": "default-scheduler", "containers": [{"name": "c", "image": "pause",
            "resources": {"requests": {"cpu": "100m", "memory": "500Mi"}}}]}});
    serde_json::from_value(pod).expect("pod")
}

fn decisions(pods: usize, nodes: usize) {
    let mut cache = Cache::default();
    (0..nodes).for_each(|n| cache.set_node(&node(n)));
    let mut cycle = Cycle::new(plugins::ALL, Box::new(|n| n / 2));
    let pods: Vec<Arc<Pod>> = (0..pods).map(|n| Arc::new(pod(n))).collect();
    let started = Instant::now();
    for pod in &pods {
        let info = PodInfo::new(pod.clone());
        let slot = cycle.schedule(&info, &cache).expect("fits");
        let name = cache.node(slot).expect("node").name.clone();
        cache.assume(Arc::new(info), &name);
    }
    println!("decisions: {:.0} pods/s", pods.len() as f64 / started.elapsed().as_secs_f64());
}

#[tokio::main]
async fn main() {
    let number =
        |n: usize, default: usize| std::env::args().nth(n).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (pods, nodes) = (number(1, 3000), number(2, 1000));
    let client = FakeTransport::new(Clock::system()).client();
    decisions(pods, nodes);
    for n in 0..nodes {
        client.api::<Node>().create("", node(n)).await.expect("create");
    }
    for n in 0..pods {
        client.api::<Pod>().create("default", pod(n)).await.expect("create");
    }
    let started = Instant::now();
    let scheduler = Scheduler::new(client.clone(), Clock::system(), SchedulerConfig::default());
    let task = tokio::spawn(scheduler.run());
    let mut bound = std::collections::HashSet::new();
    let mut changes = Informers::new(client.clone()).get::<Pod>().subscribe();
    while bound.len() < pods {
        let Some(change) = changes.next().await else { break };
        let pod = change.object();
        if pod.spec.as_ref().is_some_and(|s| s.node_name.is_some()) {
            bound.insert(pod.metadata.name.clone());
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{pods} pods on {nodes} nodes: {seconds:.3} s, {:.0} pods/s", pods as f64 / seconds);
    task.abort();
}
