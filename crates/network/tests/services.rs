//! Services and DNS against the real kernel: real packets between pods' namespaces.

mod support;

use std::time::Duration;

use coracle_client::testing::FakeTransport;
use coracle_client::{Client, Informers};
use coracle_cri::PodNetwork as _;
use coracle_network::{DnsServer, PodLinks, ServiceProxy, purge};
use coracle_stdx::Clock;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use support::{Netns, ask, ask_udp, config, on_a_node, output, request, uplink};

async fn add_service(client: &Client, name: &str, spec: Value) {
    let metadata = json!({"name": name, "namespace": "shop"});
    let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata,
        "spec": spec});
    let service: Service = serde_json::from_value(object).expect("service");
    client.api::<Service>().create("shop", service).await.expect("create");
}

fn slice(name: &str, protocol: &str, ips: &[&str]) -> EndpointSlice {
    let endpoints: Vec<Value> =
        ips.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
    let object = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("{name}-1"), "namespace": "shop",
            "labels": {"kubernetes.io/service-name": name}}, "addressType": "IPv4",
        "ports": [{"name": "p", "port": 8080, "protocol": protocol}], "endpoints": endpoints});
    serde_json::from_value(object).expect("slice")
}

/// A burst is committed some milliseconds after its first change.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(60)).await;
}

fn names(answers: &[std::io::Result<String>]) -> Vec<String> {
    let mut names: Vec<String> = answers
        .iter()
        .map(|a| a.as_ref().map_or_else(|e| format!("{:?}", e.kind()), |t| t[..3].to_owned()))
        .collect();
    names.sort();
    names.dedup();
    names
}

async fn many<F>(ask: F) -> Vec<String>
where
    F: Fn() -> std::io::Result<String> + Send + 'static,
{
    let answers = tokio::task::spawn_blocking(move || (0..24).map(|_| ask()).collect::<Vec<_>>());
    names(&answers.await.expect("thread"))
}

/// Runs blocking code while the runtime of this thread goes on.
async fn inside<T: Send + 'static>(netns: &Netns, f: impl FnOnce() -> T + Send + 'static) -> T {
    let path = netns.0.clone();
    let run = move || {
        let netns = std::mem::ManuallyDrop::new(Netns(path));
        netns.run(f)
    };
    tokio::task::spawn_blocking(run).await.expect("thread")
}

fn query(server: [u8; 4], name: &str, kind: RecordType) -> std::io::Result<Message> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.queries.push(Query::query(Name::from_ascii(name).expect("name"), kind));
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    socket.connect((std::net::Ipv4Addr::from(server), 53))?;
    socket.send(&message.to_vec().expect("encode"))?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer)?;
    Ok(Message::from_vec(&buffer[..length]).expect("decode"))
}

const VIP: [u8; 4] = [10, 96, 0, 20];

#[test]
fn services_work_from_pods_the_node_and_outside() {
    on_a_node(|directory| async move {
        let netns = |name: &str| Netns::new(directory.join(name));
        let (outside, one, two) = (netns("client"), netns("one"), netns("two"));
        uplink(&outside);
        let config = config("aabbccd5", &directory);
        let pods = PodLinks::open(config.clone()).await.expect("open");
        for (id, pod) in [("one", &one), ("two", &two)] {
            pods.setup(&request(id, pod, vec![])).await.expect("setup");
        }
        one.serve(8080, "one");
        two.serve(8080, "two");
        let client = FakeTransport::new(Clock::system()).client();
        let both = ["10.244.0.2", "10.244.0.3"];
        let port =
            |protocol: &str| json!([{"name": "p", "port": 80, "protocol": protocol, "nodePort": 30080}]);
        add_service(&client, "web", json!({"clusterIP": "10.96.0.20", "ports": port("TCP")})).await;
        add_service(&client, "udp", json!({"clusterIP": "10.96.0.21", "ports": port("UDP")})).await;
        add_service(
            &client,
            "sticky",
            json!({"clusterIP": "10.96.0.22", "sessionAffinity": "ClientIP",
            "ports": [{"name": "p", "port": 80, "protocol": "TCP", "nodePort": 30082}]}),
        )
        .await;
        add_service(
            &client,
            "empty",
            json!({"clusterIP": "10.96.0.23",
            "ports": [{"name": "p", "port": 80, "protocol": "TCP", "nodePort": 30083}]}),
        )
        .await;
        let slices = client.api::<EndpointSlice>();
        for (name, protocol) in [("web", "TCP"), ("udp", "UDP"), ("sticky", "TCP")] {
            slices.create("shop", slice(name, protocol, &both)).await.expect("create");
        }
        let informers = Informers::new(client.clone());
        let proxy = tokio::spawn(ServiceProxy::new(config.clone(), informers.clone()).run());
        settle().await;

        let each = ["one", "two"];
        assert_eq!(
            inside(&one, || names(&(0..24).map(|_| ask(VIP, 80)).collect::<Vec<_>>())).await,
            each,
            "pod"
        );
        assert_eq!(many(|| ask(VIP, 80)).await, each, "node");
        assert_eq!(many(|| ask([127, 0, 0, 1], 30080)).await, each, "node port on localhost");
        assert_eq!(many(|| ask([192, 0, 2, 77], 30080)).await, each, "node port on the node");
        assert_eq!(
            inside(&outside, || names(&(0..24).map(|_| ask([192, 0, 2, 77], 30080)).collect::<Vec<_>>()))
                .await,
            each,
            "node port from outside"
        );
        assert_eq!(
            inside(&one, || names(&(0..24).map(|_| ask_udp([10, 96, 0, 21], 80)).collect::<Vec<_>>())).await,
            each
        );
        assert_eq!(many(|| ask_udp([192, 0, 2, 77], 30080)).await, each, "UDP node port");
        // Pods see each other's own address through a Service.
        let seen = inside(&one, || (0..24).filter_map(|_| ask(VIP, 80).ok()).collect::<Vec<_>>()).await;
        assert!(seen.contains(&"two 10.244.0.2".to_owned()), "{seen:?}");

        for (address, port) in [([10, 96, 0, 22], 80), ([192, 0, 2, 77], 30082)] {
            assert_eq!(many(move || ask(address, port)).await.len(), 1, "affinity on {address:?}");
        }
        let refused = ["ConnectionRefused"];
        assert_eq!(many(|| ask([10, 96, 0, 23], 80)).await, refused);
        assert_eq!(many(|| ask([192, 0, 2, 77], 30083)).await, refused);
        assert_eq!(inside(&one, || names(&[ask([10, 96, 0, 23], 80)])).await, refused);
        assert_eq!(inside(&one, || names(&[ask(VIP, 81)])).await, refused, "another port of a cluster IP");
        assert_eq!(inside(&outside, || names(&[ask([192, 0, 2, 77], 30083)])).await, refused);

        // A load balancer's address lets in whom its ranges name; the node port beside it is open as ever.
        let from = |ranges: Value| json!({"spec": {"loadBalancerSourceRanges": ranges}});
        let balanced = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.24",
            "loadBalancerSourceRanges": ["203.0.113.0/24"],
            "ports": [{"name": "p", "port": 80, "protocol": "TCP", "nodePort": 30084}]});
        add_service(&client, "guarded", balanced).await;
        slices.create("shop", slice("guarded", "TCP", &both)).await.expect("create");
        let ingress = json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.77"}]}}});
        let services = client.api::<Service>();
        let merge = coracle_client::PatchKind::Merge;
        services.patch_status("shop", "guarded", merge, ingress).await.expect("patch");
        settle().await;
        let outside_asks = |port: u16| {
            let ask_once = move || names(&[ask([192, 0, 2, 77], port)]).remove(0);
            inside(&outside, ask_once)
        };
        assert_eq!(outside_asks(80).await, "TimedOut", "dropped");
        assert!(each.contains(&outside_asks(30084).await.as_str()));
        assert_eq!(many(|| ask([10, 96, 0, 24], 80)).await, each, "inside the cluster nobody is kept out");
        services
            .patch("shop", "guarded", merge, from(json!(["203.0.113.0/24", "192.0.2.0/24"])))
            .await
            .expect("patch");
        settle().await;
        assert!(each.contains(&outside_asks(80).await.as_str()), "let in");
        services.patch("shop", "guarded", merge, from(json!(["203.0.113.0/24"]))).await.expect("patch");
        settle().await;
        assert_eq!(outside_asks(80).await, "TimedOut", "dropped again");
        services.patch("shop", "guarded", merge, from(json!([]))).await.expect("patch");
        settle().await;
        assert!(each.contains(&outside_asks(80).await.as_str()), "open to all");

        // One endpoint leaves: nothing goes there any more, also what was sticky and a UDP flow that goes on.
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("bind");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
        socket.connect("10.96.0.21:80").expect("connect");
        let mut buffer = [0; 64];
        socket.send(b"?").expect("send");
        socket.recv(&mut buffer).expect("answer");
        let gone = if buffer.starts_with(b"one") { "10.244.0.2" } else { "10.244.0.3" };
        let left: Vec<&str> = both.iter().filter(|ip| **ip != gone).copied().collect();
        let stays = if gone == "10.244.0.2" { "two" } else { "one" };
        for (name, protocol) in [("web", "TCP"), ("udp", "UDP"), ("sticky", "TCP")] {
            slices.update("shop", slice(name, protocol, &left)).await.expect("update");
        }
        settle().await;
        let mut moved = false;
        for _ in 0..20 {
            socket.send(b"?").expect("send");
            moved = socket.recv(&mut buffer).is_ok() && buffer.starts_with(stays.as_bytes());
            if moved {
                break;
            }
            settle().await;
        }
        assert!(moved, "the flow goes on to the endpoint that is gone");
        for address in [VIP, [10, 96, 0, 22]] {
            assert_eq!(many(move || ask(address, 80)).await, [stays]);
        }
        // Nothing left: refused; the proxy starts anew and replaces the table.
        slices.delete("shop", "web-1", Default::default()).await.expect("delete");
        settle().await;
        assert_eq!(many(|| ask(VIP, 80)).await, refused);
        proxy.abort();
        slices.create("shop", slice("web", "TCP", &both)).await.expect("create");
        let proxy = tokio::spawn(ServiceProxy::new(config.clone(), informers.clone()).run());
        settle().await;
        assert_eq!(many(|| ask(VIP, 80)).await, each);
        let listed = output("nft", "list table ip coracle-aabbccd5");
        assert!(listed.contains("10.96.0.20 . tcp . 80 : goto lb-2"), "{listed}");
        assert!(listed.contains("numgen random mod 2"), "{listed}");
        proxy.abort();
        purge(&config).await.expect("purge");
        assert_eq!(output("nft", "list ruleset"), "");
    });
}

#[test]
fn pods_resolve_names_of_services() {
    on_a_node(|directory| async move {
        let one = Netns::new(directory.join("one"));
        let config = config("aabbccd6", &directory);
        let pods = PodLinks::open(config.clone()).await.expect("open");
        pods.setup(&request("one", &one, vec![])).await.expect("setup");
        let client = FakeTransport::new(Clock::system()).client();
        add_service(&client, "web", json!({"clusterIP": "10.96.0.20", "ports": [{"name": "p", "port": 80}]}))
            .await;
        add_service(
            &client,
            "kube-dns",
            json!({"clusterIP": "10.96.0.10",
            "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}),
        )
        .await;
        let informers = Informers::new(client.clone());
        let proxy = tokio::spawn(ServiceProxy::new(config.clone(), informers.clone()).run());
        let dns = tokio::spawn(DnsServer::new(config.clone(), informers).run());
        settle().await;
        let ask = |name: &'static str, kind| {
            inside(&one, move || query([10, 96, 0, 10], name, kind).expect("answer"))
        };
        let found = ask("web.shop.svc.cluster.local.", RecordType::A).await;
        assert_eq!(found.answers[0].data.to_string(), "10.96.0.20");
        assert!(found.metadata.authoritative);
        let none = ask("nope.shop.svc.cluster.local.", RecordType::A).await;
        assert_eq!(none.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(none.authorities.len(), 1);
        let other = ask("web.shop.svc.cluster.local.", RecordType::AAAA).await;
        assert_eq!((other.metadata.response_code, other.answers.len()), (ResponseCode::NoError, 0));
        // No server of the outside can be reached from here.
        let outside = tokio::task::spawn_blocking(|| query([10, 96, 0, 10], "example.com.", RecordType::A));
        let outside = outside.await.expect("thread").expect("answer");
        assert_eq!(outside.metadata.response_code, ResponseCode::ServFail);
        proxy.abort();
        dns.abort();
        let _ = dns.await;
        purge(&config).await.expect("purge");
        assert!(!output("ip", "addr show lo").contains("10.96.0.10"));
    });
}
